"""Continual learning of five tasks of two digits each, one head of ten outputs: accuracy on all of them at the end.

    python -m experiments.split [METHOD ..] [--data DIR] [--memory 250] [--seeds 0 1 2] [--quick]

DIR is a folder of MNIST's files; without it, embedded digits. Rows that are there are not measured again.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import weightspace as ws
from experiments.continual import BATCH, FAST, REHEARSED, adam, cycle, derpp, ewc, first, kept, new
from experiments.nets import tensors
from experiments.record import Job, Record, block, command, number, percent

TASKS, EPOCHS = 5, 3


class Stage:
    """What a way to learn sees of one of the tasks: the new data, all data before it, memories of the earlier tasks."""

    outputs, tasks, each = 10, TASKS, 2

    def __init__(self, data: str | None, quick: bool) -> None:
        self.quick, self.name = quick, "mnist" if data else "digits"
        self.train, self.test = ([self._part(data, split, k) for k in range(self.tasks)] for split in ("train", "test"))
        self.known, self.memories = 0, list[ws.Task]()
        self.old = self.new = self.train[0]

    def _part(self, data: str | None, split: str, k: int) -> ws.Task:
        """The digits 2 k and 2 k + 1."""
        task = ws.mnist(data, split) if data else ws.digits(split)
        x, y = tensors(task)
        mine = (y // 2 == k).nonzero()[:, 0][: 40 if self.quick else None]
        return ws.Task(x[mine], y[mine])

    def fresh(self, seed: int) -> ws.Net:
        torch.manual_seed(seed)
        wide = self.new.example(1)[0].numel()
        hidden = nn.Linear(wide, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU()
        return ws.Net.of(nn.Sequential(nn.Flatten(), *hidden, nn.Linear(400, 10)))

    def goal(self, task: ws.Task, seed: int) -> Any:
        return ws.learn(task, BATCH, seed)

    def steps(self, task: ws.Task, epochs: int) -> int:
        return 2 if self.quick else EPOCHS * max(1, len(task) // BATCH)

    def run(self, net: ws.Net, goal: Any, steps: int, rate: float) -> ws.Flow:
        return ws.flow(net, goal, ws.Adam(), steps=steps, size=cycle(rate), save=steps)

    def remember(self, n: int, seed: int) -> None:
        """Keep as many images of each class of the task that is over."""
        x, y = tensors(self.new)
        generator = torch.Generator().manual_seed(seed)
        rows: list[Tensor] = []
        for label in y.unique():
            mine = (y == label).nonzero()[:, 0]
            rows.append(mine[torch.randperm(len(mine), generator=generator)[: n // self.each]])
        self.memories.append(ws.Task(x[torch.cat(rows)], y[torch.cat(rows)]))


def joined(tasks: Sequence[ws.Task]) -> ws.Task:
    """One task in memory."""
    x = torch.cat([task.example(len(task)) for task in tasks])
    return ws.Task(x, torch.cat([y for task in tasks for _, y in task.batches() if y is not None]))


Way = Callable[[Any, ws.Net, ws.Task, int], ws.Net]


def gem(lab: Stage, net: ws.Net, memory: ws.Task, seed: int) -> Any:
    return ws.gem(new(lab, seed), lab.memories, REHEARSED, seed)


def lwf(lab: Stage, net: ws.Net, memory: ws.Task, seed: int) -> Any:
    kept = ws.hold(lab.new, net, "kl", batch=BATCH, seed=seed, temperature=2.0, output=first(lab.known))
    return new(lab, seed) + kept


def layers(lab: Stage, net: ws.Net, memory: ws.Task, seed: int) -> ws.Net:
    """In the null spaces of what the layers are given by the memory: it keeps the memory's outputs exactly."""
    metric, size = ws.Pullback(memory, solver="layer"), 0.01 * float(net.weights.norm())
    steps = 2 if lab.quick else 60
    return ws.flow(net, ws.learn(lab.new, 512, seed), metric, steps=steps, size=size, corrections=0, save=steps)[-1]


def path(lab: Stage, net: ws.Net, memory: ws.Task, seed: int) -> ws.Net:
    """The invariant path: the gradient's part within a drift budget on the memory, one correction a step."""
    metric, size = ws.Pullback(memory, damping=1e-6, solver="gltr"), 0.01 * float(net.weights.norm())
    steps = 2 if lab.quick else 40
    goal = ws.learn(lab.new, 512, seed)
    return ws.flow(net, goal, metric, steps=steps, size=size, budget=4.0, save=steps)[-1]


WAYS: dict[str, Way | None] = {
    "all at once": None,
    "held on changed copies": adam(kept, FAST),
    "DER++": adam(derpp),
    "DER++, rate doubled": adam(derpp, FAST),
    "replay": adam(lambda lab, net, memory, seed: new(lab, seed) + ws.learn(memory, REHEARSED, seed)),
    "frozen teacher": adam(lambda lab, net, memory, seed: new(lab, seed) + 50 * ws.hold(
        memory, net, "bhattacharyya", batch=REHEARSED, seed=seed)),
    "A-GEM": adam(lambda lab, net, memory, seed: ws.gem(new(lab, seed), [memory], REHEARSED, seed)),
    "GEM": adam(gem),
    "LwF": adam(lwf),
    "EWC": adam(ewc),
    "naive": adam(lambda lab, net, memory, seed: new(lab, seed)),
    "layers' null space": layers,
    "invariant path": path,
}  # fmt: skip


def learnt(lab: Stage, learn: Way | None, n: int, seed: int) -> ws.Net:
    """The network at the end of all tasks, n images kept in all; all tasks at once for no way to learn."""
    net = lab.fresh(seed)
    lab.memories.clear()
    if learn is None:
        every = joined(lab.train)
        return lab.run(net, lab.goal(every, seed), lab.steps(every, EPOCHS), FAST)[-1]
    for k in range(lab.tasks):
        lab.new, lab.known = lab.train[k], lab.each * k
        if k == 0:
            net = lab.run(net, lab.goal(lab.new, seed), lab.steps(lab.new, EPOCHS), FAST)[-1]
        else:
            lab.old = joined(lab.train[:k])
            net = learn(lab, net, joined(lab.memories), seed)
        lab.remember(n // lab.tasks, seed)
    return net


def measured(lab: Stage, way: str, n: int, seed: int) -> dict[str, Any]:
    """Accuracy of every task at the end, and the mean."""
    began = time.perf_counter()
    net = learnt(lab, WAYS[way], n, seed)
    right = [ws.accuracy(task)(net) for task in lab.test]
    return {"right": right, "mean": sum(right) / TASKS, "seconds": time.perf_counter() - began}


def tables(record: Record, name: str) -> dict[str, str]:
    """Mark in the README -> table."""
    rows = []
    for way in WAYS:
        at = f"split/{name}/{way}"
        if record.median(at, "mean") is not None:
            spread = [row["mean"] for row in record.of(at)]
            span = f"{percent(min(spread))} to {percent(max(spread))}"
            shown = [*record.cells(at, "right mean", percent), span]
            rows.append([way, *shown, *record.cells(at, "seconds", number, 0)])
    head = "way | 0/1, 2/3, 4/5, 6/7, 8/9, % | mean, % | over seeds | seconds"
    return block(f"split {name}", head, rows)


def _jobs(lab: Stage, given: Namespace) -> Iterator[Job]:
    for seed in given.seeds:
        for way in given.chosen:
            yield f"split/{lab.name}/{way}/{seed}", partial(measured, lab, way, given.memory, seed)


main = command(
    "split",
    __doc__,
    WAYS,
    lambda given: Stage(given.data, given.quick),
    tables,
    jobs=_jobs,
    options={"--memory": {"type": int, "default": 250, "help": "images kept at the end, in all"}},
    say=lambda row: f"{row['mean']:.4f}",
)

if __name__ == "__main__":
    sys.exit(main())
