"""Distances between two networks: Euclidean, tensor by tensor, and between their outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from weightspace.net.errors import WeightspaceError
from weightspace.net.inputs import carried, each
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.net.weights import squared_distance
from weightspace.task.outputs import counted, labelled

if TYPE_CHECKING:
    from weightspace.task.task import Task

__all__ = ["TensorDistance", "euclidean", "functional", "layerwise"]


Kind: TypeAlias = Literal["l2", "disagreement", "kl"]
_CHUNK = 1 << 20


@public
def euclidean(a: Net, b: Net) -> float:
    """The Euclidean distance |w_a - w_b| = sqrt(sum_i (w_a,i - w_b,i)^2) of two networks' weights, in float64.

    Buffers do not count. Raises `ArchitectureMismatch` unless both have the same tensors.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> other, _ = ws.demo.example(1)
    >>> ws.euclidean(net, net), round(ws.euclidean(net, other), 1)
    (0.0, 4.3)
    """
    checked(a).weights.check(checked(b).weights)
    return math.sqrt(sum(squared_distance(tensor, b.weights[name]) for name, tensor in a.weights.items()))


@public
@dataclass(frozen=True)
class TensorDistance:
    """The distance of one parameter tensor between two networks a and b. Made by `layerwise`.

    `relative` = |a - b| / |a| (infinite where only a is zero), `cosine` = <a, b> / |a||b| (NaN where one is
    zero).
    """

    name: str
    shape: tuple[int, ...]
    norm_a: float
    norm_b: float
    distance: float
    relative: float
    cosine: float


@public
def layerwise(a: Net, b: Net) -> list[TensorDistance]:
    """The distance of every parameter tensor between two networks, in the order of the module, in float64.

    The squares of the distances add up to that of `euclidean`. Raises `ArchitectureMismatch` unless both have the same
    tensors.

    >>> import weightspace as ws
    >>> net, _ = ws.demo.example()
    >>> other, _ = ws.demo.example(1)
    >>> [(found.name, round(found.relative, 1)) for found in ws.layerwise(net, other)]
    [('1.weight', 1.4), ('1.bias', 1.2), ('3.weight', 1.4), ('3.bias', 0.9)]
    """
    a.weights.check(b.weights)
    return [_compare(name, tensor, b.weights[name]) for name, tensor in a.weights.items()]


def _compare(name: str, x: Tensor, y: Tensor) -> TensorDistance:
    squares = torch.zeros(4, dtype=torch.float64)
    for p, q in zip(x.detach().flatten().split(_CHUNK), y.detach().flatten().split(_CHUNK), strict=True):
        p, q = exact(p), exact(q)
        squares += torch.stack([p @ p, q @ q, (p - q) @ (p - q), p @ q])
    norm_x, norm_y, apart = squares[:3].sqrt().tolist()
    relative = apart / norm_x if norm_x else (math.inf if apart else 0.0)
    cosine = float(squares[3]) / (norm_x * norm_y) if norm_x and norm_y else math.nan
    return TensorDistance(name, tuple(x.shape), norm_x, norm_y, apart, relative, cosine)


def exact(x: Tensor) -> Tensor:
    return x.detach().cpu().double()


@public
def functional(a: Net, b: Net, task: Task, kind: Kind = "l2") -> float:
    """The distance d(f_a, f_b) of two networks' outputs on the inputs x of `task`.

    - "l2": sqrt(mean_x |f_a(x) - f_b(x)|^2), in units of the output;
    - "disagreement": the share of predictions argmax f(x) that differ, in [0, 1];
    - "kl": mean_x KL(softmax f_a(x) | softmax f_b(x)), in nats, not symmetric.

    Positions of a sequence that the task labels -100 do not count. The networks may differ in architecture and width.
    Raises `WeightspaceError` for classes of one output, or where the outputs differ in shape.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> other, _ = ws.demo.example(1)
    >>> ws.functional(net, net, task), round(ws.functional(net, other, task), 1)
    (0.0, 0.8)
    >>> 0.2 < ws.functional(net, other, task, "disagreement") < 0.8
    True
    """
    one = each(lambda x: x[:1], next(task.batches())[0])
    with torch.no_grad():
        shape, other = (task.forward(net, carried(one, net)).shape for net in (a, b))
    if shape != other:
        raise WeightspaceError(
            f"outputs of shape {tuple(shape[1:])} and {tuple(other[1:])} have no distance; "
            "give networks of one output space, or a task whose `output=` picks one"
        )
    if kind != "l2" and (len(shape) < 2 or shape[-1] < 2):
        raise WeightspaceError(f'outputs of shape {tuple(shape[1:])} name no classes; their distance is kind="l2"')
    total, count = 0.0, 0
    with torch.no_grad():
        for x, y in task.batches():  # one pass for both: of some loaders no two can go on at once
            p, q = (counted(exact(task.output(net(carried(x, net)))), y) for net in (a, b))
            apart = _KINDS[kind](p, q)
            if kind != "l2" and p.dim() > 2:
                apart = apart[labelled(p, y)]
            total, count = total + float(apart.sum()), count + apart.numel()
    if not count:
        raise WeightspaceError("no position of the task has a label: all are -100")
    return math.sqrt(total / count) if kind == "l2" else total / count


def _squared(p: Tensor, q: Tensor) -> Tensor:
    return (p - q).square().flatten(1).sum(1)


def _disagreement(p: Tensor, q: Tensor) -> Tensor:
    return (p.argmax(-1) != q.argmax(-1)).double()


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


_KINDS = {"l2": _squared, "disagreement": _disagreement, "kl": _divergence}
