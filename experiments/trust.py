"""Deep relative trust (Bernstein, Vahdat, Yue, Liu, 2020; Bernstein's essay): effects of small relative weight changes.

    python -m experiments.trust [noise breakdown checkerboard compress examples clip] [--data DIR] [--seeds 0 1 2]

Embedded digits without --data (a folder of MNIST's files). Rows that are there are not measured again.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from functools import cache
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import nn

import weightspace as ws
from experiments.nets import tensors
from experiments.record import Job, Record, block, brief, command, number, percent
from weightspace.metric.distance import euclidean
from weightspace.trust.expected_displacement import displacement
from weightspace.trust.perturbation import movable

DEPTHS, WIDTH, DRAWS = ("2", "6", "16", "16, He"), 64, 40
ETAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
BOARDS, BOARD_ETAS, BOARD_STEPS = (1, 4, 20), (0.1, 0.2, 0.5), 3000
CHANGES = (("quantise", 8), ("quantise", 6), ("quantise", 4), ("quantise", 3), ("prune", 0.3), ("prune", 0.6),
           ("prune", 0.9))  # fmt: skip
MEMBERS, REMOVED, CLIPS = 300, 60, (None, 0.01, 0.003, 0.001, 0.0003)


class Lab:
    """Data, and networks trained on it once."""

    def __init__(self, data: str | None, quick: bool) -> None:
        self.quick = quick
        read = (lambda split: ws.mnist(data, split=split)) if data else (lambda split: ws.digits(split))
        self.train, self.test = read("train").take(10_000, seed=0), read("test").take(2000, seed=0)
        self.name = "mnist" if data else "digits"
        self.steps = 60 if quick else 2000
        self.draws = 3 if quick else DRAWS
        self.mlp = cache(self._mlp)

    def perceptron(self, depth: str, seed: int, width: int = WIDTH) -> nn.Module:
        """`depth` matrices without biases, ReLU in between; torch's own initialisation, times 6 ** .5 for "16, He"."""
        torch.manual_seed(seed)
        count, he = int(depth.split(",")[0]), depth.endswith("He")
        sizes = [self.train.example(1)[0].numel(), *[width] * (count - 1), 10]
        maps = [nn.Linear(i, o, bias=False) for i, o in zip(sizes, sizes[1:], strict=False)]
        for linear in maps:
            linear.weight.data *= math.sqrt(6) if he else 1.0
        parts = [part for linear in maps for part in (linear, nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *parts[:-1])

    def _mlp(self, depth: str, seed: int) -> ws.Net:
        module = self.perceptron(depth, seed)
        optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
        x, y = tensors(self.train)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(self.steps):
            some = torch.randint(len(x), (128,), generator=generator)
            optimiser.zero_grad()
            F.cross_entropy(module(x[some]), y[some]).backward()
            optimiser.step()
        return ws.Net.of(module)


def noise(lab: Lab, seed: int) -> Iterator[Job]:
    """Outputs and accuracy under layerwise noise, against the four numbers, at three depths."""
    for depth in DEPTHS[:2] if lab.quick else DEPTHS:
        yield f"noise/{lab.name}/{depth}/{seed}", lambda depth=depth: _noise(lab, depth, seed)


def _noise(lab: Lab, depth: str, seed: int) -> dict[str, Any]:
    found = ws.stability(lab.mlp(depth, seed), lab.test, ETAS, lab.draws, seed=seed)
    rms = [math.sqrt(sum(m * m for m in step.moved) / len(step.moved)) for step in found.steps]
    return {
        "measured": rms,
        "expected": [step.expected for step in found.steps],
        "model": [step.model for step in found.steps],
        "with_data": [step.with_data for step in found.steps],
        "certificate": [step.certificate for step in found.steps],
        "accuracy": [median(step.accuracy) for step in found.steps],
        "clean": found.accuracy,
        "width": ws.width(lab.mlp(depth, seed), lab.test, draws=lab.draws, seed=seed),
    }


def breakdown(lab: Lab, seed: int) -> Iterator[Job]:
    """How a gradient breaks down along itself, at depth 2 and 16, before and after training."""
    for depth in ("2",) if lab.quick else ("2", "16"):
        for when in ("fresh", "trained"):
            key = f"breakdown/{lab.name}/{depth}, {when}/{seed}"
            yield key, lambda depth=depth, when=when: _breakdown(lab, depth, when, seed)


def _breakdown(lab: Lab, depth: str, when: str, seed: int) -> dict[str, Any]:
    net = lab.mlp(depth, seed) if when == "trained" else ws.Net.of(lab.perceptron(depth, seed))
    found = ws.breakdown(net, lab.train.take(1000, seed), (0.001, 0.01, 0.1))
    return {name: [getattr(row, name) for row in found] for name in ("gradient", "outputs", "model")}


def checkerboard(lab: Lab, seed: int) -> Iterator[Job]:
    """The essay's exercise: a shallow and a deep network on a checkerboard, under noise; 8 units a layer, tanh."""
    for depth in BOARDS[:2] if lab.quick else BOARDS:
        yield f"checkerboard/plane/{depth}/{seed}", lambda depth=depth: _board(lab, depth, seed)


def _board(lab: Lab, depth: int, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    x = 2 * torch.rand(500, 2) - 1
    y = ((2 * x).floor().sum(1) % 2).long()
    sizes = [2, *[8] * depth, 2]
    parts = [p for i, o in zip(sizes, sizes[1:], strict=False) for p in (nn.Linear(i, o), nn.Tanh())]
    module = nn.Sequential(*parts[:-1])
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(lab.steps if lab.quick else BOARD_STEPS):
        optimiser.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimiser.step()
    task = ws.Task(x, y)
    found = ws.stability(ws.Net.of(module), task, BOARD_ETAS, lab.draws, seed=seed, proven=False)
    return {
        "clean": found.accuracy,
        "accuracy": [sum(s.accuracy) / len(s.accuracy) for s in found.steps],
        "moved": [median(s.moved) for s in found.steps],
    }


def compress(lab: Lab, seed: int) -> Iterator[Job]:
    """Rounding and cutting: the displacement that noise of these sizes would give, against what was measured."""
    for kind, how in CHANGES[2:5:2] if lab.quick else CHANGES:
        key = f"compress/{lab.name}/{kind} {how}/{seed}"
        yield key, lambda kind=kind, how=how: _compressed(lab, kind, how, seed)


def _compressed(lab: Lab, kind: str, how: float, seed: int) -> dict[str, Any]:
    net = lab.mlp("6", seed)
    options: dict[str, Any] = {"bits": int(how)} if kind == "quantise" else {"share": how}
    other = ws.perturb(net, kind=kind, **options)
    before, after = (lab.test.outputs(n).double() for n in (net, other))
    right = ws.accuracy(lab.test)
    return {
        "relative": float(np.mean([float(v.norm() / net.weights[n].norm()) for n, v in (other - net).items()])),
        "measured": float((after - before).norm() / before.norm()),
        "expected": displacement(net, lab.test, other - net, seed=seed, names=movable(net)).relative,
        "model": ws.relative_trust(net, other),
        "right": [right(net), right(other)],
    }


def examples(lab: Lab, seed: int) -> Iterator[Job]:
    """Trust of one example: does it tell members from others, and what a network loses without it?"""
    yield f"examples/{lab.name}/membership/{seed}", lambda: _membership(lab, seed)
    yield f"examples/{lab.name}/left out/{seed}", lambda: _left_out(lab, seed)


def _few(lab: Lab, seed: int) -> tuple[ws.Net, ws.Task, ws.Task]:
    """A network that has seen `MEMBERS` examples and no others."""
    members, others = lab.train.take(2 * MEMBERS, seed).split(0.5, seed)
    return ws.Net.of(lab.perceptron("3", seed)), members, others


def _attacked(net: ws.Net, members: ws.Task, others: ws.Task) -> dict[str, float]:
    """AUC of guessing who was a member by low trust, by low displacement and by low loss; one half is chance."""
    found = [ws.trust_per_example(net, task) for task in (members, others)]
    truth = np.r_[np.ones(len(members)), np.zeros(len(others))]
    return {
        name: roc_auc_score(truth, -torch.cat([getattr(trust, name) for trust in found]).numpy())
        for name in ("relative", "displacement", "loss")
    }


def _membership(lab: Lab, seed: int) -> dict[str, Any]:
    start, members, others = _few(lab, seed)
    net = ws.flow(start, ws.learn(members, 32, seed), ws.Adam(), steps=lab.steps // 2, size=2e-3, save=10**6)[-1]
    right = [ws.accuracy(task)(net) for task in (members, others)]
    return {"right": right, "auc": list(_attacked(net, members, others).values())}


def _left_out(lab: Lab, seed: int) -> dict[str, Any]:
    """Retrained from the same start without one example, in the same order: how far, and what it costs that example."""
    module, (_, members, _) = lab.perceptron("3", seed), _few(lab, seed)
    x, y = tensors(members)
    steps, removed = (20, 4) if lab.quick else (300, REMOVED)

    def trained(without: int | None) -> ws.Net:
        copy = lab.perceptron("3", seed)
        copy.load_state_dict(module.state_dict())
        weight = torch.ones(len(x))
        if without is not None:
            weight[without] = 0
        optimiser = torch.optim.SGD(copy.parameters(), lr=0.1)
        for _ in range(steps):
            optimiser.zero_grad()
            (F.cross_entropy(copy(x), y, reduction="none") * weight).sum().div(len(x)).backward()
            optimiser.step()
        return ws.Net.of(copy)

    full = trained(None)
    trust = ws.trust_per_example(full, members)
    some = torch.cat([trust.order[: removed // 2], trust.order[removed // 2 :][:: max(1, 2 * len(x) // removed)]])
    far, costs = [], []
    for k in some.tolist():
        other, one = trained(k), ws.Task(x[k : k + 1], y[k : k + 1])
        far.append(euclidean(full, other))
        costs.append(float(one(other)) - float(one(full)))
    return {
        "distance": float(spearmanr(trust.relative[some], far).statistic),
        "cost": float(spearmanr(trust.relative[some], costs).statistic),
        "loss": float(spearmanr(trust.loss[some], costs).statistic),
        "removed": len(some),
        "largest": [max(far) / float(full.weights.norm()), median(far) / float(full.weights.norm())],
        "median": [median(costs[: removed // 2]), median(costs[removed // 2 :])],
    }


def clip(lab: Lab, seed: int) -> Iterator[Job]:
    """The same training with steps cut to a largest trust: what it learns, and who was a member."""
    for most in CLIPS[::4] if lab.quick else CLIPS:
        yield f"clip/{lab.name}/{most or 'none'}/{seed}", lambda most=most: _clipped(lab, most, seed)


def _clipped(lab: Lab, most: float | None, seed: int) -> dict[str, Any]:
    start, members, others = _few(lab, seed)
    goal = ws.learn(members, 32, seed)
    net = ws.flow(start, goal, ws.Adam(), steps=lab.steps // 2, size=2e-3, save=10**6, max_trust=most)[-1]
    right = [ws.accuracy(task)(net) for task in (members, others)]
    return {"right": right, "auc": list(_attacked(net, members, others).values())}


EXPERIMENTS: dict[str, Callable[[Lab, int], Iterator[Job]]] = {
    "noise": noise, "breakdown": breakdown, "checkerboard": checkerboard, "compress": compress, "examples": examples,
    "clip": clip,
}  # fmt: skip


# ------------------------------------------------------------------ tables


def tables(record: Record, name: str) -> dict[str, str]:
    """Mark in the README -> table."""
    found: dict[str, str] = {}
    rows = []
    for depth in DEPTHS:
        at = f"noise/{name}/{depth}"
        for k, eta in enumerate(ETAS):
            keys = ("measured", "expected", "model", "with_data", "certificate")
            seen = {key: record.median(at, key) for key in keys}
            if seen["measured"] is None:
                continue
            error = max(abs(row["measured"][k] / row["expected"][k] - 1) for row in record.of(at))
            rows.append([depth if not k else "", f"{100 * eta:g}", *(f"{seen[c][k]:.3g}" for c in seen),
                         f"{100 * error:.0f}", f"{percent(record.median(at, 'accuracy')[k])}",
                         percent(record.median(at, "width")) if not k else ""])  # fmt: skip
    found |= block(f"noise {name}", "matrices | noise, % | measured | expected | model | proven, with activations | "
         "proven, without | worst error of expected, % | accuracy, % | width, %", rows)  # fmt: skip
    rows = [
        [f"{depth} {when}", *(brief(record.median(f"breakdown/{name}/{depth}, {when}", k)) for k in
                              ("gradient", "outputs", "model"))]
        for depth in ("2", "16") for when in ("fresh", "trained")
        if record.median(f"breakdown/{name}/{depth}, {when}", "model")
    ]  # fmt: skip
    head = "matrices | change of the gradient at .001 / .01 / .1 | change of the outputs | model"
    found |= block(f"breakdown {name}", head, rows)
    rows = []
    for depth in BOARDS:
        at = f"checkerboard/plane/{depth}"
        if (clean := record.median(at, "clean")) is not None:
            left = record.median(at, "accuracy")
            kept = [(a - 0.5) / (clean - 0.5) for a in left] if clean > 0.5 else None
            shown = [percent(clean), percent(left), percent(kept, 0), brief(record.median(at, "moved"))]
            rows.append([str(depth), *shown])
    head = "hidden layers | without noise, % | under 10 / 20 / 50 % | left of what is above chance, % | outputs moved"
    found |= block("checkerboard", head, rows)
    rows = []
    for kind, how in CHANGES:
        at = f"compress/{name}/{kind} {how}"
        if record.median(at, "model") is not None:
            what = f"{how} bits" if kind == "quantise" else f"{100 * how:.0f} % zeros"
            size = percent(record.median(at, "relative"))
            told = record.cells(at, "measured expected", number)
            rows.append([what, size, *told, f"{record.median(at, 'model'):.3g}", *record.cells(at, "right", percent)])
    head = "change | of the norm, % | outputs moved | expected of noise | model | accuracy before / after, %"
    found |= block(f"compress {name}", head, rows)
    rows = []
    for most in CLIPS:
        at = f"clip/{name}/{most or 'none'}"
        if record.median(at, "right") is not None:
            rows.append([str(most or "none"), *record.cells(at, "right", percent), *record.cells(at, "auc", brief)])
    head = "largest trust of a step | accuracy of members / others, % | AUC by trust / displacement / loss"
    found |= block(f"clip {name}", head, rows)
    at = f"examples/{name}/left out"
    if record.median(at, "cost") is not None:
        told = record.cells(at, "distance cost loss", number, 2)
        rows = [[*told, *record.cells(at, "largest median", brief)]]
        head = "trust and distance | trust and rise of its loss | loss and that rise | distance, largest / median | "
        found |= block(f"left out {name}", f"{head}rise, top half / rest", rows)
    return found


main = command("trust", __doc__, EXPERIMENTS, lambda given: Lab(given.data, given.quick), tables)

if __name__ == "__main__":
    sys.exit(main())
