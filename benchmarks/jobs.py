"""Jobs in two processes: wall time of one process over theirs, what a job costs, and how long processes take to start.

A job finds the code of a task (`encode`), half a second of one core; `joblib.Parallel` runs the same beside. The load
of the machine before the run is kept with the rows: on cores that are not idle the speed-up is less.

    python -m benchmarks.jobs [--jobs 24] [--steps 300] [--processes 2] [--repeats 3]
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from torch import nn

import weightspace as ws
from benchmarks import measure
from weightspace.jobs import opened, run


def length(seed: int, steps: int) -> float:
    """The length of a code of digits."""
    torch.set_num_threads(1)
    net = ws.fresh(nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), seed)
    return ws.encode(net, ws.digits().take(256), steps=steps, seed=seed).length


def nothing(number: int) -> int:
    return number


def bench(jobs: int, steps: int, processes: int, repeats: int) -> dict[str, Any]:
    """One row: seconds, ratios, and the load of the machine before."""
    given = {seed: (seed, steps) for seed in range(jobs)}
    load = os.getloadavg()[0]
    length(0, 1)  # what is read once
    began = time.perf_counter()
    with opened(processes) as pool:
        run(length, {seed: (seed, 1) for seed in range(2 * processes)}, engine=pool)
        started = time.perf_counter() - began
        with Parallel(processes) as theirs:
            theirs(delayed(length)(seed, 1) for seed in range(2 * processes))
            runs = measure.in_turns(
                {
                    "one": lambda: run(length, given),
                    "ours": lambda: run(length, given, engine=pool),
                    "joblib": lambda: theirs(delayed(length)(seed, steps) for seed in given),
                },
                repeats,
            )
        began = time.perf_counter()
        run(nothing, {k: (k,) for k in range(500)}, engine=pool)
        each = (time.perf_counter() - began) / 500
    same = runs["one"].value == runs["ours"].value and [*runs["one"].value.values()] == runs["joblib"].value
    return {
        "jobs": jobs, "steps": steps, "processes": processes, "load": load, "started": started, "each": each,
        "one": measure.median(runs["one"].wall), "speed": measure.ratio(runs["one"], runs["ours"], "wall"),
        "joblib": measure.ratio(runs["one"], runs["joblib"], "wall"), "same": same,
    }  # fmt: skip


def measured(jobs: int, steps: int, processes: int, repeats: int, results: Path = measure.RESULTS) -> None:
    """Measure and keep."""
    row = bench(jobs, steps, processes, repeats)
    others = [r for r in measure.kept("jobs", results) or [] if r["processes"] != processes]
    measure.keep("jobs", [*others, row], results)


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """The table."""
    head = [
        "processes", "jobs", "one process, s", "speed-up", "speed-up of `joblib.Parallel`", "same numbers",
        "an empty job, ms", "until all are started, s", "load of the machine before",
    ]  # fmt: skip
    body = [
        [
            str(row["processes"]), str(row["jobs"]), f"{row['one']:.1f}", f"{row['speed']:.2f}", f"{row['joblib']:.2f}",
            "yes" if row["same"] else "**no**", f"{1000 * row['each']:.1f}", f"{row['started']:.1f}",
            f"{row['load']:.1f}",
        ]
        for row in rows
    ]  # fmt: skip
    return measure.table(head, body)


main = measure.command(
    "jobs", __doc__ or "", measured, summary, {"--jobs": 24, "--steps": 300, "--processes": 2, "--repeats": 3}
)

if __name__ == "__main__":
    main()
