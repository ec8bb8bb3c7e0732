"""Double descent told in nats: test error against the number of weights, and against the information in them.

    python -m experiments.descent [features mlp] [--data DIR] [--seeds 0 1 2 3 4] [--quick]

Embedded digits, or MNIST with a folder of its files; 15 % of the training labels are false. Random features: an even
digit or an odd one, the least-norm least-squares solution. MLPs: ten digits, squared loss, trained to the end. Rows
that are there are not measured again.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import mean, median
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from sklearn.isotonic import IsotonicRegression
from torch import Tensor, nn

import weightspace as ws
from experiments.nets import tensors
from experiments.record import Job, Record, command, half_width, number, percent, table
from weightspace.codes.weight_information import Unconverged

FALSE = 0.15
FEW = {"features": 200, "mlp": 300}  # training images
WIDTHS = {
    "features": (5, 10, 20, 40, 80, 120, 160, 180, 200, 220, 250, 300, 400, 700, 1200, 2000),
    "mlp": (1, 2, 3, 4, 6, 8, 11, 16, 24, 48, 96, 192),
}
STEPS = 3000
TOLD = {
    "weights": "number of weights",
    "norm": "norm of the weights",
    "information": "information, the prior's variance the best for independent weights",
    "length": "loss + that information",
    "correlated": "information, the prior's variance the best for a full covariance",
    "initial": "information, the prior that of initial weights",
    "sgld": "information by chains, lambda log n",
}
LEARNT = 0.02  # training loss an image, below which the labels are interpolated, over that of a constant


class Lab:
    """Images with labels of which a share is false, and test images with true ones."""

    def __init__(self, data: str | None, quick: bool) -> None:
        self.quick, self.name = quick, "mnist" if data else "digits"
        self.train, self.test = (ws.mnist(data, split=s) if data else ws.digits(s) for s in ("train", "test"))
        self.test = self.test.take(min(2000, len(self.test)), seed=0)

    def drawn(self, kind: str, seed: int) -> tuple[ws.Task, ws.Task]:
        """Training and test task, labels as numbers in float64."""
        task = self.train.take(FEW[kind], seed=seed)
        tasks = _false(task, seed), self.test
        made = []
        for one in tasks:
            x, y = tensors(one)
            target = 1.0 - 2.0 * (y % 2)[:, None] if kind == "features" else F.one_hot(y, 10).double()
            made.append(ws.Task(x.flatten(1).double(), target.double()))
        return made[0], made[1]


def _false(task: ws.Task, seed: int) -> ws.Task:
    """15 % of the digits are changed into one with the other parity."""
    x, y = tensors(task)
    draw = torch.Generator().manual_seed(seed)
    wrong = torch.randperm(len(y), generator=draw)[: round(FALSE * len(y))]
    y = y.clone()
    y[wrong] = (y[wrong] + 1 + 2 * torch.randint(5, wrong.shape, generator=draw)) % 10
    return ws.Task(x, y)


# ------------------------------------------------------------------ networks


def features(task: ws.Task, width: int, seed: int, steps: int) -> ws.Net:
    """ReLU features of random weights, which are frozen, and the least-norm least-squares weights of one output."""
    x, y = tensors(task)
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(x.shape[1], width), nn.ReLU(), nn.Linear(width, 1, bias=False)).double()
    module[0].requires_grad_(False)
    scale = x.norm(dim=1).mean() / 2
    with torch.no_grad():
        module[0].weight.normal_().div_(scale)
        seen = module[:2](x)
        module[2].weight.copy_((torch.linalg.pinv(seen, rtol=1e-10) @ y).T)
    return ws.Net.of(module)


def mlp(task: ws.Task, width: int, seed: int, steps: int) -> ws.Net:
    """One hidden layer, whole batches, Adam with one cycle."""
    x, y = (t.float() for t in tensors(task))
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(x.shape[1], width), nn.ReLU(), nn.Linear(width, y.shape[1]))
    optimiser = torch.optim.Adam(module.parameters())
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        (module(x) - y).square().sum(1).mean().backward()
        optimiser.step()
        cycle.step()
    return ws.Net.of(module.double())


MADE: dict[str, Callable[[ws.Task, int, int, int], ws.Net]] = {"features": features, "mlp": mlp}


def priors(net: ws.Net, task: ws.Task, rank: int | None, seed: int) -> dict[str, float]:
    """The information against two other priors of the last layer's weights.

    "initial": the variance that torch draws weights of so many inputs with. "correlated": the best one for a posterior
    with the full covariance, v = |w|^2 / sum_i v k_i / (1 + v k_i), k the eigenvalues of the Gauss-Newton matrix.
    """
    w, seen = net.weights["2.weight"], net.module()[:2](task.example(len(task))).detach()
    k, square = torch.linalg.eigvalsh(2 * seen @ seen.T).clamp(min=0), float(w.norm()) ** 2
    low, high = -60.0, 60.0
    for _ in range(100):
        v = math.exp((low + high) / 2)
        low, high = ((low + high) / 2, high) if square / v > float((v * k / (1 + v * k)).sum()) else (low, math.log(v))
    how: dict[str, Any] = {"rank": rank, "probes": 2, "blocks": False, "seed": seed}
    found = {"initial": 1 / (3 * w.numel()), "correlated": v}
    return {name: ws.information(net, task, prior=v, **how).value for name, v in found.items()}


def wrong(net: ws.Net, task: ws.Task) -> float:
    x, y = tensors(task)
    f = net(x)
    return float((f.sign() != y).double().mean() if y.shape[1] == 1 else (f.argmax(1) != y.argmax(1)).double().mean())


def measured(lab: Lab, kind: str, width: int, seed: int) -> dict[str, Any]:
    """Test error, and what might tell it."""
    task, test = lab.drawn(kind, seed)
    net = MADE[kind](task, width, seed, 30 if lab.quick else STEPS)
    n = net.free().weights.numel
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Unconverged)
        rank = min(n, FEW[kind] + 20) if kind == "features" else None  # no less than that of the Gauss-Newton matrix
        local = ws.information(net, task, rank=rank, probes=2, blocks=False, seed=seed)
        others = priors(net, task, rank, seed) if kind == "features" else {}
    row = {
        "weights": n, "test": wrong(net, test), "train": wrong(net, task), "loss": float(task(net)) * len(task),
        "norm": float(net.free().weights.norm()), "information": local.value, "error": local.error,
        "length": local.length, "dimension": local.dimension, "harmonic": local.harmonic, "slope": local.slope,
        "constant": float((tensors(task)[1] - tensors(task)[1].mean(0)).square().sum()),
    }  # fmt: skip
    row |= others
    if kind == "mlp":
        draws = 10 if lab.quick else 200
        chains = ws.information(net, task, "sgld", chains=4, draws=draws, burn=draws, seed=seed)
        row |= {"sgld": chains.value, "sgld error": chains.error}
    return row


# ------------------------------------------------------------------ tables


def explained(told: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Shares of the errors' variance that the best monotone, and the best one-valley, function of `told` explains."""
    pairs = sorted(zip(told, errors, strict=True))
    y = torch.tensor([error for _, error in pairs], dtype=torch.float64)
    total = float((y - y.mean()).square().sum())

    def left(part: Tensor, rising: bool) -> float:
        if not len(part):
            return 0.0
        fitted = IsotonicRegression(increasing=rising).fit_transform(range(len(part)), part.numpy())
        return float((part - torch.as_tensor(fitted)).square().sum())

    if not total:
        return 1.0, 1.0
    monotone = min(left(y, True), left(y, False))
    valley = min(left(y[:k], False) + left(y[k:], True) for k in range(len(y) + 1))
    return 1 - monotone / total, 1 - valley / total


def around(values: list[float], digits: int = 2) -> str:
    """A mean with its 95 % interval."""
    kept = [value for value in values if not math.isnan(value)]
    if not kept:
        return ""
    return number(mean(kept), digits) + (f" ± {number(half_width(kept), digits)}" if len(kept) > 1 else "")


def tables(record: Record, name: str) -> dict[str, str]:
    """Mark in the README -> table."""
    found: dict[str, str] = {}
    for kind in MADE:
        rows = {width: record.of(f"{kind}/{name}/{width}") for width in WIDTHS[kind]}
        rows = {width: seen for width, seen in rows.items() if seen}
        if rows:
            found[f"descent {kind} {name}"] = _lines(rows)
        if len(rows) == len(WIDTHS[kind]):
            found[f"descent {kind} ranks {name}"] = _ranks(record, kind, name)
    return found


def _lines(rows: dict[int, list[dict[str, Any]]]) -> str:
    shown, first = [], next(iter(rows.values()))[0]
    last = ["sgld"] if "sgld" in first else ["correlated", "initial"]
    for width, seen in rows.items():
        tests = [100 * row["test"] for row in seen]
        part = [_middle([row[what] for row in seen], 1) for what in ("loss", "norm")]
        nats = [_middle([row[what] for row in seen], 0) for what in ("information", *last)]
        shown.append([str(width), str(seen[0]["weights"]), percent(mean(row["train"] for row in seen)),
                      around(tests, 1), *part, *nats, str(len(seen))])  # fmt: skip
    priors = ["chains"] if last == ["sgld"] else ["best prior, correlated weights", "initial prior"]
    head = ("width | weights | training error, % | test error, % | training loss | norm | "
            f"information, best prior, independent weights | {' | '.join(priors)} | seeds")  # fmt: skip
    return table(head, shown)


def _middle(values: list[float], digits: int) -> str:
    """The median, and the least and the most."""
    return f"{number(median(values), digits)} ({number(min(values), digits)} to {number(max(values), digits)})"


def _ranks(record: Record, kind: str, name: str) -> str:
    """Rank correlations with the test error, and shares of its variance, seed by seed; means with intervals."""
    seeds = sorted({key.rpartition("/")[2] for key in record.rows if key.startswith(f"{kind}/{name}/")})
    families = [[record.rows[f"{kind}/{name}/{w}/{s}"] for w in WIDTHS[kind]] for s in seeds
                if all(f"{kind}/{name}/{w}/{s}" in record.rows for w in WIDTHS[kind])]  # fmt: skip
    lines = []
    for what, said in TOLD.items():
        if what not in families[0][0]:
            continue
        cells: list[list[float]] = [[] for _ in range(5)]
        for family in families:
            told, errors = [row[what] for row in family], [row["test"] for row in family]
            fits = [row["loss"] < LEARNT * row["constant"] for row in family]
            parts = [[(t, e) for t, e, f in zip(told, errors, fits, strict=True) if f == yes] for yes in (False, True)]
            some = [spearmanr(*zip(*part, strict=True)).statistic if len(part) > 3 else math.nan for part in parts]
            for cell, value in zip(
                cells, (spearmanr(told, errors).statistic, *some, *explained(told, errors)), strict=True
            ):
                cell.append(float(value))
        lines.append([said, *(around(cell) for cell in cells), str(len(families))])
    head = ("told by | rank correlation with the test error, all widths | labels not yet interpolated | interpolated | "
            "variance explained by a monotone function | by one valley | seeds")  # fmt: skip
    return table(head, lines)


def _jobs(lab: Lab, kind: str, seed: int) -> Iterator[Job]:
    for width in WIDTHS[kind][2:4] if lab.quick else WIDTHS[kind]:
        yield f"{kind}/{lab.name}/{width}/{seed}", partial(measured, lab, kind, width, seed)


main = command(
    "descent",
    __doc__,
    {kind: partial(lambda kind, lab, seed: _jobs(lab, kind, seed), kind) for kind in MADE},
    lambda given: Lab(given.data, given.quick),
    tables,
    seeds=(0, 1, 2, 3, 4),
    say=lambda row: f"test {row['test']:.3f} train {row['train']:.3f} {row['information']:.0f} nats",
)

if __name__ == "__main__":
    sys.exit(main())
