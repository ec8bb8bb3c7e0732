"""Sign symmetries, found by testing every operation and solving for parities modulo two.

A slot is one occurrence of an axis in one tensor of the graph. For every operation that holds the axis, flips of random
units at its input slots are tried against flips at its output slots: the patterns that the operation respects form a
subspace of GF(2)^slots, whose annihilator is a set of linear equations. Their solutions, with the outputs and constants
of the network at zero, are the sign generators. No table of odd and even functions is needed. Pointwise operations are
tested at numbers of every size, since a clip is odd until it acts.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from weightspace.graph import atoms
from weightspace.graph.atoms import Atom
from weightspace.graph.follow import Reading
from weightspace.graph.trace import Trace, evaluate, op_name
from weightspace.linear.bits import null_space, reduce_bits
from weightspace.net.errors import SymmetryError
from weightspace.net.inputs import input_tensors
from weightspace.net.state import math_attention
from weightspace.symmetry.axis import Block, Generator, Place, as_blocks, place_axes
from weightspace.symmetry.group import Group
from weightspace.symmetry.probe import Probe
from weightspace.symmetry.reach import Signs, elementwise, wide

__all__ = ["ordinary", "sign_generators"]


Home: TypeAlias = tuple[Any, int]
Slot: TypeAlias = tuple[Home, int, int]
_MOST_SLOTS = 8
_ELEMENTS = 256  # about how many numbers a pointwise operation is tested at
_MOST_ROUNDS = 3
_ALIKE = ("add", "sub", "mul", "div", "neg", "clone", "abs", "relu")  # their effect on signs is the same at any size
_COPIES = ("slice", "select", "split_with_sizes", "unbind", "narrow", "squeeze", "unsqueeze", "permute", "transpose")
_SAMPLE = 1 << 14  # numbers that are compared first
_DECADES = 3.0
_MASK = 1e3  # entries so many times larger than most are mask values


@dataclass
class _Graph:
    """Values and blocks of every tensor in one run of the graph."""

    trace: Trace
    signs: Signs
    masks: Set[str]
    values: dict[Home, Tensor] = field(default_factory=dict)
    blocks: dict[Home, list[Block]] = field(default_factory=dict)
    picked: dict[str, set[str]] = field(default_factory=dict)  # outer axes of which an activation holds one index
    results: dict[Any, list[Home]] = field(default_factory=dict)  # the outputs of an operation
    holders: dict[str, list[fx.Node]] = field(default_factory=dict)  # nodes beside an axis, in order of execution

    def home(self, node: fx.Node) -> Home:
        if node.target is operator.getitem:
            return (node.args[0], int(node.args[1]))  # type: ignore[arg-type]
        return (self.trace.sources.get(node, node), 0)

    def slots(self, home: Home, axis: str) -> list[Slot]:
        return [
            (home, b, k)
            for b, block in enumerate(self.blocks.get(home, []))
            for k, leaf in enumerate(block.leaves)
            if leaf == axis
        ]


def sign_generators(
    group: Group,
    graph: Trace,
    reading: Reading,
    names: Mapping[Atom, str],
    probe: Probe,
    slopes: Mapping[str, Mapping[Place, object]],
    signs: Signs,
    masks: Set[str] = frozenset(),
) -> list[Generator]:
    """All sign generators of the axes that are met in more than one place; tensors in `masks` keep their signs."""
    run = _record(group, graph, reading, names, probe, signs, masks)
    foreign = {name for atom, name in names.items() if atoms.root(atom).foreign}
    found = []
    for axis in group.every:
        if len(slopes.get(axis.name, {})) < 2 or axis.name in foreign:
            continue
        for slots in _solve(group, run, axis.name):
            pairs = tuple(
                sorted(((_as_place(group, slot), 1.0) for slot in slots), key=lambda p: (p[0].block, p[0].leaf))
            )
            if any(p in slopes[axis.name] for p, _ in pairs):
                # a flipped mean is what training would estimate, so signs hold in training mode too
                found.append(Generator(axis.name, "sign", pairs))
    return found


def _as_place(group: Group, slot: Slot) -> Place:
    (name, _), block, leaf = slot
    return Place(group.blocks_of(name)[block][0], leaf)


def _record(
    group: Group, graph: Trace, reading: Reading, names: Mapping[Atom, str], probe: Probe, signs: Signs, masks: Set[str]
) -> _Graph:
    run = _Graph(graph, signs, masks)

    def keep(node: fx.Node, value: Any) -> None:
        labels = reading.values.get(node)
        if node.target is operator.getitem or labels is None:
            return
        values = value if isinstance(value, (tuple, list)) else (value,)
        for i, (item, label) in enumerate(
            zip(values, labels if isinstance(labels, tuple) else (labels,), strict=False)
        ):
            if isinstance(item, Tensor) and label is not None:
                home = (run.home(node)[0], i)
                run.values[home] = item
                run.blocks[home] = list(as_blocks("", tuple(item.shape), atoms.blocks(label.dims), names))

    with torch.no_grad(), math_attention():
        graph.run(probe.net.tensors, input_tensors(probe.example), keep)
    _index(group, run)
    return run


def _index(group: Group, run: _Graph) -> None:
    """Which outer axes are picked, and which nodes hold an axis: every axis is then solved on its own part alone."""
    axes: dict[Home, set[str]] = {}
    for home, found in run.blocks.items():
        run.results.setdefault(home[0], []).append(home)
        axes[home] = {leaf for block in found for leaf in block.leaves if isinstance(leaf, str)}
        for block in found:
            for leaf in axes[home] & set(block.leaves):
                outer = {name for name in group[str(leaf)].over if name not in block.leaves}
                run.picked.setdefault(str(leaf), set()).update(outer)
    for node in run.trace.nodes:
        homes = {run.home(n) for n in node.all_input_nodes} | {run.home(node), *run.results.get(node, [])}
        for name in set().union(*(axes.get(home, set()) for home in homes)):
            run.holders.setdefault(name, []).append(node)


def _solve(group: Group, run: _Graph, axis: str) -> list[list[Slot]]:
    """Independent sets of parameter slots that may be flipped together."""
    variables: dict[Slot, int] = {}
    equations: list[int] = []
    for node in run.holders.get(axis, []):
        if node.op == "output":
            homes = [run.home(n) for n in node.all_input_nodes]
            equations += [1 << _number(variables, s) for home in homes for s in run.slots(home, axis)]
        elif node.op == "placeholder" and node not in run.trace.sources or node.op == "get_attr":
            equations += [1 << _number(variables, s) for s in run.slots(run.home(node), axis)]
        elif node.op == "call_function" and node.target is not operator.getitem:
            equations += _node_equations(group, run, node, axis, variables)
    equations += [1 << k for (home, _, _), k in variables.items() if home[0] in run.masks]
    solutions = null_space(equations, len(variables))
    own = {k: slot for slot, k in variables.items() if isinstance(slot[0][0], str)}
    mask = sum(1 << k for k in own)
    return [[own[k] for k in own if row >> k & 1] for row in reduce_bits([s & mask for s in solutions])]


def _number(variables: dict[Slot, int], slot: Slot) -> int:
    return variables.setdefault(slot, len(variables))


def _node_equations(group: Group, run: _Graph, node: fx.Node, axis: str, variables: dict[Slot, int]) -> list[int]:
    homes = dict.fromkeys(run.home(n) for n in node.all_input_nodes)
    inputs = [slot for home in homes for slot in run.slots(home, axis)]
    results = run.results.get(node, [])
    outputs = [slot for home in results for slot in run.slots(home, axis)]
    slots = inputs + outputs
    if not slots:
        return []
    probe = _Op(group, run, node, axis, inputs)
    equations: list[int] = []
    for home in dict.fromkeys(slot[0] for slot in outputs) or results:
        for number, block in enumerate(run.blocks[home]):
            own = [slot for slot in outputs if slot[:2] == (home, number)]
            relevant = probe.relevant(home, number)
            if not own and not relevant:
                continue
            met = [inputs[k] for k in relevant] + own
            rows = null_space(probe.respected(home, block, relevant, own), len(met))
            numbers = [_number(variables, slot) for slot in met]
            equations += [sum(1 << numbers[k] for k in range(len(met)) if row >> k & 1) for row in rows]
    return equations


class _Op:
    """One operation, evaluated under flips of random units at its input slots.

    In every round but the first its inputs have other sizes, and in every other round the other units are flipped.
    """

    def __init__(self, group: Group, run: _Graph, node: fx.Node, axis: str, inputs: list[Slot]) -> None:
        self.group, self.run, self.node, self.inputs = group, run, node, inputs
        shape = group.sizes(group[axis])
        generator = torch.Generator().manual_seed(0)
        flips = torch.rand(shape, generator=generator, device="cpu") < 0.5
        self.signs = 1.0 - 2.0 * flips.double()
        self.signs[..., 0], self.signs[..., -1] = -1.0, 1.0
        for k, outer in enumerate(group[axis].over):
            if outer in run.picked.get(axis, ()):
                self.signs = self.signs.narrow(k, 0, 1).expand(shape)
        self.rounds = [self.run.values, *self._elsewhere()]
        self._seen: dict[tuple[int, int], Any] = {}
        self._differs: dict[tuple[Home, int, int], Set[int] | None] = {}
        self._places: dict[Home, Tensor] = {}
        self.last: dict[Home, tuple[tuple[int, int], Tensor]] = {}  # the last flip of each input
        self.copied = self._copied() if op_name(node) in _COPIES and len(inputs) > _MOST_SLOTS else range(len(inputs))

    def _copied(self) -> list[int]:
        """The input slots of which an operation that copies entries takes any, by halves: entries cannot cancel."""
        found: list[int] = []
        still, todo = _apply(self, 0, 0), [list(range(len(self.inputs)))]
        while todo:
            some = todo.pop()
            out = _apply(self, sum(1 << k for k in some), 0)
            if out is not None and still is not None and all(map(_equal, out, still)):
                continue
            half = len(some) // 2
            todo += [some[:half], some[half:]] if half else []
            found += [] if half else some
        return sorted(found)

    def _elsewhere(self) -> list[dict[Home, Tensor]]:
        homes = dict.fromkeys(self.run.home(n) for n in self.node.all_input_nodes)
        given = {home: self.run.values[home] for home in homes if home in self.run.values}
        if (
            not elementwise(self.node)
            or op_name(self.node) in _ALIKE
            or not any(v.is_floating_point() for v in given.values())
        ):
            return []
        count = min(_MOST_ROUNDS, max(1, -(-_ELEMENTS // max(v.numel() for v in given.values()))))
        return [
            {home: self._wide(home, v, number) if v.is_floating_point() else v for home, v in given.items()}
            for number in range(count)
        ]

    def _wide(self, home: Home, value: Tensor, seed: int) -> Tensor:
        met = [self.run.signs[n] for n in self.node.all_input_nodes if self.run.home(n) == home and n in self.run.signs]
        return value * wide(value, met[0] if met else (True, True), seed, _DECADES)

    def flips(self, number: int) -> Tensor:
        """The sign of every unit of the axis, in that round."""
        return self.signs if number % 2 == 0 else -self.signs

    def value(self, pattern: int, home: Home, number: int) -> Tensor | None:
        """One output of the operation with the input slots in `pattern` flipped, in that round."""
        if (pattern, number) not in self._seen:
            self._seen[pattern, number] = _apply(self, pattern, number)
        out = self._seen[pattern, number]
        return out[home[1]] if out is not None and isinstance(out[home[1]], Tensor) else None

    def relevant(self, home: Home, place: int) -> list[int]:
        """Input slots whose flip alone changes this block of the output."""
        felt, block = set(), self.run.blocks[home][place]
        for number in range(len(self.rounds)):
            still = None
            for k in self.copied:
                differing = self._differing(home, k, number)
                if differing is not None and place not in differing:
                    continue
                value, still = (
                    self.value(1 << k, home, number),
                    self._still(home, block, number) if still is None else still,
                )
                if value is None or still is None or not _same(self.group.view(block, value.contiguous()), still):
                    felt.add(k)
        return sorted(felt)

    def _differing(self, home: Home, k: int, number: int) -> Set[int] | None:
        """The blocks of an output with any change at all when one input slot is flipped; None where it has no value.

        All blocks are compared at once, since a concatenation has as many of them as inputs.
        """
        if (home, k, number) not in self._differs:
            value, still = self.value(1 << k, home, number), self._whole(home, number)
            found: set[int] | None = None
            if value is not None and still is not None and value.shape == still.shape:
                if torch.equal(value, still):
                    found = set()
                elif len(self.run.blocks[home]) == 1:
                    found = {0}
                else:
                    changed = (value != still) & ~(value.isnan() & still.isnan())
                    found = set(self._numbers(home)[changed].unique().tolist())
            self._differs[home, k, number] = found
        return self._differs[home, k, number]

    def _numbers(self, home: Home) -> Tensor:
        """The number of the block that each entry of an output lies in."""
        if home not in self._places:
            value = self.run.values[home]
            self._places[home] = torch.full(value.shape, -1, device=value.device)
            for number, block in enumerate(self.run.blocks[home]):
                self.group.view(block, self._places[home]).fill_(number)
        return self._places[home]

    def _whole(self, home: Home, number: int) -> Tensor | None:
        return self.run.values[home] if number == 0 else self.value(0, home, number)

    def _still(self, home: Home, block: Block, number: int) -> Tensor | None:
        value = self._whole(home, number)
        return None if value is None else self.group.view(block, value.contiguous())

    def respected(self, home: Home, block: Block, relevant: list[int], own: list[Slot]) -> list[int]:
        """Flip patterns (relevant inputs, then the block's own slots) under which the block keeps its values."""
        if own and not self.run.values[home].is_floating_point():
            return [1 << len(relevant) + k for k in range(len(own))]  # flags and counts carry no sign
        patterns = [p | q << len(relevant) for p in _subsets(len(relevant)) for q in _subsets(len(own)) if p or q]
        for number in range(len(self.rounds)):
            patterns = [p for p in patterns if self._respects(p, home, block, relevant, own, number)]
        return patterns

    def _respects(
        self, pattern: int, home: Home, block: Block, relevant: list[int], own: list[Slot], number: int
    ) -> bool:
        flipped = sum(1 << relevant[k] for k in range(len(relevant)) if pattern >> k & 1)
        value, wanted = self.value(flipped, home, number), self._still(home, block, number)
        if value is None or wanted is None:
            return False
        for k, (_, _, leaf) in enumerate(own):
            if pattern >> len(relevant) + k & 1:
                wanted = wanted * _spread(self, self.flips(number).to(wanted), block, leaf)
        return _same(self.group.view(block, value.contiguous()), wanted)


def _subsets(n: int) -> list[int]:
    if n <= _MOST_SLOTS:
        return list(range(1 << n))
    few = [sum(1 << k for k in chosen) for size in (0, 1, 2) for chosen in combinations(range(n), size)]
    return [*few, (1 << n) - 1]


def _flip(op: _Op, home: Home, pattern: int, number: int) -> Tensor:
    value = op.rounds[number][home]
    mine = [k for k, slot in enumerate(op.inputs) if slot[0] == home and pattern >> k & 1]
    if not mine or not value.is_floating_point():
        return value
    key = sum(1 << k for k in mine), number
    if home in op.last and op.last[home][0] == key:
        return op.last[home][1]
    op.last.pop(home, None)
    value = value.contiguous().clone()
    for _, b, k in (op.inputs[k] for k in mine):
        block = op.run.blocks[home][b]
        op.group.view(block, value).mul_(_spread(op, op.flips(number).to(value), block, k))
    op.last[home] = key, value
    return value


def _spread(op: _Op, signs: Tensor, block: Block, leaf: int) -> Tensor:
    """The flips, shaped for a block; along an outer axis of which an index was picked they are all alike."""
    over = op.group[str(block.leaves[leaf])].over
    at: list[int] = []
    for k in reversed(range(len(over))):
        if over[k] in block.leaves:
            at.insert(0, block.leaves.index(over[k]))
        else:
            signs = signs.select(k, 0)
    return place_axes(signs, [*at, leaf], len(block.leaves))


def _apply(op: _Op, pattern: int, number: int) -> list[Any] | None:
    flipped: dict[Home, Tensor] = {}

    def argument(n: fx.Node) -> Any:
        home = op.run.home(n)
        if home not in flipped:
            flipped[home] = _flip(op, home, pattern, number)
        return flipped[home]

    try:
        with torch.no_grad(), math_attention():
            args, kwargs = fx.map_arg((op.node.args, op.node.kwargs), argument)
            out = evaluate(op.node, args, kwargs, torch.float64)
    except (KeyError, SymmetryError):
        return None
    return list(out) if isinstance(out, (tuple, list)) else [out]


def _equal(a: Any, b: Any) -> bool:
    return not isinstance(a, Tensor) or torch.equal(a, b)


def _same(got: Any, wanted: Tensor) -> bool:
    if not isinstance(got, Tensor) or got.shape != wanted.shape:
        return False
    if not got.is_floating_point():
        return torch.equal(got, wanted)
    wanted, size = wanted.to(got.dtype), 1e-11 * ordinary(wanted)
    alike = partial(torch.allclose, rtol=1e-9, atol=size, equal_nan=True)
    if got.numel() > _SAMPLE:
        if torch.equal(got, wanted):
            return True
        step = got.numel() // _SAMPLE
        if not alike(got.flatten()[::step], wanted.flatten()[::step]):
            return False
    return alike(got, wanted)


def ordinary(value: Tensor) -> float:
    """The largest absolute value of a tensor, mask values aside: beside -1e38 no other change would show."""
    low, high = (float(end) for end in value.aminmax()) if value.numel() else (0.0, 0.0)
    largest = max(-low, high)
    if not largest <= _MASK:
        sizes = value.abs().double().nan_to_num(0.0, 0.0, 0.0)
        met = sizes[sizes > 0]
        largest = float(met[met <= _MASK * met.median()].max()) if met.numel() else 0.0
    return largest + 1e-300
