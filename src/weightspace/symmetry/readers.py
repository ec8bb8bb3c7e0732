"""The places that read the units of an axis: where a sum over the units is formed, and what multiplies its terms.

A layer of n units is read by sums, y = sum_j r_j h_j. A unit may be replaced by several copies of it if the r of the
copies add up to that of the unit. So a copy takes a share of the unit at the places that read it, and all of it at the
places that write it. Which places read is found in the graph: from every sum over the units back to the parameters that
its terms are proportional to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from weightspace.graph import atoms
from weightspace.graph.follow import live
from weightspace.graph.proportional import CONVOLUTIONS, ON_LAST, Factors, reduced_dims, shape_of
from weightspace.graph.rules.call import Labels
from weightspace.graph.trace import Trace, op_name
from weightspace.symmetry.axis import Place, as_blocks
from weightspace.symmetry.layout import Layout
from weightspace.symmetry.read import Draft

__all__ = ["Readers", "find_readers"]


_EVEN = ("mean", "var", "std", "softmax", "log_softmax", "logsumexp", "norm", "linalg_vector_norm", "var_mean",
         "std_mean", "group_norm", *ON_LAST)  # fmt: skip


@dataclass
class Readers:
    """What reads the units of every axis.

    `places[axis]`: those that take a share. `even`: axes that an operation averages, so that all units need equally
    many copies. `weighed`: axes with a softmax over them, which shares out by itself. `dots`: axes over which
    activations meet activations, as queries meet keys. `tied`: axes some of whose readers are tensors that occur twice.
    `unread`: axes whose sums are formed of no parameter that could take a share, and the operation.
    """

    places: dict[str, set[Place]] = field(default_factory=dict)
    even: set[str] = field(default_factory=set)
    weighed: set[str] = field(default_factory=set)
    dots: set[str] = field(default_factory=set)
    tied: set[str] = field(default_factory=set)
    unread: dict[str, str] = field(default_factory=dict)


def find_readers(graph: Trace, draft: Draft, layout: Layout) -> Readers:
    """The places that read the units of the axes of `layout`, which is the layout of `draft`."""
    return _Finder(graph, draft, layout).run()


class _Finder:
    """From every sum over the units of an axis back to parameters."""

    def __init__(self, graph: Trace, draft: Draft, layout: Layout) -> None:
        self.graph, self.draft, self.layout, self.factors = graph, draft, layout, Factors(graph)
        self.needed = live(graph)
        self.uses = Counter(
            graph.sources[used] for node in self.needed for used in node.all_input_nodes if used in graph.sources
        )
        self.fed: set[fx.Node] = set(graph.inputs)
        for node in graph.nodes:
            if any(used in self.fed for used in node.all_input_nodes):
                self.fed.add(node)
        self.readers = Readers({axis.name: set() for axis in layout.axes})

    def run(self) -> Readers:
        for node in self.graph.nodes:
            if node.op != "call_function" or node not in self.needed:
                continue
            for operands in self._sums(node):
                axes = {axis for source, dim in operands for axis in self._axes(source, dim)}
                for axis in sorted(axes - self._kept(node, operands)):
                    self._read(node, operands, axis)
            if op_name(node) in _EVEN:
                self.readers.even |= (averaged := self._averaged(node))
                self.readers.weighed |= averaged if op_name(node) == "softmax" else set()
        return self.readers

    # --- what is summed

    def _sums(self, node: fx.Node) -> Iterator[list[tuple[fx.Node, int]]]:
        """For every sum that the node forms, the operands that are multiplied, and the dimension of each."""
        name, args = op_name(node), node.args
        if name == "linear":
            yield _operands((args[1], 1), (args[0], -1))
        elif name in CONVOLUTIONS:
            transposed = "transpose" in name or (name == "convolution" and bool(args[6]))
            space = len(shape_of(args[1])) - 2
            yield _operands((args[1], 0 if transposed else 1), (args[0], -space - 1))
        elif name in ("matmul", "mm", "bmm", "addmm", "baddbmm"):
            a, b = args[1:3] if name in ("addmm", "baddbmm") else args[:2]
            yield _operands((b, -2 if len(shape_of(b)) > 1 else -1), (a, -1))
        elif name == "scaled_dot_product_attention":
            yield _operands((args[0], -1), (args[1], -1))
        elif name == "bilinear":
            yield _operands((args[2], 1), (args[0], -1))
            yield _operands((args[2], 2), (args[1], -1))
        elif name == "einsum":
            yield from _letters(node)
        elif name == "sum":
            yield from (_operands((args[0], dim)) for dim in reduced_dims(node))

    def _axes(self, node: fx.Node, dim: int) -> set[str]:
        """The axes that move in a dimension of a value."""
        labels = self.draft.reading.values.get(node)
        if not isinstance(labels, Labels):
            return set()
        moving = {axis.name for axis in self.layout.axes}
        rank = len(labels.dims)
        return {
            str(leaf)
            for block in as_blocks("", labels.shape, atoms.blocks(labels.dims), self.draft.names)
            for leaf, at in zip(block.leaves, block.dims, strict=True)
            if at == dim % rank and leaf in moving
        }

    def _kept(self, node: fx.Node, operands: list[tuple[fx.Node, int]]) -> set[str]:
        """The axis of the groups of a convolution, which is not summed over."""
        if op_name(node) not in CONVOLUTIONS:
            return set()
        weight, dim = operands[0]
        channel, inner = operands[1] if len(operands) > 1 else operands[0], self._axes(weight, dim)
        if dim == 1:
            return self._axes(*channel) - inner
        return self._axes(*channel) & self._axes(node, channel[1]) if _groups(node) > 1 else set()

    def _averaged(self, node: fx.Node) -> set[str]:
        """The axes that an operation averages or normalises over."""
        name, source = op_name(node), node.args[0]
        assert isinstance(source, fx.Node)
        rank = len(shape_of(source))
        if name == "group_norm":
            labels = self.draft.reading.values.get(source)
            groups = int(node.args[1])  # type: ignore[arg-type]
            if not isinstance(labels, Labels):
                return set()
            outer, size = set(), 1
            for atom in atoms.flat(labels.dims[1]):
                if size < groups:
                    outer.add(self.draft.names.get(atom, ""))
                    size *= atom.size
            return self._axes(source, 1) - outer
        if name in ON_LAST:
            return {a for k in range(1, len(node.args[1]) + 1) for a in self._axes(source, -k)}  # type: ignore[arg-type]
        if name in ("softmax", "log_softmax"):
            return self._axes(source, int(node.args[1]))  # type: ignore[arg-type]
        return {a for dim in reduced_dims(node) for a in self._axes(source, dim % rank)}

    # --- what could take a share

    def _read(self, node: fx.Node, operands: list[tuple[fx.Node, int]], axis: str) -> None:
        """Add the places whose shares make one sum right."""
        if all(source in self.fed for source, _ in operands) and len(operands) > 1:
            self.readers.dots.add(axis)
        for source, dim in sorted(operands, key=lambda o: self._rank(o[0])):
            units = self._units(source, dim, axis)
            found: dict[str, Tensor] = {}
            if units is None or not self.factors.of(source, units, found):
                continue
            places = self._places(found, axis)
            if places is not None:
                self.readers.places[axis] |= places
                if any(self.uses[name] > 1 for name in found):
                    self.readers.tied.add(axis)
                return
        self.readers.unread.setdefault(axis, op_name(node))

    def _rank(self, source: fx.Node) -> int:
        """Weights first, then activations, then weights that occur twice."""
        if source in self.fed:
            return 1
        return 2 if self.uses[self.graph.sources.get(source, "")] > 1 else 0

    def _units(self, node: fx.Node, dim: int, axis: str) -> Tensor | None:
        """For every entry of a value the unit of the axis, from one, that it stands at in a dimension."""
        labels = self.draft.reading.values.get(node)
        if not isinstance(labels, Labels):
            return None
        units = torch.zeros(labels.shape, dtype=torch.long)
        for block in as_blocks("", labels.shape, atoms.blocks(labels.dims), self.draft.names):
            for leaf, name in enumerate(block.leaves):
                if name == axis and block.dims[leaf] == dim % len(labels.dims):
                    view = self.layout.view(block, units)
                    view.copy_(_counted(view, leaf))
        return units if bool(units.any()) else None

    def _places(self, found: dict[str, Tensor], axis: str) -> set[Place] | None:
        """The places of the axis at which the tensors hold these units, or None where they hold others."""
        places = set()
        for name, units in found.items():
            left = units.clone()
            for number, block in self.layout.blocks_of(name):
                view = self.layout.view(block, units)
                for leaf, own in enumerate(block.leaves):
                    if own == axis and torch.equal(view, _counted(view, leaf).expand(view.shape)):
                        places.add(Place(number, leaf))
                        self.layout.view(block, left).zero_()
            if bool(left.any()):
                return None
        return places


def _operands(*pairs: tuple[Any, int]) -> list[tuple[fx.Node, int]]:
    return [(node, dim) for node, dim in pairs if isinstance(node, fx.Node)]


def _letters(node: fx.Node) -> Iterator[list[tuple[fx.Node, int]]]:
    """The operands and dimensions of every letter of an einsum that its output has not."""
    equation = str(node.args[0]).replace(" ", "")
    inputs, arrow, output = equation.partition("->")
    terms, tensors = inputs.split(","), list(node.args[1])  # type: ignore[arg-type]
    letters = [c for c in dict.fromkeys(inputs) if c.isalpha()]
    gone = [c for c in letters if (c not in output if arrow else inputs.count(c) > 1)]
    for letter in gone:
        met = [(t, term) for t, term in zip(tensors, terms, strict=True) if letter in term]
        yield _operands(*((t, term.index(letter) - (len(term) if "." in term else 0)) for t, term in met))


def _groups(node: fx.Node) -> int:
    number = 8 if op_name(node) == "convolution" else 6
    return int(node.args[number]) if len(node.args) > number else int(node.kwargs.get("groups", 1))  # type: ignore[arg-type]


def _counted(view: Tensor, leaf: int) -> Tensor:
    """1, 2, .. along one dimension of a view."""
    return torch.arange(1, view.shape[leaf] + 1).reshape([-1 if k == leaf else 1 for k in range(view.dim())])
