"""Files that are sent: limits, what is refused, what is told, how long they are kept; the memory of their readers."""

import asyncio
import io
import os
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi import HTTPException
from safetensors.torch import save
from served_atlas import filled, in_a_loop, serving

import weightspace as ws
from weightspace.net.errors import WeightspaceError
from weightspace.web import uploads
from weightspace.web.child import Work
from weightspace.web.look import LOOKS
from weightspace.web.spawn import LOOK, Outcome, Process
from weightspace.web.uploads import Uploads


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


GOOD = npz(x=np.zeros((6, 1, 8, 8), "float32"), y=np.arange(6) % 3)


def bomb():
    """150 kB that unpack to 300 MB of zeros, under an honest header."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (75_000_000,)})
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        member.write(head.getvalue())
        for _ in range(300):
            member.write(bytes(1_000_000))
    return file.getvalue()


class Runs:
    """A pickle that leaves a mark where it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def looked(tmp_path, kind, body):
    path = tmp_path / f"sent.{'npz' if kind == 'data' else 'safetensors'}"
    path.write_bytes(body)
    return LOOKS[kind](Work({"path": str(path), "shown": "the file"}, None, None, None, None, lambda *_: None))


def test_examples_are_told(tmp_path):
    found = looked(tmp_path, "data", GOOD)
    assert (found["examples"], found["inputs"], found["labels"]) == (6, [1, 8, 8], "whole numbers")
    assert looked(tmp_path, "data", npz(x=np.zeros((4, 2), "float32")))["labels"] is None
    both = {f"{name}_{split}": np.zeros(5 if split == "train" else 3, "int64") for name in "xy"
            for split in ("train", "test")}  # fmt: skip
    assert looked(tmp_path, "data", npz(**both))["examples"] == 8
    odd = looked(tmp_path, "data", npz(first=np.zeros((4, 2), "float32"), second=np.arange(4)))
    assert odd["notes"] == ["took 'first' for the inputs and 'second' for the labels"]


def test_a_network_is_told(tmp_path):
    found = looked(tmp_path, "network", save({"w": torch.ones(3, 4), "b": torch.ones(3)}))
    assert (found["tensors"], found["numbers"]) == (2, 15) and len(found["fingerprint"]) == 64


def test_a_pickle_in_an_array_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "mark"
    body = npz(x=np.array([Runs(mark)], dtype=object), y=np.arange(1))
    with pytest.raises(WeightspaceError, match="pickle"):
        looked(tmp_path, "data", body)
    assert not mark.exists()


def broken_header():
    """An array whose header is no Python."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr':[[[[[[[[")
        archive.writestr("y.npy", b"")
    return body.getvalue()


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        ("data", npz(x=np.full((4, 2), np.nan, "float32"), y=np.arange(4)), "NaN"),
        ("data", npz(x=np.zeros((4, 2), "float32"), y=np.full(4, np.inf)), "NaN"),
        ("data", GOOD[:-40], "broken"),
        ("data", b"PK\3\4" + bytes(100), "broken"),
        ("data", broken_header(), "broken"),
        ("data", npz(x=np.zeros((0, 2), "float32"), y=np.zeros(0, "int64")), None),
        ("data", npz(x=np.array(["a", "b"]), y=np.arange(2)), None),
        ("network", save({"w": torch.full((3,), float("nan"))}), "NaN"),
        ("network", struct.pack("<Q", 1 << 20) + b"{}" + bytes(9), None),
        ("network", save({"w": torch.ones(3)})[:-4], None),
    ],
)
def test_what_cannot_be_used_is_one_sentence(tmp_path, kind, body, said):
    with pytest.raises(WeightspaceError, match=said) as error:
        looked(tmp_path, kind, body)
    assert "\n" not in str(error.value)


def test_a_bomb_is_not_unpacked(tmp_path):
    body = bomb()
    assert len(body) < 400_000
    with pytest.raises(WeightspaceError, match="unpacks from"):
        looked(tmp_path, "data", body)


def test_the_memory_of_a_reader_is_limited(tmp_path):
    path = tmp_path / "large.npz"
    path.write_bytes(npz(x=np.ones((30_000, 1000), "float32"), y=np.arange(30_000) % 3))
    order = {"kind": "data", "arguments": {"path": str(path), "shown": "the file"}, "atlas": None, "objects": None,
             "arch": None, "out": None, "memory": 50 << 20, "longest": 1 << 16}  # fmt: skip
    outcome = Process(order, LOOK).run(lambda *_: None, 100)
    assert outcome.result is None and ("memory" in outcome.error) and str(path) not in outcome.error


@pytest.fixture
def quick(monkeypatch):
    """Readers that find six examples in everything."""
    facts = {"examples": 6, "inputs": [2], "labels": None, "tensors": None, "numbers": None, "fingerprint": None,
             "notes": []}  # fmt: skip

    class Quick(Process):
        def __init__(self, order, command):
            self.order = order

        def run(self, told, seconds):
            bad = Path(self.order["arguments"]["path"]).read_bytes().endswith(b"bad")
            return Outcome(error="the file is broken") if bad else Outcome(facts)

    monkeypatch.setattr(uploads, "Process", Quick)


def test_a_file_that_is_sent_is_read_in_a_process_and_told(tmp_path):
    """The whole way, with the real reader."""
    atlas = filled(tmp_path / "atlas")
    with ws.Atlas(atlas) as opened:
        body = save({name: x.contiguous() for name, x in opened.net("seed 0").tensors.items()})
    with serving(tmp_path, atlas) as client:
        status, told = client.post("/api/uploads?name=%3Cimg%20src%3Dx%3E%2F..%2F", body=body)
        assert status == 201 and told["name"] == "<img src=x>/../" and told["kind"] == "network"
        assert told["networks"] == 7 and told["numbers"] == 1250 and 3500 < told["expires"] - time.time() <= 3600
        assert client.get("/api/uploads")[1]["uploads"] == [told]
        data = {"kind": "query", "arguments": {"upload": told["id"]}}
        assert client.post("/api/jobs", data)[0] == 422  # a network is no data
        status, told = client.post("/api/uploads", body=GOOD[:-40])
        assert status == 422 and told["error"].startswith("the file cannot be read") and "/tmp" not in told["error"]


def test_files_lie_where_only_this_user_reads_them_and_go_with_the_server(tmp_path, quick):
    with serving(tmp_path) as client:
        told = client.post("/api/uploads?name=a.npz", body=GOOD)[1]
        (folder,) = [p for p in Path(uploads.tempfile.gettempdir()).glob(f"weightspace-uploads-{os.getpid()}-*")
                     if (p / f"{told['id']}.npz").exists()]  # fmt: skip
        assert folder.stat().st_mode & 0o777 == 0o700 and [p.name for p in folder.iterdir()] == [f"{told['id']}.npz"]
        assert client.post("/api/uploads", body=b"PK\3\4bad") == (422, {"error": "the file is broken"})
        assert len([*folder.iterdir()]) == 1
        assert client.delete(f"/api/uploads/{told['id']}")[1]["id"] == told["id"] and not [*folder.iterdir()]
        assert client.delete(f"/api/uploads/{told['id']}")[0] == 404
        client.post("/api/uploads", body=GOOD)
    assert not folder.exists()


def test_other_kinds_of_files_are_never_opened(tmp_path, quick):
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    bodies = [(tmp_path / "a.pt").read_bytes(), b"", b"{}", b"<html>", b"\x80\x04.", b"x" * 4000]
    with serving(tmp_path) as client:
        for body in bodies:
            status, told = client.post("/api/uploads?name=a.npz", body=body)
            assert status == 422 and "nothing else is read" in told["error"], body[:10]
        assert client.get("/api/uploads")[1]["uploads"] == []


def test_sizes_and_numbers_are_limited(tmp_path, quick, monkeypatch):
    with serving(tmp_path) as client:
        headers = {"content-type": "application/octet-stream", "content-length": str((64 << 20) + 1)}
        assert client.client.post("/api/uploads", content=b"", headers=headers).status_code == 413
        assert client.post("/api/uploads?name=" + "x" * 201, body=GOOD)[0] == 422
        for _ in range(16):
            assert client.post("/api/uploads", body=GOOD)[0] == 201
        status, told = client.post("/api/uploads", body=GOOD)
        assert status == 429 and "too many files" in told["error"]
    monkeypatch.setattr(uploads, "_TOGETHER", 2 * len(GOOD))
    with serving(tmp_path) as client:
        assert [client.post("/api/uploads", body=GOOD)[0] for _ in range(3)] == [201, 201, 429]


def test_files_that_come_at_the_same_time_are_counted(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(uploads, "_MANY", 3)
    kept = Uploads()
    here = asyncio.Event()

    async def slow():
        await here.wait()
        yield GOOD

    async def all_at_once():
        sent = [asyncio.create_task(kept.receive(slow(), "a", len(GOOD))) for _ in range(5)]
        await asyncio.sleep(0.05)
        here.set()
        return await asyncio.gather(*sent, return_exceptions=True)

    found = in_a_loop(all_at_once())
    assert sum(isinstance(one, uploads.Upload) for one in found) == 3 == len(kept.rows())
    assert {one.status_code for one in found if isinstance(one, HTTPException)} == {429} and not kept._coming
    kept.close()


def test_after_an_hour_a_file_is_gone(tmp_path, quick, monkeypatch):
    kept = Uploads()
    monkeypatch.setattr(uploads, "HOUR", -1.0)
    path = kept._made() / f"{'a' * 32}.npz"
    path.write_bytes(GOOD)
    one = kept._checked("a" * 32, path, "data", "name")
    assert one.path.exists() and kept.rows() == [] and not one.path.exists()
    kept.close()


def test_what_killed_servers_left_is_thrown_away(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads.tempfile, "tempdir", str(tmp_path))
    gone, mine, other = (tmp_path / f"weightspace-uploads-{n}-x" for n in (2**22 + 5, os.getpid(), "word"))
    for folder in (gone, mine, other):
        folder.mkdir()
    kept = Uploads()
    kept._made()
    assert not gone.exists() and mine.exists() and other.exists()
    kept.close()
