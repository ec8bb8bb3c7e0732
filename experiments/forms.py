"""Constraints on the weights: what each form costs, where networks of it stand, and the way to it from a free one.

    python -m experiments.forms [train project speed] [--seeds 0 1 2] [--quick]

A network 64-64-64-10 on embedded digits; both hidden matrices have the form. `train`: the same steps of AdamW for every
form, from matrices of one norm, two networks a seed. `project`: a free network brought to the form: at once, at the end
of a flow toward the form that keeps the outputs on 100 images, and each of both repaired in the free parameters,
without labels. `speed`: layers of circulant blocks, forwards and backwards, by the matrix and by the Fourier transform.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import nn

import weightspace as ws
from experiments.nets import fit, tensors
from experiments.record import Job, Record, block, brief, command, each, number, percent

EPOCHS, KEPT, STEPS, SIZE, REPAIRS, RATE = 40, 100, 30, 0.5, 300, 3e-3
BATCH, SIZES = 128, (64, 128, 256, 512, 1024)
HIDDEN = ("0.weight", "2.weight")
MASK = "masked, 3/4 zeros"
SHARED = (
    "circulant", "block-circulant:8", "doubly-block-circulant:8x8", "toeplitz", "low-rank:8", "low-rank:16",
    "shared-blocks:8x64", "shared-entries:1x8", MASK, "symmetric", "antisymmetric", "orthogonal",
)  # fmt: skip
ORDERED = ("sorted:first", "sorted:mean", "sorted:linear", "sorted:norm")
FORMS = ("free", *SHARED, *ORDERED, "asymmetric:0.25")
PROJECTED, FEW = SHARED, ("free", "circulant", "low-rank:8", "orthogonal")


@dataclass
class Lab:
    """Embedded digits, and networks of every form trained on them."""

    quick: bool
    name: str = "digits"

    def __post_init__(self) -> None:
        self.train, self.test = ws.digits("train"), ws.digits("test")
        self.epochs, self.steps, self.repairs = (1, 3, 5) if self.quick else (EPOCHS, STEPS, REPAIRS)
        self.free = cache(lambda seed: self.trained("free", seed)[0])

    def trained(self, form: str, seed: int) -> tuple[ws.Net, float]:
        """A trained network of a form, and the seconds that its training took."""
        torch.manual_seed(seed)
        layers = nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        module: nn.Module = nn.Sequential(*layers)
        if form != "free":
            began = [w.norm() for name, w in module.named_parameters() if name in HIDDEN]
            ws.constrain(module, kinds(form))
            if form in SHARED and form != "orthogonal":
                _as_long(module, began)
        x, y = tensors(self.train)
        since = time.process_time()
        for _ in fit(module, x.flatten(1), y, epochs=self.epochs, seed=seed):
            pass
        return ws.Net.of(module), time.process_time() - since

    def flat(self, task: ws.Task) -> ws.Task:
        """The same examples as vectors."""
        return task.mapped(lambda x: x.flatten(1))


def _as_long(module: Any, norms: list[torch.Tensor]) -> None:
    """Give the hidden matrices their norms back: means of independent entries are small."""
    for layer, norm in zip((module[0], module[2]), norms, strict=True):
        with torch.no_grad():
            layer.weight = layer.weight * norm / layer.weight.norm()


def kinds(form: str) -> dict[str, Any]:
    """The name of every hidden matrix -> the form."""
    if form == MASK:
        drawn = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
        return dict.fromkeys(HIDDEN, ws.constraints.Masked(drawn < 0.25))
    return dict.fromkeys(HIDDEN, form)


def train(lab: Lab, seed: int) -> Iterator[Job]:
    """Every form, trained for the same steps: accuracy, free parameters, and the line to a second network."""
    for form in FEW if lab.quick else FORMS:
        yield f"train/{form}/{seed}", partial(_trained, lab, form, seed)


def _trained(lab: Lab, form: str, seed: int) -> dict[str, Any]:
    (a, seconds), (b, _) = (lab.trained(form, 2 * seed + k) for k in (0, 1))
    test = lab.flat(lab.test)
    right = ws.accuracy(test)
    one, other = ws.constraints.released(a), ws.constraints.released(b)
    group = ws.Symmetry.of(one, test.example(2))
    return {
        "accuracy": (right(a) + right(b)) / 2,
        "free": a.weights.numel,
        "stored": ws.line(one, other).barrier(test),
        "parameters": ws.line(a, b).barrier(test),
        "matched": ws.line(one, group.match(other, to=one, method="weights").element(other)).barrier(test),
        "seconds": seconds,
    }


def project(lab: Lab, seed: int) -> Iterator[Job]:
    """A free network brought to a form: at once, along a flow, and repaired."""
    for form in FEW[1:] if lab.quick else PROJECTED:
        yield f"project/{form}/{seed}", partial(_projected, lab, form, seed)


def _projected(lab: Lab, form: str, seed: int) -> dict[str, Any]:
    net, chosen = lab.free(2 * seed), kinds(form)
    train, test = lab.flat(lab.train), lab.flat(lab.test)
    metric, right = ws.Pullback(train.take(KEPT, seed=seed)), ws.accuracy(lab.flat(lab.test))
    near = ws.project(net, chosen)
    path = ws.flow(net, ws.conform(chosen), metric, steps=lab.steps, size=SIZE)
    end = ws.project(path[-1], chosen)
    apart = float((near - net).norm())
    repair = partial(_repaired, lab, ws.hold(train, net, "kl", temperature=4.0), chosen)
    return {
        "free": right(net),
        "at once": right(near),
        "flow": right(end),
        "at once, repaired": right(repair(near)),
        "flow, repaired": right(repair(end)),
        "apart": [apart, float((end - path[-1]).norm())],
        "drift": [metric.drift(n, metric.outputs(net)) for n in (near, path[-1], end)],
        "loss": [float(test(n)) for n in (net, near, end)],
    }


def _repaired(lab: Lab, goal: Any, chosen: dict[str, Any], net: ws.Net) -> ws.Net:
    start = ws.constrain(net, chosen)
    return ws.flow(start, goal, ws.Adam(), steps=lab.repairs, size=lambda done: RATE * (1 - done))[-1]


def speed(lab: Lab, seed: int) -> Iterator[Job]:
    """Blocks of several sizes, one or four by four of them: milliseconds of a batch by either way."""
    for blocks in (1,) if lab.quick else (1, 4):
        for size in SIZES[:1] if lab.quick else SIZES:
            yield f"speed/{blocks}/{size}/{seed}", partial(_timed, blocks, size, seed)


def _timed(blocks: int, size: int, seed: int) -> dict[str, Any]:
    kind, generator = ws.constraints.Circulant((size,)), torch.Generator().manual_seed(seed)
    shape = blocks * size, blocks * size
    free = torch.randn(*kind.form(shape), generator=generator).requires_grad_()
    x = torch.randn(BATCH, shape[1], generator=generator).requires_grad_()
    ways = {
        "matrix": lambda: x @ kind.weight((free,), shape, {}).T,
        "fourier": lambda: ws.constraints.circular(free, x, (size,)),
    }
    return {name: 1e3 * min(_seconds(way) for _ in range(6)) for name, way in ways.items()}


def _seconds(way: Any) -> float:
    began = time.process_time()
    way().square().sum().backward()
    return time.process_time() - began


def tables(record: Record, _: str) -> dict[str, str]:
    """Mark in the README -> table."""
    trained = [
        [form, f"{record.median(at, 'free'):,}", percent(record.median(at, "accuracy"))]
        + record.cells(at, "stored parameters matched", number)
        + [number(record.median(at, "seconds"), 1)]
        for form in FORMS
        if record.of(at := f"train/{form}")
    ]
    names = ("at once", "flow", "at once, repaired", "flow, repaired")
    projected = [
        [form, *(percent(record.median(at, name)) for name in names)]
        + [number(record.median(at, "apart"), 1), number(record.median(at, "drift"), 2)]
        for form in PROJECTED
        if record.of(at := f"project/{form}")
    ]
    timed = [
        [blocks, str(size), *record.cells(at, "matrix fourier", brief)]
        for blocks in ("1", "4")
        for size in SIZES
        if record.of(at := f"speed/{blocks}/{size}")
    ]
    sizes = block("forms speed", "blocks a side | size of a block | matrix, ms | Fourier transform, ms", timed)
    head = "form | free parameters | accuracy, % | barrier | in free parameters | matched | seconds"
    ways = "form | at once, % | flow, % | at once, repaired, % | flow, repaired, % | distance, before / after | drift"
    return block("forms trained", head, trained) | block("forms projected", ways, projected) | sizes


EXPERIMENTS = {"train": train, "project": project, "speed": speed}


def _lab(given: Namespace) -> Lab:
    return Lab(given.quick)


main = command("forms", __doc__ or "", EXPERIMENTS, _lab, tables, jobs=each(EXPERIMENTS))

if __name__ == "__main__":
    sys.exit(main())
