"""Which member of an exchange goes to which: orders from which the other moves are matched.

The order by what tells members apart finds copies. For networks that are no copies, every member of one is matched with
every member of the other once, by shifts, and the assignment with the largest inner products is taken.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from weightspace.linear.assignment import assign
from weightspace.net.net import Net
from weightspace.symmetry.align.ascent import Matching, weight_terms
from weightspace.symmetry.axis import Exchange
from weightspace.symmetry.balance import balancing, unit_variances
from weightspace.symmetry.group import Element, Group
from weightspace.symmetry.members import nearest_order

__all__ = ["member_orders"]


_ALIKE = 1e-5
_SMALL, _FEW = 200_000, 8  # numbers, members


def member_orders(group: Group, net: Net, to: Net, seed: int = 0) -> Iterator[Element]:
    """Elements that renumber members: the first alone where it makes copies of the networks."""
    by_norms = nearest_order(group, net, to)
    yield by_norms
    still = Element(group, {}, {}, {x.name: torch.arange(x.size) for x in group.exchanges})
    others = [still]
    if sum(tensor.numel() for tensor in net.weights.values()) <= _SMALL:
        for start in (by_norms, still):
            others.append(_assigned(group, net, to, start, seed))
    seen = [by_norms]
    for order in others:
        if all(order.difference(other) for other in seen):
            seen.append(order)
            yield order


def _assigned(group: Group, net: Net, to: Net, start: Element, seed: int) -> Element:
    """An order improved exchange by exchange, by inner products of members after all other moves are matched."""
    for exchange in group.exchanges:
        if exchange.size > _FEW:
            continue
        products = torch.zeros(exchange.size, exchange.size, dtype=torch.float64)
        for shift in range(exchange.size):
            cycle = torch.arange(exchange.size).roll(-shift)
            order = Element(group, {}, {}, {exchange.name: cycle}) @ start
            along = _products(group, exchange, order(net), to, seed)
            products[torch.arange(exchange.size), cycle] = along
        best = torch.as_tensor(assign(products))
        start = Element(group, {}, {}, {exchange.name: best}) @ start
    return start


def _products(group: Group, exchange: Exchange, net: Net, to: Net, seed: int) -> Tensor:
    """The inner product of every member of one network with that in its place, after coordinate ascent."""
    plain = group.again(exchanges=())
    a, b = unit_variances(plain, to), unit_variances(plain, net)
    terms = weight_terms(plain, a, b, *(balancing(plain, each.tensors, 1e-5) for each in (a, b)))
    matching = Matching(plain, terms)
    matching.run(seed)
    found = torch.zeros(exchange.size, dtype=torch.float64)
    for blocks in exchange.blocks:
        for at, number in blocks:
            block = group.blocks[number]
            if block.tensor in terms.fixed:
                pair = [group.view(block, t) for t in (terms.fixed[block.tensor], matching.moving(block.tensor))]
                for member in {*at}:
                    found[member] += float((pair[0] * pair[1]).sum())
    return found
