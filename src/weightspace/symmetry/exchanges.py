"""Exchanges of whole parts (heads, experts, branches, members): proposed by the graph, and tried in float64.

The graph tells which parts are of one form (`graph.alike`), and what is numbered as they are: the rows of a router, the
columns of what reads a concatenation. A part may be exchanged for another with all that. As blocks of tensors: those of
a tensor of its own, those that hold an axis of its own, and those at its indices of an axis that is numbered as the
parts are trade their contents.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TypeVar

import torch

from weightspace.graph import atoms
from weightspace.graph.alike import Alike, Pick, alike
from weightspace.graph.atoms import Atom, Dim
from weightspace.graph.follow import Reading
from weightspace.graph.rules.call import Labels
from weightspace.graph.trace import Trace
from weightspace.net.errors import SymmetryError
from weightspace.net.inputs import carried, input_tensors
from weightspace.symmetry.alone import Alone
from weightspace.symmetry.axis import Block, Exchange, Generator, Place
from weightspace.symmetry.group import Element, Group
from weightspace.symmetry.probe import Probe, usable
from weightspace.symmetry.verify import distance, moved

__all__ = ["find_exchanges"]


_G = TypeVar("_G", bound=Group)
_AT_HOME = 1e-6  # the network's own weights may be badly conditioned
_MOST = 256  # indices of an axis that is cut
_MOST_PAIRS = 8  # parts of which every pair is tried
_FAR = 200  # operations that are searched for what numbers the parts
_NEAREST = 3
_SHOWN = 6


def find_exchanges(
    group: _G, graph: Trace, reading: Reading, names: Mapping[Atom, str], probe: Probe, say: Callable[[str], None]
) -> _G:
    """The group with the exchanges of its parts. `say` is given a note on parts of one form that may not be exchanged.

    `group`: with all other moves. `names`: of its axes.
    """
    found = alike(graph)
    if not found:
        return group
    search = _Search(group, graph, reading, names, probe, say)
    for parts in sorted(found, key=lambda p: -len(p.tensors)):
        search.propose(parts)
    return search.result(group)


@dataclass(frozen=True)
class _Link:
    """An axis of which every part has `width` indices, from its own start."""

    atom: Atom
    starts: tuple[int, ...]
    width: int

    def part(self, index: int) -> int | None:
        """The part that an index belongs to."""
        return next((i for i, start in enumerate(self.starts) if start <= index < start + self.width), None)


class _Search:
    def __init__(
        self,
        group: Group,
        graph: Trace,
        reading: Reading,
        names: Mapping[Atom, str],
        probe: Probe,
        say: Callable[[str], None],
    ) -> None:
        self.group, self.graph, self.reading, self.names = group, graph, reading, names
        self.probe, self.say = probe, say
        self.tolerance = 1e-4 if graph.low_precision and probe.graph is None else 1e-9
        self.shown = _shown(graph, reading)
        self.run: Alone | None = None
        self.tried = False

    # ------------------------------------------------------------------ proposals

    def propose(self, parts: Alike) -> None:
        """Add the exchange of all parts; else those of the pairs that hold; else say that there is none."""
        links = [self.link(pick) for pick in parts.picks]
        if any(link is not None and self.hopeless(link) for link in links):
            return
        if not self.added(parts) and parts.tensors:
            self.say(
                f"{_listed(_labels(parts))} are {parts.count} parts of one form; they may not be exchanged, or only "
                "together with something that was not found"
            )

    def added(self, parts: Alike) -> bool:
        if self.whole(parts):
            return True
        if not 2 < parts.count <= _MOST_PAIRS or not parts.tensors:
            return False
        classes = [{i} for i in range(parts.count)]
        before = self.group
        for i, j in combinations(range(parts.count), 2):
            if not any({i, j} <= some for some in classes) and self.whole(_some(parts, [i, j])):
                both = [some for some in classes if some & {i, j}]
                classes = [some for some in classes if some not in both] + [set().union(*both)]
                self.group = before
        kept = [sorted(some) for some in classes if len(some) > 1]
        return bool([True for some in kept if self.whole(_some(parts, some))])

    def whole(self, parts: Alike) -> bool:
        """Whether all of the parts may be exchanged; the group then holds it."""
        for links in self.links(parts):
            found = _exchanged(self.group, self.reading, self.names, parts, links)
            if found is not None and self.holds(found, found.exchanges[-1]):
                self.group = found
                return True
        return False

    def links(self, parts: Alike) -> Iterator[list[_Link]]:
        """What may be numbered as the parts are: what the graph says, and if that fails, with the nearest axes."""
        sure = [link for pick in parts.picks if (link := self.link(pick)) is not None]
        sure = list(dict.fromkeys(sure))
        yield sure
        lost = [p for p in parts.picks if (link := self.link(p)) is None or not self.is_stored(link)]
        near = [link for pick in lost for link in self.nearest(pick) if link not in sure]
        near = list(dict.fromkeys(near))[:_NEAREST]
        for n in range(1, len(near) + 1):
            for some in combinations(near, n):
                yield [*sure, *some]

    def link(self, pick: Pick) -> _Link | None:
        """The axis from which the parts pick."""
        value = self.reading.values.get(pick.node)
        if not isinstance(value, Labels):
            return None
        d = value.points if pick.dim is None else value.dims[pick.dim]
        leading = atoms.flat(d) if d is not None else []
        if not leading:
            return None
        inner = atoms.size(leading[1:])
        if any(n % inner for n in (*pick.starts, pick.width)):
            return None
        return _Link(leading[0], tuple(n // inner for n in pick.starts), pick.width // inner)

    def hopeless(self, link: _Link) -> bool:
        """Whether an axis is that of an input, of constants or of an output, whose indices stay."""
        return link.atom.foreign or link.atom.constant or link.atom in self.shown

    def is_stored(self, link: _Link) -> bool:
        return any(_holds(d, link.atom) for labels in self.reading.named.values() for d in labels.dims)

    def nearest(self, pick: Pick) -> Iterator[_Link]:
        """Axes of the parameters, nearest to a value first, that have as many indices as are picked from."""
        size = max(pick.starts) + pick.width
        todo, seen = [pick.node], {pick.node}
        for node in todo:
            name = self.graph.sources.get(node)
            for d in self.reading.named[name].dims if name in self.reading.named else ():
                for atom in atoms.flat(d):
                    fixed = atom.parts is not None or atom.pin is not None
                    if atom.size == size and fixed and not atom.foreign and not atom.constant:
                        yield _Link(atom, pick.starts, pick.width)
            if len(seen) < _FAR:
                more = [used for used in node.all_input_nodes if used not in seen]
                seen.update(more)
                todo += more

    # ------------------------------------------------------------------ tried

    def holds(self, group: Group, exchange: Exchange) -> bool:
        """Whether exchanges leave the outputs: on drawn weights, and at the network's own."""
        if not all(_commute(group, exchange, other) for other in group.exchanges if other is not exchange):
            return False
        for order in _orders(exchange.size):
            if not self.alone(Element(group, {}, {}, {exchange.name: order})):
                return False
        return True

    def alone(self, element: Element) -> bool:
        """Whether one exchange leaves the outputs of the graph on drawn weights, evaluating what it changes alone."""
        self.probe.draw(0)
        try:
            if self.run is None:
                inputs = input_tensors(carried(self.probe.example, self.probe.net))
                self.run = Alone(self.graph, {n: t.clone() for n, t in self.probe.net.tensors.items()}, inputs)
            pair = self.run.outputs(element)
            return pair is None or distance(*pair) <= 1e-9
        except SymmetryError:
            return self.same(element, self.probe.example, self.tolerance)

    def same(self, element: Element, example: object, tolerance: float) -> bool:
        before = self.probe.outputs(example)
        if not usable(before):
            return True
        with moved(element, self.probe):
            return distance(before, self.probe.outputs(example)) <= tolerance

    def everywhere(self, group: Group, names: Iterable[str]) -> bool:
        """Whether exchanges hold on the module itself: on other weights, large and small inputs, and at home."""
        chosen = [x for x in group.exchanges if x.name in {*names}]
        elements = [
            Element(group, {}, {}, {x.name: _orders(x.size)[min(k, len(_orders(x.size)) - 1)] for x in chosen})
            for k in range(2)
        ]
        try:
            for k, size in ((0, 1.0), (1, 1.0), (2, 100.0), (3, 0.01)):
                self.probe.draw(k)
                example = self.probe.inputs(k, size) if k else self.probe.example
                if not self.same(elements[k % 2], example, self.tolerance):
                    return False
            if self.probe.user.device.type == "meta":
                return True
            self.probe.at_home()
            limit = max(self.tolerance, _AT_HOME)
            return all(self.same(element, self.probe.given, limit) for element in elements)
        finally:
            self.probe.draw(0)

    def result(self, group: _G) -> _G:
        """The group with all exchanges that hold everywhere."""
        if not self.group.exchanges:
            return group
        every = [x.name for x in self.group.exchanges]
        kept = every if self.everywhere(self.group, every) else [x for x in every if self.everywhere(self.group, [x])]
        for x in self.group.exchanges:
            if x.name not in kept:
                self.say(f"exchanges of {_listed(x.members)} hold on some weights or inputs only: left out")
        if not kept:
            return group
        found = self.group.again(exchanges=[x for x in self.group.exchanges if x.name in kept])
        if found.verified:
            found.verified = {**found.verified, "kinds": [*found.verified["kinds"], "exchange"]}
        return found  # type: ignore[return-value]


def _orders(size: int) -> list[torch.Tensor]:
    """A cycle, and a transposition: together they generate all orders."""
    cycle = torch.arange(size).roll(-1)
    if size == 2:
        return [cycle]
    swap = torch.arange(size)
    swap[:2] = torch.tensor([1, 0])
    return [cycle, swap]


def _shown(graph: Trace, reading: Reading) -> set[Atom]:
    """What the dimensions of the outputs are made of."""
    found: set[Atom] = set()
    for node in graph.nodes:
        if node.op == "output":
            for used in node.all_input_nodes:
                value = reading.values.get(used)
                for labels in value if isinstance(value, tuple) else (value,):
                    for d in labels.dims if labels is not None else ():
                        found |= {*_within(d)}
    return found


def _within(d: Dim) -> Iterator[Atom]:
    for atom in atoms.flat(d):
        yield atom
        for piece in atoms.parts(atom):
            yield from _within(piece)


def _holds(d: Dim, atom: Atom) -> bool:
    return any(met is atom for met in _within(d))


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


# ------------------------------------------------------------------ blocks that trade their contents


def _exchanged(
    group: Group, reading: Reading, names: Mapping[Atom, str], parts: Alike, links: list[_Link]
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
    """The group with all blocks cut at every index of an axis that does not move, which is then no axis any more."""
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
        every=[axis for axis in group.every if axis.name != name],
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
    links: list[_Link]
    classes: dict[str, list[str]] = field(default_factory=dict)  # an axis of the first part -> those of all

    def group_with(self) -> Group | None:
        """The group with the exchange; None where parts do not correspond."""
        if not self.paired():
            return None
        blocks = self.traded()
        axes = tuple(tuple(members) for members in self.classes.values())
        if not blocks:
            return None
        labels = _labels(self.parts) or self.named(blocks)
        exchange = Exchange(_title(labels, [x.name for x in self.group.exchanges]), tuple(labels), blocks, axes)
        return _with_generators(self.group, exchange)

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

    def at_link(self, name: str, d: int, link: _Link) -> list[list[Block]]:
        """Blocks of a tensor by the part whose indices of the link they have in dimension d."""
        if not _holds(self.reading.named[name].dims[d], link.atom):
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
                if _holds(dim, link.atom)
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

    def of_link(self, block: Block, d: int, link: _Link) -> list[int | None]:
        return [link.part(at) for at in _at(self.reading.named[block.tensor].dims[d], self.index(block, d), link.atom)]


def _plain(leaf: str | int) -> str:
    return leaf if isinstance(leaf, str) else f"{leaf} indices"


def _with_generators(group: Group, exchange: Exchange) -> Group | None:
    """The group with an exchange, under which its generators trade places; None where they cannot.

    Those of other parts are made from those of the first: a basis of scales may have been chosen otherwise.
    """
    trial = group.again(exchanges=[*group.exchanges, exchange])
    member = {axis: i for members in exchange.axes for i, axis in enumerate(members)}
    swaps = [Element(trial, {}, {}, {exchange.name: _swap(exchange.size, i)}) for i in range(exchange.size)]
    lists, rows = [], []
    for generators in (group.generators, group.gauge):
        new: list[Generator] = [g for g in generators if g.axis not in member]
        lists.append(new)
        count = Counter(member[g.axis] for g in generators if g.axis in member)
        if len({count[i] for i in range(exchange.size)}) > 1:
            return None
        if any(_key(_carried(g, swap, {})) != _key(g) for g in new for swap in swaps):
            return None
        for g in [g for g in generators if member.get(g.axis) == 0]:
            row = []
            for i, swap in enumerate(swaps):
                row.append(len(new))
                new.append(_carried(g, swap, {members[0]: members[i] for members in exchange.axes}))
            if generators is group.generators:
                rows.append(tuple(row))
    if not all(_closed(some, swaps[1:], exchange) for some in lists):
        return None
    free = {place for place in group.free}
    if any(Place(swap.source(p.block), p.leaf) not in free for p in free for swap in swaps[1:]):
        return None
    exchange = replace(exchange, generators=tuple(rows))
    old = [_renumbered(x, group, lists[0]) for x in group.exchanges]
    if None in old:
        return None
    return group.again(generators=lists[0], gauge=lists[1], exchanges=[*old, exchange])


def _swap(size: int, i: int) -> torch.Tensor:
    order = torch.arange(size)
    order[0], order[i] = i, 0
    return order


def _carried(g: Generator, swap: Element, axes: Mapping[str, str]) -> Generator:
    """A generator as it acts after a swap of two parts, which is its own inverse."""
    place = lambda p: Place(swap.source(p.block), p.leaf)  # noqa: E731
    exponents = tuple((place(p), e) for p, e in g.exponents)
    return replace(g, axis=axes.get(g.axis, g.axis), exponents=exponents, uniform=tuple(map(place, g.uniform)))


def _key(g: Generator) -> object:
    return g.axis, g.kind, g.evaluation, g.ones, frozenset(g.exponents), frozenset(g.uniform)


def _closed(generators: list[Generator], swaps: list[Element], exchange: Exchange) -> bool:
    """Whether every swap with the first part takes generators to generators."""
    keys = {_key(g) for g in generators}
    for i, swap in enumerate(swaps, 1):
        axes = {members[0]: members[i] for members in exchange.axes}
        axes |= {there: here for here, there in axes.items()}
        if any(_key(_carried(g, swap, axes)) not in keys for g in generators):
            return False
    return True


def _renumbered(exchange: Exchange, group: Group, generators: list[Generator]) -> Exchange | None:
    """An exchange found before, for generators in another order; None where one of its own is no longer there."""
    number = {_key(g): k for k, g in enumerate(generators)}
    rows = [[number.get(_key(group.generators[k])) for k in row] for row in exchange.generators]
    if any(k is None for row in rows for k in row):
        return None
    return replace(exchange, generators=tuple(tuple(k for k in row if k is not None) for row in rows))


def _commute(group: Group, one: Exchange, other: Exchange) -> bool:
    """Whether two exchanges move blocks, axes and generators independently of one another."""
    for i in range(1, one.size):
        for j in range(1, other.size):
            first, second = ({x.name: _swap(x.size, k)} for x, k in ((one, i), (other, j)))
            ways = [Element(group, {}, {}, {**a, **b}) for a, b in ((first, second), (second, first))]
            if any(ways[0].source(b) != ways[1].source(b) for x in (one, other) for b in group.traded[x.name]):
                return False
    held = [{a for row in (*x.axes, *x.generators) for a in row} for x in (one, other)]
    return not held[0] & held[1]


# ------------------------------------------------------------------ names


def _some(parts: Alike, chosen: list[int]) -> Alike:
    """A few of the parts."""
    tensors = [tuple(names[i] for i in chosen) for names in parts.tensors]
    picks = [Pick(p.node, p.dim, tuple(p.starts[i] for i in chosen), p.width) for p in parts.picks]
    return Alike(len(chosen), tensors, picks)


def _labels(parts: Alike) -> list[str]:
    """The names of parts: the module that holds all of their own tensors, or the first of these."""
    if not parts.tensors:
        return []
    shared = _common([name for names in parts.tensors for name in names])
    labels = []
    for i in range(parts.count):
        own = [names[i].split(".") for names in parts.tensors]
        prefix = _common([names[i] for names in parts.tensors])
        labels.append(".".join(prefix if len(prefix) > len(shared) else min(own)[: len(shared) + 2]))
    return labels if len({*labels}) == len(labels) else [min(n[i] for n in parts.tensors) for i in range(parts.count)]


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


def _listed(labels: Iterable[str]) -> str:
    labels = list(labels)
    return ", ".join(labels) if len(labels) <= _SHOWN else f"{', '.join(labels[:2])}, .., {labels[-1]}"
