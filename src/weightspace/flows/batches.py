"""Helpers of goals: outputs of a batch, augmentation, means over batches of uneven sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.seeds import derived
from weightspace.task.outputs import logits
from weightspace.task.task import Task

__all__ = ["Augment", "changed", "forward", "mean_of", "positive"]


Augment = Callable[[Any, torch.Generator], Any]


def forward(task: Task, net: Net, x: Any) -> Tensor:
    """The outputs of the network on a batch, without what a model returns beside its logits."""
    return logits(task.forward(net, x))


def changed(x: Any, augment: Augment | None, seed: int, step: int) -> Any:
    """The batch as `augment` changes it at this step; the same for the same seed."""
    return x if augment is None else augment(x, torch.Generator().manual_seed(derived(seed, "change", step)))


def mean_of(parts: list[tuple[Tensor, int]]) -> Tensor:
    """The mean over examples, from sums over batches and their sizes."""
    total = sum(n for _, n in parts)
    if not total:
        raise WeightspaceError("no example has a label: all are -100")
    return torch.stack([value for value, _ in parts]).sum() / total


def positive(what: str, number: int) -> None:
    """Refuse a number of examples below one."""
    if number < 1:
        raise WeightspaceError(f"{what} has at least one example, got {number}")
