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

import weightspace
from weightspace.checkpoint import pickled
from weightspace.checkpoint.reader import read
from weightspace.checkpoint.refusal import CheckpointError
from weightspace.checkpoint.writer import save

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
    for word in (path.name[:1], *words):
        assert word in line, f"{word!r} not in {line!r}"


# crafting: pickles are only written here, never loaded


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Stateful:
    """Pickles as a size with an inner state."""

    def __reduce__(self):
        return torch.Size, ((1,),), {"a": 1}


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
    refused(write(form, tmp_path / f"x{ending}", value), "asks to run 'io.open'", "was not run", "safetensors")
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
    "module": (torch.nn.Linear(1, 1), "run 'torch.nn.modules.linear.Linear'"),
    "bytearray": (Call(bytearray, HUGE), "run '__builtin__.bytearray'"),
    "tensor class": (Call(torch.FloatTensor, HUGE), "run 'torch.FloatTensor'"),
    "layout": (
        Call(torch.serialization._get_layout, "torch.strided"),
        "run 'torch.serialization._get_layout'",
    ),
    "storage": (Call(torch.UntypedStorage, HUGE), "calls torch.storage UntypedStorage"),
    "a codec that grows": (Call(_codecs.encode, "aa", "utf-32"), "calls _codecs encode"),
    "a codec of what is no text": (Call(_codecs.encode, [1], "latin1"), "calls _codecs encode"),
    "parameter of no tensor": (
        Call(_rebuild_parameter, [1], True, OrderedDict()),
        "calls torch._utils _rebuild",
    ),
    "inner state": (Stateful(), "pickle operation BUILD"),
}


@both
@pytest.mark.parametrize("value, word", CALLS.values(), ids=CALLS)
def test_calls_other_than_of_plain_tensors_are_refused(tmp_path, form, value, word):
    refused(write(form, tmp_path / "x.pt", {"w": tensor(), "v": value}), word)


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
    many = write_zip(tmp_path / "x.pt", craft({"w": tensor()}), zipfile.ZIP_DEFLATED, **{"data/1": bytes(1 << 25)})
    assert many.stat().st_size < 50_000
    refused(many, "compressed zip", "33,55")
    refused(write_zip(tmp_path / "x.pt", craft({"w": tensor()}), zipfile.ZIP_DEFLATED), "compressed zip")


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
    "huge": ([Stored(HUGE)], "claim"),
    "huge integer": ([Stored(10**300)], "10^20 or more"),
    "negative": ([Stored(-4)], "unknown form"),
    "unknown": ([Stored(5, key="7")], {"zip": "'7' claims 20 bytes, its record has 0", "legacy": "has 24"}),
    "two sizes": ([Stored(1), Stored(4)], "two sizes"),
    "many times": ([Stored(10**6, key=str(i)) for i in range(1000)], "4,000,"),
    "quantised": ([Stored(4, kind=torch.QInt8Storage)], "QInt8Storage"),
    "key of lists": ([Stored(4, key=[1])], "unknown form"),
    "module": ([Stored(4, word="module")], "unknown form"),
    "view": ([Stored(4, view=("1", 0, 4))], "unknown form"),
}


@pytest.mark.parametrize("stored, word", STORAGES.values(), ids=STORAGES)
@both
def test_a_storage_that_claims_what_is_not_there_is_refused(tmp_path, form, stored, word):
    claims = {str(i): Call(_rebuild_tensor_v2, s, 0, (1,), (1,), False, OrderedDict()) for i, s in enumerate(stored)}
    refused(write(form, tmp_path / "x.pt", claims), word if isinstance(word, str) else word[form])


def test_the_older_form_must_hold_the_data_of_every_storage(tmp_path):
    assert list(read(write_legacy(tmp_path / "x.pt", {"w": tensor()}))) == ["w"]
    refused(write_legacy(tmp_path / "x.pt", {"w": tensor()}, keys=[]), "is not there")
    refused(write_legacy(tmp_path / "x.pt", {"w": tensor()}, storage=12), "claim 24 bytes, the file has 20")


def test_the_attacks_are_real_where_nothing_looks_at_the_file_first(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "x.pt", craft({"v": tensor(), "w": CLAIMS["expanded"]}))
    assert path.stat().st_size < 2000
    refused(path, "10")
    monkeypatch.setattr(pickled, "_audit_zip", lambda path: None)
    assert read(path).nbytes == 4 * HUGE + 16


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
    assert "left out 'v'" in read(write(form, tmp_path / "x.pt", {"model": {"w": tensor()}, "v": bomb(list)})).notes[0]
    deep = b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."
    refused(write_zip(tmp_path / "x.pt", deep) if form == "zip" else write_legacy(tmp_path / "x.pt", deep), "")
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


@pytest.mark.parametrize("kind, value", dense_only().items(), ids=lambda value: value if type(value) is str else "")
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
    "no network": ({"epoch": 3, "optim": {"w": torch.ones(2)}}, "only 'epoch', 'optim'"),
    "a list among tensors": ({"w": torch.ones(2), "v": [1]}, "entry 'v' is a list, wanted a tensor"),
    "a number as name": ({"w": torch.ones(2), 3: torch.ones(2)}, "entry 3 is a Tensor"),
}


@pytest.mark.parametrize("value, word", CONTENTS.values(), ids=CONTENTS)
def test_a_file_without_a_state_dict_is_refused(tmp_path, value, word):
    torch.save(value, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", word, "save module.state_dict()")


# safetensors


def write_safetensors(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(shape, offsets, dtype="F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


W = entry([4], [0, 16])
TWICE = b'{"w":{"dtype":"F32","shape":[4],"shape":[4],"data_offsets":[0,16]}}'
HEADERS = {
    "header beyond the file": ({"w": W}, "truncated", 10**6),
    "header of 2^63 bytes": ({"w": W}, "claims a header of 9,223,372,036,854,775,808 bytes", 2**63),
    "header too large": (b"{}" + b" " * 25_000_000, "limit 25,000,000"),
    "too many": ({str(i): entry([0], [0, 0]) for i in range(100_002)}, "100,002 tensors"),
    "name twice": (b'{"w":%s,"w":%s}' % ((json.dumps(W).encode(),) * 2), "'w' stands twice"),
    "key twice": (TWICE, "'shape' stands twice"),
    "huge": ({"w": entry([2**40], [0, 2**42])}, "claims [1099511627776] F32"),
    "huge shape only": ({"w": entry([2**40], [0, 16])}, "claims [1099511627776] F32"),
    "overflow": ({"w": entry([2**32, 2**32, 4], [0, 16])}, "claims"),
    "endless empty": ({"w": W, "v": entry([0, 2**62], [16, 16])}, "claims [0, 4611686018427387904]"),
    "dimensions": ({"w": entry([1] * 65 + [4], [0, 16])}, "claims"),
    "huge integer": ({"w": entry([10**300], [0, 16])}, "10^20 or more"),
    "negative": ({"w": entry([-4], [0, -16])}, "no proper shape"),
    "bool": ({"w": entry([4, True], [0, 16])}, "no proper shape"),
    "float": ({"w": entry([4.0], [0, 16])}, "no proper shape"),
    "three offsets": ({"w": entry([4], [0, 16, 16])}, "no proper shape"),
    "no mapping": ({"w": [1]}, "no proper shape"),
    "backwards": ({"w": entry([4], [16, 0])}, "claims"),
    "overlap": ({"w": W, "v": entry([2], [4, 12])}, "damaged"),
    "hole": ({"w": entry([2], [8, 16])}, "damaged"),
    "trailing bytes": ({"w": entry([2], [0, 8])}, "damaged"),
    "unknown dtype": ({"w": entry([4], [0, 16], "Q4")}, "unknown dtype 'Q4'"),
    "dtype of another type": ({"w": entry([4], [0, 16], ["F32"])}, "unknown dtype"),
    "metadata of numbers": ({"w": W, "__metadata__": {"a": 1}}, "__metadata__"),
    "metadata of text": ({"w": W, "__metadata__": "a"}, "__metadata__"),
    "list": ([W], "JSON is a list"),
    "no JSON": (b"{'w'", "malformed JSON"),
    "no text": (b'{"\xff": 1}', "malformed JSON"),
    "deep": (b"[" * 100_000, "malformed JSON"),
    "long integer": (b'{"w": ' + b"9" * 5000 + b"}", "malformed JSON"),
    "screen codes in a name": ({"\x1b[2J\n\u202e": [1]}, "no proper shape"),
}


@pytest.mark.parametrize("lie", HEADERS.values(), ids=HEADERS)
def test_a_header_that_lies_is_refused(tmp_path, lie):
    header, word, *length = lie
    refused(write_safetensors(tmp_path / "x.safetensors", header, bytes(16), *length), word)


def test_the_same_header_without_the_lie_is_read(tmp_path):
    header = {"../../w": W, "/etc/v": entry([0, 5], [16, 16])}
    path = write_safetensors(tmp_path / "x.safetensors", header, bytes(16))
    assert {name: t.shape for name, t in read(path).items()} == {"../../w": (4,), "/etc/v": (0, 5)}
    refused(write_safetensors(tmp_path / "x.safetensors", {}), "no tensors")


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".bin"])
def test_a_file_cut_short_anywhere_is_refused(tmp_path, ending):
    path = tmp_path / f"x{ending}"
    if ending == ".safetensors":
        save({"w": torch.ones(3), "b": torch.ones(2, 2)}, path)
    else:
        torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=ending == ".pt")
    data = path.read_bytes()
    for length in range(0, len(data), 1 if ending == ".safetensors" else 7):
        path.write_bytes(data[:length])
        refused(path, "" if length else "empty file (0 bytes)")


# an index


def index(folder: Path, weight_map: object, **more) -> None:
    text = json.dumps({"weight_map": weight_map, **more})
    (folder / "model.safetensors.index.json").write_text(text)


@pytest.fixture
def sharded(tmp_path) -> Path:
    folder = tmp_path / "inside"
    folder.mkdir()
    save({"w": torch.ones(2)}, tmp_path / "outside.safetensors")
    save({"w": torch.ones(2)}, folder / "x.safetensors")
    (folder / "link.safetensors").symlink_to("../outside.safetensors")
    (folder / "inner.safetensors").symlink_to("x.safetensors")
    return folder


MAPS = {
    "parent": ({"w": "../outside.safetensors"}, "not a plain file name"),
    "inside and out": ({"w": "a/../../outside.safetensors"}, "not a plain file name"),
    "absolute": ({"w": "/etc/x.safetensors"}, "not a plain file name"),
    "Windows": ({"w": "..\\outside.safetensors"}, "not a plain file name"),
    "null": ({"w": "x\0.safetensors"}, "not a plain file name"),
    "empty": ({"w": ""}, "not a plain file name"),
    "dots": ({"w": ".."}, "not a plain file name"),
    "itself": ({"w": "model.safetensors.index.json"}, "not a plain file name"),
    "pickle": ({"w": "x.pkl"}, "not a plain file name"),
    "link that leaves": ({"w": "link.safetensors"}, "link that leaves"),
    "missing": ({"w": "y.safetensors"}, "shard 'y.safetensors' is missing"),
    "name that the shard lacks": ({"w": "x.safetensors", "v": "x.safetensors"}, "'x.safetensors' about 'v'"),
    "name that the index lacks": ({"v": "x.safetensors"}, "about 'v', 'w'"),
    "no mapping": (["x.safetensors"], "no 'weight_map'"),
    "number": ({"w": 3}, "no 'weight_map'"),
    "nothing": ({}, "no tensors"),
}


@pytest.mark.parametrize("weight_map, word", MAPS.values(), ids=MAPS)
def test_an_index_that_lies_is_refused(sharded, weight_map, word):
    index(sharded, weight_map)
    refused(sharded, word)


def test_the_same_index_without_the_lie_is_read(sharded):
    index(sharded, {"w": "inner.safetensors"}, metadata={"total_size": 8, "made": "here"})
    assert read(sharded)["w"].tolist() == [1, 1] and read(sharded).metadata == {
        "format": "pt",
        "made": "here",
    }


def test_an_index_that_is_no_proper_json_is_refused(tmp_path):
    texts = {
        "{": "malformed JSON",
        "[]": "JSON is a list",
        '{"weight_map":{},"weight_map":{}}': "stands twice",
    }
    for text, word in {**texts, " " * 25_000_001: "more than 25,000,000 bytes"}.items():
        (tmp_path / "model.safetensors.index.json").write_text(text)
        refused(tmp_path / "model.safetensors.index.json", word)


# paths, and what is not written


def test_paths_that_are_no_checkpoint_are_refused(tmp_path):
    refused(tmp_path / "missing.safetensors", "no such file or folder")
    refused(tmp_path, "no checkpoint in this folder, which holds nothing")
    (tmp_path / "config.json").touch()
    refused(tmp_path, "'config.json'", "model.safetensors")
    for name in ("x.npz", "x", "x.zip", "x.h"):
        (tmp_path / name).write_bytes(b"PK")
        refused(tmp_path / name, "unknown ending")
    refused(tmp_path / "x\n\x1b[2J.safetensors", "no such file")
    os.mkfifo(tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "not a regular file")


UNWRITABLE = {
    "nothing": ({}, "no tensors to write"),
    "the reserved name": ({"__metadata__": torch.ones(1)}, "'__metadata__'"),
    "a dtype that safetensors lacks": ({"w": torch.ones(1, dtype=torch.complex128)}, "torch.complex128"),
    "half a character": ({"\ud800": torch.ones(1)}, "not valid Unicode"),
    "too many": ({str(i): torch.ones(0) for i in range(100_001)}, "100,001 tensors"),
}


@pytest.mark.parametrize("state, word", UNWRITABLE.values(), ids=UNWRITABLE)
def test_what_cannot_be_kept_is_not_written(tmp_path, state, word):
    with pytest.raises(CheckpointError, match=word) as caught:
        save(state, tmp_path / "x.safetensors")
    assert str(caught.value).isprintable() and not list(tmp_path.iterdir())


def test_places_that_cannot_be_written_are_refused(tmp_path):
    cases = {
        "missing/x.safetensors": "does not exist",
        "x.pt": "only .safetensors",
        "out": "only .safetensors",
    }
    for name, word in cases.items():
        with pytest.raises(CheckpointError, match=word):
            save({"w": torch.ones(2)}, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("first, then", [(10**9, 10**9), (10**9, 8), (8, 10**9), (8, 8)])
def test_what_exists_is_not_overwritten_without_force(tmp_path, first, then):
    old, new = {"a": torch.ones(2), "b": torch.ones(2)}, {"a": torch.zeros(2), "b": torch.zeros(2)}
    save(old, tmp_path / "x.safetensors", shard=first)
    before = {item.name: item.read_bytes() for item in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=r"exists; choose another name, or overwrite with force"):
        save(new, tmp_path / "x.safetensors", shard=then)
    assert before == {item.name: item.read_bytes() for item in tmp_path.iterdir()}


# chance


OPCODES = st.sampled_from(b"(.01GIJKLMNQRSTUVXabcdeghijklopqrstu}]\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b)")
EDIT = st.tuples(st.integers(0, 10**4), st.one_of(st.integers(0, 255), OPCODES), st.sampled_from("=+-"))
SEED = {"w": torch.ones(3), "v": torch.ones(2, 2, dtype=torch.bfloat16), "n": torch.tensor(3)}


def edited(data: bytes, edits) -> bytes:
    changed = bytearray(data)
    for place, value, how in edits:
        place %= len(changed)
        changed[place : place + (how != "+")] = [] if how == "-" else [value]
    return bytes(changed)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EDIT, max_size=4), st.sampled_from(["safetensors", "header", "zip", "pickle", "legacy"]))
def test_no_damage_does_more_than_be_refused(tmp_path, edits, kind):
    path = tmp_path / ("x.safetensors" if kind in ("safetensors", "header") else "x.pt")
    if path.suffix == ".safetensors":
        save(SEED, path, force=True)
    else:
        torch.save({"state_dict": SEED, "epoch": 3}, path, _use_new_zipfile_serialization=kind != "legacy")
    data = path.read_bytes()
    if kind == "header":  # its length set right, so that more than the length is tried
        length = 8 + int.from_bytes(data[:8], "little")
        write_safetensors(path, edited(data[8:length], edits), data[length:])
    elif kind == "pickle":  # its checksum set right
        with zipfile.ZipFile(path) as archive:
            records = {name.removeprefix("x/"): archive.read(name) for name in archive.namelist()}
        write_zip(path, edited(records.pop("data.pkl"), edits), **records)
    else:
        path.write_bytes(edited(data, edits))
    try:
        assert all(tensor.nbytes <= path.stat().st_size for tensor in read(path).values())
    except CheckpointError as error:
        assert edits and str(error).isprintable()


def test_the_source_opens_nothing_that_could_run():
    banned = [
        "weights_only=False",
        "pickle.load",
        "pickle.Unpickler",
        "jit.load",
        "allow_pickle=True",
        "safe_globals",
    ]
    sources = list(Path(weightspace.__file__).parent.rglob("*.py"))
    assert len(sources) > 3
    found = [(path.name, word) for path in sources for word in banned if word in path.read_text()]
    assert found == [("calls.py", "pickle.load")]  # of what comes from our own processes, never from a file
