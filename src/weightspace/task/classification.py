"""Classification accuracy, and whether the labels of a task are classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.task.examples import TaskError
from weightspace.task.losses import EVEN, IGNORED, name_of
from weightspace.task.task import Task

__all__ = ["accuracy", "classifies"]


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
        wrong, count = 0, 0
        for x, y in task.batches(net):
            found = task.wrong(task.forward(net, x), y)
            wrong, count = wrong + int(found.sum()), count + len(found)
        if not count:
            raise TaskError(f"no example has a label: all are {IGNORED}")
        return (count - wrong) / count

    return accuracy


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
