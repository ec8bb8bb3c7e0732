"""Networks of two widths, unit by unit: which unit of the narrow network every unit of the wide one is taken to copy.

A semi-permutation is a table s from the units of the wide network onto those of the narrow one, with shares of what
reads them (see `widths`). Of two architectures the narrow network is widened by the table under which its units are
nearest those of the wide one: an assignment of rectangles, every unit of the narrow network at least once (Theus et
al., "Generalized linear mode connectivity for transformers", 2025, align networks of two widths likewise).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightspace.linear.assignment import assign
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.symmetry.axis import Axis, Place
from weightspace.symmetry.widths import Widening, widening

__all__ = ["narrow_toward", "widen_toward"]


_SWEEPS, _ROUNDS = 8, 30


@public
def widen_toward(net: Net, to: Net, example: Any, seed: int = 0) -> Net:
    """The same function in the wider architecture of `to`, its units copied and in the order of those of `to`.

    One axis at a time, from a table drawn from `seed`, every unit of `to` gets the unit of `net` whose weights point
    most nearly the same way, with every unit of `net` at least once; shares are those nearest the weights of `to`.
    Where `to` is a widened copy of `net` with its units permuted, the result is `to`. Raises `WeightspaceError` as
    `widen` does.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> wide = ws.widen(net, 2, task.example(2))
    >>> copy = ws.Symmetry.of(wide, task.example(2)).sample(seed=1, kinds="permutation")(wide)
    >>> found = ws.symmetry.widen_toward(net, copy, task.example(2))
    >>> round(float((found - copy).norm()), 3)
    0.0
    """
    found = _fitted(net, to, example, seed)
    if trouble := found.difference(net, example):
        raise WeightspaceError(f"the aligned wide network is not the same function ({trouble}); please report it")
    return found.of(net)


@public
def narrow_toward(net: Net, to: Net, example: Any, seed: int = 0) -> Net:
    """`net` in the narrower architecture of `to`: units that stand for the same unit of `to` are merged into one.

    With the table s and the shares c of `widen_toward(to, net)`, unit j gets sum_{s(i)=j} c_i v_i of what makes the
    units i, and sum_{s(i)=j} r_i of what reads them. The function of a widened network comes back, that of any other
    network changes: fit it to the outputs of `net` (see `narrow`). Raises `WeightspaceError` as `widen` does.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> wide = ws.widen(net, 2, task.example(2))
    >>> found = ws.symmetry.narrow_toward(wide, net, task.example(2))
    >>> round(float((found - net).norm()), 3)
    0.0
    """
    return _fitted(to, net, example, seed).narrowed(net, to)


def _fitted(net: Net, to: Net, example: Any, seed: int) -> Widening:
    """The widening of `net` that brings it nearest `to`, from a table drawn from `seed`."""
    return _Fit(widening(net, to, example).drawn("copies", seed).checked(net, example), net, to).run()


class _Fit:
    """Coordinate descent over the tables of the axes that grow."""

    def __init__(self, start: Widening, net: Net, to: Net) -> None:
        self.narrow, self.wide = net.double().tensors, to.double().tensors
        self.axes = sorted(start.large.axes, key=lambda axis: len(axis.over))
        tables = {a.name: torch.arange(a.size).expand(start.large.sizes(a)).clone() for a in self.axes}
        shares = {name: torch.ones_like(table, dtype=torch.float64) for name, table in tables.items()}
        self.now = replace(start, tables={**tables, **start.tables}, shares={**shares, **start.shares})
        self.learnt = net.weights.keys()
        self.inside = {axis.name: [z for z in self.axes if axis.name in z.over] for axis in self.axes}

    def run(self) -> Widening:
        """The tables at which no axis improves."""
        settled = {axis.name for axis in self.now.large.every} - {axis.name for axis in self.axes}
        for axis in self._in_order(set(settled)):
            self.improve(axis, settled)
            settled.add(axis.name)
        for _ in range(_SWEEPS):
            if not any([self.improve(axis, settled) for axis in self.axes]):
                break
        for _ in range(_ROUNDS):
            before = self.now.shares
            for axis in self.axes:
                self._share(axis, self._places(axis))
            if all(torch.allclose(before[n], share, rtol=0, atol=1e-10) for n, share in self.now.shares.items()):
                break
        return self.now

    def _in_order(self, settled: set[str]) -> list[Axis]:
        """The axes, each after those through which it is compared where that can be."""
        left, found = list(self.axes), []
        while left:
            best = max(left, key=lambda axis: self._known(axis, settled))
            left.remove(best)
            settled.add(best.name)
            found.append(best)
        return found

    def _known(self, axis: Axis, settled: set[str]) -> float:
        places = self._places(axis)
        return sum(self._usable(place, axis, settled) for place in places) / max(len(places), 1)

    def _places(self, axis: Axis) -> list[Place]:
        blocks = self.now.large.blocks
        return [place for place in self.now.large.places[axis.name] if blocks[place.block].tensor in self.learnt]

    def _usable(self, place: Place, axis: Axis, settled: set[str]) -> bool:
        leaves = [leaf for leaf in self.now.large.blocks[place.block].leaves if isinstance(leaf, str)]
        return leaves.count(axis.name) == 1 and {*leaves} - {axis.name} <= settled

    def improve(self, axis: Axis, settled: set[str]) -> bool:
        """Give an axis its best table and shares, as seen at places of settled axes; whether the table changed."""
        places = [p for p in self._places(axis) if self._usable(p, axis, settled)] or self._places(axis)
        written, read = self._split(axis, places)
        gain = sum((_cosines(*_joined(pairs)) for pairs in (written, read) if pairs), torch.zeros(()))
        if self.inside[axis.name]:
            gain = gain + self._with_inside(axis)
        if gain.dim() != 3:
            return False
        even = axis.name in self.now.readers.even
        table = torch.stack([_semi_permutation(rows, even)[0] for rows in gain])
        before, after = self.now.tables[axis.name], table.reshape(self.now.large.sizes(axis))
        self.now = replace(self.now, tables={**self.now.tables, axis.name: after})
        self._share(axis, places)
        return not torch.equal(before, after)

    def _with_inside(self, axis: Axis) -> Tensor:
        """The value of every unit for every other, at the best tables of the axes inside of them."""
        total = torch.zeros(())
        for z in self.inside[axis.name]:
            if z.over != (axis.name,):
                continue
            for pairs in self._split(z, self._places(z), axis.name):
                if not pairs:
                    continue
                wide, narrow = _joined(pairs)
                gains = _cosines(wide[:, None], narrow[None])
                total = (
                    total + torch.stack([torch.stack([_semi_permutation(g)[1] for g in row]) for row in gains])[None]
                )
        return total

    def _split(self, axis: Axis, places: list[Place], outer: str = "") -> tuple[list[_Pair], list[_Pair]]:
        """Blocks of both networks at places that write an axis and at those that read it."""
        pairs = [(self._reads(p, axis), self._pair(p, axis, outer)) for p in places if self._once(p, axis)]
        written, read = ([pair for r, pair in pairs if r == reads and pair is not None] for reads in (False, True))
        return written, read

    def _once(self, place: Place, axis: Axis) -> bool:
        return self.now.large.blocks[place.block].leaves.count(axis.name) == 1

    def _reads(self, place: Place, axis: Axis) -> bool:
        return place in self.now.readers.places.get(axis.name, ())

    def _pair(self, place: Place, axis: Axis, outer: str = "") -> _Pair | None:
        """A block of both networks as (outer.., units, rest), the narrow one widened along the other axes.

        `outer`: an axis along which it is not widened either; None where the rest does not fit then.
        """
        apart = {axis.name, outer}
        kept = {n: t for n, t in self.now.tables.items() if n not in apart and not {*self.now.large[n].over} & apart}
        pair = self._blocks(place, replace(self.now, tables=kept))
        if pair is None:
            return None
        size = pair[1].square().mean().sqrt().clamp(min=1e-30)
        return pair[0] / size, pair[1] / size

    def _blocks(self, place: Place, part: Widening) -> _Pair | None:
        """A block of the wide network and one of the narrow network under some tables, as (outer.., units, rest)."""
        block, large = self.now.large.blocks[place.block], self.now.large
        source = self.narrow[block.tensor].contiguous()
        value = part.gathered(self.now.small.view(self.now.small.blocks[place.block], source), block)
        for leaf, name in enumerate(block.leaves):
            if name in part.tables:
                value = part.weighted(value, place.block, leaf, block)
        wide = large.view(block, self.wide[block.tensor].contiguous())
        lead = large.dims_of(block, place.leaf)
        rest = [d for d in range(value.dim()) if d not in lead]
        if [wide.shape[d] for d in rest] != [value.shape[d] for d in rest]:
            return None
        wide, value = (
            t.permute([*lead, *rest]).reshape(-1, t.shape[place.leaf], _count(t, rest)) for t in (wide, value)
        )
        return wide, value

    def _share(self, axis: Axis, places: list[Place]) -> None:
        """Set the shares of an axis to those with sum one that bring the network nearest to the wide one.

        c_i = p_i + (1 - sum p) / k for the k copies of a unit, with p_i the multiple of its reader that is nearest. Of
        tied weights p_i is the square of the multiple, and c_i = p_i / sum p.
        """
        sizes = self.now.large.sizes(axis)
        table = self.now.tables[axis.name].reshape(-1, axis.size)
        zero = torch.zeros(len(table), self.now.small[axis.name].size, dtype=torch.float64)
        total = lambda each: zero.scatter_add(1, table, each).gather(1, table)  # noqa: E731
        bare = replace(self.now, shares={**self.now.shares, axis.name: torch.ones(sizes, dtype=torch.float64)})
        met = [(self._reads(p, axis), self._blocks(p, bare)) for p in places if self._once(p, axis)]
        written, read = ([pair for r, pair in met if r == reads and pair is not None] for reads in (False, True))
        if axis.name in self.now.rooted:
            share = _multiples([*written, *read], table).square().clamp(min=1e-6)
            share = share / total(share)
        else:
            own = _multiples(read, table)
            if written:
                wide, narrow = (t.norm(dim=-1) for t in _joined(written))
                own = own * wide / narrow.clamp(min=1e-30)
            share = own + (1 - total(own)) / total(torch.ones_like(own))
        self.now = replace(self.now, shares={**self.now.shares, axis.name: share.reshape(sizes)})


_Pair: TypeAlias = tuple[Tensor, Tensor]


def _multiples(pairs: list[_Pair], table: Tensor) -> Tensor:
    """The multiples of the rows of second tensors that are nearest those of the first ones."""
    if not pairs:
        return torch.zeros_like(table, dtype=torch.float64)
    wide, narrow = _joined(pairs)
    return (wide * narrow).sum(-1) / narrow.square().sum(-1).clamp(min=1e-30)


def _count(tensor: Tensor, dims: list[int]) -> int:
    return math.prod(tensor.shape[d] for d in dims)


def _joined(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([a for a, _ in pairs], -1), torch.cat([b for _, b in pairs], -1)


def _cosines(wide: Tensor, narrow: Tensor) -> Tensor:
    """Of every unit of the wide network and every unit of the narrow one, row by row."""
    a, b = (t / t.norm(dim=-1, keepdim=True).clamp(min=1e-30) for t in (wide, narrow))
    return a @ b.mT


def _semi_permutation(gain: Tensor, even: bool = False) -> tuple[Tensor, Tensor]:
    """The table s onto the columns that maximises sum_i gain[i, s(i)], and that sum.

    Each column is taken once or more; equally often if `even`. An exact assignment of squares: one place for every
    column, and places that take the best column of their row.
    """
    rows, columns = gain.shape
    if even:
        table = torch.as_tensor(assign(gain.repeat(1, rows // columns))) % columns
    else:
        best, where = gain.max(1)
        slot = torch.as_tensor(assign(torch.cat([gain, best[:, None].expand(rows, rows - columns)], 1)))
        table = torch.where(slot < columns, slot, where)
    return table, gain.gather(1, table[:, None]).sum()
