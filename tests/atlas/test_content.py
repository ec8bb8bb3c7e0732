"""The content of a network: the same in every format, another after any change; stamps of files."""

from __future__ import annotations

import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from weightspace.atlas.content import content, fingerprint, stamp
from weightspace.checkpoint import reader, writer
from weightspace.net.errors import WeightspaceError

TENSORS = {"b.weight": torch.arange(6.0).view(2, 3), "a": torch.tensor([1.5, -2.0]), "n": torch.tensor(3)}


def test_the_content_is_the_same_in_every_format(tmp_path):
    save_file(TENSORS, tmp_path / "one.safetensors", metadata={"who": "me"})
    torch.save({"state_dict": dict(reversed(TENSORS.items())), "epoch": 3}, tmp_path / "two.pt")
    (tmp_path / "three").mkdir()
    writer.save(TENSORS, tmp_path / "three" / "model.safetensors", shard=10)
    keys = {content(reader.read(tmp_path / name)).key for name in ("one.safetensors", "two.pt", "three")}
    assert keys == {content(TENSORS).key}


CHANGES = {
    "a number": lambda t: t | {"a": torch.tensor([1.5, -2.0000002])},
    "a sign of zero": lambda t: t | {"b.weight": torch.where(t["b.weight"] == 0, -0.0, t["b.weight"])},
    "a shape": lambda t: t | {"b.weight": t["b.weight"].view(3, 2)},
    "a name": lambda t: {k.replace("b.", "c."): v for k, v in t.items()},
    "one less": lambda t: {k: v for k, v in t.items() if k != "n"},
    "a transposed one": lambda t: t | {"b.weight": t["b.weight"].flip(1)},
    "a dtype": lambda t: t | {"a": t["a"].double()},
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_is_another_content(change):
    one, other = content(TENSORS), content(CHANGES[change](TENSORS))
    assert one.key != other.key
    assert (one.numbers == other.numbers) == (change == "a dtype")
    assert (one.fingerprint == other.fingerprint) == (change not in ("a shape", "a name", "one less"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64])
def test_the_numbers_are_the_same_whatever_the_dtype(dtype):
    values = torch.tensor([0.5, -2.0, 0.0])
    cast, plain = content({"w": values.to(dtype)}), content({"w": values})
    assert cast.numbers == plain.numbers and cast.key != plain.key and cast.dtype != plain.dtype
    if dtype is torch.float64:
        assert content({"w": values.double() + 1e-12}).numbers != plain.numbers


def test_strides_devices_and_order_do_not_count():
    w = torch.arange(6.0).view(2, 3)
    assert content({"w": w.T.contiguous().T, "v": w[:, :2]}) == content({"v": w[:, :2].clone(), "w": w})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2, torch.complex64])
def test_what_diverged_is_refused(bad, dtype):
    with pytest.raises(WeightspaceError, match="NaN or infinity in 'w'"):
        content({"w": torch.tensor([1.0, bad]).to(dtype)})
    with pytest.raises(WeightspaceError, match="no tensors"):
        content({})


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(max_size=8), st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=4))
def test_a_fingerprint_is_of_names_and_shapes(shapes):
    assert fingerprint(shapes) == fingerprint(json.loads(json.dumps(dict(reversed(shapes.items())))))
    name = next(iter(shapes))
    assert fingerprint(shapes) != fingerprint(shapes | {name: [*shapes[name], 1]})
    assert fingerprint(shapes) != fingerprint(shapes | {name + "x": shapes[name]})


def test_odd_names_have_a_content():
    assert content({"\ud800": torch.zeros(1)}).key != content({"\ud801": torch.zeros(1)}).key


# ------------------------------------------------------------------ stamps


def test_a_stamp_is_of_all_files_and_sees_what_keeps_size_and_date(tmp_path):
    file = tmp_path / "a.safetensors"
    save_file(TENSORS, file)
    before = stamp(file)
    assert [*before] == ["a.safetensors"] and stamp(file) == before
    seen, raw = file.stat(), file.read_bytes()
    file.write_bytes(raw[:-4] + b"\0\0\0\1")
    os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert stamp(file) != before


def test_a_stamp_of_shards_names_them_all(tmp_path):
    writer.save(TENSORS, tmp_path / "model.safetensors", shard=10)
    names = {item.name for item in tmp_path.iterdir()}
    assert len(names) > 2
    for place in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert {*stamp(place)} == names
    before = stamp(tmp_path)
    shard = tmp_path / "model-00001-of-00003.safetensors"
    raw = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(raw)
    assert stamp(tmp_path) != before
    shard.unlink()
    with pytest.raises(WeightspaceError):
        stamp(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"w": "../w.safetensors"}}')
    with pytest.raises(WeightspaceError, match="outside of its folder"):
        stamp(index)
