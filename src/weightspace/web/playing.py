"""The socket of the playground: one session of networks for each open page, which take turns on the cores."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from weightspace.checkpoint import files
from weightspace.net.errors import WeightspaceError
from weightspace.web.guard import PROTOCOL
from weightspace.web.playground.session import FIRST, Session

__all__ = ["LONGEST", "Room", "routes"]

T = TypeVar("T")

LONGEST = 64 << 10  # bytes of a message
_SOCKETS = 64
_IDLE = 3600.0  # seconds without a message after which a socket is closed
_FREE = ("state", "data", "show", "edit", "undo", "examples")  # what touches nothing that sessions share
_METRICS = ("spectral", "natural")  # algorithms whose steps are those of the library
_SET_UP = 3  # messages until a page is set up
_FULL = "The playground is full ({n} pages are open); close one and try again."
_LONG_IDLE = "Nothing happened for {n:g} minutes, so this playground was closed."


class Room:
    """The sessions of a server: how many may be open, and who computes when.

    Each socket has one message under way, and messages run in the order in which they came. Reading a graph and drawing
    a network work on state that all threads of torch share, so of the messages that do either one runs at a time, in a
    thread of its own. Training steps run beside it, on the other cores.
    """

    def __init__(self, sockets: int = _SOCKETS, idle: float = _IDLE, workers: int | None = None) -> None:
        self.most, self.idle = sockets, idle
        self.open = 0
        self.warming: asyncio.Task[None] | None = None
        self.shared = _threads(workers or max(1, (os.cpu_count() or 1) - 1))
        self.single = _threads(1)

    async def begin(self) -> Session:
        """A new session."""
        return await self._run(Session, alone=True)

    async def answer(self, session: Session, text: str) -> bytes | str:
        """The answer to one message: bytes of a reply, or JSON with one sentence about what was wrong."""
        try:
            message = _read(text)
            reply = await self._run(lambda: session.answer(message).to_bytes(), _alone(session, message))
        except WeightspaceError as error:
            return _refused(str(error))
        except Exception as error:  # the page is told, the socket and the other sessions go on
            return _refused(f"unexpected {type(error).__name__}; please report it")
        return reply

    async def _run(self, work: Callable[[], T], alone: bool) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.single if alone else self.shared, work)

    async def warm(self) -> None:
        """Load what the first messages of a process need, once, and let those of pages pass in between."""
        session = await self.begin()
        for message in FIRST:
            await self.answer(session, json.dumps(message))

    async def talk(self, socket: WebSocket) -> None:
        """One page from its first message to its last; its session ends with it."""
        await socket.accept(subprotocol=PROTOCOL)
        if self.open >= self.most:
            return await _close(socket, "full", _FULL.format(n=self.most))
        self.open += 1
        try:
            await self._talk(socket)
        except (WebSocketDisconnect, RuntimeError):  # the page went away while its answer was computed
            pass
        finally:
            self.open -= 1

    async def _talk(self, socket: WebSocket) -> None:
        session = await self.begin()
        for count in itertools.count(1):
            try:
                message = await asyncio.wait_for(socket.receive(), self.idle)
            except TimeoutError:
                return await _close(socket, "idle", _LONG_IDLE.format(n=self.idle / 60))
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            answer = _refused("a message is text, not bytes") if text is None else await self.answer(session, text)
            await (socket.send_text(answer) if isinstance(answer, str) else socket.send_bytes(answer))
            if count == _SET_UP and self.warming is None:
                self.warming = asyncio.create_task(self.warm())


def routes() -> APIRouter:
    """The socket `/socket/play`, in the words of docs/playground.md."""
    router, room = APIRouter(), Room()

    @router.websocket("/socket/play")
    async def play(socket: WebSocket) -> None:
        await room.talk(socket)

    return router


def _threads(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, "playground", initializer=torch.set_num_threads, initargs=(1,))


def _read(text: str) -> Mapping[str, Any]:
    """The JSON object in a text. Raises `WeightspaceError`."""
    if len(text.encode("utf-8", "replace")) > LONGEST:
        raise WeightspaceError(f"a message has at most {LONGEST} bytes")
    try:
        message = files.parse(text)
    except ValueError as error:
        raise WeightspaceError(f"a message is a JSON object: {str(error)[:200]}") from error
    if not isinstance(message, dict):
        raise WeightspaceError(f"a message is a JSON object, not a {type(message).__name__}")
    return message


def _alone(session: Session, message: Mapping[str, Any]) -> bool:
    """Whether no other such message may run beside this one."""
    if message.get("do") == "step":
        return session.networks.state.algorithm in _METRICS
    return message.get("do") not in _FREE


def _refused(why: str) -> str:
    return json.dumps({"error": why})


async def _close(socket: WebSocket, cause: str, why: str) -> None:
    """Say why, and close; the page does not come back by itself."""
    await socket.send_text(json.dumps({"closing": cause, "error": why}))
    await socket.close(1013, why)
