"""The balanced slice: of all positive rescalings of a network, the one of least norm.

For scale generators k with factors exp(t_k[x]), |g w|^2 = sum_j n_j exp(2 sum_k e_jk t_k) is convex in t, strictly
where no unit is dead, so that the minimum is one point per orbit (Rueger and Ossen, The metric structure of weight
space, 1997; Stock, Graham, Gribonval and Jegou, Equi-normalization of neural networks, 2019). Coordinate descent with
a Newton step per unit finds it. A scale with exponents of one sign only (a direction, as under weight normalisation)
has no minimum: those places are brought to norm one. Generators that touch running statistics hold in evaluation mode
only and are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from weightspace.net import Net, Weights
from weightspace.symmetry.group import Element, Generator, Group

__all__ = ["balance", "balancing"]


def balancing(group: Group, weights: Weights, tolerance: float = 1e-5, sweeps: int = 500) -> Element:
    """The element of positive scales that takes `weights` to the balanced slice."""
    chosen = {k: g for k, g in enumerate(group.generators) if g.kind == "scale" and not g.evaluation}
    logs = {k: torch.zeros(group.sizes(group[g.axis]), dtype=torch.float64) for k, g in chosen.items()}
    squares = _squares(group, weights, chosen)
    for _ in range(sweeps):
        largest = 0.0
        for k, generator in chosen.items():
            step = _newton(_norms(group, generator, squares, logs))
            logs[k] += step
            largest = max(largest, float(step.abs().max()))
        if largest < tolerance:
            break
    factors = {k: t.exp() for k, t in logs.items()}
    return Element(group, group.identity().permutations, factors)


def balance(group: Group, net: Net, tolerance: float = 1e-5) -> Net:
    """The same function on the balanced slice."""
    return balancing(group, net.weights, tolerance)(net)


def _squares(group: Group, weights: Weights, chosen: Mapping[int, Generator]) -> dict[int, Tensor]:
    """Squared entries of every block that some scale touches, summed over the leaves that no scale touches."""
    scaled = {(p.block, p.leaf) for g in chosen.values() for p, _ in g.exponents}
    out = {}
    for number in {block for block, _ in scaled}:
        block = group.blocks[number]
        value = group.view(block, weights[block.tensor].detach().contiguous()).double().square()
        keep = {leaf for b, leaf in scaled if b == number}
        keep |= {block.leaves.index(o) for leaf in keep for o in group[str(block.leaves[leaf])].over}
        gone = [d for d in range(value.dim()) if d not in keep]
        out[number] = value.sum(gone, keepdim=True) if gone else value
    return out


def _norms(
    group: Group, generator: Generator, squares: Mapping[int, Tensor], logs: Mapping[int, Tensor]
) -> dict[float, Tensor]:
    """Exponent -> squared norm of the places with that exponent, for every unit, at the present scales."""
    sums: dict[float, Tensor] = {}
    for place, exponent in generator.exponents:
        block = group.blocks[place.block]
        own = [e for p, e in generator.exponents if p.block == place.block]
        value = squares[place.block]
        operands: list[object] = [value, list(range(value.dim()))]
        for leaf, axis in enumerate(block.leaves):
            for k, e in group.exponents_at.get((place.block, leaf), ()):
                if k in logs:
                    outer = [block.leaves.index(o) for o in group[str(axis)].over]
                    operands += [(2 * e * logs[k]).exp(), [*outer, leaf]]
        own_axis = group[generator.axis]
        operands.append([*(block.leaves.index(o) for o in own_axis.over), place.leaf])
        table = torch.einsum(*operands) / len(own)
        sums[exponent] = sums[exponent] + table if exponent in sums else table
    return sums


def _newton(norms: Mapping[float, Tensor]) -> Tensor:
    """argmin_t sum_e n_e exp(2 e t), one t for every unit; 0 where a unit is dead on one side."""
    up = sum((n for e, n in norms.items() if e > 0), torch.zeros(()))
    down = sum((n for e, n in norms.items() if e < 0), torch.zeros(()))
    if not any(e < 0 for e in norms) or not any(e > 0 for e in norms):
        return _unit(norms)
    alive = (up > 0) & (down > 0)
    t = torch.where(alive, (down / up).log() / 4, torch.zeros((), dtype=torch.float64))
    if set(norms) <= {1.0, -1.0}:
        return t
    t = torch.zeros_like(t)
    for _ in range(50):
        first = sum((2 * e * n * (2 * e * t).exp() for e, n in norms.items()), torch.zeros(()))
        second = sum((4 * e * e * n * (2 * e * t).exp() for e, n in norms.items()), torch.zeros(()))
        step = torch.where(alive, (first / second).clamp(-0.5, 0.5), torch.zeros_like(t))
        t = t - step
        if float(step.abs().max()) < 1e-14:
            break
    return t


def _unit(norms: Mapping[float, Tensor]) -> Tensor:
    total = sum(norms.values(), torch.zeros(()))
    exponent = next(iter(norms))
    return torch.where(total > 0, -total.clamp(min=1e-300).log() / (2 * exponent), torch.zeros_like(total))
