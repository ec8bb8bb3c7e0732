"""Exchanges of whole parts (heads, experts, branches, members): proposed by the graph, and tried in float64.

The graph tells which parts are of one form (`graph.alike`), and what is numbered as they are: the rows of a router, the
columns of what reads a concatenation. A part may be exchanged for another with all that. As blocks of tensors: those of
a tensor of its own, those that hold an axis of its own, and those at its indices of an axis that is numbered as the
parts are trade their contents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import combinations, product
from typing import TypeVar

from weightspace.graph import atoms
from weightspace.graph.alike import Alike, Pick, alike
from weightspace.graph.atoms import Atom
from weightspace.graph.follow import Reading
from weightspace.graph.rules.call import Labels
from weightspace.graph.trace import Trace
from weightspace.net.errors import SymmetryError
from weightspace.net.inputs import carried, input_tensors
from weightspace.symmetry.alone import Alone
from weightspace.symmetry.axis import Exchange
from weightspace.symmetry.bases import orders
from weightspace.symmetry.element import Element
from weightspace.symmetry.group import Group
from weightspace.symmetry.parts import Link, exchanged, holds, labels, within
from weightspace.symmetry.probe import Probe, usable
from weightspace.symmetry.verify import distance, moved

__all__ = ["find_exchanges"]


_G = TypeVar("_G", bound=Group)
_AT_HOME = 1e-6  # the network's own weights may be badly conditioned
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
        self.inside = False  # whether parts hold, but not independently of others

    # ------------------------------------------------------------------ proposals

    def propose(self, parts: Alike) -> None:
        """Add the exchange of all parts; else those of the pairs that hold; else say that there is none."""
        links = [self.link(pick) for pick in parts.picks]
        if any(link is not None and self.hopeless(link) for link in links):
            return
        self.inside = False
        if self.added(parts) or not parts.tensors:
            return
        why = "they may not be exchanged, or only together with something that was not found"
        if self.inside:
            why = "they lie in parts that may be exchanged, and their own exchange is left out"
        self.say(f"{_listed(labels(parts))} are {parts.count} parts of one form: {why}")

    def added(self, parts: Alike) -> bool:
        if self.whole(parts):
            return True
        if not 2 < parts.count <= _MOST_PAIRS or not parts.tensors:
            return False
        classes = [{i} for i in range(parts.count)]
        before, used = self.group, self.used(parts)
        for i, j in combinations(used, 2):
            if not any({i, j} <= some for some in classes) and self.whole(_some(parts, [i, j])):
                both = [some for some in classes if some & {i, j}]
                classes = [some for some in classes if some not in both] + [set().union(*both)]
                self.group = before
        kept = [sorted(some) for some in classes if len(some) > 1]
        held = [_some(parts, some) for some in kept if self.whole(_some(parts, some))]
        if held:
            which = "; ".join(_listed(labels(some)) for some in held)
            self.say(
                f"of {_listed(labels(parts))}, {parts.count} parts of one form, only some may be exchanged: {which}"
            )
        return bool(held)

    def used(self, parts: Alike) -> list[int]:
        """The parts that the outputs depend on, on the inputs that exchanges are tried on."""
        self.probe.draw(0)
        tensors, before, found = self.probe.net.tensors, self.probe.outputs(), []
        for i in range(parts.count):
            own = {names[i]: tensors[names[i]].clone() for names in parts.tensors}
            for name, tensor in own.items():
                tensors[name].copy_(1.5 * tensor if tensor.is_floating_point() else tensor)
            if distance(before, self.probe.outputs()) > 0:
                found.append(i)
            for name, tensor in own.items():
                tensors[name].copy_(tensor)
        return found

    def whole(self, parts: Alike) -> bool:
        """Whether all of the parts may be exchanged; the group then holds it."""
        for links in self.links(parts):
            found = exchanged(self.group, self.reading, self.names, parts, links)
            if found is not None and self.holds(found, found.exchanges[-1]):
                self.group = found
                return True
        return False

    def links(self, parts: Alike) -> Iterator[list[Link]]:
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

    def link(self, pick: Pick) -> Link | None:
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
        return Link(leading[0], tuple(n // inner for n in pick.starts), pick.width // inner)

    def hopeless(self, link: Link) -> bool:
        """Whether an axis is that of an input, of constants or of an output, whose indices stay."""
        return link.atom.foreign or link.atom.constant or link.atom in self.shown

    def is_stored(self, link: Link) -> bool:
        return any(holds(d, link.atom) for labels in self.reading.named.values() for d in labels.dims)

    def nearest(self, pick: Pick) -> Iterator[Link]:
        """Axes of the parameters, nearest to a value first, that have as many indices as are picked from."""
        size = max(pick.starts) + pick.width
        todo, seen = [pick.node], {pick.node}
        for node in todo:
            name = self.graph.sources.get(node)
            for d in self.reading.named[name].dims if name in self.reading.named else ():
                for atom in atoms.flat(d):
                    fixed = atom.parts is not None or atom.pin is not None
                    if atom.size == size and fixed and not atom.foreign and not atom.constant:
                        yield Link(atom, pick.starts, pick.width)
            if len(seen) < _FAR:
                more = [used for used in node.all_input_nodes if used not in seen]
                seen.update(more)
                todo += more

    # ------------------------------------------------------------------ tried

    def holds(self, group: Group, exchange: Exchange) -> bool:
        """Whether an exchange leaves the outputs, on drawn weights, and is independent of those found before."""
        if not all(self.alone(Element(group, {}, {}, {exchange.name: order})) for order in orders(exchange.size)):
            return False
        alone = all(_commute(group, exchange, other) for other in group.exchanges if other is not exchange)
        self.inside |= not alone
        return alone

    def alone(self, element: Element) -> bool:
        """Whether one exchange leaves the outputs of the graph on drawn weights, evaluating what it changes alone."""
        self.probe.draw(0)
        try:
            if self.run is None:
                inputs = input_tensors(carried(self.probe.example, self.probe.net))
                self.run = Alone(self.graph, self.probe.net.tensors, inputs)
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
            Element(group, {}, {}, {x.name: orders(x.size)[min(k, len(orders(x.size)) - 1)] for x in chosen})
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


def _shown(graph: Trace, reading: Reading) -> set[Atom]:
    """What the dimensions of the outputs are made of."""
    found: set[Atom] = set()
    for node in graph.nodes:
        if node.op == "output":
            for used in node.all_input_nodes:
                value = reading.values.get(used)
                for labels in value if isinstance(value, tuple) else (value,):
                    for d in labels.dims if labels is not None else ():
                        found |= {*within(d)}
    return found


def _commute(group: Group, one: Exchange, other: Exchange) -> bool:
    """Whether two exchanges move blocks, axes and generators independently of one another."""
    held = [{a for row in (*x.axes, *x.generators) for a in row} for x in (one, other)]
    both = group.traded[one.name].keys() & group.traded[other.name].keys()
    for mine, theirs in product(orders(one.size), orders(other.size)):
        first, second = {one.name: mine}, {other.name: theirs}
        ways = [Element(group, {}, {}, {**a, **b}) for a, b in ((first, second), (second, first))]
        if any(ways[0].source(b) != ways[1].source(b) for b in both):
            return False
    return not held[0] & held[1]


def _some(parts: Alike, chosen: list[int]) -> Alike:
    """A few of the parts."""
    tensors = [tuple(names[i] for i in chosen) for names in parts.tensors]
    picks = [Pick(p.node, p.dim, tuple(p.starts[i] for i in chosen), p.width) for p in parts.picks]
    return Alike(len(chosen), tensors, picks)


def _listed(labels: Iterable[str]) -> str:
    labels = list(labels)
    return ", ".join(labels) if len(labels) <= _SHOWN else f"{', '.join(labels[:2])}, .., {labels[-1]}"
