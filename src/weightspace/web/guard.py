"""Who may ask the server and for what: hosts, origins, the token and sizes, checked before anything else runs.

Any page that a browser shows may send requests to a server on this machine. So every request must name this server in
its Host header (a foreign name that was made to resolve here does not), must not come from another site, and must
carry the token wherever it reads or changes anything.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from weightspace.net.errors import WeightspaceError

__all__ = ["Guard", "POLICY", "PROTOCOL", "Rules", "allowed"]


Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

PROTOCOL = "weightspace"  # the protocol that a socket speaks; the token comes beside it, as token.<token>
_SHORTEST = 16  # characters of a token
_PATIENCE = 30.0  # seconds until the next part of a body
_SAFE = ("GET", "HEAD")
_READ = ("GET", "HEAD", "POST", "DELETE")
_BODIES = ("application/json", "application/octet-stream")


POLICY = (  # scripts are files of this server, and nothing comes from elsewhere
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; frame-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), usb=()",
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class Rules:
    """The token, the Host headers that name this server, and the largest body in bytes of an API call and an upload."""

    token: str
    hosts: frozenset[str]
    body: int = 64 << 10
    upload: int = 64 << 20

    def __post_init__(self) -> None:
        if not re.fullmatch(rf"[A-Za-z0-9_-]{{{_SHORTEST},200}}", self.token):
            raise WeightspaceError(f"a token has {_SHORTEST} to 200 letters, digits, - or _; give another one")

    @property
    def origins(self) -> frozenset[str]:
        """The origins of this server's own pages."""
        return frozenset(f"{scheme}://{host}" for host in self.hosts for scheme in ("http", "https"))

    def knows(self, token: str) -> bool:
        """Whether this is the token; the time does not depend on how much of it is right."""
        return hmac.compare_digest(token.encode(), self.token.encode())


def allowed(host: str, port: int, names: tuple[str, ...] = ()) -> frozenset[str]:
    """Host headers of a server at this address: of this machine, of the address, and of the names given."""
    given = [f"[{host}]" if ":" in host else host] if host not in ("0.0.0.0", "::") else []
    every = ["127.0.0.1", "localhost", "[::1]", *given, *names]
    bare = every if port == 80 else []
    return frozenset([f"{name.lower()}:{port}" for name in every] + [name.lower() for name in bare])


class Guard:
    """An ASGI application around another one; refuses a request by status and one sentence of JSON."""

    def __init__(self, app: App, rules: Rules) -> None:
        self.app = app
        self.rules, self.origins = rules, rules.origins

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request or socket."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        refused = self._refused(scope)
        if scope["type"] == "websocket":
            if refused is not None:
                await receive()
                return await send({"type": "websocket.close", "code": 4400 + refused[0] % 100, "reason": refused[1]})
            return await self.app(scope, receive, send)
        if refused is not None:
            return await _answer(send, *refused, plain=not scope["path"].startswith("/api/"))
        await self.app(scope, _timely(receive), _with_headers(send, scope["path"]))

    def _refused(self, scope: Message) -> tuple[int, str] | None:
        headers = _headers(scope)
        socket = scope["type"] == "websocket"
        hosts = headers.get("host", [])
        if len(hosts) != 1 or hosts[0].lower() not in self.rules.hosts:
            return 403, "this server has another name; open the address that weightspace serve printed"
        origins = headers.get("origin", [])
        if any(origin.lower() not in self.origins for origin in origins) or (socket and len(origins) != 1):
            return 403, "a page of another site may not ask this server"
        if any(site.lower() in ("cross-site", "same-site") for site in headers.get("sec-fetch-site", [])):
            return 403, "a page of another site may not ask this server; type or paste the address"
        if socket:
            return None if self.rules.knows(_socket_token(scope)) else (401, "the token is missing or wrong")
        return self._refused_request(scope, headers)

    def _refused_request(self, scope: Message, headers: dict[str, list[str]]) -> tuple[int, str] | None:
        if scope["method"] not in _READ:
            return 405, "this server answers GET, HEAD, POST and DELETE"
        if scope["method"] in _SAFE and not scope["path"].startswith("/api/"):
            return None
        given = headers.get("authorization", [""])
        scheme, _, token = given[0].partition(" ")
        if len(given) != 1 or scheme.lower() != "bearer" or not self.rules.knows(token.strip()):
            return 401, "the token is missing or wrong; open the address that weightspace serve printed"
        kind = headers.get("content-type", [""])[0].partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind not in _BODIES:
            return 415, f"send {' or '.join(_BODIES)}"
        return self._too_long(scope, headers)

    def _too_long(self, scope: Message, headers: dict[str, list[str]]) -> tuple[int, str] | None:
        """Bodies say their length, to which the server that reads them holds them."""
        limit = self.rules.upload if scope["path"].startswith("/api/uploads") else self.rules.body
        said = headers.get("content-length", [] if scope["method"] == "POST" else ["0"])
        if "transfer-encoding" in headers or len(said) != 1 or not said[0].isdecimal() or len(said[0]) > 15:
            return 411, "a request says the length of its body"
        return (413, f"longer than {limit} bytes; send less") if int(said[0]) > limit else None


def _headers(scope: Message) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return found


def _socket_token(scope: Message) -> str:
    given = [text[6:] for text in scope.get("subprotocols", []) if text.startswith("token.")]
    return given[0] if len(given) == 1 and PROTOCOL in scope["subprotocols"] else ""


def _timely(receive: Receive) -> Receive:
    """A body that stops coming counts as a browser that went away."""
    more = True

    async def received() -> Message:
        nonlocal more
        if not more:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), _PATIENCE)
        except TimeoutError:
            message = {"type": "http.disconnect"}
        more = bool(message.get("more_body"))
        return message

    return received


def _with_headers(send: Send, path: str) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message.get("headers", [])}
            extra = _HEADERS | ({"cache-control": "no-store"} if path.startswith("/api/") else {})
            added = [(k.encode(), v.encode()) for k, v in extra.items() if k.encode() not in there]
            message["headers"] = [*message.get("headers", []), *added]
        await send(message)

    return sent


async def _answer(send: Send, status: int, why: str, plain: bool = False) -> None:
    body = f"{why[0].upper()}{why[1:]}.\n".encode() if plain else json.dumps({"error": why}).encode()
    kind = "text/plain; charset=utf-8" if plain else "application/json"
    headers = {**_HEADERS, "content-type": kind, "content-length": str(len(body))}
    await send({"type": "http.response.start", "status": status,
                "headers": [(k.encode(), v.encode()) for k, v in headers.items()]})  # fmt: skip
    await send({"type": "http.response.body", "body": body})
