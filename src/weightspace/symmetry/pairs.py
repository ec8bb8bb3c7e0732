"""Rotations of rotary pairs: both channels of a frequency turned by one angle, in queries and keys alike.

Under rotary position embeddings (Su et al., RoFormer, 2021) the channels of a head are pairs, each turned by an angle
that grows with the position. Turns of a plane commute, so that no score changes if queries and keys are turned by one
angle more: SO(2) for every pair. It is read where an axis has a sign, which is half a turn, and occurs in halves of
tensors, or beside two coordinates. Either becomes one block with an axis of size two, whose rotations are then tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from weightspace.symmetry.axis import Axis, Block, Generator, Place
from weightspace.symmetry.group import Group

__all__ = ["Joined", "find_pairs", "joined", "paired_as"]


_G = TypeVar("_G", bound=Group)


def find_pairs(group: _G, holds: Callable[[Group], bool]) -> _G:
    """The group with the rotations of pairs of channels that `holds` accepts, given a group of these alone.

    They take the place of the signs of the pairs. Tried all at once and, if that fails, axis by axis.
    """
    axes = [axis.name for axis in group.every if _with_pairs(group, axis.name) is not None]
    if axes and holds(_turns_alone(_with_all(group, axes))):
        return _with_all(group, axes)
    accepted = [name for name in axes if len(axes) > 1 and holds(_turns_alone(_with_all(group, [name])))]
    return _with_all(group, accepted)


def _with_all(group: _G, axes: Iterable[str]) -> _G:
    for name in axes:
        group = _with_pairs(group, name) or group
    return group


def _turns_alone(group: Group) -> Group:
    return group.again(generators=[g for g in group.generators if g.proper], gauge=(), free=())


def _with_pairs(group: _G, name: str) -> _G | None:
    """The group with an axis of two coordinates beside the axis of that name; None where it has no pairs.

    They are sought where an axis has one sign and no permutations, because its units have frequencies of their own.
    """
    axis = group[name]
    signs = [k for k, g in enumerate(group.generators) if (g.axis, g.kind) == (name, "sign")]
    if len(signs) != 1 or "permutation" in axis.kinds:
        return None
    places = [place for place, _ in group.generators[signs[0]].exponents]
    pair = Axis(paired_as(name), 2, (*axis.over, name), ("orthogonal",))
    planes = {a.name for a in group.every if a.size == 2 and not a.kinds and a.name not in pair.over}
    found = joined(group.blocks, {place.block for place in places}, pair, planes)
    if found is None or len({place.block for place in places}) < len(places):
        return None
    kept = [g for k, g in enumerate(group.generators) if k != signs[0]]
    generators, gauge, free = found.moved(kept), found.moved(group.gauge), found.places(group.free)
    if generators is None or gauge is None or free is None:
        return None
    at = sorted({(number, block.leaves.index(pair.name)) for number, block in enumerate(found.blocks)
                 if pair.name in block.leaves})  # fmt: skip
    turn = Generator(pair.name, "orthogonal", tuple((Place(*place), 1.0) for place in at), proper=True)
    met = {leaf for block in found.blocks for leaf in block.leaves}
    every = []
    for other in group.every:
        if other.name == name:
            every += [replace(other, kinds=tuple(kind for kind in other.kinds if kind != "sign")), pair]
        elif other.name in met or other.name not in planes:
            every.append(other)
    names = {axis.name for axis in every}
    return group.again(
        every=every,
        blocks=found.blocks,
        generators=[*generators, turn],
        gauge=gauge,
        free=free,
        pinned={axis: why for axis, why in group.pinned.items() if axis in names},
    )


def paired_as(axis: str) -> str:
    """The name of the axis of two coordinates of the pairs along an axis."""
    return f"{axis}.pair"


@dataclass
class Joined:
    """Blocks of which some were made one: `blocks`, and where every leaf of the old ones is now.

    `halves`: numbers of old blocks that are one now.
    """

    blocks: list[Block]
    at: Mapping[Place, Place]
    halves: Sequence[tuple[int, int]]

    def moved(self, generators: Iterable[Generator]) -> list[Generator] | None:
        """The generators on the new blocks; None where one acts on two halves in two ways."""
        found = []
        for g in generators:
            exponents = dict(g.exponents)
            if not self._even(exponents) or not self._even(dict.fromkeys(g.uniform, 1.0)):
                return None
            new = {self.at[place]: exponent for place, exponent in exponents.items()}
            uniform = dict.fromkeys(self.at[place] for place in g.uniform)
            found.append(replace(g, exponents=tuple(new.items()), uniform=tuple(uniform)))
        return found

    def places(self, places: Iterable[Place]) -> list[Place] | None:
        """The places on the new blocks; None where they hold one half and not the other."""
        kept = dict.fromkeys(places, 1.0)
        return [*dict.fromkeys(self.at[place] for place in kept)] if self._even(kept) else None

    def _even(self, exponents: Mapping[Place, float]) -> bool:
        halves = dict(self.halves) | {second: first for first, second in self.halves}
        return all(
            exponents.get(Place(halves[place.block], place.leaf)) == exponent
            for place, exponent in exponents.items()
            if place.block in halves
        )


def joined(blocks: Sequence[Block], numbers: Iterable[int], pair: Axis, planes: Iterable[str | int]) -> Joined | None:
    """Blocks with the axis `pair`, of two coordinates, beside the axis over which it is, in those of these numbers.

    Two that are the halves of one become that one, and in one with a dimension of `planes` beside the axis that becomes
    the new axis. None where a block is neither.
    """
    axis, planes = pair.over[-1], {*planes}
    new: dict[int, tuple[Block, int | None]] = {}  # the block instead, and which leaf of it is new
    halves: list[tuple[int, int]] = []
    alike: dict[object, list[int]] = {}
    for number in sorted(numbers):
        block = blocks[number]
        if (renamed := _renamed(block, axis, pair.name, planes)) is not None:
            new[number] = renamed, None
        else:
            alike.setdefault((block.tensor, block.strides, block.leaves, block.dims), []).append(number)
    for found in alike.values():
        found.sort(key=lambda number: blocks[number].offset)
        if len(found) % 2:
            return None
        for first, second in zip(found[::2], found[1::2], strict=True):
            new[first] = new[second] = _whole(blocks[first], blocks[second].offset, axis, pair.name)
            halves.append((first, second))
    gone = {second for _, second in halves}
    left = [number for number in range(len(blocks)) if number not in gone]
    order = {number: k for k, number in enumerate(left)}
    order |= {second: order[first] for first, second in halves}
    at = {}
    for number, block in enumerate(blocks):
        inserted = new[number][1] if number in new else None
        for leaf in range(len(block.leaves)):
            shift = inserted is not None and leaf >= inserted
            at[Place(number, leaf)] = Place(order[number], leaf + shift)
    return Joined([new[k][0] if k in new else blocks[k] for k in left], at, halves)


def _renamed(block: Block, axis: str, pair: str, planes: set[str | int]) -> Block | None:
    """A block with the coordinates beside an axis named; None where there are none."""
    leaf = block.leaves.index(axis)
    for k in (leaf + 1, leaf - 1):
        if 0 <= k < len(block.leaves) and block.dims[k] == block.dims[leaf] and block.leaves[k] in planes:
            return replace(block, leaves=tuple(pair if d == k else other for d, other in enumerate(block.leaves)))
    return None


def _whole(half: Block, second: int, axis: str, pair: str) -> tuple[Block, int]:
    """The block of which one half is given, and the offset of the other; and the leaf that chooses between them."""
    leaf, step = half.leaves.index(axis), second - half.offset
    at = leaf if step > half.strides[leaf] else leaf + 1

    strides = (*half.strides[:at], step, *half.strides[at:])
    dims = (*half.dims[:at], half.dims[leaf], *half.dims[at:])
    return replace(half, strides=strides, leaves=(*half.leaves[:at], pair, *half.leaves[at:]), dims=dims), at
