"""Generators in a basis that the exchange of parts renumbers.

Those of the axes of other parts are made from those of the first. On an axis that parts share, the scales (and signs)
that act on one part alone take the place of others with the same span: of x * y, that of x against what reads the
product and that of y, and not that of x against y.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import torch

from weightspace.linear.bits import reduce_bits
from weightspace.symmetry.axis import MATRICES, Exchange, Generator, Place
from weightspace.symmetry.element import Element
from weightspace.symmetry.group import Group

__all__ = ["orders", "renumbering"]


_MOST = 6  # generators of one axis that are combined


def orders(size: int) -> list[torch.Tensor]:
    """A cycle, and a swap of the first two: together they generate all orders."""
    cycle = torch.arange(size).roll(-1)
    return [cycle] if size == 2 else [cycle, _swap(size, 1)]


def _swap(size: int, i: int) -> torch.Tensor:
    order = torch.arange(size)
    order[0], order[i] = i, 0
    return order


def renumbering(group: Group, exchange: Exchange) -> Group | None:
    """The group with an exchange more, under which its generators trade places; None where they cannot."""
    trial = group.again(exchanges=[*group.exchanges, exchange])
    bases = _Bases(trial, exchange)
    found, gauge = bases.of(group.generators), bases.of(group.gauge)
    if found is None or gauge is None or not bases.keep(group.free):
        return None
    generators, rows = found
    old = [_renumbered(x, group.generators, generators) for x in group.exchanges]
    if any(x is None for x in old):
        return None
    exchange = replace(exchange, generators=tuple(rows))
    return group.again(generators=generators, gauge=gauge[0], exchanges=[*(x for x in old if x is not None), exchange])


class _Bases:
    """The generators of a group that holds an exchange, as the exchange moves them."""

    def __init__(self, group: Group, exchange: Exchange) -> None:
        self.exchange = exchange
        self.member = {axis: i for members in exchange.axes for i, axis in enumerate(members)}
        self.part = {block: at[0] for block, (_, at) in group.traded[exchange.name].items() if len(at) == 1}
        self.swaps = [self.move(group, _swap(exchange.size, i)) for i in range(exchange.size)]
        self.moves = [self.move(group, order) for order in orders(exchange.size)]

    def move(self, group: Group, order: torch.Tensor) -> tuple[Element, dict[str, str]]:
        """The element that tells to which block the content of a block goes, and the same of axes."""
        axes = {members[int(order[i])]: members[i] for members in self.exchange.axes for i in range(len(order))}
        return Element(group, {}, {}, {self.exchange.name: order.argsort()}), axes

    def of(self, generators: Sequence[Generator]) -> tuple[list[Generator], list[tuple[int, ...]]] | None:
        """Generators, and the numbers of those in the same role, one for every part."""
        new: list[Generator] = []
        rows: list[tuple[int, ...]] = []
        shared: dict[tuple[str, str], list[Generator]] = {}
        for g in generators:
            if g.axis not in self.member:
                shared.setdefault((g.axis, g.kind), []).append(g)
        for some in shared.values():
            if not all(self.stays(g) for g in some):
                singles = self.singles(some)
                if singles is None:
                    return None
                rows.append(tuple(range(len(new), len(new) + self.exchange.size)))
                some = singles
            new += some
        count = Counter(self.member[g.axis] for g in generators if g.axis in self.member)
        if len({count[i] for i in range(self.exchange.size)}) > 1:
            return None
        for g in generators:
            if self.member.get(g.axis) == 0:
                rows.append(tuple(range(len(new), len(new) + self.exchange.size)))
                new += [_carried(g, *move) for move in self.swaps]
        keys = {_key(g) for g in new}
        closed = all(_key(_carried(g, *move)) in keys for g in new for move in self.moves)
        return (new, rows) if closed else None

    def keep(self, free: Sequence[Place]) -> bool:
        """Whether places without effect go to such places."""
        met = {*free}
        return all(_placed(p, element) in met for element, _ in self.moves for p in free)

    def stays(self, g: Generator) -> bool:
        """Whether exchanges leave a generator as it is."""
        return all(_key(_carried(g, *move)) == _key(g) for move in self.moves)

    def singles(self, some: list[Generator]) -> list[Generator] | None:
        """Generators with the same span: one that acts on each part alone, then those that exchanges leave alone."""
        if len(some) > _MOST or some[0].kind in MATRICES or any(g.uniform for g in some):
            return None
        options = [*_combinations(some)]
        for g in options:
            parts = {self.part[p.block] for p, _ in g.exponents if p.block in self.part}
            if parts == {0}:
                new = [_carried(g, *move) for move in self.swaps]
                for other in [g for g in options if self.stays(g)]:
                    if len(new) < len(some) and _rank([*new, other]) > len(new):
                        new.append(other)
                if len(new) == len(some) == _rank(new) == _rank([*new, *some]):
                    return new
        return None


def _carried(g: Generator, element: Element, axes: Mapping[str, str]) -> Generator:
    """A generator as it acts after an exchange."""
    exponents = tuple((_placed(p, element), e) for p, e in g.exponents)
    uniform = tuple(_placed(p, element) for p in g.uniform)
    return replace(g, axis=axes.get(g.axis, g.axis), exponents=exponents, uniform=uniform)


def _placed(place: Place, element: Element) -> Place:
    return Place(element.source(place.block), place.leaf)


def _combinations(some: list[Generator]) -> Iterator[Generator]:
    """Products of generators of one axis and kind, and of their inverses: of few of them first."""
    sign = some[0].kind == "sign"
    powers = sorted(product((0, 1) if sign else (0, 1, -1), repeat=len(some)), key=lambda p: sum(map(abs, p)))
    for chosen in powers:
        total: dict[Place, float] = {}
        for power, g in zip(chosen, some, strict=True):
            for place, exponent in g.exponents if power else ():
                total[place] = total.get(place, 0.0) + power * exponent
        exponents = tuple((place, e % 2 if sign else e) for place, e in total.items())
        exponents = tuple((place, e) for place, e in exponents if e)
        if exponents:
            met = any(g.evaluation for power, g in zip(chosen, some, strict=True) if power)
            yield replace(some[0], exponents=exponents, evaluation=met)


def _rank(generators: list[Generator]) -> int:
    places = {place: k for k, place in enumerate(dict.fromkeys(p for g in generators for p, _ in g.exponents))}
    rows = np.zeros((len(generators), len(places)))
    for row, g in zip(rows, generators, strict=True):
        for place, exponent in g.exponents:
            row[places[place]] = exponent
    if generators[0].kind != "sign":
        return int(np.linalg.matrix_rank(rows))
    return len(reduce_bits([sum(1 << k for k, e in enumerate(row) if round(e) % 2) for row in rows]))


def _key(g: Generator) -> tuple[object, ...]:
    exponents = frozenset((p, round(e, 6)) for p, e in g.exponents)
    return g.axis, g.kind, g.evaluation, g.ones, g.proper, g.offset, exponents, frozenset(g.uniform)


def _renumbered(x: Exchange, before: Sequence[Generator], generators: Sequence[Generator]) -> Exchange | None:
    """An exchange found before, for generators in another order; None where one of its own is no longer there."""
    number: Mapping[object, int] = {_key(g): k for k, g in enumerate(generators)}
    if any(_key(before[k]) not in number for row in x.generators for k in row):
        return None
    return replace(x, generators=tuple(tuple(number[_key(before[k])] for k in row) for row in x.generators))
