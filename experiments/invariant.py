"""Claims of functionally invariant paths (Raghavan et al., 2024): pruning without labels, learning in a budget.

    python -m experiments.invariant [sparsify descend changed learn] [--data DIR] [--seeds 0 1 2] [--quick]

Without --data (a folder of MNIST's files) everything runs on embedded digits. Rows that are there are not measured
again.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import weightspace as ws
from experiments.continual import jitter
from experiments.nets import tensors
from experiments.record import RESULTS, Job, Record, block, command, number, percent
from weightspace.flows.pruning import tightened

SPARSITIES = (0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.991, 0.994)
MEMORY, STAGES = 2000, 10
DESCENTS, ROUNDS, ROUND_EPOCHS = (0.991, 0.994, 0.98, 0.998, 0.95), 5, 12
BATCH, TEACHING, RATE = 256, 100, 5e-3  # examples, epochs, highest learning rate of a descent
OLD_IMAGES, STEPS, BUDGETS = 200, 60, (2.0, 8.0)


class Lab:
    """Data, and a network of the seed trained on it."""

    def __init__(self, data: str | None, quick: bool) -> None:
        self.quick = quick
        read = (lambda split: ws.mnist(data, split=split)) if data else (lambda split: ws.digits(split))
        self.train, self.test = read("train"), read("test")
        self.name = "mnist" if data else "digits"
        self.nets: dict[int, ws.Net] = {}

    def net(self, seed: int) -> ws.Net:
        """LeNet-300-100: its matrices are pruned, its biases are neither pruned nor counted."""
        if seed not in self.nets:
            self.nets[seed] = self._trained(seed)
        return self.nets[seed]

    def fresh(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        wide = self.train.example(1)[0].numel()
        hidden = nn.Linear(wide, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU()
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(100, 10))

    def _trained(self, seed: int) -> ws.Net:
        x, y = tensors(self.train)
        module = self.fresh(seed)
        epochs = 2 if self.quick else 12 if self.name == "mnist" else 40
        steps = epochs * (len(x) // 128)
        optimiser = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=1e-2)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
        for _ in range(epochs):
            for part in torch.randperm(len(x)).split(128)[: len(x) // 128]:
                optimiser.zero_grad()
                F.cross_entropy(module(x[part]), y[part]).backward()
                optimiser.step()
                rate.step()
        return ws.Net.of(module)


def sparsify(lab: Lab, seed: int) -> Iterator[Job]:
    """So many weights at zero: cut in one go, and cut step by step with repairs, no labels in either."""
    for sparsity in SPARSITIES[2:4] if lab.quick else SPARSITIES:
        yield f"sparsify/{lab.name}/{sparsity:g}/{seed}", lambda sparsity=sparsity: _pruned(lab, seed, sparsity)


def descend(lab: Lab, seed: int) -> Iterator[Job]:
    """The same, cut little by little along a descent that holds the outputs on all training images; and two controls.

    A random mask of as many zeros in every layer, taught the same way; and the lottery ticket, which sees labels.
    """
    for sparsity in DESCENTS[-1:] if lab.quick else DESCENTS:
        yield f"descend/{lab.name}/{sparsity:g}/{seed}", lambda sparsity=sparsity: _carved(lab, seed, sparsity)
    for sparsity in DESCENTS[-1:] if lab.quick else (0.991, 0.994):
        yield f"ticket/{lab.name}/{sparsity:g}/{seed}", lambda sparsity=sparsity: _ticket(lab, seed, sparsity)
    for at in DESCENTS[-1:] if lab.quick else DESCENTS:
        yield f"random/{lab.name}/{at:g}/{seed}", lambda at=at: _random(lab, seed, at)


def changed(lab: Lab, seed: int) -> Iterator[Job]:
    """The same descent on images half of which are turned, sheared, scaled and moved a little, anew at every step."""
    for sparsity in DESCENTS[-1:] if lab.quick else DESCENTS:
        yield f"changed/{lab.name}/{sparsity:g}/{seed}", lambda sparsity=sparsity: _carved(lab, seed, sparsity, half)


def half(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The first half of a batch changed, by two fifths of what continual learning changes its memory."""
    return torch.cat([jitter(x[: len(x) // 2], generator, 0.4), x[len(x) // 2 :]])


def _steps(lab: Lab, epochs: int, batch: int) -> int:
    return 40 if lab.quick else epochs * (len(lab.train) // batch)


def _cosine(top: float) -> Callable[[float], float]:
    return lambda done: top * (1 + math.cos(math.pi * done)) / 2


def _carved(lab: Lab, seed: int, sparsity: float, augment: Any = None) -> dict[str, Any]:
    net, right = lab.net(seed), ws.accuracy(lab.test)
    began = time.perf_counter()
    goal = ws.prune(sparsity, repair="descent", batch=BATCH, seed=seed, augment=augment)
    steps = _steps(lab, TEACHING, BATCH)
    path = ws.flow(net, goal, ws.Pullback(lab.train), steps=steps, size=RATE, save=steps)
    seconds = time.perf_counter() - began
    return {"dense": right(net), "right": right(path[-1]), "layers": _zeros(path[-1]), "seconds": seconds}


def _random(lab: Lab, seed: int, sparsity: float) -> dict[str, Any]:
    """As many zeros in every layer as the descent finds, at random; then the same outputs to learn, as long."""
    net, right = lab.net(seed), ws.accuracy(lab.test)
    layers = Record(RESULTS / "invariant.json").median(f"descend/{lab.name}/{sparsity:g}", "layers") or [sparsity] * 3
    shares = iter(layers)
    generator = torch.Generator().manual_seed(seed)
    mask = net.weights.map(torch.ones_like)
    for w in mask.values():
        if w.dim() > 1:
            w.copy_((torch.rand(w.shape, generator=generator) > next(shares)).to(w))
    start = net.at(net.weights.shaped(net.weights.flat() * mask.flat()))
    goal = ws.hold(lab.train, net, "kl", batch=BATCH, seed=seed, temperature=4.0)
    steps = _steps(lab, TEACHING, BATCH)
    end = ws.flow(start, goal, ws.Adam(), steps=steps, size=_cosine(RATE), mask=mask, save=steps)[-1]
    return {"dense": right(net), "right": right(end), "layers": _zeros(end)}


def _ticket(lab: Lab, seed: int, sparsity: float) -> dict[str, Any]:
    """Iterative magnitude pruning: train with labels, cut, begin again with what is left (Frankle, Carbin, 2019)."""
    start, right = ws.Net.of(lab.fresh(seed)), ws.accuracy(lab.test)
    mask, steps = None, _steps(lab, ROUND_EPOCHS, 128)
    began = time.perf_counter()
    for k in range(ROUNDS + 1):
        begin = start if mask is None else start.at(start.weights.shaped(start.weights.flat() * mask.flat()))
        goal = ws.learn(lab.train, 128, seed + 100 * k)
        end = ws.flow(begin, goal, ws.Adam(), steps=steps, size=_cosine(3e-3), mask=mask, save=steps)[-1]
        if k < ROUNDS:
            share = 1 - (1 - sparsity) ** ((k + 1) / ROUNDS)
            mask = tightened(end.weights, ws.prune(sparsity), share, mask)
    return {"right": right(end), "layers": _zeros(end), "seconds": time.perf_counter() - began}


def _zeros(net: ws.Net) -> list[float]:
    return [(w == 0).double().mean().item() for w in net.weights.values() if w.dim() > 1]


def _pruned(lab: Lab, seed: int, sparsity: float) -> dict[str, Any]:
    net, right = lab.net(seed), ws.accuracy(lab.test)
    memory = lab.train.take(100 if lab.quick else MEMORY, seed=seed)
    began = time.perf_counter()
    path = ws.flow(net, ws.prune(sparsity), ws.Pullback(memory), steps=STAGES, corrections=2)
    seconds = time.perf_counter() - began
    flat = net.weights.flat().abs()
    matrices = torch.cat([w.abs().flatten() for w in net.weights.values() if w.dim() > 1])
    least = matrices.kthvalue(max(1, round(sparsity * len(matrices)))).values
    biases = torch.cat([torch.full((w.numel(),), w.dim() < 2) for w in net.weights.values()])
    cut = net.at(net.weights.shaped(net.weights.flat() * ((flat > least) | biases)))
    return {
        "dense": right(net), "one_shot": right(cut), "repaired": right(path[-1]), "layers": _zeros(path[-1]),
        "seconds": seconds,
    }  # fmt: skip


def learn(lab: Lab, seed: int) -> Iterator[Job]:
    """The same digits turned by a right angle: learnt by plain descent, and within drift budgets."""
    for budget in (None, *BUDGETS):
        yield f"learn/{lab.name}/{budget or 'descent'}/{seed}", lambda budget=budget: _learnt(lab, seed, budget)


def _turned(task: ws.Task, n: int) -> ws.Task:
    some = task.take(n, seed=5)
    return ws.Task(some.example(n).rot90(1, (-2, -1)), some.labels())


def _learnt(lab: Lab, seed: int, budget: float | None) -> dict[str, Any]:
    net, old, new = lab.net(seed), ws.accuracy(lab.test), ws.accuracy(_turned(lab.test, 2000))
    goal = ws.learn(_turned(lab.train, 4000), batch=256, seed=seed)
    memory, probe = lab.train.take(OLD_IMAGES, seed=seed), lab.test.take(500, seed=seed)
    metric = ws.Euclidean() if budget is None else ws.Pullback(memory)
    began = time.perf_counter()
    steps = 3 if lab.quick else STEPS
    path = ws.flow(net, goal, metric, steps=steps, size=0.01 * float(net.weights.norm()), budget=budget, probe=probe)
    drifts = [ws.Pullback(task).drift(path[-1], net) for task in (memory, probe)]
    return {
        "old": old(path[-1]), "new": new(path[-1]), "before": [old(net), new(net)], "steps": len(path.log),
        "drift": drifts[0], "heldout": drifts[1],
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


EXPERIMENTS: dict[str, Callable[[Lab, int], Iterator[Job]]] = {
    "sparsify": sparsify, "descend": descend, "changed": changed, "learn": learn,
}  # fmt: skip


def tables(record: Record, name: str) -> dict[str, str]:
    """Mark in the README -> table."""
    rows = []
    for s in SPARSITIES:
        at = f"sparsify/{name}/{s:g}"
        if record.median(at, "repaired") is not None:
            rows.append([f"{100 * s:g}", *record.cells(at, "one_shot repaired layers", percent),
                         *record.cells(at, "seconds", number, 0)])  # fmt: skip
    head = "zero, % | cut in one go, % | cut and repaired, % | zero by layer, % | seconds"
    found = block(f"sparsify {name}", head, rows)
    rows = []
    for s in sorted(DESCENTS):
        shown = [_spread(record, f"{way}/{name}/{s:g}") for way in ("changed", "descend", "ticket", "random")]
        if any(shown):
            at = f"descend/{name}/{s:g}"
            shown += record.cells(at, "layers", percent)
            rows.append([f"{100 * s:g}", *shown, *record.cells(at, "seconds", number, 0)])
    head = "zero, % | descent, changed copies, % | descent, % | lottery ticket, % | random zeros, % | "
    found |= block(f"descend {name}", f"{head}zero by layer (descent), % | seconds (descent)", rows)
    rows = []
    for budget in ("descent", *BUDGETS):
        at = f"learn/{name}/{budget}"
        if record.median(at, "old") is not None:
            way = "plain descent" if budget == "descent" else f"budget {budget:g}"
            drifts = record.cells(at, "drift heldout seconds", number, 2)
            rows.append([way, *record.cells(at, "old new", percent), *drifts])
    head = "way | old digits, % | new digits, % | drift, memory | drift, held out | seconds"
    return found | block(f"learn {name}", head, rows)


def _spread(record: Record, setting: str) -> str:
    """The median over seeds, and in brackets the lowest, the highest and how many there are."""
    found = [row["right"] for row in record.of(setting)]
    if not found:
        return ""
    spread = f" ({percent(min(found), 2)} to {percent(max(found), 2)}, {len(found)})" if len(found) > 1 else " (1)"
    return percent(median(found), 2) + spread


main = command("invariant", __doc__, EXPERIMENTS, lambda given: Lab(given.data, given.quick), tables)

if __name__ == "__main__":
    sys.exit(main())
