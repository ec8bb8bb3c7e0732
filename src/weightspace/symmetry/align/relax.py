"""Frank-Wolfe on doubly stochastic matrices, from the barycentre: all axes at once.

maximise f(P) = sum_T <A_T, P B_T> over P_X in the Birkhoff polytope of every axis X. Each step solves one linear
assignment per axis for the gradient and goes to the best point of the segment, where f is a quadratic (Crisostomi et
al, Cycle-consistent multi-model merging, 2024). Axes that carry families, or are carried, stay where the start has
them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weightspace.linear.assignment import assign
from weightspace.symmetry.align.ascent import Matching, coordinate_descent
from weightspace.symmetry.align.terms import Terms
from weightspace.symmetry.axis import Axis
from weightspace.symmetry.element import Element
from weightspace.symmetry.group import Group

__all__ = ["frank_wolfe"]


def frank_wolfe(group: Group, terms: Terms, seed: int = 0, steps: int = 50, tolerance: float = 1e-4) -> Element:
    """The permutations nearest the point that Frank-Wolfe reaches."""
    carried = {outer for axis in group.axes for outer in axis.over}
    axes = [a for a in group.permutable() if not a.over and a.name not in carried]
    plain = len(axes) == len(group.permutable())
    start = group.identity() if plain else coordinate_descent(group, terms, seed=seed)
    relaxed = _Relaxed(Matching(group, terms, start), axes)
    place = next(iter(relaxed.matching.fixed.values())).device
    soft = {a.name: torch.full((a.size, a.size), 1.0 / a.size, device=place) for a in relaxed.axes}
    for _ in range(steps):
        value, gradient = relaxed.gradient(soft)
        vertex = {name: _vertex(g) for name, g in gradient.items()}
        slope = sum(float((gradient[n] * (vertex[n] - soft[n])).sum()) for n in soft)
        if slope <= tolerance * abs(value):
            break
        t = _best(value, slope, relaxed.value(vertex))
        soft = {n: (1 - t) * p + t * vertex[n] for n, p in soft.items()}
    tables = {n: torch.as_tensor(assign(p)) for n, p in soft.items()}
    still = dict(group.identity().permutations)
    return Element(group, {**still, **tables}) @ start


def _vertex(gradient: Tensor) -> Tensor:
    out = torch.zeros_like(gradient)
    out[torch.arange(len(out)), torch.as_tensor(assign(gradient))] = 1.0
    return out


def _best(value: float, slope: float, end: float) -> float:
    """argmax over [0, 1] of the quadratic with this value and slope at 0 and this value at 1."""
    curvature = end - value - slope
    if curvature >= 0:
        return 1.0
    return min(1.0, -slope / (2 * curvature))


class _Relaxed:
    def __init__(self, matching: Matching, axes: list[Axis]) -> None:
        self.matching, self.group = matching, matching.group
        self.axes = [a for a in axes if a.name in matching.of_axis]
        self.names = {a.name for a in self.axes}

    def _moved(self, number: int, soft: dict[str, Tensor], but: int | None) -> Tensor:
        block = self.matching.terms.blocks[number]
        value = self.group.view(block, self.matching.moving(block.tensor))
        for leaf, name in enumerate(block.leaves):
            if name in self.names and leaf != but:
                value = torch.tensordot(soft[str(name)], value, ([1], [leaf])).movedim(0, leaf)
        return value

    def _fixed(self, number: int) -> Tensor:
        block = self.matching.terms.blocks[number]
        return self.group.view(block, self.matching.fixed[block.tensor])

    def gradient(self, soft: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
        """f and its gradient."""
        gradient = {name: torch.zeros_like(p) for name, p in soft.items()}
        value = 0.0
        for number, block in enumerate(self.matching.terms.blocks):
            leaves = [k for k, name in enumerate(block.leaves) if name in self.names]
            for k in leaves:
                a, b = self._fixed(number), self._moved(number, soft, but=k)
                n = a.shape[k]
                gram = a.movedim(k, 0).reshape(n, -1) @ b.movedim(k, 0).reshape(n, -1).T
                name = str(block.leaves[k])
                gradient[name] += gram
                if k == leaves[0]:
                    value += float((gram * soft[name]).sum())
        return value, gradient

    def value(self, soft: dict[str, Tensor]) -> float:
        """f."""
        total = 0.0
        for number, block in enumerate(self.matching.terms.blocks):
            if any(name in self.names for name in block.leaves):
                total += float((self._fixed(number) * self._moved(number, soft, but=None)).sum())
        return total
