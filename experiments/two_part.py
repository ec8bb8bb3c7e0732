"""Two-part codes of labels, in nats: what a network leaves of them, and the information in its weights.

    python -m experiments.two_part [growth run] [--data DIR] [--seeds 0 1 2] [--quick]

Beside them codes that can be written down: quantised weights by a universal coder (zlib, bz2, lzma, or an adaptive
arithmetic coder), and the labels by such a coder, given neighbours among the examples before. All are upper bounds on
the Kolmogorov complexity of the labels given the inputs, up to the length of the decoder. Embedded digits; with a
folder of MNIST's files, these. Rows that are there are not measured again.
"""

from __future__ import annotations

import bz2
import lzma
import math
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weightspace as ws
from experiments.nets import tensors
from experiments.record import Job, Record, block, command, half_width, number
from weightspace.codes.weight_information import Unconverged

LABELS = {"true": 0.0, "random": 1.0}
SIZES = {"digits": (50, 100, 200, 400, 800), "mnist": (250, 1000, 4000)}
STEPS = (0, 10, 20, 40, 80, 160, 320, 1280)
BETAS = (0.1, 1.0)
GRIDS = tuple(2.0 ** (3 - k) for k in range(10))  # steps of quantised weights; saying which costs log 10
CLASSES, NEAREST = 10, 5
NAT = math.log(2)


class Lab:
    """The tasks, of n examples with labels of a kind, and the model."""

    def __init__(self, data: str | None, quick: bool) -> None:
        self.quick, self.name = quick, "mnist" if data else "digits"
        self.train, self.test = (ws.mnist(data, split=s) if data else ws.digits(s) for s in ("train", "test"))
        self.inputs = self.train.example(1)[0].numel()
        self.sizes = (50,) if quick else SIZES[self.name]
        self.steps = 20 if quick else 400

    def task(self, n: int, kind: str, seed: int) -> ws.Task:
        return ws.random_labels(self.train.take(n, seed=seed), LABELS[kind], seed=seed)

    def module(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(self.inputs, 32), nn.ReLU(), nn.Linear(32, CLASSES))

    def trained(self, task: ws.Task, seed: int, until: tuple[int, ...]) -> list[ws.Net]:
        """The networks after so many steps of Adam on all examples (on 512 of them at most)."""
        start = ws.fresh(self.module, seed)
        module = start.module()
        x, y = tensors(task)
        optimiser = torch.optim.Adam(module.parameters(), 3e-3)
        draw, kept = torch.Generator().manual_seed(seed), []
        for step in range(until[-1] + 1):
            if step in until:
                kept.append(start.at(ws.Net.of(module).weights.map(torch.clone)))
            some = torch.randperm(len(x), generator=draw)[:512]
            optimiser.zero_grad()
            F.cross_entropy(module(x[some]), y[some]).backward()
            optimiser.step()
        return kept


# ------------------------------------------------------------------ universal coders


def adaptive(symbols: Tensor, kinds: int) -> float:
    """Nats of an arithmetic coder that counts: every symbol has probability (times seen + 1/2) / (all + kinds/2).

    Source: The performance of universal encoding (Krichevsky, Trofimov, 1981).
    """
    n = torch.bincount(symbols.flatten(), minlength=kinds).tolist()
    ones = sum(math.lgamma(count + 0.5) - math.lgamma(0.5) for count in n)
    return math.lgamma(kinds / 2 + sum(n)) - math.lgamma(kinds / 2) - ones


def compressed(symbols: Tensor) -> float:
    """Nats of the shortest of three general compressors, a byte a symbol; saying which one costs log 3."""
    data = bytes(symbols.flatten().to(torch.uint8).tolist())
    raw = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 17, "lc": 0, "lp": 0, "pb": 0}]
    found = [lzma.compress(data, lzma.FORMAT_RAW, filters=raw), bz2.compress(data), zlib.compress(data, 9, -15)]
    return min(len(one) for one in found) * 8 * NAT + math.log(len(found))


def quantised(net: ws.Net, start: ws.Net, task: ws.Task) -> dict[str, float]:
    """The shortest two-part code of weights rounded to a grid around those that the seed gives; both parts, in nats."""
    best: dict[str, float] = {}
    away = net - start
    for grid in GRIDS:
        steps = away.map(lambda w, grid=grid: (w / grid).round())
        n = steps.flat().to(torch.int64)
        most = int(n.abs().max())
        coders = [adaptive(n + most, 2 * most + 1) + math.log(most + 1) * 2]
        if most < 128:
            coders.append(compressed(n + most) + math.log(most + 1) * 2)
        weights = min(coders) + math.log(2 * len(GRIDS))
        loss = summed(start + grid * steps, task)
        if not best or weights + loss < best["weights"] + best["loss"]:
            best = {"weights": weights, "loss": loss, "grid": grid}
    return best


def summed(net: ws.Net, task: ws.Task) -> float:
    """The loss over all examples, in nats."""
    return float(task(net)) * len(task)


def ranks(x: Tensor, y: Tensor) -> Tensor:
    """The place of every label in a list that the examples before it give: votes of the nearest, then frequency.

    A decoder that has the inputs makes the same list, so the ranks say the labels.
    """
    x = x.flatten(1).double()
    apart, found = torch.cdist(x, x), []
    for i in range(len(y)):
        score = torch.bincount(y[:i], minlength=CLASSES).double() / (10 * (i + 1))
        near = apart[i, :i].topk(min(NEAREST, i), largest=False).indices
        for place, j in enumerate(near.tolist()):
            score[y[j]] += 1 + 0.1 / (place + 1)
        order = score.argsort(descending=True, stable=True)
        found.append(int((order == y[i]).nonzero()))
    return torch.tensor(found)


# ------------------------------------------------------------------ growing numbers of examples, one run


def growth(lab: Lab, seed: int) -> Iterator[Job]:
    """Code lengths of the labels of n examples."""
    for n in lab.sizes:
        for kind in LABELS:
            yield f"growth/{lab.name}/{kind}/{n}/{seed}", partial(_grown, lab, n, kind, seed)


def _grown(lab: Lab, n: int, kind: str, seed: int) -> dict[str, Any]:
    task = lab.task(n, kind, seed)
    x, y = tensors(task)
    found = ws.structure_function(lab.module, task, BETAS, seeds=(seed,), steps=lab.steps)
    heart = min((run for run in found.runs if run.beta == BETAS[0]), key=lambda run: run.length)
    start, net = lab.trained(task, seed, (0, lab.steps))
    shortest = ws.encode(net, task, steps=lab.steps, seed=seed).posterior.net
    written = quantised(shortest, start.at(start.weights.zeros()), task)
    ranked = ranks(x, y)
    return {
        "trivial": n * math.log(CLASSES), "network": found.length(1.0), "structure": found.complexity,
        "by heart": [heart.loss, heart.kl], "prior": found.prior,
        "quantised": written["weights"] + written["loss"], "quantised information": written["weights"],
        "trained, quantised": sum(quantised(net, start, task)[part] for part in ("weights", "loss")),
        "neighbours": adaptive(ranked, CLASSES), "neighbours, compressed": compressed(ranked),
        "alone": adaptive(y, CLASSES), "alone, compressed": compressed(y),
        "first": float((ranked == 0).double().mean()),
    }  # fmt: skip


def run(lab: Lab, seed: int) -> Iterator[Job]:
    """Both parts of the code along a run, on all examples of the digits (2,000 of MNIST)."""
    for kind in ("true", "random"):
        yield f"run/{lab.name}/{kind}/{seed}", partial(_ran, lab, kind, seed)


def _ran(lab: Lab, kind: str, seed: int) -> dict[str, Any]:
    task = lab.task(50 if lab.quick else min(2000, len(lab.train)), kind, seed)
    nets = lab.trained(task, seed, (0, 5) if lab.quick else STEPS)
    found = []
    for net in nets:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Unconverged)
            local = ws.information(net, task, anchor=nets[0], blocks=False, probes=2)
        code = quantised(net, nets[0], task)
        code["raw"] = summed(net, task)
        found.append([code["raw"], local.value, local.length, code["weights"], code["loss"]])
    columns = [list(column) for column in zip(*found, strict=True)]
    names = ("loss", "local", "local length", "quantised weights", "quantised loss")
    tests = [float(lab.test(net)) for net in nets]
    return dict(zip(names, columns, strict=True)) | {"test": tests, "trivial": len(task) * math.log(CLASSES)}


EXPERIMENTS: dict[str, Callable[[Lab, int], Iterator[Job]]] = {"growth": growth, "run": run}


# ------------------------------------------------------------------ tables


def around(values: list[float], digits: int = 2) -> str:
    """A mean with its 95 % interval."""
    return number(mean(values), digits) + (f" ± {number(half_width(values), digits)}" if len(values) > 1 else "")


CODES = "network", "quantised", "trained, quantised"
SHOWN = (*CODES, "neighbours", "neighbours, compressed", "alone", "alone, compressed")


def tables(record: Record, name: str) -> dict[str, str]:
    """Mark in the README -> table."""
    rows = []
    for kind in LABELS:
        for n in SIZES[name]:
            if not (seen := record.of(f"growth/{name}/{kind}/{n}")):
                continue
            cells = [around([row[what] / n for row in seen]) for what in SHOWN]
            kept = [around([row["structure"] for row in seen], 0), around([row["by heart"][1] for row in seen], 0)]
            rows.append([kind, str(n), *cells, *kept])
    head = (
        "labels | n | network: loss + information | its mean, quantised | trained weights, quantised | "
        "neighbours, adaptive coder | "
        "neighbours, compressed | labels alone, adaptive coder | labels alone, compressed | "
        "information at beta 1, nats | at beta .1, nats"
    )
    return block(f"two-part growth {name}", head, rows) | block(f"two-part run {name}", RUN, _run_rows(record, name))


RUN = (
    "labels | steps | loss | information, local | their code | quantised: loss | weights | their sum | "
    "loss on test data, nats a label"
)


def _run_rows(record: Record, name: str) -> list[list[str]]:
    rows = []
    for kind in ("true", "random"):
        seen = record.of(f"run/{name}/{kind}")
        for k, step in enumerate(STEPS if seen and len(seen[0]["loss"]) == len(STEPS) else ()):

            def of(what: str, k: int = k, seen: list[dict[str, Any]] = seen) -> list[float]:
                return [row[what][k] for row in seen]

            lengths = [a + b for a, b in zip(of("quantised loss"), of("quantised weights"), strict=True)]
            cells = [around(of(what), 0) for what in ("loss", "local", "local length", "quantised loss")]
            rows.append([kind, str(step), *cells, around(of("quantised weights"), 0), around(lengths, 0),
                         around(of("test"))])  # fmt: skip
    return rows


main = command(
    "two_part",
    __doc__,
    EXPERIMENTS,
    lambda given: Lab(given.data, given.quick),
    tables,
    seeds=(0, 1, 2),
    say=lambda row: f"{row['trivial']:.0f} {row.get('network', 0):.0f} {row.get('quantised', 0):.0f}",
)

if __name__ == "__main__":
    sys.exit(main())
