"""Split CIFAR-100: 20 tasks of five classes, one after the other, one head of 100 outputs from the start.

The network has learnt CIFAR-10 before; the running statistics of its norms stay as they were. The loss of an image
sees the five outputs of its own task. Accuracy at the end is asked twice: among the five classes of the image's task
(task-incremental: somebody says which task it is), and among all (class-incremental). Run by
`experiments.colours split`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weightspace as ws
from experiments import split
from experiments.continual import FAST, RATE, adam, cycle
from experiments.nets import tensors
from experiments.record import Job, Record, block, number, percent
from experiments.residual import FULL, QUICK, SMALL, Lab, residual, shifted
from weightspace.task.datasets import STATISTICS

EPOCHS = 4  # of every task; three times as many of all at once
BATCH, REHEARSED = 32, 32
KEPT, MORE = 25, 50  # images a task, and where a way says so
OUTER, ROWS, LENGTH, BUDGET = 12, 50, 0.02, 4.0  # of the invariant path: steps a task, images, length, drift
LAYERED, DAMPING = 4, 10.0  # steps a task in the layers' null spaces; of steps that are projected


class Hundred(split.Stage):
    """Tasks of CIFAR-100, or the embedded digits as five tasks of two."""

    def __init__(self, data: str | None, quick: bool = False, full: bool = False, device: str = "cpu") -> None:
        self.outputs, self.tasks, self.each = (100, 20, 5) if data else (10, 3 if quick else 5, 2)
        self.size = QUICK if quick else FULL if full else SMALL
        self.device, self.folder = device, None if data is None else Path(data)
        self.epochs = 30 if full else EPOCHS
        self.before = Lab(str(self.folder.parent / "cifar10"), quick, full, device) if self.folder else None
        self._read: dict[str, tuple[Tensor, Tensor]] = {}
        super().__init__(data, quick)
        self.name = ("cifar100" if data else "digits") + (" full" if full else "")

    def _part(self, data: str | None, which: str, k: int) -> ws.Task:
        """The classes of task k, standardised as CIFAR-10."""
        x, y = self._pixels(which)
        mine = (y // self.each == k).nonzero()[:, 0][: 40 if self.quick else None]
        return ws.Task(x[mine], y[mine])

    def _pixels(self, which: str) -> tuple[Tensor, Tensor]:
        if which not in self._read:
            mean, deviation = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in STATISTICS["cifar10"])
            x, y = tensors(ws.digits(which) if self.folder is None else _parquet(self.folder, which))
            self._read[which] = (x if self.folder is None else (x - mean) / deviation, y)
        return self._read[which]

    def fresh(self, seed: int) -> ws.Net:
        torch.manual_seed(seed)
        net = ws.Net.of(residual(self.new.example(1).shape[1], self.outputs, self.size)).to(self.device)
        if self.before is None:
            return net
        head = list(net.weights)[-2:]
        return net.load({**self.before.net(seed).tensors, **{name: net.weights[name] for name in head}})

    def own(self, task: ws.Task) -> ws.Task:
        """The cross-entropy of every image among the classes of its own task."""

        def among(f: Tensor, y: Tensor) -> Tensor:
            mine = f.unflatten(1, (-1, self.each))
            return F.cross_entropy(mine[torch.arange(len(y)), y // self.each], y % self.each, reduction="none")

        return ws.Task(*tensors(task), metric=among)

    def goal(self, task: ws.Task, seed: int) -> Any:
        return ws.learn(self.own(task), BATCH, seed, augment=shifted)

    def steps(self, task: ws.Task, epochs: int) -> int:
        if self.quick:
            return 2
        return (self.epochs if task is self.new else 3 * self.epochs) * max(1, len(task) // BATCH)


def _parquet(folder: Path, which: str) -> ws.Task:
    return ws.task.read(folder / f"{which}.parquet")


# ------------------------------------------------------------------ ways to learn


def new(lab: Hundred, seed: int) -> Any:
    return lab.goal(lab.new, seed)


def rehearsed(lab: Hundred, net: ws.Net, memory: ws.Task, seed: int, augment: Any = None) -> Any:
    """DER++: the old outputs on the memory and its labels; on changed copies of it with an `augment`."""
    held = ws.hold(lab.own(memory), net, batch=REHEARSED, seed=seed, labels=float(lab.outputs), augment=augment)
    return new(lab, seed) + 0.5 / lab.outputs * held


def ewc(lab: Hundred, net: ws.Net, memory: ws.Task, seed: int) -> Any:
    """The diagonal of the Fisher information, estimated anew on images of all old tasks before every task."""
    return new(lab, seed) + ws.ewc(net, lab.old.take(40 if lab.quick else 200, seed), 100.0, seed)


def teacher(lab: Hundred, net: ws.Net, memory: ws.Task, seed: int) -> Any:
    """The loss of the paper's published code, the teacher truly frozen."""
    return new(lab, seed) + 50 * ws.hold(memory, net, "bhattacharyya", batch=REHEARSED, seed=seed)


def layers(lab: Hundred, net: ws.Net, memory: ws.Task, seed: int, steps: int = LAYERED) -> ws.Net:
    """In the null spaces of what the layers are given by the memory."""
    goal = ws.learn(lab.own(lab.new), 256, seed, augment=shifted)
    return _walked(lab, net, goal, ws.Pullback(memory, solver="layer"), steps, corrections=0)


def held(lab: Hundred, net: ws.Net, memory: ws.Task, seed: int, damping: float = math.inf) -> ws.Net:
    """The old outputs on changed copies of the memory, no labels; Adam, its steps projected for the memory's inputs."""
    metric = ws.NullSpace.of(ws.Adam(), net, memory, damping)
    goal = new(lab, seed) + 2 / lab.outputs * ws.hold(memory, net, batch=REHEARSED, seed=seed, augment=shifted)
    steps = lab.steps(lab.new, lab.epochs)
    return ws.flow(net, goal, metric, steps=steps, size=cycle(FAST), save=steps)[-1]


def projected(lab: Hundred, net: ws.Net, memory: ws.Task, seed: int, damping: float) -> ws.Net:
    """Adam on the new task alone, its steps projected for the memory's inputs."""
    metric, steps = ws.NullSpace.of(ws.Adam(), net, memory, damping), lab.steps(lab.new, lab.epochs)
    return ws.flow(net, new(lab, seed), metric, steps=steps, size=cycle(RATE), save=steps)[-1]


def path(lab: Hundred, net: ws.Net, memory: ws.Task, seed: int) -> ws.Net:
    """The invariant path: steps within a drift budget on images of the memory, of each the outputs of its own task."""
    asked = ws.Net.of(Asked(net.live(), lab.each))
    goal = ws.learn(_asked(lab, lab.new), 256, seed, augment=lambda pair, g: (shifted(pair[0], g), pair[1]))
    metric = ws.Pullback(_asked(lab, memory.take(ROWS, seed)), damping=1e-6, solver="gltr")
    return net.at(net.weights.shaped(_walked(lab, asked, goal, metric, OUTER, budget=BUDGET).weights.flat()))


class Asked(nn.Module):
    """A network that is told which task an image is of, and answers with the outputs of that task."""

    def __init__(self, inside: nn.Module, each: int) -> None:
        super().__init__()
        self.inside, self.each = inside, each

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        at = task[:, None, None].expand(-1, 1, self.each)
        return self.inside(x).unflatten(1, (-1, self.each)).gather(1, at)[:, 0]


def _asked(lab: Hundred, task: ws.Task) -> ws.Task:
    x, y = tensors(task)
    return ws.Task((x, y // lab.each), y % lab.each)


def _walked(lab: Hundred, net: ws.Net, goal: Any, metric: ws.Pullback, steps: int, **limits: Any) -> ws.Net:
    steps, size = 1 if lab.quick else steps, LENGTH * float(net.weights.norm())
    return ws.flow(net, goal, metric, steps=steps, size=size, save=steps, **limits)[-1]


Way = Callable[[Any, ws.Net, ws.Task, int], ws.Net]

WAYS: dict[str, Way | None] = {
    "all at once": None,
    "naive": adam(lambda lab, net, memory, seed: new(lab, seed)),
    "DER++": adam(rehearsed),
    "held on changed copies": adam(partial(rehearsed, augment=shifted)),
    "invariant path": path,
    "EWC": adam(ewc),
    "replay": adam(lambda lab, net, memory, seed: new(lab, seed) + ws.learn(lab.own(memory), REHEARSED, seed)),
    "frozen teacher": adam(teacher),
    "A-GEM": adam(lambda lab, net, memory, seed: ws.gem(new(lab, seed), [lab.own(memory)], REHEARSED, seed)),
    "layers' null space": layers,
    "DER++, 50 kept": adam(rehearsed),
    "outputs held, 50 kept": held,
    "outputs held, steps projected, 50 kept": partial(held, damping=DAMPING),
    "steps projected alone, damping .01, 50 kept": partial(projected, damping=0.01),
    "steps projected alone, damping 1, 50 kept": partial(projected, damping=1.0),
    "steps projected alone, damping 10, 50 kept": partial(projected, damping=10.0),
    "layers' null space, 4 steps, 50 kept": layers,
    "layers' null space, 8 steps, 50 kept": partial(layers, steps=8),
    "layers' null space, 16 steps, 50 kept": partial(layers, steps=16),
}  # fmt: skip


def sequences(lab: Hundred, seed: int, only: list[str]) -> Iterator[Job]:
    """All tasks one after the other, by every way."""
    for way in only or WAYS:
        if way in WAYS:
            yield f"split/{lab.name}/{way}/{seed}", partial(measured, lab, way, seed)


def measured(lab: Hundred, way: str, seed: int) -> dict[str, Any]:
    """Accuracy of every task at the end among all classes, and among its own; the means."""
    began = time.perf_counter()
    each = MORE if way.endswith("50 kept") else KEPT
    net = split.learnt(lab, WAYS[way], each * lab.tasks if not lab.quick else 20, seed)
    seconds = time.perf_counter() - began
    found = [_judged(lab, net, k, task) for k, task in enumerate(lab.test)]
    right, within = ([pair[i] for pair in found] for i in (0, 1))
    means = [sum(parts) / lab.tasks for parts in (right, within)]
    return {"right": right, "within": within, "mean": means[0], "mean_within": means[1], "seconds": seconds}


def _judged(lab: Hundred, net: ws.Net, k: int, task: ws.Task) -> tuple[float, float]:
    f, y = task.outputs(net).cpu(), tensors(task)[1]
    mine = f[:, k * lab.each : (k + 1) * lab.each].argmax(1) + k * lab.each
    return float((f.argmax(1) == y).double().mean()), float((mine == y).double().mean())


def tables(record: Record, name: str) -> dict[str, str]:
    """Mark in the README -> table."""
    rows = []
    for way in WAYS:
        at = f"split/{name}/{way}"
        if record.median(at, "mean") is None:
            continue
        shown = []
        for mean, parts in (("mean_within", "within"), ("mean", "right")):
            every, bar = record.median(at, parts), record.median(f"split/{name}/DER++", mean)
            share = number(record.median(at, mean) / bar, 2) if bar else ""
            quarter = max(1, len(every) // 4)
            ends = " / ".join(percent(sum(some) / quarter) for some in (every[:quarter], every[-quarter:]))
            shown += [percent(record.median(at, mean)), share, ends]
        rows.append([way, *shown, number(record.median(at, "seconds"), 0), str(len(record.of(at)))])
    asked = "task given", "among all"
    each = ["{}, %", "of DER++, {}", "first / last quarter of the tasks, {}, %"]
    head = ["way", *(part.format(how) for how in asked for part in each), "seconds", "seeds"]
    return block(f"split {name}", head, rows)
