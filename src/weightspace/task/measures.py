"""Metrics: distances of outputs to labels, one an example, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.task.examples import TaskError
from weightspace.task.losses import IGNORED, fitted

__all__ = ["METRICS", "TERMS", "Aggregate", "Metric"]


def _rows(f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (t, class) and labels (t,) of a batch: every labelled position is an example."""
    if f.shape[:-1] != y.shape:
        raise TaskError(f"labels {tuple(y.shape)} do not fit outputs {tuple(f.shape)}: the last axis is the class")
    keep = y != IGNORED
    f, y = (f.flatten(0, -2), y.flatten()) if keep.all() else (f[keep], y[keep])
    if len(y) and (y.min() < 0 or y.max() >= f.shape[-1]):
        raise TaskError(f"labels {int(y.min())}..{int(y.max())} outside the {f.shape[-1]} outputs of the network")
    return f, y


def _pairs(f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and labels (t, coordinate) of a batch; class labels of several outputs become one-hot vectors."""
    if not y.is_floating_point() and f.ndim == y.ndim + 1 and f.shape[-1] > 1:
        f, y = _rows(f, y)
        y = F.one_hot(y, f.shape[-1])
    f, y = fitted(f, y)
    return f.reshape(len(f), -1), y.reshape(len(f), -1)


def _soft(f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and soft labels (t, class) of a batch; classes beyond those of the labels have probability zero."""
    if f.shape[:-1] != y.shape[:-1] or y.shape[-1] > f.shape[-1]:
        raise TaskError(f"soft labels {tuple(y.shape)} do not fit outputs {tuple(f.shape)}")
    return f.flatten(0, -2), F.pad(y, (0, f.shape[-1] - y.shape[-1])).flatten(0, -2)


def _cross_entropy(f: Tensor, y: Tensor) -> Tensor:
    if not y.is_floating_point():
        return F.cross_entropy(*_rows(f, y), reduction="none")
    f, y = _soft(f, y)
    return -(y * f.log_softmax(-1)).sum(-1)


def _zero_one(f: Tensor, y: Tensor) -> Tensor:
    f, y = _soft(f, y) if y.is_floating_point() else _rows(f, y)
    return (f.argmax(-1) != (y.argmax(-1) if y.is_floating_point() else y)).to(f.dtype)


def _residual(norm: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def distance(f: Tensor, y: Tensor) -> Tensor:
        f, y = _pairs(f, y)
        return norm(f - y)

    return distance


Metric: TypeAlias = Literal["cross-entropy", "zero-one", "squared", "l1", "l2", "linf"]
Aggregate: TypeAlias = Literal["mean", "sum", "l1", "l2", "linf"]

# -y . log softmax(f), 1[argmax f != y], |f - y|_2^2, |f - y|_1, |f - y|_2, |f - y|_inf
METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": _cross_entropy,
    "zero-one": _zero_one,
    "squared": _residual(lambda r: r.square().sum(-1)),
    "l1": _residual(lambda r: r.abs().sum(-1)),
    "l2": _residual(lambda r: torch.linalg.vector_norm(r, dim=-1)),
    "linf": _residual(lambda r: r.abs().amax(-1)),
}
TERMS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda d: d,
    "sum": lambda d: d,
    "l1": torch.abs,
    "l2": torch.square,
}
