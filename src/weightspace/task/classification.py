"""Classification accuracy, and whether the labels of a task are classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.task.examples import TaskError
from weightspace.task.losses import EVEN, IGNORED, name_of
from weightspace.task.task import Task

__all__ = ["accuracy", "classifies", "scorer", "together"]


@public
def accuracy(task: Task) -> Callable[[Net], float]:
    """Accuracy on a task, as a function of a network: the fraction of examples that it classifies right, in [0, 1].

    Right is an example whose largest output is the labelled class. Of a soft label the largest entry counts; a single
    output under a binary cross-entropy is class 1 above even odds. Raises `TaskError` for labels that are not classes.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> accuracy = ws.accuracy(task)
    >>> 0 <= accuracy(net) <= 1
    True
    """
    _, labels = next(task.batches())
    soft = labels is not None and labels.is_floating_point()
    paired = task.recognised is not None and task.recognised.paired
    coin = task.recognised is not None and task.recognised.kind in EVEN
    if labels is None or (soft and not is_soft(labels)) or (not soft and paired and not (coin and is_flat(labels))):
        seen = "none" if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
        loss = f" under {name_of(task.metric)}" if paired else ""
        raise TaskError(f"accuracy needs class labels, these are {seen}{loss}; call the task itself instead")

    @public
    @torch.no_grad()
    def accuracy(net: Net) -> float:
        graded = _Graded(task)
        for x, y in task.batches(net):
            graded(task.forward(net, x), y)
        return graded.accuracy

    accuracy.of = task  # type: ignore[attr-defined]
    return accuracy


class _Graded:
    """The accuracy of the batches that it is called with."""

    def __init__(self, task: Task) -> None:
        self.task, self.wrong, self.count = task, 0, 0

    @torch.no_grad()
    def __call__(self, f: Tensor, y: Tensor | None) -> None:
        found = self.task.wrong(f, y)
        self.wrong, self.count = self.wrong + int(found.sum()), self.count + len(found)

    @property
    def accuracy(self) -> float:
        if not self.count:
            raise TaskError(f"no example has a label: all are {IGNORED}")
        return (self.count - self.wrong) / self.count


def together(observables: Mapping[str, Callable[[Net], Any]]) -> Callable[[Net], dict[str, Callable[[], Any]]]:
    """The observables of a network, each to be called for its value: a loss and its accuracy share one pass.

    `task` and `accuracy(task)` are found under any names, in any order; all else is evaluated for itself.
    """
    tasks = {id(task): name for name, task in observables.items() if isinstance(task, Task)}
    pairs = {name: tasks.get(id(getattr(right, "of", None))) for name, right in observables.items()}
    shared = {loss: name for name, loss in pairs.items() if loss is not None}

    def at(net: Net) -> dict[str, Callable[[], Any]]:
        calls: dict[str, Callable[[], Any]] = {name: partial(f, net) for name, f in observables.items()}
        for loss, name in shared.items():
            calls[loss], calls[name] = _once(observables[loss], net)
        return calls

    return at


def scorer(task: Task) -> Callable[[Net], tuple[float, float | None]]:
    """A function of a network: its loss, and its accuracy or None where labels are no classes, in one pass."""
    look = together({"loss": task} | ({"accuracy": accuracy(task)} if classifies(task) else {}))

    def score(net: Net) -> tuple[float, float | None]:
        with torch.no_grad():
            found = {what: float(value()) for what, value in look(net).items()}
        return found["loss"], found.get("accuracy")

    return score


def _once(task: Any, net: Net) -> tuple[Callable[[], Tensor], Callable[[], float]]:
    """Loss and accuracy of a network, computed when the first of them is asked for."""

    graded, losses = _Graded(task), list[Tensor]()

    def loss() -> Tensor:
        if not losses:
            graded.wrong = graded.count = 0  # a pass that failed is made again
            losses.append(task.telling(net, graded))
        return losses[0]

    def accuracy() -> float:
        loss()
        return graded.accuracy

    return loss, accuracy


def classifies(task: Task) -> bool:
    """Whether the labels of a task are classes, so that it has an accuracy.

    >>> import weightspace as ws
    >>> _, task = ws.demo.example()
    >>> ws.task.classifies(task)
    True
    """
    try:
        accuracy(task)
    except TaskError:
        return False
    return True


def is_cross_entropy(task: Task) -> bool:
    """Whether the loss is the plain cross-entropy of class probabilities: no weights of classes, no smoothed labels."""
    loss = task.recognised
    if loss is None:
        return task.metric == "cross-entropy"
    plain = loss.settings.get("weight") is None and not loss.settings.get("label_smoothing")
    return loss.kind == "softmax" and plain


def is_flat(y: Tensor) -> bool:
    """Whether labels have one number for each example."""
    return y.numel() == len(y)


def is_soft(y: Tensor) -> bool:
    """Whether labels are probabilities of classes, on the last axis."""
    return y.ndim > 1 and y.shape[-1] > 1 and bool((y >= 0).all() and ((y.sum(-1) - 1).abs() < 1e-3).all())
