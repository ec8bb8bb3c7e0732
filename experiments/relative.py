"""Training by steps relative to the weights: depth without normalisation, the growth of norms, one rate for all tasks.

    python -m experiments.relative [depth growth sweep] [--data DIR] [--seeds 0 1 2] [--quick]

Without --data (a folder of MNIST's files) depth and growth run on embedded digits; the sweep always does. Rows that
are there are not measured again.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weightspace as ws
from experiments import sweep as tasks
from experiments.nets import tensors
from experiments.record import Job, Record, block, command, number, percent

WIDTH, BATCH, STEPS = 64, 64, 2000
DEPTHS = {"digits": (5, 10, 15, 20, 30, 50), "mnist": (10, 20, 30)}
DEEP_RATES = (1e-4, 1e-3, 1e-2, 1e-1)
CRITICAL, CLOSER_RATES = 30, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # a depth, and its rates
MOMENTUM = 0.9  # of stochastic gradient descent, as where the claim was made
GROWTH_RATES, GROWTH_DEPTH = (0.01, 0.1), 5
RATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
WAYS = ("SGD", "Adam", "LAMB", "Fromage")


class Lab:
    """Images as rows of numbers, in memory."""

    def __init__(self, data: str | None, quick: bool, seeds: Sequence[int]) -> None:
        self.quick, self.seeds, self.name = quick, list(seeds), "mnist" if data else "digits"
        read = (lambda split: ws.mnist(data, split, flat=True)) if data else (lambda split: ws.digits(split, flat=True))
        self.train, self.test = (tensors(read(split)) for split in ("train", "test"))
        self.steps = 20 if quick else STEPS


# ------------------------------------------------------------------ many networks of one shape at once


class Stack:
    """For every rate and seed one network of `depth` hidden layers, torch's default start, ReLU; a bmm for each layer.

    With `norm`, what goes into each ReLU is standardised over the batch, so that the scale of the weights is free.
    """

    def __init__(self, wide: int, depth: int, seeds: Sequence[int], many: int, norm: bool = False) -> None:
        self.many, self.seeds, self.norm = many, len(seeds), norm
        modules = [self._layers(wide, depth, seed) for seed in seeds]
        stacked = [torch.stack(same).repeat(many, *[1] * same[0].dim()) for same in zip(*modules, strict=True)]
        self.tensors = [t.requires_grad_() for t in stacked]
        for t in self.tensors:
            t.grad = torch.zeros_like(t)

    def _layers(self, wide: int, depth: int, seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        sizes = [wide, *[WIDTH] * depth, 10]
        layers = [nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
        return [p.detach() for layer in layers for p in (layer.weight, layer.bias[None])]

    def part(self, k: int) -> list[nn.Parameter]:
        """The networks of the kth rate, tensor by tensor: they share memory and gradients with the whole."""
        found = []
        for t in self.tensors:
            assert t.grad is not None
            for row in range(k * self.seeds, (k + 1) * self.seeds):
                found.append(nn.Parameter(t.detach()[row]))
                found[-1].grad = t.grad[row]
        return found

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs (network, example, 10) of inputs (network, example, number)."""
        for k in range(0, len(self.tensors), 2):
            x = torch.baddbmm(self.tensors[k + 1], x, self.tensors[k].transpose(1, 2))
            if k < len(self.tensors) - 2:
                x = F.relu(
                    (x - x.mean(1, True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt() if self.norm else x
                )
        return x

    @torch.no_grad()
    def right(self, x: Tensor, y: Tensor) -> list[list[float]]:
        """Accuracy by rate and seed."""
        out = self(x.expand(self.many * self.seeds, *x.shape))
        return (out.argmax(-1) == y).double().mean(1).view(self.many, self.seeds).tolist()


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean(1, True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()


def optimiser(way: str, parts: Sequence[list[nn.Parameter]], rates: Sequence[float]) -> torch.optim.Optimizer:
    """One group of parameters for each rate."""
    groups = [{"params": part, "lr": rate} for part, rate in zip(parts, rates, strict=True)]
    if way == "SGD":
        return torch.optim.SGD(groups, lr=0.1, momentum=MOMENTUM, fused=True)
    if way == "Adam":
        return torch.optim.Adam(groups, lr=0.1, fused=True)
    return ws.metric.Fromage(groups, correct=way == "Fromage")


def taught(
    lab: Lab, stack: Stack, way: str, rates: Sequence[float], decay: bool = True,
    watch: Callable[[int], None] = lambda step: None,
) -> None:  # fmt: skip
    """`lab.steps` steps of random batches, the same for every rate; the rate falls to zero over the last quarter."""
    (x, y), total = lab.train, lab.steps
    steps = optimiser(way, [stack.part(k) for k in range(len(rates))], rates)
    schedule = torch.optim.lr_scheduler.LambdaLR(steps, lambda k: tasks.share(k / total) if decay else 1.0)
    draws = [torch.Generator().manual_seed(seed) for seed in lab.seeds]
    for k in range(total):
        some = torch.stack([torch.randint(len(x), (BATCH,), generator=draw) for draw in draws]).repeat(len(rates), 1)
        for t in stack.tensors:
            assert t.grad is not None
            t.grad.zero_()
        F.cross_entropy(stack(x[some]).flatten(0, 1), y[some].flatten(), reduction="sum").div(BATCH).backward()
        steps.step()
        schedule.step()
        watch(k)


# ------------------------------------------------------------------ experiments


def depth(lab: Lab) -> Iterator[Job]:
    """Networks of more and more hidden layers, all rates and seeds of an optimiser at once."""
    for deep in (2,) if lab.quick else DEPTHS[lab.name]:
        for way in ("SGD", "Adam", "Fromage"):
            yield f"depth/{lab.name}/{way}/{deep}/all", lambda way=way, deep=deep: _deep(lab, way, deep)


def _deep(lab: Lab, way: str, deep: int) -> dict[str, Any]:
    rates = CLOSER_RATES if deep == CRITICAL and lab.name == "digits" else DEEP_RATES
    stack = Stack(lab.train[0].shape[1], deep, lab.seeds, len(rates))
    began = time.perf_counter()
    taught(lab, stack, way, rates)
    seconds = time.perf_counter() - began
    x, y = (t[:10_000] for t in lab.train)
    return {
        "rates": list(rates), "seeds": lab.seeds, "train": stack.right(x, y), "test": stack.right(*lab.test),
        "seconds": seconds,
    }  # fmt: skip


def growth(lab: Lab) -> Iterator[Job]:
    """How long the weights become, with the factor and without; with normalised layers and without."""
    for norm in (True, False):
        for way in ("Fromage", "no factor"):
            key = f"growth/{lab.name}/{'normalised' if norm else 'plain'}/{way}/all"
            yield key, lambda norm=norm, way=way: _grown(lab, norm, way)


def _grown(lab: Lab, norm: bool, way: str) -> dict[str, Any]:
    stack = Stack(lab.train[0].shape[1], 2 if lab.quick else GROWTH_DEPTH, lab.seeds, len(GROWTH_RATES), norm)
    hidden = stack.tensors[:-2:2]
    began = [t.detach().flatten(1).norm(dim=1) for t in hidden]
    taught(lab, stack, way, GROWTH_RATES, decay=False)
    ratios = torch.stack([t.detach().flatten(1).norm(dim=1) / n for t, n in zip(hidden, began, strict=True)])
    return {
        "rates": list(GROWTH_RATES),
        "ratio": [[float(v) for v in row] for row in ratios.mean(0).view(len(GROWTH_RATES), -1)],
        "train": stack.right(*(t[:10_000] for t in lab.train)), "steps": lab.steps,
    }  # fmt: skip


def sweep(lab: Lab) -> Iterator[Job]:
    """Four tasks, four optimisers, five rates: the first of the seeds."""
    yield "sweep/gan/floor/0", lambda: {"score": tasks.floor()}
    for task in tasks.TASKS:
        for way in WAYS:
            for rate in (0.01,) if lab.quick else RATES:
                key = f"sweep/{task}/{way}/{rate:g}/{lab.seeds[0]}"
                yield key, lambda task=task, way=way, rate=rate: tasks.scored(task, way, rate, lab.seeds[0], lab.quick)


EXPERIMENTS: dict[str, Callable[[Lab], Iterator[Job]]] = {"depth": depth, "growth": growth, "sweep": sweep}


# ------------------------------------------------------------------ tables


def best(row: dict[str, Any]) -> tuple[float, float, list[float], float]:
    """Rate of the highest median train accuracy; that median, its seeds, and the median test accuracy there."""
    medians = [statistics.median(seeds) for seeds in row["train"]]
    k = max(range(len(medians)), key=medians.__getitem__)
    return row["rates"][k], medians[k], row["train"][k], statistics.median(row["test"][k])


def tables(record: Record, name: str) -> dict[str, str]:
    """Mark in the README -> table."""
    optimisers, rows = ("SGD", "Adam", "Fromage"), []
    for deep in DEPTHS.get(name, ()):
        shown = [record.of(f"depth/{name}/{way}/{deep}") for way in optimisers]
        if any(shown):
            rows.append([str(deep), *map(_deep_cells, shown)])
    found = block(f"depth {name}", ["hidden layers", *(f"{way}: train / test, %" for way in optimisers)], rows)
    rows = []
    for kind in ("normalised", "plain"):
        for way in ("Fromage", "no factor"):
            for row in record.of(f"growth/{name}/{kind}/{way}"):
                for rate, ratio, right in zip(row["rates"], row["ratio"], row["train"], strict=True):
                    law = 1.0 if way == "Fromage" else (1 + rate**2) ** (row["steps"] / 2)
                    seen = [_big(statistics.median(ratio)), _big(law) if kind == "normalised" else ""]
                    rows.append([kind, way, f"{rate:g}", *seen, percent(statistics.median(right))])
    head = "layers | step | rate | norm at the end / at the start | the law's | train, %"
    found |= block(f"growth {name}", head, rows)
    rows = []
    for task, (_, what, digits) in tasks.TASKS.items():
        for way in WAYS:
            scores = {rate: row["score"] for rate in RATES for row in record.of(f"sweep/{task}/{way}/{rate:g}")}
            if scores:
                rows.append([what, way, *_sweep_cells(task, scores, digits)])
        for row in record.of(f"sweep/{task}/floor"):
            rows.append([what, "training images", *[""] * len(RATES), number(row["score"], digits), ""])
    head = ["task", "optimiser", *(f"{rate:g}" for rate in RATES), "best", "rates near the best"]
    return found | block("sweep", head, rows)


def _sweep_cells(task: str, scores: dict[float, float | None], digits: int) -> list[str]:
    seen = {rate: score for rate, score in scores.items() if score is not None}
    cells = [number(seen[r], digits) if r in seen else "diverged" if r in scores else "" for r in RATES]
    if not seen:
        return [*cells, "", "0"]
    top = (max if tasks.higher(task) else min)(seen, key=seen.__getitem__)
    good = sum(tasks.near(task, score, seen[top]) for score in seen.values())
    return [*cells, f"{number(seen[top], digits)} at {top:g}", str(good)]


def _deep_cells(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    rate, middle, seeds, test = best(rows[0])
    span = f"{percent(min(seeds))} to {percent(max(seeds))}"
    return f"{percent(middle)} / {percent(test)} ({span}; rate {rate:g})"


def _big(value: float) -> str:
    return f"{value:.3g}" if value < 1e4 else f"{value:.1e}"


main = command(
    "relative",
    __doc__,
    EXPERIMENTS,
    lambda given: Lab(given.data, given.quick, given.seeds),
    tables,
    jobs=lambda lab, given: (job for name in given.chosen for job in EXPERIMENTS[name](lab)),
)

if __name__ == "__main__":
    sys.exit(main())
