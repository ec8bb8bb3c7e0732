"""The expected displacement of the outputs under weight noise, to first order, and each layer's share of it.

For independent noise of mean zero and variance s_l^2 on every weight of layer l,
E |df|^2 = sum_l s_l^2 tr G_l + O(s^4), G_l = sum_x J_l(x)^T J_l(x). With u standard normal over outputs,
tr G_l = E |J_l^T u|^2, so that one backward pass gives all layers at once: for a layer z = V h of an example,
J_l^T u = sum_t d_t h_t^T, d the gradient of u . f in z, t over positions.
Related: Relative flatness and generalization (Petzka, Kamp, Adilova, Sminchisescu, Boley, 2021).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from weightspace.curvature.gradients import traces
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.task.task import Task

__all__ = ["Displacement", "displacement"]


@public
@dataclass(frozen=True)
class Displacement:
    """The expected `relative` displacement sqrt(E |df|^2) / |f| of the outputs over all examples, and its parts.

    `error`: its standard error. `shares`: tensor -> the part of E |df|^2 that its noise causes; they add up to one.
    """

    relative: float
    error: float
    shares: Mapping[str, float]


@public
def displacement(
    net: Net, task: Task, noise: float | Weights, *, draws: int = 8, seed: int = 0, names: list[str] | None = None
) -> Displacement:
    """The expected relative displacement of the outputs under weight noise: sqrt(sum_l s_l^2 tr G_l) / |f|.

    `noise`: a number eta gives s_l = eta |W_l| / sqrt(numel_l), the noise of `perturb`; a vector v gives s_l = |v_l| /
    sqrt(numel_l), for a change of these sizes in a random direction, such as rounding. `names`: the tensors with noise,
    all by default. First order in s. Cost: two forward passes and `draws` backward passes. Raises `WeightspaceError`
    for a noise that is negative or not finite, or outputs that are all zero.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.trust.displacement(net, task, 0.1)
    >>> 0 < found.relative < 1, sorted(found.shares)
    (True, ['1.bias', '1.weight', '3.bias', '3.weight'])
    """
    sizes = _sizes(checked(net), noise, names)
    found = [(trace, norm) for trace, norm in traces(net, task, list(sizes), draws=draws, seed=seed)]
    norm = found[0][1]
    if not norm:
        raise WeightspaceError("the outputs are zero, so they have no relative displacement; give other inputs")
    parts = {
        name: torch.tensor([trace[name] * size for trace, _ in found], dtype=torch.float64)
        for name, size in sizes.items()
    }
    totals = torch.stack(list(parts.values())).sum(0) if parts else torch.zeros(draws)
    mean = float(totals.mean())
    spread = float(totals.std() / math.sqrt(draws)) if draws > 1 else math.nan
    root = math.sqrt(mean)
    shares = {name: float(part.mean()) / mean if mean else 0.0 for name, part in parts.items()}
    return Displacement(root / norm, spread / (2 * root * norm) if root else 0.0, shares)


def _sizes(net: Net, noise: float | Weights, names: list[str] | None) -> dict[str, float]:
    """s_l^2 of every tensor."""
    if isinstance(noise, Weights):
        net.weights.check(noise)
        squares = {name: size**2 / noise[name].numel() for name, size in noise.norms().items()}
    else:
        if not 0 <= noise < math.inf:
            raise WeightspaceError(f"noise must be a number from 0 up, got {noise}")
        squares = {name: (noise * size) ** 2 / net.weights[name].numel() for name, size in net.weights.norms().items()}
    wanted = list(squares) if names is None else names
    return {name: squares[name] for name in wanted if squares[name] > 0}
