"""`weightspace walk`: move a network toward a goal while its outputs on some data stay within a budget.

The data to keep is halved: outputs on one half are kept within the budget, the drift on the other half is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weightspace.checkpoint.architecture import ArchitectureError
from weightspace.commands.capacity import pairs
from weightspace.commands.data import splits
from weightspace.commands.scores import Score, scored
from weightspace.commands.settings import Opened, Settings
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

__all__ = ["Limits", "Picture", "Walked", "walk"]

_FORM = "learn:DATA, prune:0.9, prune:0.5,2:4, drift:SEED, spread, harden:RADIUS, or another checkpoint"
_BUDGET = 0.1  # of the root mean square of the outputs, less their mean
_RATE = 5e-3  # learning rate of pruning by descent
_POINTS = 12  # networks kept on the path
_SHOWN = 30  # eigenvalues
_CHECKS = 100  # of the drift on held-out examples
_NUDGE = 1e-6  # at the start the gradient of `spread` is zero: a network is most similar to itself
_STEPS, _DESCENT = 40, 2000  # default steps; of pruning by descent
_MEMORY = 200


@dataclass(frozen=True)
class Picture:
    """What the report of a walk draws, next to as many steps of plain gradient descent where the goal has a gradient.

    `plane`: run -> its networks in the plane of largest variance; `shown`: share of the variance in that plane;
    `scores`: run -> task -> accuracies (or losses) of these networks; `drift`: on the examples kept and on held-out
    ones, step by step; `spectrum`: eigenvalues of the metric at both ends; `tradeoff`: drift and progress of first
    steps of one length.
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
    """The result of a walk. Drifts are root mean squares over examples, in the units of the outputs.

    `used`, `heldout`: drift on the examples kept, and on held-out ones. `moved`: relative to the norm of the weights.
    `free`: share of the new task's first gradient that leaves the outputs to keep alone; `scores`: before and after.
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
        ends = {"steps": "all steps were taken", "budget": "no further step fits the budget"}
        why = ends.get(self.why, self.why)
        allowed = "" if self.budget is None else f" of a budget of {self.budget:.3g}"
        said = [
            f"{self.steps} steps toward {self.goal} moved the weights by {self.moved:.1%} of their norm; {why}.",
            f"Drift of the outputs to keep: {self.used:.3g}{allowed}; {self.heldout:.3g} on held-out examples.",
        ]
        if self.free is not None:
            said.append(f"{self.free:.1%} of the new task's first gradient leaves the outputs to keep alone.")
        if self.sparsity is not None:
            said.append(f"{self.sparsity:.2%} of the weights in matrices and kernels are zero.")
        return said

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Limits:
    """How far a walk may go; what is None is chosen from the goal and the network.

    `budget`: drift of the outputs to keep, in their units; default a tenth of their standard deviation. `steps`:
    default 40, for pruning by descent 2,000. `size`: length of a step, default 1 % of the norm of the weights.
    `memory`: number of examples on which outputs are kept, default 200. `examples`: read of each data set, at most.
    """

    budget: float | None = None
    steps: int | None = None
    size: float | None = None
    memory: int | None = None
    examples: int = 2048


def walk(
    path: Path, keep: str, goal: str, out: Path, limits: Limits, *, picture: bool = False, settings: Settings
) -> Walked:
    """Move the network at `path` toward `goal`, keep its outputs on `keep`, and write it in the form of its file.

    Where `out` is a folder, the path itself is written there, and an interrupted walk resumes from it. `picture`:
    measure what a report shows. Raises `WeightspaceError`.
    """
    file = settings.open(path)
    course = _course(file, keep, goal, limits)
    settings.progress(f"walking toward {goal}", 0, course.steps)
    folder = out if out.suffix != ".safetensors" else None
    every = max(1, course.steps // _POINTS) if picture or folder else course.steps
    if folder is not None and settings.force:
        Trail.erase(folder)
    found = course.run(file.net, every, folder, settings)
    new, end = course.new, found[-1]
    scores = _scores(file.net, end, course.probe, new[1] if new else None)
    seen = _picture(found, course, every) if picture else None
    if folder is None:
        file.save(end, out, f"walked toward {goal}")
    last = found.log[-1] if found.log else None
    return Walked(
        name=path.name,
        out=str(out),
        goal=_short(goal),
        steps=len(found.log),
        why=found.why,
        budget=course.budget,
        used=last.drift if last else 0.0,
        heldout=last.heldout if last else 0.0,
        moved=float((end - file.net).norm()) / float(file.net.weights.norm()),
        free=course.free,
        sparsity=None if found.mask is None else sparsity(found.mask),
        scores=scores,
        picture=seen,
    )


@dataclass(frozen=True)
class _Course:
    """A walk that is ready to run: `aim` is the goal as a function, `new` its data to learn from and to measure on."""

    aim: Any
    metric: Pullback
    probe: Task
    new: tuple[Task, Task] | None
    free: float | None
    budget: float | None
    steps: int
    size: float

    def run(self, net: Net, every: int, trail: Path | None, settings: Settings) -> Flow:
        """The flow; every so many steps a network is kept, in the folder `trail` if there is one."""

        def tell(record: Record) -> None:
            drifts = f"drift {record.drift:.3g} of {self.budget:.3g}, " if self.budget is not None else ""
            settings.progress(f"{drifts}held out {record.heldout:.3g}", record.step + 1, self.steps)

        return flow(
            net, self.aim, self.metric, steps=self.steps, size=self.size, budget=self.budget, probe=self.probe,
            progress=tell, save=every, trail=trail, check=max(1, self.steps // _CHECKS),
        )  # fmt: skip


def _course(file: Opened, keep: str, goal: str, limits: Limits) -> _Course:
    net, seed, budget = file.net, file.settings.seed, limits.budget
    held, probe = splits(keep, limits.examples, seed)
    descent = goal.startswith("prune:") and goal.endswith(",descent")
    memory = limits.memory or (len(held) if descent else _MEMORY)
    held = held.take(memory, seed)
    metric = Pullback(held, damping=1e-6)
    if descent and budget is not None:
        raise ArchitectureError("pruning by descent has no budget for each step; leave out --budget, and see the drift")
    if budget is None and not descent:
        outputs = metric.outputs(net)
        budget = _BUDGET * float((outputs - outputs.mean(0)).square().sum(1).mean().sqrt())
    aim, new = _aim(goal, file, held, limits.examples)
    free = metric.capacity(net, new[0].take(memory, seed)) if new else None
    default = _RATE if isinstance(aim, Prune) else 0.01 * float(net.weights.norm())
    size = limits.size if limits.size is not None else default
    return _Course(aim, metric, probe, new, free, budget, limits.steps or (_DESCENT if descent else _STEPS), size)


def _picture(found: Flow, course: _Course, every: int) -> Picture:
    metric, new = course.metric, course.new
    runs = {"within the budget": list(found)}
    if not isinstance(course.aim, Prune):
        plain = flow(found[0], course.aim, Euclidean(), steps=course.steps, size=course.size, save=every)
        runs["plain descent"] = list(plain)
    plane, shown = _plane([net for nets in runs.values() for net in nets])
    rows = iter(plane)
    measured = {"kept": course.probe} | ({"new": new[1]} if new else {})
    labelled = {k: t for k, t in measured.items() if all(y is not None for _, y in t.batches())}
    classes = all(classifies(task) for task in labelled.values())
    look: Callable[[Task], Callable[[Net], float]] = accuracy if classes else lambda task: lambda net: float(task(net))
    with torch.no_grad():
        scores = {run: {k: [look(t)(net) for net in nets] for k, t in labelled.items()} for run, nets in runs.items()}
    curve = metric.tradeoff(found[0], new[0].take(200, 0), course.size) if new else None
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


def _aim(goal: str, file: Opened, held: Task, limit: int) -> tuple[Any, tuple[Task, Task] | None]:
    """The goal that the words stand for, and its data to learn from and to measure on, if it has any."""
    net, seed = file.net, file.settings.seed
    kind, colon, value = goal.partition(":")
    if kind == "learn" and value:
        learn_on, measure_on = splits(value, limit, seed)
        return learn(learn_on, seed=seed), (learn_on, measure_on)
    if kind in ("prune", "drift", "harden") and colon:
        return _numbered(goal, held, seed), None
    if goal == "spread":
        return _NUDGE * drift(seed) + spread([net], held, seed=seed), None
    if not Path(goal).exists():
        raise ArchitectureError(f"--toward {goal}: no such file, and no goal of that name; give {_FORM}")
    return toward(Symmetry.of(net, held.example(2)).align(file.like(Path(goal)), to=net, data=held)), None


def _numbered(goal: str, held: Task, seed: int) -> Any:
    """prune:SHARE[,HOW], drift:SEED or harden:RADIUS."""
    kind, _, value = goal.partition(":")
    number, _, how = value.partition(",")
    try:
        x = int(number) if kind == "drift" else float(number)
    except ValueError as error:
        what = "whole number" if kind == "drift" else "number"
        raise ArchitectureError(f"--toward {goal}: {number!r} is not a {what}; give {_FORM}") from error
    if kind == "prune":
        descent = how == "descent"
        structure = "unstructured" if descent or not how else how
        return prune(x, structure, "descent" if descent else "gauss-newton", seed=seed)
    return drift(int(x)) if kind == "drift" else harden(held, x, seed=seed)


def _scores(before: Net, after: Net, kept: Task, new: Task | None) -> list[tuple[str, Score, Score]]:
    rows = []
    for name, task in (("to keep", kept), ("to learn", new)):
        pair = scored(task, before, after, name=name) if task is not None else []
        rows += [(name, pair[0], pair[1])] if pair else []
    return rows
