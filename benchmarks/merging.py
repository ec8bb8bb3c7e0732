"""Merging files of about a gigabyte beside copying one, and beside mergekit 0.1.5: rates, memory, and equal numbers.

Every contestant is a process of its own, all in turns on one thread. The rate is the bytes read and written over the
wall seconds after the imports; a copy reads and writes one network and waits until it is on the disk, as a merge does.
Seconds beside mergekit are of the whole process. Peaks are the kernel's account of the process. mergekit is the
`mergekit-pytorch` of an environment of its own, named by --mergekit; without it its columns stay empty. Numbers are
compared on small networks in float32, in units of the spacing of bfloat16 at the largest parent's entry. Networks are
one file each, which is what `mergekit-pytorch` takes; ours writes shards of 300 MB.

    python -m benchmarks.merging [--gigabytes 1.0] [--repeats 3] [--full 1] [--mergekit VENV/bin/mergekit-pytorch]
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import weightspace as ws
from benchmarks import measure
from weightspace.merging.methods import METHODS

SHARD, FILE = 300_000_000, "model.safetensors"
WIDTH, HIDDEN = 2048, 5504
RATE, EQUAL = 0.8, 1e-3  # of a copy's rate; of the spacing of bfloat16


@dataclass(frozen=True)
class Case:
    """A merge: the method, its weights and options, and what mergekit calls them."""

    method: str
    weights: Sequence[float]
    base: bool = False
    options: Mapping[str, float] = field(default_factory=dict)
    theirs: Mapping[str, Any] = field(default_factory=dict)  # for all
    each: Mapping[str, Any] = field(default_factory=dict)  # for each network
    alike: bool = True  # the formulas agree: no random numbers
    timed: bool = True

    @property
    def name(self) -> str:
        return f"{self.method}, {len(self.weights)} networks{' and a base' if self.base else ''}"


CASES = (
    Case("linear", (1.0, 1.0)),
    Case("linear", (1.0, 1.0, 1.0, 1.0, 1.0)),
    Case("task_arithmetic", (0.4, 0.3), True, theirs={"normalize": False, "lambda": 1.0}, timed=False),
    Case("ties", (0.6, 0.4), True, {"density": 0.2}, {"normalize": True, "lambda": 1.0}, {"density": 0.2}),
    Case("dare_linear", (0.6, 0.4), True, {"density": 0.5}, {"lambda": 1.0}, {"density": 0.5}, False),
    Case("slerp", (0.7, 0.3), theirs={"t": 0.3}, timed=False),
)


def shapes(gigabytes: float) -> dict[str, tuple[int, ...]]:
    """A language model's tensors: about so many gigabytes in bfloat16."""
    width, hidden = (WIDTH, HIDDEN) if gigabytes > 0.1 else (64, 160)
    layer = 4 * width * width + 3 * width * hidden
    found: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (8 * width, width)}
    for k in range(max(1, round((gigabytes * 5e8 - 16 * width * width) / layer))):
        for name in "qkvo":
            found[f"layers.{k}.self_attn.{name}_proj.weight"] = (width, width)
        for name, shape in {"gate": (hidden, width), "up": (hidden, width), "down": (width, hidden)}.items():
            found[f"layers.{k}.mlp.{name}_proj.weight"] = shape
        found[f"layers.{k}.norm.weight"] = (width,)
    return found | {"lm_head.weight": (8 * width, width)}


def made(folder: Path, number: int, gigabytes: float, dtype: torch.dtype) -> list[Path]:
    """The base and `number` networks near it, in folders."""
    paths = []
    for k in range(number + 1):
        generators = [torch.Generator().manual_seed(seed) for seed in (0, k)]
        drawn, moved = (torch.randn(1 << 20, generator=one) for one in generators)
        block = 0.02 * drawn + (0.002 * moved if k else 0)
        tensors = {
            name: block.repeat(-(-math.prod(shape) // len(block)))[: math.prod(shape)].reshape(shape).to(dtype)
            for name, shape in shapes(gigabytes).items()
        }
        paths.append(folder / f"{k}")
        paths[-1].mkdir()
        ws.checkpoint.save(tensors, paths[-1], shard=10**12)
    return paths


# a process that does one thing and tells the seconds that it took after the imports
_COPY = """
import os, shutil, sys, time
began, spent = time.perf_counter(), time.process_time()
source, out = sys.argv[1:]
os.mkdir(out)
for name in os.listdir(source):
    shutil.copyfile(f"{source}/{name}", f"{out}/{name}")
    with open(f"{out}/{name}", "rb") as file:
        os.fsync(file.fileno())
print(time.perf_counter() - began, time.process_time() - spent)
"""
# the kernel counts what a process had before it became another program: one that is small starts it
_START = """
import os, subprocess, sys, time
began = time.perf_counter()
child = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(child.pid, 0)
print(time.perf_counter() - began, usage.ru_maxrss * 1024)
sys.exit(bool(status))
"""
_MERGE = """
import json, sys, time
import torch
import weightspace as ws
given = json.loads(sys.argv[1])
torch.set_num_threads(1)
dtype = torch.float32 if given["single"] else None
recipe = ws.merging.Recipe(given["method"], given["weights"], given["options"], dtype=dtype)
began, spent = time.perf_counter(), time.process_time()
parents = [ws.checkpoint.read(path) for path in given["parents"]]
base = ws.checkpoint.read(given["base"]) if given["base"] else None
ws.merging.write(ws.merging.planned(parents, base, recipe), given["out"], shard=given["shard"])
print(time.perf_counter() - began, time.process_time() - spent)
"""


def process(command: Sequence[str], out: Path) -> dict[str, float]:
    """Run a command that writes `out`: seconds of the process, those that it tells, and its peak in bytes."""
    shutil.rmtree(out, ignore_errors=True)
    source = os.pathsep.join([str(Path(ws.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    start = [sys.executable, "-S", "-c", _START, *command]
    ended = subprocess.run(start, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ended.returncode:
        raise RuntimeError(f"{command[0]} failed: {ended.stdout[-500:]}")
    *before, seconds, peak = ended.stdout.split()
    inside = [float(word) for word in before[-2:]] if command[0] == sys.executable else [math.nan, math.nan]
    return {"seconds": float(seconds), "wall": inside[0], "processor": inside[1], "peak": float(peak)}


def ours(case: Case, paths: Sequence[Path], out: Path, single: bool = False) -> dict[str, float]:
    given = {
        "method": case.method, "weights": [*case.weights], "options": dict(case.options), "single": single,
        "parents": [str(path) for path in paths[1 : len(case.weights) + 1]], "shard": SHARD, "out": str(out),
        "base": str(paths[0]) if case.base else None,
    }  # fmt: skip
    return process([sys.executable, "-c", _MERGE, json.dumps(given)], out)


def theirs(case: Case, paths: Sequence[Path], out: Path, program: str, single: bool = False) -> dict[str, float]:
    parents = paths[1 : len(case.weights) + 1]
    models = [
        {"model": str(path / FILE), "parameters": {"weight": weight, **case.each}}
        for path, weight in zip(parents, case.weights, strict=True)
    ]
    recipe: dict[str, Any] = {"merge_method": case.method, "models": models, "parameters": dict(case.theirs)}
    recipe["dtype"] = "float32" if single else "bfloat16"
    if case.base or case.method == "slerp":
        recipe["base_model"] = str((paths[0] if case.base else parents[0]) / FILE)
    file = out.with_suffix(".yml")
    file.write_text(json.dumps(recipe))  # JSON is YAML
    return process([program, str(file), str(out)], out)


def apart(one: Path, other: Path, parents: Sequence[Path]) -> float:
    """The largest difference of two results, in spacings of bfloat16 at the largest of the parents' entries."""
    a, b = ws.checkpoint.read(one), ws.checkpoint.read(other)
    most, held = 0.0, [ws.checkpoint.read(path) for path in parents]
    for name in a:
        scale = torch.stack([each[name].double().abs() for each in held]).amax(0)
        spacing = torch.exp2(scale.log2().floor() - 7)
        most = max(most, float(((a[name].double() - b[name].double()).abs() / spacing).max()))
    return most


def run(
    gigabytes: float, repeats: int, full: int, mergekit: str | None, results: Path = measure.RESULTS
) -> list[dict[str, Any]]:
    """A row for every case whose method is there; after `full` turns only the linear are timed, and a copy."""
    cases = [case for case in CASES if case.method in METHODS]
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "small").mkdir()
        small = made(folder / "small", 5, 0.0, torch.float32)
        apart_by = {case.name: compared(case, small, folder, mergekit) for case in cases}
        paths = made(folder, 5, gigabytes, torch.bfloat16)
        size = sum(item.stat().st_size for item in paths[0].iterdir())
        turns: list[dict[str, Any]] = []
        for k in range(repeats):
            timed = [case for case in cases if k < full or case.method == "linear"]
            turns.append(turn(timed, paths, folder, mergekit if k < full else None))
            rows = [row(case, turns, size, load) | {"apart": apart_by[case.name]} for case in cases]
            measure.keep("merging", rows, results)
    return rows


def row(case: Case, turns: Sequence[Mapping[str, Any]], size: int, load: float) -> dict[str, Any]:
    """Medians over the turns; of a case that is not timed, its name alone."""
    if not case.timed:
        return {"case": case.name}
    turns = [each for each in turns if case.name in each]
    files, own = len(case.weights) + case.base + 1, [each[case.name]["ours"] for each in turns]
    copies = [each["copy"]["wall"] for each in turns]
    rates = [files / each["wall"] / (2 / copy) for each, copy in zip(own, copies, strict=True)]
    found = {
        "case": case.name, "method": case.method, "networks": len(case.weights), "size": size, "load": load,
        "repeats": len(turns), "rate": measure.median(rates), "copy": measure.median(copies),
        "copy_processor": measure.median(each["copy"]["processor"] for each in turns),
        **{key: measure.median(each[key] for each in own) for key in own[0]},
    }  # fmt: skip
    both = [each[case.name] for each in turns if "theirs" in each[case.name]]
    for key in ("seconds", "peak"):
        found[f"their_{key}"] = measure.median(each["theirs"][key] for each in both)
        found[f"{key}_ratio"] = measure.median(each["theirs"][key] / each["ours"][key] for each in both)
    return found


def turn(cases: Sequence[Case], paths: Sequence[Path], folder: Path, mergekit: str | None) -> dict[str, Any]:
    """Every contestant once."""
    found: dict[str, Any] = {}
    found["copy"] = process([sys.executable, "-c", _COPY, str(paths[0]), str(folder / "out")], folder / "out")
    for case in (case for case in cases if case.timed):
        found[case.name] = {"ours": ours(case, paths, folder / "out")}
        if mergekit and len(case.weights) == 2:
            found[case.name]["theirs"] = theirs(case, paths, folder / "out", mergekit)
    return found


def compared(case: Case, paths: Sequence[Path], folder: Path, mergekit: str | None) -> float | None:
    """How far our result is from mergekit's; None where there is none, or the method draws random numbers."""
    if not mergekit or not case.alike:
        return None
    one, other = folder / "ours", folder / "theirs"
    ours(case, paths, one, True)
    theirs(case, paths, other, mergekit, True)
    return apart(one, other, paths[1 : len(case.weights) + 1])


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each case."""
    head = [
        "merge", "GB a network", "s after imports", "of which processor", "rate, of a copy's", "s of the process",
        "peak, MB", "mergekit 0.1.5: s", "peak, MB", "its time / ours", "its peak / ours", "apart, in bf16 spacings",
    ]  # fmt: skip
    body = []
    for row in rows:
        apart = "-" if row["apart"] is None else f"{row['apart']:.0e}"
        if "wall" not in row:
            body.append([row["case"], *["-"] * 10, apart])
            continue
        their = row["their_peak"] and row["their_peak"] / 1e6
        body.append([
            row["case"], f"{row['size'] / 1e9:.2f}", f"{row['wall']:.1f}", f"{row['processor']:.1f}",
            f"{100 * row['rate']:.0f} %", f"{row['seconds']:.1f}", f"{row['peak'] / 1e6:.0f}",
            measure.fixed(row["their_seconds"], 1), measure.fixed(their, 0),
            measure.fixed(row["seconds_ratio"], 1), measure.fixed(row["peak_ratio"], 1), apart,
        ])  # fmt: skip
    return measure.table(head, body)


_OPTIONS = {
    "--gigabytes": 1.0, "--repeats": 3, "--full": 1,
    "--mergekit": {"default": None, "help": "the program mergekit-pytorch"},
}  # fmt: skip
main = measure.command("merging", __doc__, run, summary, _OPTIONS)


if __name__ == "__main__":
    main()
