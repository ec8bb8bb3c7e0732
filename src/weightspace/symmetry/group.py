"""A symmetry group as data, and the action of its elements on weights.

An `Axis` is a set of units that can move. A `Block` says where it occurs: a strided view of one tensor with one leaf,
an axis or a plain size, per dimension of the view. A `Generator` is a factor on the units of one axis. An `Exchange` is
a set of parts whose blocks trade their contents. An `Element` holds a permutation for every axis, factors or a matrix
for every generator, and an order of the parts, which acts first; it acts linearly:
(g w)[.., x, ..] = prod_k f_k[x]^e_k w[.., p[x], ..], or sum_y M[x, y] w[.., p[y], ..].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, permutations, product
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from weightspace.net.errors import SymmetryError
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.symmetry.axis import KINDS, MATRICES, MOVES, Axis, Block, Exchange, Generator, Place, place_axes
from weightspace.symmetry.fold import copied, factors_between, gains_of, kept_values, multiplied, values_at
from weightspace.symmetry.matrix import drawn, inverse, turned

__all__ = ["Element", "Group", "SymmetryError"]


_G = TypeVar("_G", bound="Group")


@public(grad=False)
@dataclass(frozen=True)
class Element:
    """One element g of the group: a permutation of every axis, then factors for its scales and signs, or matrices.

    `permutations[axis]` has shape (outer sizes.., size): unit x of the result is unit p[.., x] of the argument;
    `factors[k]`, of the same shape, belongs to generator k; a matrix has the shape (outer sizes.., size, size).
    `exchanges[name]`: member i of an exchange is member p[i] of the argument; those that stay may be left out.
    `g(net)`, `g(weights)`, `g.inverse()`, `g @ h`. Raises `SymmetryError` for a network of another architecture.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> group = ws.Symmetry.of(net, task.example(2))
    >>> g = group.sample(seed=0)
    >>> round(float((g.inverse()(g(net)) - net).norm()), 3), (g @ g.inverse()).difference(group.identity())
    (0.0, 0.0)
    """

    group: Group
    permutations: Mapping[str, Tensor]
    factors: Mapping[int, Tensor] = field(default_factory=dict)
    exchanges: Mapping[str, Tensor] = field(default_factory=dict)

    @overload
    def __call__(self, point: Net) -> Net: ...
    @overload
    def __call__(self, point: Weights) -> Weights: ...
    def __call__(self, point: Net | Weights) -> Net | Weights:
        """The action g w. A Net moves with its buffers; Weights move linearly.

        Rotations act where the gains of norms are one: a Net is folded, turned, and unfolded to the gains that it had.
        """
        if not isinstance(point, Weights):
            self.group.check(point)
            move = self.on(point)
            return Net(point.architecture, self._moved(point.weights, move), self._moved(point.state, move))
        return self._moved(point, lambda name, tensor: self.move(name, tensor, point.__getitem__))

    def _moved(self, point: Weights, move: Callable[[str, Tensor], Tensor]) -> Weights:
        new = point.clone()
        for name in self.group.tensors:
            if name in new:
                new[name].copy_(move(name, point[name]))
        return new

    def on(self, net: Net, like: Net | None = None) -> Callable[[str, Tensor], Tensor]:
        """The action on a network, tensor by tensor: a function of a name and the tensor of that name.

        With `like`, gains of norms that can be folded and places without effect become those of that network.
        """
        turned = {place for k in self.factors for place in self.group.generators[k].uniform if self.is_matrix(k)}
        if like is None and all(_is_uniform(values_at(self.group, net, place)) for place in turned):
            return partial(self.move, others=net.tensors.__getitem__) if self.exchanges else self.move
        gains = gains_of(self.group, net.tensors.__getitem__)
        order = Element(self.group, self.permutations, {}, self.exchanges)
        ordered = lambda name: order.move(name, net.tensors[name], net.tensors.__getitem__)  # noqa: E731
        tensors = like.tensors.__getitem__ if like is not None else ordered
        before = factors_between(self.group, gains, None)
        even = {place: torch.ones_like(gain) for place, gain in gains.items()}
        after = factors_between(self.group, even, gains_of(self.group, tensors))
        values = kept_values(self.group, like)

        def folded(name: str, tensor: Tensor) -> Tensor:
            wide = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
            return multiplied(self.group, name, wide, before)

        others = (lambda name: folded(name, net.tensors[name])) if self.exchanges else None  # or the network is kept

        def move(name: str, tensor: Tensor) -> Tensor:
            moved = self.move(name, folded(name, tensor), others)
            return copied(self.group, name, multiplied(self.group, name, moved, after), values).to(tensor.dtype)

        return move

    def move(self, name: str, tensor: Tensor, others: Callable[[str], Tensor] | None = None) -> Tensor:
        """The action on the one tensor of that name; `others`: the tensors of other names, which exchanges need."""
        self.group.expect(name, tensor)
        source = tensor.detach().contiguous()
        target = torch.empty_like(source)
        for number, block in self.group.blocks_of(name):
            place = self.group.view(block, target)
            self._gather(self._content(number, source, others), block.leaves, place)
            for leaf in range(len(block.leaves)):
                factor = self._factor(number, leaf)
                if factor is not None:
                    place.mul_(self.group.spread(factor.to(place), block, leaf))
            if turns := self._turns(number, block):
                place.copy_(turned(place, turns))
        return target

    def _content(self, number: int, source: Tensor, others: Callable[[str], Tensor] | None) -> Tensor:
        """A view of the block from which exchanges take the content of block `number`, a part of `source`."""
        block, own = self.group.blocks[self.source(number)], self.group.blocks[number].tensor
        if block.tensor != own:
            if others is None:
                raise SymmetryError(f"{own} takes the place of {block.tensor}, which must be given too")
            source = others(block.tensor).detach().to(source).contiguous()
        return self.group.view(block, source)

    def source(self, number: int) -> int:
        """The number of the block from which exchanges take the content of block `number`."""
        for name, order in self.exchanges.items():
            if number in self.group.traded[name]:
                blocks, members = self.group.traded[name][number]
                number = blocks[tuple(int(order[i]) for i in members)]
        return number

    def _traded(self, other: Element) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """Permutations and factors of another element as they act after the exchanges of this: at the new member."""
        new, scaled = dict(other.permutations), dict(other.factors)
        for name, order in self.exchanges.items():
            exchange = self.group.exchange(name)
            new = _renumbered(new, exchange.axes, order)
            scaled = _renumbered(scaled, exchange.generators, order)
        return new, scaled

    def _turns(self, number: int, block: Block) -> list[tuple[Tensor, float, list[int]]]:
        """The matrices that act on a block, their exponents, and the dimensions (outer.., own) that they act on."""
        return [
            (self.factors[k], exponent, self.group.dims_of(block, leaf))
            for leaf in range(len(block.leaves))
            for k, exponent in self.group.exponents_at.get((number, leaf), ())
            if k in self.factors and self.is_matrix(k)
        ]

    def _gather(self, value: Tensor, leaves: tuple[str | int, ...], out: Tensor | None = None) -> Tensor:
        """A view of a block with its units in their new places, written to `out` if that is given."""
        order = sorted(
            (k for k, axis in enumerate(leaves) if axis in self.permutations),
            key=lambda k: len(self.group[str(leaves[k])].over),
        )
        for k in order:
            name, to = str(leaves[k]), out if k == order[-1] else None
            table = self.permutations[name].to(value.device)
            if not self.group[name].over:
                value = torch.index_select(value, k, table, out=to)
                continue
            at = [leaves.index(outer) for outer in self.group[name].over]
            value = torch.gather(value, k, place_axes(table, [*at, k], value.dim()).expand(value.shape), out=to)
        return value if order or out is None else out.copy_(value)

    def _factor(self, block: int, leaf: int) -> Tensor | None:
        total = None
        for k, exponent in self.group.exponents_at.get((block, leaf), ()):
            if k in self.factors and self.group.generators[k].kind not in MATRICES:
                power = self.factors[k] ** exponent
                total = power if total is None else total * power
        return total

    def inverse(self) -> Element:
        """The inverse element g^-1."""
        if self.exchanges:
            first = Element(self.group, {}, {}, {name: order.argsort() for name, order in self.exchanges.items()})
            return first @ Element(self.group, self.permutations, self.factors).inverse()
        tables: dict[str, Tensor] = {}
        for axis in sorted(self.group.every, key=lambda a: len(a.over)):
            if axis.name in self.permutations:
                back = Element(self.group, tables)
                tables[axis.name] = back._outer(axis, self.permutations[axis.name].argsort(-1))
        back = Element(self.group, tables)
        factors = {k: back._carried(k, inverse(f) if self.is_matrix(k) else 1 / f) for k, f in self.factors.items()}
        return Element(self.group, tables, factors)

    def __matmul__(self, other: Element) -> Element:
        """The product: (g h) w = g (h w)."""
        traded, scaled = self._traded(other)
        tables = dict(self.permutations)
        for name, table in traded.items():
            tables[name] = self._carry(name, table)
        factors = dict(self.factors)
        for k, factor in scaled.items():
            moved = self._carried(k, factor)
            if k in factors:
                moved = factors[k] @ moved if self.is_matrix(k) else factors[k] * moved
            factors[k] = moved
        orders = dict(self.exchanges)
        for name, order in other.exchanges.items():
            orders[name] = order[orders[name]] if name in orders else order
        return Element(self.group, tables, factors, orders)

    def is_matrix(self, k: int) -> bool:
        """Whether generator k moves by matrices."""
        return self.group.generators[k].kind in MATRICES

    def _carried(self, k: int, factor: Tensor) -> Tensor:
        """Factors or matrices of generator k, moved as the weights move."""
        axis = self.group[self.group.generators[k].axis]
        return self._gather(factor, (*axis.over, *[axis.name] * (2 if self.is_matrix(k) else 1)))

    def _carry(self, name: str, table: Tensor) -> Tensor:
        """Move an array indexed by (outer axes.., axis) as the weights move."""
        axis = self.group[name]
        return self._gather(table, (*axis.over, name))

    def _outer(self, axis: Axis, table: Tensor) -> Tensor:
        return self._gather(table, (*axis.over, axis.size))

    def difference(self, other: Element) -> float:
        """Fraction of units, and of members of exchanges, that the two elements send to different places."""
        wrong = total = 0
        for exchange in self.group.exchanges:
            still = torch.arange(exchange.size)
            mine, theirs = (g.exchanges.get(exchange.name, still) for g in (self, other))
            wrong, total = wrong + int((mine != theirs).sum()), total + exchange.size
        for name, table in self.permutations.items():
            theirs = other.permutations.get(name, self.group.identity().permutations[name])
            wrong += int((table != theirs).sum())
            total += table.numel()
        return wrong / max(total, 1)

    def __repr__(self) -> str:
        still = self.group.identity().permutations
        moved = sum(int((t != still[n]).sum()) for n, t in self.permutations.items())
        traded = sum(int((order != torch.arange(len(order))).sum()) for order in self.exchanges.values())
        also = f", {traded} parts exchanged" if traded else ""
        return f"Element({moved} units permuted, {len(self.factors)} of {len(self.group.generators)} factors{also})"


_K = TypeVar("_K", str, int)


def _renumbered(values: Mapping[_K, Tensor], classes: Iterable[Sequence[_K]], order: Tensor) -> dict[_K, Tensor]:
    """Values at the members of every class, moved as an order moves the members."""
    new = dict(values)
    for members in classes:
        for i, member in enumerate(members):
            new.pop(member, None)
            if (source := members[int(order[i])]) in values:
                new[member] = values[source]
    return new


def _is_uniform(gain: Tensor) -> bool:
    return float(gain.max() - gain.min()) <= 1e-12 * float(gain.abs().max())


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


def _rank(rows: Iterable[int]) -> int:
    """The rank of bit rows, modulo two."""
    basis: list[int] = []
    for row in rows:
        for other in basis:
            row = min(row, row ^ other)
        basis += [row] if row else []
    return len(basis)


@public
class Group:
    """A symmetry group as data: axes, blocks, generators, and notes on what could not be read.

    `axes`: those that move. `notes`: operations that are not known. `pinned`: why indices of a parameter stay.
    `verified`: how the group was verified, or None. `gauge`: the scales and signs that `fold` uses to set gains to one;
    `free`: places that have no effect on the outputs, which it sets to zero. `exchanges`: parts that may be renumbered.
    Iterating gives the axes; `group[name]` one of them. Read one by `Symmetry.of`.
    """

    def __init__(
        self,
        every: Iterable[Axis],
        blocks: Iterable[Block],
        generators: Iterable[Generator] = (),
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        *,
        state: Iterable[str] = (),
        notes: Iterable[str] = (),
        pinned: Mapping[str, str] | None = None,
        fingerprint: str = "",
        verified: Mapping[str, Any] | None = None,
        gauge: Iterable[Generator] = (),
        free: Iterable[Place] = (),
        exchanges: Iterable[Exchange] = (),
    ) -> None:
        self.every = tuple(every)
        self.blocks = tuple(blocks)
        self.generators = tuple(generators)
        self.shapes = dict(shapes or {})
        self.state = tuple(state)
        self.notes = tuple(notes)
        self.pinned = dict(pinned or {})
        self.fingerprint = fingerprint
        self.verified = dict(verified) if verified else None
        self.gauge, self.free = tuple(gauge), tuple(free)
        self.exchanges = tuple(exchanges)
        self._axes = {axis.name: axis for axis in self.every}
        self._index()

    def _index(self) -> None:
        self._blocks: dict[str, list[tuple[int, Block]]] = {}
        self.places: dict[str, list[Place]] = {axis.name: [] for axis in self.every}
        for number, block in enumerate(self.blocks):
            self._blocks.setdefault(block.tensor, []).append((number, block))
            for leaf, axis in enumerate(block.leaves):
                if isinstance(axis, str):
                    self.places[axis].append(Place(number, leaf))
        self.exponents_at: dict[tuple[int, int], list[tuple[int, float]]] = {}
        for k, generator in enumerate(self.generators):
            for place, exponent in generator.exponents:
                self.exponents_at.setdefault((place.block, place.leaf), []).append((k, exponent))
        self.traded = {x.name: {b: (dict(found), at) for found in x.blocks for at, b in found} for x in self.exchanges}
        moving, traded = {axis.name for axis in self.axes}, {b for found in self.traded.values() for b in found}
        self.tensors = [
            n for n, found in self._blocks.items() if any(k in traded or moving & set(b.leaves) for k, b in found)
        ]

    def exchange(self, name: str) -> Exchange:
        """The exchange of that name."""
        return next(exchange for exchange in self.exchanges if exchange.name == name)

    def again(self: _G, **changed: Any) -> _G:
        """The same group but for some of its parts."""
        parts = {
            "every": self.every, "blocks": self.blocks, "generators": self.generators, "shapes": self.shapes,
            "state": self.state, "notes": self.notes, "pinned": self.pinned, "fingerprint": self.fingerprint,
            "verified": self.verified, "gauge": self.gauge, "free": self.free, "exchanges": self.exchanges,
        }  # fmt: skip
        return type(self)(**{**parts, **changed})

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

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes that move."""
        return tuple(axis for axis in self.every if axis.kinds)

    def __iter__(self) -> Iterator[Axis]:
        return iter(self.axes)

    def __len__(self) -> int:
        return len(self.axes)

    def __getitem__(self, name: str) -> Axis:
        if name not in self._axes:
            raise SymmetryError(f"no axis {name!r}; the axes are {', '.join(a.name for a in self.axes[:8])}")
        return self._axes[name]

    def sizes(self, axis: Axis) -> tuple[int, ...]:
        """Shape of a table on this axis: sizes of the outer axes, then its own."""
        return (*(self[outer].size for outer in axis.over), axis.size)

    def permutable(self) -> list[Axis]:
        """Axes with permutations, outer ones first."""
        return sorted((a for a in self.axes if "permutation" in a.kinds), key=lambda a: len(a.over))

    def blocks_of(self, name: str) -> list[tuple[int, Block]]:
        """The numbered blocks of a tensor."""
        return self._blocks.get(name, [])

    def moved(self, name: str) -> set[int]:
        """The dimensions of a tensor that some moving axis indexes."""
        moving = {axis.name for axis in self.axes}
        return {d for _, b in self.blocks_of(name) for leaf, d in zip(b.leaves, b.dims, strict=True) if leaf in moving}

    def telling(self, net: Net) -> list[str]:
        """Names of the tensors that determine where a network is in its orbit.

        Parameters that move, and the buffers of an axis whose order or signs the parameters alone do not determine (a
        sign between two frozen factors).
        """
        shown = {place: self.blocks[place.block].tensor in net.weights for met in self.places.values() for place in met}
        only: set[str] = set()
        for axis in self.axes:
            places = self.places[axis.name]
            signs = [dict(g.exponents) for g in self.generators if (g.axis, g.kind) == (axis.name, "sign")]
            rows = [sum(1 << i for i, p in enumerate(places) if p in met and shown[p]) for met in signs]
            if _rank(rows) < len(rows) or not any(shown[p] for p in places):
                only |= {self.blocks[p.block].tensor for p in places}
        return [name for name in self.tensors if name in net.weights or name in only]

    def view(self, block: Block, tensor: Tensor) -> Tensor:
        """The block of a contiguous tensor, one dimension per leaf."""
        sizes = [leaf if isinstance(leaf, int) else self[leaf].size for leaf in block.leaves]
        return tensor.as_strided(sizes, block.strides, tensor.storage_offset() + block.offset)

    def whole(self, block: Block) -> bool:
        """Whether every axis in a block is beside its outer ones; an activation may have been indexed by them."""
        axes = [self._axes[leaf] for leaf in block.leaves if isinstance(leaf, str)]
        return all(outer in block.leaves for axis in axes for outer in axis.over)

    def dims_of(self, block: Block, leaf: int) -> list[int]:
        """The dimensions of a block in which the outer axes of the one at `leaf` lie, outermost first, then its own."""
        return [*(block.leaves.index(outer) for outer in self[str(block.leaves[leaf])].over), leaf]

    def units(self, block: Block, leaf: int, tensor: Tensor) -> Tensor:
        """The block of a contiguous tensor as (outer.., units of the axis at `leaf`, everything else)."""
        value, lead = self.view(block, tensor), self.dims_of(block, leaf)
        rest = [d for d in range(value.dim()) if d not in lead]
        return value.permute([*lead, *rest]).reshape(*self.sizes(self[str(block.leaves[leaf])]), -1)

    def spread(self, table: Tensor, block: Block, leaf: int) -> Tensor:
        """A table on the axis at `leaf`, shaped to multiply the view of the block."""
        return place_axes(table, self.dims_of(block, leaf), len(block.leaves))

    def gather(self, values: Tensor, block: Block, leaf: int) -> Tensor:
        """Sum a view of the block over everything but the axis at `leaf` and its outer axes: a table on that axis."""
        keep = self.dims_of(block, leaf)
        gone = [k for k in range(values.dim()) if k not in keep]
        summed = values.sum(gone) if gone else values
        left = sorted(keep)
        return summed.permute([left.index(k) for k in keep])

    def expect(self, name: str, tensor: Tensor) -> None:
        """Raise `SymmetryError` unless the tensor has the shape the group was read for."""
        if tuple(tensor.shape) != tuple(self.shapes[name]):
            raise SymmetryError(
                f"{name} has shape {tuple(tensor.shape)}, the group was read for {tuple(self.shapes[name])}; "
                "read the symmetry of this architecture"
            )

    def check(self, net: Net) -> None:
        """Raise `SymmetryError` unless the group belongs to this net's architecture."""
        tensors = checked(net).tensors
        if self.fingerprint and self.fingerprint != net.fingerprint:
            raise SymmetryError(
                f"the group was read from another architecture than this {type(net.architecture).__name__}; "
                "read the symmetry of this one"
            )
        if net.device.type == "meta":
            raise SymmetryError("the network is on the meta device, so that its weights have no numbers; load them")
        missing = [name for name in self.shapes if name not in tensors]
        if missing:
            raise SymmetryError(
                f"the group moves {missing[0]}, which this network does not have; read its own symmetry"
            )
        for name in self.shapes:
            self.expect(name, tensors[name])

    def identity(self) -> Element:
        """The identity element."""
        return Element(self, {a.name: self._count(a) for a in self.permutable()})

    def _count(self, axis: Axis) -> Tensor:
        return torch.arange(axis.size).expand(self.sizes(axis)).clone()

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
            tables[axis.name] = self._shuffle(axis, generator) if moving else self._count(axis)
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
                return f"{'GL' if g.kind == 'linear' else 'O'}{axis.size - g.ones}{power}"
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
