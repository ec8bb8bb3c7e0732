"""The server as a process: its address, its port, the files it gives, and what it says when it cannot start."""

import json
import socket
import threading
import urllib.error
import urllib.request

import pytest
import uvicorn

from weightspace.cli import main
from weightspace.net.errors import WeightspaceError
from weightspace.web import server as server_file
from weightspace.web.app import application
from weightspace.web.guard import POLICY
from weightspace.web.served import Served
from weightspace.web.server import Patient, listen


def asked(url, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def test_one_address_with_a_token_is_printed_and_answers(server):
    assert server.page == f"http://127.0.0.1:{server.port}/#token={server.token}"
    assert sum("http" in line for line in server.said) == 1
    status, body, headers = asked(server.base + "/")
    assert status == 200 and b"<title>weightspace</title>" in body
    assert headers["content-security-policy"] == POLICY and "server" not in headers
    assert server.token.encode() not in body


def test_the_api_wants_the_token_and_the_framework_shows_no_pages_of_its_own(server):
    assert asked(server.base + "/api/server")[0] == 401
    status, body, headers = asked(server.base + "/api/server", Authorization=f"Bearer {server.token}")
    assert status == 200 and json.loads(body)["atlas"] is None and headers["cache-control"] == "no-store"
    for path in ("/docs", "/redoc", "/openapi.json", "/static/../app.py", "/static/%2e%2e/app.py", "/nothing"):
        assert asked(server.base + path)[0] == 404, path


def test_only_the_loopback_address_is_open(server):
    other = socket.gethostbyname(socket.gethostname())
    if other.startswith("127."):
        other = "127.0.0.2"
    with pytest.raises(OSError), socket.create_connection((other, int(server.port)), timeout=2):
        pass


def test_a_port_that_is_taken_is_told_and_without_one_another_is_found(server):
    with pytest.raises(WeightspaceError, match="choose another --port"):
        listen(port=int(server.port))
    first, second = listen(), listen()
    try:
        assert first.port != second.port and first.rules.token != second.rules.token
    finally:
        first.listening.close()
        second.listening.close()


def test_a_fixed_token_is_taken_from_the_environment(monkeypatch):
    monkeypatch.setenv("WEIGHTSPACE_TOKEN", "abcdefghij0123456789")
    at = listen(port=0)
    at.listening.close()
    assert at.page.endswith("/#token=abcdefghij0123456789")
    monkeypatch.setenv("WEIGHTSPACE_TOKEN", "weak")
    with pytest.raises(WeightspaceError, match="token"):
        listen(port=0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such-atlas"], "no such atlas"),
        (["--reports", "nowhere"], "no such folder"),
        (["."], "no atlas"),
        (["broken"], "broken"),
        (["--data", "nosuch"], "no data set of that name"),
        (["--host", "256.1.1.1", "--port", "0"], "cannot be opened"),
        (["--port", "99999"], "65535"),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "atlas.db").write_bytes(b"not a database" * 100)
    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_connection_that_never_asks_is_closed(monkeypatch, tmp_path):
    monkeypatch.setattr(server_file, "_PATIENCE", 0.3)
    at = listen(port=0)
    done = uvicorn.Server(uvicorn.Config(application(Served(tmp_path), at.rules), http=Patient, log_level="error"))
    thread = threading.Thread(target=lambda: done.run(sockets=[at.listening]), daemon=True)
    thread.start()
    try:
        with socket.create_connection(("127.0.0.1", at.port), timeout=20) as slow:
            slow.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n")
            assert slow.recv(10) == b""
        assert asked(f"http://127.0.0.1:{at.port}/health")[0] == 200
    finally:
        done.should_exit = True
        thread.join(10)
