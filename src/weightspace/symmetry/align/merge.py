"""Alignment of many networks to their common mean.

mean([w_1], .., [w_n]) = (1/n) sum_i g_i w_i, the g_i chosen to bring every network to the average of the others, again
and again until none moves (MergeMany of Git Re-Basin, Ainsworth, Hayase and Srinivasa, 2023), with balanced scales.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weightspace.net.net import Net
from weightspace.symmetry.align.ascent import coordinate_descent
from weightspace.symmetry.align.terms import weight_terms
from weightspace.symmetry.balance import balancing, unit_variances
from weightspace.symmetry.element import Element
from weightspace.symmetry.group import Group

__all__ = ["gather_round"]


_SETTLED = 0.02
_BALANCED = 1e-8


def gather_round(group: Group, nets: Sequence[Net], seed: int = 0, rounds: int = 20) -> list[Element]:
    """The elements that bring networks, already aligned to the first, nearest the mean of the others.

    In the scales of the first. Stops when a whole round moves almost no unit.
    """
    moves = [balancing(group, unit_variances(group, net).tensors, _BALANCED) for net in nets]
    onto, balanced = moves[0], [move(net) for move, net in zip(moves, nets, strict=True)]
    total = balanced[0].weights
    for net in balanced[1:]:
        total = total + net.weights
    generator, still = np.random.default_rng(seed), group.identity()
    for _ in range(rounds if len(nets) > 2 else 0):
        moved = 0.0
        for i in generator.permutation(len(nets)):
            net = balanced[int(i)]
            others = (total - net.weights) / (len(nets) - 1)
            element = coordinate_descent(group, weight_terms(group, net.at(others), net), seed=seed)
            share = _share(element, still)
            if share:
                moved += share / len(nets)
                moves[int(i)], balanced[int(i)] = element @ moves[int(i)], element(net)
                total = total - net.weights + balanced[int(i)].weights
        if moved <= _SETTLED:
            break
    back = onto.inverse()
    return [back @ move for move in moves]


def _share(element: Element, still: Element) -> float:
    """Share of the units that the element permutes or flips."""
    flips = [
        float((1 - f.diagonal(dim1=-2, dim2=-1)).mean() / 2 if element.is_matrix(k) else (f < 0).double().mean())
        for k, f in element.factors.items()
    ]
    return max([element.difference(still), *flips])
