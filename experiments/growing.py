"""Outputs that grow: a network that gets more outputs with every task, told which task an image is of or not.

    python -m experiments.growing [SEQUENCE ..] [--data DIR] [--seeds 0 1 2] [--quick]

DIR holds the folders mnist and fashion-mnist; without it, embedded digits (five tasks of two; and digits, digits upside
down, digits on their side). Rows that are there are not measured again.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weightspace as ws
from experiments.continual import REHEARSED, cycle, first
from experiments.nets import tensors
from experiments.record import Job, Record, block, command, half_width, number, percent
from experiments.split import joined
from weightspace.net.seeds import derived

BATCH, EPOCHS, RATE, WIDE = 64, 3, 1e-3, 200
EACH = {"split": 2000, "images": 2000}  # images of a task
KEPT = {"split": 50, "images": 100}  # of them, for the ways that keep some
LENGTH, BUDGET, STEPS = 0.02, 4.0, 30  # of the invariant path: step, drift that a task may spend, steps a task
ASKED = {"class": "among all", "task": "task given"}


class Stage:
    """What a way to learn sees: the new task, the network before it grew, and what was kept of earlier tasks.

    `asked` "class": the loss sees all outputs that there are, and what is held is held of all, since new outputs must
    stay low on old images; "task": the loss sees those of the image's own task, and new ones are free on old images.
    """

    def __init__(self, data: str | None, quick: bool, sequence: str, asked: str) -> None:
        self.quick, self.asked = quick, asked
        self.train, self.test = (PARTS[sequence](data, which) for which in ("train", "test"))
        self.each, self.tasks = len(self.train[0][1].unique()), len(self.train)
        most = 40 if quick else EACH[sequence]
        self.train = [(x[:most], y[:most]) for x, y in self.train]
        self.kept = 2 * self.each if quick else KEPT[sequence]

    def begin(self, seed: int) -> ws.Net:
        self.outputs, self.known = self.each, 0
        self.memories, self.past = list[ws.Task](), list[tuple[ws.Net, ws.Task]]()
        return ws.fresh(partial(mlp, self.train[0][0][0].numel(), self.each), seed)

    @property
    def held(self) -> int:
        """How many outputs are held."""
        return self.outputs if self.asked == "class" else self.known

    def task(self, pair: tuple[Tensor, Tensor]) -> ws.Task:
        """Examples with the loss of the setting."""
        each = self.each

        def among(f: Tensor, y: Tensor) -> Tensor:
            own = f.unflatten(1, (-1, each))[torch.arange(len(y)), y // each]
            return F.cross_entropy(own, y % each, reduction="none")

        return ws.Task(*pair, metric=among) if self.asked == "task" else ws.Task(*pair)

    def steps(self, task: ws.Task, epochs: int = EPOCHS) -> int:
        return 2 if self.quick else epochs * max(1, len(task) // BATCH)

    def run(self, net: ws.Net, goal: Any, steps: int, rate: float = RATE, metric: Any = None) -> ws.Flow:
        return ws.flow(net, goal, metric or ws.Adam(), steps=steps, size=cycle(rate), save=steps)

    def grown(self, net: ws.Net, k: int, seed: int) -> ws.Net:
        """The network at the begin of task k."""
        self.new, self.known, self.outputs = self.task(self.train[k]), self.each * k, self.each * (k + 1)
        return ws.grow(net, outputs=self.each, seed=derived(seed, "outputs", k)) if k else net

    def over(self, net: ws.Net, k: int, seed: int) -> None:
        """Task k is over: its network, and as many images of each class, are kept."""
        x, y = self.train[k]
        self.past.append((net, ws.Task(x, y)))
        generator = torch.Generator().manual_seed(seed)
        rows = []
        for label in y.unique():
            mine = (y == label).nonzero()[:, 0]
            rows.append(mine[torch.randperm(len(mine), generator=generator)[: self.kept // self.each]])
        self.memories.append(ws.Task(x[torch.cat(rows)], y[torch.cat(rows)]))


def mlp(inputs: int, outputs: int) -> nn.Module:
    hidden = nn.Linear(inputs, WIDE), nn.ReLU(), nn.Linear(WIDE, WIDE), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(WIDE, outputs))


def read(data: str | None, which: str, name: str = "mnist") -> tuple[Tensor, Tensor]:
    """Images of 14 x 14, means of four pixels; without `data` the digits."""
    if not data:
        return tensors(ws.digits(which))
    x, y = tensors({"mnist": ws.mnist, "fashion-mnist": ws.fashion_mnist}[name](Path(data) / name, which))
    return F.avg_pool2d(x, 2), y


def digits(data: str | None, which: str) -> list[tuple[Tensor, Tensor]]:
    """Five tasks of two digits."""
    x, y = read(data, which)
    return [(x[y // 2 == k], y[y // 2 == k]) for k in range(5)]


def images(data: str | None, which: str) -> list[tuple[Tensor, Tensor]]:
    """MNIST, Fashion-MNIST, MNIST turned by a right angle."""
    x, y = read(data, which)
    turned = x.rot90(1, (-2, -1))
    if not data:
        return [(x, y), (x.rot90(2, (-2, -1)), y + 10), (turned, y + 20)]
    clothes, kinds = read(data, which, "fashion-mnist")
    half = len(x) // 2  # other images than those that are upright
    return [(x[:half], y[:half]), (clothes, kinds + 10), (turned[half:], y[half:] + 20)]


PARTS: dict[str, Callable[[str | None, str], list[tuple[Tensor, Tensor]]]] = {"split": digits, "images": images}


# ------------------------------------------------------------------ ways to learn

Way = Callable[[Any, ws.Net, ws.Task, int], ws.Net]


def new(lab: Stage, seed: int) -> Any:
    return ws.learn(lab.new, BATCH, seed)


def plus(term: Callable[[Stage, ws.Net, ws.Task, int], Any]) -> Way:
    """Adam on the new task and a term."""

    def way(lab: Stage, net: ws.Net, memory: ws.Task, seed: int) -> ws.Net:
        return lab.run(net, new(lab, seed) + term(lab, net, memory, seed), lab.steps(lab.new))[-1]

    return way


def held(lab: Stage, net: ws.Net, memory: ws.Task, seed: int, labels: bool = False) -> Any:
    """The outputs on the memory; with its labels it is DER++."""
    task, n = lab.task(tensors(memory)), lab.held
    old = ws.hold(task, net, batch=REHEARSED, seed=seed, output=first(n), labels=float(n) if labels else 0.0)
    return (0.5 if labels else 2.0) / n * old


def ewc(lab: Stage, net: ws.Net, memory: ws.Task, seed: int) -> Any:
    """The diagonal of the Fisher information on 1,000 images of all old tasks."""
    old = joined([task for _, task in lab.past])
    return ws.ewc(net, old.take(min(1000, len(old)), seed), 100.0, seed)


def null_space(
    lab: Stage, net: ws.Net, memory: ws.Task, seed: int, damping: float = 1.0, free: bool = False, hold: bool = False
) -> ws.Net:
    """Adam, its steps projected for the inputs of every layer on all old images, of which none is kept.

    With `free` the metric is that of the networks before they grew, so that new outputs are free; else of the one that
    has grown.
    """
    inside = lab.past if free else [(net, task) for _, task in lab.past]
    metric = ws.NullSpace.of(ws.Adam(), *inside[0], damping)
    for before, task in inside[1:]:
        metric = metric.add(before, task)
    goal = new(lab, seed) + held(lab, net, memory, seed) if hold else new(lab, seed)
    return lab.run(net, goal, lab.steps(lab.new), metric=metric)[-1]


def path(lab: Stage, net: ws.Net, memory: ws.Task, seed: int, steps: int = STEPS) -> ws.Net:
    """Equation 4: steps within a drift budget of the outputs on the memory, one correction a step."""
    metric = ws.Pullback(memory, damping=1e-6, solver="gltr", output=first(lab.held))
    goal, size = ws.learn(lab.new, 256, seed), LENGTH * float(net.weights.norm())
    steps = 2 if lab.quick else steps
    return ws.flow(net, goal, metric, steps=steps, size=size, budget=BUDGET, save=steps)[-1]


WAYS: dict[str, Way | None] = {
    "all at once": None,
    "naive": lambda lab, net, memory, seed: lab.run(net, new(lab, seed), lab.steps(lab.new))[-1],
    "EWC": plus(ewc),
    "replay": plus(lambda lab, net, memory, seed: ws.learn(lab.task(tensors(memory)), REHEARSED, seed)),
    "DER++": plus(partial(held, labels=True)),
    "outputs held": plus(held),
    "null space, new outputs free": partial(null_space, free=True),
    "null space of all outputs": null_space,
    "null space, outputs held": lambda lab, net, memory, seed: null_space(
        lab, net, memory, seed, 10.0, lab.asked == "task", True),
    "invariant path": path,
    "invariant path, four times the steps": partial(path, steps=4 * STEPS),
}  # fmt: skip


def learnt(lab: Stage, learn: Way | None, seed: int) -> tuple[ws.Net, ws.Net, float]:
    """The networks after and before the last task, and the most that growing has changed an old output."""
    net = before = lab.begin(seed)
    if learn is None:
        net = ws.grow(net, outputs=lab.each * (lab.tasks - 1), seed=seed)
        every = lab.task((torch.cat([x for x, _ in lab.train]), torch.cat([y for _, y in lab.train])))
        return lab.run(net, ws.learn(every, BATCH, seed), lab.steps(every))[-1], net, 0.0
    changed = 0.0
    for k in range(lab.tasks):
        before, net = net, lab.grown(net, k, seed)
        if k:
            x = lab.test[k - 1][0]
            changed = max(changed, float((net(x)[:, : lab.known] - before(x)).abs().max()))
            net = learn(lab, net, joined(lab.memories), seed)
        else:
            net = lab.run(net, new(lab, seed), lab.steps(lab.new))[-1]
        lab.over(net, k, seed)
    return net, before, changed


def measured(lab: Stage, way: str, seed: int) -> dict[str, Any]:
    """Accuracy of every task at the end, both ways of asking; how far the last task has moved the old outputs."""
    began = time.perf_counter()
    net, before, changed = learnt(lab, WAYS[way], seed)
    seconds = time.perf_counter() - began
    found = [_right(lab, net, k) for k in range(lab.tasks)]
    row = {asked: [pair[i] for pair in found] for i, asked in enumerate(ASKED)}
    x = torch.cat([x for x, _ in lab.test[:-1]])
    f = before(x)
    moved = (net(x)[:, : f.shape[1]] - f).square().mean().sqrt() / (f - f.mean(1, keepdim=True)).square().mean().sqrt()
    return {**row, "moved": float(moved), "grown": changed, "seconds": seconds, "kept": lab.kept}


def _right(lab: Stage, net: ws.Net, k: int) -> tuple[float, float]:
    """Accuracy on task k among all outputs, and among its own."""
    x, y = lab.test[k]
    f = net(x)
    own = f[:, k * lab.each : (k + 1) * lab.each].argmax(1) + k * lab.each
    return float((f.argmax(1) == y).double().mean()), float((own == y).double().mean())


# ------------------------------------------------------------------ tables


def tables(record: Record, name: str) -> dict[str, str]:
    """Mark in the README -> table."""
    found: dict[str, str] = {}
    for sequence in PARTS:
        rows = []
        for way in WAYS:
            cells = [_cells(record.of(f"{sequence}/{name}/{asked}/{way}"), asked, way) for asked in ASKED]
            if all(cells):
                rows.append([way, *sum(cells, []), str(len(record.of(f"{sequence}/{name}/class/{way}")))])
        asked = "{}: first / last task, % | {}: mean, % | old outputs moved | seconds"
        head = f"way | {' | '.join(asked.format(how, how) for how in ASKED.values())} | seeds"
        found |= block(f"growing {sequence} {name}", head, rows)
    return found


def _cells(rows: list[dict[str, Any]], asked: str, way: str) -> list[str]:
    """Means over seeds, the mean accuracy with its 95 % interval."""
    if not rows:
        return []
    means = [mean(row[asked]) for row in rows]
    around = f" ± {percent(half_width(means))}" if len(means) > 1 else ""
    ends = " / ".join(percent(mean(row[asked][k] for row in rows)) for k in (0, -1))
    moved = number(mean(row["moved"] for row in rows), 2) if WAYS[way] else ""
    return [ends, percent(mean(means)) + around, moved, number(mean(row["seconds"] for row in rows), 0)]


def _jobs(name: str, given: Namespace) -> Iterator[Job]:
    for sequence, seed, asked in product(given.chosen, given.seeds, ASKED):
        lab = Stage(given.data, given.quick, sequence, asked)
        for way in given.ways or WAYS:
            yield f"{sequence}/{name}/{asked}/{way}/{seed}", partial(measured, lab, way, seed)


main = command(
    "growing",
    __doc__,
    PARTS,
    lambda given: "mnist" if given.data else "digits",
    tables,
    jobs=_jobs,
    data="folder with mnist and fashion-mnist",
    options={"--ways": {"nargs": "*", "choices": [*WAYS], "help": "some of the ways"}},
    say=lambda row: f"{mean(row['class']):.4f} {mean(row['task']):.4f} moved {row['moved']:.3f}",
)

if __name__ == "__main__":
    sys.exit(main())
