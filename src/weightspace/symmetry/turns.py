"""Orthogonal and general linear moves of axes: proposed by the graph, and tried in float64 like every other move.

An axis that linear maps write and linear maps read, with nothing else between, may be moved by any invertible matrix: a
scale and a sign of the group with exponents +-1 say where M acts and where M^-T. One that a norm passes, whose gain can
be folded (`fold`), may be rotated; under a norm that subtracts the mean, by the rotations that keep the vector of ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from weightspace.graph import atoms
from weightspace.graph.atoms import Atom
from weightspace.graph.follow import Reading, offsets
from weightspace.graph.rules.call import Labels
from weightspace.graph.trace import SILENT, Trace, op_name
from weightspace.net.errors import SymmetryError
from weightspace.net.seeds import derived
from weightspace.symmetry.axis import MATRICES, Axis, Generator, Place
from weightspace.symmetry.fold import fold_in_place, values_at
from weightspace.symmetry.group import Group
from weightspace.symmetry.probe import Probe, usable
from weightspace.symmetry.scale import place_slopes, scale_generators
from weightspace.symmetry.verify import distance, moved

__all__ = ["Trial", "Turns", "find_turns"]


_LINEAR = {
    "_to_copy", "_unsafe_view", "add", "add_", "addmm", "addmv", "alias", "baddbmm", "bilinear", "bmm", "cat",
    "chunk", "clone", "constant_pad_nd", "contiguous", "conv1d", "conv2d", "conv3d", "conv_transpose1d",
    "conv_transpose2d", "conv_transpose3d", "convolution", "detach", "div", "div_", "dot", "dropout", "einsum",
    "embedding", "expand", "expand_as", "flatten", "flip", "gather", "getitem", "index", "index_select", "linear", "mT",
    "masked_fill", "matmul", "mean", "mm", "movedim", "mul", "mul_", "mv", "narrow", "neg", "numpy_T", "outer",
    "pad", "permute", "repeat", "repeat_interleave", "reshape", "roll", "scaled_dot_product_attention",
    "select", "slice", "split", "split_with_sizes", "squeeze", "stack", "sub", "sub_", "sum", "t", "to",
    "transpose", "type_as", "unbind", "unflatten", "unsqueeze", "view", "where", "zeros_like",
}  # fmt: skip
_NORMS = {"layer_norm", "rms_norm", "native_layer_norm", "_fused_rms_norm", "pow", "square", "var", "var_mean", "std",
          "linalg_vector_norm", "norm", "cosine_similarity", "_cdist_forward", "cdist"}  # fmt: skip
_AT_HOME = 1e-6  # the network's own weights may be badly conditioned


@dataclass
class Turns:
    """What was found: `generators`, the scales and signs that folding uses, and places without effect."""

    generators: list[Generator] = field(default_factory=list)
    gauge: list[Generator] = field(default_factory=list)
    free: list[Place] = field(default_factory=list)

    def replaced(self, generators: Iterable[Generator]) -> list[Generator]:
        """With the scales and signs that these moves contain left out."""
        axes = {g.axis for g in self.generators}
        return [*(g for g in generators if g.axis not in axes), *self.generators]


def find_turns(
    group: Group, graph: Trace, reading: Reading, names: dict[Atom, str], probe: Probe, say: Callable[[str], None]
) -> Turns:
    """The moves by matrices of every axis that admits them. `group`: with its permutations, scales and signs.

    `say` is given notes on axes that a norm keeps from turning.
    """
    search = _Search(group, graph, probe, _uses(graph, reading, names), say, Turns(), offsets=offsets(graph))
    outer = {name for axis in group.axes for name in axis.over}
    for axis in group.permutable():
        if axis.name not in outer and axis.size > 1:
            search.propose(axis)
    search.linear()
    for axis in group.permutable():
        if axis.name not in outer and axis.size > 2:
            search.orthogonal(axis)
    return search.found


# ------------------------------------------------------------------ what the graph does with an axis


def _uses(graph: Trace, reading: Reading, names: dict[Atom, str]) -> dict[str, set[str]]:
    """For every axis the operations that meet it; "product" and "gain" tell apart what it is multiplied by."""
    uses: dict[str, set[str]] = {}
    held: dict[fx.Node, set[str]] = {}
    for node in graph.nodes:
        value = reading.values.get(node)
        parts = value if isinstance(value, tuple) else (value,)
        own = {name for part in parts if isinstance(part, Labels) for name in _names_in(part, names)}
        held[node] = own
        if node.op != "call_function" or op_name(node) in SILENT:
            continue
        before = [held.get(used, set()) for used in node.all_input_nodes]
        for name in own.union(*before):
            uses.setdefault(name, set()).add(_use(graph, node, name, held))
    return uses


def _names_in(labels: Labels, names: dict[Atom, str]) -> set[str]:
    return {names[leaf] for leaf in atoms.leaves(labels.dims) if leaf in names} if 0 not in labels.shape else set()


def _use(graph: Trace, node: fx.Node, name: str, held: dict[fx.Node, set[str]]) -> str:
    op = op_name(node)
    if op.rstrip("_") not in ("mul", "div", "where"):
        return op
    with_axis = [used for used in node.all_input_nodes if name in held.get(used, set())]
    with_axis = [used for used in with_axis if not _is_repeated(used, name, held)]
    if len(with_axis) < 2:
        return "square" if len(node.args) > 1 and node.args[0] is node.args[1] else op
    return "gain" if any(_of_weights(graph, used) for used in with_axis) else "product"


def _is_repeated(node: fx.Node, name: str, held: dict[fx.Node, set[str]]) -> bool:
    """Whether a value is one number, such as a norm, repeated along an axis."""
    return op_name(node) in ("expand", "expand_as") and name not in held.get(node.all_input_nodes[0], set())


def _of_weights(graph: Trace, node: fx.Node) -> bool:
    """Whether a value is computed from parameters alone."""
    todo, seen = [node], set()
    while todo:
        at = todo.pop()
        if at in seen:
            continue
        seen.add(at)
        if at.op == "placeholder" and at not in graph.sources and at not in graph.constants:
            return False
        if len(seen) > 16:
            return False
        todo += at.all_input_nodes
    return True


# ------------------------------------------------------------------ proposed and tried


@dataclass
class _Search:
    group: Group
    graph: Trace
    probe: Probe
    uses: dict[str, set[str]]
    say: Callable[[str], None]
    found: Turns
    proposed: dict[str, list[Generator]] = field(default_factory=dict)
    offsets: dict[str, float] = field(default_factory=dict)  # of gains c + w the number c
    shifted: list[Generator] | None = None

    def propose(self, axis: Axis) -> None:
        """GL(n): where a scale with exponents +-1, a sign, and no operation but linear ones meet the axis."""
        if not self.uses.get(axis.name, set()) <= _LINEAR | {"product"} or "sign" not in axis.kinds:
            return
        scales = [g for g in self.of(axis, "scale") if not g.evaluation and all(abs(e) == 1 for _, e in g.exponents)]
        moves = [Generator(axis.name, "linear", scale.exponents) for scale in scales]
        if moves and self.is_narrow(axis, moves[0]):
            self.proposed[axis.name] = moves

    def linear(self) -> None:
        """Try the proposed moves: the first of every axis all at once, and if that fails, one after the other."""
        firsts = [moves[0] for moves in self.proposed.values()]
        if firsts and self.holds(firsts, [p for moves in firsts for p in self.rest(moves)]):
            found = firsts
        else:
            tried = ([m for m in moves if self.holds([m], self.rest(m))] for moves in self.proposed.values())
            found = [moves[0] for moves in tried if moves]
        self.found.generators += found
        self.found.free += [place for moves in found for place in self.rest(moves)]

    def rest(self, moves: Generator) -> list[Place]:
        """The places of an axis that a scale of it leaves alone: they can have no effect."""
        met = {place for place, _ in moves.exponents}
        return [place for place in self.group.places[moves.axis] if place not in met]

    def is_narrow(self, axis: Axis, moves: Generator) -> bool:
        """Whether the maps on either side reach all units, so that a balanced factorisation exists."""
        self.probe.draw(0)
        for side in (1.0, -1.0):
            blocks = [(self.group.blocks[p.block], p.leaf) for p, e in moves.exponents if e == side]
            rows = [self.group.units(b, leaf, self.probe.net.tensors[b.tensor].detach()) for b, leaf in blocks]
            if not rows or int(torch.linalg.matrix_rank(torch.cat(rows, -1)).min()) < axis.size:
                self.say(
                    f"{axis.name} has more units ({axis.size}) than the rank of the maps that it connects: its linear "
                    "moves are left out"
                )
                return False
        return True

    def orthogonal(self, axis: Axis) -> None:
        """O(n), or its part that keeps the vector of ones: where nothing but linear maps and norms meet the axis.

        Without a norm, where the axis has no scale either, as between the two uses of one matrix.
        """
        done = {g.axis for g in self.found.generators}
        uses = self.uses.get(axis.name, set())
        normed = bool(uses & (_NORMS | {"square"}))
        if axis.name in done or not uses <= _LINEAR | _NORMS | {"gain"} or not normed and self.of(axis, "scale"):
            return
        gauge = self.gauges(axis)
        gains = tuple(g.uniform[0] for g in gauge if g.kind == "scale")
        places = [place for place in self.group.places[axis.name] if place not in gains]
        if axis.over and gains:
            return
        for ones in (False,) if axis.over or not normed else (False, True):
            exponents = tuple((place, 1.0) for place in places)
            moves = Generator(axis.name, "orthogonal", exponents, uniform=gains, ones=ones)
            if self.holds([moves], (), gauge):
                self.found.generators.append(moves)
                self.found.gauge += gauge
                return
        if stuck := self.stuck(axis, gains):
            self.say(f"{axis.name} may not be rotated: the gain {stuck} cannot be folded into what reads it alone")
        elif normed and "gain" in uses and not any("conv" in use for use in uses):
            self.say(f"{axis.name} may not be rotated: its norms have gains that no scale of the group undoes")

    def of(self, axis: Axis, kind: str) -> list[Generator]:
        return [g for g in self.group.generators if (g.axis, g.kind) == (axis.name, kind)]

    def gauges(self, axis: Axis) -> list[Generator]:
        """The scale of every gain that has one of its own, and the sign of the same places."""
        found: list[Generator] = []
        vectors = self.vectors(axis)
        for scale in self.scales(axis):
            gains = [place for place, _ in scale.exponents if place in vectors]
            if len(gains) == 1 and not scale.evaluation and all(abs(e) == 1 for _, e in scale.exponents):
                sign = Generator(axis.name, "sign", tuple((place, 1.0) for place, _ in scale.exponents))
                offset = self.offsets.get(self.group.blocks[gains[0].block].tensor, 0.0)
                found += [replace(g, uniform=(gains[0],), offset=offset) for g in (scale, sign)]
        return found

    def scales(self, axis: Axis) -> list[Generator]:
        """The scales of an axis, those of its gains c + w among them."""
        if not any(self.group.blocks[place.block].tensor in self.offsets for place in self.group.places[axis.name]):
            return self.of(axis, "scale")
        if self.shifted is None:
            slopes = place_slopes(self.group, self.graph, self.probe, offsets=self.offsets)
            self.shifted = scale_generators(self.group, slopes)
        return [g for g in self.shifted if g.axis == axis.name]

    def vectors(self, axis: Axis) -> set[Place]:
        """Where the axis indexes a vector that is not added: a gain."""
        blocks, added = self.group.blocks, self.probe.added - self.offsets.keys()
        return {
            p
            for p in self.group.places[axis.name]
            if len(blocks[p.block].leaves) == 1 and blocks[p.block].tensor not in added
        }

    def stuck(self, axis: Axis, gains: Sequence[Place]) -> str:
        left = sorted(self.group.blocks[p.block].tensor for p in self.vectors(axis) if p not in gains)
        return left[0] if left else ""

    def holds(self, moves: Sequence[Generator], free: Sequence[Place], gauge: Sequence[Generator] = ()) -> bool:
        """Whether random matrices of these moves change no output."""
        return Trial(self.graph, self.probe).holds(self.group.again(generators=moves, gauge=gauge, free=free))


@dataclass
class Trial:
    """Groups of matrices alone, tried on the outputs of a network."""

    graph: Trace
    probe: Probe

    def holds(self, trial: Group) -> bool:
        """Whether random matrices leave the outputs, on drawn weights and inputs and at the network's own weights."""
        tolerance = 1e-4 if self.graph.low_precision and self.probe.graph is None else 1e-9
        try:
            return all(self.unmoved(trial, k, tolerance) for k in range(2)) and self.at_home(trial)
        finally:
            self.probe.draw(0)

    def unmoved(self, trial: Group, k: int, tolerance: float) -> bool:
        """The same on draw number k."""
        self.probe.draw(k)
        return self.same(trial, k, self.probe.inputs(k) if k else self.probe.example, tolerance)

    def at_home(self, trial: Group) -> bool:
        """The same at the network's own weights; where they cannot be folded there is nothing to try."""
        if self.probe.user.device.type == "meta":
            return True
        self.probe.at_home()
        return self.same(trial, 2, self.probe.given, _AT_HOME)

    def same(self, trial: Group, seed: int, example: object, tolerance: float) -> bool:
        """Whether folding, a random element, and other numbers at places without effect, change no output."""
        before = self.probe.outputs(example)
        if not usable(before):
            return True
        try:
            fold_in_place(trial, self.probe.net.tensors)
        except SymmetryError:
            return True
        noise = torch.Generator().manual_seed(seed)
        for place in trial.free:
            view = values_at(trial, self.probe.net, place)
            view.copy_(_noise_like(view, noise))
        with moved(trial.sample(derived(seed, "element"), MATRICES), self.probe):
            return distance(before, self.probe.outputs(example)) <= tolerance


def _noise_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
