"""What `weightspace tasks` measures: how far apart tasks are, in nats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.checkpoint import architecture
from weightspace.checkpoint.architecture import ArchitectureError
from weightspace.codes import transfer
from weightspace.codes.sweep import random_labels
from weightspace.codes.task_map import TaskMap
from weightspace.codes.transfer import task_distances
from weightspace.commands.progress import Progress, duration, seconds, silent
from weightspace.commands.workspace import labelled, limited, sources
from weightspace.net.model import fresh
from weightspace.task.task import Task

__all__ = ["Apart", "named_task", "told_apart"]


# ------------------------------------------------------------------ tasks


@dataclass(frozen=True)
class Apart:
    """How far tasks are from each other."""

    found: TaskMap

    def remarks(self) -> list[str]:
        """The sentences below the table."""
        told = self.found.data()["notes"]
        apart = [note for note in told if note.startswith("telling the tasks apart")]
        said = [f"The plane leaves out {self.found.stress:.0%} (stress) of the distances."]
        if apart:
            said.append(
                "With one head, telling tasks apart is part of the cost; --task-id gives each its own; choose by that."
            )
        return said + [f"{note[0].upper()}{note[1:]}." for note in told if note not in apart]

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return self.found.data()


def told_apart(
    names: Sequence[str],
    *,
    arch: str | None = None,
    limit: int = 500,
    seeds: int = 2,
    steps: int = 1000,
    task_id: bool = False,
    file: Path | None = None,
    trust_code: bool = False,
    seed: int = 0,
    progress: Progress = silent,
) -> Apart:
    """`task_distances` between data sets named as `named_task` reads them; what it takes is told before it runs.

    `arch`: the network that codes are written with; without it, hidden layers of 64 and 32 units. `file`: codes are
    kept there, and a run that was cut off goes on. Raises `WeightspaceError`.
    """
    if len(set(names)) < max(2, len(names)):
        raise ArchitectureError("give two or more data sets, each once")
    found = {name: named_task(name, limit, seed) for name in names}
    model: Any = architecture.find(arch, [], trust_code) if arch else _perceptron([*found.values()])
    chosen = tuple(range(seed, seed + seeds))
    cost = transfer.cost(found, model, seeds=chosen, steps=steps, task_id=task_id)
    first = fresh(model, seed)
    passes = sum(seconds(first, task) for task in found.values()) / len(found)
    seconds = 4 * passes * 1.5 * cost.steps  # a union is twice a task, a single one once; a step is four passes
    what = (
        f"{cost.codes} codes of {cost.steps // cost.codes:,} steps, {cost.bytes / 2**20:,.1f} MiB, about "
        f"{duration(seconds)}"
    )
    progress(what, 0, cost.codes)
    tell = partial(progress, what)
    return Apart(
        task_distances(found, model, task_id=task_id, seeds=chosen, steps=steps, file=file, progress=tell)
    )  # fmt: skip


def named_task(name: str, limit: int, seed: int) -> Task:
    """A data set as `tasks` takes it, changed by words after colons: `mnist:0-4`, `digits:rotated`, `x.npz:random`.

    `0-4` or `1,3,7`: the examples of these classes, under the labels they have; `rotated`: images by a quarter turn;
    `random`: labels drawn at random among the classes there. At most `limit` training examples. Raises
    `ArchitectureError`.
    """
    data, *words = name.split(":") if not Path(name).exists() else [name]
    task = labelled(sources(data)[0], name)
    for word in words:
        if word == "rotated":
            task = task.mapped(_turned)
        elif word == "random":
            chosen = task.labels().unique()
            task = random_labels(task, seed=seed)
            task = task.relabelled(chosen[task.labels() % len(chosen)])
        else:
            task = _of_classes(task, word, name)
    return limited(task, limit, seed)


def _of_classes(task: Task, word: str, name: str) -> Task:
    first, dash, last = word.partition("-")
    try:
        wanted = range(int(first), int(last) + 1) if dash else [int(part) for part in word.split(",")]
    except ValueError as error:
        raise ArchitectureError(f"{name}: {word!r} is no classes (0-4 or 1,3), rotated or random") from error
    y = task.labels()
    rows = torch.isin(y, torch.tensor([*wanted])).nonzero().flatten()
    if y.dim() != 1 or not len(rows):
        raise ArchitectureError(f"{name}: no example of the classes {word}")
    return task.pick(rows.tolist())


def _turned(x: Any) -> Tensor:
    if not isinstance(x, Tensor) or x.dim() < 3 or x.shape[-1] != x.shape[-2]:
        raise ArchitectureError("rotated: only square images can be turned")
    return x.rot90(1, (-2, -1))


def _perceptron(found: Sequence[Task]) -> Callable[[], nn.Module]:
    labels = [task.labels() for task in found]
    if any(y.is_floating_point() or y.dim() != 1 for y in labels):
        raise ArchitectureError("labels that are no classes need --arch")
    x = found[0].example(1)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ArchitectureError("inputs that are no images or numbers need --arch")
    inputs, classes = x[0].numel(), max(int(y.max()) for y in labels) + 1
    return lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes)
    )
