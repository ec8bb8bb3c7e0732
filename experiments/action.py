"""Training as diffusion: the action of training runs, least-action paths between networks, flatness and the test error.

    python -m experiments.action [runs reach flat descent escape] [--data DIR] [--seeds 0 1 2]

Embedded digits without --data (a folder of MNIST's files). Rows that are there are not measured again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn

import weightspace as ws
from experiments.nets import tensors
from experiments.record import Job, Record, block, brief, command, number, percent
from weightspace.path.diffusion import laplacian

RATES, BATCH, POINTS = (0.1, 0.5), 16, 30
GRID_RATES, GRID_BATCHES = (0.03, 0.1, 0.3, 1.0), (8, 32, 128)
EARLY = (1, 3, 10)
ENDS, LEVEL = ("sgd", "full batch"), 0.1


class Lab:
    """Data, networks, and stochastic gradient descent."""

    def __init__(self, data: str | None, quick: bool) -> None:
        self.quick, self.name = quick, "mnist" if data else "digits"
        read = (lambda split: ws.mnist(data, split=split)) if data else (lambda split: ws.digits(split))
        self.train = read("train").take(120 if quick else 1000, seed=0)
        self.test = read("test").take(5000, seed=0)
        self.width = 8 if quick else 32
        self.x, self.y = tensors(self.train)
        self.epochs = 2 if quick else 30
        self.ended = cache(self._ended)

    def module(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        layers = [nn.Linear(self.x[0].numel(), self.width), nn.Tanh(), nn.Linear(self.width, 10)]
        return nn.Sequential(nn.Flatten(), *layers)

    def descend(self, module: nn.Module, rate: float, batch: int, seed: int) -> Iterator[int]:
        """Plain gradient descent without end, a batch of the training images at a time; yields the steps made."""
        generator = torch.Generator().manual_seed(seed)
        step, n = 0, len(self.x)
        while True:
            for some in torch.randperm(n, generator=generator)[: n - n % min(batch, n)].split(batch):
                loss = F.cross_entropy(module(self.x[some]), self.y[some])
                slopes = torch.autograd.grad(loss, [*module.parameters()])
                with torch.no_grad():
                    for w, slope in zip(module.parameters(), slopes, strict=True):
                        w -= rate * slope
                step += 1
                yield step

    def trained(self, seed: int, rate: float, batch: int, steps: int, start: ws.Net | None = None) -> ws.Net:
        module = self.module(seed) if start is None else start.module()
        for step in self.descend(module, rate, batch, seed):
            if step == steps:
                break
        return ws.Net.of(module)

    def _ended(self, seed: int) -> ws.Net:
        return self.trained(seed, 0.5, BATCH, self.epochs * (len(self.x) // BATCH))

    def flatness(self, net: ws.Net, seed: int = 0) -> list[float]:
        """tr H and tr F of the mean training loss."""
        bent = laplacian(net, self.train, 4 if self.quick else 32, seed)
        return [bent.value, ws.fisher_trace(self.train, draws=2, seed=seed)(net)]

    def error(self, net: ws.Net) -> float:
        return 1 - ws.accuracy(self.test)(net)


# ------------------------------------------------------------------ the action of runs


def runs(lab: Lab, seed: int) -> Iterator[Job]:
    """Static and dynamic part of the action of stochastic gradient descent, at a small and a large rate."""
    for rate in RATES:
        yield f"runs/{lab.name}/{rate:g}/{seed}", lambda rate=rate: _run(lab, rate, seed)


def _run(lab: Lab, rate: float, seed: int) -> dict[str, Any]:
    steps = lab.epochs * (len(lab.x) // BATCH)
    points = 4 if lab.quick else POINTS
    marks = sorted({round(steps * (k / points) ** 2) for k in range(1, points + 1)} - {0})
    module = lab.module(seed)
    nets, times = [ws.Net.of(module)], [0.0]
    for step in lab.descend(module, rate, BATCH, seed):
        if step in marks:
            nets.append(ws.Net.of(module))
            times.append(rate * step)
        if step == steps:
            break
    heats = [ws.sgd_temperature(net, lab.train, rate, BATCH) for net in (nets[0], nets[len(nets) // 2], nets[-1])]
    heat = sum(heats) / 3
    found = ws.action(nets, lab.train, heat, times, probes=4 if lab.quick else 8, seed=seed)
    half = ws.action(nets[::2], lab.train, heat, times[::2], probes=4 if lab.quick else 8, seed=seed)
    straight = ws.action([nets[0], nets[-1]], lab.train, heat, [times[0], times[-1]], probes=2, seed=seed)
    return {
        "weights": nets[0].weights.numel,
        "points": len(nets),
        "temperature": heats,
        **{name: getattr(found, name) for name in ("static", "kinetic", "force", "entropic", "error")},
        "half": [half.kinetic, half.force, half.entropic],
        "chord": straight.kinetic,
        "losses": [found.losses[0], found.losses[-1]],
        "laplacians": [found.laplacians[0], max(found.laplacians), found.laplacians[-1]],
        "test_error": lab.error(nets[-1]),
    }


# ------------------------------------------------------------------ from network to network


def reach(lab: Lab, seed: int) -> Iterator[Job]:
    """The path of least action between two trained networks, as they are and aligned."""
    for ends in ("as they are", "aligned"):
        yield f"reach/{lab.name}/{ends}/{seed}", lambda ends=ends: _reached(lab, ends, seed)


def _reached(lab: Lab, ends: str, seed: int) -> dict[str, Any]:
    a, b = lab.ended(2 * seed), lab.ended(2 * seed + 1)
    if ends == "aligned":
        b = ws.Symmetry.of(a, lab.train.example(2)).align(b, to=a)
    straight = ws.line(a, b)
    options: dict[str, Any] = {"images": 5, "steps": 6} if lab.quick else {"images": 13, "steps": 200}
    found = ws.minimum_action_path(a, b, lab.train, size=0.5, **options)
    heat = ws.sgd_temperature(a, lab.train, 0.5, BATCH)
    return {
        "distance": float((b - a).norm()),
        "length": found.path.length(),
        "straight": straight.barrier(lab.train, 13),
        "barrier": found.barrier,
        "back": found.back,
        "ends": [found.losses[0], found.losses[-1]],
        "exponent": -found.barrier / heat,
        "temperature": heat,
        "straight_exponent": -(float(straight.along(lab.train, 13).max()) - found.losses[0]) / heat,
        "test_error": [lab.error(a), lab.error(straight(0.5)), lab.error(found.saddle)],
        "residual": found.residual,
    }


# ------------------------------------------------------------------ flatness


def flat(lab: Lab, seed: int) -> Iterator[Job]:
    """Flatness early and at the end, over rates and batches, and the error on test images."""
    for rate in GRID_RATES[1::2] if lab.quick else GRID_RATES:
        for batch in GRID_BATCHES[1:2] if lab.quick else GRID_BATCHES:
            key = f"flat/{lab.name}/{rate:g}, {batch}/{seed}"
            yield key, lambda rate=rate, batch=batch: _flat(lab, rate, batch, seed)


def _flat(lab: Lab, rate: float, batch: int, seed: int) -> dict[str, Any]:
    module, each = lab.module(seed), len(lab.x) // batch
    seen: dict[int, list[float]] = {}
    for step in lab.descend(module, rate, batch, seed):
        if step % each == 0 and step // each in (*EARLY, lab.epochs):
            seen[step // each] = lab.flatness(ws.Net.of(module), seed)
        if step == lab.epochs * each:
            break
    net = ws.Net.of(module)
    train = float(lab.train(net))
    return {
        "early": [seen[k] for k in EARLY if k in seen],
        "final": seen[lab.epochs],
        "train": [train, 1 - ws.accuracy(lab.train)(net)],
        "test": [float(lab.test(net)), lab.error(net)],
    }


def descent(lab: Lab, seed: int) -> Iterator[Job]:
    """Stochastic against full-batch descent at one rate, looked at when the training loss is the same."""
    for way in ENDS:
        yield f"descent/{lab.name}/{way}/{seed}", lambda way=way: _descended(lab, way, seed)


def _descended(lab: Lab, way: str, seed: int) -> dict[str, Any]:
    batch, most = (BATCH, 20_000) if way == "sgd" else (len(lab.x), 20_000)
    level, module = (2.0 if lab.quick else LEVEL), lab.module(seed)
    for step in lab.descend(module, 0.5, batch, seed):
        look = step % (len(lab.x) // batch if way == "sgd" else 5) == 0
        if step >= most or (look and float(lab.train(ws.Net.of(module))) < level):
            break
    net = ws.Net.of(module)
    return {
        "steps": step,
        "loss": float(lab.train(net)),
        "flatness": lab.flatness(net, seed),
        "sharpest": _sharpest(lab, net),
        "norm": float(net.weights.norm()),
        "test_error": lab.error(net),
    }


def _sharpest(lab: Lab, net: ws.Net) -> float:
    return float(ws.hessian(net, lab.train).eigenvalues(1)[0]) / len(lab.x)


def escape(lab: Lab, seed: int) -> Iterator[Job]:
    """From one minimum of full-batch descent: where noise of several strengths goes from there, at one rate."""
    for batch in (BATCH,) if lab.quick else (4, 16, 64, 0):
        key = f"escape/{lab.name}/{batch or 'all'}/{seed}"
        yield key, lambda batch=batch: _escaped(lab, batch or len(lab.x), seed)


def _escaped(lab: Lab, batch: int, seed: int) -> dict[str, Any]:
    steps = 40 if lab.quick else 3000
    start = lab.trained(seed, 0.2, len(lab.x), steps)
    net = lab.trained(seed, 0.2, batch, steps, start)
    return {
        "loss": [float(lab.train(n)) for n in (start, net)],
        "laplacian": [lab.flatness(n, seed)[0] for n in (start, net)],
        "sharpest": [_sharpest(lab, n) for n in (start, net)],
        "moved": float((net - start).norm()),
        "test_error": [lab.error(n) for n in (start, net)],
    }


EXPERIMENTS: dict[str, Callable[[Lab, int], Iterator[Job]]] = {
    "runs": runs, "reach": reach, "flat": flat, "descent": descent, "escape": escape,
}  # fmt: skip


# ------------------------------------------------------------------ tables


def tables(record: Record, name: str) -> dict[str, str]:
    """Mark in the README -> table."""
    rows = []
    for rate in RATES:
        get = record.at(f"runs/{name}/{rate:g}")
        if get("static") is not None:
            parts = [brief(get(k)) for k in ("temperature", "static", "kinetic", "chord", "force")]
            entropic = f"{get('entropic'):.4g} +- {get('error'):.2g}"
            last = [brief(get("half")), brief(get("laplacians")), percent(get("test_error"))]
            rows.append([f"{rate:g}", *parts, entropic, *last])
    head = (
        "rate | D at the start / middle / end | static | kinetic | of the straight line | force | entropic | kinetic / "
    )
    head += "force / entropic of every second point | tr H, first / largest / last | test error, %"
    found, rows = block(f"action runs {name}", head, rows), []
    for ends in ("as they are", "aligned"):
        at = f"reach/{name}/{ends}"
        if record.median(at, "barrier") is not None:
            shown = record.cells(at, "distance length", brief) + record.cells(at, "straight barrier", number, 4)
            told = record.cells(at, "straight_exponent exponent", brief)
            rows.append([ends, *shown, *told, *record.cells(at, "test_error", percent)])
    head = "networks | apart | length of the path | barrier of the line | of the path | log e^(-barrier / D), line | "
    found |= block(f"action reach {name}", f"{head}path | test error of an end / middle of the line / saddle, %", rows)
    head = "flatness | when | rank correlation with the test error | with the test loss | with the gap of errors | "
    found |= block(f"action flat {name}", f"{head}with the error, training loss fixed", _correlations(record, name))
    rows = []
    for way in ENDS:
        at = f"descent/{name}/{way}"
        if (steps := record.median(at, "steps")) is not None:
            told = record.cells(at, "loss flatness sharpest norm", brief)
            rows.append([way, f"{steps:.0f}", *told, *record.cells(at, "test_error", percent)])
    head = "descent | steps | training loss | tr H / tr F | largest eigenvalue | norm of the weights | test error, %"
    found |= block(f"action descent {name}", head, rows)
    rows = []
    for batch in ("4", "16", "64", "all"):
        at = f"escape/{name}/{batch}"
        if record.median(at, "loss") is not None:
            told = record.cells(at, "loss laplacian sharpest moved", brief)
            rows.append([batch, *told, *record.cells(at, "test_error", percent)])
    head = (
        "batch | training loss, before / after | tr H, before / after | largest eigenvalue, before / after | moved | "
    )
    return found | block(f"action escape {name}", f"{head}test error, before / after, %", rows)


def _correlations(record: Record, name: str) -> list[list[str]]:
    """Spearman's, over all runs that learnt their training images; and with the training loss held fixed."""
    seen = [row for key, row in record.rows.items() if key.startswith(f"flat/{name}/") and row["train"][1] < 0.05]
    if len(seen) < 5:
        return []
    train = [row["train"][0] for row in seen]
    outcomes = {
        "error": [row["test"][1] for row in seen],
        "loss": [row["test"][0] for row in seen],
        "gap": [row["test"][1] - row["train"][1] for row in seen],
    }

    def told(values: list[float]) -> list[str]:
        return [number(_rank(values, out), 2) for out in outcomes.values()]

    rows = []
    for k, what in enumerate(("tr H", "tr F")):
        for at, when in enumerate((*(f"epoch {e}" for e in EARLY), f"the end, {len(seen)} runs")):
            values = [(row["early"][at] if at < len(EARLY) else row["final"])[k] for row in seen]
            fixed = number(_partial(values, outcomes["error"], train), 2)
            rows.append([what if not at else "", when, *told(values), fixed])
    return [*rows, ["training loss", "the end", *told(train), ""]]


def _rank(x: list[float], y: list[float]) -> float:
    return float(spearmanr(x, y).statistic)


def _partial(x: list[float], y: list[float], z: list[float]) -> float:
    """The rank correlation of x and y with z held fixed."""
    xy, xz, yz = _rank(x, y), _rank(x, z), _rank(y, z)
    return (xy - xz * yz) / max(1e-12, ((1 - xz * xz) * (1 - yz * yz)) ** 0.5)


main = command("action", __doc__, EXPERIMENTS, lambda given: Lab(given.data, given.quick), tables)

if __name__ == "__main__":
    sys.exit(main())
