"""The pages in the folder of reports: listed, and opened once by a ticket, in an origin of their own."""

from __future__ import annotations

import html
import os
import re
import secrets
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, HTTPException, Response
from fastapi import Path as Part
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ConfigDict

from weightspace.pages.page import MARK
from weightspace.web.served import Id, Served, id_of

__all__ = ["Report", "Reports", "report_routes"]

_LARGEST = 64 << 20  # bytes of a page
_HEAD = 8192  # bytes in which its mark, its title and its headline stand
_LISTED, _LOOKED = 500, 20_000  # pages that are listed, files that are looked at
_MINUTE, _TICKETS = 60.0, 100
# the page has its own policy too, which allows only its own scripts; here it is taken out of the server's origin
_POLICY = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
Ticket = Annotated[str, Part(pattern="^[A-Za-z0-9_-]{43}$")]


class Nothing(BaseModel):
    """An empty body."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Report:
    """A page in the folder: its file, title and headline; `stamp`: device, inode, size and time of the file."""

    id: str
    name: str
    title: str
    headline: str
    written: float
    bytes: int
    stamp: tuple[int, int, int, int]

    def data(self) -> dict[str, Any]:
        """As the API shows it."""
        return {name: value for name, value in vars(self).items() if name != "stamp"}


class Reports:
    """The pages that weightspace wrote into a folder. Links, other files and pages that are too large are not shown."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._read: dict[str, tuple[tuple[int, int, int, int], tuple[str, str] | None]] = {}
        self._tickets: dict[str, tuple[float, Report]] = {}

    def rows(self) -> list[Report]:
        """All pages, the newest first."""
        found, seen = [], set()
        try:
            with os.scandir(self.folder) as items:
                for _, item in zip(range(_LOOKED), items, strict=False):
                    if item.name.endswith((".html", ".htm")) and not item.name.startswith("."):
                        seen.add(item.name)
                        if (report := self._look(item.name)) is not None:
                            found.append(report)
        except OSError:
            return []
        with self._lock:
            self._read = {name: known for name, known in self._read.items() if name in seen}
        return sorted(found, key=lambda one: -one.written)

    def _look(self, name: str) -> Report | None:
        """The page of a file name; None for what is no page."""
        try:
            with _opened(self.folder / name) as file:
                status = os.fstat(file.fileno())
                stamp = _stamp(status)
                with self._lock:
                    known = self._read.get(name)
                if known is None or known[0] != stamp:
                    known = stamp, _marked(file.read(_HEAD)) if status.st_size <= _LARGEST else None
                    with self._lock:
                        self._read[name] = known
        except OSError:
            return None
        if known[1] is None:
            return None
        return Report(id_of(name), name, *known[1], status.st_mtime, status.st_size, stamp)

    def ticket(self, id: str) -> str:
        """A word for which a page is given once, within a minute. Raises 404 for a page that is not there."""
        report = next((one for one in self.rows() if one.id == id), None)
        if report is None:
            raise HTTPException(404, "no report of this id; load the list again")
        word, now = secrets.token_urlsafe(32), time.monotonic()
        with self._lock:
            fresh = {key: held for key, held in self._tickets.items() if held[0] > now - _MINUTE}
            while len(fresh) >= _TICKETS:
                fresh.pop(next(iter(fresh)))
            self._tickets = {**fresh, word: (now, report)}
        return word

    def page(self, word: str) -> bytes:
        """The page of a ticket. Raises 404 for one that was used or is too old, 409 for a file that has changed."""
        with self._lock:
            made, report = self._tickets.pop(word, (0.0, None))
        if report is None or made < time.monotonic() - _MINUTE:
            raise HTTPException(404, "this address opened a report once; open it again from the list of reports")
        try:
            with _opened(self.folder / report.name) as file:
                if _stamp(os.fstat(file.fileno())) == report.stamp:
                    return file.read(_LARGEST + 1)[:_LARGEST]
        except OSError:
            pass
        raise HTTPException(409, "this report has changed or is gone; load the list again")


def _opened(path: Path) -> BinaryIO:
    """A file opened for reading: no link, folder or pipe. Raises `OSError`."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"{path} is no file")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _marked(head: bytes) -> tuple[str, str] | None:
    """Title and headline of a page that carries the mark of weightspace; None for others."""
    text = head.decode("utf-8", "replace")
    if MARK not in text.partition("<style")[0]:
        return None
    title = re.search(r"<title>([^<]*)</title>", text)
    headline = re.search(r'<meta name="description" content="([^"<>]*)">', text)
    return tuple(html.unescape(found[1])[:300] if found else "" for found in (title, headline))  # type: ignore[return-value]


def report_routes(served: Served) -> APIRouter:
    """The routes under /api/reports, and the address at which a page opens."""
    reports = Reports(served.reports)
    router = APIRouter()

    @router.get("/api/reports")
    def listed() -> dict[str, Any]:
        found = reports.rows()
        shown = [one.data() for one in found[:_LISTED]]
        return {"folder": served.reports.name or ".", "reports": shown, "more": max(0, len(found) - _LISTED)}

    @router.post("/api/reports/{id}/ticket")
    def ticket(id: Id, given: Nothing) -> dict[str, str]:
        return {"path": f"/reports/view/{reports.ticket(id)}"}

    @router.get("/reports/view/{ticket}")
    def view(ticket: Ticket) -> Response:
        try:
            page = reports.page(ticket)
        except HTTPException:  # loaded again, or a link that was kept
            return RedirectResponse("/reports", status_code=303)
        headers = {"content-security-policy": _POLICY, "cache-control": "no-store"}
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    return router
