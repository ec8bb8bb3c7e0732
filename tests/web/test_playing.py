"""The socket of the playground: conversations, limits, turns, and that nothing is left of a page that went."""

import asyncio
import gc
import json
import time
import urllib.request
import weakref

import pytest
import websockets
from fastapi import FastAPI
from served_atlas import in_a_loop
from starlette.testclient import TestClient
from websockets.asyncio.client import connect

from weightspace.web import playing
from weightspace.web.guard import PROTOCOL
from weightspace.web.playground.session import Session
from weightspace.web.playing import LONGEST, Room, routes

SMALL = {"depth": 1, "width": 2, "points": 20}


@pytest.fixture(autouse=True)
def cold(monkeypatch):
    """Without the first messages of a process, which load parts of torch."""
    monkeypatch.setattr(playing, "FIRST", ())


def page(tmp_path, monkeypatch=None, **how):
    """A client of an application that has the socket alone."""
    if monkeypatch is not None:
        monkeypatch.setattr(playing, "Room", lambda: Room(**how))
    app = FastAPI()
    app.include_router(routes())
    return TestClient(app)


def header(data):
    size = int.from_bytes(data[:4], "little")
    return json.loads(data[4 : 4 + size])


def test_a_conversation(tmp_path):
    with page(tmp_path).websocket_connect("/socket/play", subprotocols=[PROTOCOL]) as socket:
        assert socket.accepted_subprotocol == PROTOCOL
        socket.send_json({"do": "state"})
        assert header(socket.receive_bytes())["state"]["data"] == "circle"
        socket.send_json({"do": "set", **SMALL})
        assert header(socket.receive_bytes())["sections"][0]["shape"] == [1, 3, 40, 40]
        for step in (3, 6):
            socket.send_json({"do": "step", "steps": 3})
            assert header(socket.receive_bytes())["step"] == step


BAD = [
    ("", "JSON"),
    ("{", "JSON"),
    ("[]", "not a list"),
    ("3", "not a int"),
    ('"step"', "not a str"),
    ("null", "JSON object"),
    ('{"do": "step", "do": "reset"}', "twice"),
    ('{"do": ' + "[" * 10_000 + "]" * 10_000 + "}", "nested"),
    ('{"do": "step", "steps": NaN}', "steps"),
    ('{"do": "step", "steps": 1e999}', "steps"),
    ('{"do": "step", "steps": ' + "9" * 4000 + "}", "steps"),
    ('{"do": "step", "steps": ' + "9" * 5000 + "}", "JSON"),
    ('{"do": "fly"}', "fly"),
    ('{"do": ["step"]}', "do"),
    ('{"do": {"step": 1}}', "do"),
    ('{"steps": 3}', "do"),
    ('{"do": "show", "maps": "\\ud800"}', "maps"),
    ('{"do": "show", "where": 1}', "where"),
    (json.dumps({"do": "x" * LONGEST}), str(LONGEST)),
]


def test_a_bad_message_is_answered_with_one_sentence_and_the_socket_stays_open(tmp_path):
    with page(tmp_path).websocket_connect("/socket/play", subprotocols=[PROTOCOL]) as socket:
        for text, said in BAD:
            socket.send_text(text)
            answer = json.loads(socket.receive_text())
            assert set(answer) == {"error"} and said in answer["error"], (text[:80], answer)
            assert "\n" not in answer["error"] and len(answer["error"]) < 500
        socket.send_bytes(b"{}")
        assert "bytes" in socket.receive_json()["error"]
        socket.send_json({"do": "show", "maps": "none"})
        assert header(socket.receive_bytes())["step"] == 0


def test_an_unexpected_error_is_told_without_its_words(tmp_path, monkeypatch):
    def broken(session, message):
        raise KeyError("/private/place")

    with page(tmp_path).websocket_connect("/socket/play", subprotocols=[PROTOCOL]) as socket:
        socket.send_json({"do": "state"})
        socket.receive_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(Session, "answer", broken)
            socket.send_json({"do": "show"})
            assert socket.receive_json() == {"error": "unexpected KeyError; please report it"}
        socket.send_json({"do": "show"})
        assert header(socket.receive_bytes())["reply"] == "show"


def test_one_page_too_many_is_told_and_its_place_comes_free(tmp_path, monkeypatch):
    client = page(tmp_path, monkeypatch, sockets=1)
    with client.websocket_connect("/socket/play", subprotocols=[PROTOCOL]) as first:
        first.send_json({"do": "state"})
        first.receive_bytes()
        with client.websocket_connect("/socket/play", subprotocols=[PROTOCOL]) as second:
            said = second.receive_json()
            assert said["closing"] == "full" and "close one" in said["error"]
            assert second.receive()["code"] == 1013
        first.send_json({"do": "show"})
        assert header(first.receive_bytes())["reply"] == "show"
    with client.websocket_connect("/socket/play", subprotocols=[PROTOCOL]) as third:
        third.send_json({"do": "state"})
        assert header(third.receive_bytes())["reply"] == "state"


def test_a_page_that_says_nothing_for_long_is_closed_with_a_sentence(tmp_path, monkeypatch):
    with page(tmp_path, monkeypatch, idle=0.05).websocket_connect("/socket/play", subprotocols=[PROTOCOL]) as socket:
        assert socket.receive_json()["closing"] == "idle"
        assert socket.receive()["type"] == "websocket.close"


def test_nothing_is_kept_of_a_page_that_went(tmp_path, monkeypatch):
    seen = []

    class Watched(Session):
        def __init__(self):
            super().__init__()
            seen.append(weakref.ref(self))

    monkeypatch.setattr(playing, "Session", Watched)
    client = page(tmp_path)
    for _ in range(3):
        with client.websocket_connect("/socket/play", subprotocols=[PROTOCOL]) as socket:
            socket.send_json({"do": "step", "steps": 2, "maps": "none"})
            socket.receive_bytes()
    for _ in range(50):
        gc.collect()
        if all(one() is None for one in seen):
            break
        time.sleep(0.05)
    assert len(seen) == 3 and [one() for one in seen] == [None] * 3


async def told(room, session, messages, log=None, name=0):
    answers = []
    for message in messages:
        answers.append(await room.answer(session, json.dumps(message)))
        if log is not None:
            log.append(name)
    return answers


def lead(log, n):
    """By how many answers the first of n sessions was ahead of the last at most, while all still asked."""
    counts, most, each = [0] * n, 0, len(log) // n
    for name in log:
        counts[name] += 1
        if max(counts) < each:
            most = max(most, max(counts) - min(counts))
    return most


def test_sessions_take_turns_also_beside_a_slow_one():
    async def run():
        room, log = Room(workers=2), []
        sessions = [await room.begin() for _ in range(5)]
        setup = [{"do": "set", **SMALL}] * 4 + [{"do": "set", "depth": 8, "width": 16}]
        for session, message in zip(sessions, setup, strict=True):
            await told(room, session, [message])
        steps = [[{"do": "step", "steps": 2, "maps": "none"}] * 20] * 4 + [[{"do": "step", "steps": 10}] * 20]
        await asyncio.gather(*(told(room, s, m, log, k) for k, (s, m) in enumerate(zip(sessions, steps, strict=True))))
        return [name for name in log if name < 4]

    assert lead(in_a_loop(run()), 4) <= 3


def test_the_measure_of_turns_sees_one_session_that_goes_before_the_others():
    assert lead([0] * 10 + [1] * 10, 2) >= 9 and lead([0, 1] * 10, 2) == 1


def test_sessions_side_by_side_answer_as_they_do_alone():
    """Drawing a network and reading its graph work on what all threads share: one at a time, each is as if alone."""

    def script(k):
        yield {"do": "set", **SMALL, "width": 2 + k, "seed": k, "other": k + 9, "algorithm": ["adam", "natural"][k % 2]}
        for _ in range(2):
            yield from ({"do": "step", "steps": 2}, {"do": "shuffle"}, {"do": "step", "steps": 3}, {"do": "undo"})
            yield from ({"do": "reset"}, {"do": "step", "steps": 1, "weights": True})

    async def alone(room):
        return [await told(room, await room.begin(), script(k)) for k in range(3)]

    async def together(room):
        sessions = [await room.begin() for _ in range(3)]
        return list(await asyncio.gather(*(told(room, s, script(k)) for k, s in enumerate(sessions))))

    first, second = in_a_loop(alone(Room(workers=4))), in_a_loop(together(Room(workers=4)))
    assert not [answer for answers in first for answer in answers if isinstance(answer, str)]
    assert first == second


def test_what_a_step_needs_decides_whether_it_runs_alone():
    session = Session()
    assert not playing._alone(session, {"do": "step"}) and playing._alone(session, {"do": "noise"})
    assert playing._alone(session, {"do": ["?"]}) and playing._alone(session, {})
    session.answer({"do": "set", "algorithm": "natural", "maps": "none"})
    assert playing._alone(session, {"do": "step"})


def dial(server, **how):
    protocols = [PROTOCOL, "token." + how.get("token", server.token)]
    return connect(
        server.base.replace("http", "ws") + "/socket/play",
        origin=how.get("origin", server.base),
        subprotocols=protocols,
    )


async def train(server, seconds, counts, k, start):
    """Train from the moment that every page is set up, and count the frames."""
    async with dial(server) as socket:
        await socket.send(json.dumps({"do": "set", "depth": 2, "width": 4, "maps": "none"}))
        await socket.recv()
        await start.wait()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await socket.send(json.dumps({"do": "step", "steps": 5, "maps": "output"}))
            answer = await socket.recv()
            assert isinstance(answer, bytes)
            counts[k] += 1


class Barrier:
    """Where so many wait for each other."""

    def __init__(self, n):
        self.n, self.all = n, asyncio.Event()

    async def wait(self):
        self.n -= 1
        if self.n == 0:
            self.all.set()
        await self.all.wait()


async def healthy(server, seconds):
    """The longest time that /health took meanwhile."""
    end, longest = time.monotonic() + seconds, 0.0

    def ask():
        with urllib.request.urlopen(server.base + "/health", timeout=20) as answer:
            return answer.status

    while time.monotonic() < end:
        begun = time.monotonic()
        assert await asyncio.to_thread(ask) == 200
        longest = max(longest, time.monotonic() - begun)
        await asyncio.sleep(0.1)
    return longest


async def crowd(server, n, seconds):
    counts, start = [0] * n, Barrier(n)
    pages = (train(server, seconds, counts, k, start) for k in range(n))
    *_, longest = await asyncio.gather(*pages, healthy(server, seconds))
    return counts, longest


def test_the_server_answers_others_while_pages_train(server):
    in_a_loop(crowd(server, 1, 0.1))  # what the first page of a process loads
    counts, longest = in_a_loop(crowd(server, 4, 2.0))
    assert min(counts) >= 1 and longest < 1.0


@pytest.mark.parametrize("how", [{"token": "wrong-token-of-tests"}, {"origin": "http://evil.example"}])
def test_strangers_get_no_session(server, how):
    async def run():
        async with dial(server, **how) as socket:
            await socket.recv()

    with pytest.raises((websockets.exceptions.InvalidStatus, websockets.exceptions.ConnectionClosed)):
        in_a_loop(run())


@pytest.mark.slow
def test_fifty_pages_that_train_at_once_get_equal_shares(server):
    in_a_loop(crowd(server, 1, 0.1))
    counts, longest = in_a_loop(crowd(server, 50, 30.0))
    print(f"50 pages: {min(counts)} to {max(counts)} frames, /health within {longest:.2f} s")
    assert min(counts) >= 0.6 * max(counts) and longest < 1.0
