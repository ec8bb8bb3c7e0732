"""The whole benchmark in half an hour: every part at small sizes, its ratios beside those of the committed table.

A part is a module of this folder, run in a process of its own with the settings of `PARTS`. Only ratios are compared,
never seconds: of two things timed in turns in one process, or of processor seconds to those of a yardstick (products
and plain Python) timed before and after the part. A ratio more than a quarter worse than that of the table is measured
up to twice more, and is a regression where it stays so: exit code 1, a line for each. An interrupted run goes on where
it was; `--accept` writes the table, and after a run that has just ended writes what that one measured.

    make benchmark                                   # or python -m benchmarks.quick [parts ..] [--minutes 30] [--fresh]
    make benchmark ACCEPT=1                          # write results/table.json and the README
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks import measure, peers
from experiments.record import insert

ROOT = Path(__file__).parent.parent
README, SCRATCH = Path(__file__).parent / "README.md", Path(__file__).parent / ".cache" / "quick"
WORSE, AGAIN, MINUTES = 1.25, 2, 30.0

Better = Literal["higher", "lower"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One ratio; None where the peer that it needs was not there."""

    name: str
    value: float | None
    better: Better
    peer: str = ""


@dataclass(frozen=True)
class Part:
    """A module, its quick settings, the seconds that it takes about, and its ratios given results and a yardstick."""

    name: str
    arguments: str
    seconds: float
    lines: Callable[[Any, float], list[Line]]
    needs: str = ""


def _commands(rows: Any, yard: float) -> list[Line]:
    return [
        Line(f"`{r['command']}`, over `import torch.export`", r["over_export"], "lower")
        for r in rows
        if not r["command"].startswith("import torch")
    ]


def _align(rows: Any, yard: float) -> list[Line]:
    ours = next(r for r in rows if r["method"] == "ours")
    return [
        Line("`align` of an MLP, over the yardstick", ours["seconds"] / yard, "lower"),
        Line("`rebasin`'s time over ours", ours["ratio"], "higher", "rebasin"),
    ]


def _merge(rows: Any, yard: float) -> list[Line]:
    r = rows[0]
    peer = r["rebasin_seconds"] / r["seconds"] if r["rebasin_seconds"] else None
    return [
        Line("five MLPs averaged, accuracy over a single one's", r["ours"] / r["single"], "higher"),
        Line("five MLPs averaged, over the yardstick", r["seconds"] / yard, "lower"),
        Line("`rebasin`'s time over ours, five MLPs", peer, "higher", "rebasin"),
    ]


def _merging(rows: Any, yard: float) -> list[Line]:
    return [Line(f"{r['case']}: rate over a copy's", r["rate"], "higher") for r in rows if r.get("method") == "linear"]


def _planted(rows: Any, yard: float) -> list[Line]:
    return [Line(f"planted moves of `{r['net']}` recovered", r["recovered"], "higher") for r in rows]


def _assignment(rows: Any, yard: float) -> list[Line]:
    return [Line("coordinate descent, plain solver's time over ours", rows[0]["ratio"], "higher")]


def _memory(rows: Any, yard: float) -> list[Line]:
    return [Line("memory of `align`, in sizes of a network", rows[0]["share"], "lower")]


def _steps(rows: Any, yard: float) -> list[Line]:
    r = rows[0]
    return [
        Line("a product with G, over forward + jvp + vjp", r["product"], "lower"),
        Line("a step of equation 4, explicit one's time over ours", r["explicit_seconds"] / r["seconds"], "higher"),
        Line("curvlinops' product over ours", r["peer"], "higher", "curvlinops"),
    ]


def _optim(found: Any, yard: float) -> list[Line]:
    r = next(row for row in found["rows"] if row["name"] == "Fromage")
    return [
        Line("a step of Fromage, over plain SGD", r["over_sgd"], "lower"),
        Line("published Fromage's time over ours", r["published"], "higher", "optimizer"),
    ]


def _flow(rows: Any, yard: float) -> list[Line]:
    return [Line(f"a flow on {r['name']}, over the loop that it equals", r["ratio"], "lower") for r in rows]


def _spectral(rows: Any, yard: float) -> list[Line]:
    return [
        Line(f"operator {way}, {r['matrix']}: all singular values' time over ours", r[f"{way}_ratio"], "higher")
        for r in rows
        for way in ("norm", "bound")
    ]


def _representation(rows: Any, yard: float) -> list[Line]:
    return [
        line
        for r in rows
        for line in (
            Line(f"linear CKA, {r['n']} x {r['width']}, over the yardstick", r["ours"] / yard, "lower"),
            Line(f"`pytorch-cka`'s time over ours, {r['n']} x {r['width']}", r["ratio"], "higher", "cka"),
        )
    ]


def _paths(found: Any, yard: float) -> list[Line]:
    record = found["record"]
    return [
        Line("gates every 50 steps, share of a run's time", record["share"], "lower"),
        Line("gates in a file, bits a unit", record["bits"], "lower"),
    ]


def _curvature(rows: Any, yard: float) -> list[Line]:
    large = max(r["batch"] for r in rows)
    chosen = [r for r in rows if r["batch"] == large]
    whose = {"diagonal": "BackPACK"}
    return [Line(f"{r['what']} of the Gauss-Newton matrix, over the yardstick", r["ours"] / yard, "lower")
            for r in chosen] + [
        Line(f"{whose.get(r['what'], 'curvlinops')}'s time over ours, {r['what']}", r["ratio"], "higher", "curvlinops")
        for r in chosen if r["what"] in ("product", "diagonal")
    ]  # fmt: skip


def _reading(rows: Any, yard: float) -> list[Line]:
    shapes = [r for r in rows if "megabytes" in r]
    deep = [r for r in rows if "depth" in r]
    return (
        [Line(f"reading `{r['net']}`, four times the depth over once", r["ratio"], "lower") for r in deep]
        + [Line(f"reading `{r['net']}`, over the yardstick", r["seconds"][0] / yard, "lower") for r in deep]
        + [Line(f"reading `{r['net']}` on meta, over the yardstick", r["seconds"] / yard, "lower") for r in shapes]
    )


def _jobs(rows: Any, yard: float) -> list[Line]:
    return [Line("jobs in two processes, one process's time over theirs", rows[0]["speed"], "higher")]


def _catalogue(found: Any, yard: float) -> list[Line]:
    r = next(row for row in found["stores"] if row["store"] == "SQLite")
    return [Line("pairs written to SQLite, over the yardstick", r["processor"] / yard, "lower")]


def _gram(rows: Any, yard: float) -> list[Line]:
    return [Line(f"{r['n']} networks, pair by pair over one pass", r["ratio"], "higher") for r in rows]


def _playground(rows: Any, yard: float) -> list[Line]:
    return [Line(f"a frame, {r['depth']} x {r['width']}, over the yardstick", r["frame"] / 1000 / yard, "lower")
            for r in rows]  # fmt: skip


def _maps(found: Any, yard: float) -> list[Line]:
    large = found["large"]
    return [Line(f"map of {large['networks']} networks, {what}, over the yardstick", large[key] / yard, "lower")
            for key, what in (("added", "added"), ("mapped", "mapped"), ("again", "mapped again"))]  # fmt: skip


PARTS = {
    part.name: part
    for part in (
        Part("commands", "--repeats 3", 130, _commands),
        Part("align", "--nets mlp --pairs 1 --repeats 1 --no-matchers", 60, _align),
        Part("merge", "--groups 1", 100, _merge),
        Part("merging", "--gigabytes 0.2 --repeats 3 --full 1", 90, _merging),
        Part("planted", "--nets mlp --seeds 1", 10, _planted),
        Part("assignment", "--repeats 1", 200, _assignment),
        Part("memory", "--ends 6000", 40, _memory),
        Part("steps", "--images 50 --repeats 5", 60, _steps),
        Part("optim", "--repeats 60", 40, _optim),
        Part("flow", "--repeats 1", 60, _flow),
        Part("spectral", "--repeats 3", 60, _spectral),
        Part("representation", "--repeats 3", 30, _representation),
        Part("paths", "record --repeats 3", 60, _paths),
        Part("curvature", "--nets mlp64 --repeats 3", 120, _curvature),
        Part("reading", "loop lstm --repeats 1", 60, _reading),
        Part("reading llama", "llama --repeats 1", 60, _reading, needs="transformers"),
        Part("reading meta", "bert-base resnet-50 llama-7b", 60, _reading, needs="transformers"),
        Part("jobs", "--repeats 1", 60, _jobs),
        Part("catalogue", "--networks 200 --pairs 20000 --asked 100", 30, _catalogue),
        Part("gram", "--megabytes 2 --repeats 3", 120, _gram),
        Part("playground", "--frames 10 --repeats 1", 60, _playground),
        Part("maps", "--networks 100 --strangers 20 --megabytes 50", 60, _maps),
    )
}
LEFT_OUT = {
    "rules": "three quarters of an hour, and counts, not ratios; python -m benchmarks.rules",
    "orbits": "three hours, and distances, not ratios; python -m benchmarks.orbits",
    "reading bert": "four minutes and 3 GB; python -m benchmarks.reading bert",
    "paths pairs, stream": "minutes to an hour; python -m benchmarks.paths",
    "web": "seconds of a browser, not ratios; python -m benchmarks.web",
}


def yardstick(repeats: int = 3) -> float:
    """Processor seconds of products of matrices and of plain Python, a median: how fast the machine is now."""
    a, seen = torch.ones(384, 384), []
    for _ in range(repeats):
        began = time.process_time()
        for _ in range(20):
            a @ a
        sum(k * k % 7 for k in range(1_000_000))
        seen.append(time.process_time() - began)
    return statistics.median(seen)


def measured(part: Part, scratch: Path = SCRATCH) -> list[Line]:
    """Run one part in a process of its own, and return its ratios. Raises `RuntimeError` where it fails."""
    module = part.name.split()[0]
    (scratch / f"{module}.json").unlink(missing_ok=True)
    paths = os.pathsep.join([str(ROOT), *sys.path])
    setting = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, measure.FOLDER: str(scratch)}
    command = [sys.executable, "-m", f"benchmarks.{module}", *part.arguments.split()]
    before = yardstick()
    ended = subprocess.run(command, env=setting, cwd=ROOT, capture_output=True, text=True)
    yard = (before + yardstick()) / 2
    found = measure.kept(module, scratch)
    if ended.returncode or found is None:
        raise RuntimeError((ended.stderr.strip().splitlines() or [f"ended with {ended.returncode}"])[-1][:200])
    lines = part.lines(found, yard)  # NaN is what a peer that is not there takes
    return [replace(x, value=None) if x.value is not None and math.isnan(x.value) else x for x in lines]


def worse(row: Row, line: Line) -> float:
    """How much worse a ratio is than that of the table, as a factor: 1 for the same."""
    assert line.value is not None
    before, now = row["ratio"], line.value
    bad, good = (now, before) if line.better == "lower" else (before, now)
    return bad / good if good else float("inf") if bad else 1.0


def judged(table: Sequence[Row], part: str, lines: Sequence[Line], again: Callable[[], list[Line]]) -> list[str]:
    """What there is to say about the lines of a part; a regression begins with "worse:".

    `again` measures the part once more, at most twice: a line is a regression where it is one in every run.
    """
    rows = {row["line"]: row for row in table if row["part"] == part}
    new = {line.name: line for line in lines}
    said = [f"missing: {part}: {name} is in the table and was not measured" for name in rows if name not in new]
    for line in lines:
        if line.value is None:
            said.append(f"skipped: {part}: {line.name} ({line.peer} is not installed)")
        elif line.name not in rows:
            said.append(f"new: {part}: {line.name} is {line.value:.3g}, and not in the table")
    known = {name: line for name, line in new.items() if line.value is not None and name in rows}
    best = {name: (worse(rows[name], line), line.value) for name, line in known.items()}
    for _ in range(AGAIN):
        if not any(factor > WORSE for factor, _ in best.values()):
            break
        for line in again():
            if line.name in best and line.value is not None:
                best[line.name] = min(best[line.name], (worse(rows[line.name], line), line.value))
    return said + [
        f"worse: {part}: {name} was {rows[name]['ratio']:.3g} and is {value:.3g}, {known[name].better} is better"
        for name, (factor, value) in best.items()
        if factor > WORSE
    ]


def machine() -> str:
    """What the figures are of: processor, cores, Python, torch."""
    model = platform.processor() or platform.machine()
    about = Path("/proc/cpuinfo")
    names = [x.partition(":")[2].strip() for x in about.read_text().splitlines() if x.startswith("model name")] \
        if about.exists() else []  # fmt: skip
    python = platform.python_version()
    return f"{names[0] if names else model}, {os.cpu_count()} cores, Python {python}, torch {torch.__version__}"


def source() -> str:
    """A digest of the code that is measured, so that an interrupted run goes on only with the same."""
    files = sorted([*(ROOT / "src").rglob("*.py"), *Path(__file__).parent.glob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _state(scratch: Path, fresh: bool, accept: bool) -> dict[str, Any]:
    """The run to go on with: one that was interrupted, or one that has ended and is to be accepted; else a new one."""
    state: dict[str, Any] = measure.kept("state", scratch) or {}
    ended_with = state.get("source") == source() and (accept or not state.get("ended"))
    return state if ended_with and not fresh else {"source": source(), "parts": {}, "ended": False}


def _wanted(
    names: Collection[str], minutes: float, done: Collection[str], say: Callable[[str], None]
) -> Iterator[Part]:
    """The parts to run, with what is left out and why, and the time that is left."""
    chosen = [part for name, part in PARTS.items() if (name in names or not names) and name not in done]
    for name in () if names else LEFT_OUT:
        say(f"left out: {name} ({LEFT_OUT[name]})")
    until = time.monotonic() + 60 * minutes
    for k, part in enumerate(chosen):
        left = sum(p.seconds for p in chosen[k:]) / 60
        if part.needs and importlib.util.find_spec(part.needs) is None:
            say(f"skipped: {part.name} ({part.needs} is not installed)")
        elif time.monotonic() + part.seconds > until:
            say(f"left out: {part.name} (no time left of {minutes:g} minutes)")
        else:
            say(f"[{k + 1}/{len(chosen)}] {part.name} ..., about {left:.0f} minutes left")
            yield part


def run(
    names: Collection[str] = (),
    minutes: float = MINUTES,
    accept: bool = False,
    fresh: bool = False,
    results: Path = measure.RESULTS,
    scratch: Path = SCRATCH,
    say: Callable[[str], None] = print,
) -> int:
    """Measure, compare, and with `accept` write the table; the exit code: 1 for a regression or a part that fails."""
    table: dict[str, Any] = measure.kept("table", results) or {"rows": []}
    state = _state(scratch, fresh, accept)
    for name in (missing := [peer for peer in peers.FOLDERS if not peers.available(peer)]):
        say(f"skipped: what is compared with {name} ({peers.FOLDERS[name]} names no folder)")
    for part in _wanted(names, minutes, state["parts"], say):
        began = time.monotonic()
        try:
            lines = measured(part, scratch)
            said = judged(table["rows"], part.name, lines, lambda part=part: measured(part, scratch))  # type: ignore[misc]
        except (RuntimeError, KeyError, StopIteration, IndexError) as error:
            lines, said = [], [f"failed: {part.name}: {type(error).__name__}: {error}"]
        rows = [
            {"part": part.name, "line": x.name, "ratio": x.value, "better": x.better, "date": str(date.today())}
            for x in lines
            if x.value is not None
        ]
        state["parts"][part.name] = {"rows": rows, "said": said, "seconds": time.monotonic() - began}
        measure.keep("state", state, scratch)
        for line in said:
            say(f"  {line}")
    found: Mapping[str, Any] = state["parts"]
    state["ended"] = all(  # what there was no time for is measured by the next run
        name in found or (part.needs and importlib.util.find_spec(part.needs) is None)
        for name, part in PARTS.items()
        if name in names or not names
    )
    measure.keep("state", state, scratch)
    if accept:
        _write(table, found, results, missing)
        return 0
    bad = [line for part in found.values() for line in part["said"] if line.startswith(("worse:", "failed:"))]
    say("\n".join(["", *bad]) if bad else f"\nno ratio is more than {WORSE - 1:.0%} worse than in the table")
    return 1 if bad else 0


def _write(table: dict[str, Any], found: Mapping[str, Any], results: Path, missing: Sequence[str]) -> None:
    """The rows of the parts that were measured in place of theirs, in the order of the parts."""
    new = {name for name, part in found.items() if part["rows"]}
    kept = [row for row in table["rows"] if row["part"] not in new]
    rows = kept + [row for name in new for row in found[name]["rows"]]
    order = [*PARTS]
    rows.sort(key=lambda row: order.index(row["part"]) if row["part"] in order else len(order))
    data = {"machine": machine(), "without": list(missing), "rows": rows}
    measure.keep("table", data, results)
    if results == measure.RESULTS:
        insert(README, {"quick": summary(data)})


def summary(data: dict[str, Any]) -> str:
    """Every ratio with the direction that is better and its date, and the machine."""
    body = [[r["part"], r["line"], f"{r['ratio']:.3g}", r["better"], r["date"]] for r in data["rows"]]
    without = f" Without {', '.join(data['without'])}." if data["without"] else ""
    return f"{measure.table('part | what | ratio | better | measured', body)}\n\nOn {data['machine']}.{without}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="benchmarks.quick", description=__doc__, formatter_class=form)
    parser.add_argument("names", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--accept", action="store_true", help="write the table")
    parser.add_argument("--fresh", action="store_true", help="do not go on with an interrupted run")
    given = vars(parser.parse_args(arguments))
    if unknown := [name for name in given["names"] if name not in PARTS]:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    return run(**given, say=lambda text: print(text, flush=True))


if __name__ == "__main__":
    sys.exit(main())
