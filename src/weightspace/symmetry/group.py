"""A symmetry group as data: its elements drawn and counted, its subgroups, and its notation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, permutations, product
from typing import TypeVar

import torch
from torch import Tensor

from weightspace.net.errors import SymmetryError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.symmetry.axis import KINDS, MATRICES, MOVES, Axis, Exchange
from weightspace.symmetry.element import Element
from weightspace.symmetry.fold import gains_of
from weightspace.symmetry.layout import Layout
from weightspace.symmetry.matrix import drawn

__all__ = ["Group", "SymmetryError"]


_G = TypeVar("_G", bound="Group")


def _kept(exchanges: Iterable[Exchange], generators: Sequence[int]) -> list[Exchange]:
    """The exchanges, numbered for these generators alone; those of others are left out."""
    number = {k: n for n, k in enumerate(generators)}
    whole = [x for x in exchanges if all(k in number for some in x.generators for k in some)]
    return [replace(x, generators=tuple(tuple(number[k] for k in some) for some in x.generators)) for x in whole]


def _shuffled(size: int, generator: torch.Generator) -> Tensor:
    """A random order, not the identity."""
    order, still = torch.randperm(size, generator=generator), torch.arange(size)
    while torch.equal(order, still):
        order = torch.randperm(size, generator=generator)
    return order


@public
class Group(Layout):
    """A symmetry group as data: axes, blocks, generators, and notes on what could not be read.

    `axes`: those that move. `notes`: operations that are not known. `pinned`: why indices of a parameter stay.
    `verified`: how the group was verified, or None. `gauge`: the scales and signs that `fold` uses to set gains to one;
    `free`: places that have no effect on the outputs, which it sets to zero. `exchanges`: parts that may be renumbered.
    Iterating gives the axes; `group[name]` one of them. Read one by `Symmetry.of`.
    """

    def without(self: _G, tensors: Iterable[str]) -> _G:
        """The subgroup that moves nothing in these tensors: axes that index one of them stay."""
        still = set(tensors)
        fixed = {name for name, met in self.places.items() if any(self.blocks[p.block].tensor in still for p in met)}
        every = [replace(axis, kinds=()) if axis.name in fixed else axis for axis in self.every]
        kept = [k for k, g in enumerate(self.generators) if g.axis not in fixed]
        blocks = {k for k, block in enumerate(self.blocks) if block.tensor in still}
        return self.again(
            every=every,
            generators=[self.generators[k] for k in kept],
            gauge=[g for g in self.gauge if g.axis not in fixed],
            free=[place for place in self.free if place.block not in blocks],
            exchanges=_kept([x for x in self.exchanges if not blocks & self.traded[x.name].keys()], kept),
        )

    def foldable(self: _G, *nets: Net) -> _G:
        """The subgroup without rotations that a gain of zero in one of these networks keeps from folding, with a note.

        A gain of zero loses what it multiplies, so that it cannot move into what reads it (see `fold`). Raises
        `SymmetryError` for a network of another architecture.

        >>> import torch
        >>> import weightspace as ws
        >>> net = ws.Net.of(torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2)))
        >>> group = ws.Symmetry.of(net, torch.randn(2, 3))
        >>> pruned = net.at(net.weights.replace({"1.weight": torch.tensor([0.0, *[1.0] * 7])}))
        >>> print(group, "|", group.foldable(net), "|", group.foldable(pruned))
        O7 | O7 | S8
        """
        stuck: dict[str, str] = {}
        for net in nets:
            self.check(net)
            gains = gains_of(self, net.tensors.__getitem__)
            met = (g for g in self.gauge if bool((gains[g.uniform[0]] == 0).any()))
            stuck |= {g.axis: self.blocks[g.uniform[0].block].tensor for g in met}
        if not stuck:
            return self
        kept = [k for k, g in enumerate(self.generators) if g.axis not in stuck or g.kind not in MATRICES]
        plain = {name: tuple(kind for kind in self[name].kinds if kind not in MATRICES) for name in stuck}
        return self.again(
            every=[replace(axis, kinds=plain.get(axis.name, axis.kinds)) for axis in self.every],
            generators=[self.generators[k] for k in kept],
            gauge=[g for g in self.gauge if g.axis not in stuck],
            exchanges=_kept(self.exchanges, kept),
            notes=[
                *self.notes,
                *(f"{axis} is not rotated: the gain {gain} is zero for some unit" for axis, gain in stuck.items()),
            ],  # fmt: skip
        )

    def identity(self) -> Element:
        """The identity element."""
        return Element(self, self.still())

    def sample(self, seed: int, kinds: str | Iterable[str] = MOVES, axes: Iterable[str] | None = None) -> Element:
        """A random element: uniform permutations (none the identity), log-normal scales, random signs and matrices.

        `kinds`: which of "permutation", "scale", "sign", "orthogonal", "linear" and "exchange" move; `axes`: the names
        of the axes and of the exchanges that do.
        """
        generator = torch.Generator().manual_seed(seed)
        chosen = {a.name for a in self.axes} if axes is None else set(axes)
        wanted = {kinds} if isinstance(kinds, str) else set(kinds)
        if unknown := wanted - set(MOVES):
            raise SymmetryError(f"unknown kind {unknown.pop()!r}; choose {', '.join(MOVES)}")
        tables = {}
        for axis in self.permutable():
            moving = "permutation" in wanted and axis.name in chosen
            tables[axis.name] = self._shuffle(axis, generator) if moving else self.in_order(axis)
        factors = {}
        for k, g in enumerate(self.generators):
            if g.kind in wanted and g.axis in chosen:
                sizes = self.sizes(self[g.axis])
                factors[k] = drawn(g, sizes, generator) if g.kind in MATRICES else self._draw(sizes, g.kind, generator)
        orders = {
            x.name: _shuffled(x.size, generator)
            for x in self.exchanges
            if "exchange" in wanted and (axes is None or x.name in chosen)
        }
        return Element(self, tables, factors, orders)

    def _shuffle(self, axis: Axis, generator: torch.Generator) -> Tensor:
        rows = math.prod(self.sizes(axis)[:-1])
        return torch.stack([_shuffled(axis.size, generator) for _ in range(rows)]).reshape(self.sizes(axis))

    def _draw(self, sizes: tuple[int, ...], kind: str, generator: torch.Generator) -> Tensor:
        if kind == "scale":
            return (0.5 * torch.randn(sizes, generator=generator, dtype=torch.float64)).exp()
        signs = 1.0 - 2.0 * torch.randint(0, 2, sizes, generator=generator, dtype=torch.float64)
        signs[..., 0] = -1.0
        return signs

    def isometries(self, most: int = 20_000) -> Iterator[Element]:
        """Every permutation, sign and exchange, the identity first. Raises `SymmetryError` for more than `most`."""
        if any(g.kind in MATRICES for g in self.generators):
            raise SymmetryError("matrices cannot all be tried; read the group with linear=False")
        copies = [(a, math.prod(self.sizes(a)[:-1])) for a in self.permutable()]
        signs = [(k, self.sizes(self[g.axis])) for k, g in enumerate(self.generators) if g.kind == "sign"]
        order = math.prod(math.factorial(a.size) ** n for a, n in copies) * 2 ** sum(math.prod(s) for _, s in signs)
        order *= math.prod(math.factorial(x.size) for x in self.exchanges)
        if order > most:
            raise SymmetryError(f"{float(order):.3g} permutations and signs are too many to try; at most {most:,} are")
        tables = [list(product(permutations(range(a.size)), repeat=n)) for a, n in copies]
        flips = [list(product((1.0, -1.0), repeat=math.prod(size))) for _, size in signs]
        parts = [list(permutations(range(x.size))) for x in self.exchanges]
        for chosen in product(*tables, *flips, *parts):
            moved = zip(copies, chosen, strict=False)
            traded = zip(self.exchanges, chosen[len(copies) + len(signs) :], strict=True)
            yield Element(
                self,
                {a.name: torch.tensor(rows).reshape(self.sizes(a)) for (a, _), rows in moved},
                {
                    k: torch.tensor(flip, dtype=torch.float64).reshape(size)
                    for (k, size), flip in zip(signs, chosen[len(copies) :], strict=False)
                },
                {x.name: torch.tensor(order) for x, order in traded},
            )

    @property
    def log10_order(self) -> float:
        """log10 of the number of permutations in the group, exchanges included."""
        sizes = [n for a in self.permutable() for n in [a.size] * math.prod(self.sizes(a)[:-1])]
        return sum(math.lgamma(n + 1) for n in [*sizes, *(x.size for x in self.exchanges)]) / math.log(10)

    def factors_of(self, axis: Axis) -> str:
        """One axis as a factor of the group: `S512 x R+512`."""
        count = {kind: sum(g.kind == kind and g.axis == axis.name for g in self.generators) for kind in KINDS}
        letters = [("S", "permutation" in axis.kinds), ("R+", count["scale"]), ("Z2^", count["sign"])]
        copies = math.prod(self.sizes(axis)[:-1])
        power = f"^{copies}" if copies > 1 else ""
        words = []
        for g in self.generators:
            if g.axis == axis.name and g.kind in MATRICES:  # permutations are among them
                letter = "GL" if g.kind == "linear" else "SO" if g.proper else "O"
                return f"{letter}{axis.size - g.ones}{power}"
        for letter, times in letters:
            if times:
                word = f"{letter}{axis.size}"
                words.append(f"({word}){power}" if power else word)
                if int(times) > 1:
                    words[-1] += f" [{int(times)} times]"
        return " x ".join(words)

    def __str__(self) -> str:
        if not self.axes and not self.exchanges:
            return "the trivial group"
        words = []
        for word, run in groupby(self.factors_of(axis) for axis in self.axes):
            times = len(list(run))
            words.append(word if times == 1 else f"[{word}]^{times}")
        words += [f"S{exchange.size}{{{exchange.name}}}" for exchange in self.exchanges]
        return " x ".join(words)

    def __repr__(self) -> str:
        return f"Symmetry({self})"
