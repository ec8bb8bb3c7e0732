"""Critical periods (Achille, Rovere, Soatto, 2019): the lasting cost of blurred images, by when in training they come.

    python -m experiments.critical [removal windows restart] [--data DIR] [--seeds 0 1 2 3]

Embedded digits without --data (a folder of Fashion-MNIST's files). Rows that are there are not measured again.
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from torch import nn

import weightspace as ws
from experiments.record import Job, Record, command, percent, table
from weightspace.pages.critical_periods import period_figure
from weightspace.training.critical_periods import CriticalPeriod, Row, Training, critical_period
from weightspace.training.deficits import blur

BLUR, FLIP, NONE = "blur 4", "vertical flip", "none"
EPOCHS = (0, 1, 2, 3, 4, 5, 7, 10, 20, 39, 40, 59, 79)


@dataclass(frozen=True)
class Size:
    """Examples, and epochs: of removal, of the beginning of a window and its length, after the deficit, of the removal
    that is followed by its Fisher trace, and of those at which the schedule begins anew.
    """

    train: int
    test: int
    batch: int
    decay: float
    removal: tuple[int, ...]
    onsets: tuple[int, ...]
    window: int
    after: int
    followed: int
    restarts: tuple[int, ...]


DIGITS = Size(600, 450, 60, 0.97, (0, 2, 5, 10, 20, 40, 80), (0, 5, 10, 20, 30, 45, 60), 15, 60, 40, (20, 40))
FASHION = Size(3000, 2000, 60, 0.95, (0, 5, 20), (0, 5, 15), 5, 15, 20, ())
QUICK = Size(120, 100, 60, 0.97, (0, 2), (0, 1), 1, 2, 2, (2,))


class Lab:
    """Data, and how networks are trained on it."""

    def __init__(self, data: str | None, quick: bool) -> None:
        self.size = QUICK if quick else FASHION if data else DIGITS
        read = (lambda split: ws.fashion_mnist(data, split=split)) if data else (lambda split: ws.digits(split))
        train, test = read("train").take(self.size.train, seed=0), read("test").take(self.size.test, seed=0)
        self.name = "fashion-mnist" if data else "digits"
        side = train.example(1).shape[-1] // 4

        def cnn(seed: int) -> nn.Module:
            """16 and 32 channels, each halved in size; torch's own start, drawn from the run's seed."""
            first = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
            second = nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
            return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(32 * side * side, 10))

        decay = self.size.decay
        self.training = Training(
            cnn, train, test, self.size.after, schedule=lambda epoch: decay**epoch, batch=self.size.batch
        )
        self.fisher = ws.fisher_trace(train.take(300 if data else 600, seed=0))


def removal(lab: Lab, out: Path, seeds: Sequence[int]) -> None:
    """A deficit from the beginning, removed at t0; two runs a seed and deficit are followed by their Fisher trace."""
    _measured(lab, out, "removal", (0,), (0, lab.size.followed), seeds, fisher=lab.fisher)
    others = tuple(length for length in lab.size.removal if length not in (0, lab.size.followed))
    if others:
        _measured(lab, out, "removal", (0,), others, seeds)


def windows(lab: Lab, out: Path, seeds: Sequence[int]) -> None:
    """A deficit of the same length, begun at different epochs."""
    _measured(lab, out, "windows", lab.size.onsets, (lab.size.window,), seeds)


def restart(lab: Lab, out: Path, seeds: Sequence[int]) -> None:
    """As removal, the schedule of the rate begun anew when the deficit is removed; in the run without one, too."""
    if lab.size.restarts:
        _measured(lab, out, "restart", (0,), lab.size.restarts, seeds, restart=True)


EXPERIMENTS = {"removal": removal, "windows": windows, "restart": restart}


def _measured(
    lab: Lab, out: Path, name: str, onsets: Sequence[int], lengths: Sequence[int], seeds: Sequence[int], **how: Any
) -> None:
    def keep(row: Row) -> None:
        key = f"{name}/{lab.name}/{row.deficit}/{row.onset}+{row.length}/{row.seed}"
        Record(out).add(key, {"accuracy": row.accuracy, "fisher": list(row.fisher), "of": row.of})
        print(f"{key}  {percent(row.accuracy)}", flush=True)

    traced = "fisher" in how  # a row with a trace is of another question than one without
    known = [row for row in rows(Record(out), name, lab.name) if bool(row.fisher) == traced]
    critical_period(lab.training, blur(4), onsets, lengths, seeds=seeds, rows=known, progress=keep, **how)


# ------------------------------------------------------------------ tables and figure


def rows(record: Record, name: str, data: str) -> list[Row]:
    """What was measured, as the library's rows."""
    found = []
    for key, row in record.rows.items():
        if key.startswith(f"{name}/{data}/"):
            deficit, window, seed = key.split("/")[2:]
            onset, length = window.split("+")
            told = row["accuracy"], tuple(row["fisher"]), row.get("of", "")
            found.append(Row(deficit, int(onset), int(length), int(seed), *told))
    return found


def told(record: Record, name: str, data: str) -> CriticalPeriod:
    return CriticalPeriod(BLUR, FLIP, name == "restart", 0, tuple(rows(record, name, data)))


def tables(record: Record, name: str) -> dict[str, str]:
    """Mark in the README -> table."""
    found = {}
    for what in EXPERIMENTS:
        seen, lines = told(record, what, name), []
        for onset, length in seen.windows:
            cells = [f"{onset} to {onset + length - 1}" if what == "windows" else str(length)]
            cells.append(_mean(seen.accuracies(NONE, onset, length)))
            for deficit in (BLUR, FLIP):
                lost, error = seen.cost(deficit, onset, length)
                spread = "" if math.isnan(error) else f" ± {100 * error:.1f}"
                cells += [_mean(seen.accuracies(deficit, onset, length)), f"{100 * lost:.1f}{spread}" if length else ""]
            lines.append(cells)
        if lines:
            first = "epochs of the deficit" if what == "windows" else "removed at epoch"
            head = f"{first} | never, % | {BLUR}, % | points lost | {FLIP}, % | points lost"
            found[f"{what} {name}"] = table(head.split(" | "), lines)
    traces = {deficit: told(record, "removal", name).fisher(deficit) for deficit in (NONE, BLUR, FLIP)}
    if all(traces.values()):
        lines = [
            [str(epoch), *(f"{trace[epoch]:.3g}" if epoch < len(trace) else "" for trace in traces.values())]
            for epoch in EPOCHS
            if epoch < max(len(trace) for trace in traces.values())
        ]
        found[f"fisher {name}"] = table(["epochs trained", "never", *[d for d in traces if d != NONE]], lines)
    return found


def _mean(values: Sequence[float]) -> str:
    return percent(sum(values) / len(values))


def figure(record: Record, name: str = "digits") -> go.Figure:
    """What windows cost, above the Fisher trace."""
    return period_figure(told(record, "windows", name), told(record, "removal", name))


def _jobs(lab: Lab, given: Namespace) -> Sequence[Job]:
    """Every run is measured and kept here, as `critical_period` ends it; nothing is left to do."""
    for name in given.chosen:
        EXPERIMENTS[name](lab, given.out, given.seeds)
    return ()


main = command(
    "critical",
    __doc__,
    EXPERIMENTS,
    lambda given: Lab(given.data, given.quick),
    tables,
    jobs=_jobs,
    data="folder of Fashion-MNIST's official files",
    seeds=[0, 1, 2, 3],
)

if __name__ == "__main__":
    sys.exit(main())
