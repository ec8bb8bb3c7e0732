"""`weightspace nearest`: which of several checkpoints to start from for new data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from weightspace.atlas.asked import Answer
from weightspace.atlas.nearest_start import Route, cost, nearest
from weightspace.atlas.question import Members
from weightspace.checkpoint.architecture import ArchitectureError
from weightspace.commands.data import labelled, limited
from weightspace.commands.settings import Settings
from weightspace.commands.tasks import named_task
from weightspace.commands.workspace import file_names
from weightspace.jobs.engine import Engine, Results
from weightspace.net.cost import Cost
from weightspace.net.net import Net
from weightspace.net.seeds import derived
from weightspace.task.task import Task

__all__ = ["Nearest", "Starts", "nearest_files", "nearest_start"]

_PLAN = {"codes": {"seeds": (0, 1), "steps": 500, "task_id": True}}
_EXAMPLES = 500  # of a task whose codes are found


@dataclass(frozen=True)
class Starts:
    """By what starts are ranked. `learnt`: network -> the data that it has learnt, as `named_task` takes them.

    `steps`, `fitted`: of fine-tuning, and whether a new head is fitted first. `known`: codes that were found before.
    """

    by: Route
    steps: int = 20
    fitted: bool = False
    learnt: Mapping[str, str] = field(default_factory=dict)
    known: Results | None = None

    def options(self, engine: Engine, settings: Settings) -> dict[str, Any]:
        """The options of `nearest`."""
        told: dict[str, Any] = {"progress": partial(settings.progress, "asking the networks")}
        if self.by in ("task2vec", "codes"):
            named = {text: named_task(text, _EXAMPLES, settings.seed) for text in {*self.learnt.values()}}
            sources = {"sources": {name: named[text] for name, text in self.learnt.items()}}
            return sources if self.by == "task2vec" else {**sources, **_PLAN["codes"], **told, "engine": engine,
                                                          "known": self.known}  # fmt: skip
        if self.by == "weights":
            return {**told, "seeds": tuple(derived(settings.seed, "weights", k) for k in range(3))}
        tuned = {"steps": self.steps, "head": "fitted" if self.fitted else "kept"} if self.by == "steps" else {}
        return {**tuned, **told, "seed": settings.seed, "engine": engine}


@dataclass(frozen=True)
class Nearest:
    """Checkpoints ranked as starts for data, and the cost as it was known before."""

    asked_with: str
    answer: Answer
    expected: Cost

    def remarks(self) -> list[str]:
        """What must be known to read the ranking."""
        return [*self.answer.remarks(), f"Known before: {self.expected}."]

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return {"data": self.asked_with, "expected": self.expected.data(), **self.answer.data()}


def nearest_files(
    paths: Sequence[Path],
    data: str,
    by: Route = "steps",
    *,
    learnt: Sequence[str] = (),
    steps: int = 20,
    fitted: bool = False,
    limit: int = 2048,
    engine: Engine = 1,
    settings: Settings,
) -> Nearest:
    """The checkpoints in the order in which to start from them for `data`, as `named_task` takes them.

    `learnt`: what each checkpoint has learnt, in their order. Raises `WeightspaceError`.
    """
    if learnt and len(learnt) != len(paths):
        raise ArchitectureError(f"{len(learnt)} times --learnt for {len(paths)} checkpoints; give one for each")
    if len({*paths}) < len(paths):
        raise ArchitectureError("a checkpoint is given twice; give each once")
    names, task = file_names(*paths), labelled(named_task(data, limit, settings.seed), data)
    nets: Members = {name: partial(_opened, settings, path) for name, path in zip(names, paths, strict=True)}
    for path in paths:
        if not path.exists():
            raise ArchitectureError(f"{path}: no such file or folder; check the path")
    chosen = Starts(by, steps, fitted, dict(zip(names, learnt, strict=False)))
    options = chosen.options(engine, settings)
    expected = cost(task, nets, by, **options)
    settings.progress(f"{by}: {expected}", 0, 0)
    return Nearest(data, nearest(task, nets, by, **options), expected)


def nearest_start(
    task: Task, nets: Members, chosen: Starts, *, engine: Engine = 1, settings: Settings
) -> Answer:  # fmt: skip
    """The members of an atlas as starts for a task; the cost is told before. Raises `WeightspaceError`."""
    task = limited(task, _EXAMPLES, settings.seed) if chosen.by == "codes" else task
    options = chosen.options(engine, settings)
    settings.progress(f"{chosen.by}: {cost(task, nets, chosen.by, **options)}", 0, 0)
    return nearest(task, nets, chosen.by, **options)


def _opened(settings: Settings, path: Path) -> Net:
    return settings.open(path).net
