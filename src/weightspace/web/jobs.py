"""Jobs over HTTP: started, listed, cancelled, and a socket that tells every change (see docs/web_api.md)."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, FastAPI, HTTPException, WebSocket, WebSocketDisconnect

from weightspace.net.errors import WeightspaceError
from weightspace.web.guard import PROTOCOL
from weightspace.web.kinds import Asked, Order, order_of
from weightspace.web.members import Members
from weightspace.web.queue import BusyError, Limits, Queue
from weightspace.web.served import Id, Served, id_of
from weightspace.web.uploads import Uploads, upload_routes

__all__ = ["job_routes"]

_PAUSE = 0.1  # seconds between two messages of a socket
_SOCKETS = 32
_NONE = "no job of this id; load the list again"


def job_routes(members: Members) -> APIRouter:
    """The routes under /api/jobs and /api/uploads, and the socket of jobs; with the server the atlas is closed."""
    served, uploads = members.served, Uploads()
    queue = Queue(served.reports, Limits(running=served.jobs, memory=served.memory))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(queue.close)
        uploads.close()
        members.close()

    router = APIRouter(lifespan=lifespan)
    router.include_router(upload_routes(uploads, members))
    limits = {"running": queue.limits.running, "waiting": queue.limits.waiting, "minute": queue.limits.minute}

    @router.get("/api/jobs")
    def listed() -> dict[str, Any]:
        return {"jobs": queue.rows(), **limits}

    @router.post("/api/jobs", status_code=201)
    def started(asked: Annotated[Asked, Body()]) -> dict[str, Any]:
        order = order_of(asked, members, uploads.find)
        shown = {name: value for name, value in asked.arguments.model_dump().items() if value is not None}
        out, report = _place(order, served)
        told = {"kind": order.kind, "arguments": order.arguments, "atlas": served.atlas, "objects": served.objects,
                "arch": served.arch, "out": None if out is None else str(out)}  # fmt: skip
        try:
            job = queue.add(order.kind, order.title, shown, told, report)
        except BusyError as error:
            raise HTTPException(429, str(error)) from error
        return queue.told(job.id)

    @router.get("/api/jobs/{id}")
    def one(id: Id) -> dict[str, Any]:
        with _known():
            return queue.told(id)

    @router.delete("/api/jobs/{id}")
    def ended(id: Id) -> dict[str, Any]:
        with _known():
            return queue.end(id).data()

    _socket(router, queue)
    return router


@contextlib.contextmanager
def _known() -> Any:
    try:
        yield
    except KeyError as error:
        raise HTTPException(404, _NONE) from error


def _place(order: Order, served: Served) -> tuple[Path | None, str | None]:
    """The file that a job writes: a page, or a network in the atlas' folder; and the id of the page."""
    name = f"{order.kind}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    if order.reports:
        return served.reports.absolute() / f"{name}.html", id_of(f"{name}.html")
    if order.kind != "merge":
        return None, None
    if served.atlas is None or "://" in served.atlas:
        raise WeightspaceError("an atlas in a database has no folder for new networks; use weightspace atlas merge")
    return Path(served.atlas).expanduser().absolute() / "merged" / f"{name}.safetensors", None


def _socket(router: APIRouter, queue: Queue) -> None:
    """Add the socket that sends the list of jobs, then what changes, at most ten times a second."""
    open_sockets: set[WebSocket] = set()

    @router.websocket("/socket/jobs")
    async def jobs(socket: WebSocket) -> None:
        await socket.accept(PROTOCOL)
        if len(open_sockets) >= _SOCKETS:
            await socket.close(4429, "too many pages are open")
            return
        open_sockets.add(socket)
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        changed.set()

        def told() -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(changed.set)

        ended = queue.watch(told)
        reading = asyncio.create_task(_read(socket))
        sending = asyncio.create_task(_send(socket, queue, changed))
        try:
            await asyncio.wait({reading, sending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended()
            open_sockets.discard(socket)
            for task in (reading, sending):
                task.cancel()
            await asyncio.gather(reading, sending, return_exceptions=True)


async def _read(socket: WebSocket) -> None:
    """Wait until the page is gone; what it sends is not looked at."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return


async def _send(socket: WebSocket, queue: Queue, changed: asyncio.Event) -> None:
    version, known, first = -1, set[str](), True
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while True:
            await changed.wait()
            changed.clear()
            version, jobs, gone = queue.since(version, known)
            known = (known | {job["id"] for job in jobs}) - {*gone}
            if first or jobs or gone:
                await socket.send_json({"all": first, "jobs": jobs, "gone": gone})
            first = False
            await asyncio.sleep(_PAUSE)
