"""The average of networks modulo the group.

mean([w_1], .., [w_n]) = (1/n) sum_i g_i w_i, the g_i chosen to bring every network to the average of the others, again
and again until none moves (MergeMany of Git Re-Basin, Ainsworth, Hayase and Srinivasa, 2023), on the balanced slice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from weightspace.net import Net, WeightspaceError, checked, wide
from weightspace.symmetry.ascent import coordinate_descent, weight_terms
from weightspace.symmetry.balance import balancing, unit_variances
from weightspace.symmetry.group import Element, Group

__all__ = ["average", "gather_round", "lifted"]

_SETTLED = 0.02
_BALANCED = 1e-8


def average(nets: Iterable[Net]) -> Net:
    """(1/n) sum_i w_i, floating-point and complex state too, in the dtypes of the first; nothing is aligned.

    Read one at a time, summed twice as wide (half precision in float32, all else in float64) and rounded once. Integer
    state is that of the first.
    """
    first, count = None, 0
    for net in nets:
        count += 1
        if first is None:
            first = checked(net)
            sums = [{name: torch.zeros_like(t, dtype=wide(t.dtype)) for name, t in part.items() if _averaged(t)}
                    for part in (net.weights, net.state)]  # fmt: skip
        first.check(net)
        for total, part in zip(sums, (net.weights, net.state), strict=True):
            for name in total:
                more = part[name].to(wide(part[name].dtype))
                total[name] = total[name].to(torch.promote_types(more.dtype, total[name].dtype)).add_(more)
    if first is None:
        raise WeightspaceError("the mean of no networks; give at least one network")
    weights, state = ({name: total / count for name, total in part.items()} for part in sums)
    return Net(first.architecture, first.weights.replace(weights), first.state.replace(state))


def _averaged(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def lifted(nets: Sequence[Net]) -> list[Net]:
    """The networks in one dtype, the widest of theirs and at least float32; those that are so already as they are."""
    found = {t.dtype for net in nets for t in checked(net).tensors.values() if t.is_floating_point()}
    common = torch.float64 if torch.float64 in found else torch.float32
    return list(nets) if found <= {common} else [net.to(common) for net in nets]


def gather_round(group: Group, nets: Sequence[Net], seed: int = 0, rounds: int = 20) -> list[Element]:
    """What takes networks, already aligned to the first, to where each is nearest the mean of the others.

    In the scales of the first. Stops when a whole round moves next to no unit.
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
    """Share of the units that the element sends elsewhere or flips."""
    flips = [float((f < 0).double().mean()) for f in element.factors.values()]
    return max([element.difference(still), *flips])
