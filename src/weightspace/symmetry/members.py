"""What tells the members of an exchange apart, whatever the other moves: norms and moments of their blocks.

For a block W that belongs to a member, |W|, (tr (X X^T)^2)^1/4 for its unfoldings X, and, where no matrix acts,
(sum W^4)^1/4. Permutations, signs and rotations leave them alone; scales and general linear moves are balanced first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from weightspace.linear.assignment import assign
from weightspace.net.errors import SymmetryError
from weightspace.net.net import Net
from weightspace.symmetry.axis import MATRICES, Block, Exchange
from weightspace.symmetry.balance import balancing
from weightspace.symmetry.element import Element
from weightspace.symmetry.fold import fold
from weightspace.symmetry.group import Group
from weightspace.symmetry.moved import Moved

__all__ = ["canonical_order", "nearest_order"]


_DIGITS = 9
_LARGEST = 4096  # rows of a matrix that is multiplied with its transpose


def canonical_order(group: Group, net: Net) -> Element:
    """The element that sorts the members of every exchange by what tells them apart; on a folded network.

    Raises `SymmetryError` where two members are alike to 9 digits.
    """
    tensors, orders = _balanced(group, net, 1e-13, True), {}
    for exchange in group.exchanges:
        columns = [_rounded(column) for column in _told(group, exchange, tensors).T.numpy()]
        order = np.lexsort(columns[::-1])
        rows = np.stack(columns, 1)[order]
        if bool((rows[1:] == rows[:-1]).all(1).any()):
            raise SymmetryError(
                f"{exchange.name} has no canonical order: two of its members have weights of the same norms to "
                f"{_DIGITS} digits, and nothing that was looked at tells them apart"
            )
        orders[exchange.name] = torch.as_tensor(order)
    return Element(group, {}, {}, orders)


def nearest_order(group: Group, net: Net, to: Net) -> tuple[Element, float]:
    """The element that puts members of a folded network where those of another are most alike, by these numbers.

    And how far these are apart then, relative to their size: not at all for copies.
    """
    ours, theirs = (_balanced(group, each, 1e-8, False) for each in (net, to))
    orders, apart = {}, 0.0
    for exchange in group.exchanges:
        a, b = (_told(group, exchange, tensors) for tensors in (theirs, ours))
        order = torch.as_tensor(assign(-(a[:, None] - b).square().sum(-1)))
        orders[exchange.name] = order
        apart = max(apart, float((a - b[order]).norm()) / (float(a.norm()) or 1.0))
    return Element(group, {}, {}, orders), apart


def _balanced(group: Group, net: Net, tolerance: float, strict: bool) -> Mapping[str, Tensor]:
    net = fold(group, net)
    return Moved(balancing(group, net.tensors, tolerance, 2000, strict), net.weights, torch.float64)


def _told(group: Group, exchange: Exchange, tensors: Mapping[str, Tensor]) -> Tensor:
    """The numbers that tell members apart, as (member, number)."""
    others = {b for x in group.exchanges if x is not exchange for b in group.traded[x.name]}
    columns: dict[tuple[object, ...], Tensor] = {}
    held: dict[str, list[tuple[int, tuple[int, ...], int]]] = {}
    for number, blocks in enumerate(exchange.blocks):
        for at, b in blocks:
            held.setdefault(group.blocks[b].tensor, []).append((number, at, b))
    for name, met in held.items():
        if name not in tensors or not (tensor := tensors[name].contiguous()).is_floating_point():
            continue
        for number, at, b in met:
            for k, (degree, moment) in enumerate(_moments(group, group.blocks[b], tensor)):
                for place, member in enumerate(at):
                    # blocks that another exchange moves are told by their sum alone
                    key = (degree, k, len(group.blocks[b].leaves)) if b in others else (degree, k, number, place)
                    columns.setdefault(key, torch.zeros(exchange.size, dtype=torch.float64))[member] += moment
    if not columns:
        raise SymmetryError(f"the members of {exchange.name} have no weights to be told apart by")
    return torch.stack([column ** (1 / float(str(key[0]))) for key, column in columns.items()], 1)


def _moments(group: Group, block: Block, tensor: Tensor) -> Iterator[tuple[int, float]]:
    """The degree and the value of moments of a block that no move of an axis changes."""
    value = group.view(block, tensor)
    axes = [group[leaf] for leaf in block.leaves if isinstance(leaf, str)]
    yield 2, float(value.square().sum())
    if not any({*MATRICES} & {*axis.kinds} for axis in axes):
        yield 4, float(value.pow(4).sum())
    for d in range(value.dim()) if not any(axis.over for axis in axes) else ():
        rows = value.movedim(d, 0).reshape(value.shape[d], -1)
        if min(rows.shape) <= _LARGEST:
            yield 4, float((rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows).square().sum())


def _rounded(column: np.ndarray) -> np.ndarray:
    return np.round(column / (np.abs(column).max(initial=0.0) or 1.0), _DIGITS)
