"""Files made to deceive: each is refused in one clear line, with nothing run and nothing large allocated."""

from __future__ import annotations

import _codecs
import copy
import io
import json
import os
import pickle
import resource
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._utils import _rebuild_parameter, _rebuild_tensor_v2, _rebuild_tensor_v3

from weightspace import checkpoint
from weightspace.checkpoint import CheckpointError, read, save

HUGE = 10**12


@pytest.fixture(autouse=True)
def little_memory():
    """At most 1 GB of address space beyond what the process has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refused(path: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(path)
    line = str(caught.value)
    assert line.isprintable() and len(line) < 1000 and "; " in line
    assert not any(word in line for word in ("MemoryError", "allocate", "unhashable", "has no attribute"))
    print(line)
    for word in (path.name.partition(".")[0], *words):
        assert word in line, f"{word!r} not in {line!r}"


# crafting: pickles are only written here, never loaded


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Stored(NamedTuple):
    """Pickles as a reference to a storage."""

    numel: object
    key: object = "0"
    kind: object = torch.FloatStorage
    word: object = "storage"
    view: tuple | None = None


class Crafter(pickle.Pickler):
    """Collects the keys of the storages; the form before torch 1.6 says of each whether it is a view."""

    def __init__(self, file: io.BytesIO, protocol: int, legacy: bool) -> None:
        super().__init__(file, protocol)
        self.legacy, self.keys = legacy, {}

    def persistent_id(self, item):
        if type(item) is not Stored:
            return None
        self.keys |= {str(item.key): None}
        return (
            item.word,
            item.kind,
            item.key,
            "cpu",
            item.numel,
            *([item.view] if self.legacy or item.view else []),
        )


def craft(value, protocol: int = 2, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    Crafter(file, protocol, legacy).dump(value)
    return file.getvalue()


def tensor(size=(4,), stride=(1,), offset=0, numel=4, **stored) -> Call:
    return Call(_rebuild_tensor_v2, Stored(numel, **stored), offset, size, stride, False, OrderedDict())


def write_zip(path: Path, data: bytes, method=zipfile.ZIP_STORED, comment=b"", **more: bytes) -> Path:
    records = {"data.pkl": data, "byteorder": b"little", "data/0": bytes(16), "version": b"3\n", **more}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in records.items():
            archive.writestr(name if name.startswith("y/") else f"x/{name}", content)
        archive.comment = comment
    return path


def write_legacy(path: Path, value: object, keys: list[str] | None = None, storage: int = 16) -> Path:
    file = io.BytesIO()
    crafter = Crafter(file, 2, legacy=True)
    crafter.dump(value)
    keys = [*crafter.keys] if keys is None else keys
    parts = [craft(0x1950A86A20F9469CFC6C), craft(1001), craft({"little_endian": True})]
    parts += [file.getvalue() if type(value) is not bytes else value, craft(keys)]
    parts += [struct.pack("<q", 4) + bytes(storage) for _ in keys]
    path.write_bytes(b"".join(parts))
    return path


both = pytest.mark.parametrize("form", ["zip", "legacy"])


def write(form: str, path: Path, value: object) -> Path:
    if form == "legacy":
        return write_legacy(path, value)
    return write_zip(path, value if type(value) is bytes else craft(value))


@both
def test_crafted_files_are_read_when_they_are_honest(tmp_path, form):
    value = {"w": Call(_rebuild_parameter, tensor(), True, OrderedDict()), "v": tensor((2, 2), (2, 1))}
    assert {k: t.tolist() for k, t in read(write(form, tmp_path / "x.pt", value)).items()} == {
        "w": [0.0] * 4,
        "v": [[0.0] * 2] * 2,
    }


# torch.save: code


@both
@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin", ".ckpt", ".tar"])
@pytest.mark.parametrize("deep", [False, True], ids=["top", "deep"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, form, ending, deep):
    marker = tmp_path / "marker"
    evil = Call(open, str(marker), "w")
    value = {"state_dict": {"w": tensor(), "v": [evil]}} if deep else evil
    refused(
        write(form, tmp_path / f"x{ending}", value), "asks to run 'io.open'", "was not run", "safetensors"
    )
    assert not marker.exists()


@pytest.mark.parametrize("ending", [".pt", ".bin", ".pkl", ".pickle"])
def test_a_bare_pickle_is_refused_and_not_run(tmp_path, ending):
    marker, path = tmp_path / "marker", tmp_path / f"x{ending}"
    path.write_bytes(craft(Call(open, str(marker), "w")))
    refused(path, "code", "not")
    path.write_bytes(craft({"w": 1}))
    refused(path, "a pickle", "was not opened")
    assert not marker.exists()


CALLS = {
    "module": torch.nn.Linear(1, 1),
    "bytearray": Call(bytearray, HUGE),
    "tensor class": Call(torch.FloatTensor, HUGE),
    "a codec that doubles": Call(_codecs.encode, "aa", "hex"),
    "storage": Call(torch.UntypedStorage, HUGE),
    "dtype": Call(torch.serialization._get_layout, "torch.strided"),
    "parameter of no tensor": Call(_rebuild_parameter, [1], True, OrderedDict()),
}


@both
@pytest.mark.parametrize("value", CALLS.values(), ids=CALLS)
def test_calls_other_than_of_plain_tensors_are_refused(tmp_path, form, value):
    refused(write(form, tmp_path / "x.pt", {"w": tensor(), "v": value}), "")


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_other_pickle_protocols_are_refused(tmp_path, protocol):
    refused(write_zip(tmp_path / "x.pt", craft({"w": tensor()}, protocol)), "pickle operation")


ARCHIVES = {
    "exported program": ({"archive_format": b"pt2"}, "--trust-code"),
    "exported program, by its model": ({"models/model.json": b"{}"}, "--trust-code"),
    "TorchScript": ({"constants.pkl": b"", "code/a.py": b""}, "TorchScript archive is code"),
    "name in other case": ({"DATA.PKL": b"."}, "doubled"),
    "second root": ({"y/data.pkl": b"."}, "stray"),
    "comment": ({"comment": b"PK"}, "stray"),
    "no pickle": ({"data.pkl": b""}, "data.pkl of 0 bytes"),
    "large pickle": ({"data.pkl": bytes(25_000_001)}, "25,000,001 bytes"),
}


@pytest.mark.parametrize("records, word", ARCHIVES.values(), ids=ARCHIVES)
def test_archives_that_are_no_state_dict_are_refused(tmp_path, records, word):
    refused(write_zip(tmp_path / "x.pt", **{"data": craft({"w": tensor()}), **records}), word)


def test_an_exported_program_is_refused_by_its_name(tmp_path):
    (tmp_path / "x.pt2").write_bytes(b"anything")
    refused(tmp_path / "x.pt2", "code", "--trust-code")


# torch.save: size


def test_a_zip_bomb_is_refused(tmp_path):
    many = write_zip(
        tmp_path / "x.pt", craft({"w": tensor()}), zipfile.ZIP_DEFLATED, **{"data/1": bytes(1 << 25)}
    )
    assert many.stat().st_size < 50_000
    refused(many, "compressed zip", "33,55")


def test_a_zip_whose_records_overlap_is_refused(tmp_path):
    path = write_zip(tmp_path / "x.pt", craft({"w": tensor()}), **{"data/1": bytes(100_000)})
    with zipfile.ZipFile(path, "a") as archive:
        for i in range(2, 50):
            archive.filelist.append(again := copy.copy(archive.getinfo("x/data/1")))
            again.filename = f"x/data/{i}"
        archive._didModify = True
    refused(path, "that claim to be 4,9")


CLAIMS = {
    "expanded": tensor((10**6, 10**6), (0, 0)),
    "expanded by one": tensor((5,), (0,)),
    "more than the storage": tensor((HUGE,), (1,)),
    "beyond its end": tensor((2,), (4,)),
    "offset": tensor((4,), (1,), 1),
    "overflow": tensor((2**62, 2**62), (1, 1)),
    "endless empty": tensor((0, 2**62), (1, 1)),
    "many dimensions": tensor((1,) * 65, (1,) * 65),
    "wider dtype": Call(_rebuild_tensor_v3, Stored(4), 0, (4,), (1,), False, OrderedDict(), torch.float64),
    "negative size": tensor((-1,), (1,)),
    "negative stride": tensor((4,), (-1,)),
    "negative offset": tensor((4,), (1,), -1),
    "size of bool": tensor((True,), (1,)),
    "size of floats": tensor((1.0,), (1,)),
    "sizes without strides": tensor((4,), ()),
    "storage that is none": Call(_rebuild_tensor_v2, 3, 0, (4,), (1,), False, OrderedDict()),
}


@both
@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_a_tensor_that_claims_more_than_it_has_is_refused(tmp_path, form, claim):
    refused(write(form, tmp_path / "x.pt", {"v": tensor(), "w": claim}), "a tensor")


STORAGES = {
    "huge": ([Stored(HUGE)], "4000000000000"),
    "huge integer": ([Stored(10**300)], "10^20 or more"),
    "negative": ([Stored(-4)], "unknown form"),
    "unknown": ([Stored(5, key="7")], {"zip": "'7' claims [20] bytes, its record has 0", "legacy": "has 24"}),
    "two sizes": ([Stored(1), Stored(4)], "two sizes"),
    "many times": ([Stored(10**6, key=str(i)) for i in range(1000)], "[4000"),
    "quantised": ([Stored(4, kind=torch.QInt8Storage)], "QInt8Storage"),
    "key of lists": ([Stored(4, key=[1])], "unknown form"),
    "module": ([Stored(4, word="module")], "unknown form"),
    "view": ([Stored(4, view=("1", 0, 4))], "unknown form"),
}


@pytest.mark.parametrize("stored, word", STORAGES.values(), ids=STORAGES)
@both
def test_a_storage_that_claims_what_is_not_there_is_refused(tmp_path, form, stored, word):
    claims = {
        str(i): Call(_rebuild_tensor_v2, s, 0, (1,), (1,), False, OrderedDict()) for i, s in enumerate(stored)
    }
    refused(write(form, tmp_path / "x.pt", claims), word if isinstance(word, str) else word[form])


def test_the_older_form_must_hold_the_data_of_every_storage(tmp_path):
    assert list(read(write_legacy(tmp_path / "x.pt", {"w": tensor()}))) == ["w"]
    refused(write_legacy(tmp_path / "x.pt", {"w": tensor()}, keys=[]), "is not there")
    refused(write_legacy(tmp_path / "x.pt", {"w": tensor()}, storage=12), "claim [24] bytes, the file has 20")


def test_the_attacks_are_real_where_nothing_looks_at_the_file_first(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "x.pt", craft({"w": CLAIMS["expanded"]}))
    assert path.stat().st_size < 2000
    refused(path, "10")
    monkeypatch.setattr(checkpoint, "_audit_zip", lambda path: None)
    assert read(path).nbytes == 4 * HUGE


def bomb(kind: type, depth: int = 60):
    value = kind([1])
    for _ in range(depth):
        value = kind([value, value])
    return value


@both
def test_nested_containers_are_not_walked_more_often_than_they_are_stored(tmp_path, form):
    refused(write(form, tmp_path / "x.pt", bomb(list)), "list")
    refused(write(form, tmp_path / "x.pt", bomb(tuple)), "without end")
    refused(write(form, tmp_path / "x.pt", {"w": tensor(), "v": bomb(list)}), "'v' is a list")
    assert (
        "left out 'v'"
        in read(write(form, tmp_path / "x.pt", {"model": {"w": tensor()}, "v": bomb(list)})).notes[0]
    )
    deep = b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."
    refused(
        write_zip(tmp_path / "x.pt", deep) if form == "zip" else write_legacy(tmp_path / "x.pt", deep), ""
    )
    nest: dict = {"w": tensor()}
    for _ in range(50):
        nest = {"state_dict": nest}
    refused(write(form, tmp_path / "x.pt", nest), "no tensors under names")


def dense_only():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "sparse": torch.eye(3).to_sparse(),
            "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
            "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "meta": torch.empty(3, device="meta"),
        }


@pytest.mark.parametrize(
    "kind, value", dense_only().items(), ids=lambda value: value if type(value) is str else ""
)
def test_tensors_that_are_not_dense_are_refused(tmp_path, kind, value):
    torch.save({"v": torch.ones(3), "w": value}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", kind)
    with pytest.raises(CheckpointError, match=f"'w' is .*{kind}"):
        save({"v": torch.ones(3), "w": value}, tmp_path / "y.safetensors")
    assert not (tmp_path / "y.safetensors").exists()


CONTENTS = {
    "a tensor": (torch.ones(2), "but Tensor"),
    "a list": ([torch.ones(2)], "but list"),
    "nothing": ({}, "an empty mapping"),
    "unknown nesting": ({"net": {"w": torch.ones(2)}, "optim": {}}, "only 'net', 'optim'"),
    "a list among tensors": ({"w": torch.ones(2), "v": [1]}, "'v' is a list, not a tensor"),
    "a number as name": ({"w": torch.ones(2), 3: torch.ones(2)}, "3 is a Tensor"),
}


@pytest.mark.parametrize("value, word", CONTENTS.values(), ids=CONTENTS)
def test_a_file_without_a_state_dict_is_refused(tmp_path, value, word):
    torch.save(value, tmp_path / "x.pt")
    refused(
        tmp_path / "x.pt", word, "save module.state_dict()" if word[0] != "3" and "'v'" not in word else ""
    )
