"""Pruning a residual network of CIFAR-10 to 93 % zeros without labels. Run by `experiments.colours sparsify`.

Kernels and the last matrix are pruned and counted; the scales and shifts of the norms and the last bias are neither.
The running statistics of the norms are part of the network and stay, but for the row that says "re-estimated".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

import weightspace as ws
from experiments.invariant import _cosine, _zeros
from experiments.record import Job, Record, block, number, percent
from experiments.residual import Lab
from weightspace.flows.pruning import sparsity, tightened

SHARE = 0.93
BATCH, TEACHING, RATE, STAGES = 128, 4, 3e-3, 8  # of a descent: examples, epochs, highest rate; stages of the others
IMAGES, LAYERED = 250, 2000  # for Gauss-Newton, for the repair layer by layer


def _share(lab: Lab) -> float:
    return 0.5 if lab.quick else SHARE


def _steps(lab: Lab) -> int:
    return 120 if lab.quick else TEACHING * (len(lab.train) // BATCH)


def one_shot(lab: Lab, net: ws.Net, seed: int) -> ws.Net:
    """The smallest of all together, cut in one go."""
    mask = tightened(net.weights, ws.prune(_share(lab)), _share(lab))
    return net.at(net.weights.shaped(net.weights.flat() * mask.flat()))


def statistics(lab: Lab, net: ws.Net, seed: int) -> ws.Net:
    """Cut in one go; then running statistics asked for anew (images, no labels)."""
    return ws.reset_statistics(one_shot(lab, net, seed), lab.train.take(2000, seed))


def layered(lab: Lab, net: ws.Net, seed: int) -> ws.Net:
    """Every layer by itself, as SparseGPT."""
    memory = lab.train.take(100 if lab.quick else LAYERED, seed)
    return ws.flow(net, ws.prune(_share(lab), repair="layer"), ws.Pullback(memory), steps=STAGES)[-1]


def newton(lab: Lab, net: ws.Net, seed: int) -> ws.Net:
    """Cut in stages, two Gauss-Newton corrections after each."""
    memory = lab.train.take(50 if lab.quick else IMAGES, seed)
    return ws.flow(net, ws.prune(_share(lab)), ws.Pullback(memory), steps=2 if lab.quick else STAGES)[-1]


def descent(lab: Lab, net: ws.Net, seed: int) -> ws.Net:
    """Cut little by little along a descent that holds the outputs on all training images."""
    goal, steps = ws.prune(_share(lab), repair="descent", batch=BATCH, seed=seed), _steps(lab)
    return ws.flow(net, goal, ws.Pullback(lab.train), steps=steps, size=RATE, save=steps)[-1]


def random(lab: Lab, net: ws.Net, seed: int) -> ws.Net:
    """The same share of zeros in every layer as magnitude leaves, at random; then taught as long as a descent."""
    shares = iter(_zeros(one_shot(lab, net, seed)))
    generator = torch.Generator().manual_seed(seed)
    mask = net.weights.map(torch.ones_like)
    for w in mask.values():
        if w.dim() > 1:
            order = torch.randperm(w.numel(), generator=generator).view(w.shape).to(w)
            w.copy_((order >= round(next(shares) * w.numel())).to(w))
    start = net.at(net.weights.shaped(net.weights.flat() * mask.flat()))
    goal, steps = ws.hold(lab.train, net, "kl", batch=BATCH, seed=seed, temperature=4.0), _steps(lab)
    return ws.flow(start, goal, ws.Adam(), steps=steps, size=_cosine(RATE), mask=mask, save=steps)[-1]


WAYS: dict[str, Callable[[Lab, ws.Net, int], ws.Net]] = {
    "cut in one go": one_shot,
    "cut in one go, statistics re-estimated": statistics,
    "repaired layer by layer": layered,
    "repaired by Gauss-Newton": newton,
    "cut along a descent": descent,
    "random zeros, taught as long": random,
}


def sparsify(lab: Lab, seed: int, only: list[str]) -> Iterator[Job]:
    """The same share of zeros, by every way."""
    for way in only or WAYS:
        if way in WAYS:
            yield f"sparsify/{lab.name}/{way}/{seed}", partial(measured, lab, way, seed)


def measured(lab: Lab, way: str, seed: int) -> dict[str, Any]:
    """Accuracy before and after, zeros in all and by layer, held-out drift of the outputs."""
    net, right = lab.net(seed), ws.accuracy(lab.test)
    began = time.perf_counter()
    end = WAYS[way](lab, net, seed)
    seconds = time.perf_counter() - began
    pruned = sum(w.numel() for w in net.weights.values() if w.dim() > 1)
    return {
        "dense": right(net), "right": right(end), "zeros": sparsity(end.weights), "layers": _zeros(end),
        "drift": ws.Pullback(lab.test.take(1000, seed=0)).drift(end, net), "pruned": pruned,
        "weights": net.weights.numel, "seconds": seconds,
    }  # fmt: skip


def tables(record: Record, name: str) -> dict[str, str]:
    """Mark in the README -> table."""
    rows = []
    for way in WAYS:
        at = f"sparsify/{name}/{way}"
        if record.median(at, "right") is not None:
            last = [number(record.median(at, "drift"), 1), percent(record.median(at, "layers"), 0)]
            shown = [*record.cells(at, "dense right zeros", percent), *last]
            rows.append([way, *shown, *record.cells(at, "seconds", number, 0)])
    head = "way | dense, % | sparse, % | zeros, % | drift | zeros by layer, % | seconds"
    return block(f"sparsify {name}", head, rows)
