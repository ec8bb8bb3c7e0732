"""A language model on invariant paths: pruning without labels, three tasks in sequence, a graph of networks.

    python -m experiments.language [fill continual own commute graph] --data DIR --model DIR [--full] [--quick]

The data folder holds sst2, imdb and yelp-labelled; the model's is one that transformers reads (all-MiniLM-L6-v2). Rows
that are there are not measured again; trained networks are kept in .cache. --quick wants neither folder.
"""

from __future__ import annotations

import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F

import weightspace as ws
from experiments.graph import graph
from experiments.graph import tables as graph_tables
from experiments.reading import BATCH, RATE, REHEARSED, STEPS, Lab, joined, learnt, pruned, reader, remembered, rights
from experiments.record import Job, Record, block, command, number, percent
from experiments.texts import MASKS, TASKS, Filler
from weightspace.flows.pruning import sparsity, tightened

SPARSITIES, CUTS = (0.2, 0.4, 0.6, 0.8), ("one shot", "layer", "descent")
FITTED, FIT = 500, 5e-4  # steps and highest rate of the head that fills in, and of the encoder with it
UNLABELLED, DESCENT, DESCENT_RATE = 256, 60, 2e-4
PATH, METRIC, BUDGET, EWC = 10, 32, 1.0, 1000.0


# ------------------------------------------------------------------ words behind masks


def filler(lab: Lab, seed: int) -> ws.Net:
    """The encoder with a head that fills in the masks, both fitted to texts."""
    start = ws.Net.of(Filler(lab.texts.encoder(seed), lab.texts.often))
    goal = ws.learn(lab.texts.masked("train", 2 if lab.quick else MASKS), BATCH, seed)
    return lab.kept(f"filler-{FITTED}-{seed}", start, lambda net: lab.run(net, goal, FITTED, FIT))


def fill(lab: Lab, seed: int) -> Iterator[Job]:
    """Masks filled in under sparsity: cut in one go, cut and repaired by layer, cut along a descent."""
    yield f"fill/{lab.name}/dense/0/{seed}", lambda: _filled(lab, seed, "dense", 0.0)
    for way in CUTS:
        for share in (0.3,) if lab.quick else sorted(SPARSITIES, reverse=True):
            yield f"fill/{lab.name}/{way}/{share:g}/{seed}", partial(_filled, lab, seed, way, share)


def _filled(lab: Lab, seed: int, way: str, share: float) -> dict[str, Any]:
    net = filler(lab, seed)
    began = time.perf_counter()
    end = net if way == "dense" else cut(lab, net, way, share, seed)
    seconds = time.perf_counter() - began
    return {**looked(lab, end), "zeros": sparsity(end.weights), "seconds": seconds}


def cut(lab: Lab, net: ws.Net, way: str, share: float, seed: int) -> ws.Net:
    """The network with so many zeros in its matrices."""
    aim = ws.prune(share, repair=way if way != "one shot" else "layer", batch=BATCH, seed=seed)
    if way == "one shot":
        return net.at(net.weights.shaped(net.weights.flat() * tightened(net.weights, aim, share).flat()))
    texts = lab.texts.masked("train", 2 if lab.quick else MASKS, UNLABELLED, seed + 1)
    steps = lab.steps(DESCENT) if way == "descent" else 1
    return ws.flow(net, aim, ws.Pullback(texts), steps=steps, size=DESCENT_RATE, save=steps)[-1]


@torch.no_grad()
def looked(lab: Lab, net: ws.Net) -> dict[str, float]:
    """Share of masks filled in right, their cross-entropy, pseudo-perplexity: all of texts that no step saw."""
    some = lab.texts.masked("test", 2 if lab.quick else MASKS, 250)
    right = loss = count = 0.0
    for x, y in some.batches(net):
        assert y is not None
        f = net(x).flatten(0, 1)
        right, loss = (
            right + float((f.argmax(1) == y.flatten()).sum()),
            loss + float(F.cross_entropy(f, y.flatten(), reduction="sum")),
        )
        count += y.numel()
    pseudo = math.exp(float(lab.texts.one_by_one(2 if lab.quick else 20)(net)))
    return {"accuracy": right / count, "loss": loss / count, "pseudo": pseudo}


# ------------------------------------------------------------------ three tasks


@dataclass(frozen=True)
class Stage:
    """What a way to learn sees: the new task, a memory of the old ones, how many outputs are known."""

    lab: Lab
    new: ws.Task
    memory: ws.Task
    known: int
    seed: int

    def learn(self) -> Any:
        return ws.learn(self.new, BATCH, self.seed)


def adam(more: Callable[[Stage, ws.Net], Any]) -> Callable[[Stage, ws.Net], ws.Net]:
    """Adam on the new task and something more."""
    return lambda s, net: s.lab.run(net, s.learn() + more(s, net), STEPS, RATE)


def derpp(s: Stage, net: ws.Net) -> Any:
    return ws.hold(s.memory, net, batch=REHEARSED, seed=s.seed, labels=1.0)


def path(s: Stage, net: ws.Net) -> ws.Net:
    """Exact steps within a drift budget on some of the memory, for gradients of mini-batches."""
    metric = ws.Pullback(s.memory.take(METRIC, s.seed), damping=1e-6, solver="dual")
    goal, steps = ws.learn(s.new, 4 * BATCH, s.seed), s.lab.steps(PATH)
    size = 0.01 * float(net.weights.norm())
    return ws.flow(net, goal, metric, steps=steps, size=size, budget=BUDGET, corrections=0, save=steps)[-1]


WAYS: dict[str, Callable[[Stage, ws.Net], ws.Net]] = {
    "naive": lambda s, net: s.lab.run(net, s.learn(), STEPS, RATE),
    "replay": adam(lambda s, net: ws.learn(s.memory, REHEARSED, s.seed)),
    "DER++": adam(derpp),
    "LwF": adam(lambda s, net: ws.hold(
        s.new, net, "kl", batch=BATCH, seed=s.seed, temperature=2.0, output=lambda f: f[:, : s.known])),
    "EWC": adam(lambda s, net: ws.ewc(net, s.memory, EWC, s.seed)),
    "invariant path": path,
}  # fmt: skip


def continual(lab: Lab, seed: int) -> Iterator[Job]:
    """SST-2, IMDB, Yelp one after the other, two outputs that all share."""
    for way in WAYS:
        yield f"continual/{lab.name}/shared/{way}/{seed}", partial(_learnt, lab, seed, False, way)


def own(lab: Lab, seed: int) -> Iterator[Job]:
    """The same, two outputs for every task: which task a text is from must be known too."""
    for way in WAYS:
        yield f"continual/{lab.name}/own/{way}/{seed}", partial(_learnt, lab, seed, True, way)


def _learnt(lab: Lab, seed: int, own: bool, way: str) -> dict[str, Any]:
    net = reader(lab, seed, own)
    if (seed, own) not in lab.begun:
        lab.begun[seed, own] = rights(lab, net, own)
    row: dict[str, Any] = {TASKS[0]: lab.begun[seed, own]}
    began = time.perf_counter()
    for k, name in enumerate(TASKS[1:], 1):
        memory = remembered(lab, TASKS[:k], seed, own)
        net = WAYS[way](Stage(lab, lab.texts.task(name, own=own), memory, 2 * k if own else 2, seed), net)
        row[name] = rights(lab, net, own)
    return {**row, "mean": sum(row[TASKS[-1]]) / len(TASKS), "seconds": time.perf_counter() - began}


# ------------------------------------------------------------------ prune and learn


def commute(lab: Lab, seed: int) -> Iterator[Job]:
    """Prune then learn the second task, and learn it then prune: do they lead to one place?"""
    share = 0.3 if lab.quick else 0.6
    yield f"commute/{lab.name}/{share:g}/{seed}", partial(_commute, lab, seed, share)


def _commute(lab: Lab, seed: int, share: float) -> dict[str, Any]:
    net, (old, new) = reader(lab, seed, own=False), TASKS[:2]
    some = lab.texts.task(old).take(UNLABELLED, seed)
    both = joined([some.take(UNLABELLED // 2), lab.texts.task(new).take(UNLABELLED // 2, seed)])
    first = pruned(lab, net, share, some)
    one = learnt(lab, first, new, [old], seed, STEPS)
    dense = learnt(lab, net, new, [old], seed, STEPS)
    other = pruned(lab, dense, share, both)
    moved = float((one - net).norm() + (other - net).norm()) / 2
    ends = {"dense": net, "pruned": first, "learnt": dense, "prune first": one, "learn first": other}
    return {
        **{name: rights(lab, end)[:2] for name, end in ends.items()},
        "zeros": [sparsity(one.weights), sparsity(other.weights)],
        "apart": float((one - other).norm()) / moved,
        "disagreement": [ws.disagreement([one, other], lab.texts.task(name, "test")) for name in (old, new)],
    }


EXPERIMENTS: dict[str, Callable[[Lab, int], Iterator[Job]]] = {
    "fill": fill, "continual": continual, "own": own, "commute": commute, "graph": graph,
}  # fmt: skip


def tables(record: Record, name: str) -> dict[str, str]:
    """Mark in the README -> table."""
    rows = []
    for way, share in (("dense", 0.0), *product(CUTS, SPARSITIES)):
        right, pseudo, seconds = map(record.at(f"fill/{name}/{way}/{share:g}"), ("accuracy", "pseudo", "seconds"))
        if right is not None:
            seconds = None if way == "dense" else seconds
            rows.append([f"{100 * share:g}", way, percent(right), number(pseudo, 1), number(seconds, 0)])
    rows.sort(key=lambda row: float(row[0]))
    found = block(f"fill {name}", "zero, % | way | masks right, % | pseudo-perplexity | seconds", rows)
    for kind in ("shared", "own"):
        rows = []
        for way in WAYS:
            at = f"continual/{name}/{kind}/{way}"
            if record.median(at, "mean") is not None:
                shown = record.cells(at, f"{' '.join(TASKS)} mean", percent)
                rows.append([way, *shown, *record.cells(at, "seconds", number, 0)])
        head = ["way", *(f"after {task}, %" for task in TASKS), "mean at the end, %", "seconds"]
        found |= block(f"continual {name} {kind}", head, rows)
    at, rows = f"commute/{name}/0.6", []
    if (ends := record.median(at, "zeros")) is not None:
        steps = zip(("dense", "pruned", "learnt", "prune first", "learn first"), (None, None, None, *ends), strict=True)
        rows = [[step, *map(percent, record.median(at, step)), percent(zeros)] for step, zeros in steps]
    found |= block(f"commute {name}", "network | sst2, % | imdb, % | zeros, %", rows)
    return found | graph_tables(record, name)


def _lab(given: Namespace) -> Lab:
    if not given.quick and not (given.data and given.model):
        raise ws.WeightspaceError("give --data DIR and --model DIR, or --quick")
    return Lab(given.data, given.model, given.quick, given.full)


main = command(
    "language",
    __doc__,
    EXPERIMENTS,
    _lab,
    tables,
    data="folder with sst2, imdb and yelp-labelled",
    seeds=[0],
    options={
        "--model": {"help": "folder of a BertModel and its tokenizer"},
        "--full": {"action": "store_true", "help": "364 networks in the graph, hours"},
    },
    say=str,
)

if __name__ == "__main__":
    sys.exit(main())
