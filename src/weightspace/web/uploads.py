"""Files that a browser sends: kept for an hour under an id of their own, and read in a process of their own."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool

from weightspace.net.errors import WeightspaceError
from weightspace.web.members import Members
from weightspace.web.served import Id
from weightspace.web.spawn import LOOK, Outcome, Process

__all__ = ["Upload", "Uploads", "upload_routes"]

HOUR = 3600.0
_PREFIX = "weightspace-uploads-"
_HEAD = 16  # bytes that tell the kind of a file
_MANY, _TOGETHER = 16, 1 << 29  # files, and bytes of all
_SECONDS = 120.0  # for which a file is read


@dataclass(frozen=True)
class Upload:
    """A file that was sent: its name is shown, and used for nothing else; `facts`: what it holds."""

    id: str
    name: str
    kind: str
    path: Path
    bytes: int
    expires: float
    facts: dict[str, Any]


class Uploads:
    """The files that were sent, in a folder that only this user can read and that goes with the server.

    `memory`: bytes that reading one may take.
    """

    def __init__(self, memory: int = 2 << 30) -> None:
        self.memory = memory
        self.folder: Path | None = None  # from the first file on
        self._lock, self._one = threading.Lock(), threading.Lock()
        self._kept: dict[str, Upload] = {}
        self._coming: dict[str, int] = {}  # id -> bytes of what is under way

    def close(self) -> None:
        """Throw all away."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _made(self) -> Path:
        with self._lock:
            if self.folder is None:
                _sweep(Path(tempfile.gettempdir()))
                self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
            return self.folder

    def rows(self) -> list[Upload]:
        """What is kept; what is older than an hour is thrown away."""
        with self._lock:
            old = [one for one in self._kept.values() if one.expires < time.time()]
            for one in old:
                self._drop(one)
            return [*self._kept.values()]

    def find(self, id: str, kind: str) -> tuple[str, str]:
        """The path and the name of an upload. Raises 404, or 422 where it is of another kind."""
        found = next((one for one in self.rows() if one.id == id), None)
        if found is None:
            raise HTTPException(404, "no upload of this id; send the file again, it is kept for an hour")
        if found.kind != kind:
            words = {"data": "examples (.npz)", "network": "a network (.safetensors)"}
            raise HTTPException(422, f"this upload holds {words[found.kind]}; {words[kind]} is wanted")
        return str(found.path), found.name

    def remove(self, id: str) -> Upload:
        """Throw one away. Raises `KeyError`."""
        with self._lock:
            found = self._kept[id]
            self._drop(found)
            return found

    def _drop(self, one: Upload) -> None:
        one.path.unlink(missing_ok=True)
        self._kept.pop(one.id, None)

    async def receive(self, parts: AsyncIterator[bytes], name: str, length: int) -> Upload:
        """Keep the file that comes in these parts. Raises 422 for one that cannot be used, 429 for one too many."""
        kept = self.rows()
        with self._lock:
            sizes = [*(one.bytes for one in kept), *self._coming.values()]
            if len(sizes) >= _MANY or sum(sizes) + length > _TOGETHER:
                raise HTTPException(429, "too many files are kept; throw one away, or wait until it is an hour old")
            id = secrets.token_hex(16)
            self._coming[id] = length
        try:
            head = b""
            async for part in parts:
                head += part
                if len(head) >= _HEAD:
                    break
            kind, ending = _kind(head[:_HEAD])
            path = self._made() / f"{id}{ending}"
            try:
                with path.open("xb") as file:
                    file.write(head)
                    async for part in parts:
                        file.write(part)
                return await run_in_threadpool(self._checked, id, path, kind, name)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        finally:
            with self._lock:
                del self._coming[id]

    def _checked(self, id: str, path: Path, kind: str, name: str) -> Upload:
        order = {"kind": kind, "arguments": {"path": str(path), "shown": "the file"}, "atlas": None, "objects": None,
                 "arch": None, "out": None, "memory": self.memory, "longest": 1 << 16}  # fmt: skip
        try:
            with self._one:  # one is read at a time
                outcome = Process(order, LOOK).run(lambda what, done, total: None, _SECONDS)
        except OSError as error:
            outcome = Outcome(error=f"no process can be started ({error.strerror})")
        if outcome.result is None:
            raise HTTPException(422, outcome.error or "the file cannot be read")
        size = path.stat().st_size
        found = Upload(id, name, kind, path, size, time.time() + HOUR, outcome.result)
        with self._lock:
            self._kept[id] = found
        return found


def _sweep(folder: Path) -> None:
    """Throw away what servers of this user that were killed have left."""
    for old in folder.glob(f"{_PREFIX}*"):
        number = old.name.removeprefix(_PREFIX).partition("-")[0]
        with suppress(OSError):
            if number.isdecimal() and old.is_dir() and not old.is_symlink() and not _runs(int(number)):
                shutil.rmtree(old, ignore_errors=True)


def _runs(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _kind(head: bytes) -> tuple[str, str]:
    """Whether a file holds data or a network, and the ending of its name. Raises 422 for other files."""
    if head[:4] == b"PK\3\4":
        return "data", ".npz"
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 27:
        return "network", ".safetensors"
    raise HTTPException(422, "it is neither an .npz file of arrays nor a .safetensors file; nothing else is read")


def upload_routes(uploads: Uploads, members: Members) -> APIRouter:
    """The routes under /api/uploads."""
    router = APIRouter(prefix="/api/uploads")

    def told(one: Upload) -> dict[str, Any]:
        facts = {**one.facts, "networks": None}
        if (wanted := facts.pop("fingerprint")) is not None:
            try:
                facts["networks"] = len(members.atlas.members(fingerprint=wanted))
            except (WeightspaceError, HTTPException):
                facts["networks"] = 0
        return {"id": one.id, "name": one.name, "kind": one.kind, "bytes": one.bytes, "expires": one.expires, **facts}

    @router.get("")
    def listed() -> dict[str, Any]:
        return {"uploads": [told(one) for one in uploads.rows()]}

    @router.post("", status_code=201)
    async def sent(
        request: Request, name: Annotated[str, Query(min_length=1, max_length=200)] = "a file"
    ) -> dict[str, Any]:
        length = int(request.headers.get("content-length", "0"))
        found = await uploads.receive(request.stream(), name, length)
        return await run_in_threadpool(told, found)

    @router.delete("/{id}")
    def removed(id: Id) -> dict[str, Any]:
        try:
            return told(uploads.remove(id))
        except KeyError as error:
            raise HTTPException(404, "no upload of this id; load the list again") from error

    return router
