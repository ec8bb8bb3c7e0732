"""The balanced slice: of all positive rescalings of a network, the one of least norm.

For scale generators k with factors exp(t_k[x]), |g w|^2 = sum_j n_j exp(2 sum_k e_jk t_k) is convex in t, strictly
where no unit is dead, so that the minimum is one point per orbit (Rueger and Ossen, The metric structure of weight
space, 1997; Stock, Graham, Gribonval and Jegou, Equi-normalization of neural networks, 2019). Coordinate descent with
a Newton step per unit finds it, between steps common to all units of an axis. A scale with exponents of one sign only
(a direction, as under weight normalisation) has no minimum: those places are brought to norm one. Generators that touch
running statistics hold in evaluation mode only and are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from weightspace.net import Net, Weights
from weightspace.symmetry.group import Element, Generator, Group

__all__ = ["balance", "balancing"]

_ROOM = 1 << 21  # numbers


def balancing(group: Group, weights: Weights, tolerance: float = 1e-5, sweeps: int = 500) -> Element:
    """The element of positive scales that takes `weights` to the balanced slice."""
    slice_ = _Slice(group, weights)
    for _ in range(sweeps):
        slice_.level()
        if slice_.sweep() < tolerance:
            break
    return Element(group, {}, {k: t.exp() for k, t in slice_.logs.items()})


def balance(group: Group, net: Net, tolerance: float = 1e-5) -> Net:
    """The same function on the balanced slice."""
    return balancing(group, net.weights, tolerance)(net)


class _Slice:
    """Logarithms t_k of the factors, and the squared norms that they lead to."""

    def __init__(self, group: Group, weights: Weights) -> None:
        self.group, self.weights = group, weights
        self.chosen = {k: g for k, g in enumerate(group.generators) if g.kind == "scale" and not g.evaluation}
        self.logs = {k: torch.zeros(group.sizes(group[g.axis]), dtype=torch.float64) for k, g in self.chosen.items()}
        self.scaled = {(p.block, p.leaf) for g in self.chosen.values() for p, _ in g.exponents}
        self.blocks = sorted({block for block, _ in self.scaled})
        self._kept: dict[int, Tensor] = {}
        self._room = _ROOM

    def sweep(self) -> float:
        """One Newton step for every unit of every generator in turn; the largest."""
        largest = 0.0
        for k, generator in self.chosen.items():
            step = _newton(self.norms(generator))
            self.logs[k] += step
            largest = max(largest, float(step.abs().max()))
        return largest

    def level(self) -> None:
        """The best common factor for all units of a generator, for all generators at once.

        What moves from layer to layer does so slowly in sweeps; here it is a small convex problem of its own.
        """
        both = [k for k, g in self.chosen.items() if {e > 0 for _, e in g.exponents} == {True, False}]
        if len(both) < 2:
            return
        exponents = torch.zeros(len(self.blocks), len(both), dtype=torch.float64)
        row = {number: i for i, number in enumerate(self.blocks)}
        for j, k in enumerate(both):
            for place, exponent in self.chosen[k].exponents:
                exponents[row[place.block], j] += exponent
        norms = torch.stack([self.norm(number) for number in self.blocks])
        for k, shift in zip(both, _common(norms, exponents).tolist(), strict=True):
            self.logs[k] += shift

    def norms(self, generator: Generator) -> dict[float, Tensor]:
        """Exponent -> squared norm of the places with that exponent, for every unit, at the present scales."""
        sums: dict[float, Tensor] = {}
        for place, exponent in generator.exponents:
            shared = sum(p.block == place.block for p, _ in generator.exponents)
            axis = self.group[generator.axis]
            leaves = self.group.blocks[place.block].leaves
            table = self._sum(place.block, [*(leaves.index(o) for o in axis.over), place.leaf]) / shared
            sums[exponent] = sums[exponent] + table if exponent in sums else table
        return sums

    def norm(self, number: int) -> Tensor:
        """Squared norm of a block at the present scales."""
        return self._sum(number, [])

    def _sum(self, number: int, keep: list[int]) -> Tensor:
        """Squares of a block times all factors, summed over the leaves that are not kept."""
        block, value = self.group.blocks[number], self._squares(number)
        operands: list[object] = [value, list(range(value.dim()))]
        for leaf, axis in enumerate(block.leaves):
            for k, e in self.group.exponents_at.get((number, leaf), ()):
                if k in self.logs:
                    outer = [block.leaves.index(o) for o in self.group[str(axis)].over]
                    operands += [(2 * e * self.logs[k]).exp(), [*outer, leaf]]
        return torch.einsum(*operands, keep)

    def _squares(self, number: int) -> Tensor:
        """Squared entries, summed over the leaves that no scale touches; kept as far as there is room."""
        if number in self._kept:
            return self._kept[number]
        block = self.group.blocks[number]
        value = self.group.view(block, self.weights[block.tensor].detach().contiguous())
        value = value.to(torch.float64, copy=True).square_()
        keep = {leaf for b, leaf in self.scaled if b == number}
        keep |= {block.leaves.index(o) for leaf in keep for o in self.group[str(block.leaves[leaf])].over}
        gone = [d for d in range(value.dim()) if d not in keep]
        value = value.sum(gone, keepdim=True) if gone else value
        if value.numel() <= self._room:
            self._room -= value.numel()
            self._kept[number] = value
        return value


def _common(norms: Tensor, exponents: Tensor) -> Tensor:
    """argmin_t sum_b n_b exp(2 (E t)_b) by Newton steps; directions without a minimum stay where they are."""
    t = torch.zeros(exponents.shape[1], dtype=torch.float64)
    alive = (norms @ exponents.clamp(min=0) > 0) & (norms @ exponents.clamp(max=0) < 0)
    matrix = exponents * alive
    for _ in range(50):
        now = norms * (2 * matrix @ t).exp()
        slope, curvature = matrix.T @ now, 2 * matrix.T @ (now[:, None] * matrix)
        step = -torch.linalg.pinv(curvature, hermitian=True) @ slope
        while float((norms * (2 * matrix @ (t + step)).exp()).sum()) > float(now.sum()) * (1 + 1e-12):
            step = step / 2
        t = t + step
        if float(step.abs().max()) < 1e-9:
            break
    return t


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
