"""What `weightspace walk` does: move a network as far as the outputs on some data allow, towards something.

The data to keep is halved: the outputs on one part are held within the budget, the drift on the other is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weightspace.checkpoint import architecture, writer
from weightspace.checkpoint.architecture import ArchitectureError, Stored
from weightspace.commands.capacity import pairs
from weightspace.commands.progress import Progress
from weightspace.commands.workspace import Score, opened, picked, scored, splits
from weightspace.flows.attacks import harden
from weightspace.flows.goals import drift, learn, spread, toward
from weightspace.flows.pruning import Prune, prune, sparsity
from weightspace.flows.result import Flow, Record
from weightspace.flows.stepper import flow
from weightspace.metric.metric import Euclidean
from weightspace.metric.pullback import Pullback
from weightspace.net.net import Net
from weightspace.path.trail import Trail
from weightspace.symmetry.symmetry import Symmetry
from weightspace.task.classification import accuracy, classifies
from weightspace.task.task import Task

__all__ = ["Picture", "Walked", "walk"]


_FORM = "learn:DATA, prune:0.9, prune:0.5,2:4, drift:SEED, spread, harden:RADIUS, or another checkpoint"
_BUDGET = 0.1  # of the root mean square of the outputs, less their mean
_RATE = 5e-3  # learning rate of a descent
_POINTS = 12
_SHOWN = 30  # eigenvalues
_CHECKS = 100  # of the drift on held-out examples
_NUDGE = 1e-6  # a network is as like itself as can be: no gradient leads away
_STEPS, _DESCENT = 40, 2000
_MEMORY = 200


@dataclass(frozen=True)
class Picture:
    """The walk, beside the same number of steps of plain descent where the goal has a gradient.

    `plane`: for either, the points in the plane of largest variance, whose share is `shown`; `scores`: task -> the
    accuracies (or losses) at these points; `drift`: memory and held-out, step by step; `spectrum`: eigenvalues of the
    metric at both ends; `tradeoff`: drift and progress of first steps of one length.
    """

    plane: dict[str, list[tuple[float, float]]]
    shown: float
    scores: dict[str, dict[str, list[float]]]
    classes: bool
    drift: list[tuple[float, float]]
    spectrum: list[list[float]]
    tradeoff: list[tuple[float, float]]


@dataclass(frozen=True)
class Walked:
    """Where the walk led. Drifts are root mean squares over examples, in units of the outputs.

    `free`: share of the new task's first gradient that leaves the kept outputs alone; `scores`: before and after.
    """

    name: str
    out: str
    goal: str
    steps: int
    why: str
    budget: float | None
    used: float
    heldout: float
    moved: float
    free: float | None
    sparsity: float | None
    scores: list[tuple[str, Score, Score]]
    picture: Picture | None = None

    def remarks(self) -> list[str]:
        """The sentences below the table."""
        ends = {"steps": "all steps were made", "budget": "no step within the budget was left"}
        why = ends.get(self.why, self.why)
        allowed = "" if self.budget is None else f" of a budget of {self.budget:.3g}"
        said = [
            f"{self.steps} steps toward {self.goal}, {self.moved:.1%} of the weights' norm; {why}.",
            f"Drift of the kept outputs: {self.used:.3g}{allowed}; {self.heldout:.3g} on held-out examples.",
        ]
        if self.free is not None:
            said.append(f"{self.free:.1%} of the new task's first gradient left the kept outputs alone.")
        if self.sparsity is not None:
            said.append(f"{self.sparsity:.2%} of the weights in matrices and kernels are zero.")
        return said

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def walk(
    path: Path,
    keep: str,
    goal: str,
    out: Path,
    *,
    arch: str | None = None,
    budget: float | None = None,
    steps: int | None = None,
    size: float | None = None,
    memory: int | None = None,
    limit: int = 2048,
    force: bool = False,
    trust_code: bool = False,
    seed: int = 0,
    picture: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Walked:
    """Walk, and write the network at the end in the names, dtypes and metadata of the file.

    Where `out` is a folder, write the path itself there; a walk that was cut off goes on from it. `picture`: measure
    what a report shows. Raises `WeightspaceError`.
    """
    template, net, source, metadata = opened(path, arch, trust_code)
    held, probe = splits(keep, limit, seed)
    slow = goal.startswith("prune:") and goal.endswith(",descent")
    steps, memory = steps or (_DESCENT if slow else _STEPS), memory or (len(held) if slow else _MEMORY)
    held = held.take(memory, seed)
    metric = Pullback(held, damping=1e-6)
    folder = out if out.suffix != ".safetensors" else None
    if slow and budget is not None:
        raise ArchitectureError("a descent keeps no budget at every step; leave --budget out, and look at the drift")
    if budget is None and not slow:
        outputs = metric.outputs(net)
        budget = _BUDGET * float((outputs - outputs.mean(0)).square().sum(1).mean().sqrt())
    aim, new = _aim(goal, template, net, held, trust_code, limit, seed)
    free = metric.capacity(net, new[0].take(memory, seed)) if new else None
    progress(f"walking toward {goal}", 0, steps)

    def tell(record: Record) -> None:
        drifts = f"drift {record.drift:.3g} of {budget:.3g}, " if budget is not None else ""
        progress(f"{drifts}held out {record.heldout:.3g}", record.step + 1, steps)

    length = size if size is not None else (_RATE if isinstance(aim, Prune) else 0.01 * float(net.weights.norm()))
    every = max(1, steps // _POINTS) if picture or folder else steps
    if folder is not None and force:
        Trail.erase(folder)
    found = flow(
        net, aim, metric, steps=steps, size=length, budget=budget, probe=probe, progress=tell, save=every, trail=folder,
        check=max(1, steps // _CHECKS),
    )  # fmt: skip
    end = found[-1]
    scores = _scores(net, end, probe, new[1] if new else None)
    seen = _picture(found, aim, metric, probe, new, length, steps, every, budget) if picture else None
    if folder is None:
        stored = Stored(source, template, partial(picked, end.tensors))
        writer.save(stored, out, force=force, metadata={**metadata, "weightspace": f"walked toward {goal}"})
    last = found.log[-1] if found.log else None
    return Walked(
        name=path.name,
        out=str(out),
        goal=_short(goal),
        steps=len(found.log),
        why=found.why,
        budget=budget,
        used=last.drift if last else 0.0,
        heldout=last.heldout if last else 0.0,
        moved=float((end - net).norm()) / float(net.weights.norm()),
        free=free,
        sparsity=None if found.mask is None else sparsity(found.mask),
        scores=scores,
        picture=seen,
    )


def _picture(
    found: Flow,
    aim: Any,
    metric: Pullback,
    probe: Task,
    new: tuple[Task, Task] | None,
    length: float,
    steps: int,
    every: int,
    budget: float | None,
) -> Picture:
    runs = {"within the budget": list(found)}
    if not isinstance(aim, Prune):
        runs["plain descent"] = list(flow(found[0], aim, Euclidean(), steps=steps, size=length, save=every))
    plane, shown = _plane([net for nets in runs.values() for net in nets])
    rows = iter(plane)
    measured = {"kept": probe} | ({"new": new[1]} if new else {})
    labelled = {k: t for k, t in measured.items() if all(y is not None for _, y in t.batches())}
    classes = all(classifies(task) for task in labelled.values())
    look: Callable[[Task], Callable[[Net], float]] = accuracy if classes else lambda task: lambda net: float(task(net))
    with torch.no_grad():
        scores = {run: {k: [look(t)(net) for net in nets] for k, t in labelled.items()} for run, nets in runs.items()}
    curve = metric.tradeoff(found[0], new[0].take(200, 0), length) if new else None
    return Picture(
        plane={run: [next(rows) for _ in nets] for run, nets in runs.items()},
        shown=shown,
        scores=scores,
        classes=classes,
        drift=[(record.drift, record.heldout) for record in found.log],
        spectrum=[metric.spectrum(net, _SHOWN).tolist() for net in (found[0], found[-1])],
        tradeoff=pairs(curve.drift, curve.progress) if curve else [],
    )


def _plane(nets: Sequence[Net]) -> tuple[list[tuple[float, float]], float]:
    """Coordinates in the plane of largest variance, the first network at the origin, and its share of the variance."""
    away = [net - nets[0] for net in nets]
    gram = np.array([[float(a.dot(b)) for b in away] for a in away])
    middle = np.eye(len(gram)) - 1 / len(gram)
    values, vectors = np.linalg.eigh(middle @ gram @ middle)
    values = values.clip(0)
    points = vectors[:, [-1, -2]] * np.sqrt(values[[-1, -2]])
    points -= points[0]
    return pairs(points[:, 0], points[:, 1]), float(values[-2:].sum() / max(values.sum(), 1e-300))


def _short(goal: str) -> str:
    """The goal without the folders of its file."""
    kind, colon, value = goal.partition(":")
    return f"{kind}:{Path(value).name}" if colon and kind == "learn" else Path(goal).name


def _aim(
    goal: str, template: Net, net: Net, held: Task, trust_code: bool, limit: int, seed: int
) -> tuple[Any, tuple[Task, Task] | None]:
    kind, colon, value = goal.partition(":")
    if kind == "learn" and value:
        learn_on, measure_on = splits(value, limit, seed)
        return learn(learn_on, seed=seed), (learn_on, measure_on)
    if kind in ("prune", "drift", "harden") and colon:
        share, _, how = value.partition(",")
        try:
            number = int(share) if kind == "drift" else float(share)
        except ValueError as error:
            what = "whole number" if kind == "drift" else "number"
            raise ArchitectureError(f"--toward {goal}: {share!r} is no {what}; give {_FORM}") from error
        if kind == "prune":
            descent = how == "descent"
            structure = "unstructured" if descent or not how else how
            return prune(number, structure, "descent" if descent else "gauss-newton", seed=seed), None
        return (drift(int(number)) if kind == "drift" else harden(held, number, seed=seed)), None
    if goal == "spread":
        return _NUDGE * drift(seed) + spread([net], held, seed=seed), None
    if not Path(goal).exists():
        raise ArchitectureError(f"--toward {goal}: no such file, and no goal of that name; give {_FORM}")
    other = architecture.load(template, Path(goal), trust_code)[0]
    return toward(Symmetry.of(net, held.example(2)).align(other, to=net, data=held)), None


def _scores(before: Net, after: Net, kept: Task, new: Task | None) -> list[tuple[str, Score, Score]]:
    rows = []
    for name, task in (("to keep", kept), ("to learn", new)):
        pair = scored(task, before, after, name=name) if task is not None else []
        rows += [(name, pair[0], pair[1])] if pair else []
    return rows
