"""Deep relative trust: relative distances of layers, and the model prod(1 + d_l) - 1 of how far the outputs move."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from weightspace.metric.distance import exact
from weightspace.metric.metric import by_layer
from weightspace.net.net import Net, checked
from weightspace.net.public import public

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["log_relative_trust", "relative_distances", "relative_trust"]


Granularity: TypeAlias = Literal["tensor", "neuron"]
Layers: TypeAlias = Literal["weights", "all"]


@public
def relative_distances(
    a: Net, b: Net, granularity: Granularity = "tensor", layers: Layers = "weights"
) -> dict[str, Float[Tensor, " parts"]]:
    """The relative distance d_l = |b_l - a_l| / |a_l| of every layer l, or of each neuron (row) of it, in float64.

    `granularity`: one number for a tensor, or one for each of its neurons. `layers`: "weights" (tensors of two
    dimensions or more) or "all" (biases and gains too). Zero where a_l and b_l are zero, infinite where only a_l is.
    Raises `ArchitectureMismatch` unless both have the same tensors.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.trust.relative_distances(net, ws.perturb(net, 0.1, seed=0))
    >>> {name: round(float(d), 3) for name, d in found.items()}
    {'1.weight': 0.1, '3.weight': 0.1}
    """
    checked(a).weights.check(checked(b).weights)
    found = {}
    for name, w in a.weights.items():
        if w.dim() > 1 or layers == "all":
            apart, size = by_layer(exact(b.weights[name]) - exact(w), granularity), by_layer(exact(w), granularity)
            found[name] = torch.where(apart > 0, apart / size, 0.0)
    return found


@public
def log_relative_trust(
    a: Net, b: Net, *, granularity: Granularity = "tensor", layers: Layers = "weights", symmetric: bool = False
) -> float:
    """The log of 1 + deep relative trust: sum_l log(1 + d_l), d_l = |b_l - a_l| / |a_l| (the largest of its neurons').

    A quasi-metric on networks without a zero layer: zero only between equal ones, with the triangle inequality, because
    |b_l| <= (1 + d_l) |a_l|, but not symmetric; `symmetric` adds both directions, which is a metric. Arguments as for
    `relative_distances`.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> round(ws.log_relative_trust(net, ws.perturb(net, 0.1, seed=0)), 3)       # 2 log 1.1
    0.191
    """
    parts = relative_distances(a, b, granularity, layers)
    there = sum(float(torch.log1p(d.max())) for d in parts.values())
    return there + log_relative_trust(b, a, granularity=granularity, layers=layers) if symmetric else there


@public
def relative_trust(a: Net, b: Net, *, granularity: Granularity = "tensor", layers: Layers = "weights") -> float:
    """The deep relative trust prod_l (1 + d_l) - 1: a model of the relative distance between the outputs of a and b.

    d_l as in `relative_distances` (the largest of a layer's neurons). A model, not a bound: it assumes layers of
    condition number one, and is too large for noise, too small along gradients. Not symmetric, and without a triangle
    inequality, which `log_relative_trust` has. Source: On the distance between two neural networks and the stability of
    learning (Bernstein, Vahdat, Yue, Liu, 2020).

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> round(ws.relative_trust(net, ws.perturb(net, 0.1, seed=0)), 2)       # 1.1^2 - 1
    0.21
    """
    try:
        return math.expm1(log_relative_trust(a, b, granularity=granularity, layers=layers))
    except OverflowError:
        return math.inf
