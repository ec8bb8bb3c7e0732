"""Spectrum of the pullback metric; pruning and learning in both orders; ensembles made along a path.

    python -m experiments.freedom [spectrum commute ensembles] [--data DIR] [--seeds 0 1 2] [--quick]

Without --data (a folder of MNIST's files) everything runs on embedded digits. Rows that are there are not measured
again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

import weightspace as ws
from experiments.invariant import Lab, _turned
from experiments.record import Job, Record, block, command, number, percent
from weightspace.flows.attacks import attacked
from weightspace.flows.pruning import sparsity

SIZES = (25, 50, 100, 200)
MEMBERS, RADII, ATTACK = 5, (0.05, 0.1), 20
SHIFT, SCALE = 0.1307, 0.3081  # of MNIST's pixels
PEER = "WEIGHTSPACE_PEERS_TORCHATTACKS"
SURROGATE = 90  # seed of the network that nobody knows


def spectrum(lab: Lab, seed: int) -> Iterator[Job]:
    """Eigenvalues of G before and after training, for more and more examples."""
    for state in ("fresh", "trained"):
        for n in SIZES[:2] if lab.quick else SIZES:
            yield f"spectrum/{lab.name}/{state}/{n}/{seed}", lambda state=state, n=n: _spectrum(lab, seed, state, n)


def _spectrum(lab: Lab, seed: int, state: str, n: int) -> dict[str, Any]:
    net = ws.Net.of(lab.fresh(seed)) if state == "fresh" else lab.net(seed)
    values = ws.Pullback(lab.train.take(n, seed=seed), solver="dual").spectrum(net, 10**6).double()
    at = [float(values[k - 1]) if k <= len(values) else None for k in (1, 10, 50, 200)]
    wide = float(values.sum() ** 2 / values.square().sum())
    stiff = int((values > 1e-3 * values[0]).sum())
    return {"values": at, "participation": wide, "stiff": stiff, "rank": len(values), "weights": net.weights.numel}


def commute(lab: Lab, seed: int) -> Iterator[Job]:
    """Prune then learn, learn then prune: do they lead to one place?"""
    yield f"commute/{lab.name}/0.9/{seed}", lambda: _commute(lab, seed, 0.9)


def _commute(lab: Lab, seed: int, share: float) -> dict[str, Any]:
    net, old, new = lab.net(seed), lab.train.take(500, seed=seed), _turned(lab.train, 500)
    goal = ws.learn(_turned(lab.train, 4000), batch=256, seed=seed)
    size, steps, stages = 0.01 * float(net.weights.norm()), 3 if lab.quick else 60, 2 if lab.quick else 8

    def learnt(start: ws.Net, mask: ws.Weights | None) -> ws.Net:
        memory = lab.train.take(200, seed=seed)
        return ws.flow(start, goal, ws.Pullback(memory), steps=steps, size=size, budget=8.0, mask=mask)[-1]

    sparse = ws.flow(net, ws.prune(share), ws.Pullback(old), steps=stages)
    one = learnt(sparse[-1], sparse.mask)
    dense = learnt(net, None)
    other = ws.flow(dense, ws.prune(share), ws.Pullback(old | new), steps=stages)[-1]
    right = [ws.accuracy(task) for task in (lab.test, _turned(lab.test, 2000))]
    moved = float((one - net).norm() + (other - net).norm()) / 2
    return {
        "dense": [f(net) for f in right],
        "prune first": [f(one) for f in right],
        "learn first": [f(other) for f in right],
        "zeros": [sparsity(one.weights), sparsity(other.weights)],
        "apart": float((one - other).norm()) / moved,
        "disagreement": ws.disagreement([one, other], lab.test),
    }


def ensembles(lab: Lab, seed: int) -> Iterator[Job]:
    """Five networks each: from independent seeds, from a random walk that keeps the outputs, and spread on purpose."""
    for kind in ("single", "independent", "noise", "random walk", "spread"):
        yield f"ensembles/{lab.name}/{kind}/{seed}", lambda kind=kind: _ensemble(lab, seed, kind)


def _members(lab: Lab, seed: int, kind: str) -> list[ws.Net]:
    net, memory = lab.net(seed), lab.train.take(100, seed=seed)
    many = 2 if lab.quick else MEMBERS
    size = float(net.weights.norm())
    if kind == "single":
        return [net]
    if kind == "independent":
        return [net, *(lab.net(seed + 10 * k) for k in range(1, many))]
    if kind == "noise":
        draws = [net.weights.randn(1000 * seed + k) for k in range(1, many)]
        return [net, *(net + 0.5 * size / float(d.norm()) * d for d in draws)]
    if kind == "random walk":
        steps = 2 if lab.quick else 20
        walks = [ws.flow(net, ws.drift(100 * seed + k), ws.Pullback(memory), steps=steps, size=0.025 * size, budget=2.0)
                 for k in range(1, many)]  # fmt: skip
        return [net, *(walk[-1] for walk in walks)]
    found, steps = [net], 2 if lab.quick else 60
    for k in range(1, many):
        start = net + 0.05 * size / float(net.weights.randn(k).norm()) * net.weights.randn(k)
        goal = ws.spread(found, lab.train, 128, seed + k) + 0.5 * ws.learn(lab.train, 128, seed + k)
        metric = ws.Pullback(memory)
        found.append(ws.flow(start, goal, metric, steps=steps, size=0.01 * size, budget=4.0)[-1])
    return found


def _ensemble(lab: Lab, seed: int, kind: str) -> dict[str, Any]:
    members = _members(lab, seed, kind)
    whole, some = ws.ensemble(members), lab.test.take(100 if lab.quick else 1000, seed=0)
    right = ws.accuracy(some)
    row: dict[str, Any] = {"clean": right(whole), "worst": min(right(m) for m in members)}
    if len(members) > 1:
        row["coherence"], row["disagreement"] = ws.coherence(members, some), ws.disagreement(members, some)
    threats = {"transfer": lab.net(seed), "surrogate": lab.net(SURROGATE), "white box": whole}
    for name, source in threats.items():
        row[name] = [right_under(some, source, whole, radius) for radius in RADII]
    if PEER in os.environ:
        row["automatic"] = [right_under(some, whole, whole, radius, "APGD") for radius in RADII]
    return row


class Pixels(nn.Module):
    """A network that takes pixels in [0, 1]."""

    def __init__(self, net: ws.Net, shift: Tensor | float = SHIFT, scale: Tensor | float = SCALE) -> None:
        super().__init__()
        self.inside = net.module()
        self.shift, self.scale = shift, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.inside((x - self.shift) / self.scale)


def right_under(task: ws.Task, source: ws.Net, target: ws.Net, radius: float, how: str = "PGD") -> float:
    """Accuracy of the target on inputs that an attack moved by up to `radius` a pixel, to raise the source's loss."""
    pixels = task.mapped(lambda x: x * SCALE + SHIFT)
    moved = fooling(pixels, ws.Net.of(Pixels(source)), radius, how)
    return ws.accuracy(moved)(ws.Net.of(Pixels(target)))


def fooling(pixels: ws.Task, source: ws.Net, radius: float, how: str = "PGD") -> ws.Task:
    """The task where an attack has moved its pixels by up to `radius`, to raise the loss of a network of pixels.

    By torchattacks where the environment variable names its folder; without it by the ascent that `harden` uses.
    """
    moved, labels = [], []
    for x, y in pixels.batches(source):
        assert y is not None
        if PEER in os.environ:
            moved.append(_peer(how, source, radius)(x, y).detach())
        else:
            moved.append(attacked(source, pixels, x, y, radius, ATTACK, (0.0, 1.0)))
        labels.append(y)
    return ws.Task(torch.cat(moved), torch.cat(labels))


def _peer(how: str, source: ws.Net, radius: float) -> Any:
    if os.environ[PEER] not in sys.path:
        sys.path.append(os.environ[PEER])
    attacks, module = import_module("torchattacks"), source.module()
    if how == "PGD":
        return attacks.PGD(module, eps=radius, alpha=2.5 * radius / ATTACK, steps=ATTACK, random_start=True)
    return attacks.APGD(module, eps=radius, steps=ATTACK)


EXPERIMENTS: dict[str, Callable[[Lab, int], Iterator[Job]]] = {
    "spectrum": spectrum, "commute": commute, "ensembles": ensembles,
}  # fmt: skip


def tables(record: Record, name: str) -> dict[str, str]:
    """Mark in the README -> table."""
    rows = []
    for state in ("fresh", "trained"):
        for n in SIZES:
            at = f"spectrum/{name}/{state}/{n}"
            if (values := record.median(at, "values")) is not None:
                shown = [number(v, 2) for v in values[: 3 if n < 50 else 4]]
                shown += [""] * (4 - len(shown)) + record.cells(at, "participation", number, 1)
                rows.append([state, str(n), *shown, *record.cells(at, "stiff rank", number, 0)])
    head = "network | examples | 1st | 10th | 50th | 200th | participation | above a thousandth | rank"
    found = block(f"spectrum {name}", head, rows)
    at, rows = f"commute/{name}/0.9", []
    if (zeros := record.median(at, "zeros")) is not None:
        ways = zip(("dense", "prune first", "learn first"), (None, *zeros), strict=True)
        rows = [[way, *map(percent, record.median(at, way)), percent(z)] for way, z in ways]
    found |= block(f"commute {name}", "way | old digits, % | new digits, % | zeros, %", rows)
    rows = []
    for kind in ("single", "independent", "noise", "random walk", "spread"):
        at = f"ensembles/{name}/{kind}"
        if record.median(at, "clean") is not None:
            attacks = ("clean", "worst", "transfer", "surrogate", "white box", "automatic")
            shares = [percent(record.median(at, k)) for k in attacks] + record.cells(at, "coherence", number, 2)
            rows.append([kind, *shares, *record.cells(at, "disagreement", percent)])
    head = "members | clean, % | worst member, % | transfer, % | fresh surrogate, % | white box, % | "
    return found | block(f"ensembles {name}", f"{head}white box, APGD, % | coherence | disagree, %", rows)


main = command("freedom", __doc__, EXPERIMENTS, lambda given: Lab(given.data, given.quick), tables)

if __name__ == "__main__":
    sys.exit(main())
