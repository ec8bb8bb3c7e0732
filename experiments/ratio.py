"""Does the ratio of early to mid cross-path similarity predict generalisation? 96 MLPs and 32 convolutional networks.

    python -m experiments.ratio [mlp cnn] [--seeds 0] [--quick]

Digits, 400 images to learn from, 30 epochs, the rate a tenth from epoch 15 on and a hundredth from epoch 22. Rows that
are there are not measured again.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau
from torch import nn

import weightspace as ws
from experiments.images import perceptron
from experiments.nets import tensors
from experiments.record import Job, Record, block, command, number
from weightspace.inside import path_overlap

SIZE, EPOCHS, DECAYS = 400, 30, (15, 22)
AXES: dict[str, dict[str, tuple[Any, ...]]] = {
    "mlp": {"width": (32, 64, 128), "depth": (2, 4), "rate": (0.02, 0.05), "batch": (16, 64), "decay": (0.0, 1e-3),
            "noise": (0.0, 0.2)},
    "cnn": {"width": (8, 16), "rate": (0.02, 0.05), "batch": (16, 64), "decay": (0.0, 1e-3), "noise": (0.0, 0.2)},
}  # fmt: skip


def settings(kind: str) -> list[dict[str, Any]]:
    """All combinations."""
    axes = AXES[kind]
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def cnn(width: int) -> nn.Module:
    """Two convolutions with a pooling in between, and one hidden layer."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(32 * width, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def learnt(kind: str, how: Mapping[str, Any], seed: int, quick: bool = False) -> dict[str, Any]:
    """Cross-path similarity epoch by epoch over the images learnt from, errors at the end."""
    torch.manual_seed(seed)
    module = perceptron(64, how["width"], how["depth"]) if kind == "mlp" else cnn(how["width"])
    train, test = ws.digits("train").take(100 if quick else SIZE, seed=0), ws.digits("test")
    x, y = tensors(train)
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(y), generator=generator) < how["noise"]
    labels = torch.where(wrong, torch.randint(10, (len(y),), generator=generator), y)
    optimiser = torch.optim.SGD(module.parameters(), how["rate"], momentum=0.9, weight_decay=how["decay"])
    falls = torch.optim.lr_scheduler.MultiStepLR(optimiser, list(DECAYS), 0.1)
    seen, last = [], ws.gates(train)(ws.Net.of(module))
    overlaps = path_overlap.overlap(last)
    for _ in range(EPOCHS):
        module.train()
        for rows in torch.randperm(len(x), generator=generator).split(how["batch"]):
            optimiser.zero_grad()
            F.cross_entropy(module(x[rows]), labels[rows]).backward()
            optimiser.step()
        falls.step()
        now = ws.gates(train)(ws.Net.of(module))
        there = path_overlap.overlap(now)
        seen.append(path_overlap.off_diagonal(ws.cross_path(last, now, overlaps=(overlaps, there))))
        last, overlaps = now, there
    net = ws.Net.of(module)
    errors = [1 - ws.accuracy(task)(net) for task in (train.relabelled(labels), test)]
    return {**how, "seen": seen, "ratio": path_overlap.early_to_mid(seen, *DECAYS), "errors": errors}


def jobs(kind: str, seed: int, quick: bool) -> Iterator[Job]:
    for how in settings(kind)[:: 40 if quick else 1]:
        name = " ".join(f"{key} {value:g}" for key, value in how.items())
        yield f"ratio/{kind}/{name}/{seed}", lambda how=how: learnt(kind, how, seed, quick)


# ------------------------------------------------------------------ how well one number orders another


def tau(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's rank correlation; NaN for fewer than two."""
    if len(a) < 2:
        return float("nan")
    return float(kendalltau(a, b).statistic)


def granulated(rows: Sequence[Mapping[str, Any]], axes: Sequence[str], a: Sequence[float], b: Sequence[float]) -> float:
    """The mean over settings of Kendall's tau among networks that differ in that setting alone.

    Source: Fantastic generalization measures and where to find them (Jiang et al., 2020).
    """
    found = []
    for axis in axes:
        groups: dict[tuple[Any, ...], list[int]] = {}
        for k, row in enumerate(rows):
            groups.setdefault(tuple(row[other] for other in axes if other != axis), []).append(k)
        taus = [tau([a[k] for k in group], [b[k] for k in group]) for group in groups.values() if len(group) > 1]
        if good := [t for t in taus if np.isfinite(t)]:
            found.append(float(np.mean(good)))
    return float(np.mean(found)) if found else float("nan")


def tables(record: Record) -> dict[str, str]:
    """Mark in the README -> table."""
    rows = []
    for kind, axes in AXES.items():
        every = [row for key, row in record.rows.items() if key.startswith(f"ratio/{kind}/")]
        for noise in (None, 0.0, 0.2):
            some = [row for row in every if noise is None or row["noise"] == noise]
            if not some:
                continue
            free = [axis for axis in axes if noise is None or axis != "noise"]
            test = [row["errors"][1] for row in some]
            gap = [row["errors"][1] - row["errors"][0] for row in some]
            early = [float(np.mean(row["seen"][: DECAYS[0]])) for row in some]
            ratio = [row["ratio"] for row in some]
            told = [t for error in (test, gap) for t in (tau(ratio, error), granulated(some, free, ratio, error))]
            labels = {None: "all", 0.0: "true labels", 0.2: "a fifth of the labels random"}[noise]
            rows.append([f"{len(some)} {kind.upper()}s, {labels}", *(number(t, 2) for t in told),
                         number(tau(early, test), 2)])  # fmt: skip
    head = "networks | tau, test error | granulated | tau, gap | granulated | tau of early alone, test error"
    return block("ratio", head, rows)


main = command(
    "ratio",
    __doc__,
    AXES,
    lambda given: given,
    lambda record, _: tables(record),
    jobs=lambda _, given: (
        job for kind in given.chosen for seed in given.seeds for job in jobs(kind, seed, given.quick)
    ),
    data="not used",
    seeds=[0],
)

if __name__ == "__main__":
    sys.exit(main())
