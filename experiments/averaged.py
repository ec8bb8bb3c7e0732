"""Averages along a training run against ensembles, at equal cost of training: digits, false labels, short runs.

    python -m experiments.averaged [runs] [--seeds 0 1 2 3 4] [--quick]

Every row costs the same number of gradients. "Last", "ema", "swa" and "lawa" are of one run with a constant step
size; a run with a cosine, snapshots, fast geometric ensembles (after three quarters of the budget) and networks that
share the budget out are runs of their own. An ensemble costs all its networks to ask, an average one. Differences are
from the run with a cosine.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

import weightspace as ws
from experiments.record import Job, Record, block, brief, command, half_width, number, percent
from weightspace.net.seeds import derived

MEMBERS, BATCH, RATE, DECAY, JUDGE = 4, 32, 0.05, 0.98, 300
SETTINGS = {"short": (1000, 0.0, 120), "long": (1000, 0.0, 800), "false labels": (1000, 0.4, 800)}
WAYS = (
    "last", "last, new statistics", "cosine", "ema", "swa", "lawa", "lawa, greedy",
    "snapshots, average", "fge, average",
    "lawa, ensemble", "snapshots, ensemble", "fge, ensemble", "independent, ensemble",
)  # fmt: skip
Begin: TypeAlias = Callable[[torch.optim.Optimizer], Callable[[nn.Module, int], None]]


def architecture() -> nn.Module:
    body = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
    more = nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*body, *more, nn.Flatten(), nn.Linear(64, 10))


class Lab:
    """Digits for training, some of them with false labels; others that choose; a test."""

    name = "digits"

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.test = ws.digits("test")

    def runs(self, setting: str, seed: int) -> Runs:
        n, share, steps = SETTINGS[setting]
        judge, rest = ws.digits("train").split(JUDGE / 1347, seed)
        some = rest.take(n, seed)
        return Runs(ws.random_labels(some, share, seed) if share else some, judge, 32 if self.quick else steps, seed)


class Runs:
    """The training runs of a seed; each is made once."""

    def __init__(self, task: ws.Task, judge: ws.Task, steps: int, seed: int) -> None:
        self.task, self.judge, self.steps, self.seed = task, judge, steps, seed
        self.constant, self.snapshots, self.fge = cache(self._constant), cache(self._snapshots), cache(self._fge)

    def _run(self, begin: Begin, steps: int = 0, seed: int | None = None) -> ws.Net:
        """Train; `begin(optimiser)` gives what is called with the module and the step after each of them."""
        seed = self.seed if seed is None else seed
        module = ws.fresh(architecture(), seed).module().train()
        optimiser = torch.optim.SGD(module.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
        after = begin(optimiser)
        for step in range(steps or self.steps):
            x, y = next(self.task.minibatch(BATCH, step, seed).batches())
            optimiser.zero_grad()
            F.cross_entropy(module(x), y).backward()
            optimiser.step()
            after(module, step)
        return ws.Net.of(module)

    def _constant(self) -> dict[str, Any]:
        """The run with a constant step size, and the averages that were taken along it."""
        lawa = ws.lawa(MEMBERS, every=max(1, self.steps // (4 * MEMBERS)))
        along = {"ema": ws.ema(DECAY), "swa": ws.swa(start=self.steps // 2), "lawa": lawa}

        def after(module: nn.Module, _: int) -> None:
            for average in along.values():
                average.update(module)

        return {"last": self._run(lambda optimiser: after), **along}

    def _snapshots(self) -> ws.flows.Cycle:
        made: list[ws.flows.Cycle] = []

        def begin(optimiser: torch.optim.Optimizer) -> Callable[[nn.Module, int], None]:
            made.append(ws.snapshots(optimiser, self.steps // MEMBERS))
            return lambda module, _: made[0].update(module)

        self._run(begin)
        return made[0]

    def _fge(self) -> ws.flows.Cycle:
        """A constant step size, and cycles in the last quarter of the run."""
        made: list[ws.flows.Cycle] = []
        start, cycle = self.steps - self.steps // 4, 2 * (self.steps // (8 * MEMBERS))

        def begin(optimiser: torch.optim.Optimizer) -> Callable[[nn.Module, int], None]:
            def after(module: nn.Module, step: int) -> None:
                if step + 1 == start:
                    made.append(ws.fge(optimiser, max(2, cycle)))
                elif made:
                    made[0].update(module)

            return after

        self._run(begin)
        return made[0]

    def cosine(self, steps: int, seed: int) -> ws.Net:
        def begin(optimiser: torch.optim.Optimizer) -> Callable[[nn.Module, int], None]:
            plan = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: (1 + math.cos(math.pi * k / steps)) / 2)
            return lambda *_: plan.step()

        return self._run(begin, steps, seed)

    def net(self, way: str) -> tuple[ws.Net, dict[str, Any]]:
        """The network of a way, and how many networks it asks."""
        if way == "last, new statistics":
            return ws.reset_statistics(self.constant()["last"], self.task), {"networks": 1}
        if way in ("last", "ema", "swa", "lawa"):
            found = self.constant()[way]
            return (found if way == "last" else found.net(self.task)), {"networks": 1}
        if way == "cosine":
            return self.cosine(self.steps, self.seed), {"networks": 1}
        if way == "independent, ensemble":
            seeds = [derived(self.seed, "independent", k) for k in range(MEMBERS)]
            nets = [self.cosine(self.steps // MEMBERS, seed) for seed in seeds]
            return ws.ensemble(nets), {"networks": MEMBERS}
        source, _, how = way.partition(", ")
        if how == "greedy":
            made = ws.atlas.soup(self.constant()[source].members, self.judge)
            return ws.reset_statistics(made.net, self.task), {"networks": 1, "kept": len(made.kept)}
        kept = self.constant()["lawa"] if source == "lawa" else getattr(self, source)()
        nets = [*kept.members.values()]
        if how == "ensemble":
            return ws.ensemble(nets), {"networks": len(nets)}
        along = ws.Path.through(nets).map(lambda net: ws.reset_statistics(net, self.task))
        return ws.reset_statistics(ws.swa(nets), self.task), {"networks": 1, "barrier": along.barrier(self.task, 13)}


def runs(lab: Lab, seed: int) -> Iterator[Job]:
    """Every average and every ensemble of a setting."""
    for setting in ("short",) if lab.quick else SETTINGS:
        made = lab.runs(setting, seed)
        for way in WAYS:
            yield f"runs/{setting}/{way}/{seed}", partial(_told, lab, made, way)


def _told(lab: Lab, made: Runs, way: str) -> dict[str, Any]:
    net, more = made.net(way)
    return {"right": ws.accuracy(lab.test)(net), "loss": float(lab.test(net)), **more}


def tables(record: Record, name: str) -> dict[str, str]:
    """Mark in the README -> table."""
    rows, barriers = [], []
    for way in WAYS:
        cells = [_against(record, f"runs/{setting}", way) for setting in SETTINGS]
        if any(cells):
            rows.append([way, brief(record.median(f"runs/{[*SETTINGS][-1]}/{way}", "networks")), *cells])
        if way.endswith("average"):
            shown = [number(record.median(f"runs/{setting}/{way}", "barrier")) for setting in SETTINGS]
            barriers += [[way.partition(",")[0], *shown]] if any(shown) else []
    heads = [f"{setting}: right, %, loss" for setting in SETTINGS]
    found = block(f"averages {name}", ["", "networks asked", *heads], rows)
    return found | block(f"average paths {name}", ["barrier along the members of", *SETTINGS], barriers)


def _against(record: Record, at: str, way: str) -> str:
    """Mean test accuracy in per cent, its difference from the last network with a 95 % interval, and the mean loss."""
    mine, last = ({key.rpartition("/")[2]: row for key, row in record.rows.items() if key.startswith(f"{at}/{w}/")}
                  for w in (way, "cosine"))  # fmt: skip
    if not mine:
        return ""
    mean, loss = (sum(row[n] for row in mine.values()) / len(mine) for n in ("right", "loss"))
    both = [seed for seed in mine if seed in last]
    if way == "cosine" or len(both) < 2:
        return f"{percent(mean)}, {number(loss)}"
    apart = [100 * (mine[s]["right"] - last[s]["right"]) for s in both]
    return f"{percent(mean)} ({sum(apart) / len(apart):+.1f} ± {number(half_width(apart), 1)}), {number(loss)}"


main = command(
    "averaged",
    __doc__,
    {"runs": runs},
    lambda given: Lab(given.quick),
    tables,
    data="not read",
    seeds=(0, 1, 2, 3, 4),
    say=lambda row: f"{row['right']:.3f}, loss {row['loss']:.3f}, {row['networks']} asked",
)


if __name__ == "__main__":
    sys.exit(main())
