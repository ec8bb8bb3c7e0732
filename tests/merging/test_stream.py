"""A merge is written whole or not at all, in bounded memory, and goes on where it was stopped, to the same bytes."""

import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.checkpoint import files, writer
from weightspace.checkpoint.files import FileNote
from weightspace.merging import Recipe, part, planned, write
from weightspace.merging.merging import computed

SHARD = 850
RECIPE = Recipe("linear", weights=[2, 1, 1])


def network(seed, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(seed)
    held = {f"layers.{i}.w": torch.randn(20, 10, generator=generator).to(dtype) for i in range(4)}
    return held | {"wide": torch.randn(20, generator=generator), "n": torch.tensor(seed), "none": torch.ones(0, 3)}


def parents(folder, number=3, dtype=torch.bfloat16):
    """Networks as files."""
    folder.mkdir(exist_ok=True)
    for k in range(number):
        if not (folder / f"{k}.safetensors").exists():
            ws.checkpoint.save(network(k, dtype), folder / f"{k}.safetensors", metadata={"run": str(k)})
    return [ws.checkpoint.read(folder / f"{k}.safetensors") for k in range(number)]


def bytes_in(folder):
    return {item.name: item.read_bytes() for item in sorted(folder.iterdir())}


def merged(folder, out, recipe=RECIPE, **more):
    return write(planned(parents(folder), None, recipe), out, **{"shard": SHARD, **more})


@pytest.fixture
def whole(tmp_path):
    """The bytes of the merge that nothing interrupts."""
    merged(tmp_path / "in", tmp_path / "whole")
    return bytes_in(tmp_path / "whole")


def in_child(call):
    """The exit status of a forked process that makes the call: 0, 1 for an exception, or minus its signal."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            call()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def stopping(call, after, stop):
    """Make the call; `stop` when `after` shards are finished."""
    write_all = files.write_all

    def counted(written, **more):
        if any(target.suffix == ".safetensors" for target in written):
            counted.shards += 1
            if counted.shards > after:
                stop()
        write_all(written, **more)

    counted.shards = 0
    files.write_all = counted
    try:
        call()
    finally:
        files.write_all = write_all


def raises(error):
    raise error


def test_the_file_is_what_saving_the_merged_tensors_gives(tmp_path, whole):
    plan = planned(parents(tmp_path / "in"), None, RECIPE)
    held = computed(plan)
    for name, tensor in held.items():
        sources = [p[name].float() for p in plan.parents]
        expected = 0.5 * sources[0] + 0.25 * (sources[1] + sources[2]) if name != "n" else sources[0]
        assert tensor.dtype == plan.parents[0][name].dtype
        assert torch.allclose(tensor.float(), expected, rtol=2**-8, atol=1e-6)
    folder = tmp_path / "saved"
    folder.mkdir()
    path = ws.checkpoint.save(held, folder, shard=SHARD, metadata={"run": "0"})
    assert bytes_in(folder) == {name: data for name, data in whole.items() if name != "merge.json"}
    assert len(whole) == 5 and path.name == "model.safetensors.index.json"
    alone = merged(tmp_path / "in", tmp_path / "one.safetensors", shard=10**9, metadata={})
    assert alone == tmp_path / "one.safetensors" and (tmp_path / "one.merge.json").exists()
    found = ws.checkpoint.read(alone)
    assert found.metadata == {"format": "pt"} and all(torch.equal(found[name], held[name]) for name in held)
    assert not [item for item in tmp_path.iterdir() if item.name.startswith(".")]


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
@pytest.mark.parametrize("block", [1, 7, 64])
def test_pieces_and_shards_do_not_change_the_numbers(tmp_path, monkeypatch, method, block):
    *tops, base = parents(tmp_path / "in")
    plan = planned(tops, base, Recipe(method, [0.3, 0.9], dtype=torch.float32))
    expected = computed(plan)
    monkeypatch.setattr(part, "BLOCK", block)
    monkeypatch.setattr(part, "_CHUNK", 3 * block)
    for shard in (1, 1500, 10**9):
        found = ws.checkpoint.read(write(plan, tmp_path / f"{shard}", shard=shard))
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("how", ["an exception", "a kill"])
def test_a_merge_that_was_killed_goes_on_to_the_same_bytes(tmp_path, whole, after, how):
    call = partial(merged, tmp_path / "in", tmp_path / "out")
    end = {
        "an exception": partial(raises, MemoryError()),
        "a kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    }[how]
    assert in_child(partial(stopping, call, after, end)) == {"an exception": 1, "a kill": -signal.SIGKILL}[how]
    hidden = tmp_path / ".out.merge"
    kept = sorted(hidden.glob("*.safetensors")) if hidden.exists() else []
    assert len(kept) == after and not list((tmp_path / "out").glob("*"))
    before = [path.stat().st_ino for path in kept]
    told = []
    assert (
        call(progress=lambda done, total: told.append((done, total))) == tmp_path / "out/model.safetensors.index.json"
    )
    assert bytes_in(tmp_path / "out") == whole and not hidden.exists()
    assert [(tmp_path / "out" / path.name).stat().st_ino for path in kept] == before, (
        "finished shards are not written anew"
    )
    assert told == sorted(told) and told[-1][0] == told[-1][1] == sum(t.nbytes for t in network(0).values())


def test_a_kill_in_the_middle_of_a_shard_leaves_only_finished_ones(tmp_path, whole, monkeypatch):
    calls, bytes_of = [], writer.bytes_of

    def dying(tensor):
        calls.append(tensor)
        return bytes_of(tensor) if len(calls) < 4 else os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(writer, "bytes_of", dying)
    assert in_child(lambda: merged(tmp_path / "in", tmp_path / "out")) == -signal.SIGKILL
    assert len(list((tmp_path / ".out.merge").glob("*.safetensors"))) == 1
    monkeypatch.undo()
    merged(tmp_path / "in", tmp_path / "out")
    assert bytes_in(tmp_path / "out") == whole


@pytest.mark.parametrize("moves", range(6))
def test_a_kill_between_the_last_moves_is_made_good(tmp_path, whole, moves):
    """Also where an earlier result is being replaced."""
    for out in (tmp_path / "new", tmp_path / "old"):
        if out.name == "old":
            merged(tmp_path / "in", out, Recipe("linear"), shard=10**9)
        left, replace = [moves], os.replace

        def dying(source, target, out=out, left=left, replace=replace):
            if Path(target).parent == out:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        files.os.replace = dying
        try:
            code = in_child(lambda out=out: merged(tmp_path / "in", out, force=True))
        finally:
            files.os.replace = replace
        assert code == (0 if moves == 5 else -signal.SIGKILL)
        if code:
            merged(tmp_path / "in", out, force=out.name == "old")
        assert bytes_in(out) == whole


def test_another_recipe_and_other_parents_begin_anew(tmp_path, whole):
    call = partial(merged, tmp_path / "in", tmp_path / "out")

    def interrupted():
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert in_child(partial(stopping, call, 2, partial(raises, MemoryError()))) == 1
        assert len(list((tmp_path / ".out.merge").glob("*.safetensors"))) == 2

    interrupted()
    other = Recipe("linear", weights=[1, 1, 1])
    merged(tmp_path / "in", tmp_path / "out", other)
    merged(tmp_path / "in", tmp_path / "new", other)
    assert bytes_in(tmp_path / "out") == bytes_in(tmp_path / "new") != whole
    interrupted()
    ws.checkpoint.save(network(9), tmp_path / "in" / "1.safetensors", force=True)
    call()
    found = ws.checkpoint.read(tmp_path / "out")
    expected = computed(planned(parents(tmp_path / "in"), None, RECIPE))
    assert bytes_in(tmp_path / "out") != whole and all(torch.equal(found[name], expected[name]) for name in expected)


def test_ctrl_c_keeps_finished_shards_and_says_so(tmp_path, whole):
    call = partial(merged, tmp_path / "in", tmp_path / "out")
    with pytest.raises(KeyboardInterrupt), pytest.warns(FileNote, match="1 of 3 shards are kept, and the same call"):
        stopping(call, 1, partial(raises, KeyboardInterrupt()))
    assert not (tmp_path / "out").exists()
    call()
    assert bytes_in(tmp_path / "out") == whole
    with pytest.raises(KeyboardInterrupt), warnings.catch_warnings():
        warnings.simplefilter("error")
        stopping(partial(merged, tmp_path / "in", tmp_path / "other"), 0, partial(raises, KeyboardInterrupt()))
    held = planned([network(0), network(1)])
    with pytest.raises(KeyboardInterrupt), warnings.catch_warnings():
        warnings.simplefilter("error")
        stopping(lambda: write(held, tmp_path / "other", shard=SHARD), 2, partial(raises, KeyboardInterrupt()))
    assert not [item.name for item in tmp_path.iterdir() if "other" in item.name]


def test_a_full_disk_is_one_line(tmp_path, whole, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    call = partial(merged, tmp_path / "in", tmp_path / "out")
    line = (
        r"out: could not be written .No space left on device.; 2 of 3 shards are kept, .* goes on; free space and call"
    )
    with pytest.raises(ws.CheckpointError, match=line):
        stopping(call, 2, partial(raises, full))
    behind = writer._Behind
    with pytest.raises(ws.CheckpointError, match=line), Path("/dev/full").open("wb", buffering=0) as device:
        monkeypatch.setattr(writer, "_Behind", lambda file: behind(device))
        call()
    monkeypatch.undo()
    call()
    assert bytes_in(tmp_path / "out") == whole
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 1000))
    with pytest.raises(ws.CheckpointError, match="needs [0-9,]+ bytes and 1,000 are free; free space"):
        merged(tmp_path / "in", tmp_path / "more")
    assert not [item.name for item in tmp_path.iterdir() if "more" in item.name]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_leaves_nothing_and_names_the_file(tmp_path, bad):
    parents(tmp_path / "in")
    held = network(1)
    held["layers.3.w"][19, 9] = bad
    ws.checkpoint.save(held, tmp_path / "in" / "1.safetensors", force=True)
    with pytest.raises(ws.WeightspaceError, match="NaN or infinity in 'layers.3.w' of .*1.safetensors"):
        merged(tmp_path / "in", tmp_path / "out")
    held = {"w": torch.ones(3), "only": torch.full((3,), bad)}
    with pytest.raises(ws.WeightspaceError, match="'only' of parent 2"):
        write(planned([{"w": torch.ones(3)}, held]), tmp_path / "out")
    assert [item.name for item in tmp_path.iterdir()] == ["in"]


def test_numbers_that_the_dtype_cannot_hold_are_refused(tmp_path):
    large = {"w": torch.full((3,), 6e4).half()}
    with pytest.raises(ws.WeightspaceError, match="'w' has numbers that float16 cannot hold"):
        write(planned([large] * 2, None, Recipe(options={"normalize": 0})), tmp_path / "out.safetensors")
    with pytest.raises(ws.WeightspaceError, match="NaN or infinity in 'w' of the result of linear"):
        write(planned([{"w": torch.full((3,), 1e38)}] * 4, None, Recipe(options={"normalize": 0})), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("large, dtype", [(3.4e38, torch.bfloat16), (1e300, torch.float32), (1e5, torch.float16)])
def test_no_number_becomes_infinite_where_it_is_rounded(tmp_path, large, dtype):
    only = {"w": torch.ones(3), "only": torch.full((3,), large, dtype=torch.float64 if large > 1e39 else torch.float32)}
    for parents in ([only, {"w": torch.ones(3)}], [only, only]):
        with pytest.raises(ws.WeightspaceError, match="'only'"):
            write(planned(parents, None, Recipe(dtype=dtype)), tmp_path / "out.safetensors")
    assert not list(tmp_path.iterdir())


def test_two_merges_to_one_place_do_not_mix(tmp_path, whole):
    """While one writes, any other is refused, and takes nothing of the first away."""
    again, said = partial(merged, tmp_path / "in", tmp_path / "out", force=True), []

    def meanwhile(done, total):
        for call in (again, partial(again, Recipe("linear", weights=[1, 1, 1]))):
            with pytest.raises(ws.CheckpointError, match="out: is being written by another merge; wait until"):
                call()
            said.append(done)

    again(progress=meanwhile)
    assert said and bytes_in(tmp_path / "out") == whole
    again()
    assert not [item.name for item in tmp_path.iterdir() if item.name.startswith(".")]


def test_what_is_there_is_replaced_by_force_alone(tmp_path, whole):
    out = tmp_path / "whole"
    with pytest.raises(ws.CheckpointError, match="model-00001-of-00003.safetensors exists; choose another name, or"):
        merged(tmp_path / "in", out)
    assert bytes_in(out) == whole
    merged(tmp_path / "in", out, force=True, shard=10**9)
    assert sorted(bytes_in(out)) == ["merge.json", "model.safetensors"]
    (out / "model.safetensors").unlink()
    with pytest.raises(ws.CheckpointError, match="merge.json exists"):
        merged(tmp_path / "in", out)
    with pytest.raises(ws.CheckpointError, match="cannot be made"):
        merged(tmp_path / "in", tmp_path / "a" / "b")
    with pytest.raises(ws.CheckpointError, match="does not exist"):
        merged(tmp_path / "in", tmp_path / "a" / "b.safetensors")
    assert not [item for item in tmp_path.iterdir() if item.name.startswith(".")]


def test_the_report_says_what_was_done(tmp_path, whole):
    told = json.loads(whole["merge.json"])
    assert [path.rpartition("/")[2] for path in told["parents"]] == [f"{k}.safetensors" for k in range(3)]
    (recipe,) = told["recipes"]
    assert (recipe["method"], recipe["weights"], recipe["seed"], recipe["dtype"]) == ("linear", [2, 1, 1], 0, None)
    assert [(g["action"], len(g["tensors"])) for g in told["tensors"]] == [("merged", 6), ("copied", 1)]
    assert told["base"] is None


# the kernel's own account of the process; what is loaded late is loaded by a first merge
PROGRAM = """
import json, resource, sys
import torch
import weightspace as ws
from weightspace.merging import part
room, method, out, *paths = sys.argv[1:]
part.BLOCK, part._CHUNK = int(room), int(room)
torch.set_num_threads(1)

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

small = [{"w": torch.ones(4, 4)}] * 2
ws.merge(small, method, base=small[0], out=out + ".small")
before = most()
ws.merge(paths[1:], method, base=paths[0], out=out)
print(most() - before)
"""


def peak(room, method, out, paths):
    """Bytes that merging files takes at most, above what the process had before."""
    source = Path(ws.__file__).parents[1]
    command = [sys.executable, "-c", PROGRAM, str(room), method, str(out), *map(str, paths)]
    environ = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return int(ended.stdout)


def sparse(path, shapes):
    """A safetensors file of zeros that takes no disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def test_memory_does_not_grow_with_the_networks(tmp_path):
    """60 MB of which one tensor is 30: less than that one tensor in float32, and no more for seven parents than two."""
    shapes = {"large": [15_000, 1000], "small": [15_000, 1000]}
    paths = [sparse(tmp_path / f"{k}.safetensors", shapes) for k in range(2)]
    taken = peak(1 << 16, "linear", tmp_path / "out", [*paths, paths[0], paths[1]] * 2)
    assert taken < 30e6, f"{taken / 1e6:.0f} MB"


@pytest.mark.slow
def test_two_gigabytes_take_three_tensors_at_most(tmp_path):
    if shutil.disk_usage(tmp_path).free < 4e9:
        pytest.skip("needs 4 GB of disk; free some")
    shapes = {f"layers.{i}.w": [8000, 4000] for i in range(30)} | {"embed": [20_000, 2000]}
    paths = [sparse(tmp_path / f"{k}.safetensors", shapes) for k in range(3)]
    largest = 2 * 8000 * 4000
    assert sum(2 * torch.Size(s).numel() for s in shapes.values()) > 1.9e9
    for method in ("linear", "task_arithmetic"):
        taken = peak(part.BLOCK, method, tmp_path / method, paths)
        assert taken < 3 * largest + 300e6, f"{taken / 1e6:.0f} MB"
        shutil.rmtree(tmp_path / method)
