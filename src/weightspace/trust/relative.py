"""Relative distances of layers, and the bound that they put on the change of the outputs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightspace.metric.distance import exact
from weightspace.metric.metric import by_layer
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, checked
from weightspace.net.public import public

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["log_relative_trust", "relative_distances", "relative_trust"]


@public
def relative_distances(
    a: Net, b: Net, granularity: str = "tensor", layers: str = "weights"
) -> dict[str, Float[Tensor, " parts"]]:
    """d_l = |b_l - a_l| / |a_l| for every layer l, a tensor or each neuron (row) of it, in float64.

    `layers`: "weights" (tensors of two dimensions or more) or "all" (biases and gains too). Zero where a_l and b_l are
    zero, infinite where only a_l is. Raises `ArchitectureMismatch` unless both have the same tensors,
    `WeightspaceError` for another word.
    """
    checked(a).weights.check(checked(b).weights)
    if layers not in ("weights", "all"):
        raise WeightspaceError(f'layers must be "weights" or "all", got {layers!r}')
    found = {}
    for name, w in a.weights.items():
        if w.dim() > 1 or layers == "all":
            apart, size = by_layer(exact(b.weights[name]) - exact(w), granularity), by_layer(exact(w), granularity)
            found[name] = torch.where(apart > 0, apart / size, 0.0)
    return found


@public
def log_relative_trust(
    a: Net, b: Net, *, granularity: str = "tensor", layers: str = "weights", symmetric: bool = False
) -> float:
    """sum_l log(1 + d_l), d_l = |b_l - a_l| / |a_l| the relative distance of layer l (the largest of its neurons').

    A quasi-metric on networks without a zero layer: zero only between equal ones, with the triangle inequality, because
    |b_l| <= (1 + d_l) |a_l|, but not symmetric; `symmetric` adds both directions, which is a metric. Arguments as for
    `relative_distances`.
    """
    parts = relative_distances(a, b, granularity, layers)
    there = sum(float(torch.log1p(d.max())) for d in parts.values())
    return there + log_relative_trust(b, a, granularity=granularity, layers=layers) if symmetric else there


@public
def relative_trust(a: Net, b: Net, *, granularity: str = "tensor", layers: str = "weights") -> float:
    """prod_l (1 + d_l) - 1, the deep relative trust: a model of how far the outputs of b are from a's, in their size.

    d_l as in `relative_distances` (the largest of a layer's neurons). A model and no bound: it takes layers for maps of
    condition one, and is too large for noise, too small along gradients. Not symmetric, and without a triangle
    inequality, which `log_relative_trust` has. Source: On the distance between two neural networks and the stability of
    learning (Bernstein, Vahdat, Yue, Liu, 2020).
    """
    try:
        return math.expm1(log_relative_trust(a, b, granularity=granularity, layers=layers))
    except OverflowError:
        return math.inf
