"""Information in the weights (Achille, Soatto, 2018; Achille, Paolini, Mbeng, Soatto, 2019): structure functions.

    python -m experiments.structure [labels widths] [--data DIR] [--seeds 0 1]

Embedded digits (500 of them) without --data; with a folder of MNIST's files, 2,000 of these. Codes are kept one by one
beside the results, so that a run that was cut off goes on. Rows that are there are not measured again.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn

import weightspace as ws
from experiments.nets import tensors
from experiments.record import Job, Record, command, number, percent, table
from weightspace.codes.structure_functions import Run, StructureFunction
from weightspace.codes.weight_information import Unconverged

LABELS = {"true": 0.0, "half random": 0.5, "random": 1.0}
BETAS = (0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 2.0, 3.0, 5.0)
FEW = {"mlp": (0.03, 0.1, 0.3, 1.0, 2.0, 4.0), "cnn": (0.1, 0.3, 1.0, 3.0)}
SHOWN = (0.01, 0.1, 0.4, 0.7, 1.0, 2.0, 3.0, 5.0)
WIDTHS = (2, 4, 8, 16, 32, 64, 128, 256, 512)
NOISES = {"true": 0.0, "a quarter random": 0.25}


class Lab:
    """Data, and the models that it is written with."""

    def __init__(self, data: str | None, quick: bool, folder: Path | None = None) -> None:
        self.quick, self.folder = quick, folder
        read = (lambda split: ws.mnist(data, split=split)) if data else (lambda split: ws.digits(split))
        self.name = "mnist" if data else "digits"
        self.size = 100 if quick else 2000 if data else 500
        self.train, self.test = read("train").take(self.size, seed=0), read("test").take(2000, seed=0)
        self.side = self.train.example(1).shape[-1]
        self.models = ("mlp", "cnn") if data else ("mlp",)
        self.random = cache(lambda share, seed: ws.random_labels(self.train, share, seed))

    def module(self, kind: str, width: int = 32) -> nn.Module:
        """An MLP of one hidden layer, or a CNN of two convolutions; ReLU."""
        if kind == "cnn":
            convolutions = nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 5, stride=2), nn.ReLU()
            return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(256, 10))
        return nn.Sequential(nn.Flatten(), nn.Linear(self.side**2, width), nn.ReLU(), nn.Linear(width, 10))

    def betas(self, kind: str, name: str) -> tuple[float, ...]:
        """Of the slow CNN only small ones for random labels, which nothing learns at large ones."""
        few = FEW[kind][:2] if kind == "cnn" and name != "true" else FEW[kind]
        return (0.1, 2.0) if self.quick else few if self.name == "mnist" else BETAS

    def steps(self, kind: str) -> int:
        return 20 if self.quick else 400 if kind == "cnn" else 700


def labels(lab: Lab, seed: int) -> Iterator[Job]:
    """C_beta of the task with its own labels, with half of them random, and all."""
    for kind in lab.models:
        for name in ("true", "random", "half random"):
            key = f"labels/{lab.name} {kind}/{name}/{seed}"
            yield key, lambda kind=kind, name=name: _swept(lab, kind, name, seed)


def _swept(lab: Lab, kind: str, name: str, seed: int) -> dict[str, Any]:
    folder = lab.folder and lab.folder / f"{lab.name}-{kind}-{name.replace(' ', '-')}"
    found = ws.structure_function(
        lab.module(kind), lab.random(LABELS[name], 0), lab.betas(kind, name), seeds=(seed,), steps=lab.steps(kind),
        batch=256 if kind == "cnn" else 512, draws=8 if kind == "cnn" else 16, folder=folder,
    )  # fmt: skip
    return {
        "runs": [[run.way, run.beta, run.loss, run.error, run.kl, run.right] for run in found.runs],
        "constants": [list(c) for c in found.constants],
        "examples": found.examples,
    }


def of(record: Record, at: str) -> StructureFunction | None:
    """The envelope over all seeds of a setting."""
    rows = {key.rpartition("/")[2]: row for key, row in record.rows.items() if key.rpartition("/")[0] == at}
    if not rows:
        return None
    runs = [
        Run(int(seed), way, beta, loss, error, kl, right)
        for seed, row in sorted(rows.items())
        for way, beta, loss, error, kl, right in row["runs"]
    ]
    first = next(iter(rows.values()))
    return StructureFunction(tuple(runs), tuple((t, loss) for t, loss in first["constants"]), first["examples"])


def widths(lab: Lab, seed: int) -> Iterator[Job]:
    """Networks of many widths, trained to the end: test error, and the information in their weights, three ways."""
    for name in NOISES:
        for width in WIDTHS[1:2] if lab.quick else WIDTHS:
            key = f"widths/{lab.name}/{name}/{width}/{seed}"
            yield key, lambda width=width, name=name: _width(lab, width, name, seed)


def _width(lab: Lab, width: int, name: str, seed: int) -> dict[str, Any]:
    task = lab.random(NOISES[name], 0)
    net = _trained(lab, task, width, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Unconverged)
        local = ws.information(net, task, blocks=width <= 64 and lab.name == "digits", probes=4)
    code = ws.encode(net, task, steps=lab.steps("mlp"), seed=seed)
    chains = {"chains": 4, "draws": 10 if lab.quick else 100, "burn": 10 if lab.quick else 100}
    sgld = ws.information(net, task, "sgld", **chains)
    return {
        "weights": net.weights.numel,
        "error": [1 - ws.accuracy(t)(net) for t in (task, lab.test)],
        "local": local.value, "standard": local.error, "length": local.length, "slope": local.slope,
        "harmonic": local.harmonic,
        "bracket": [local.bracket.lower, local.bracket.value, local.bracket.block, local.bracket.diagonal],
        "dimension": local.dimension, "flatness": local.flatness,
        "code": [code.loss, code.kl], "code error": 1 - ws.accuracy(lab.test)(code.posterior.net),
        "sgld": [sgld.value, sgld.error], "products": local.products,
    }  # fmt: skip


def _trained(lab: Lab, task: ws.Task, width: int, seed: int) -> ws.Net:
    """Adam with one cycle and a little weight decay, whole batches of 500."""
    torch.manual_seed(seed)
    module = lab.module("mlp", width)
    x, y = tensors(task)
    steps, batch = 30 if lab.quick else 1500, 500
    optimiser = torch.optim.AdamW(module.parameters(), weight_decay=1e-3)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        some = torch.randperm(len(x), generator=generator)[:batch]
        optimiser.zero_grad()
        F.cross_entropy(module(x[some]), y[some]).backward()
        optimiser.step()
        cycle.step()
    return ws.Net.of(module)


EXPERIMENTS: dict[str, Callable[[Lab, int], Iterator[Job]]] = {"labels": labels, "widths": widths}


# ------------------------------------------------------------------ tables


def tables(record: Record, name: str) -> dict[str, str]:
    """Mark in the README -> table."""
    found: dict[str, str] = {}
    for kind in ("mlp", "cnn"):
        seen = {label: s for label in LABELS if (s := of(record, f"labels/{name} {kind}/{label}")) is not None}
        if {"true", "random"} <= {*seen}:
            found[f"structure {name} {kind}"] = _sweeps(seen)
            found[f"structure numbers {name} {kind}"] = _numbers(seen)
    for label in NOISES:
        rows = [_line(record, f"widths/{name}/{label}/{width}", width) for width in WIDTHS]
        rows = [row for row in rows if row]
        if rows:
            head = (
                "width | weights | error, train / test, % | local KL | its error | lower / estimate / block / "
                "diagonal | drawn over quadratic | code: loss / KL / C | its test error, % | sgld"
            )
            found[f"widths {name} {label}"] = table(head.split(" | "), rows)
    if ranks := [row for label in NOISES if (row := _ranks(record, name, label))]:
        head = (
            "labels | networks | weights | local KL | diagonal of the bracket | KL of the code | C of the code | sgld"
        )
        found[f"widths {name} ranks"] = table(head.split(" | "), ranks)
    return found


def _ranks(record: Record, name: str, label: str) -> list[str]:
    """Spearman's correlation of the test error with what might tell it, over all networks."""
    rows = [row for key, row in record.rows.items() if key.startswith(f"widths/{name}/{label}/")]
    if len(rows) < len(WIDTHS):
        return []
    told = {
        "weights": [r["weights"] for r in rows], "local": [r["local"] for r in rows],
        "diagonal": [r["bracket"][3] for r in rows], "kl": [r["code"][1] for r in rows],
        "length": [sum(r["code"]) for r in rows], "sgld": [r["sgld"][0] for r in rows],
    }  # fmt: skip
    errors = [r["error"][1] for r in rows]
    return [label, str(len(rows)), *(f"{spearmanr(errors, values).statistic:.2f}" for values in told.values())]


def _sweeps(seen: dict[str, StructureFunction]) -> str:
    betas = [b for b in seen["true"].betas if all(b in s.betas for s in seen.values())]
    betas = [b for b in betas if b in SHOWN or len(betas) < len(SHOWN)]
    rows = []
    for beta in betas:
        runs = {label: s.best(beta) for label, s in seen.items()}
        raw = [f"{run.loss:.0f} / {run.kl:.0f} / {run.length:.0f}" for run in runs.values()]
        rows.append([f"{beta:g}", *raw, " / ".join(f"{s.length(beta):.0f}" for s in seen.values())])
    head = ["beta", *(f"{label}: loss / KL / C" for label in seen), "C on the envelope"]
    return table(head, rows)


def _numbers(seen: dict[str, StructureFunction]) -> str:
    efficiency = seen["random"].collapse
    rows = []
    for label, s in seen.items():
        jumps = ", ".join(f"{t.beta:.2g} ({t.before:.0f} to {t.after:.0f})" for t in s.transitions)
        broken = ", ".join(f"{c.name} {c.violated:.0f}" for c in s.checks if not c.passed)
        rows.append([label, f"{s.length():.0f}", f"{s.complexity:.0f}", f"{s.collapse:.2f}", jumps, f"{s.tail:.2f}",
                     f"{s.tail / efficiency:.2f}" if efficiency else "", broken or "none"])  # fmt: skip
    head = ("labels | C(D) | structure | beta_c | jumps of K at beta | slope of the tail | over the efficiency | "
            "laws broken by the sweeps, nats")  # fmt: skip
    return table(head.split(" | "), rows)


def _line(record: Record, at: str, width: int) -> list[str]:
    if record.median(at, "weights") is None:
        return []
    loss, kl = record.median(at, "code")
    rows = [[b for b in row["bracket"]] for row in record.of(at)]
    bounds = [mean(c) if None not in c else None for c in zip(*rows, strict=True)]
    return [
        str(width), f"{record.median(at, 'weights'):.0f}", percent(record.median(at, "error")),
        f"{record.median(at, 'local'):.0f}", f"{record.median(at, 'standard'):.1f}",
        " / ".join("" if b is None else f"{b:.0f}" for b in bounds), number(record.median(at, "harmonic"), 1),
        f"{loss:.0f} / {kl:.0f} / {loss + kl:.0f}", percent(record.median(at, "code error")),
        f"{record.median(at, 'sgld')[0]:.0f}",
    ]  # fmt: skip


main = command(
    "structure",
    __doc__,
    EXPERIMENTS,
    lambda given: Lab(given.data, given.quick, given.folder),
    tables,
    options={"--folder": {"type": Path, "help": "where codes are kept one by one, for a run that is cut off"}},
)

if __name__ == "__main__":
    sys.exit(main())
