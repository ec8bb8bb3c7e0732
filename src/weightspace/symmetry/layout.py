"""The data of a symmetry group: where its axes lie in which tensors, and views of those places.

An `Axis` is a set of units that can move. A `Block` says where it occurs: a strided view of one tensor with one leaf,
an axis or a plain size, per dimension of the view. A `Generator` is a factor on the units of one axis. An `Exchange` is
a set of parts whose blocks trade their contents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from weightspace.linear.bits import reduce_bits
from weightspace.net.errors import SymmetryError
from weightspace.net.net import Net, checked
from weightspace.symmetry.axis import Axis, Block, Exchange, Generator, Place, place_axes

__all__ = ["Layout"]


_L = TypeVar("_L", bound="Layout")


class Layout:
    """Axes, blocks and generators, indexed by tensor and by place: what the action of a group is computed from."""

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

    def again(self: _L, **changed: Any) -> _L:
        """The same group but for some of its parts."""
        parts = {
            "every": self.every, "blocks": self.blocks, "generators": self.generators, "shapes": self.shapes,
            "state": self.state, "notes": self.notes, "pinned": self.pinned, "fingerprint": self.fingerprint,
            "verified": self.verified, "gauge": self.gauge, "free": self.free, "exchanges": self.exchanges,
        }  # fmt: skip
        return type(self)(**{**parts, **changed})

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

    def whole_dims(self, name: str) -> list[int]:
        """The dimensions of a tensor along which it may be cut: in every block one leaf, which stays, is all of it."""
        carried = {outer for axis in self.every for outer in axis.over}
        sizes = {axis.name: axis.size for axis in self.every if not axis.kinds and axis.name not in carried}

        def spans(block: Block, d: int) -> bool:
            leaves = [leaf for leaf, at in zip(block.leaves, block.dims, strict=True) if at == d]
            return [sizes.get(leaf) if isinstance(leaf, str) else leaf for leaf in leaves] == [self.shapes[name][d]]

        blocks = [block for _, block in self.blocks_of(name)]
        return [d for d in range(len(self.shapes[name])) if all(spans(block, d) for block in blocks)]

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
            if len(reduce_bits(rows)) < len(rows) or not any(shown[p] for p in places):
                only |= {self.blocks[p.block].tensor for p in places}
        return [name for name in self.tensors if name in net.weights or name in only]

    def view(self, block: Block, tensor: Tensor) -> Tensor:
        """The block of a contiguous tensor, one dimension per leaf."""
        sizes = [leaf if isinstance(leaf, int) else self._axes[leaf].size for leaf in block.leaves]
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
                "read the symmetry of this one, or give data= too if it is the same but narrower"
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

    def still(self) -> dict[str, Tensor]:
        """The permutation of every axis that moves nothing."""
        return {axis.name: self.in_order(axis) for axis in self.permutable()}

    def in_order(self, axis: Axis) -> Tensor:
        """The permutation of one axis that moves nothing."""
        return torch.arange(axis.size).expand(self.sizes(axis)).clone()
