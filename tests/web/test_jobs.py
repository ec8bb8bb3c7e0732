"""Jobs over HTTP: arguments are checked, ids are resolved, the socket tells changes; and what each kind of job does."""

import json
import os
import shutil
import sys
import time
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from served_atlas import MARKUP, filled, serving
from starlette.websockets import WebSocketDisconnect

import weightspace as ws
from weightspace.net.errors import WeightspaceError
from weightspace.web import jobs
from weightspace.web.child import Work
from weightspace.web.queue import Queue
from weightspace.web.served import id_of
from weightspace.web.work import DONE

SOCKET = {"origin": "http://127.0.0.1:1", "host": "127.0.0.1:1"}
FINGERPRINT = "0" * 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("atlas"))


@pytest.fixture
def asked(folder, tmp_path, monkeypatch):
    """A server whose jobs do nothing but tell what they were asked."""
    script = (
        "import sys, json, time; order = json.loads(sys.stdin.readline());"
        "print(json.dumps({'what': 'asking', 'done': 1, 'total': 2}), flush=True);"
        "time.sleep(600 if order['arguments'].get('tag') == 'hang' else 0); print(json.dumps({'result': order}))"
    )
    monkeypatch.setattr(jobs, "Queue", partial(Queue, command=(sys.executable, "-S", "-c", script)))
    with serving(tmp_path / "reports", folder, data=("digits",)) as client:
        yield client


@contextmanager
def connected(client):
    """The socket of jobs; the client that is used here may end it by a cancelled future."""
    protocols = ["weightspace", "token.a-token-of-the-tests-0123"]
    session = client.client.websocket_connect("/socket/jobs", subprotocols=protocols, headers={**SOCKET})
    socket = session.__enter__()
    try:
        yield socket
    finally:
        with suppress(CancelledError):
            session.__exit__(None, None, None)


def ended(client, job, pause=0.01):
    for _ in range(3000):
        told = client.get(f"/api/jobs/{job['id']}")[1]
        if told["state"] not in ("waiting", "running"):
            return told
        time.sleep(pause)
    raise AssertionError("it did not end")


def test_ids_become_names_and_nothing_else_reaches_the_process(asked, folder, tmp_path):
    a, b = id_of("seed 0"), id_of(MARKUP)
    status, job = asked.post("/api/jobs", {"kind": "compare", "arguments": {"a": a, "b": b, "data": "digits"}})
    assert status == 201 and job["title"] == f"Compare seed 0 with {MARKUP}" and job["arguments"]["a"] == a
    order = ended(asked, job)["result"]
    assert order["arguments"] == {
        "a": "seed 0", "b": MARKUP, "data": "digits", "upload": None, "shown": "digits"}  # fmt: skip
    out = Path(order["out"])
    assert out.parent == tmp_path / "reports" and out.name.startswith("compare-") and out.suffix == ".html"
    assert order["atlas"] == str(folder) and order["memory"] == 8 << 30
    assert ended(asked, job)["report"] == id_of(out.name)


def test_merged_networks_go_into_the_folder_of_the_atlas_whatever_their_name(asked, folder):
    given = {"networks": [id_of("seed 0"), id_of("tuned 0")], "data": "digits", "name": "../../../etc/passwd"}
    order = ended(asked, asked.post("/api/jobs", {"kind": "merge", "arguments": given})[1])["result"]
    out = Path(order["out"])
    assert out.parent == folder / "merged" and out.name.startswith("merge-") and out.suffix == ".safetensors"
    assert order["arguments"]["networks"] == ["seed 0", "tuned 0"]


A, B = id_of("seed 0"), id_of("tuned 0")


@pytest.mark.parametrize(
    "wrong",
    [
        {}, [], None, 3, "map", {"kind": "demo"}, {"kind": "map", "arguments": {"path": "/etc/passwd"}},
        {"kind": "map", "more": 1}, {"kind": "map", "arguments": {"tag": "x" * 201}},
        {"kind": "map", "arguments": {"stored": "perhaps"}},
        {"kind": "compare", "arguments": {"a": A}}, {"kind": "compare", "arguments": {"a": "seed 0", "b": B}},
        {"kind": "compare", "arguments": {"a": A, "b": A}}, {"kind": "compare", "arguments": {"a": A, "b": "../x"}},
        {"kind": "compare", "arguments": {"a": A, "b": B, "data": "/etc/passwd"}},
        {"kind": "compare", "arguments": {"a": A, "b": B, "data": "mnist"}},
        {"kind": "compare", "arguments": {"a": A, "b": B, "data": "digits", "upload": A}},
        {"kind": "compare", "arguments": {"a": A, "b": B, "arch": "os:system"}},
        {"kind": "query", "arguments": {}}, {"kind": "query", "arguments": {"data": "digits", "by": "os.system"}},
        {"kind": "query", "arguments": {"data": "digits", "budget": 2}},
        {"kind": "query", "arguments": {"data": "digits", "steps": 10**18}},
        {"kind": "query", "arguments": {"data": "digits", "budget": "NaN"}},
        {"kind": "nearest", "arguments": {}}, {"kind": "nearest", "arguments": {"upload": A, "count": 21}},
        {"kind": "merge", "arguments": {"data": "digits"}},
        {"kind": "merge", "arguments": {"data": "digits", "networks": [A]}},
        {"kind": "merge", "arguments": {"data": "digits", "networks": [A, B], "family": 1}},
        {"kind": "merge", "arguments": {"data": "digits", "architecture": FINGERPRINT}},
        {"kind": "merge", "arguments": {"data": "digits", "networks": [A] * 51}},
        {"kind": "between", "arguments": {"a": A, "b": B}},
        {"kind": "between", "arguments": {"a": A, "b": B, "data": "https://example.org/x.npz"}},
        {"kind": "data", "arguments": {"path": "/etc/passwd"}},
    ],
    ids=lambda wrong: json.dumps(wrong)[:60],
)  # fmt: skip
def test_what_is_no_job_is_refused_in_one_sentence(asked, wrong):
    status, told = asked.post("/api/jobs", wrong)
    assert status == 422 and [*told] == ["error"] and "\n" not in told["error"] and len(told["error"]) < 400
    assert asked.get("/api/jobs")[1]["jobs"] == []


@pytest.mark.parametrize(
    "unknown",
    [
        {"kind": "compare", "arguments": {"a": A, "b": "f" * 32}},
        {"kind": "query", "arguments": {"upload": "f" * 32}},
        {"kind": "merge", "arguments": {"data": "digits", "networks": [A, "f" * 32]}},
        {"kind": "merge", "arguments": {"data": "digits", "architecture": FINGERPRINT, "family": 0}},
    ],
    ids=lambda one: one["kind"],
)
def test_what_is_not_there_is_404(asked, unknown):
    status, told = asked.post("/api/jobs", unknown)
    assert status == 404 and "again" in told["error"]


def test_other_bodies_are_refused(asked):
    assert asked.post("/api/jobs", body=b'{"kind": "map"}')[0] == 422
    assert asked.client.post("/api/jobs", content=b"{", headers={"content-type": "application/json"}).status_code == 422
    long = {"kind": "map", "arguments": {"tag": "x" * (65 << 10)}}
    assert asked.post("/api/jobs", long) == (413, {"error": "longer than 65536 bytes; send less"})
    for form in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data"):
        assert asked.client.post("/api/jobs", content=b"kind=map", headers={"content-type": form}).status_code == 415


def test_too_many_jobs_are_429_and_a_job_is_cancelled_and_taken_off(asked):
    hang = {"kind": "map", "arguments": {"tag": "hang"}}
    jobs = [asked.post("/api/jobs", hang)[1] for _ in range(21)]
    status, told = asked.post("/api/jobs", hang)
    assert status == 429 and "20 jobs wait" in told["error"]
    assert asked.delete(f"/api/jobs/{jobs[5]['id']}")[1]["state"] == "cancelled"
    for _ in range(9):
        assert asked.post("/api/jobs", hang)[0] == 201
        asked.delete(f"/api/jobs/{asked.get('/api/jobs')[1]['jobs'][0]['id']}")
    status, told = asked.post("/api/jobs", hang)
    assert status == 429 and "within a minute" in told["error"]
    listed = asked.get("/api/jobs")[1]
    assert (listed["running"], listed["waiting"], listed["minute"]) == (1, 20, 30)
    assert asked.delete(f"/api/jobs/{jobs[0]['id']}")[1]["state"] == "cancelled"
    assert ended(asked, jobs[0])["state"] == "cancelled"
    assert asked.delete(f"/api/jobs/{jobs[5]['id']}")[0] == 200
    assert asked.get(f"/api/jobs/{jobs[5]['id']}") == (404, {"error": "no job of this id; load the list again"})
    assert asked.delete(f"/api/jobs/{jobs[5]['id']}")[0] == 404


def test_the_socket_tells_the_list_then_changes(asked):
    old = asked.post("/api/jobs", {"kind": "map"})[1]
    ended(asked, old)
    with connected(asked) as socket:
        assert socket.accepted_subprotocol == "weightspace"
        first = socket.receive_json()
        assert first["all"] and [job["id"] for job in first["jobs"]] == [old["id"]]
        socket.send_text("what a page sends is not read")
        job = asked.post("/api/jobs", {"kind": "map", "arguments": {"tag": "hang"}})[1]
        seen = socket.receive_json()
        for _ in range(5):
            if seen["jobs"][0]["what"] != "asking":
                seen = socket.receive_json()
        assert not seen["all"] and [one["id"] for one in seen["jobs"]] == [job["id"]]
        asked.delete(f"/api/jobs/{old['id']}")
        assert socket.receive_json()["gone"] == [old["id"]]
    for wrong in (["weightspace"], ["weightspace", "token.wrong-token-of-the-tests"], []):
        session = asked.client.websocket_connect("/socket/jobs", subprotocols=wrong, headers={**SOCKET})
        with pytest.raises((WebSocketDisconnect, CancelledError)):
            session.__enter__()


def test_the_socket_sends_at_most_ten_messages_a_second(asked):
    with connected(asked) as socket:
        socket.receive_json()
        begun, seen = time.monotonic(), 0
        made = [asked.post("/api/jobs", {"kind": "map"})[1]["id"] for _ in range(15)]
        states = {}
        while [states.get(id) for id in made] != ["done"] * 15:
            states |= {job["id"]: job["state"] for job in socket.receive_json()["jobs"]}
            seen += 1
        assert seen <= 10 * (time.monotonic() - begun) + 2 and seen < 45


# ------------------------------------------------------------------ what the kinds do


def work(folder, out=None, told=lambda *_: None, **arguments):
    given = {"tag": None, "upload": None, "data": None, "shown": "digits", "name": None, **arguments}
    return Work(given, str(folder), None, None, out, told)


def test_a_map_is_kept_and_its_page_is_written(folder, tmp_path):
    told = []
    out = tmp_path / "reports" / "map.html"
    found = DONE["map"](work(folder, out, lambda *step: told.append(step), stored=True))
    assert found["networks"] == 7 and found["edges"] >= 3 and found["left"] == 1 and told[-1][0] == "writing the page"
    assert f"{found['networks']} networks in {found['families']} families" in out.read_text()
    assert "<img src=x" not in out.read_text()
    with serving(tmp_path, folder) as client:
        told = client.get("/api/atlas/map")[1]
        family = next(row for row in told["spaces"][0]["families"] if row["networks"] > 1)
        given = {"data": "digits", "architecture": told["spaces"][0]["architecture"], "family": family["family"]}
        assert client.post("/api/jobs", {"kind": "merge", "arguments": given})[0] == 422  # these data are not served
        assert "digits" not in [row["title"] for row in client.get("/api/jobs")[1]["jobs"]]


def test_members_are_compared_as_files_are(folder, tmp_path):
    out = tmp_path / "compare.html"
    found = DONE["compare"](work(folder, out, a="seed 0", b="tuned 0"))
    assert found["verdict"]["kind"] == "related" and found["names"] == ("seed 0", "tuned 0") and found["line"] is None
    assert "Related" in out.read_text()
    with pytest.raises(WeightspaceError, match="two architectures"):
        DONE["compare"](work(folder, out, a="seed 0", b="alone"))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Sixty examples as a file that was sent."""
    path = tmp_path_factory.mktemp("sent") / f"{'a' * 32}.npz"
    task = ws.digits("test").take(60, 0)
    x = torch.cat([x for x, _ in task.batches()])
    y = torch.cat([y for _, y in task.batches()])
    np.savez(path, x=x.numpy(), y=y.numpy())
    return {"data": str(path), "upload": "a" * 32, "shown": "my <data>.npz"}


def test_members_are_ranked_for_data_that_were_sent(folder, tmp_path, small):
    out = tmp_path / "query.html"
    asked = {"by": "accuracy", "budget": 0.9, "steps": 0, "tag": "sweep"}
    found = DONE["query"](work(folder, out, **{**asked, **small}))
    assert {row["name"] for row in found["ranking"]} == {"seed 0", "seed 1", "seed 2"} and found["best"] in found[
        "tied"
    ]
    assert (
        found["data"] == "my <data>.npz" and "my <data>" not in out.read_text() and small["data"] not in out.read_text()
    )
    with ws.Atlas(folder) as atlas:
        assert [(task.name, task.opened) for task in atlas.tasks] == [("my <data>.npz (sent)", "")]
    with serving(tmp_path, folder) as client:
        assert client.get("/api/atlas")[1]["measures"][0]["name"] == "accuracy on my <data>.npz (sent)"


def test_an_atlas_that_can_only_be_read_is_mapped_and_asked_and_keeps_nothing(folder, tmp_path, small, monkeypatch):
    atlas = shutil.copytree(folder, tmp_path / "atlas")
    kept = (atlas / "atlas.db").read_bytes()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    for kind, more in (("map", {"stored": True}), ("query", {"by": "loss", "budget": 0.9, "steps": 0, **small})):
        out = tmp_path / f"{kind}.html"
        DONE[kind](work(atlas, out, **more))
        assert "read-only" in out.read_text()
    with pytest.raises(WeightspaceError, match="read-only"):
        DONE["merge"](work(atlas, tmp_path / "merged" / "a.safetensors", networks=["seed 0", "tuned 0"], **small))
    assert not (tmp_path / "merged").exists() and (atlas / "atlas.db").read_bytes() == kept


def test_the_nearest_to_a_network_that_was_sent(folder, tmp_path):
    with ws.Atlas(folder) as atlas:
        path = ws.checkpoint.save(atlas.net("tuned 1").tensors, tmp_path / "sent.safetensors")
    found = DONE["nearest"](work(folder, data=str(path), count=2))
    assert [row["name"] for row in found["neighbours"]] == ["tuned 1", "seed 1"] and found["members"] == 7
    assert found["neighbours"][0]["id"] == id_of("tuned 1") and found["neighbours"][0]["distance"] < 1e-4


def test_an_average_becomes_a_member_with_its_parents(tmp_path, small):
    folder = filled(tmp_path / "atlas")
    out = folder / "merged" / "merge.safetensors"
    found = DONE["merge"](work(folder, out, **small, networks=["seed 0", "tuned 0"], name="seed 1"))
    assert found["name"] == "seed 1 (2)" and out.is_file()
    with ws.Atlas(folder) as atlas:
        member = atlas[found["name"]]
        assert set(member.parents) == set(found["kept"]) and member.tags == ("merged",)
        assert member.location == str(out) and len(atlas) == 9
        assert float((atlas.net(member.name) - atlas.net(found["kept"][0])).norm()) < 10


def test_a_way_between_two_members(folder, small):
    found = DONE["between"](work(folder, **small, a="seed 0", b="tuned 0"))
    assert found["names"][0] == "seed 0" and found["names"][-1] == "tuned 0"
    assert len(found["barriers"]) == len(found["names"]) - 1 and found["highest"] <= found["direct"]
    assert found["ids"] == [id_of(name) for name in found["names"]]


def test_a_job_in_its_process_writes_a_report_that_is_listed(folder, tmp_path):
    """The whole way: asked over HTTP, done in a process, its page listed and opened once."""
    with serving(tmp_path / "reports", folder) as client:
        job = client.post("/api/jobs", {"kind": "map", "arguments": {"stored": True}})[1]
        done = ended(client, job, 0.1)
        assert (done["state"], done["error"]) == ("done", None) and done["result"]["networks"] == 7
        (report,) = client.get("/api/reports")[1]["reports"]
        assert report["id"] == done["report"] and "7 networks" in report["headline"]
        path = client.post(f"/api/reports/{report['id']}/ticket", {})[1]["path"]
        assert client.client.get(path, headers={"Authorization": ""}).status_code == 200
