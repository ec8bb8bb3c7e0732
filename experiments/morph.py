"""Training along a homotopy of tasks, beside fine-tuning, frozen layers and training anew, at equal gradients.

    python -m experiments.morph [halves turned garments bounds] [--data DIR] [--seeds 0 1 2] [--quick]

`halves`: digits 0-4, then 5-9; `turned`: digits, then the same turned by 90 degrees; `garments`: MNIST, then
Fashion-MNIST (needs --data, a folder with those of both, named so); `bounds`: other bounds. Embedded digits without
--data. Rows that are there are not measured again.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weightspace as ws
from experiments.nets import tensors
from experiments.record import Job, Record, block, command, half_width, percent

SIZES, BOUND, RATE, BATCH = (10, 100, 1000), 0.5, 3e-3, 64
BOUNDS = (0.1, 2.0)
EARLY = 0.2  # of the gradients of the control, on examples of both tasks
PLAIN = ("anew", "fine-tuned", "last layer only", "half, then all")
MORPHS = ("batches", "inputs, transport", "inputs, class", "turning")
WAYS = PLAIN + MORPHS


class Lab:
    """The tasks, and networks that have learnt the first of each pair."""

    def __init__(self, data: str | None, quick: bool) -> None:
        self.data, self.quick, self.name = data, quick, "mnist" if data else "digits"
        self.gradients = 20 if quick else 400
        self.sizes = SIZES[1:2] if quick else SIZES
        self.nets: dict[tuple[str, int], ws.Net] = {}
        self.pair = cache(self._pair)

    def images(self, name: str, split: str) -> tuple[Tensor, Tensor]:
        """Images, those of MNIST and Fashion-MNIST as means of four pixels, and labels."""
        if self.data is None:
            return tensors(ws.digits(split))
        read = ws.mnist if name == "mnist" else ws.fashion_mnist
        x, y = tensors(read(Path(self.data) / name, split).take(6000 if split == "train" else 2000, 0))
        return F.avg_pool2d(x, 2), y

    def _pair(self, name: str, split: str) -> tuple[ws.Task, ws.Task]:
        """The first and the second task of an experiment."""
        x, y = self.images("mnist", split)
        if name == "halves":
            low, high = y < 5, y > 4
            return ws.Task(x[low], y[low]), ws.Task(x[high], y[high] - 5)
        other = (x.rot90(1, (-2, -1)), y) if name == "turned" else self.images("fashion-mnist", split)
        return ws.Task(x, y), ws.Task(*other)

    def net(self, name: str, first: ws.Task, seed: int) -> ws.Net:
        """A network that has learnt the first task."""
        if (name, seed) not in self.nets:
            start = module(first, seed)
            self.nets[name, seed] = descent(start, first, 20 if self.quick else 1000, seed)[-1]
        return self.nets[name, seed]


def module(task: ws.Task, seed: int) -> ws.Net:
    """A perceptron with two layers of 100 units."""
    torch.manual_seed(seed)
    sizes = [task.example(1)[0].numel(), 100, 100]
    parts = [part for i, o in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(i, o), nn.ReLU())]
    return ws.Net.of(nn.Sequential(nn.Flatten(), *parts, nn.Linear(100, 10)))


def descent(net: ws.Net, task: ws.Task, steps: int, seed: int, mask: ws.Weights | None = None) -> ws.Flow:
    """Adam at a constant rate."""
    return ws.flow(net, ws.learn(task, BATCH, seed), ws.Adam(), steps=steps, size=RATE, mask=mask)


def turning(b: ws.Task) -> Callable[[float], ws.Task]:
    """The images of a task, turned back by a quarter at t = 0 and as they are at t = 1."""

    def at(t: float) -> ws.Task:
        a = -math.radians(90 * (1 - t))
        turn = torch.tensor([[math.cos(a), -math.sin(a), 0.0], [math.sin(a), math.cos(a), 0.0]])

        def turned(x: Tensor) -> Tensor:
            grid = F.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
            return F.grid_sample(x - x.min(), grid, align_corners=False) + x.min()

        return b if t == 1 else b.mapped(turned)

    return at


def jobs_of(name: str) -> Callable[[Lab, int], Iterator[Job]]:
    """The jobs of one pair of tasks: every number of examples, every way to learn the second task."""

    def jobs(lab: Lab, seed: int) -> Iterator[Job]:
        if name == "garments" and lab.data is None:
            return
        for n in lab.sizes:
            for way in WAYS:
                if way != "turning" or name == "turned":
                    key = f"{name}/{lab.name}/{n}/{way}/{seed}"
                    yield key, lambda n=n, way=way: learnt(lab, name, n, way, seed)

    return jobs


def bounds(lab: Lab, seed: int) -> Iterator[Job]:
    """Morphs along optimal transport within other bounds, from 100 examples."""
    for name in ("halves", "turned") if lab.data is None else ("halves", "turned", "garments"):
        for bound in BOUNDS[:1] if lab.quick else BOUNDS:
            key = f"bounds/{lab.name}/{name}, {bound}/{seed}"
            yield key, lambda name=name, bound=bound: learnt(lab, name, 100, "inputs, transport", seed, bound)


def learnt(lab: Lab, name: str, n: int, way: str, seed: int, bound: float = BOUND) -> dict[str, Any]:
    """Accuracy and losses of the second task along one way to learn it."""
    (first, second), (_, test) = lab.pair(name, "train"), lab.pair(name, "test")
    some = second.take(n, seed)
    start, shown = lab.net(name, first, seed), first.take(1000, seed)
    row: dict[str, Any] = {}
    if way in PLAIN:
        net = module(first, seed + 100) if way == "anew" else start
        last = [name for name in net.weights if name.startswith("5.")]
        fixed = net.weights.zeros().replace({name: torch.ones_like(net.weights[name]) for name in last})
        early = 0 if way != "half, then all" else round(EARLY * lab.gradients)
        if early:  # a control: examples of both tasks, without a homotopy
            net = descent(net, ws.homotopy(shown, some, "batches", seed=seed)(0.5), early, seed)[-1]
        path = descent(net, some, lab.gradients - early, seed, fixed if way == "last layer only" else None)
    else:
        kind, _, pairs = way.partition(", ")
        if way == "inputs, class":  # of few examples some classes may be missing
            there = torch.isin(shown.labels(), some.labels()).nonzero().flatten()
            shown = shown.pick(there.tolist())
        found = ws.homotopy(shown, some, kind, pairs=pairs or "transport") if way != "turning" else turning(some)
        done = ws.morph(start, found, bound=bound, budget=lab.gradients, size=RATE, batch=BATCH, seed=seed)
        path, row = done.path, {"t": done.t, "arrived": done.arrived}
    points = [path[k] for k in range(0, len(path), 2)]
    right = [ws.accuracy(test)(net) for net in points]
    return row | {"right": right[-1], "loss": float(test(path[-1])), "train": float(some(path[-1])), "along": right}


# ------------------------------------------------------------------ tables


def tables(record: Record, name: str) -> dict[str, str]:
    """Accuracy of every cell, and differences from fine-tuning with intervals."""
    rows, shown = [], {"halves": "0-4 to 5-9", "turned": "turned by 90 degrees", "garments": "to Fashion-MNIST"}
    for pair, title in shown.items():
        for n in SIZES:
            at = [record.median(f"{pair}/{name}/{n}/{way}", "right") for way in WAYS]
            if any(at):
                rows.append([title, str(n), *(percent(value) for value in at)])
    blocks = block(f"morph accuracy {name}", ["task", "examples", *WAYS], rows)
    head = f"bound, nats | task | t reached | after gradients | accuracy, % | within {BOUND:g} | fine-tuned"
    blocks |= block(f"morph bounds {name}", head, bounded(record, name))
    return blocks | block(
        f"morph beside fine-tuning {name}",
        "way | accuracy, points | loss of the test, nats | better in cells | gradients to its accuracy | t = 1 reached",
        [line for way in WAYS if way != "fine-tuned" and (line := beside(record, name, way))],
    )


def beside(record: Record, name: str, way: str) -> list[str]:
    """One way beside fine-tuning: mean differences over cells and seeds with 95 % intervals."""
    pairs: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for key, row in record.rows.items():
        cell, _, rest = key.rpartition(f"/{way}/")
        other = record.rows.get(f"{cell}/fine-tuned/{rest}")
        if cell and cell.split("/")[1] == name and other:
            pairs.setdefault(cell, []).append((row, other))
    every = [pair for found in pairs.values() for pair in found]
    if not every:
        return []
    better = sum(statistics.mean(a["right"] - b["right"] for a, b in found) > 0 for found in pairs.values())
    times = [f"{sum(a['t'] == 1 for a, _ in every)} of {len(every)}"] if "t" in every[0][0] else [""]
    return [
        way,
        interval([100 * (a["right"] - b["right"]) for a, b in every]),
        interval([a["loss"] - b["loss"] for a, b in every], 3),
        f"{better} of {len(pairs)}",
        soonest(every, EARLY if way == "half, then all" else 0.0),
        *times,
    ]


def soonest(pairs: list[tuple[dict[str, Any], dict[str, Any]]], early: float) -> str:
    """Median share of the gradients after which a way has the accuracy that fine-tuning has in the end.

    `early`: the share of the gradients before the first accuracy of the way.
    """
    shares = [
        next(
            (
                early + (1 - early) * k / (len(a["along"]) - 1)
                for k, right in enumerate(a["along"])
                if right >= b["right"]
            ),
            math.inf,
        )
        for a, b in pairs
    ]
    own = [
        next(k / (len(b["along"]) - 1) for k, right in enumerate(b["along"]) if right >= b["right"]) for _, b in pairs
    ]
    middle = statistics.median(shares)
    told = "not reached" if math.isinf(middle) else f"{middle:.0%}"
    return f"{told} (itself {statistics.median(own):.0%})"


def interval(values: list[float], digits: int = 2) -> str:
    """A mean with its 95 % interval by Student's t."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.{digits}f}"
    return f"{mean:+.{digits}f} ± {half_width(values):.{digits}f}"


def bounded(record: Record, name: str) -> list[list[str]]:
    """What a bound does: how far the task came, after how many gradients, and the accuracy beside fine-tuning."""
    rows = []
    for bound in BOUNDS:
        for pair in ("halves", "turned", "garments"):
            seen = record.of(f"bounds/{name}/{pair}, {bound}")
            if seen:
                at = f"{pair}/{name}/100"
                arrived = statistics.median(row["arrived"] or math.inf for row in seen)
                told = "never" if math.isinf(arrived) else f"{arrived:g}"
                right = [record.median(place, "right") for place in (f"bounds/{name}/{pair}, {bound}",
                         f"{at}/inputs, transport", f"{at}/fine-tuned")]  # fmt: skip
                t = f"{statistics.median(row['t'] for row in seen):.2f}"
                rows.append([f"{bound:g}", pair, t, told, *map(percent, right)])
    return rows


EXPERIMENTS = {name: jobs_of(name) for name in ("halves", "turned", "garments")} | {"bounds": bounds}
main = command(
    "morph",
    __doc__,
    EXPERIMENTS,
    lambda given: Lab(given.data, given.quick),
    tables,
    data="folder with those of MNIST and Fashion-MNIST",
    say=lambda row: f"{percent(row['right'])} %, arrived {row.get('arrived')}",
)

if __name__ == "__main__":
    sys.exit(main())
