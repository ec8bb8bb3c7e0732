"""Every rule of the guard, by a table of requests: who is let in, and what the others are told."""

import asyncio

import pytest
from served_atlas import in_a_loop
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from weightspace.net.errors import WeightspaceError
from weightspace.web import guard
from weightspace.web.guard import PROTOCOL, Guard, Rules, allowed

TOKEN = "0123456789abcdef-_XYZ"
HOST = "127.0.0.1:8421"
RULES = Rules(TOKEN, allowed("127.0.0.1", 8421), body=100, upload=1000)
GOOD = {"host": HOST, "authorization": f"Bearer {TOKEN}"}
JSON = {"content-type": "application/json"}


async def behind(scope, receive, send):
    """An application that answers 200, and accepts every socket."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept", "subprotocol": PROTOCOL})
        return await send({"type": "websocket.close"})
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(body)).encode()})


@pytest.fixture
def client():
    return TestClient(Guard(behind, RULES), base_url=f"http://{HOST}", headers={"user-agent": "test"})


REQUESTS = [
    ("GET", "/", {"host": HOST}, 200),
    ("GET", "/", {"host": "localhost:8421"}, 200),
    ("GET", "/", {"host": "LOCALHOST:8421"}, 200),
    ("GET", "/", {"host": "[::1]:8421"}, 200),
    ("GET", "/", {"host": "evil.example"}, 403),
    ("GET", "/", {"host": "evil.example:8421"}, 403),
    ("GET", "/", {"host": "127.0.0.1:8422"}, 403),
    ("GET", "/", {"host": "127.0.0.1"}, 403),
    ("GET", "/", {"host": "127.0.0.1:8421.evil.example"}, 403),
    ("GET", "/", {"host": ""}, 403),
    ("GET", "/", {"host": HOST, "origin": "http://evil.example"}, 403),
    ("GET", "/", {"host": HOST, "origin": "null"}, 403),
    ("GET", "/", {"host": HOST, "sec-fetch-site": "cross-site"}, 403),
    ("GET", "/", {"host": HOST, "sec-fetch-site": "same-site"}, 403),
    ("GET", "/", {"host": HOST, "sec-fetch-site": "same-origin"}, 200),
    ("GET", "/", {"host": HOST, "sec-fetch-site": "none"}, 200),
    ("GET", "/api/x", {"host": HOST}, 401),
    ("GET", "/api/x", {"host": HOST, "authorization": TOKEN}, 401),
    ("GET", "/api/x", {"host": HOST, "authorization": f"Basic {TOKEN}"}, 401),
    ("GET", "/api/x", {"host": HOST, "authorization": f"Bearer {TOKEN}x"}, 401),
    ("GET", f"/api/x?token={TOKEN}", {"host": HOST}, 401),
    ("GET", "/api/x", GOOD, 200),
    ("GET", "/api/x", {**GOOD, "host": "evil.example"}, 403),
    ("GET", "/api/x", {**GOOD, "origin": "http://127.0.0.1:9999"}, 403),
    ("POST", "/api/x", {**GOOD, **JSON}, 200),
    ("POST", "/api/x", {**GOOD, **JSON, "origin": f"http://{HOST}"}, 200),
    ("POST", "/api/x", {**GOOD, **JSON, "origin": "http://evil.example"}, 403),
    ("POST", "/api/x", {**GOOD, **JSON, "sec-fetch-site": "cross-site"}, 403),
    ("POST", "/api/x", {"host": HOST, **JSON}, 401),
    ("POST", "/", {"host": HOST, **JSON}, 401),
    ("POST", "/api/x", {**GOOD, "content-type": "text/plain"}, 415),
    ("POST", "/api/x", {**GOOD, "content-type": "application/x-www-form-urlencoded"}, 415),
    ("POST", "/api/x", {**GOOD, "content-type": "multipart/form-data; boundary=x"}, 415),
    ("POST", "/api/x", {**GOOD, **JSON, "content-length": "101"}, 413),
    ("POST", "/api/x", {**GOOD, **JSON, "content-length": "1e9"}, 411),
    ("POST", "/api/x", {**GOOD, **JSON, "content-length": "-1"}, 411),
    ("POST", "/api/x", {**GOOD, **JSON, "content-length": "9" * 400}, 411),
    ("POST", "/api/x", {**GOOD, **JSON, "transfer-encoding": "chunked"}, 411),
    ("PUT", "/api/x", {**GOOD, **JSON}, 405),
    ("OPTIONS", "/api/x", {**GOOD, "origin": f"http://{HOST}"}, 405),
    ("DELETE", "/api/x", GOOD, 200),
    ("DELETE", "/api/x", {"host": HOST}, 401),
]


@pytest.mark.parametrize(("method", "path", "headers", "status"), REQUESTS)
def test_a_request_is_let_in_or_told_why_not(client, method, path, headers, status):
    answer = client.request(method, path, headers=headers, content=b"{}" if method == "POST" else None)
    assert answer.status_code == status
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers
    if status != 200:
        said = answer.json()["error"] if path.startswith("/api/") else answer.text
        assert said and TOKEN not in said and ("{" in answer.text) == path.startswith("/api/")


def raw(headers, path="/api/x", method="GET"):
    """The status that the guard gives for headers that a client library would not send."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    in_a_loop(Guard(behind, RULES)(scope, receive, send))
    return sent[0]["status"]


def test_two_hosts_two_origins_or_two_tokens_are_refused():
    host, token = (b"host", HOST.encode()), (b"authorization", f"Bearer {TOKEN}".encode())
    assert raw([host, token]) == 200
    assert raw([token]) == 403
    assert raw([host, host, token]) == 403
    assert raw([host, (b"host", b"evil.example"), token]) == 403
    assert raw([host, token, token]) == 401
    assert raw([host, token, (b"origin", b"http://" + HOST.encode()), (b"origin", b"http://evil.example")]) == 403
    assert raw([host, token, (b"content-type", b"application/json"), (b"content-length", b"2"),
                (b"content-length", b"3")], method="POST") == 411  # fmt: skip


SOCKETS = [
    ({"origin": f"http://{HOST}"}, [PROTOCOL, f"token.{TOKEN}"], True),
    ({}, [PROTOCOL, f"token.{TOKEN}"], False),
    ({"origin": "http://evil.example"}, [PROTOCOL, f"token.{TOKEN}"], False),
    ({"origin": "null"}, [PROTOCOL, f"token.{TOKEN}"], False),
    ({"origin": f"http://{HOST}", "host": "evil.example"}, [PROTOCOL, f"token.{TOKEN}"], False),
    ({"origin": f"http://{HOST}", "sec-fetch-site": "cross-site"}, [PROTOCOL, f"token.{TOKEN}"], False),
    ({"origin": f"http://{HOST}"}, [PROTOCOL], False),
    ({"origin": f"http://{HOST}"}, [f"token.{TOKEN}"], False),
    ({"origin": f"http://{HOST}"}, [PROTOCOL, "token.wrong"], False),
    ({"origin": f"http://{HOST}"}, [PROTOCOL, f"token.{TOKEN}", "token.other"], False),
    ({"origin": f"http://{HOST}", "authorization": f"Bearer {TOKEN}"}, [PROTOCOL], False),
]


@pytest.mark.parametrize(("headers", "protocols", "welcome"), SOCKETS)
def test_a_socket_needs_an_origin_of_ours_and_the_token(client, headers, protocols, welcome):
    def connect():
        with client.websocket_connect("/socket/x", headers={"host": HOST, **headers}, subprotocols=protocols) as socket:
            return socket.accepted_subprotocol

    if welcome:
        assert connect() == PROTOCOL
    else:
        with pytest.raises(WebSocketDisconnect):
            connect()


def test_a_long_body_is_held_to_the_length_that_it_states(client):
    answer = client.post("/api/x", headers={**GOOD, **JSON}, content=b"x" * 100)
    assert (answer.status_code, answer.text) == (200, "100")
    assert client.post("/api/x", headers={**GOOD, **JSON}, content=b"x" * 101).status_code == 413
    upload = {**GOOD, "content-type": "application/octet-stream"}
    assert client.post("/api/uploads", headers=upload, content=b"x" * 1000).status_code == 200
    assert client.post("/api/uploads", headers=upload, content=b"x" * 1001).status_code == 413


@pytest.mark.parametrize("token", ["", "short", "with space in it 1234", "0123456789abcde<", "é" * 20])
def test_a_weak_or_odd_token_is_refused(token):
    with pytest.raises(WeightspaceError, match="token"):
        Rules(token, frozenset())


def test_a_host_on_another_address_is_known_by_it_and_by_given_names_alone():
    assert "box.example:80" in allowed("10.0.0.5", 80, ("box.example",))
    assert "box.example" in allowed("10.0.0.5", 80, ("box.example",))
    found = allowed("0.0.0.0", 9000, ("Box",))
    assert "box:9000" in found and "0.0.0.0:9000" not in found and "box" not in found
    assert "[fe80::1]:9000" in allowed("fe80::1", 9000)


def test_a_body_that_stops_coming_is_given_up(monkeypatch):
    monkeypatch.setattr(guard, "_PATIENCE", 0.05)
    seen, parts = [], [{"type": "http.request", "body": b"{", "more_body": True}]

    async def application(scope, receive, send):
        seen.extend([await receive(), await receive()])

    async def receive():
        return parts.pop() if parts else await asyncio.sleep(60)

    headers = [(name.encode(), value.encode()) for name, value in {**GOOD, **JSON, "content-length": "9"}.items()]
    scope = {"type": "http", "method": "POST", "path": "/api/x", "headers": headers}
    in_a_loop(Guard(application, RULES)(scope, receive, behind))
    assert [message["type"] for message in seen] == ["http.request", "http.disconnect"]
