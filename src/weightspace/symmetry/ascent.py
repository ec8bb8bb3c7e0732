"""Coordinate ascent over the permutations and signs of a group.

Definition. Given networks a and b, find g = (permutations, signs) maximising sum_T <T(a), T(g b)> over tensors T:
either the weights themselves, both balanced first (all places of an axis count, biases and norms too), or standardised
activations on data. One axis at a time is a linear assignment; coordinate descent repeats until no axis moves
(Ainsworth, Hayase and Srinivasa, Git Re-Basin, 2023); families are solved exactly as assignments of assignments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from weightspace.net import Net
from weightspace.symmetry.assignment import assign, assign_many
from weightspace.symmetry.group import Axis, Block, Element, Group

__all__ = ["Matching", "Terms", "coordinate_descent", "weight_terms"]


@dataclass
class Terms:
    """Pairs of tensors to be brought together: `fixed` of a, `moving` of b, and the blocks in which axes are met.

    `parities[k][leaf]` is the set of sign generators that flip that leaf of block k; None where signs do not show.
    Tensors that are not in a dict are made again whenever they are needed: nothing of their size is kept.
    """

    blocks: list[Block]
    parities: list[dict[int, frozenset[int]] | None]
    fixed: Mapping[str, Tensor]
    moving: Mapping[str, Tensor]

    @property
    def kept(self) -> bool:
        """Whether all tensors are held in memory."""
        return isinstance(self.moving, dict)


class Matching:
    """Coordinate ascent on sum_blocks <A, g B>, one axis at a time."""

    def __init__(self, group: Group, terms: Terms, start: Element | None = None) -> None:
        self.group, self.terms = group, terms
        self.element = start or group.identity()
        self.fixed = terms.fixed
        self.of_tensor: dict[str, list[int]] = {}
        self.of_axis: dict[str, list[tuple[int, int]]] = {}
        for number, block in enumerate(terms.blocks):
            self.of_tensor.setdefault(block.tensor, []).append(number)
            for leaf, name in enumerate(block.leaves):
                if isinstance(name, str) and group[name].kinds:
                    self.of_axis.setdefault(name, []).append((number, leaf))
        self.axes = [a for a in group.axes if a.name in self.of_axis and self._movable(a)]
        self.inner = {a.name: [z for z in self.axes if z.over == (*a.over, a.name)] for a in self.axes}
        self.signs = {a.name: [k for k, g in enumerate(group.generators) if g.axis == a.name and g.kind == "sign"]
                      for a in self.axes}  # fmt: skip
        self.products: dict[str, float] = {}
        self.moved: dict[str, Tensor] = dict(terms.moving) if terms.kept and start is None else {}

    def _movable(self, axis: Axis) -> bool:
        return "permutation" in axis.kinds or "sign" in axis.kinds

    def moving(self, name: str) -> Tensor:
        """A tensor of b where it stands now."""
        if name in self.moved:
            return self.moved[name]
        value = self._move(name, self.element)
        if self.terms.kept:
            self.moved[name] = value
        return value

    def _move(self, name: str, element: Element) -> Tensor:
        source = self.terms.moving[name]
        target = torch.empty_like(source)
        for number in self.of_tensor[name]:
            block, parity = self.terms.blocks[number], self.terms.parities[number]
            value = element._gather(self.group.view(block, source), block.leaves)
            for leaf, flips in (parity or {}).items():
                for k in flips & element.factors.keys():
                    value = value * self.group.spread(element.factors[k].to(value), block, leaf)
            self.group.view(block, target).copy_(value)
        return target

    def objective(self, names: Iterable[str] | None = None) -> float:
        """sum <A, g B>, remembered by tensor."""
        total = 0.0
        for name in self.fixed if names is None else names:
            if name not in self.products:
                self.products[name] = _inner(self.fixed[name], self.moving(name))
            total += self.products[name]
        return total

    def run(self, seed: int = 0, sweeps: int = 100) -> Element:
        """Until no axis can be improved; only axes whose neighbours moved are solved again."""
        generator = np.random.default_rng(seed)
        dirty = {axis.name for axis in self.axes}
        for _ in range(sweeps):
            order = [a for a in self.axes if a.name in dirty]
            if not order:
                break
            for i in generator.permutation(len(order)):
                axis = order[int(i)]
                dirty.discard(axis.name)
                if self.improve(axis):
                    dirty |= self._neighbours(axis)
        return self.element

    def _neighbours(self, axis: Axis) -> set[str]:
        met = {axis.name, *(z.name for z in self.inner[axis.name])}
        names = {self.terms.blocks[n].tensor for m in met for n, _ in self.of_axis.get(m, ())}
        near = {leaf for name in names for n in self.of_tensor[name] for leaf in self.terms.blocks[n].leaves}
        return {a.name for a in self.axes if a.name in near and (a is not axis or self._twice(axis))}

    def _twice(self, axis: Axis) -> bool:
        numbers = [n for n, _ in self.of_axis[axis.name]]
        return len(numbers) != len(set(numbers))

    def improve(self, axis: Axis) -> bool:
        """Move one axis (and what depends on it) to its best place; True if anything moved."""
        inner = self.inner[axis.name]
        delta, certain = self._with_inner(axis, inner) if inner else self._alone(axis)
        if delta is None:
            return False
        moved = {axis.name, *(z.name for z in inner)}
        names = {self.terms.blocks[n].tensor for m in moved for n, _ in self.of_axis[m]}
        element = delta @ self.element
        if certain:
            for name in names:
                self.products.pop(name, None)
                self.moved.pop(name, None)
        elif not self._better(names, element):
            return False
        self.element = element
        return True

    def _better(self, names: Iterable[str], element: Element) -> bool:
        """Whether `element` is better where it differs; its tensors and products are kept if so."""
        old, products, moved = self.objective(names), {}, {}
        for name in names:
            value = self._move(name, element)
            products[name] = _inner(self.fixed[name], value)
            if self.terms.kept:
                moved[name] = value
        if sum(products.values()) <= old + 1e-9 * abs(old):
            return False
        self.products.update(products)
        self.moved.update(moved)
        return True

    def _rows(self, tensor: Tensor, number: int, leaf: int) -> Tensor:
        """A block as (outer indices, units, rest)."""
        block = self.terms.blocks[number]
        value = self.group.view(block, tensor)
        axis = self.group[str(block.leaves[leaf])]
        lead = [*(block.leaves.index(o) for o in axis.over), leaf]
        rest = [k for k in range(value.dim()) if k not in lead]
        return value.permute([*lead, *rest]).reshape(math.prod(self.group.sizes(axis)[:-1]), axis.size, -1)

    def _gram(self, axis: Axis) -> _Gain:
        grams: dict[frozenset[int] | None, Tensor] = {}
        for number, leaf in self.of_axis[axis.name]:
            parity = self.terms.parities[number]
            key = None if parity is None else parity.get(leaf, frozenset())
            name = self.terms.blocks[number].tensor
            gram = self._rows(self.fixed[name], number, leaf) @ self._rows(self.moving(name), number, leaf).mT
            grams[key] = grams[key] + gram if key in grams else gram
        return _Gain.of(grams, self.signs[axis.name])

    def _alone(self, axis: Axis) -> tuple[Element | None, bool]:
        gain = self._gram(axis)
        table = self._assignment(axis, gain.best)
        chosen = gain.best.gather(2, table[..., None])[..., 0].double()
        now = torch.diagonal(gain.plain, dim1=1, dim2=2).double()
        if float(chosen.sum() - now.sum()) <= 1e-6 * float(chosen.abs().sum()):
            return None, True
        return self._element({axis.name: table}, {axis.name: gain.flips(table)}), not self._twice(axis)

    def _assignment(self, axis: Axis, best: Tensor) -> Tensor:
        """The best permutation of every row of an axis."""
        if "permutation" not in axis.kinds:
            return torch.arange(axis.size).expand(best.shape[:2]).clone()
        if len(best) > 1:
            return torch.as_tensor(assign_many(best))
        return torch.as_tensor(assign(best[0]))[None]

    def _element(self, tables: dict[str, Tensor], flips: dict[str, Tensor | None]) -> Element:
        permutations, factors = {}, {}
        for name, table in tables.items():
            axis = self.group[name]
            if "permutation" in axis.kinds:
                permutations[name] = table.reshape(self.group.sizes(axis))
            bits = flips.get(name)
            if bits is not None:
                for i, k in enumerate(self.signs[name]):
                    factors[k] = 1.0 - 2.0 * (bits >> i & 1).double().reshape(self.group.sizes(axis))
        return Element(self.group, permutations, factors)

    def _with_inner(self, axis: Axis, inner: list[Axis]) -> tuple[Element | None, bool]:
        """Assign units of an outer axis, each pair at the value of its own best inner assignments and signs."""
        own = self.signs[axis.name][:4]
        options = [self._pair_values(axis, inner, _chosen(own, code)) for code in range(1 << len(own))]
        worth, code = torch.stack([value for value, _ in options]).max(0)
        outer = self._assignment(axis, worth)
        flips: dict[str, Tensor | None] = {axis.name: code.gather(2, outer[..., None]).squeeze(2) if own else None}
        tables = {axis.name: outer}
        for z in inner:
            at = outer[..., None, None].expand(*outer.shape, 1, z.size)
            picks = code.gather(2, outer[..., None])[None, ..., None].expand(1, *at.shape)

            def pick(solved: list[Tensor], at: Tensor = at, picks: Tensor = picks) -> Tensor:
                rows = torch.stack([table.gather(2, at) for table in solved])
                return rows.gather(0, picks)[0].squeeze(2).flatten(0, 1)

            tables[z.name] = pick([solved[z.name][0] for _, solved in options])
            signed = bool(self.signs[z.name]) and options[0][1][z.name][1] is not None
            flips[z.name] = pick([solved[z.name][1] for _, solved in options]) if signed else None  # type: ignore[misc]
        delta = self._element(tables, flips)
        still = self.group.identity().permutations
        same = all(torch.equal(t, still[n]) for n, t in delta.permutations.items())
        if same and all(bool((f > 0).all()) for f in delta.factors.values()):
            return None, True
        return delta, False

    def _pair_values(
        self, axis: Axis, inner: list[Axis], on: frozenset[int]
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor | None]]]:
        """value[row, h, g] of putting b's outer index g at a's h with the signs `on`, and the inner moves for it."""
        held = {n for z in inner for n, _ in self.of_axis[z.name]}
        rows = math.prod(self.group.sizes(axis)[:-1])
        value = torch.zeros(rows, axis.size, axis.size)
        for n, leaf in self.of_axis[axis.name]:
            if n not in held:
                name = self.terms.blocks[n].tensor
                gram = self._rows(self.fixed[name], n, leaf) @ self._rows(self.moving(name), n, leaf).mT
                value = value + self._parity(n, leaf, on) * gram
        solved: dict[str, tuple[Tensor, Tensor | None]] = {}
        for z in inner:
            gain = self._pairs(axis, z, on)
            shape = (rows, axis.size, axis.size, z.size)
            flat = gain.reshaped(math.prod(shape[:3]), z.size)
            table = torch.as_tensor(assign_many(flat.best)) if "permutation" in z.kinds else _still(flat.best)
            value = value + flat.best.gather(2, table[..., None])[..., 0].sum(-1).reshape(shape[:3])
            bits = flat.flips(table)
            solved[z.name] = (table.reshape(shape), None if bits is None else bits.reshape(shape))
        return value, solved

    def _parity(self, number: int, leaf: int, on: frozenset[int]) -> float:
        parity = self.terms.parities[number]
        return -1.0 if parity is not None and len(on & parity.get(leaf, frozenset())) % 2 else 1.0

    def _pairs(self, axis: Axis, z: Axis, on: frozenset[int]) -> _Gain:
        """gain[row, h, g, x, y]: unit y of b's outer index g put at unit x of a's outer index h."""
        grams: dict[frozenset[int] | None, Tensor] = {}
        for number, leaf in self.of_axis[z.name]:
            block, parity = self.terms.blocks[number], self.terms.parities[number]
            key = None if parity is None else parity.get(leaf, frozenset())
            shape = (-1, axis.size, z.size)
            a, b = (self._rows(t, number, leaf) for t in (self.fixed[block.tensor], self.moving(block.tensor)))
            a, b = a.reshape(*shape, a.shape[-1]), b.reshape(*shape, b.shape[-1])
            gram = self._parity(number, block.leaves.index(axis.name), on) * torch.einsum("rhxk,rgyk->rhgxy", a, b)
            grams[key] = grams[key] + gram if key in grams else gram
        return _Gain.of(grams, self.signs[z.name])


def _chosen(signs: list[int], code: int) -> frozenset[int]:
    return frozenset(k for i, k in enumerate(signs) if code >> i & 1)


@dataclass
class _Gain:
    """`best[.., x, y]`: value of unit y at x with the best signs; `plain`: with none flipped; `bits`: which to flip."""

    best: Tensor
    plain: Tensor
    bits: Tensor | None

    @classmethod
    def of(cls, grams: dict[frozenset[int] | None, Tensor], signs: list[int]) -> _Gain:
        plain = sum(grams.values(), torch.zeros(()))
        if not signs:
            return cls(plain, plain, None)
        if None in grams:
            return cls(plain.abs(), plain.abs(), None)
        best, bits = plain, torch.zeros(plain.shape, dtype=torch.int64)
        if len(signs) <= 4:
            for flip in product((0, 1), repeat=len(signs)):
                best, bits = _keep(best, bits, _flipped(grams, signs, flip), sum(f << i for i, f in enumerate(flip)))
            return cls(best, plain, bits)
        for _ in range(2):  # too many to try them all: one after the other
            for i in range(len(signs)):
                other = sum(_signed(g, parity or frozenset(), signs, bits ^ (1 << i)) for parity, g in grams.items())
                better = other > best
                best, bits = torch.where(better, other, best), torch.where(better, bits ^ (1 << i), bits)
        return cls(best, plain, bits)

    def flips(self, table: Tensor) -> Tensor | None:
        """The bits along a permutation."""
        return None if self.bits is None else self.bits.gather(2, table[..., None])[..., 0]

    def reshaped(self, rows: int, size: int) -> _Gain:
        """One row for every pair of outer indices."""
        bits = None if self.bits is None else self.bits.reshape(rows, size, size)
        return _Gain(self.best.reshape(rows, size, size), self.plain.reshape(rows, size, size), bits)


def _still(best: Tensor) -> Tensor:
    return torch.arange(best.shape[-1]).expand(best.shape[:-1]).clone()


def _keep(best: Tensor, bits: Tensor, other: Tensor, code: int) -> tuple[Tensor, Tensor]:
    better = other > best
    return torch.where(better, other, best), torch.where(better, torch.full_like(bits, code), bits)


def _flipped(grams: dict[frozenset[int] | None, Tensor], signs: list[int], flip: tuple[int, ...]) -> Tensor:
    on = {k for k, f in zip(signs, flip, strict=True) if f}
    return sum((-g if len(on & (p or frozenset())) % 2 else g for p, g in grams.items()), torch.zeros(()))


def _signed(gram: Tensor, parity: frozenset[int], signs: list[int], bits: Tensor) -> Tensor:
    odd = torch.zeros_like(bits)
    for i, k in enumerate(signs):
        if k in parity:
            odd = odd ^ (bits >> i & 1)
    return gram * (1 - 2 * odd)


# --- weights ---------------------------------------------------------------------------------------------------------


_SMALL = 1 << 23  # numbers


def weight_terms(group: Group, a: Net, b: Net, onto: Element | None = None, into: Element | None = None) -> Terms:
    """Terms of onto(a) and into(b), whose scales must be balanced: every parameter that an axis touches."""
    names = [name for name in group.tensors if name in a.weights]
    numbers = [k for k, block in enumerate(group.blocks) if block.tensor in set(names)]
    signs: dict[tuple[int, int], set[int]] = {}
    for k, generator in enumerate(group.generators):
        if generator.kind == "sign":
            for place, _ in generator.exponents:
                signs.setdefault((place.block, place.leaf), set()).add(k)
    parities = [
        {leaf: frozenset(signs.get((n, leaf), ())) for leaf in range(len(group.blocks[n].leaves))} for n in numbers
    ]
    fixed, moving = _Made(names, _reader(a, onto)), _Made(names, _reader(b, into))
    small = sum(a.weights[name].numel() for name in names) <= _SMALL
    pair = (dict(fixed), dict(moving)) if small else (fixed, moving)
    return Terms([group.blocks[n] for n in numbers], list(parities), *pair)


class _Made(Mapping[str, Tensor]):
    """Tensors that are made when they are asked for."""

    def __init__(self, names: list[str], make: Callable[[str], Tensor]) -> None:
        self._names, self._make = names, make

    def __getitem__(self, name: str) -> Tensor:
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _reader(net: Net, element: Element | None) -> Callable[[str], Tensor]:
    def make(name: str) -> Tensor:
        tensor = net.weights[name].detach().float()
        return (tensor if element is None else element.move(name, tensor)).contiguous()

    return make


def _inner(a: Tensor, b: Tensor) -> float:
    pairs = zip(a.flatten().split(1 << 20), b.flatten().split(1 << 20), strict=True)
    return sum(float(torch.dot(x, y)) for x, y in pairs)


def coordinate_descent(group: Group, terms: Terms, start: Element | None = None, seed: int = 0) -> Element:
    """The element at which no single axis can be improved."""
    return Matching(group, terms, start).run(seed)
