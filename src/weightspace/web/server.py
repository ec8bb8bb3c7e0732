"""`serve`: the server of `weightspace serve`, from the command to the page in the browser."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from weightspace.net.errors import WeightspaceError
from weightspace.web.app import application
from weightspace.web.guard import Rules, allowed
from weightspace.web.served import Served

__all__ = ["PORT", "Address", "listen", "serve"]

PORT = 8421
_PATIENCE = 10.0  # seconds for a first request
_MESSAGE = 64 << 10  # bytes of a message over a socket
_WAITING = 64  # messages of one socket that are not yet read


class Patient(H11Protocol):
    """HTTP whose connections are closed where no whole request has come within a time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._late = self.loop.call_later(_PATIENCE, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._late.cancel()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        if self.cycle is None and self.transport.get_protocol() is self:
            self.transport.close()


@dataclass(frozen=True)
class Address:
    """Where a server listens: its open socket, and the address of its first page with the token."""

    listening: socket.socket
    host: str
    port: int
    rules: Rules

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in ("127.0.0.1", "::1", "localhost")

    @property
    def page(self) -> str:
        """The address to open. The token stands behind #, which a browser never sends."""
        host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/#token={self.rules.token}"


def listen(host: str = "127.0.0.1", port: int | None = None, names: tuple[str, ...] = ()) -> Address:
    """Open the port of a server: `port`, or where it is None 8421, or any other that is free.

    `names`: other names under which the server is reached. The token is that of WEIGHTSPACE_TOKEN, or a new one. Raises
    `WeightspaceError` where the port cannot be opened.
    """
    token = os.environ.get("WEIGHTSPACE_TOKEN") or secrets.token_urlsafe(24)
    Rules(token, frozenset())
    opened = None
    for wanted in (PORT, 0) if port is None else (port,):
        try:
            opened = _bound(host, wanted)
            break
        except OSError as error:
            reason = error.strerror or str(error)
    if opened is None:
        raise WeightspaceError(f"{host}:{port or PORT} cannot be opened ({reason}); choose another --port or --host")
    number = int(opened.getsockname()[1])
    own = (socket.gethostname(),) if host in ("0.0.0.0", "::") else ()
    return Address(opened, host, number, Rules(token, allowed(host, number, (*own, *names))))


def serve(served: Served, at: Address, ready: Callable[[], None] | None = None, browser: bool = True) -> None:
    """Answer requests until Ctrl-C; `ready` is called before the first one."""
    config = uvicorn.Config(
        application(served, at.rules), ws_max_size=_MESSAGE, ws_max_queue=_WAITING, log_level="error",
        access_log=False, server_header=False, lifespan="on", timeout_graceful_shutdown=2,
        timeout_keep_alive=20, limit_concurrency=512, http=Patient,
    )  # fmt: skip
    if ready is not None:
        ready()
    if browser and at.local and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or os.name == "nt"):
        webbrowser.open(at.page)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[at.listening])


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
        opened.listen(128)
    except BaseException:
        opened.close()
        raise
    return opened
