"""Reading and writing checkpoints: round trips, lazy access, shards, and writes that fail half-way."""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import weakref
from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from weightspace.checkpoint.reader import Checkpoint, finite, read
from weightspace.checkpoint.refusal import CheckpointError
from weightspace.checkpoint.writer import save
from weightspace.net.net import Net

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.int8, torch.bool]
NEW = [torch.uint16, torch.float8_e4m3fn]
DTYPES += [*NEW, torch.uint8, torch.complex64]
SHAPES = [(), (0,), (3, 0, 2), (1,), (7,), (2, 3), (4, 1, 5)]


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def random(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (size,), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Equal names, dtypes, shapes and bits; NaN equals itself."""
    return set(a) == set(b) and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and bits(a[k]) == bits(b[k]) for k in a
    )


def hidden(folder: Path) -> list[str]:
    return [item.name for item in folder.iterdir() if item.name.startswith(".")]


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.ones(4, dtype=torch.bfloat16),
        "c": torch.tensor(7),
    }


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")
tensors = st.builds(random, st.sampled_from(DTYPES), st.sampled_from(SHAPES), st.integers(0, 99))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(names, tensors, min_size=1, max_size=6),
    st.dictionaries(names, names, max_size=3),
    st.sampled_from([1, 16, 10**9]),
)
def test_what_is_saved_is_read(tmp_path, state, metadata, shard):
    out = save(state, tmp_path / "x.safetensors", force=True, metadata=metadata, shard=shard)
    checkpoint = read(out)
    prefixed = any(all(n.startswith(p) and n != p for n in state) for p in ("module.", "_orig_mod."))
    assert prefixed or same(checkpoint, state)
    assert list(checkpoint.shapes.values()) == [t.shape for t in state.values()]
    assert list(checkpoint.dtypes.values()) == [t.dtype for t in state.values()]
    assert checkpoint.nbytes == sum(t.nbytes for t in state.values())
    assert checkpoint.metadata == {"format": "pt", **metadata}
    assert not hidden(tmp_path)
    if out.suffix == ".safetensors":
        assert same(safetensors.torch.load_file(out), state)
        assert int.from_bytes(out.read_bytes()[:8], "little") % 8 == 0


def test_the_round_trip_would_notice_one_flipped_bit(tmp_path, weights):
    out = save(weights, tmp_path / "x.safetensors")
    data = bytearray(out.read_bytes())
    data[-1] ^= 1
    out.write_bytes(data)
    assert not same(read(out), weights)


def test_files_of_the_reference_writer_are_read(tmp_path, weights):
    safetensors.torch.save_file(weights, tmp_path / "x.safetensors", metadata={"made": "there"})
    checkpoint = read(tmp_path / "x.safetensors")
    assert same(checkpoint, weights) and checkpoint.metadata == {"made": "there"}
    assert checkpoint["c"].dim() == 0 and "a" in checkpoint and "z" not in checkpoint
    with pytest.raises(KeyError):
        checkpoint["z"]


def test_every_tensor_is_aligned_to_its_item_size(tmp_path):
    out = save({"a": torch.ones(1, dtype=torch.bool), "b": torch.ones(3).double()}, tmp_path / "x.safetensors")
    length = int.from_bytes(out.read_bytes()[:8], "little")
    header = json.loads(out.read_bytes()[8 : 8 + length])
    assert header["b"]["data_offsets"][0] % 8 == 0 and list(header)[1:] == ["a", "b"]


def test_shared_strided_and_conjugated_tensors_are_written_as_their_values(tmp_path):
    base = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.complex64)
    state = {
        "a": base,
        "tied": base,
        "t": base.T,
        "row": base[1:2, ::2],
        "conj": base.conj(),
        "wide": base[:, :1],
    }
    state["wide"] = state["wide"].expand(3, 5)
    state["learned"] = nn.Parameter(base.real)
    checkpoint = read(save(state, tmp_path / "x.safetensors"))
    assert all(torch.equal(checkpoint[name], value.detach().resolve_conj()) for name, value in state.items())
    assert not checkpoint["learned"].requires_grad


def test_access_gives_fresh_memory(tmp_path, weights):
    torch.save(weights, tmp_path / "x.pt")
    for path in (save(weights, tmp_path / "x.safetensors"), tmp_path / "x.pt"):
        checkpoint = read(path)
        checkpoint["a"].zero_()
        assert same(checkpoint, weights)


def test_nothing_of_the_data_is_read_to_tell_the_shapes(tmp_path):
    path = tmp_path / "huge.safetensors"
    size = 1 << 33
    claims = {"a": (1, [0, 4]), "w": (size // 4, [4, 4 + size])}
    entries = {name: {"dtype": "F32", "shape": [n], "data_offsets": ends} for name, (n, ends) in claims.items()}
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + 4 + size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    checkpoint = read(path)
    assert checkpoint.shapes["w"] == (size // 4,) and checkpoint.nbytes == size + 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_a_file_that_changed_after_opening_is_noticed(tmp_path, weights):
    out = save(weights, tmp_path / "x.safetensors")
    checkpoint = read(out)
    save({**weights, "a": torch.zeros(9)}, out, force=True)
    with pytest.raises(CheckpointError, match="changed since it was opened"):
        checkpoint["a"]


class Lazy(Mapping[str, Tensor]):
    """Tensors made on access; counts how many are alive at once."""

    def __init__(self, count: int, size: int = 1000) -> None:
        self.count, self.size, self.alive, self.most = count, size, weakref.WeakSet(), 0

    def __getitem__(self, name: str) -> Tensor:
        tensor = torch.full((self.size,), float(name))
        self.alive.add(tensor)
        self.most = max(self.most, len(self.alive))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return map(str, range(self.count))

    def __len__(self) -> int:
        return self.count


@pytest.mark.parametrize("shard", [10**9, 8000])
def test_a_lazy_mapping_is_written_one_tensor_at_a_time(tmp_path, shard):
    lazy = Lazy(20)
    gc.collect()
    out = save(lazy, tmp_path / "x.safetensors", shard=shard)
    assert lazy.most <= 2
    assert same(read(out), Lazy(20))


def test_a_checkpoint_may_be_saved_over_the_file_it_is_read_from(tmp_path, weights):
    out = save(weights, tmp_path / "x.safetensors")
    checkpoint = read(out)
    save(ChainMap({"a": checkpoint["a"] + 1}, checkpoint), out, force=True)
    assert same(read(out), {**weights, "a": weights["a"] + 1})


def test_shards_have_the_names_and_the_index_of_hugging_face(tmp_path):
    state = {f"layer.{i}": torch.full((10,), float(i)) for i in range(5)}
    index = save(state, tmp_path, shard=80)
    files = [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    assert index == tmp_path / "model.safetensors.index.json"
    assert sorted(p.name for p in tmp_path.iterdir()) == [*files, index.name]
    table = json.loads(index.read_text())
    assert table["metadata"]["total_size"] == 200
    assert table["weight_map"] == {f"layer.{i}": files[i // 2] for i in range(5)}
    assert all(set(safetensors.torch.load_file(tmp_path / f)) <= set(state) for f in files)
    assert same(read(tmp_path), state) and same(read(index), state)


def test_a_sharded_file_is_read_under_the_name_it_was_saved_by(tmp_path):
    state = {"a": torch.ones(10), "b": torch.zeros(10)}
    save(state, tmp_path / "x.safetensors", shard=40)
    assert same(read(tmp_path / "x.safetensors"), state)


@pytest.mark.parametrize("first, then", [(40, 10**9), (10**9, 40), (40, 80), (80, 40), (40, 40)])
def test_force_leaves_nothing_of_the_old_checkpoint(tmp_path, first, then):
    save({f"a{i}": torch.ones(10) for i in range(4)}, tmp_path, shard=first)
    new = {f"b{i}": torch.zeros(10) for i in range(4)}
    (tmp_path / "model-of-mine.safetensors").write_bytes(b"mine")
    save(new, tmp_path, shard=then, force=True)
    assert same(read(tmp_path), new)
    index = tmp_path / "model.safetensors.index.json"
    expected = (
        {*json.loads(index.read_text())["weight_map"].values(), index.name} if then < 10**9 else {"model.safetensors"}
    )
    assert {p.name for p in tmp_path.iterdir()} == expected | {"model-of-mine.safetensors"}


# torch.save


NESTINGS = {
    "plain": lambda state: state,
    "training script": lambda state: {
        "epoch": 3,
        "model_state_dict": state,
        "optimizer": {"state": {0: torch.ones(2)}},
    },
    "lightning": lambda state: {
        "pytorch-lightning_version": "2.6",
        "state_dict": state,
        "callbacks": {},
        "lr": [0.1],
    },
    "nested twice": lambda state: {"model": {"state_dict": state, "model_args": {"width": (1, 2)}}},
    "bytes beside it": lambda state: {
        "model": state,
        "tag": b"\xff\x00",
        "size": torch.Size([2]),
        "d": torch.device("cpu"),
    },
}


@pytest.mark.parametrize("nest", NESTINGS.values(), ids=NESTINGS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("ending", [".pt", ".pth.tar"])
def test_what_torch_saved_is_read(tmp_path, nest, zipped, ending):
    base = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    state = {f"{dtype}": random(dtype, (2, 3), 5) for dtype in DTYPES if zipped or dtype not in NEW}
    state |= {
        "tied.1": base,
        "tied.2": base,
        "t": base.T,
        "part": base[1:3, ::2],
        "none": base[:0],
        "0d": base[0, 0],
    }
    state |= {"conj": random(torch.complex64, (3,), 2).conj()} if zipped else {}
    torch.save(
        nest({**state, "learned": nn.Parameter(base)}),
        tmp_path / f"x{ending}",
        _use_new_zipfile_serialization=zipped,
    )
    checkpoint = read(tmp_path / f"x{ending}")
    assert same(checkpoint, {**{k: v.resolve_conj() for k, v in state.items()}, "learned": base})
    assert checkpoint.nbytes == sum(t.nbytes for t in checkpoint.values())


def test_a_training_checkpoint_says_what_was_left_out(tmp_path):
    whole = {"epoch": 3, "state_dict": {"w": torch.ones(2)}, "optimizer_states": [{}], "version": "2.6"}
    torch.save(whole, tmp_path / "x.ckpt")
    checkpoint = read(tmp_path / "x.ckpt")
    assert checkpoint.metadata == {"epoch": "3", "version": "2.6"}
    assert checkpoint.notes == ("took 'state_dict', left out 'optimizer_states'",)
    assert read(save(checkpoint, tmp_path)).metadata == {"format": "pt", "epoch": "3", "version": "2.6"}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_a_uniform_wrapper_prefix_is_removed_and_noted(tmp_path, weights, prefix):
    torch.save({prefix + name: t for name, t in weights.items()}, tmp_path / "x.pt")
    checkpoint = read(tmp_path / "x.pt")
    assert same(checkpoint, weights) and len(checkpoint.notes) == prefix.count(".")


@pytest.mark.parametrize(
    "names", [["module.a", "n_averaged"], ["module.", "module.a"], ["a.module.b", "a.c"], ["a.b", "a._orig_mod.b"]]
)
def test_any_other_prefix_stays(tmp_path, names):
    state = {name: torch.ones(1) for name in names}
    checkpoint = read(save(state, tmp_path))
    assert same(checkpoint, state) and checkpoint.notes == ()


def test_a_network_comes_back_from_a_file(tmp_path):
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).double().eval()
    net, x = Net.of(module), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    torch.save(module.state_dict(), tmp_path / "x.pt")
    for path in (tmp_path / "x.pt", save(net.tensors, tmp_path / "x.safetensors")):
        assert torch.equal(Net.of(nn.Module.double(module)).load(read(path))(x), net(x))


@pytest.mark.parametrize("sharded", [False, True])
def test_a_folder_of_torch_files_is_read(tmp_path, weights, sharded):
    files = {"pytorch_model.bin": weights}
    if sharded:
        files = {
            "pytorch_model-1.bin": {"a": weights["a"]},
            "pytorch_model-2.bin": {k: weights[k] for k in "bc"},
        }
        table = {name: file for file, part in files.items() for name in part}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": table}))
    for file, part in files.items():
        torch.save(part, tmp_path / file)
    assert same(read(tmp_path), weights)
    save({"a": torch.zeros(1)}, tmp_path)
    assert list(read(tmp_path)) == ["a"], "safetensors come first"


def test_the_hub_cache_may_link_its_snapshots_to_its_blobs(tmp_path, weights):
    save(weights, tmp_path / "made.safetensors", shard=8)
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "1f", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(sorted(tmp_path.glob("made*"))):
        file.rename(blobs / str(i))
        (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    assert same(read(snapshot / "made.safetensors.index.json"), weights)


# finite


def test_finite_names_the_tensors(weights):
    finite(weights)
    finite({"i": torch.tensor(3), "b": torch.tensor(True), "f8": torch.ones(3).to(torch.float8_e4m3fn)})
    late = torch.zeros((1 << 22) + 5)
    late[-1] = torch.nan
    bad = {"late": late, "ok": torch.ones(1), "inf": torch.tensor([[1.0, -torch.inf]]).bfloat16()}
    with pytest.raises(CheckpointError, match=r"in 'late', 'inf', 'f8';"):
        finite({**bad, "f8": torch.tensor(torch.nan).to(torch.float8_e4m3fn)})


# writes that fail


class Failing(Lazy):
    """The second time that the last tensor is asked for, `error` is raised: the write is half done."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(3)
        self.error, self.asked = error, 0

    def __getitem__(self, name: str) -> Tensor:
        self.asked += name == "2"
        if self.asked == 2:
            raise self.error
        return super().__getitem__(name)


@pytest.mark.parametrize("shard", [10**9, 4000], ids=["one file", "shards"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no"), CheckpointError("no")], ids=repr)
def test_an_interrupted_write_leaves_the_old_file(tmp_path, weights, shard, error):
    save(weights, tmp_path, shard=shard // 1000)
    with pytest.raises(type(error)):
        save(Failing(error), tmp_path, force=True, shard=shard)
    assert same(read(tmp_path), weights) and not hidden(tmp_path)


class Full:
    """A file on a disk that has room for `room[0]` more bytes."""

    def __init__(self, file, room: list[int]) -> None:
        self.file, self.room = file, room

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.file.close()

    def write(self, data) -> int:
        self.room[0] -= memoryview(data).nbytes
        if self.room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)


@pytest.mark.parametrize("then", [torch.ones(3), torch.ones(2).double()], ids=["shape", "dtype"])
def test_a_tensor_that_changes_between_the_two_passes_is_refused(tmp_path, then):
    class Changing(Failing):
        def __getitem__(self, name: str) -> Tensor:
            try:
                return super().__getitem__(name)
            except KeyError:
                return then

    with pytest.raises(CheckpointError, match="'2' changed while it was written"):
        save(Changing(KeyError("2")), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("room", [0, 5000])
@pytest.mark.parametrize("shard", [10**9, 4000], ids=["one file", "shards"])
def test_a_full_disk_leaves_the_old_file(tmp_path, weights, monkeypatch, room, shard):
    save(weights, tmp_path)
    plain, disk = Path.open, [room]
    full = lambda self, mode: Full(plain(self, mode), disk) if mode == "xb" else plain(self, mode)  # noqa: E731
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(
        CheckpointError, match=r"could not be written \(No space left on device\); free space"
    ) as caught:
        save(Lazy(3), tmp_path, force=True, shard=shard)
    assert "\n" not in str(caught.value)
    assert same(read(tmp_path), weights) and len(list(tmp_path.iterdir())) == 1


def test_the_data_is_on_the_disk_before_the_name_is_given(tmp_path, weights, monkeypatch):
    events = []
    for name in ("fsync", "replace"):
        plain = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, plain=plain: (events.append(name), plain(*args)))
    save(weights, tmp_path, shard=8)
    assert events == ["fsync"] * 4 + ["replace"] * 4 + ["fsync"]


def test_a_real_limit_on_file_size_leaves_the_old_file(tmp_path, weights):
    out = save(weights, tmp_path / "x.safetensors")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match="could not be written"):
            save({"w": torch.ones(1 << 20)}, out, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert same(read(out), weights) and not hidden(tmp_path)


def test_a_stop_between_two_renames_never_mixes_two_checkpoints(tmp_path, monkeypatch):
    save({f"w{i}": torch.ones(10) for i in range(3)}, tmp_path, shard=40)
    plain, calls = os.replace, []

    def stop(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        plain(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        save({f"w{i}": torch.zeros(10) for i in range(3)}, tmp_path, shard=40, force=True)
    with pytest.raises(CheckpointError, match="no checkpoint in this folder"):
        read(tmp_path)


KILLED = """
import sys, time, torch
from weightspace.checkpoint import save

class Slow(dict):
    seen = 0
    def __getitem__(self, name):
        Slow.seen += name == "b"
        if Slow.seen == 2:
            print("half", flush=True)
            time.sleep(60)
        return dict.__getitem__(self, name)

save(Slow(a=torch.ones(100_000), b=torch.ones(9)), sys.argv[1], force=True)
"""


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path, weights):
    out = save(weights, tmp_path / "x.safetensors")
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert same(read(out), weights)
    (left,) = hidden(tmp_path)
    assert left.startswith(".x.safetensors.") and left.endswith(".tmp")
    save(weights, out, force=True)
    assert isinstance(read(out), Checkpoint)
