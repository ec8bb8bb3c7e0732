"""Which member of an exchange goes to which: orders from which the other moves are matched.

The order by what tells members apart finds copies. For networks that are no copies, every member of one is matched with
every member of the other once, by shifts, and the assignment with the largest inner products is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weightspace.linear.assignment import assign
from weightspace.net.net import Net
from weightspace.symmetry.align.ascent import Matching
from weightspace.symmetry.align.terms import weight_terms
from weightspace.symmetry.axis import Exchange
from weightspace.symmetry.balance import balancing, unit_variances
from weightspace.symmetry.element import Element
from weightspace.symmetry.group import Group
from weightspace.symmetry.members import nearest_order

__all__ = ["member_order"]


_ALIKE = 1e-3
_SMALL, _FEW = 200_000, 8  # numbers, members


def member_order(group: Group, net: Net, to: Net, seed: int = 0) -> Element:
    """The element that renumbers members, from which the other moves are best matched; of folded networks."""
    first, apart = nearest_order(group, net, to)
    if apart <= _ALIKE:
        return first
    orders = [first, Element(group, {}, {}, {x.name: torch.arange(x.size) for x in group.exchanges})]
    if sum(tensor.numel() for tensor in net.weights.values()) <= _SMALL:
        orders.append(_assigned(group, net, to, first, seed))
    return max(orders, key=lambda order: _matched(group, order(net), to, seed).objective())


def _assigned(group: Group, net: Net, to: Net, start: Element, seed: int) -> Element:
    """An order improved exchange by exchange, by inner products of members after all other moves are matched."""
    for exchange in group.exchanges:
        if exchange.size > _FEW:
            continue
        products = torch.zeros(exchange.size, exchange.size, dtype=torch.float64)
        for shift in range(exchange.size):
            cycle = torch.arange(exchange.size).roll(-shift)
            order = Element(group, {}, {}, {exchange.name: cycle}) @ start
            along = _of_members(group, exchange, _matched(group, order(net), to, seed))
            products[torch.arange(exchange.size), cycle] = along
        best = torch.as_tensor(assign(products))
        start = Element(group, {}, {}, {exchange.name: best}) @ start
    return start


def _matched(group: Group, net: Net, to: Net, seed: int) -> Matching:
    """Coordinate ascent, every member where it is."""
    a, b = unit_variances(group, to), unit_variances(group, net)
    matching = Matching(group, weight_terms(group, a, b, *(balancing(group, each.tensors, 1e-5) for each in (a, b))))
    matching.run(seed)
    return matching


def _of_members(group: Group, exchange: Exchange, matching: Matching) -> Tensor:
    """The inner product of every member of one network with that in its place."""
    found = torch.zeros(exchange.size, dtype=torch.float64)
    for blocks in exchange.blocks:
        for at, number in blocks:
            block = group.blocks[number]
            if block.tensor in matching.fixed:
                pair = [group.view(block, t) for t in (matching.fixed[block.tensor], matching.moving(block.tensor))]
                for member in {*at}:
                    found[member] += float((pair[0] * pair[1]).sum())
    return found
