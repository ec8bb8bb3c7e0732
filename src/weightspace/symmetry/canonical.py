"""The canonical form of a network: one representative per orbit, its units sorted by a key.

Every hidden unit x has a vector v_x, the entries of the tensors that produce it (those which hold the axis in their
leading dimension). Units are sorted by a key f(v_x), after scales are balanced and signs fixed:

    "first"   the first coordinate, ties broken by the second, and so on
    "norm"    |v_x| over every place of the unit, incoming and outgoing; ties by the sum of fourth powers
    "mean"    the mean of v_x
    "linear"  <v*, v_x> for one fixed pseudo-random v*
    callable  any function of the rows V (units x coordinates), one number per unit

Members of exchanges are sorted first, by norms and moments whatever the key: see `members`. Axes that matrices move are
turned to the eigenvectors of their second moments: see `upright`.

Sources: Sorensen, Machine learning, math, and generalization; Rueger and Ossen, The metric structure of
weight space, 1997.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from weightspace.net.errors import SymmetryError, WeightspaceError
from weightspace.net.net import Net
from weightspace.symmetry.axis import MATRICES, Axis, Place
from weightspace.symmetry.balance import balancing
from weightspace.symmetry.element import Element
from weightspace.symmetry.fold import fold
from weightspace.symmetry.group import Group
from weightspace.symmetry.members import canonical_order
from weightspace.symmetry.upright import upright

__all__ = ["Key", "canonical", "canonical_element"]


Key: TypeAlias = Literal["first", "norm", "mean", "linear"] | Callable[[Tensor], Tensor]
_DIGITS = 9
_TOLD = 1e-9


def canonical(group: Group, net: Net, key: Key = "norm") -> Net:
    """The canonical form of `net`: idempotent, and the same for every member of the orbit.

    Computed in float64. Raises `SymmetryError` where the key is not well defined on an axis: "first", "linear" and
    callables read coordinates, which a unit whose own coordinates can move (a residual stream, a recurrent weight)
    lacks.
    """
    net = fold(group, net)
    return canonical_element(group, net, key)(net)


def canonical_element(group: Group, net: Net, key: Key = "norm") -> Element:
    """The element that takes `net` to its canonical form."""
    group.check(net)
    bad = net.weights.unusable()
    if bad:
        raise WeightspaceError(f"{bad[0]} holds NaN or infinity; there is no representative")
    if group.exchanges:
        order = canonical_order(group, fold(group, net))
        found = canonical_element(group.again(exchanges=()), order(fold(group, net)), key)
        return Element(group, found.permutations, found.factors) @ order
    if any(g.kind in MATRICES for g in group.generators):
        return upright(group, fold(group, net), lambda rest, turned: _Canon(rest, turned, key).run())
    return _Canon(group, net, key).run()


class _Canon:
    def __init__(self, group: Group, net: Net, key: Key) -> None:
        self.group, self.key = group, key
        self.element = balancing(group, net.tensors, tolerance=1e-13, sweeps=2000, strict=True)
        self.start = {n: net.tensors[n] for n in group.telling(net)}
        self.start = {n: t.double() if t.is_floating_point() else t for n, t in self.start.items()}
        self.tensors: dict[str, Tensor] = {}
        self._apply(self.element)
        self.fixed: set[str] = set()

    def _apply(self, element: Element) -> None:
        self.tensors = {n: element.move(n, tensor) for n, tensor in self.start.items()}

    def run(self) -> Element:
        signed = [g.axis for g in self.group.generators if g.kind == "sign"]
        left = self._each([self.group[n] for n in dict.fromkeys(signed)], self._fix_signs)
        axes = sorted(self.group.permutable(), key=lambda a: -len(a.over))
        if left:
            for axis in axes:
                self._sort(axis, "norm")
            self._fix_together(left)
        self.fixed = set()
        if left := self._each(axes, self._sort):
            raise SymmetryError(
                f"the key {self.key!r} is not well defined on {left[0].name}: the coordinates of its units can move "
                'themselves (a residual stream or a recurrent weight); choose key="norm" or "mean"'
            )
        return self.element

    def _each(self, axes: list[Axis], act: Callable[[Axis], bool]) -> list[Axis]:
        """Act on every axis once the axes that index its rows are settled; return those left over."""
        waiting = list(axes)
        while waiting:
            done = [axis for axis in waiting if act(axis)]
            if not done:
                break
            self.fixed |= {axis.name for axis in done}
            waiting = [axis for axis in waiting if axis not in done]
        return waiting

    def _own(self, axis: Axis) -> list[Place]:
        """Places in the leading dimension of a parameter: the weights that produce the unit."""
        places = [p for p in self.group.places[axis.name] if self.group.blocks[p.block].tensor in self.tensors]
        own = [p for p in places if self.group.blocks[p.block].dims[p.leaf] == 0]
        return own or places

    def _rows(self, place: Place) -> Tensor:
        """A block as (outer indices.., units, coordinates)."""
        block = self.group.blocks[place.block]
        return self.group.units(block, place.leaf, self.tensors[block.tensor])

    def _settled(self, axis: Axis, place: Place, kind: str) -> bool:
        """Whether all other coordinates of a place stay where they are."""
        block = self.group.blocks[place.block]
        for leaf, name in enumerate(block.leaves):
            if leaf == place.leaf or not isinstance(name, str) or kind not in self.group[name].kinds:
                continue
            carried = name in axis.over and kind == "permutation"  # an outer unit takes its inner ones with it
            if name == axis.name or (name not in self.fixed and not carried):
                return False
        return True

    def _fix_signs(self, axis: Axis) -> bool:
        """Flip so that as many places as there are generators have positive sums of cubes (algebra modulo two)."""
        signs = [k for k, g in enumerate(self.group.generators) if g.axis == axis.name and g.kind == "sign"]
        rows: dict[int, tuple[int, Tensor]] = {}
        met = dict.fromkeys(p for k in signs for p, _ in self.group.generators[k].exponents)
        for place in met:
            if self.group.blocks[place.block].tensor not in self.tensors or not self._settled(axis, place, "sign"):
                continue
            entries = self._rows(place)
            total, size = entries.pow(3).sum(-1), entries.abs().pow(3).sum(-1)
            if not bool((total.abs() > _TOLD * size).all()):
                continue
            parity = sum(1 << i for i, k in enumerate(signs) if place in dict(self.group.generators[k].exponents))
            _eliminate(rows, parity, total < 0)
        if len(rows) < len(signs):
            return False
        factors = {signs[top]: 1.0 - 2.0 * bits.double() for top, (_, bits) in rows.items()}
        self._push(Element(self.group, self.group.identity().permutations, factors))
        return True

    def _fix_together(self, axes: list[Axis]) -> None:
        """Fix signs that multiply one another in every weight where they occur, once the units are in order.

        The entries of the tensors are visited in order; one whose sign does not follow from those before is made
        positive. Flips that no entry determines are left out.
        """
        names = {axis.name for axis in axes}
        signs = [k for k, g in enumerate(self.group.generators) if g.kind == "sign" and g.axis in names]
        first, count = {}, 0
        for k in signs:
            first[k] = count
            count += math.prod(self.group.sizes(self.group[self.group.generators[k].axis]))
        system = _Parities()
        for number, block in enumerate(self.group.blocks):
            met = {leaf: [k for k, _ in self.group.exponents_at.get((number, leaf), ()) if k in first]
                   for leaf in range(len(block.leaves))}  # fmt: skip
            if any(met.values()) and block.tensor in self.tensors:
                self._equations(system, number, met, first)
        bits = system.solution(count)
        factors = {}
        for k in signs:
            sizes = self.group.sizes(self.group[self.group.generators[k].axis])
            mine = bits[first[k] : first[k] + math.prod(sizes)]
            factors[k] = 1.0 - 2.0 * torch.tensor(mine, dtype=torch.float64).reshape(sizes)
        self._push(Element(self.group, self.group.identity().permutations, factors))

    def _equations(self, system: _Parities, number: int, met: dict[int, list[int]], first: dict[int, int]) -> None:
        """One equation for every nonzero entry of a block, summed over the leaves that have no such sign."""
        block = self.group.blocks[number]
        value = self.group.view(block, self.tensors[block.tensor])
        held = {leaf for leaf, signs in met.items() if signs}
        held |= {block.leaves.index(o) for leaf in held for o in self.group[str(block.leaves[leaf])].over}
        gone = [d for d in range(value.dim()) if d not in held]
        cubes, size = (v.sum(gone, keepdim=True) if gone else v for v in (value.pow(3), value.abs().pow(3)))
        cubes = torch.where(cubes.abs() > _TOLD * size, cubes, torch.zeros_like(cubes))
        numbers: list[Tensor] = []
        for leaf, signs in met.items():
            for k in signs:
                sizes = self.group.sizes(self.group[str(block.leaves[leaf])])
                index = first[k] + torch.arange(math.prod(sizes)).reshape(sizes)
                numbers.append(self.group.spread(index, block, leaf).expand(cubes.shape).flatten())
        rows = torch.stack(numbers, -1).tolist()
        for row, cube in zip(rows, cubes.flatten().tolist(), strict=True):
            if cube:
                system.add(row, cube < 0)

    def _sort(self, axis: Axis, key: Key | None = None) -> bool:
        values = self._values(axis, self.key if key is None else key)
        if values is None:
            return False
        flat = values.reshape(-1, axis.size, values.shape[-1])
        orders = [np.lexsort([_rounded(c) for c in reversed(row.T.numpy())]) for row in flat.cpu()]
        table = torch.as_tensor(np.stack(orders)).reshape(self.group.sizes(axis))
        self._push(Element(self.group, {**self.group.identity().permutations, axis.name: table}))
        return True

    def _push(self, delta: Element) -> None:
        self.element = delta @ self.element
        self._apply(self.element)

    def _values(self, axis: Axis, key: Key) -> Tensor | None:
        """Sort keys of shape (outer.., units, columns), the most significant column first; None: not known yet."""
        if key == "norm":
            places = [p for p in self.group.places[axis.name] if self.group.blocks[p.block].tensor in self.tensors]
            squares = [self._rows(p).square() for p in places]
            # units that nothing enters, or nothing reads, all have norm one: the fourth powers tell them apart
            powers = [sum((s.pow(n).sum(-1) for s in squares), torch.zeros(())) for n in (1, 2)]
            return torch.stack([power.sqrt() for power in powers], -1)
        own = self._own(axis)
        if key == "mean":
            total = sum((self._sorted_sum(p) for p in own), torch.zeros(()))
            return (total / sum(self._rows(p).shape[-1] for p in own))[..., None]
        if not all(self._settled(axis, p, "permutation") for p in own):
            return None
        rows = torch.cat([self._rows(p) for p in own], -1)
        if key == "first":
            return rows
        if callable(key):
            out = key(rows)
            if not isinstance(out, Tensor) or out.shape != rows.shape[:-1]:
                raise WeightspaceError(f"a key must give one number per unit, shape {tuple(rows.shape[:-1])}")
            return out.double()[..., None]
        generator = torch.Generator().manual_seed(0)
        return (rows @ torch.randn(rows.shape[-1], generator=generator, dtype=torch.float64))[..., None]

    def _sorted_sum(self, place: Place) -> Tensor:
        """A sum that does not depend on the order of its terms."""
        return self._rows(place).sort(-1).values.sum(-1)


def _eliminate(rows: dict[int, tuple[int, Tensor]], parity: int, odd: Tensor) -> None:
    """Add the equation <parity, c> = odd to a reduced system, keyed by its leading bit."""
    for top, (other, bits) in rows.items():
        if parity >> top & 1:
            parity, odd = parity ^ other, odd ^ bits
    if not parity:
        return
    lead = parity.bit_length() - 1
    for top, (other, bits) in rows.items():
        if other >> lead & 1:
            rows[top] = (other ^ parity, bits ^ odd)
    rows[lead] = (parity, odd)


class _Parities:
    """A system of equations modulo two; one that contradicts those before it is left out."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[int, bool]] = {}

    def add(self, unknowns: Sequence[int], odd: bool) -> None:
        """Add the equation: the sum of some unknowns is `odd`."""
        row = 0
        for k in unknowns:
            row ^= 1 << k
        while row and row.bit_length() - 1 in self.rows:
            other, bit = self.rows[row.bit_length() - 1]
            row, odd = row ^ other, odd ^ bit
        if row:
            self.rows[row.bit_length() - 1] = (row, odd)

    def solution(self, count: int) -> list[bool]:
        """The solution in which all free unknowns are zero."""
        found, known = [False] * count, 0
        for top in sorted(self.rows):
            row, odd = self.rows[top]
            found[top] = odd ^ bool((row & known).bit_count() % 2)
            known |= found[top] << top
        return found


def _rounded(column: np.ndarray) -> np.ndarray:
    """Rounded, so that numbers which differ by rounding error alone are ties."""
    scale = np.abs(column).max(initial=0.0) or 1.0
    return np.round(column / scale, _DIGITS)
