"""The blocks and axes of parts of a network, which trade places when the parts are exchanged.

They are those of a tensor of a part's own, those that hold an axis of its own, and those at its indices of an axis that
is numbered as the parts are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from weightspace.graph import atoms
from weightspace.graph.alike import Alike
from weightspace.graph.atoms import Atom, Dim
from weightspace.graph.follow import Reading
from weightspace.symmetry.axis import Block, Exchange, Generator, Place
from weightspace.symmetry.bases import renumbering
from weightspace.symmetry.group import Group

__all__ = ["Link", "exchanged", "holds", "labels", "within"]


_MOST = 256  # indices of an axis that is cut


@dataclass(frozen=True)
class Link:
    """An axis of which every part has `width` indices, from its own start."""

    atom: Atom
    starts: tuple[int, ...]
    width: int

    def part(self, index: int) -> int | None:
        """The part that an index belongs to."""
        return next((i for i, start in enumerate(self.starts) if start <= index < start + self.width), None)


def exchanged(
    group: Group, reading: Reading, names: Mapping[Atom, str], parts: Alike, links: list[Link]
) -> Group | None:
    """The group with one exchange more, which is not tried yet; None where its blocks do not correspond."""
    for link in links:
        if link.atom.parts is None and (axis := names.get(link.atom)) in group.places:
            if link.width > 1 or link.atom.size > _MOST or group[str(axis)].kinds:
                return None
            cut = _cut(group, str(axis))
            if cut is None:
                return None
            group = cut
    return _Making(group, reading, parts, links).group_with()


def _cut(group: Group, name: str) -> Group | None:
    """The group with all blocks cut at every index of an axis that does not move, which then occurs in none."""
    if any(name in axis.over for axis in group.every):
        return None
    size = group[name].size
    blocks, pieces = list(group.blocks), dict[int, list[int]]()
    kept: dict[int, list[int]] = {}  # the leaves that stay
    for number, block in enumerate(group.blocks):
        found = [block]
        while name in found[0].leaves:
            k = found[0].leaves.index(name)
            found = [_slice(piece, k, i) for piece in found for i in range(size)]
        kept[number] = [k for k, leaf in enumerate(block.leaves) if leaf != name]
        pieces[number] = [number, *range(len(blocks), len(blocks) + len(found) - 1)]
        blocks[number] = found[0]
        blocks += found[1:]

    def places(place: Place) -> list[Place]:
        return [Place(n, kept[place.block].index(place.leaf)) for n in pieces[place.block]]

    def renewed(g: Generator) -> Generator:
        exponents = tuple((p, e) for place, e in g.exponents for p in places(place))
        return replace(g, exponents=exponents, uniform=tuple(p for place in g.uniform for p in places(place)))

    def traded(x: Exchange) -> Exchange:
        found = []
        for some in x.blocks:
            counts = range(len(pieces[some[0][1]]))
            found += [tuple((at, pieces[b][i]) for at, b in some) for i in counts]
        return replace(x, blocks=tuple(found))

    return group.again(
        blocks=blocks,
        generators=[renewed(g) for g in group.generators],
        gauge=[renewed(g) for g in group.gauge],
        free=[p for place in group.free for p in places(place)],
        pinned={axis: why for axis, why in group.pinned.items() if axis != name},
        exchanges=[traded(x) for x in group.exchanges],
    )


def _slice(block: Block, leaf: int, i: int) -> Block:
    drop = lambda values: values[:leaf] + values[leaf + 1 :]  # noqa: E731
    offset = block.offset + i * block.strides[leaf]
    return Block(block.tensor, offset, drop(block.strides), drop(block.leaves), drop(block.dims))


@dataclass
class _Making:
    """Which blocks, axes and generators of a group belong to which part."""

    group: Group
    reading: Reading
    parts: Alike
    links: list[Link]
    classes: dict[str, list[str]] = field(default_factory=dict)  # an axis of the first part -> those of all

    def group_with(self) -> Group | None:
        """The group with the exchange; None where parts do not correspond."""
        if not self.paired():
            return None
        blocks = self.traded()
        axes = tuple(tuple(members) for members in self.classes.values())
        if not blocks:
            return None
        names = labels(self.parts) or self.named(blocks)
        exchange = Exchange(_title(names, [x.name for x in self.group.exchanges]), tuple(names), blocks, axes)
        return renumbering(self.group, exchange)

    def named(self, blocks: Iterable[tuple[tuple[tuple[int, ...], int], ...]]) -> list[str]:
        """Names for parts that have no tensor of their own."""
        tensor = next(self.group.blocks[b].tensor for some in blocks for _, b in some)
        return [f"{tensor.rpartition('.')[0] or tensor}.{i}" for i in range(self.parts.count)]

    def paired(self) -> bool:
        """Whether axes of the parts correspond, in tensors of their own and at indices of the links."""
        for tensors in self.parts.tensors:
            found = [[b for _, b in self.group.blocks_of(name)] for name in tensors]
            if not all(self.correspond(found[0], other, i) for i, other in enumerate(found[1:], 1)):
                return False
        for link in self.links:
            for name in self.reading.named:
                for d in range(len(self.reading.named[name].dims)):
                    found = self.at_link(name, d, link)
                    if found and not all(self.correspond(found[0], other, i) for i, other in enumerate(found[1:], 1)):
                        return False
        members = [axis for some in self.classes.values() for axis in some]
        return "" not in members and len({*members}) == len(members) and self.alike_axes()

    def at_link(self, name: str, d: int, link: Link) -> list[list[Block]]:
        """Blocks of a tensor by the part whose indices of the link they have in dimension d."""
        if not holds(self.reading.named[name].dims[d], link.atom):
            return []
        found: list[list[Block]] = [[] for _ in range(self.parts.count)]
        for _, block in sorted(self.group.blocks_of(name), key=lambda pair: pair[1].offset):
            for at in _at(self.reading.named[name].dims[d], self.index(block, d), link.atom):
                part = link.part(at)
                if part is not None:
                    found[part].append(block)
        return found

    def index(self, block: Block, d: int) -> int:
        """The first index of a block in dimension d of its tensor."""
        shape = self.group.shapes[block.tensor]
        return block.offset // math.prod(shape[d + 1 :]) % shape[d]

    def correspond(self, ours: list[Block], theirs: list[Block], i: int) -> bool:
        """Whether blocks of the first part and of part i are alike; their axes are then of one class."""
        if len(ours) != len(theirs):
            return False
        for a, b in zip(ours, theirs, strict=True):
            if (a.strides, a.dims) != (b.strides, b.dims):
                return False
            for x, y in zip(a.leaves, b.leaves, strict=True):
                if x == y:
                    continue
                if not isinstance(x, str) or not isinstance(y, str):
                    return False
                members = self.classes.setdefault(x, [x] + [""] * (self.parts.count - 1))
                if members[i] not in ("", y):
                    return False
                members[i] = y
        return True

    def alike_axes(self) -> bool:
        """Whether axes of one class have equal sizes and kinds, and depend on outer axes of one class."""
        first = {axis: (x, i) for x, members in self.classes.items() for i, axis in enumerate(members)}
        for members in self.classes.values():
            for i, name in enumerate(members):
                a, b = self.group[members[0]], self.group[name]
                over = tuple(self.classes[o][i] if o in self.classes else o for o in a.over)
                if (a.size, a.kinds, over) != (b.size, b.kinds, b.over):
                    return False
        shared = [axis for axis in self.group.every if axis.name not in first]
        return not any(outer in first for axis in shared for outer in axis.over)

    def traded(self) -> tuple[tuple[tuple[tuple[int, ...], int], ...], ...] | None:
        """Sets of blocks by the parts to which they belong; None where a set is not the same for all parts."""
        own = {name: (k, i) for k, names in enumerate(self.parts.tensors) for i, name in enumerate(names)}
        first = {axis: (x, i) for x, members in self.classes.items() for i, axis in enumerate(members)}
        found: dict[object, dict[tuple[int, ...], list[int]]] = {}
        for name in self.reading.named:
            links = [
                (d, link)
                for link in self.links
                for d, dim in enumerate(self.reading.named[name].dims)
                if holds(dim, link.atom)
            ]
            for number, block in sorted(self.group.blocks_of(name), key=lambda pair: pair[1].offset):
                met = [own[name][1]] if name in own else []
                met += [first[leaf][1] for leaf in block.leaves if isinstance(leaf, str) and leaf in first]
                by_link = [self.of_link(block, d, link) for d, link in links]
                met += [part for some in by_link for part in some if part is not None]
                at = tuple(dict.fromkeys(met))
                if not at:
                    continue
                leaves = tuple(first[leaf][0] if leaf in first else leaf for leaf in map(_plain, block.leaves))
                where = tuple(tuple(part is not None for part in some) for some in by_link)
                form = tuple(at.index(part) for part in met)
                key = (own[name][0] if name in own else name, block.strides, block.dims, leaves, where, form)
                found.setdefault(key, {}).setdefault(at, []).append(number)
        sets = []
        for some in found.values():
            rank = len(next(iter(some)))
            if len(some) != math.perm(self.parts.count, rank) or len({len(n) for n in some.values()}) > 1:
                return None
            sets += [tuple(zip(some, numbers, strict=True)) for numbers in zip(*some.values(), strict=True)]
        return tuple(sets)

    def of_link(self, block: Block, d: int, link: Link) -> list[int | None]:
        return [link.part(at) for at in _at(self.reading.named[block.tensor].dims[d], self.index(block, d), link.atom)]


def _plain(leaf: str | int) -> str:
    return leaf if isinstance(leaf, str) else f"{leaf} indices"


def labels(parts: Alike) -> list[str]:
    """The names of parts: the module that holds all of their own tensors, or the first of these."""
    if not parts.tensors:
        return []
    shared = _common([name for names in parts.tensors for name in names])
    found = []
    for i in range(parts.count):
        own = [names[i].split(".") for names in parts.tensors]
        prefix = _common([names[i] for names in parts.tensors])
        found.append(".".join(prefix if len(prefix) > len(shared) else min(own)[: len(shared) + 2]))
    return found if len({*found}) == len(found) else [min(n[i] for n in parts.tensors) for i in range(parts.count)]


def _common(names: list[str]) -> list[str]:
    """The modules that hold all tensors of these names."""
    found: list[str] = []
    for steps in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len({*steps}) > 1:
            break
        found.append(steps[0])
    return found


def _title(labels: list[str], taken: list[str]) -> str:
    """`hs` for hs.0, hs.1, ..; else all names. Numbered if need be."""
    homes = {label.rpartition(".")[0] for label in labels}
    numbered = all(label.rpartition(".")[2].isdigit() for label in labels)
    base = next(iter(homes)) if len(homes) == 1 and numbered and "" not in homes else ",".join(labels)
    same = sum(name == base or name.startswith(f"{base}#") for name in taken)
    return f"{base}#{same}" if same else base


def within(d: Dim) -> Iterator[Atom]:
    """The atoms of a dimension, those in concatenations too."""
    for atom in atoms.flat(d):
        yield atom
        for piece in atoms.parts(atom):
            yield from within(piece)


def holds(d: Dim, atom: Atom) -> bool:
    """Whether an atom is one of a dimension's."""
    return any(met is atom for met in within(d))


def _at(d: Dim, index: int, atom: Atom) -> Iterator[int]:
    """The indices of an axis that an index of a dimension stands for."""
    factors = atoms.flat(d)
    stride = atoms.size(factors)
    for factor in factors:
        stride //= factor.size
        at = index // stride % factor.size
        if factor is atom:
            yield at
            continue
        for piece in atoms.parts(factor):
            if at < atoms.size(piece):
                yield from _at(piece, at, atom)
                break
            at -= atoms.size(piece)
