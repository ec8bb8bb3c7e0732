"""`weightspace tasks`: the distances between tasks, in nats."""

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
from weightspace.commands import progress
from weightspace.commands.data import labelled, limited, train_and_test
from weightspace.commands.settings import Settings
from weightspace.net.model import fresh
from weightspace.task.task import Task

__all__ = ["TaskDistances", "named_task", "tasks"]


@dataclass(frozen=True)
class TaskDistances:
    """The distance from every task to every other, and the sentences about it."""

    found: TaskMap

    def remarks(self) -> list[str]:
        """The sentences below the table."""
        told = self.found.data()["notes"]
        apart = [note for note in told if note.startswith("telling the tasks apart")]
        said = [f"The map has two dimensions; it misses {self.found.stress:.0%} of the distances (stress)."]
        if apart:
            said.append(
                "With one head, part of the cost is to tell the tasks apart; --task-id gives each task its own head, "
                "and distances that are better for choosing a source."
            )
        return said + [f"{note[0].upper()}{note[1:]}." for note in told if note not in apart]

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return self.found.data()


def tasks(
    names: Sequence[str],
    *,
    limit: int = 500,
    seeds: int = 2,
    steps: int = 1000,
    task_id: bool = False,
    file: Path | None = None,
    settings: Settings,
) -> TaskDistances:
    """`task_distances` between data sets named as `named_task` reads them; the cost is told before it runs.

    Codes are those of the architecture of `settings`; without one, of an MLP with hidden layers of 64 and 32 units.
    `seeds`: codes a task, of which the shortest counts. `file`: codes are kept there, and an interrupted run resumes.
    Raises `WeightspaceError`.
    """
    if len(set(names)) < max(2, len(names)):
        raise ArchitectureError("give two or more data sets, each once")
    seed, arch = settings.seed, settings.arch
    found = {name: named_task(name, limit, seed) for name in names}
    model: Any = architecture.find(arch, [], settings.trust_code) if arch else _perceptron([*found.values()])
    chosen = tuple(range(seed, seed + seeds))
    cost = transfer.cost(found, model, seeds=chosen, steps=steps, task_id=task_id)
    first = fresh(model, seed)
    a_pass = sum(progress.seconds(first, task) for task in found.values()) / len(found)
    expected = 4 * a_pass * 1.5 * cost.steps  # a union is twice a task, a single one once; a step is four passes
    what = (
        f"{cost.codes} codes of {cost.steps // cost.codes:,} steps, {cost.bytes / 2**20:,.1f} MiB, about "
        f"{progress.duration(expected)}"
    )
    settings.progress(what, 0, cost.codes)
    tell = partial(settings.progress, what)
    return TaskDistances(
        task_distances(found, model, task_id=task_id, seeds=chosen, steps=steps, file=file, progress=tell)
    )


def named_task(name: str, limit: int, seed: int) -> Task:
    """A data set changed by words after colons: `mnist:0-4`, `digits:rotated`, `x.npz:random`.

    `0-4` or `1,3,7`: the examples of these classes, labels unchanged; `rotated`: images rotated by 90 degrees;
    `random`: labels drawn at random from the classes there. At most `limit` training examples. Raises
    `ArchitectureError`.
    """
    data, *words = name.split(":") if not Path(name).exists() else [name]
    task = labelled(train_and_test(data)[0], name)
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
        raise ArchitectureError(
            f"{name}: {word!r} is not known; give classes (0-4 or 1,3), rotated or random"
        ) from error
    y = task.labels()
    rows = torch.isin(y, torch.tensor([*wanted])).nonzero().flatten()
    if y.dim() != 1 or not len(rows):
        raise ArchitectureError(f"{name}: no example has a label among {word}")
    return task.pick(rows.tolist())


def _turned(x: Any) -> Tensor:
    if not isinstance(x, Tensor) or x.dim() < 3 or x.shape[-1] != x.shape[-2]:
        raise ArchitectureError("rotated: only square images can be rotated")
    return x.rot90(1, (-2, -1))


def _perceptron(found: Sequence[Task]) -> Callable[[], nn.Module]:
    labels = [task.labels() for task in found]
    if any(y.is_floating_point() or y.dim() != 1 for y in labels):
        raise ArchitectureError("labels are not classes; give the network with --arch")
    x = found[0].example(1)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ArchitectureError("inputs are not one tensor of numbers; give the network with --arch")
    inputs, classes = x[0].numel(), max(int(y.max()) for y in labels) + 1
    return lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes)
    )
