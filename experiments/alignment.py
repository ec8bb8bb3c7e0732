"""The claims on alignment of "Machine learning, math, and generalization" (H. Sorensen), measured.

    python -m experiments.alignment [EXPERIMENT ..] [--data DIR] [--seeds N] [--quick] [--fresh]

Rows that are in the results file already are skipped, so that a run can be stopped and taken up again.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.nets import CACHE, FULL, QUICK, Lab
from experiments.record import Job, Record, command, table
from experiments.tables import TABLES
from weightspace import (
    Net,
    Symmetry,
    Task,
    WeightspaceError,
    accuracy,
    curve,
    euclidean,
    functional,
    line,
    mean,
    repair,
)
from weightspace import plane as plane_through
from weightspace import swa as average
from weightspace.symmetry.canonical import canonical_element

NOISES = (1e-4, 1e-3, 1e-2, 1e-1, 0.5)
CHILDREN = ("exact copy", *(f"noise {noise:g}" for noise in NOISES), "fine-tuned", "independent")
WAYS = ("as it is", "first", "later", "norm", "mean", "linear", "distance", "matched")
METHOD = "activations+weights"  # the best single one on these networks
MOST = 5  # networks to one average


# --- five keys against matching --------------------------------------------------------------------------------------


def keys(lab: Lab, seed: int) -> Iterator[Job]:
    """Bring a permuted child next to its parent: by sorting both, or by matching one to the other."""
    for child in CHILDREN:
        pair = cache(partial(_parent_and_child, lab, child, seed))
        for way in WAYS:
            yield f"keys/{child}/{way}/{seed}", partial(_brought, lab, way, pair)


def _parent_and_child(lab: Lab, child: str, seed: int) -> tuple[Net, Net, Any]:
    """A network, its child with units permuted at random, and that permutation."""
    parent = lab.net("mlp", MOST * seed)
    if child == "independent":
        born = lab.net("mlp", MOST * seed + 1)
    elif child == "fine-tuned":
        born = lab.tuned(MOST * seed)
    else:
        born = noisy(parent, 0.0 if child == "exact copy" else float(child.split()[1]), seed)
    shuffle = lab.group(parent).sample(seed=100 + seed, kinds=("permutation",))
    return parent, shuffle(born), shuffle


def noisy(net: Net, noise: float, seed: int) -> Net:
    """w + noise sd(w) z in every tensor, z standard normal."""
    z = net.weights.randn(seed)
    return net + z.replace({name: noise * net.weights[name].std() * z[name] for name in z})


def later_key(rows: Tensor) -> Tensor:
    """The 37th coordinate: the first pixel of digits is always 0, so that its weights are never trained."""
    return rows[..., min(36, rows.shape[-1] - 1)]


def distance_key(rows: Tensor) -> Tensor:
    """|v - v*| for one fixed pseudo-random v* of norm one."""
    star = torch.randn(rows.shape[-1], generator=torch.Generator().manual_seed(1), dtype=rows.dtype)
    return (rows - star / star.norm()).norm(dim=-1)


def _brought(lab: Lab, way: str, pair: Callable[[], tuple[Net, Net, Any]]) -> dict[str, Any]:
    parent, child, shuffle = pair()
    group = lab.group(parent)
    a, b, back = together(group, parent, child, way)
    middle = line(a, b)(0.5)
    return {
        "recovered": None if back is None else in_place(group, back @ shuffle),
        "barrier": line(a, b).barrier(lab.test),
        "distance": euclidean(a, b),
        "mean_accuracy": accuracy(lab.test)(middle),
        "mean_loss": float(lab.test(middle)),
    }


def together(group: Symmetry, parent: Net, child: Net, way: str) -> tuple[Net, Net, Any]:
    """Both on the balanced slice, in the same order of units, and the element that takes child to parent."""
    if way == "as it is":
        return group.balance(parent), group.balance(child), None
    if way == "matched":
        back = group.match(child, to=parent, method="weights").element
        return group.balance(parent), group.balance(back(child)), back
    key = {"distance": distance_key, "later": later_key}.get(way, way)
    sort, other = (canonical_element(group, net, key) for net in (parent, child))
    return sort(parent), other(child), sort.inverse() @ other


def in_place(group: Symmetry, element: Any) -> list[float]:
    """Fraction of the units of every axis that an element leaves where they are."""
    still = group.identity().permutations
    return [float((element.permutations[a.name] == still[a.name]).double().mean()) for a in group.permutable()]


# --- aligned if and only if joined by a path of low loss -------------------------------------------------------------


def paths(lab: Lab, seed: int) -> Iterator[Job]:
    """The line and trained curves between aligned ends, unaligned ends, and a network and its own permuted copy."""
    for kind in ("mlp", "cnn"):
        for ends in ("independent", "aligned", "permuted copy"):
            yield f"paths/{kind}/{ends}/{seed}", partial(_joined, lab, kind, ends, seed)


def _joined(lab: Lab, kind: str, ends: str, seed: int) -> dict[str, Any]:
    a = lab.net(kind, MOST * seed)
    group = lab.group(a)
    b = lab.net(kind, MOST * seed + 1)
    if ends == "aligned":
        b = group.align(b, to=a, data=lab.train, method=METHOD)
    elif ends == "permuted copy":
        b = group.sample(seed=100 + seed, kinds=("permutation",))(a)
    row: dict[str, Any] = {}
    for form in ("line", "bezier", "polychain"):
        path = line(a, b) if form == "line" else curve(a, b, lab.train, kind=form, steps=lab.size.curve, seed=seed)
        seen = path.along({"loss": lab.test, "accuracy": accuracy(lab.test)}, n=21)
        row |= {form: path.barrier(lab.test), f"{form}_train": path.barrier(lab.train)}
        row |= {f"{form}_loss": seen["loss"].tolist(), f"{form}_worst_accuracy": float(seen["accuracy"].min())}
        if form == "bezier":
            row |= walked(lab, group, [path(k / 10) for k in range(11)])
    return row


def walked(lab: Lab, group: Symmetry, nets: Sequence[Net]) -> dict[str, float]:
    """Units left in place by matching every point to the one before, and the last point to the first."""

    def kept(net: Net, to: Net, data: Task | None, method: str) -> float:
        places = in_place(group, group.match(net, to=to, data=data, method=method).element)
        return sum(places) / len(places)

    step = min(kept(y, x, lab.train, METHOD) for x, y in pairwise(nets))
    return {"step": step, "ends": kept(nets[-1], nets[0], None, "weights")}


# --- averaging weights against averaging predictions ------------------------------------------------------------------


def averages(lab: Lab, seed: int) -> Iterator[Job]:
    """Networks of different seeds: the mean as they are, the mean modulo symmetry, the mean of their predictions."""
    for kind in ("mlp", "cnn"):
        for n in range(2, MOST + 1):
            yield f"averages/{kind}/{n}/{seed}", partial(_averaged, lab, kind, n, seed)
            yield f"averages/{kind}/{n} without data/{seed}", partial(_merged, lab, kind, n, seed, None)


def _merged(lab: Lab, kind: str, n: int, seed: int, data: Task | None) -> dict[str, Any]:
    nets = [lab.net(kind, MOST * seed + k) for k in range(n)]
    began = time.process_time()
    merged = mean(nets, lab.group(nets[0]), data=data)
    seconds = time.process_time() - began
    return {"merged": accuracy(lab.test)(merged), "merged_loss": float(lab.test(merged)), "seconds": seconds}


def _averaged(lab: Lab, kind: str, n: int, seed: int) -> dict[str, Any]:
    nets = [lab.net(kind, MOST * seed + k) for k in range(n)]
    correct, loss = accuracy(lab.test), lab.test
    naive = average(nets)
    row = {"single": sum(map(correct, nets)) / n, "single_loss": sum(float(loss(net)) for net in nets) / n}
    row |= {"naive": correct(naive), "naive_loss": float(loss(naive))}
    mended = repair(naive, nets, lab.train)
    row |= {"mended": correct(mended), "mended_loss": float(loss(mended))}
    return row | _merged(lab, kind, n, seed, lab.train) | ensemble(nets, lab.test)


def ensemble(nets: Sequence[Net], task: Task) -> dict[str, float]:
    """Accuracy and cross-entropy of the mean of softmax outputs."""
    p = torch.stack([task.outputs(net).softmax(-1) for net in nets]).mean(0)
    y = task.labels()
    chosen = p.gather(1, y[:, None])
    return {"ensemble": float((p.argmax(-1) == y).double().mean()), "ensemble_loss": float(-chosen.log().mean())}


def swa(lab: Lab, seed: int) -> Iterator[Job]:
    """The mean of the last epochs of one run against its last epoch, an annealed run, and merged independent runs."""
    yield f"swa/run/{seed}", partial(_swa, lab, seed)


def _swa(lab: Lab, seed: int) -> dict[str, Any]:
    tail = lab.tail(MOST * seed)
    independent = [lab.net("mlp", MOST * seed + k) for k in range(MOST)]
    group = lab.group(tail[0])
    nets = {"last": tail[-1], "swa": average(tail), "annealed": independent[0]}
    nets["merged"] = mean(independent, group, data=lab.train)
    row: dict[str, Any] = {}
    for name, net in nets.items():
        row |= {name: accuracy(lab.test)(net), f"{name}_loss": float(lab.test(net))}
    back = group.match(tail[-1], to=tail[0], method="weights").element
    return row | {"in_place": in_place(group, back), "line": line(tail[0], tail[-1]).barrier(lab.test)}


def plane(lab: Lab, seed: int) -> Iterator[Job]:
    """Train loss and test error over the plane through three networks: of one run, of three runs, of three aligned."""
    for kind in ("one run", "independent", "aligned"):
        yield f"plane/{kind}/{seed}", partial(_plane, lab, kind, seed)


def _plane(lab: Lab, kind: str, seed: int) -> dict[str, Any]:
    if kind == "one run":
        tail = lab.tail(MOST * seed)
        nets = [tail[0], tail[len(tail) // 2], tail[-1]]
    else:
        nets = [lab.net("mlp", MOST * seed + k) for k in range(3)]
    if kind == "aligned":
        nets = [nets[0], *(lab.group(nets[0]).align(net, to=nets[0], data=lab.train) for net in nets[1:])]
    through, centre = plane_through(*nets), average(nets)
    wrong = accuracy(lab.test)
    seen = {"train_loss": lab.train, "test_error": lambda net: 1 - wrong(net)}
    row: dict[str, Any] = {}
    for name, observable in seen.items():
        row |= {f"{name}_corners": [float(observable(net)) for net in nets]}
        row |= {f"{name}_centre": float(observable(centre))}
    grid = through.grid(seen, n=lab.size.grid, margin=0.3)
    row |= {"centre": list(through.coordinates(centre)), "corners": through.corners.tolist()}
    at = grid.values["train_loss"].argmin()
    row |= {"best": [float(grid.u[at % len(grid.u)]), float(grid.v[at // len(grid.u)])]}
    if seed == 0:
        row |= {"u": grid.u.tolist(), "v": grid.v.tolist()}
        row |= {name: [list(map(float, line)) for line in values] for name, values in grid.values.items()}
    return row


# --- two widths -------------------------------------------------------------------------------------------------------


def widths(lab: Lab, seed: int) -> Iterator[Job]:
    """Functional distance and likeness of representations, within a width and across widths."""
    for other in ("fine-tuned", "same width", "half the width", "quarter of the width", "untrained"):
        yield f"widths/{other}/{seed}", partial(_across, lab, other, seed)


def _across(lab: Lab, other: str, seed: int) -> dict[str, Any]:
    full = lab.size.width
    a, at = lab.net("mlp", MOST * seed), MOST * seed + 1
    if other == "fine-tuned":
        b = lab.tuned(MOST * seed)
    elif other == "untrained":
        b = lab.untrained(at)
    else:
        b = lab.net("mlp", at, {"same": full, "half": full // 2, "quarter": full // 4}[other.split()[0]])
    row: dict[str, Any] = {kind: functional(a, b, lab.test, kind) for kind in ("l2", "disagreement", "kl")}
    row["cka"] = [kernel_alignment(*h) for h in zip(hidden(a, lab.test), hidden(b, lab.test), strict=True)]
    try:
        aligned = lab.group(a).align(b, to=a, method="weights")
        row["aligned_distance"], row["distance"] = euclidean(a, aligned), euclidean(a, b)
    except WeightspaceError as error:
        row["refused"] = str(error)
    return row


def hidden(net: Net, task: Task) -> list[Tensor]:
    """Activations (example, unit) after every hidden ReLU of a sequential network."""
    module, x, found = net.module(), task.example(len(task)), []
    with torch.no_grad():
        for layer in module:
            x = layer(x)
            if isinstance(layer, torch.nn.ReLU):
                found.append(x.double())
    return found


def kernel_alignment(x: Tensor, y: Tensor) -> float:
    """Linear CKA |Y^T X|^2 / |X^T X| |Y^T Y| of centred columns (Kornblith, Norouzi, Lee and Hinton, 2019)."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


# --- ordered parametrisation ------------------------------------------------------------------------------------------


def parametrisations(lab: Lab, seed: int) -> Iterator[Job]:
    """Train with units kept in the order of their biases, or told apart by fixed entries: does that align?"""
    for kind in ("mlp", "ordered", "asymmetric"):
        yield f"parametrisations/{kind}/{seed}", partial(_parametrised, lab, kind, seed)


def _parametrised(lab: Lab, kind: str, seed: int) -> dict[str, Any]:
    a, b = (lab.net(kind, MOST * seed + k) for k in (0, 1))
    group = lab.group(a)
    back = group.match(b, to=a, method="weights").element
    return {
        "accuracy": (accuracy(lab.test)(a) + accuracy(lab.test)(b)) / 2,
        "naive": line(a, b).barrier(lab.test),
        "matched": line(a, back(b)).barrier(lab.test),
        "in_place": in_place(group, back),
    }


# --- running them -----------------------------------------------------------------------------------------------------

# experiment -> seconds a seed at full size on one core, networks trained already
EXPERIMENTS: dict[str, tuple[Callable[[Lab, int], Iterator[Job]], float]] = {
    "keys": (keys, 60),
    "paths": (paths, 150),
    "averages": (averages, 120),
    "swa": (swa, 30),
    "plane": (plane, 120),
    "widths": (widths, 15),
    "parametrisations": (parametrisations, 10),
}


def _lab(given: Namespace) -> Lab:
    """Full size on digits has the results file of the README; any other run one in the cache."""
    torch.set_num_threads(1)
    lab = Lab(QUICK if given.quick else FULL, given.data, given.cache)
    if given.quick or given.data:
        given.out = given.out or given.cache / f"{lab.name}{'-quick' * given.quick}.json"
    return lab


def _jobs(lab: Lab, given: Namespace) -> Iterator[Job]:
    """The jobs of the chosen experiments, each with how long it will take said before."""
    record, seeds = Record(given.out), 1 if given.quick else given.seeds
    for name in given.chosen:
        if given.fresh:
            record.forget(name)
        make, cost = EXPERIMENTS[name]
        jobs = [job for seed in range(seeds) for job in make(lab, seed)]
        left = [job for job in jobs if job[0] not in record]
        minutes = cost * seeds * len(left) / len(jobs) / 60
        print(f"{name}: {len(jobs)} rows, {len(left)} to measure, about {minutes:.1f} minutes", flush=True)
        yield from left


def tables(record: Record) -> dict[str, str]:
    """Mark in the README -> table, of what was measured."""
    known = {key.split("/")[0] for key in record.rows}
    return {name: table(*make(record)) for name, make in TABLES.items() if name.split()[0] in known}


main = command(
    "alignment",
    __doc__,
    EXPERIMENTS,
    _lab,
    lambda record, _: tables(record),
    jobs=_jobs,
    data="folder of mnist, fashion-mnist or cifar10",
    options={
        "--seeds": {"type": int, "default": 3, "help": "repetitions (3)"},
        "--fresh": {"action": "store_true", "help": "measure again what is in the results file"},
        "--cache": {"type": Path, "default": CACHE, "help": "folder of trained networks"},
    },
)


if __name__ == "__main__":
    sys.exit(main())
