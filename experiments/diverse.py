"""Ensembles on CIFAR-10: diversity and adversarial attacks. Run by `experiments.colours ensembles`.

Attacks: PGD of 20 steps on pixels in [0, 1]; by torchattacks where WEIGHTSPACE_PEERS_TORCHATTACKS names its folder.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from itertools import combinations
from typing import Any

import torch

import weightspace as ws
from experiments.alignment import kernel_alignment
from experiments.freedom import Pixels, fooling
from experiments.nets import tensors
from experiments.record import Job, Record, block, number, percent
from experiments.residual import Block, Lab, shifted
from weightspace.task.datasets import STATISTICS

MEMBERS, RADII = 3, (2 / 255, 4 / 255, 8 / 255)
SURROGATE = 90  # seed of the network that nobody knows
IMAGES, MEMORY, TESTED = 300, 50, 2000  # attacked; held by the walks; for clean accuracy and disagreement
WALK, SPREAD = (6, 0.05), (20, 0.01)  # steps and their length as a share of the weights
CYCLE, BATCH = 1, 125  # epochs from snapshot to snapshot; attacked at once
KINDS = ("single", "independent", "random walk", "snapshots", "spread", "trained to differ")


def members(lab: Lab, seed: int, kind: str) -> list[ws.Net]:
    """The network of the seed and others."""
    net, memory = lab.net(seed), lab.train.take(20 if lab.quick else MEMORY, seed=seed)
    many, size = 2 if lab.quick else MEMBERS, float(net.weights.norm())
    if kind == "single":
        return [net]
    if kind == "independent":
        return [net, *(lab.net(seed + 10 * k) for k in range(1, many))]
    if kind == "trained to differ":
        return list(lab.promoted(seed, many))
    if kind == "snapshots":
        return [net, *lab.snapshots(seed, many - 1, CYCLE)]
    if kind == "random walk":
        steps, length = (2 if lab.quick else WALK[0]), WALK[1] * size
        walks = [ws.flow(net, ws.drift(100 * seed + k), ws.Pullback(memory), steps=steps, size=length, budget=2.0)
                 for k in range(1, many)]  # fmt: skip
        return [net, *(walk[-1] for walk in walks)]
    found, steps = [net], 2 if lab.quick else SPREAD[0]
    for k in range(1, many):
        start = net + 0.02 * size / float(net.weights.randn(k).norm()) * net.weights.randn(k)
        goal = ws.spread(found, lab.train, 64, seed + k) + 0.5 * ws.learn(lab.train, 128, seed + k, augment=shifted)
        metric = ws.Pullback(memory)
        found.append(ws.flow(start, goal, metric, steps=steps, size=SPREAD[1] * size, budget=4.0)[-1])
    return found


class Threats:
    """Attacked test images; those of a network that several ensembles are asked about are made once."""

    def __init__(self, lab: Lab, seed: int) -> None:
        statistics = STATISTICS.get("cifar10" if "cifar10" in lab.name else "", ([0.0], [1.0]))
        self.shift, self.scale = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in statistics)
        x, y = tensors(lab.test.take(20 if lab.quick else IMAGES, seed=0))
        self.pixels = ws.Task(x * self.scale + self.shift, y, batch=BATCH)
        self.lab, self.seed = lab, seed
        self.made: dict[tuple[int, float], ws.Task] = {}

    def inside(self, net: ws.Net) -> ws.Net:
        """The network as one of pixels."""
        return ws.Net.of(Pixels(net, self.shift.to(net.device), self.scale.to(net.device)))

    def against(self, name: str, first: ws.Net, whole: ws.Net, radius: float) -> ws.Task:
        """The images moved to fool the first member, the surrogate, or the ensemble itself."""
        if name == "white box":
            return self._moved(whole, radius)
        source = first if name == "transfer" else self.lab.net(SURROGATE)
        key = id(source.weights), radius  # the lab holds its networks, so that these stay the same
        if key not in self.made:
            self.made[key] = self._moved(self.inside(source), radius)
        return self.made[key]

    def _moved(self, source: ws.Net, radius: float) -> ws.Task:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return fooling(self.pixels, source, radius)


def ensembles(lab: Lab, seed: int, only: list[str]) -> Iterator[Job]:
    """Networks each: independent, from a walk that keeps outputs, from a cyclic rate, spread, trained to differ."""
    threats = Threats(lab, seed)
    for kind in only or KINDS:
        if kind in KINDS:
            yield f"ensembles/{lab.name}/{kind}/{seed}", partial(measured, lab, threats, seed, kind)


def measured(lab: Lab, threats: Threats, seed: int, kind: str) -> dict[str, Any]:
    """Accuracy clean and under attack, and how different the members are: predictions, input gradients, layers."""
    began = time.perf_counter()
    nets = members(lab, seed, kind)
    seconds = time.perf_counter() - began
    some, more = (lab.test.take(20 if lab.quick else n, seed=0) for n in (IMAGES, TESTED))
    right = ws.accuracy(more)
    whole = ws.ensemble(nets)
    row: dict[str, Any] = {"clean": right(whole), "worst": min(right(net) for net in nets), "seconds": seconds}
    if len(nets) > 1:
        row["coherence"], row["disagreement"] = ws.coherence(nets, some), ws.disagreement(nets, more)
        row["layers"] = layers(nets, some)
        row["apart"] = max(float((net - nets[0]).norm() / nets[0].weights.norm()) for net in nets[1:])
    seen = [ws.coherence([net, lab.net(SURROGATE)], some) for net in nets]
    row["known"] = sum(seen) / len(seen)
    inside = threats.inside(whole)
    for name in ("transfer", "surrogate", "white box"):
        row[name] = [ws.accuracy(threats.against(name, nets[0], inside, radius))(inside) for radius in RADII]
    return row


def layers(nets: list[ws.Net], task: ws.Task) -> list[float]:
    """1 - linear CKA of the outputs of every block, averaged over positions: mean over pairs."""
    met = [_blocks(net, task) for net in nets]
    pairs = [[1 - kernel_alignment(a, b) for a, b in zip(*two, strict=True)] for two in combinations(met, 2)]
    return [sum(column) / len(column) for column in zip(*pairs, strict=True)]


@torch.no_grad()
def _blocks(net: ws.Net, task: ws.Task) -> list[torch.Tensor]:
    x, found = task.example(len(task)).to(net.device), []
    for part in net.module().children():
        x = part(x)
        if isinstance(part, Block):
            found.append(x.mean((2, 3)).double().cpu())
    return found


def tables(record: Record, name: str) -> dict[str, str]:
    """Mark in the README -> table."""
    attacks, apart = [], []
    for kind in KINDS:
        at = f"ensembles/{name}/{kind}"
        if record.median(at, "clean") is not None:
            names = ("clean", "worst", "transfer", "surrogate", "white box")
            attacks.append([kind, *(percent(record.median(at, k)) for k in names)])
            shown = record.cells(at, "coherence known apart layers", number, 2)
            shown.insert(2, percent(record.median(at, "disagreement")))
            apart.append([kind, *shown, *record.cells(at, "seconds", number, 0)])
    head = "members | clean, % | worst member, % | transfer, % | fresh surrogate, % | white box, %"
    found = block(f"ensembles {name}", head, attacks)
    head = "members | coherence | coherence with the surrogate | disagree, % | apart in weights | "
    return found | block(f"diversity {name}", f"{head}1 - CKA, block by block | seconds", apart)
