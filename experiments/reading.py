"""Text classifiers: made once and kept, trained on a task, pruned, tested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import weightspace as ws
from experiments.continual import cycle
from experiments.texts import TASKS, Reader, Texts
from weightspace.net.inputs import each

CACHE = Path(__file__).parent / ".cache" / "language"
BATCH = 16
FIRST, STEPS, RATE, REHEARSED, MEMORY = 60, 24, 4e-4, 8, 100  # steps, rate, old texts a step, kept of every task


class Lab:
    """The texts, and networks that are made once and kept."""

    def __init__(self, data: str | None, model: str | None, quick: bool, full: bool = False) -> None:
        self.quick, self.full, self.cache = quick, full, None if quick else CACHE
        self.texts = Texts(data, model, quick)
        self.name = self.texts.name
        self.begun: dict[tuple[int, bool], list[float]] = {}

    def steps(self, steps: int) -> int:
        return 2 if self.quick else steps

    def kept(self, name: str, start: ws.Net, make: Callable[[ws.Net], ws.Net]) -> ws.Net:
        """The network of that name, read from the cache where it was made before."""
        file = self.cache / f"{name}.safetensors" if self.cache else None
        if file and file.exists():
            return start.load(ws.checkpoint.read(file))
        net = make(start)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            ws.checkpoint.save(net.tensors, file, metadata={"experiment": "language"})
        return net

    def run(self, net: ws.Net, goal: Any, steps: int, rate: float, mask: ws.Weights | None = None) -> ws.Net:
        steps = self.steps(steps)
        return ws.flow(net, goal, ws.Adam(), steps=steps, size=cycle(rate), mask=mask, save=steps)[-1]


def joined(tasks: Sequence[ws.Task]) -> ws.Task:
    """One task in memory."""
    inputs = each(lambda *parts: torch.cat(parts), *(task.example(len(task)) for task in tasks))
    return ws.Task(inputs, torch.cat([y for task in tasks for _, y in task.batches() if y is not None]), batch=64)


def fresh(lab: Lab, seed: int, outputs: int = 2) -> ws.Net:
    """The encoder as it comes, with a head of random weights."""
    return ws.Net.of(Reader(lab.texts.encoder(seed), outputs))


def reader(lab: Lab, seed: int, own: bool) -> ws.Net:
    """The network that has learnt the first task."""
    goal = ws.learn(lab.texts.task(TASKS[0], own=own), BATCH, seed)
    make = lambda net: lab.run(net, goal, FIRST, RATE)  # noqa: E731
    return lab.kept(f"reader-{FIRST}-{'own' if own else 'shared'}-{seed}", fresh(lab, seed, 6 if own else 2), make)


def rights(lab: Lab, net: ws.Net, own: bool = False) -> list[float]:
    """Accuracy on unseen texts, task by task."""
    return [ws.accuracy(lab.texts.task(name, "test", own))(net) for name in TASKS]


def remembered(lab: Lab, names: Sequence[str], seed: int, own: bool = False) -> ws.Task:
    return joined([lab.texts.task(name, own=own).take(MEMORY, seed) for name in names])


def pruned(lab: Lab, net: ws.Net, share: float, texts: ws.Task) -> ws.Net:
    return ws.flow(net, ws.prune(share, repair="layer"), ws.Pullback(texts), steps=1)[-1]


def learnt(lab: Lab, net: ws.Net, name: str, before: Sequence[str], seed: int, steps: int) -> ws.Net:
    """A task learnt by DER++ with a memory of those before; what is zero stays zero."""
    mask = net.weights.map(torch.ones_like)
    for key, w in net.weights.items():
        if w.dim() > 1:
            mask[key].copy_(w != 0)
    goal = ws.learn(lab.texts.task(name), BATCH, seed)
    if before:
        goal = goal + ws.hold(remembered(lab, before, seed), net, batch=REHEARSED, seed=seed, labels=1.0)
    return lab.run(net, goal, steps, RATE, mask)
