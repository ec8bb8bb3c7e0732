"""Which network to start from: seven ways to choose, judged by regret; do distances of networks foretell transfer?

    python -m experiments.nearest [apart one codes] [--data DIR] [--seeds 0 1 2] [--quick]

Tasks of five classes: halves of MNIST, Fashion-MNIST and digits, and MNIST turned; a tiny convolutional network learns
each, and one stays as it was drawn. From each of them a target is learnt from 40 examples (a new head is fitted, then
all is tuned); the truth is the accuracy and the loss on other examples. A way to choose sees the 40 examples alone.
"apart": sources begin at weights of their own; "one": all at the same, and distances alone are measured; "codes":
distances of tasks by codes. --data is a folder of MNIST and Fashion-MNIST; without it there are digits alone.
"""

from __future__ import annotations

import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata, spearmanr
from torch import Tensor, nn

import weightspace as ws
from experiments.nets import fit, tensors
from experiments.record import Job, Record, block, command, number
from weightspace.atlas.question import Question
from weightspace.atlas.starts import Trial
from weightspace.symmetry.verdict import relative_distance

FEW, TESTED, LEARNT, SHOWN, SIDE = 40, 1000, 2000, 100, 14
STEPS, TUNED = 100, 20
TASKS = ("mnist 0-4", "mnist 5-9", "fashion 0-4", "fashion 5-9", "digits 0-4", "digits 5-9", "mnist 0-4 turned")
TARGETS = ("mnist 5-9", "fashion 0-4", "digits 0-4", "digits 5-9", "mnist 0-4 turned")
EMBEDDED = ("digits 0-4", "digits 5-9", "digits 0-4 turned", "digits 5-9 turned")
FRESH = "random weights"
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "loss, as it is": ("loss", {"budget": 0.999}),
    "LogME": ("logme", {"budget": 0.999}),
    "a fitted head": ("steps", {"steps": 0, "first": None, "head": "fitted"}),
    "20 steps, halved": ("steps", {"steps": TUNED, "head": "fitted"}),
    "20 steps of all": ("steps", {"steps": TUNED, "first": None, "head": "fitted"}),
    "task2vec": ("task2vec", {"parts": 1}),
    "weights": ("weights", {"steps": 100, "seeds": (0, 1)}),
}
KNOWN = ("best on other targets", "always random weights")  # before any data are seen
TRUTHS = ("errors", "losses")
COSTS = ("tied", "passes", "seconds")
CODES: dict[str, Any] = {"seeds": (0,), "steps": 500, "task_id": True, "lr": 0.04}
APART = ("weights, as stored", "weights, modulo", "outputs", "predictions", "1 - CKA", "Procrustes")


def network() -> nn.Module:
    body = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()
    return nn.Sequential(*body, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 5))


def coder() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 32), nn.ReLU(), nn.Linear(32, 5))


class Lab:
    """Tasks, the networks that have learnt them, and what a start from each gives."""

    def __init__(self, given: Namespace) -> None:
        self.quick, self.data = given.quick, given.data
        self.name = "digits" if given.data is None else "images"
        self.tasks = EMBEDDED if given.data is None else TASKS
        self.targets = (EMBEDDED[1:2] if self.quick else EMBEDDED) if given.data is None else TARGETS
        self.images, self.parts = cache(self._images), cache(self._parts)
        self.sources, self.codes = cache(self._sources), cache(lambda seed: {})

    def _images(self, name: str) -> tuple[Tensor, Tensor]:
        """Images of 14 x 14 pixels, and labels."""
        if name == "digits":
            read = [tensors(ws.digits(split)) for split in ("train", "test")]
            x, y = (torch.cat(both) for both in zip(*read, strict=True))
            return F.interpolate(x, size=(SIDE, SIDE), mode="bilinear"), y
        x, y = tensors((ws.mnist if name == "mnist" else ws.fashion_mnist)(self.data, "train").take(12_000, 0))
        return F.avg_pool2d(x, 2), y

    def _parts(self, task: str, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Examples to know the task by, few to learn it from as a target, and others to measure on: none in common."""
        name, classes, *turned = task.split()
        low, high = map(int, classes.split("-"))
        x, y = self.images(name)
        rows = ((y >= low) & (y <= high)).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
        x, y = x[rows].rot90(len(turned), (-2, -1)), y[rows] - low
        few, tested = FEW, min(TESTED, len(y) // 3)
        cuts = {
            "few": slice(few),
            "test": slice(few, few + tested),
            "learn": slice(few + tested, few + tested + LEARNT),
        }
        return {part: (x[cut], y[cut]) for part, cut in cuts.items()}

    def task(self, task: str, part: str, seed: int) -> ws.Task:
        return ws.Task(*self.parts(task, seed)[part], batch=512)

    def known(self, seed: int) -> dict[str, ws.Task]:
        """What each source has learnt, as few examples show it."""
        return {name: self.task(name, "learn", seed).take(SHOWN, 0) for name in self.tasks}

    def _sources(self, start: str, seed: int) -> dict[str, ws.Net]:
        found = {}
        for k, name in enumerate(self.tasks):
            module = ws.fresh(network, 100 * seed + (k if start == "apart" else 0)).module()
            for _ in fit(module, *self.parts(name, seed)["learn"], epochs=1 if self.quick else 10, seed=seed, lr=3e-3):
                pass
            found[name] = ws.Net.of(module)
        return found | {FRESH: ws.fresh(network, 100 * seed + 99)}

    def truth(self, start: str, target: str, seed: int) -> dict[str, tuple[float, float]]:
        """Source -> loss and accuracy on other examples after the target was learnt from it."""
        train, test = self.task(target, "few", seed), self.task(target, "test", seed)
        trial, found = Trial(train, Question(test, "loss"), 1e-3, 50, seed, 5), {}
        for name, net in self.sources(start, seed).items():
            tuned = trial.on(trial.begun(net), 3 if self.quick else STEPS).net
            with torch.no_grad():
                found[name] = float(test(tuned)), float(ws.accuracy(test)(tuned))
        return found


def started(lab: Lab, start: str, target: str, seed: int) -> dict[str, Any]:
    """The truth of one target, what each way chooses, and how far each source is from the network of the target."""
    truth, nets = lab.truth(start, target, seed), dict(lab.sources(start, seed))
    own = nets.pop(target)
    row: dict[str, Any] = {"sources": [*nets], "losses": [truth[name][0] for name in nets]}
    row["accuracies"] = [truth[name][1] for name in nets]
    task = lab.task(target, "few", seed)
    for way, (by, options) in WAYS.items() if start == "apart" else ():
        row |= {f"{way}, {what}": value for what, value in _asked(lab, task, nets, by, options, seed).items()}
    probe = ws.Task(torch.cat([lab.parts(name, seed)["learn"][0][:80] for name in lab.tasks]))
    far = [_apart(own, net, ws.Symmetry.of(own, task.example(2)), probe) for net in nets.values()]
    return row | {f"distance: {what}": [each[what] for each in far] for what in APART}


def _apart(a: ws.Net, b: ws.Net, group: ws.Symmetry, probe: ws.Task) -> dict[str, float]:
    """Distances of two networks: of weights, of outputs and of what is inside, on examples of all tasks."""
    found = ws.distances(a, b, probe)
    weights = relative_distance(a, b), ws.modulo(group, relative_distance)(a, b).upper
    functions = found.outputs["l2"], found.outputs["disagreement"]
    return dict(zip(APART, (*weights, *functions, 1 - found.alike, found.apart), strict=True))


def coded(lab: Lab, target: str, seed: int) -> dict[str, Any]:
    """The distance of each source to the target by codes of their labels, and the truth."""
    truth, nets = lab.truth("apart", target, seed), dict(lab.sources("apart", seed))
    del nets[target]
    row: dict[str, Any] = {"sources": [*nets], "losses": [truth[name][0] for name in nets]}
    row["accuracies"] = [truth[name][1] for name in nets]
    found = _asked(lab, lab.task(target, "few", seed), nets, "codes", CODES, seed)
    return row | {f"codes, {what}": value for what, value in found.items()}


def _asked(
    lab: Lab, task: ws.Task, nets: dict[str, ws.Net], by: str, options: dict[str, Any], seed: int
) -> dict[str, Any]:
    """The order that a way finds, what it cost, and what it had said that it would."""
    options = dict(options)
    if by in ("task2vec", "codes"):
        options["sources"] = {name: known for name, known in lab.known(seed).items() if name in nets}
    if by == "codes":
        options |= {"model": coder, "known": lab.codes(seed)} | ({"steps": 4} if lab.quick else {})
    elif by not in ("task2vec", "weights"):
        options["seed"] = seed
    said = ws.atlas.cost(task, nets, by, **options)
    began = time.perf_counter()
    answer = ws.nearest(task, nets, by, **options)
    order = {one.name: place for place, one in enumerate(answer.found.ranking)}
    values = {one.name: one.loss for one in answer.found.ranking}
    return {
        "places": [order.get(name, len(nets)) for name in nets], "values": [values.get(name) for name in nets],
        "passes": answer.found.passes, "said": said.examples, "seconds": time.perf_counter() - began,
        "tied": len(answer.tied),
    }  # fmt: skip


def jobs_of(start: str) -> Callable[[Lab, int], Iterator[Job]]:
    def jobs(lab: Lab, seed: int) -> Iterator[Job]:
        for target in lab.targets:
            yield f"{start}/{lab.name}/{target}/{seed}", partial(started, lab, start, target, seed)

    return jobs


def codes(lab: Lab, seed: int) -> Iterator[Job]:
    """One seed alone: codes are by far the dearest."""
    for target in lab.targets if seed == 0 else ():
        yield f"codes/{lab.name}/{target}/{seed}", partial(coded, lab, target, seed)


# ------------------------------------------------------------------ tables


def tables(record: Record, name: str) -> dict[str, str]:
    rows = {start: {k: r for k, r in record.rows.items() if k.startswith(f"{start}/{name}/")} for start in EXPERIMENTS}
    found = block(f"nearest regret {name}", *_regrets(rows["apart"], ("a random choice", *KNOWN, *WAYS)))
    found |= block(f"nearest codes {name}", *_regrets(rows["codes"], ("a random choice", "codes")))
    return found | block(f"nearest distances {name}", *_correlations(rows["apart"], rows["one"]))


def interval(values: list[float], seed: int = 0) -> str:
    """The mean, and its 95 % interval by the bootstrap over cells (target, seed)."""
    x = np.asarray(values)
    means = np.random.default_rng(seed).choice(x, (4000, len(x))).mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{number(float(x.mean()), 2)} ({number(float(low), 2)} to {number(float(high), 2)})"


def _regrets(rows: dict[str, dict[str, Any]], ways: Sequence[str]) -> tuple[str, list[list[str]]]:
    head = (
        "chosen by | regret, points of accuracy | less than a random choice by | regret, nats | best found, % | order: "
        "correlation with accuracy | with the loss | tied | examples passed | seconds"
    )
    lines = []
    for way in ways if rows else ():
        picks = [_pick(rows, key, way) for key in rows]
        told = [*zip(rows.values(), picks, strict=True)]
        points = [100 * _above([-a for a in row["accuracies"]], p) for row, p in told]
        gained = [
            100 * _above([-a for a in row["accuracies"]], None) - own
            for (row, _), own in zip(told, points, strict=True)
        ]
        best = [_chance(row["accuracies"], p) for row, p in told]
        line = [way, interval(points), interval(gained), interval([_above(row["losses"], p) for row, p in told])]
        line.append(f"{100 * sum(best) / len(best):.0f}")
        if way in ("a random choice", *KNOWN):
            lines.append([*line, "", "", "", "0", ""])
            continue
        values = [row[f"{way}, values"] for row in rows.values()]
        for truth in ("accuracies", "losses"):
            sign = -1 if truth == "accuracies" else 1
            orders = [_rank(v, [sign * t for t in row[truth]]) for v, row in zip(values, rows.values(), strict=True)]
            line.append(interval(orders))
        tied, passes, seconds = (np.median([row[f"{way}, {x}"] for row in rows.values()]) for x in COSTS)
        lines.append([*line, f"{tied:.0f}", f"{passes:,.0f}", f"{seconds:.1f}"])
    return head, lines


def _chance(accuracies: list[float], pick: int | None) -> float:
    """Whether the best is picked; for none, how likely that is at random."""
    best = [k for k, accuracy in enumerate(accuracies) if accuracy == max(accuracies)]
    return len(best) / len(accuracies) if pick is None else float(pick in best)


def _above(losses: list[float], pick: int | None) -> float:
    """How far a pick is above the least loss; on average over all for none."""
    return (sum(losses) / len(losses) if pick is None else losses[pick]) - min(losses)


def _pick(rows: dict[str, dict[str, Any]], key: str, way: str) -> int | None:
    """The number of the source that a way chooses."""
    row = rows[key]
    if way == "a random choice":
        return None
    if way == "always random weights":
        return row["sources"].index(FRESH)
    if way == "best on other targets":
        own, seed = key.split("/")[2], key.rpartition("/")[2]
        others = [r for k, r in rows.items() if k.rpartition("/")[2] == seed and k.split("/")[2] != own]
        worth = [[_standing(r)[name] for r in others if name in r["sources"]] for name in row["sources"]]
        return int(np.argmin([np.mean(w) if w else math.inf for w in worth]))
    return int(np.argmin(row[f"{way}, places"]))


def _standing(row: dict[str, Any]) -> dict[str, float]:
    """Source -> its error in units of the spread of errors on a target."""
    losses = 1 - np.asarray(row["accuracies"])
    return dict(zip(row["sources"], (losses - losses.mean()) / max(1e-12, losses.std()), strict=True))


def _rank(values: list[float], losses: list[float]) -> float:
    """Spearman's correlation over the sources that have a value; 0 where all values are equal."""
    x, y = np.asarray(values, dtype=float), np.asarray(losses, dtype=float)
    kept = np.isfinite(x) & np.isfinite(y)
    if min(len({*x[kept]}), len({*y[kept]})) < 2:
        return 0.0
    return float(spearmanr(rankdata(x[kept]), rankdata(y[kept])).statistic)


def _correlations(apart: dict[str, Any], one: dict[str, Any]) -> tuple[str, list[list[str]]]:
    """Within each target, over the sources that have learnt something; then the mean over targets."""
    against = (apart, "errors"), (apart, "losses"), (apart, "task2vec, values"), (one, "errors"), (one, "losses")
    head = "distance from the network of the target | with the error after transfer | with the loss | with task2vec | "
    lines = []
    for what in APART if apart else ():
        cells = []
        for rows, other in against:
            pairs = [_learnt(row, f"distance: {what}", other) for row in rows.values()]
            cells.append(interval([_rank(*pair) for pair in pairs]) if pairs else "")
        lines.append([what, *cells])
    if lines:
        own = [interval([_rank(*_learnt(row, "task2vec, values", x)) for row in apart.values()]) for x in TRUTHS]
        lines.append(["task2vec itself", *own, "", "", ""])
    return head + "one start: with the error | with the loss", lines


def _learnt(row: dict[str, Any], one: str, other: str) -> tuple[list[float], list[float]]:
    """Two values of every source that has learnt something."""
    kept = [k for k, name in enumerate(row["sources"]) if name != FRESH]
    values = {**row, "errors": [1 - accuracy for accuracy in row["accuracies"]]}
    return [values[one][k] for k in kept], [values[other][k] for k in kept]


def say(row: dict[str, Any]) -> str:
    best = row["sources"][int(np.argmin(row["losses"]))]
    return f"best {best}, losses {min(row['losses']):.3f} to {max(row['losses']):.3f}"


EXPERIMENTS = {"apart": jobs_of("apart"), "one": jobs_of("one"), "codes": codes}
main = command(
    "nearest", __doc__ or "", EXPERIMENTS, Lab, tables, data="folder of MNIST and Fashion-MNIST", say=say
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
