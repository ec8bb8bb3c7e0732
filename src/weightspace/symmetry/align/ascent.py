"""Coordinate ascent over the permutations, signs and rotations of a group.

Definition. Given networks a and b, find g = (permutations, signs, orthogonal matrices) maximising sum_T <T(a), T(g b)>
over tensors T: either the weights themselves, both balanced first (all places of an axis count, biases and norms too),
or standardised activations on data. One axis at a time is a linear assignment; coordinate descent repeats until no axis
moves (Ainsworth, Hayase and Srinivasa, Git Re-Basin, 2023); families are solved exactly as assignments of assignments.
Axes that matrices move are orthogonal Procrustes problems in place of assignments (in the balanced gauge of `balance`,
a general linear move is determined up to an orthogonal one).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from weightspace.linear.assignment import assign, assign_many
from weightspace.symmetry.align.parity import best_value, chosen_signs
from weightspace.symmetry.align.terms import Terms
from weightspace.symmetry.axis import MATRICES, Axis, Block
from weightspace.symmetry.element import Element
from weightspace.symmetry.group import Group
from weightspace.symmetry.matrix import best_turn, turn_value, turned

__all__ = ["Matching", "coordinate_descent"]


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
        self.inner = {a.name: [z for z in self.axes if self._depends(z, a)] for a in self.axes}
        self.signs = {a.name: [k for k, g in enumerate(group.generators) if g.axis == a.name and g.kind == "sign"]
                      for a in self.axes}  # fmt: skip
        self.matrices = {g.axis: k for k, g in enumerate(group.generators) if g.kind in MATRICES}
        self.products: dict[str, float] = {}
        self.moved: dict[str, Tensor] = dict(terms.moving) if terms.kept and start is None else {}

    def _movable(self, axis: Axis) -> bool:
        return bool({"permutation", "sign", *MATRICES} & {*axis.kinds})

    def _depends(self, z: Axis, axis: Axis) -> bool:
        """Whether an axis is over another, and else only over those of it and over axes that stay, such as pairs."""
        own, movable = (*axis.over, axis.name), {a.name for a in self.axes}
        return z.over[: len(own)] == own and not movable & {*z.over[len(own) :]}

    def moving(self, name: str) -> Tensor:
        """A tensor of b with the current element applied."""
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
            self.group.view(block, target).copy_(turned(value, self._turns(element, block)))
        return target

    def _turns(self, element: Element, block: Block) -> list[tuple[Tensor, float, list[int]]]:
        met = [(leaf, self.matrices[name]) for leaf, name in enumerate(block.leaves) if name in self.matrices]
        found = [(leaf, element.factors[k]) for leaf, k in met if k in element.factors]
        return [(matrix, 1.0, self.group.dims_of(block, leaf)) for leaf, matrix in found]

    def objective(self, names: Iterable[str] | None = None) -> float:
        """sum <A, g B>, cached by tensor."""
        total = 0.0
        for name in self.fixed if names is None else names:
            if name not in self.products:
                self.products[name] = _inner(self.fixed[name], self.moving(name))
            total += self.products[name]
        return total

    def run(self, seed: int = 0, sweeps: int = 100) -> Element:
        """Sweep until no axis improves; only axes whose neighbours moved are solved again."""
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
        elif not self._better(names, element, 1e-6 if any(n in self.matrices for n in moved) else 1e-9):
            return False
        self.element = element
        return True

    def _better(self, names: Iterable[str], element: Element, least: float) -> bool:
        """Whether `element` is better on these tensors, by a fraction; if so, its tensors and products are kept."""
        old, products, moved = self.objective(names), {}, {}
        for name in names:
            value = self._move(name, element)
            products[name] = _inner(self.fixed[name], value)
            if self.terms.kept:
                moved[name] = value
        if sum(products.values()) <= old + least * abs(old):
            return False
        self.products.update(products)
        self.moved.update(moved)
        return True

    def _rows(self, tensor: Tensor, number: int, leaf: int) -> Tensor:
        """A block as (outer indices, units, rest)."""
        found = self.group.units(self.terms.blocks[number], leaf, tensor)
        return found.reshape(-1, *found.shape[-2:])

    def _gram(self, axis: Axis) -> _Gain:
        grams = _merged(
            (self._parity(n, leaf), self._rows(self.fixed[name], n, leaf) @ self._rows(self.moving(name), n, leaf).mT)
            for n, leaf in self.of_axis[axis.name]
            for name in [self.terms.blocks[n].tensor]
        )
        return _Gain.of(grams, bool(self.signs[axis.name]))

    def _alone(self, axis: Axis) -> tuple[Element | None, bool]:
        gain = self._gram(axis)
        if axis.name in self.matrices:
            return self._turn(axis, gain.plain)
        table = self._assignment(axis, gain.best)
        chosen = gain.best.gather(2, table[..., None].to(gain.best.device))[..., 0].double()
        now = torch.diagonal(gain.plain, dim1=1, dim2=2).double()
        if float(chosen.sum() - now.sum()) <= 1e-6 * float(chosen.abs().sum()):
            return None, True
        return self._element({axis.name: table}, gain.flips(table)), not self._twice(axis)

    def _turn(self, axis: Axis, gram: Tensor) -> tuple[Element | None, bool]:
        """The best orthogonal matrix of every row of an axis."""
        k = self.matrices[axis.name]
        matrix = best_turn(gram, self.group.generators[k])
        gained = (matrix * gram.double()).sum() - torch.diagonal(gram, dim1=1, dim2=2).double().sum()
        if float(gained) <= 1e-6 * float((matrix * gram.double()).sum().abs()):
            return None, True
        sizes = self.group.sizes(axis)
        delta = Element(self.group, self.group.identity().permutations, {k: matrix.reshape(*sizes, axis.size)})
        return delta, not self._twice(axis)

    def polish(self, sweeps: int = 10) -> Element:
        """Solve every matrix again, however little is gained, until none moves."""
        for _ in range(sweeps):
            largest = 0.0
            for axis in (self.group[name] for name in self.matrices if name in self.of_axis):
                k, sizes = self.matrices[axis.name], self.group.sizes(axis)
                matrix = best_turn(self._gram(axis).plain, self.group.generators[k])
                largest = max(largest, float((matrix - torch.eye(axis.size)).abs().max()))
                turn = {k: matrix.reshape(*sizes, axis.size)}
                self.element = Element(self.group, self.group.identity().permutations, turn) @ self.element
                for name in {self.terms.blocks[n].tensor for n, _ in self.of_axis[axis.name]}:
                    self.products.pop(name, None)
                    self.moved.pop(name, None)
            if largest < 1e-6:
                break
        return self.element

    def _assignment(self, axis: Axis, best: Tensor) -> Tensor:
        """The best permutation of every row of an axis."""
        if "permutation" not in axis.kinds:
            return torch.arange(axis.size).expand(best.shape[:2]).clone()
        if len(best) > 1:
            return torch.as_tensor(assign_many(best))
        return torch.as_tensor(assign(best[0]))[None]

    def _element(self, tables: dict[str, Tensor], flips: dict[int, Tensor]) -> Element:
        permutations, factors = {}, {}
        for name, table in tables.items():
            axis = self.group[name]
            if "permutation" in axis.kinds:
                permutations[name] = table.reshape(self.group.sizes(axis))
        for k, bits in flips.items():
            axis = self.group[self.group.generators[k].axis]
            factors[k] = 1.0 - 2.0 * bits.cpu().double().reshape(self.group.sizes(axis))
        return Element(self.group, permutations, factors)

    def _with_inner(self, axis: Axis, inner: list[Axis]) -> tuple[Element | None, bool]:
        """Assign units of an outer axis, each pair at the value of its own best inner assignments and signs."""
        tried, free = self.signs[axis.name][:_TRIED], frozenset(self.signs[axis.name][_TRIED:])
        worth, code = torch.stack(self._pair_values(axis, inner, tried, free)).max(0)
        outer = self._assignment(axis, worth)
        code = code.gather(2, outer[..., None])[..., 0]
        flips = {k: (code >> i & 1).bool() for i, k in enumerate(tried)}
        if free:
            flips |= self._free_signs(axis, inner, outer, flips, free)
        tables = {axis.name: outer}
        turns: dict[int, Tensor] = {}
        for z in inner:
            gain = _Gain.of(_by_own(self._chosen_pairs(axis, z, outer, flips), frozenset()), bool(self.signs[z.name]))
            if z.name in self.matrices:
                k = self.matrices[z.name]
                turns[k] = best_turn(gain.plain, self.group.generators[k]).reshape(*self.group.sizes(z), z.size)
                continue
            tables[z.name] = self._best_order(z, gain.best)
            flips |= gain.flips(tables[z.name])
        delta = self._element(tables, flips)
        still = self.group.identity().permutations
        if turns:
            return Element(self.group, {**still, **delta.permutations}, {**delta.factors, **turns}), False
        same = all(torch.equal(t, still[n]) for n, t in delta.permutations.items())
        if same and all(bool((f > 0).all()) for f in delta.factors.values()):
            return None, True
        return delta, False

    def _pair_values(self, axis: Axis, inner: list[Axis], tried: list[int], free: frozenset[int]) -> list[Tensor]:
        """value[row, h, g] of putting b's outer index g at a's h, for every choice of the signs that are tried.

        Signs in `free`, which are too many to try, count as if every inner unit had its own.
        """
        options = [_chosen(tried, code) for code in range(1 << len(tried))]
        direct = self._outer_grams(axis, inner)
        values = [best_value(_merged((p & free, _turned(g, p & on)) for p, g in direct.items())) for on in options]
        for z in inner:
            pairs = self._all_pairs(axis, z)
            signed = bool(self.signs[z.name] or free)
            for i, on in enumerate(options):
                turned = {(p, own): _turned(gram, p & on) for (p, own), gram in pairs.items()}
                best = _Gain.of(_by_own(turned, free), signed).best
                flat = best.flatten(0, 3)
                if z.name in self.matrices:
                    worth = turn_value(flat, self.group.generators[self.matrices[z.name]]).to(flat)
                else:
                    worth = flat.gather(2, self._best_order(z, flat)[..., None])[..., 0].sum(-1)
                values[i] = values[i] + worth.reshape(best.shape[:4]).sum(-1)
        return values

    def _free_signs(
        self, axis: Axis, inner: list[Axis], outer: Tensor, flips: dict[int, Tensor], free: frozenset[int]
    ) -> dict[int, Tensor]:
        """The best of the signs that were not tried, for the pairs that were chosen."""
        totals = [
            (p & free, _signed(gram.gather(2, outer[..., None])[..., 0], p, flips))
            for p, gram in self._outer_grams(axis, inner).items()
        ]
        for z in inner:
            if z.name in self.matrices:
                continue
            pairs = self._chosen_pairs(axis, z, outer, flips)
            gain = _Gain.of(_by_own(pairs, free), True)
            table = self._best_order(z, gain.best)
            own = gain.flips(table)
            for (p, parity), gram in pairs.items():
                each = gram.gather(2, table[..., None])[..., 0]
                each = each.abs() if parity is None else _signed(each, parity, own)
                totals.append((p & free, each.sum(-1).reshape(*outer.shape, -1).sum(-1)))
        return chosen_signs(_merged(totals))

    def _best_order(self, z: Axis, best: Tensor) -> Tensor:
        return torch.as_tensor(assign_many(best)) if "permutation" in z.kinds else _still(best)

    def _outer_grams(self, axis: Axis, inner: list[Axis]) -> dict[frozenset[int], Tensor]:
        """Of the blocks that hold the outer axis alone, by the signs that flip it."""
        held = {n for z in inner for n, _ in self.of_axis[z.name]}
        rows = math.prod(self.group.sizes(axis)[:-1])
        grams = [(frozenset[int](), torch.zeros(rows, axis.size, axis.size))]
        for n, leaf in self.of_axis[axis.name]:
            if n not in held:
                name = self.terms.blocks[n].tensor
                gram = self._rows(self.fixed[name], n, leaf) @ self._rows(self.moving(name), n, leaf).mT
                grams.append((self._parity(n, leaf) or frozenset(), gram))
        return _merged(grams)

    def _parity(self, number: int, leaf: int) -> frozenset[int] | None:
        parity = self.terms.parities[number]
        return None if parity is None else parity.get(leaf, frozenset())

    def _all_pairs(self, axis: Axis, z: Axis) -> _Pairs:
        """By the signs of either axis, [row, h, g, between, x, y]: unit y of b's outer index g at unit x of a's h."""
        return _merged((key, torch.einsum("rhpxk,rgpyk->rhgpxy", a, b)) for key, a, b in self._families(axis, z))

    def _chosen_pairs(self, axis: Axis, z: Axis, outer: Tensor, flips: dict[int, Tensor]) -> _Pairs:
        """By the signs of either axis, [row and h and between, x, y]: of the outer indices that were chosen."""
        found = []
        for (p, own), a, b in self._families(axis, z):
            b = b.gather(1, outer[..., None, None, None].expand(b.shape))
            odd = {k: f[..., None, None, None] for k, f in flips.items()}
            gram = _signed(torch.einsum("rhpxk,rhpyk->rhpxy", a, b), p, odd)
            found.append(((p, own), gram.flatten(0, 2)))
        return _merged(found)

    def _families(self, axis: Axis, z: Axis) -> Iterator[tuple[_Key, Tensor, Tensor]]:
        """Blocks of an inner axis as [row, outer, between, inner, rest], of a and b, by the signs of either axis."""
        between = math.prod(self.group[name].size for name in z.over[len(axis.over) + 1 :])
        for number, leaf in self.of_axis[z.name]:
            block = self.terms.blocks[number]
            a, b = (self._rows(t, number, leaf) for t in (self.fixed[block.tensor], self.moving(block.tensor)))
            shape = (-1, axis.size, between, z.size)
            outer = self._parity(number, block.leaves.index(axis.name)) or frozenset()
            yield (outer, self._parity(number, leaf)), a.reshape(*shape, a.shape[-1]), b.reshape(*shape, b.shape[-1])


_TRIED = 4  # signs of an outer axis of which every choice is tried
_Parity: TypeAlias = frozenset[int] | None
_Key: TypeAlias = tuple[frozenset[int], _Parity]
_Pairs: TypeAlias = dict[_Key, Tensor]
_K = TypeVar("_K")


def _chosen(signs: list[int], code: int) -> frozenset[int]:
    return frozenset(k for i, k in enumerate(signs) if code >> i & 1)


def _merged(terms: Iterable[tuple[_K, Tensor]]) -> dict[_K, Tensor]:
    """Terms of one key added up."""
    found: dict[_K, Tensor] = {}
    for key, term in terms:
        found[key] = found[key] + term if key in found else term
    return found


def _by_own(pairs: _Pairs, free: frozenset[int]) -> dict[_Parity, Tensor]:
    """By the signs of the inner axis, with those of the outer one that are free to it."""
    return _merged((None if own is None else own | (p & free), gram) for (p, own), gram in pairs.items())


def _turned(gram: Tensor, odd: frozenset[int]) -> Tensor:
    return -gram if len(odd) % 2 else gram


def _signed(values: Tensor, parity: frozenset[int], flips: Mapping[int, Tensor]) -> Tensor:
    """Values with the sign that flips of some generators give a set of them."""
    for k in parity & flips.keys():
        values = torch.where(flips[k], -values, values)
    return values


@dataclass
class _Gain:
    """`best[.., x, y]`: value of unit y at x with the best signs; `plain`: with none flipped; `terms`: by signs."""

    best: Tensor
    plain: Tensor
    terms: dict[frozenset[int], Tensor]

    @classmethod
    def of(cls, grams: Mapping[_Parity, Tensor], signed: bool) -> _Gain:
        plain = sum(grams.values(), torch.zeros(()))
        if not signed:
            return cls(plain, plain, {})
        if None in grams:
            return cls(plain.abs(), plain.abs(), {})
        terms = {p: gram for p, gram in grams.items() if p is not None}
        return cls(best_value(terms), plain, terms)

    def flips(self, table: Tensor) -> dict[int, Tensor]:
        """Which signs to flip along a permutation."""
        along = {p: gram.gather(2, table[..., None].to(gram.device))[..., 0] for p, gram in self.terms.items()}
        return chosen_signs(along) if along else {}


def _still(best: Tensor) -> Tensor:
    return torch.arange(best.shape[-1]).expand(best.shape[:-1]).clone()


# --- weights ---------------------------------------------------------------------------------------------------------


def _inner(a: Tensor, b: Tensor) -> float:
    pairs = zip(a.flatten().split(1 << 20), b.flatten().split(1 << 20), strict=True)
    return sum(float(torch.dot(x, y)) for x, y in pairs)


def coordinate_descent(group: Group, terms: Terms, start: Element | None = None, seed: int = 0) -> Element:
    """The element at which no single axis can be improved."""
    return Matching(group, terms, start).run(seed)
