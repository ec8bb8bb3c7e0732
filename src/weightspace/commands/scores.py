"""Loss and accuracy of networks on held-out examples."""

from __future__ import annotations

from dataclasses import dataclass

from weightspace.net.net import Net
from weightspace.task.classification import scorer
from weightspace.task.task import Task

__all__ = ["Score", "scored"]


@dataclass(frozen=True)
class Score:
    """Loss and accuracy of one network, or of an ensemble, on held-out examples."""

    name: str
    loss: float
    accuracy: float | None


def scored(task: Task, *nets: Net, name: str = "") -> list[Score]:
    """The score of each network; an empty list where examples have no labels."""
    if any(y is None for _, y in task.batches()):
        return []
    score = scorer(task)
    return [Score(name, *score(net)) for net in nets]
