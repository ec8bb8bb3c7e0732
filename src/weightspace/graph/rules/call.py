"""One operation as a rule sees it, and what most rules are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from weightspace.graph import atoms
from weightspace.graph.atoms import Dim, flat, pin, unify

__all__ = [
    "Call",
    "Labels",
    "Outcome",
    "RULES",
    "broadcast",
    "follow_choices",
    "follow_positions",
    "fresh",
    "give_up",
    "look_up",
    "outputs",
    "pointwise",
    "rule",
    "unknown",
]


@dataclass
class Labels:
    """The dimensions of one tensor.

    `uniform`: all its entries are equal, so that every view of it is fresh. `points`: its entries are indices of this
    dimension (where a largest entry stands), so that they are renumbered with it. `counts`: its entries are 0, 1, 2, ..
    `flags`: its entries are true or false. `chosen`: dimensions of which an index was picked for every entry, by whom:
    the tensor depends on them, though they are gone (the expert of a token). `numbers`: the entries of a list of
    indices that stands in the code.
    """

    dims: list[Dim]
    uniform: bool = False
    points: Dim | None = None
    counts: bool = False
    flags: bool = False
    chosen: dict[int, Dim] = field(default_factory=dict)
    numbers: tuple[int, ...] | None = None

    @property
    def full(self) -> Labels:
        """The dimensions that are there and those that were chosen from."""
        return Labels([*self.dims, *self.chosen.values()]) if self.chosen else self

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""
        return tuple(atoms.size(flat(d)) for d in self.dims)


Outcome: TypeAlias = Labels | tuple[Labels | None, ...]


@dataclass
class Call:
    """One node of the graph as a rule sees it: its operator, its arguments by name (tensors as Labels), the shapes of
    its outputs, which of several outputs are used, and the tensors that it holds inside."""

    op: str
    args: dict[str, Any]
    shapes: list[tuple[int, ...]]
    used: set[int]
    pointwise: bool = False
    reduction: bool = False
    hidden: list[Labels] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def tensors(self) -> list[Labels]:
        """Every tensor argument, lists included."""
        found: list[Labels] = []
        for value in self.args.values():
            items = value if isinstance(value, (list, tuple)) else [value]
            found += [item for item in items if isinstance(item, Labels)]
        return found

    def tensor(self, *names: str) -> Labels:
        """The first of the named arguments that is a tensor."""
        return next(self.args[n] for n in names if isinstance(self.args.get(n), Labels))

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of the named arguments that is there."""
        return next((self.args[n] for n in names if self.args.get(n) is not None), default)

    def axis(self, *names: str, rank: int) -> int:
        """A dimension argument as a non-negative integer."""
        return int(self.get(*names, default=0)) % max(rank, 1)

    def hide(self, *dims: Dim) -> None:
        """Record a tensor that the operation holds inside (statistics, scores)."""
        self.hidden.append(Labels(list(dims)))


Rule: TypeAlias = Callable[[Call], Outcome]
RULES: dict[str, Rule] = {}
MOVERS: set[str] = set()
KEEPERS: set[str] = set()
READERS: dict[str, tuple[str, ...]] = {}


def rule(*ops: str, moves: bool = False, keeps: bool = False, reads: tuple[str, ...] = ()) -> Callable[[Rule], Rule]:
    """Register a rule under the operator names it serves.

    `moves`: entries of the first tensor come out as they are, so that positions stay positions; `keeps`: all of them,
    in their order. `reads`: arguments in
    which the rule itself knows what positions mean. All others pin the dimension to which positions point.
    """

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        MOVERS.update(ops if moves or keeps else ())
        KEEPERS.update(ops if keeps else ())
        READERS.update(dict.fromkeys(ops, reads))
        return function

    return register


def look_up(d: Dim, positions: Labels) -> None:
    """A dimension is indexed by the entries of a tensor: it is what they point at, or else it is pinned."""
    target = positions.points
    if target is not None and atoms.size(flat(target)) == atoms.size(flat(d)):
        unify(d, target)
        return
    for pointed in (d, target or []):
        pin(pointed, "looked up by number")


def follow_choices(call: Call, outcome: Outcome) -> None:
    """What is read at positions depends on what they point at, and so does all that is made of it."""
    chosen: dict[int, Dim] = {}
    for name, value in call.args.items():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, Labels):
                chosen |= item.chosen
                if item.points is not None and call.op in MOVERS and name in READERS.get(call.op, ()):
                    chosen[id(item.points)] = item.points  # one list is one choice, in one order
    for label in outcome if isinstance(outcome, tuple) else (outcome,):
        if label is not None and chosen:
            label.chosen = {**label.chosen, **chosen}
    call.hidden = [Labels([*label.dims, *chosen.values()]) for label in call.hidden]


def follow_positions(call: Call, outcome: Outcome) -> None:
    """Positions among the arguments go on where they are only moved, and pin what they point at where they are not."""
    made = [label for label in (outcome if isinstance(outcome, tuple) else (outcome,)) if label is not None]
    for name, value in call.args.items():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if not isinstance(item, Labels) or item.points is None or name in READERS.get(call.op, ()):
                continue
            if call.op in MOVERS and item is call.tensors[0]:
                for label in made:
                    label.points = item.points if call.op in KEEPERS else list(item.points)
            else:
                give_up(call, [item.points], f"{call.op} computes with positions")
    for label in made:
        if label.points is not None:
            call.hide(*label.dims, label.points)


def give_up(call: Call, dims: Iterable[Dim], reason: str) -> None:
    """Pin dimensions that a rule cannot follow; a note says so, unless they could not move anyway."""
    dims = [flat(d) for d in dims]
    if any(leaf.pin is None for leaf in atoms.leaves(dims)) and reason not in call.notes:
        call.notes.append(f"{reason}: pinned")
    for d in dims:
        pin(d, reason)


def unknown(call: Call) -> Outcome:
    """Pin every input and output of an operation that is not known."""
    reason = f"{call.op} has no rule"
    for tensor in call.tensors:
        for d in tensor.dims:
            pin(d, reason)
    call.notes.append(f"{call.op} is not known: every axis that it touches is pinned")
    return outputs(call, [fresh(shape, reason) for shape in call.shapes])


def fresh(shape: Iterable[int], reason: str | None = None, uniform: bool = False) -> Labels:
    """A tensor of new dimensions, pinned if a reason is given."""
    return Labels([atoms.dim(n, reason) for n in shape], uniform)


def outputs(call: Call, labels: list[Labels]) -> Outcome:
    """One tensor, or the several of a call with several outputs."""
    return labels[0] if len(labels) == 1 else tuple(labels)


def broadcast(tensors: list[Labels], reason: str = "broadcast") -> list[Dim]:
    """Unify from the right all dimensions that are not of size one; the dimensions of the result."""
    rank = max((len(t.dims) for t in tensors), default=0)
    out: list[Dim] = [[] for _ in range(rank)]
    for tensor in tensors:
        for k, d in enumerate(reversed(tensor.dims)):
            at = rank - 1 - k
            met = flat(d)
            if not out[at]:
                out[at] = met
            elif met:
                unify(out[at], met)
                if any(atom.constant for atom in out[at]):
                    out[at] = flat(met)
    return [flat(d) for d in out]


@rule("__and__", "__or__", "__xor__", "__iand__", "__ior__", "hardswish", "log_sigmoid", "log_sigmoid_forward",
      "_prelu_kernel", "rrelu_with_noise", "rrelu_with_noise_functional", "complex", "polar", "imag", "isclose",
      "isnan", "isinf", "isreal", "celu", "hardtanh", "relu6", "true_divide", "floor_divide", "isfinite")  # fmt: skip
def pointwise(call: Call) -> Outcome:
    """Elementwise operations of any number of tensors; what comes out beside is not used by anyone."""
    tensors = call.tensors
    if all(t.uniform for t in tensors):
        return outputs(call, [fresh(shape, uniform=True) for shape in call.shapes])
    varied = [t for t in tensors if not t.uniform]
    dims = broadcast(varied)
    if tuple(atoms.size(d) for d in dims) != call.shapes[0]:
        dims = broadcast([Labels(dims), fresh(call.shapes[0])])
    return outputs(call, [Labels(list(dims)) if s == call.shapes[0] else fresh(s) for s in call.shapes])


@rule("eq", "ne", reads=("self", "other"))
def equal(call: Call) -> Outcome:
    """Elementwise; positions compared with 0, 1, 2, .. say which index is meant, in a dimension like theirs."""
    tensors = call.tensors
    pointer = next((t for t in tensors if t.points is not None), None)
    count = next((t for t in tensors if t.counts), None)
    if pointer is None or pointer.points is None or count is None or count.shape.count(1) < len(count.shape) - 1:
        give_up(call, [t.points for t in tensors if t.points is not None], f"{call.op} computes with positions")
        return pointwise(call)
    if atoms.size(flat(pointer.points)) != max(count.shape):
        give_up(call, [pointer.points], f"{call.op} computes with positions")
        return pointwise(call)
    meant = Labels([pointer.points if flat(d) else [] for d in count.dims])
    return Labels(broadcast([Labels(pointer.dims), meant]))
