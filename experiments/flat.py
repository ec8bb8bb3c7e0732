"""Flat minima on digits: the worst and the mean loss in balls of several metrics, few examples and false labels.

    python -m experiments.flat [balls] [--seeds 0 1 2] [--quick]

Every way takes the same number of gradients of the loss, 600: a goal that needs two a step takes half the steps. The
strength of each (radius, decay) is the best of a few on 300 other examples with true labels; test accuracy is told.
"Plain, stopped early" is the control: a shorter run, its length chosen alike, helps by itself where labels are false.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import weightspace as ws
from experiments.record import Job, Record, block, command, half_width, number, percent

GRADIENTS, BATCH, RATE, EARLY = 600, 32, 5e-3, "plain, stopped early"
JUDGE, KEPT, DAMPING = 300, 20, 1e-2
CELLS = ((100, 0.0), (300, 0.4), (1000, 0.4))
WAYS: dict[str, tuple[float, ...]] = {
    "plain": (0.0,),
    "plain, half the steps": (0.0,),
    "plain, stopped early": (0.1, 0.2, 0.4, 0.7, 1.0),  # shares of the gradients
    "weight decay": (1e-3, 1e-2, 3e-2, 1e-1),
    "adversarial training": (0.01, 0.03, 0.1, 0.2),
    "SAM": (0.02, 0.05, 0.2, 0.5),
    "mean in a ball": (0.2, 0.5, 1.5),
    "relative": (0.01, 0.03, 0.1),
    "ASAM": (0.2, 0.5, 1.5),
    "Fisher-SAM": (0.02, 0.05, 0.2, 0.5),
    "Fisher ball": (0.02, 0.06),
    "ball of functions": (0.03, 0.1),
}


@dataclass(frozen=True)
class Adaptive:
    """The metric of ASAM: |v|^2 = sum_i (v_i / |w_i|)^2."""

    def norm(self, net: ws.Net, vector: ws.Weights) -> Tensor:
        w = net.weights.flat().abs()
        return torch.where(w > 0, vector.flat() / w, 0.0).double().norm()

    def steepest(self, net: ws.Net, covector: ws.Weights) -> ws.Weights:
        scaled = net.weights.flat().abs() * covector.flat()
        return covector.shaped(-net.weights.flat().abs() * scaled / scaled.norm().clamp(min=1e-12))


@dataclass(frozen=True)
class Diagonal:
    """The metric of Fisher-SAM: |v|^2 = sum_i (1 + eta g_i^2) v_i^2, with the squared gradient for the Fisher diagonal.

    The published steps are v = F^-1 g / sqrt(g F^-1 g) with F^-1 = 1 / (1 + eta g^2).
    """

    eta: float = 1.0

    def norm(self, net: ws.Net, vector: ws.Weights) -> Tensor:
        return vector.norm()

    def steepest(self, net: ws.Net, covector: ws.Weights) -> ws.Weights:
        g = covector.flat()
        turned = g / (1 + self.eta * g.square())
        return covector.shaped(-turned / (g @ turned).sqrt().clamp(min=1e-12))


class Lab:
    """Digits: few for training, with false labels; others that choose; a test."""

    name = "digits"

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.test = ws.digits("test")

    def tasks(self, n: int, share: float, seed: int) -> tuple[ws.Task, ws.Task]:
        judge, rest = ws.digits("train").split(JUDGE / 1347, seed)
        some = rest.take(n, seed)
        return (ws.random_labels(some, share, seed) if share else some), judge

    def start(self, seed: int) -> ws.Net:
        return ws.fresh(nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), seed)


def goal_of(way: str, task: ws.Task, strength: float, seed: int) -> tuple[Any, int]:
    """The goal of a way of training, and how many gradients of the loss it takes a step."""
    plain = ws.learn(task, BATCH, seed)
    if way.startswith("plain"):
        return plain, 2 if "half" in way else 1
    if way == "weight decay":
        return plain + (lambda net: strength / 2 * sum(w.square().sum() for w in net.weights.values())), 1
    if way == "adversarial training":
        return ws.harden(task, strength, steps=1, batch=BATCH, seed=seed, span=(0.0, 1.0)), 2
    some = task.take(KEPT, seed)
    metrics: dict[str, Callable[[], Any]] = {
        "relative": ws.Relative,
        "ASAM": Adaptive,
        "Fisher-SAM": Diagonal,
        "Fisher ball": lambda: ws.Pullback(some, output="fisher", damping=DAMPING),
        "ball of functions": lambda: ws.Pullback(some, damping=DAMPING),
    }
    kind = "mean" if way == "mean in a ball" else "worst"
    return ws.neighbourhood(plain, metrics.get(way, ws.Euclidean)(), strength, kind, seed=seed), 2


def balls(lab: Lab, seed: int) -> Iterator[Job]:
    """Every way of training on every set of examples."""
    for n, share in CELLS[:1] if lab.quick else CELLS:
        for way in WAYS:
            yield f"balls/{n} {share:g}/{way}/{seed}", partial(_trained, lab, n, share, way, seed)


def _trained(lab: Lab, n: int, share: float, way: str, seed: int) -> dict[str, Any]:
    task, judge = lab.tasks(n, share, seed)
    chosen, right = ws.accuracy(judge), ws.accuracy(lab.test)
    found = []
    for strength in WAYS[way]:
        goal, cost = goal_of(way, task, strength, seed)
        steps = round((12 if lab.quick else GRADIENTS) / cost * (strength if way == EARLY else 1))
        net = ws.flow(lab.start(seed), goal, ws.Adam(), steps=steps, size=_cosine, save=steps)[-1]
        found.append((chosen(net), right(net), strength))
    best = max(found)
    return {"test": best[1], "strength": best[2], "tests": [row[1] for row in found]}


def _cosine(done: float) -> float:
    return RATE * (1 + math.cos(math.pi * done)) / 2


def tables(record: Record, name: str) -> dict[str, str]:
    """Mark in the README -> table."""
    rows = []
    for way in WAYS:
        cells = [_against(record, f"balls/{n} {share:g}", way) for n, share in CELLS]
        if any(cells):
            rows.append([way, *cells])
    heads = [f"{n:,} examples" + (f", {share:.0%} false" if share else "") for n, share in CELLS]
    return block(f"balls {name}", ["trained on", *heads], rows)


def _against(record: Record, at: str, way: str) -> str:
    """Mean test accuracy in per cent, and the mean difference from the control with its 95 % interval over seeds."""
    mine, control = ({key.rpartition("/")[2]: row["test"] for key, row in record.rows.items()
                      if key.rpartition("/")[0] == f"{at}/{w}"} for w in (way, EARLY))  # fmt: skip
    if not mine:
        return ""
    mean, both = percent(sum(mine.values()) / len(mine)), [seed for seed in mine if seed in control]
    if way == EARLY or len(both) < 2:
        return mean
    apart = [100 * (mine[seed] - control[seed]) for seed in both]
    return f"{mean} ({sum(apart) / len(apart):+.1f} ± {number(half_width(apart), 1)})"


main = command(
    "flat",
    __doc__,
    {"balls": balls},
    lambda given: Lab(given.quick),
    tables,
    data="not read",
    seeds=(0, 1, 2),
    say=lambda row: f"{row['test']:.3f} at {row['strength']:g}: {row['tests']}",
)


if __name__ == "__main__":
    sys.exit(main())
