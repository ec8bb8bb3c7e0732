"""Every file that is read may be damaged, or written by another program: the right content, or one clear error."""

from __future__ import annotations

import copy
import gzip
import io
import json
import shutil
import struct
import traceback
import warnings
import zlib
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load as unpacked
from safetensors.torch import save as packed
from torch import nn

import weightspace as ws
from weightspace.checkpoint import files
from weightspace.codes import transfer

X, Y = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


NET = ws.Net.of(module())
TASK = ws.Task(torch.zeros(2, next(NET.module().parameters()).shape[1]), torch.tensor([0, 1]))
GROUP = ws.Symmetry.of(NET, X)


def refused(call, words: str = ".") -> None:
    with pytest.raises(ws.WeightspaceError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


# recordings


def blocks_of(data: bytes) -> list[bytes]:
    """The blocks of a recording, after its mark of 8 bytes: length, checksum, bytes."""
    found, at = [], 8
    while at < len(data):
        length, _ = struct.unpack("<QI", data[at : at + 12])
        found.append(data[at + 12 : at + 12 + length])
        at += 12 + length
    return found


def tree_of(block: bytes) -> dict:
    length = int.from_bytes(block[:8], "little")
    return json.loads(json.loads(block[8 : 8 + length])["__metadata__"]["record"])


def record(file: Path) -> bytes:
    with ws.Recorder(module(), every=1, file=file, tell=None, gates=ws.gates(ws.Task(X, Y))) as watch:
        for _ in range(3):
            watch.step(loss=1.0)
    return file.read_bytes()


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> bytes:
    return record(tmp_path_factory.mktemp("recording") / "run.rec")


def without(tree: dict, key: str) -> dict:
    return {k: v for k, v in tree.items() if k != key}


def deep(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


FIELDS = {
    **{f"no {key}": (2, lambda r, key=key: without(r, key)) for key in ("step", "values", "failed", "seconds")},
    "values null": (2, lambda r: {**r, "values": None}),
    "a step of half": (2, lambda r: {**r, "step": 0.5}),
    "failed a list": (2, lambda r: {**r, "failed": ["x"]}),
    "failed with numbers": (2, lambda r: {**r, "failed": {"x": 1}}),
    "no such tensor": (2, lambda r: {**r, "values": {"loss": {"$tensor": "nope"}}}),
    "a tensor of a list": (2, lambda r: {**r, "values": {"loss": {"$tensor": [1]}}}),
    "gates without layers": (2, lambda r: {**r, "values": {"g": {"$gates": "gates"}}}),
    "gates of other sizes": (2, lambda r: {**r, "values": {"g": {**r["values"]["gates"], "layers": {"1": 99}}}}),
    "gates of no size": (2, lambda r: {**r, "values": {"g": {**r["values"]["gates"], "layers": {"1": "8"}}}}),
    "nested too deep": (2, lambda r: {**r, "values": {"loss": deep(900)}}),
    "header empty": (0, lambda h: {}),
    "observables a number": (0, lambda h: {**h, "observables": 5}),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_recording_with_other_fields_is_refused(tmp_path, recording, name):
    """Its checksums being right: another version or another program wrote it."""
    k, change = FIELDS[name]
    parts = blocks_of(recording)
    parts[k] = packed(unpacked(parts[k]), {"record": json.dumps(change(tree_of(parts[k])))})
    file = tmp_path / "run.rec"
    file.write_bytes(recording[:8] + b"".join(struct.pack("<QI", len(b), zlib.crc32(b)) + b for b in parts))

    def use() -> None:
        found = ws.Recording(file)
        repr(found), found.series("loss")
        [part for one in found for part in one.values]

    refused(use)


def test_a_damaged_length_is_not_the_end_of_a_recording(tmp_path, recording):
    """A block that says it is longer than the file looks as if it were cut off: all after it would be left out."""
    file, at = tmp_path / "run.rec", 8 + 12 + len(blocks_of(recording)[0])
    file.write_bytes(recording[: at + 5] + b"\x01" + recording[at + 6 :])
    refused(lambda: ws.Recording(file), "damaged")
    refused(lambda: ws.Recorder(module(), every=1, file=file, tell=None), "damaged")
    assert len(file.read_bytes()) == len(recording), "nothing was cut off by the attempt to go on"


# paths


def walked(folder: Path, steps: int = 6) -> ws.Flow:
    return ws.flow(NET, ws.learn(ws.Task(X, Y)), ws.Euclidean(), steps=steps, size=0.1, save=2, trail=folder)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("paths") / "good"
    walked(folder)
    return folder


LIES = {
    "an infinite step": lambda i, k: {**i, "points": [*i["points"][:-1], {**i["points"][-1], "step": float("inf")}]},
    "steps that do not rise": lambda i, k: {**i, "points": [i["points"][0], {**i["points"][1], "step": 0}]},
    "a step of text": lambda i, k: {**i, "points": [i["points"][0], {**i["points"][1], "step": "1"}]},
    "the resume file is a point": lambda i, k: {**i, "resume": i["points"][1]["file"]},
    "points a number": lambda i, k: {**i, "points": 3},
    "a point less": lambda i, k: {**i, "points": i["points"][:-1]},
    "another goal": lambda i, k: {**i, "toward": "elsewhere"},
    "a file of a list": lambda i, k: {**i, "points": [{**p, "file": [1]} for p in i["points"]]},
}
RESUMED = {
    "no log": lambda r: without(r, "log"),
    "no trust": lambda r: without(r, "trust"),
    "a log of another form": lambda r: {**r, "log": torch.zeros(3, 2)},
    "a trust of NaN": lambda r: {**r, "trust": torch.tensor(float("nan"))},
}
SHORT = {"0.weight::mask": torch.zeros(2, dtype=torch.uint8), "0.weight::values": torch.zeros(0)}


@pytest.mark.parametrize("name", [*LIES, *RESUMED, "a short mask", "a mask alone", "one number"])
def test_a_path_whose_files_lie_is_refused(tmp_path, good, name):
    folder = tmp_path / "used"
    shutil.copytree(good, folder)
    index = json.loads((folder / "index.json").read_text())
    point, resume = folder / index["points"][1]["file"], folder / index["resume"]
    if name in LIES:
        (folder / "index.json").write_text(json.dumps(LIES[name](index, None)))
    elif name in RESUMED:
        resume.write_bytes(packed(RESUMED[name](unpacked(resume.read_bytes()))))
    elif name == "one number":
        data = bytearray(point.read_bytes())
        data[-2] ^= 1
        point.write_bytes(data)
    else:
        point.write_bytes(packed(SHORT if name == "a short mask" else without(SHORT, "0.weight::values")))

    def use() -> None:
        list(ws.Trail(folder, NET))
        walked(folder, 8)

    refused(use)


def test_without_its_sums_a_point_would_be_another_network(tmp_path, good, monkeypatch):
    """The planted error: what the checksums are for."""
    shutil.copytree(good, tmp_path / "used")
    point = tmp_path / "used" / ws.Trail(good, NET).index["points"][1]["file"]
    data = bytearray(point.read_bytes())
    data[-2] ^= 1
    point.write_bytes(data)
    monkeypatch.setattr("weightspace.path.trail._sum", lambda tensor: "")
    monkeypatch.setattr("weightspace.path.trail._Summed.__getitem__", lambda self, name: self._file[name])
    assert float((ws.Trail(tmp_path / "used", NET)[1] - ws.Trail(good, NET)[1]).norm()) > 0


# groups

CHANGES = {
    "exponent 2": lambda c: c["generators"][0]["exponents"][0].__setitem__(2, 2.0),
    "exponents alike": lambda c: [e.__setitem__(2, 1.0) for e in c["generators"][0]["exponents"]],
    "a block twice": lambda c: c["blocks"].append(copy.deepcopy(c["blocks"][0])),
    "no blocks": lambda c: c.update(blocks=[]),
    "kinds a number": lambda c: c["axes"][0].update(kinds=5),
    "an exponent as text": lambda c: c["generators"][0]["exponents"][0].__setitem__(2, "x"),
    "a block that is not there": lambda c: c["generators"][0]["exponents"][0].__setitem__(0, 99),
    "an axis of 10^12": lambda c: c["axes"].append({**c["axes"][0], "name": "more", "size": 10**12}),
    "not verified": lambda c: c.update(verified=None),
    "no digest": lambda c: c.pop("digest"),
}


@pytest.mark.parametrize("name", [*CHANGES, "deep", "an axis of 10^12, sealed anew", "no blocks, sealed anew"])
def test_a_group_that_was_changed_is_refused(tmp_path, name):
    """It says "verified", which is true of what was saved alone."""
    GROUP.save(tmp_path / "group.json")
    assert ws.Symmetry.load(tmp_path / "group.json").as_json() == GROUP.as_json()
    if name == "deep":
        (tmp_path / "group.json").write_text("[" * 100_000)
    else:
        changed = json.loads((tmp_path / "group.json").read_text())
        CHANGES[name.partition(",")[0]](changed)
        changed = files.sealed(changed) if "anew" in name else changed
        (tmp_path / "group.json").write_text(json.dumps(changed))
    refused(lambda: ws.Symmetry.load(tmp_path / "group.json"), "group.json")


# every format, damaged at random


def same(a, b) -> bool:
    return {*a} == {*b} and all(torch.equal(a[n], b[n]) for n in a)


def write_safetensors(path: Path) -> None:
    ws.checkpoint.save(NET.tensors, path, force=True)


def write_torch(path: Path) -> None:
    torch.save({"state_dict": dict(NET.tensors), "epoch": 3}, path)


def write_legacy(path: Path) -> None:
    torch.save(dict(NET.tensors), path, _use_new_zipfile_serialization=False)


def write_npz(path: Path) -> None:
    np.savez(path, x=X.numpy(), y=Y.numpy())


def write_packed(path: Path) -> None:
    np.savez_compressed(path, x=X.numpy(), y=Y.numpy())


def write_idx(path: Path) -> None:
    images = struct.pack(">4BIII", 0, 0, 8, 3, 4, 3, 3) + bytes(range(36))
    path.write_bytes(gzip.compress(images, mtime=0))
    path.with_name(path.name.replace("images-idx3", "labels-idx1")).write_bytes(
        struct.pack(">4BI", 0, 0, 8, 1, 4) + bytes([0, 1, 2, 0])
    )


def write_parquet(path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"a": X[:, 0].numpy(), "label": Y.numpy()}), path, write_page_checksum=True)


def write_pictures(path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    image = pytest.importorskip("PIL.Image")
    blobs = []
    for k in range(3):
        file = io.BytesIO()
        image.fromarray(np.arange(27, dtype=np.uint8).reshape(3, 3, 3) + k).save(file, "PNG")
        blobs.append({"bytes": file.getvalue()})
    parquet.write_table(arrow.table({"image": blobs, "label": [0, 1, 2]}), path, compression="none")


def write_codes(path: Path) -> None:
    transfer._Book(path, {"beta": 1}, {"a": TASK}, NET, (0,))[("a",), 0] = 1.5


def read_task(path: Path):
    task = ws.task.read(path)
    return {"x": task.example(len(task)), "y": task.labels()}


def read_recording(path: Path):
    found = ws.Recording(path)
    return {f"{k}": torch.tensor([r.step, *r.values["gates"].bits[0].tolist()]) for k, r in enumerate(found)}


def read_codes(path: Path):
    book = transfer._Book(path, {"beta": 1}, {"a": TASK}, NET, (0,))
    return {f"{key}": torch.tensor(length) for key, length in book.found.items()}


def read_group(path: Path):
    return ws.Symmetry.load(path).sample(seed=0)(NET).tensors


# name: the file's, how it is written, how it is read, and whether all of its content is under a digest
FORMATS = {
    "safetensors": ("x.safetensors", write_safetensors, lambda p: dict(ws.checkpoint.read(p)), False),
    "torch": ("x.pt", write_torch, lambda p: dict(ws.checkpoint.read(p)), True),
    "torch before 1.6": ("x.pth", write_legacy, lambda p: dict(ws.checkpoint.read(p)), False),
    "npz": ("x.npz", write_npz, read_task, True),
    "npz, compressed": ("x.npz", write_packed, read_task, True),
    "idx": ("train-images-idx3-ubyte.gz", write_idx, read_task, False),
    "parquet": ("x.parquet", write_parquet, read_task, False),
    "parquet of images": ("x.parquet", write_pictures, read_task, False),
    "recording": ("x.rec", record, read_recording, True),
    "group": ("x.json", GROUP.save, read_group, True),
    "codes": ("x.json", write_codes, read_codes, True),
}
EDIT = st.tuples(st.floats(0, 1), st.sampled_from(["flip", "cut", "drop", "insert", "splice"]), st.integers(0, 255))


def edited(data: bytes, edits) -> bytes:
    for at, how, value in edits:
        k = int(at * max(0, len(data) - 1))
        rest = data[k + 1 :] if how in ("flip", "drop") else data[k:]
        middle = {"flip": bytes([value]), "insert": bytes([value] * 3), "splice": data[: value + 1]}.get(how, b"")
        data = data[:k] + middle + (b"" if how == "cut" else rest)
    return data


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    found = {}
    for name, (file, write, look, _) in FORMATS.items():
        path = tmp_path_factory.mktemp("format") / file
        write(path)
        found[name] = path, path.read_bytes(), look(path)
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(EDIT, min_size=1, max_size=3))
@pytest.mark.parametrize("name", FORMATS)
def test_damage_is_refused_or_does_no_harm(originals, name, edits):
    path, data, content = originals[name]
    *_, look, sealed = FORMATS[name]
    changed = edited(data, edits)
    path.write_bytes(changed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = look(path)
        except ws.WeightspaceError as error:
            assert changed != data and "\n" not in str(error)
            return
        except jaxtyping.TypeCheckError as error:  # the checks of shapes, which look at one tensor, met the refusal
            assert "CheckpointError" in "".join(traceback.format_exception(error))
            return
    if sealed:
        kept = {key: content[key] for key in found if key in content}
        assert same(found, kept), "a recording may be cut off, and ends then at a whole record"
        assert name == "recording" or same(found, content)


JSON = {
    "group": lambda path: ws.Symmetry.load(path),
    "codes": lambda path: transfer._Book(path, {"beta": 1}, {"a": TASK}, NET, (0,)),
    "index of shards": lambda path: ws.checkpoint.read(path),
    "index of a path": lambda path: list(ws.Trail(path.parent, NET)),
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def places(tree, path=()):
    """Where a value could be changed, in every mapping and list."""
    if path:
        yield path
    for key, part in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(part, (*path, key))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("name", JSON)
def test_fields_of_other_types_are_refused(originals, good, tmp_path, name, data):
    if name in originals:
        path, text, _ = originals[name]
    elif name == "index of a path":
        shutil.copytree(good, tmp_path / "path", dirs_exist_ok=True)
        path, text = tmp_path / "path" / "index.json", (good / "index.json").read_bytes()
    else:
        path = ws.checkpoint.save(NET.tensors, tmp_path, shard=100, force=True)
        text = path.read_bytes()
    tree = json.loads(text)
    *way, last = data.draw(st.sampled_from(list(places(tree))))
    inside = tree
    for key in way:
        inside = inside[key]
    if data.draw(st.booleans()):
        inside.pop(last)
    else:
        inside[last] = data.draw(VALUES)
    path.write_text(json.dumps(tree))
    same_text = json.loads(path.read_text()) == json.loads(text)
    try:
        JSON[name](path)
    except ws.WeightspaceError as error:
        assert "\n" not in str(error)
    else:
        assert same_text or name == "index of shards", "what carries a digest was changed, and read"
