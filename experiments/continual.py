"""Continual learning: MNIST, then Fashion-MNIST, by one network of 20 outputs; how much of MNIST it keeps.

    python -m experiments.continual [METHOD ..] --data DIR [--memories 50 200 2000] [--seeds 0 1 2] [--quick]

DIR holds the folders mnist and fashion-mnist. Without --data: embedded digits, then the same digits turned. Rows that
are there are not measured again.
"""

from __future__ import annotations

import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weightspace as ws
from experiments.nets import tensors
from experiments.record import Job, Record, block, command, number, percent

EPOCHS, BATCH, REHEARSED = (2, 4), 128, 64
RATE, FAST = 1e-3, 2e-3


def cnn(side: int) -> nn.Module:
    """32 and 64 kernels, 400 and 120 units, 20 outputs: 1,324,156 weights on images of 28 x 28."""
    one = nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    two = nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    wide = 64 * (side // 4) ** 2
    last = nn.Linear(wide, 400), nn.ReLU(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 20)
    return nn.Sequential(*one, *two, nn.Flatten(), *last)


def cycle(top: float) -> Callable[[float], float]:
    """A learning rate that rises over a quarter of the steps and falls as a cosine."""
    return lambda done: (
        top * (max(done, 0.01) / 0.25 if done < 0.25 else (1 + math.cos(math.pi * (done - 0.25) / 0.75)) / 2)
    )


def jitter(x: Tensor, generator: torch.Generator, share: float = 1.0) -> Tensor:
    """Images turned by up to 12 degrees, sheared, scaled and moved by about a tenth; or by a `share` of that."""

    def draw(size: float) -> Tensor:
        return (torch.rand(len(x), generator=generator) * 2 - 1) * size * share

    turn, wide, high, shear = draw(math.radians(12)), 1 + draw(0.12), 1 + draw(0.12), draw(0.15)
    first = torch.stack([wide * turn.cos(), shear - wide * turn.sin(), draw(0.1)], 1)
    second = torch.stack([high * turn.sin(), high * turn.cos(), draw(0.1)], 1)
    grid = F.affine_grid(torch.stack([first, second], 1), list(x.shape), align_corners=False)
    return F.grid_sample(x - x.min(), grid, align_corners=False) + x.min()


class Lab:
    """Both tasks, and the network of a seed that has learnt the first."""

    outputs, known = 20, 10

    def __init__(self, data: str | None, quick: bool) -> None:
        self.quick, self.name = quick, "mnist to fashion-mnist" if data else "digits to turned digits"
        found = []
        for split in ("train", "test"):
            old = ws.mnist(Path(data) / "mnist", split) if data else ws.digits(split)
            new = ws.fashion_mnist(Path(data) / "fashion-mnist", split) if data else old
            x, y = self._tensors(old), self._tensors(new)
            later = y[0] if data else y[0].rot90(1, (-2, -1))
            found.append((ws.Task(x[0], x[1]), ws.Task(later, y[1] + 10)))
        (self.old, self.new), (self.old_test, self.new_test) = found
        self.nets: dict[int, ws.Net] = {}

    def _tensors(self, task: ws.Task) -> tuple[Tensor, Tensor]:
        return tensors(task.take(300) if self.quick else task)

    def steps(self, task: ws.Task, epochs: int) -> int:
        return 3 if self.quick else epochs * (len(task) // BATCH)

    def net(self, seed: int) -> ws.Net:
        if seed not in self.nets:
            torch.manual_seed(seed)
            start = ws.Net.of(cnn(self.old.example(1).shape[-1]))
            self.nets[seed] = self.run(start, ws.learn(self.old, BATCH, seed), self.steps(self.old, EPOCHS[0]), FAST)[
                -1
            ]
        return self.nets[seed]

    def run(self, net: ws.Net, goal: Any, steps: int, rate: float) -> ws.Flow:
        return ws.flow(net, goal, ws.Adam(), steps=steps, size=cycle(rate), save=steps)

    def memory(self, n: int, seed: int) -> ws.Task:
        """So many old images, as many of each class."""
        x, y = self._tensors(self.old)
        torch.manual_seed(1000 + seed)
        rows = [torch.nonzero(y == c)[:, 0] for c in range(10)]
        kept = torch.cat([row[torch.randperm(len(row))[: n // 10]] for row in rows])
        return ws.Task(x[kept], y[kept])


# ------------------------------------------------------------------ ways to learn

Way = Callable[[Lab, ws.Net, ws.Task, int], ws.Net]


def first(k: int) -> Callable[[Tensor], Tensor]:
    """The first k outputs."""
    return lambda f: f[:, :k]


def adam(terms: Callable[[Lab, ws.Net, ws.Task, int], Any], rate: float = RATE) -> Way:
    """Adam on the new task and something more."""

    def way(lab: Lab, net: ws.Net, memory: ws.Task, seed: int) -> ws.Net:
        goal = terms(lab, net, memory, seed)
        return lab.run(net, goal, lab.steps(lab.new, EPOCHS[1]), rate)[-1]

    return way


def new(lab: Lab, seed: int) -> Any:
    return ws.learn(lab.new, BATCH, seed)


def derpp(lab: Lab, net: ws.Net, memory: ws.Task, seed: int) -> Any:
    """alpha = .5 of the mean square over all outputs, beta = .5 of the cross-entropy."""
    held = ws.hold(memory, net, batch=REHEARSED, seed=seed, labels=float(lab.outputs))
    return new(lab, seed) + 0.5 / lab.outputs * held


def ewc(lab: Lab, net: ws.Net, memory: ws.Task, seed: int) -> Any:
    return new(lab, seed) + ws.ewc(net, lab.old.take(2000, seed), 100.0, seed)


def kept(lab: Lab, net: ws.Net, memory: ws.Task, seed: int) -> Any:
    """The old outputs held not on the memory itself but on changed copies of it, new ones at every step."""
    held = ws.hold(memory, net, batch=REHEARSED, seed=seed, labels=float(lab.outputs), augment=jitter)
    return new(lab, seed) + 0.5 / lab.outputs * held


def path(lab: Lab, net: ws.Net, memory: ws.Task, seed: int) -> ws.Net:
    """The invariant path itself: exact steps of equation 4, a drift budget, one correction a step."""
    metric = ws.Pullback(memory.take(50, seed), damping=1e-6)
    length = 0.02 * float(net.weights.norm())
    goal = ws.learn(lab.new, 512, seed)
    return ws.flow(net, goal, metric, steps=3 if lab.quick else 60, size=length, budget=8.0)[-1]


def joint(lab: Lab, net: ws.Net, memory: ws.Task, seed: int) -> ws.Net:
    """The ceiling: both tasks from the beginning, all images of both, as many epochs as the new task gets."""
    torch.manual_seed(seed)
    start = ws.Net.of(cnn(lab.old.example(1).shape[-1]))
    both = lab.old | lab.new
    return lab.run(start, ws.learn(both, BATCH, seed), lab.steps(both, EPOCHS[1]), FAST)[-1]


WAYS: dict[str, tuple[Way, bool]] = {  # and whether a memory is used
    "joint training": (joint, False),
    "held on changed copies": (adam(kept, FAST), True),
    "DER++": (adam(derpp), True),
    "DER++, rate doubled": (adam(derpp, FAST), True),
    "naive": (adam(lambda lab, net, memory, seed: new(lab, seed)), False),
    "LwF": (adam(lambda lab, net, memory, seed: new(lab, seed) + ws.hold(
        lab.new, net, "kl", batch=BATCH, seed=seed, temperature=2.0, output=first(lab.known))), False),
    "EWC": (adam(ewc), False),
    "replay": (adam(lambda lab, net, memory, seed: new(lab, seed) + ws.learn(memory, REHEARSED, seed)), True),
    "frozen teacher": (adam(lambda lab, net, memory, seed: new(lab, seed) + 50 * ws.hold(
        memory, net, "bhattacharyya", batch=REHEARSED, seed=seed)), True),
    "A-GEM": (adam(lambda lab, net, memory, seed: ws.gem(new(lab, seed), [memory], REHEARSED, seed)), True),
    "invariant path": (path, True),
}  # fmt: skip


def measured(lab: Lab, way: str, n: int, seed: int) -> dict[str, Any]:
    """Accuracies after, held-out drift of the old outputs, time."""
    net, memory = lab.net(seed), lab.memory(n, seed)
    began = time.perf_counter()
    end = WAYS[way][0](lab, net, memory, seed)
    seconds = time.perf_counter() - began
    old, late = (ws.accuracy(task) for task in (lab.old_test, lab.new_test))
    both = [old(end), late(end)]
    return {
        "old": both[0], "new": both[1], "mean": sum(both) / 2, "before": old(net), "seconds": seconds,
        "drift": ws.Pullback(lab.old_test.take(1000, seed=0)).drift(end, net),
    }  # fmt: skip


def tables(record: Record, name: str) -> dict[str, str]:
    """Mark in the README -> table."""
    ceiling, rows = record.median(f"{name}/joint training/0", "mean"), []
    for way, n in product(WAYS, sorted({int(key.split("/")[2]) for key in record.rows if key.startswith(name)})):
        at = f"{name}/{way}/{n}"
        if (mean := record.median(at, "mean")) is not None:
            shown = [*record.cells(at, "old new mean", percent), percent(ceiling and mean / ceiling)]
            last = [number(record.median(at, "drift"), 1), number(record.median(at, "seconds"), 0)]
            rows.append([way, str(n) if WAYS[way][1] else "", *shown, *last, str(len(record.of(at)))])
    head = "way | old images kept | old, % | new, % | mean, % | of the ceiling, % | drift | seconds | seeds"
    return block(f"continual {name}", head, rows)


def _jobs(lab: Lab, given: Namespace) -> Iterator[Job]:
    for seed in given.seeds:
        for way in given.chosen:
            for n in given.memories if WAYS[way][1] else [0]:
                yield f"{lab.name}/{way}/{n}/{seed}", partial(measured, lab, way, n or 50, seed)


main = command(
    "continual",
    __doc__,
    WAYS,
    lambda given: Lab(given.data, given.quick),
    tables,
    jobs=_jobs,
    data="folder with mnist and fashion-mnist",
    options={"--memories": {"type": int, "nargs": "*", "default": [50, 200, 2000], "help": "old images kept"}},
    say=lambda row: f"{row['old']:.4f} {row['new']:.4f} {row['mean']:.4f}",
)

if __name__ == "__main__":
    sys.exit(main())
