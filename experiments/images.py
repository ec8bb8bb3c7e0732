"""Image functions (anonymous, 2021), figures 1 to 6: which units each image activates while a network learns.

    python -m experiments.images [mlp alexnet vgg resnet] [--data DIR] [--seeds 0] [--quick] [--full --device cuda]

DIR holds the folders mnist and cifar10; embedded digits without it. --full is ResNet18-, AlexNet- and VGG-like widths
on all images, for a machine with an accelerator. Rows that are there are not measured again.
"""

from __future__ import annotations

import math
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import weightspace as ws
from experiments.nets import tensors
from experiments.record import Job, Record, command, number, percent, table
from experiments.residual import Size, residual, shifted
from weightspace.inside import path_overlap
from weightspace.inside.units import Gates

KINDS = ("mlp", "alexnet", "vgg", "resnet")
PROBES, TESTED, ANCHORS, CANDIDATES, PAIRS = 256, 2000, (5, 10, 15), 128, 300


@dataclass(frozen=True)
class Plan:
    """Epochs, after how many of them the rate falls to a tenth, and to a tenth of that; the rate at first."""

    epochs: int = 16
    decays: tuple[int, int] = (8, 12)
    rate: float = 0.05
    batch: int = 64


PLANS = {
    "mlp": Plan(rate=0.1), "alexnet": Plan(rate=0.02), "vgg": Plan(rate=0.05), "resnet": Plan(rate=0.1, batch=128),
}  # fmt: skip
QUICK = Plan(4, (2, 3), 0.02, 16)


def perceptron(inputs: int, wide: int = 256, depth: int = 4) -> nn.Module:
    """`depth` hidden layers of ReLU."""
    sizes = [inputs, *[wide] * depth]
    parts = [p for i, o in zip(sizes, sizes[1:], strict=False) for p in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *parts, nn.Linear(wide, 10))


def alexnet(channels: int, side: int, wide: int = 32) -> nn.Module:
    """Five convolutions with three poolings, one hidden layer; no normalisation."""
    plan = [(channels, wide, 5, True), (wide, 2 * wide, 3, True), (2 * wide, 3 * wide, 3, False),
            (3 * wide, 2 * wide, 3, False), (2 * wide, 2 * wide, 3, True)]  # fmt: skip
    parts: list[nn.Module] = []
    for i, o, size, pool in plan:
        parts += [nn.Conv2d(i, o, size, padding=size // 2), nn.ReLU(), *[nn.MaxPool2d(2)] * pool]
    flat = 2 * wide * (side // 8) ** 2
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(flat, 256), nn.ReLU(), nn.Linear(256, 10))


def vgg(channels: int, side: int, wide: int = 24) -> nn.Module:
    """Five convolutions of 3 x 3 in three stages, BatchNorm, a pooling after each stage."""
    stages, parts = [(channels, [wide]), (wide, [2 * wide, 2 * wide]), (2 * wide, [4 * wide, 4 * wide])], []
    for first, outs in stages:
        for i, o in zip([first, *outs], outs, strict=False):
            parts += [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        parts.append(nn.MaxPool2d(2))
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(4 * wide * (side // 8) ** 2, 10))


class Lab:
    """Images, probes that were learnt from and probes that were not, and fresh networks."""

    def __init__(self, kind: str, data: str | None, quick: bool, full: bool, device: str) -> None:
        folder = "mnist" if kind == "mlp" else "cifar10"
        self.kind, self.quick, self.device = kind, quick, device
        self.name = folder if data else "digits"
        read = getattr(ws, folder) if data else (lambda _, split: ws.digits(split))
        self.train, self.test = (read(data and str(Path(data) / folder), split) for split in ("train", "test"))
        self.plan = QUICK if quick else PLANS[kind]
        many = 40 if quick else PROBES
        self.probe, self.held = self.train.take(many, seed=0), self.test.take(many, seed=0)
        self.tested = self.test.take(TESTED, seed=1)
        if quick:
            self.train, self.tested = self.train.take(256, seed=1), self.tested.take(200)
        self.wider = 2 if full else 1

    def fresh(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        channels, side = self.train.example(1).shape[1], self.train.example(1).shape[-1]
        if self.kind == "mlp":
            made = perceptron(channels * side * side)
        elif self.kind == "resnet":
            made = residual(
                channels, 10, Size(blocks=2 * self.wider - 1, stem=2 if side == 32 and self.wider == 1 else 1)
            )
        elif self.kind == "vgg":
            made = vgg(channels, side, 24 * self.wider)
        else:
            made = alexnet(channels, side, 32 * self.wider)
        return made.to(self.device)


def learnt(lab: Lab, seed: int) -> tuple[ws.Recorder, nn.Module]:
    """Trained by SGD with momentum .9, the rate falling twice; gates and networks kept at the end of every epoch."""
    module, plan, (x, y) = lab.fresh(seed), lab.plan, tensors(lab.train)
    optimiser = torch.optim.SGD(module.parameters(), plan.rate, momentum=0.9, weight_decay=5e-4)
    falls = torch.optim.lr_scheduler.MultiStepLR(optimiser, list(plan.decays), 0.1)
    generator, every = torch.Generator().manual_seed(seed), len(x) // plan.batch
    watch = ws.Recorder(
        module, every, points=every, tell=None, learnt=ws.gates(lab.probe), held=ws.gates(lab.held),
        right=ws.accuracy(lab.tested), right_learnt=ws.accuracy(lab.probe),
        activations=path_overlap.features_since(lab.probe),
    )  # fmt: skip
    for _ in range(plan.epochs):
        module.train()
        for rows in torch.randperm(len(x), generator=generator)[: every * plan.batch].split(plan.batch):
            images = x[rows] if lab.kind == "mlp" or lab.name == "digits" else shifted(x[rows], generator)
            optimiser.zero_grad()
            loss = F.cross_entropy(module(images.to(lab.device)), y[rows].to(lab.device))
            loss.backward()
            optimiser.step()
            watch.step(loss=loss)
        falls.step()
    return watch, module


def seen(lab: Lab, seed: int) -> dict[str, Any]:
    """All that the figures show, epoch by epoch."""
    began = time.perf_counter()
    watch, _ = learnt(lab, seed)
    seconds = time.perf_counter() - began
    records, plan = watch.records, lab.plan
    learnt_gates: list[Gates] = [record.values["learnt"] for record in records]
    held_gates: list[Gates] = [record.values["held"] for record in records]
    layers = list(learnt_gates[0].layers)
    pairs = list(zip(learnt_gates, learnt_gates[1:], strict=False))
    overlaps = [path_overlap.overlap(p) for p in learnt_gates]
    cross = [ws.cross_path(p, q, overlaps=(overlaps[t], overlaps[t + 1])) for t, (p, q) in enumerate(pairs)]
    by_layer = {layer: [path_overlap.off_diagonal(ws.cross_path(p, q, layer)) for p, q in pairs] for layer in layers}
    shown = layers[len(layers) // 2]
    near = path_overlap.neighbours(
        learnt_gates, ANCHORS, min(CANDIDATES, len(lab.probe)), layer=layers[min(1, len(layers) - 1)]
    )
    whole = [path_overlap.off_diagonal(c) for c in cross]
    return {
        "layers": layers,
        "units": [learnt_gates[0].layers[layer] for layer in layers],
        "right": [record.values["right"] for record in records],
        "right_learnt": [record.values["right_learnt"] for record in records],
        "loss": [record.values.get("loss") for record in records],
        "trust": [record.values["from_last"] for record in records],
        "self": {layer: [float(ws.self_path(p, q, layer).mean()) for p, q in pairs] for layer in layers},
        "self_all": [float(ws.self_path(p, q).mean()) for p, q in pairs],
        "self_held": [float(ws.self_path(p, q).mean()) for p, q in zip(held_gates, held_gates[1:], strict=False)],
        "cross": by_layer,
        "cross_all": whole,
        "bands": [
            torch.quantile(c.flatten()[:: max(1, c.numel() // 50_000)], torch.tensor([0.1, 0.5, 0.9])).tolist()
            for c in cross
        ],
        "features_self": {
            layer: [record.values["activations"][layer]["self"] for record in records[1:]] for layer in layers
        },
        "features_cross": {
            layer: [record.values["activations"][layer]["cross"] for record in records[1:]] for layer in layers
        },
        "flips": [float((p.everything() != q.everything()).double().mean()) for p, q in pairs],
        "dead": [mean(path_overlap.dead(p).values()) for p in learnt_gates],
        "distance": {layer: against(lab, learnt_gates[-1], layer) for layer in (layers[0], shown, layers[-1])},
        "distance_start": {layer: against(lab, learnt_gates[0], layer) for layer in (layers[0], shown, layers[-1])},
        "scatter": scatter(lab, learnt_gates[-1], shown),
        "neighbours": near.ranks[:, 0, near.top[0]].tolist(),
        "jaccard": near.jaccard.mean(1).tolist(),
        "kendall": near.kendall.mean(1).tolist(),
        "matrix": matrix(learnt_gates),
        "matrix_held": matrix(held_gates),
        "old": old_paths(lab, watch, learnt_gates, lab.probe),
        "old_held": old_paths(lab, watch, held_gates, lab.held),
        "ratio": path_overlap.early_to_mid(whole, plan.decays[0], plan.decays[1]),
        "seconds": seconds,
        "overhead": watch.overhead,
    }


def given_up(row: dict[str, Any]) -> list[float]:
    """Of the paths, for each unit of log relative trust, epoch by epoch."""
    return [(1 - s) / math.log1p(t) for s, t in zip(row["self_all"], row["trust"][1:], strict=True)]


def against(lab: Lab, found: Gates, layer: str) -> dict[str, float]:
    return path_overlap.against_distance(found, lab.probe.example(len(lab.probe)), layer)


def scatter(lab: Lab, found: Gates, layer: str) -> list[list[float]]:
    """Distance and overlap of some pairs, for the eye."""
    x = lab.probe.example(len(lab.probe)).flatten(1)
    i, j = torch.randint(len(x), (2, PAIRS), generator=torch.Generator().manual_seed(0))
    i, j = i[i != j], j[i != j]
    return [(x[i] - x[j]).norm(dim=1).tolist(), path_overlap.overlap(found, layer=layer)[i, j].tolist()]


def matrix(history: Sequence[Gates]) -> list[list[float]]:
    """Mean self-path similarity of every two epochs."""
    return [[float(ws.self_path(p, q).mean()) for q in history] for p in history]


def old_paths(lab: Lab, watch: ws.Recorder, history: Sequence[Gates], task: ws.Task) -> dict[str, list[float]]:
    """Loss and accuracy on the final weights along the path of every epoch, and along that of the epoch before."""
    nets = list(watch.path())
    labels = task.labels()
    found: dict[str, list[float]] = {"loss": [], "right": [], "loss_before": [], "loss_now": []}
    for k, p in enumerate(history):
        out = ws.forced(nets[-1], p, task)
        found["loss"].append(float(F.cross_entropy(out, labels)))
        found["right"].append(float((out.argmax(1) == labels).double().mean()))
        if k:
            found["loss_before"].append(float(F.cross_entropy(ws.forced(nets[k], history[k - 1], task), labels)))
            with torch.no_grad():
                found["loss_now"].append(float(task(nets[k])))
    return found


# ------------------------------------------------------------------ tables


def tables(record: Record) -> dict[str, str]:
    """Mark in the README -> table."""
    rows, others, olds = [], [], []
    for kind in KINDS:
        for name in ("mnist", "cifar10"):
            for row in record.of(f"images/{name}/{kind}"):
                first, last = row["layers"][0], row["layers"][-1]
                at = [0, PLANS[kind].decays[0] - 1, PLANS[kind].decays[1] - 1, -1]
                over = [[row[what][k] for k in at] for what in ("self_all", "self_held", "cross_all")]
                layers = [[row["cross"][layer][k] for k in at] for layer in (first, last)]
                feature = [row["features_cross"][first][k] for k in at]
                rows.append([f"{kind}, {name}", percent([row["right"][k] for k in (1, at[1] + 1, -1)]),
                             *(number(v) for v in (*over, *layers, feature)), f"{row['seconds']:.0f}"])  # fmt: skip
                spear = [[row["distance"][layer][how] for layer in row["distance"]] for how in ("count", "cosine")]
                others.append([f"{kind}, {name}", number(spear[0], 2), number(spear[1], 2),
                               number([row["jaccard"][0], row["jaccard"][-1]], 2),
                               number([row["kendall"][0], row["kendall"][-1]], 2), number(row["ratio"], 2),
                               number([row["flips"][k] for k in at]), number([given_up(row)[k] for k in at], 2),
                               percent(row["dead"][-1])])  # fmt: skip
                for probe, where in (("learnt from", "old"), ("held out", "old_held")):
                    old = row[where]
                    ends = [0, 1, PLANS[kind].decays[0], -1]
                    before = [old["loss_before"][k] for k in at]
                    now = [old["loss_now"][k] for k in at]
                    told = [number([old["loss"][k] for k in ends], 2), number(before, 2), number(now, 2)]
                    olds.append([f"{kind}, {name}, {probe}", percent([old["right"][k] for k in ends]), *told])
    found = {}
    if rows:
        head = (
            "network | test accuracy after 1 / before the decay / end, % | self, learnt | self, held out | cross | "
            "cross, first layer | cross, last layer | cross of activations, first | seconds"
        )
        found["images"] = table(head.split(" | "), rows)
        head = (
            "network | distance and overlap, first / middle / last layer | distance and cosine | nearest six that "
            "stay, first / last | Kendall | early to mid | units that flip | given up a unit of log trust | dead, %"
        )
        found["images more"] = table(head.split(" | "), others)
        head = (
            "network, images | accuracy along the path of epoch 0 / 1 / decay / end, % | its loss | loss along the "
            "path of the epoch before | along its own"
        )
        found["images old paths"] = table(head.split(" | "), olds)
    return found


def _jobs(_: Namespace, given: Namespace) -> Iterator[Job]:
    for kind in given.chosen:
        lab = Lab(kind, given.data, given.quick, given.full, given.device)
        for seed in given.seeds:
            yield f"images/{lab.name}{' full' * given.full}/{kind}/{seed}", partial(seen, lab, seed)


main = command(
    "images",
    __doc__,
    KINDS,
    lambda given: given,
    lambda record, _: tables(record),
    jobs=_jobs,
    data="folder with mnist and cifar10",
    seeds=[0],
    options={
        "--full": {"action": "store_true", "help": "wider and deeper networks"},
        "--device": {"default": "cpu", "help": "where the networks are"},
    },
)

if __name__ == "__main__":
    sys.exit(main())
