"""Interpreter of two networks' graphs on a batch: the reference values, and bounds on the distance from them.

Values that do not depend on the inputs (weights and what is computed from them) are computed for both networks, in
float64 and in their own dtypes: the difference is their rounding, counted twice, because another kernel may round in
another order. So are values that depend on integer inputs only. All others go through the rules.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, fx

from weightspace.graph.trace import Trace, op_name
from weightspace.net.inputs import input_tensors
from weightspace.net.net import Net
from weightspace.trust.bounds import maps, norms, pointwise, shapes, sums
from weightspace.trust.bounds.rounding import EXACT, Arithmetic, BoundError
from weightspace.trust.bounds.rule import Call, Far, Value, bind, size
from weightspace.trust.bounds.twins import Twins, dtype_of

__all__ = ["FAMILIES", "Walk", "apply", "known"]


FAMILIES = (maps, norms, pointwise, shapes, sums)
_SILENT = ("_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range_for_size")
_REFERENCE = Arithmetic.of(torch.float64)


def apply(
    node: fx.Node,
    look: Callable[[fx.Node], Any],
    out: Any,
    arithmetic: tuple[Arithmetic, Arithmetic, Arithmetic],
    data: bool = True,
    operators: dict[str, float] | None = None,
) -> Far:
    """The bounds of an operation's result, by its rule. `look(node)`: an argument; `out`: the reference result.

    Raises `BoundError`, which names the operation and the argument, where no rule covers them.
    """
    entry, values, plain = bind(node, look, arithmetic)
    name, operators = op_name(node), {} if operators is None else operators
    return entry.find(Call(name, node.target, values, plain, out, data, arithmetic, operators))


def known(own_a: Any, own_b: Any, a: Any = None, b: Any = None) -> Any:
    """The `Value` of something independent of the inputs: as both networks compute it, and (a, b) in float64."""
    if isinstance(own_a, (tuple, list)):
        wide_a, wide_b = (own_a if a is None else a), (own_b if b is None else b)
        return tuple(known(*parts) for parts in zip(own_a, own_b, wide_a, wide_b, strict=True))
    if isinstance(own_a, float) or (isinstance(own_a, int) and own_a != own_b):
        own_a, own_b, a, b = (torch.tensor(float(x), dtype=torch.float64) for x in (own_a, own_b, own_a, own_b))
    if not isinstance(own_a, Tensor):
        return own_a
    a, b = _wide(own_a if a is None else a), _wide(own_b if b is None else b)
    same = own_a is own_b or (own_a.dtype == own_b.dtype and torch.equal(own_a, own_b))
    loose = _loose(own_a, a)
    loose_b = loose if same else _loose(own_b, b)
    apart = 0.0 if same else size(b.double() - a.double()) + loose + loose_b
    return Value(a, Far(size(a.double()), loose, apart), same, b, loose_b)


def _wide(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _loose(own: Tensor, wide: Tensor) -> float:
    """A bound on the rounding of a value: twice its measured error plus one roundoff, or zero if it is exact."""
    if not own.is_floating_point() or own.numel() == 0 or torch.equal(own.double(), wide):
        return 0.0
    return 2 * size(own.double() - wide) + torch.finfo(own.dtype).eps * size(wide)


@dataclass
class Walk:
    """Two networks, with what is shared by all batches: operator norms, and values that do not depend on the inputs.

    `data`: whether activations are measured; `start`: the distance of b's inputs from a's, and rounding is left out.
    """

    a: Net
    b: Net
    data: bool = True
    start: float | None = None
    operators: dict[fx.Node, dict[str, float]] = field(default_factory=dict)
    still: dict[fx.Node, tuple[Any, Any, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tensors = self.a.tensors, self.b.tensors
        self.device = self.a.device.type

    def batch(self, graphs: tuple[Trace, Trace], inputs: tuple[Any, Any]) -> list[Any]:
        """The values of the graph's outputs for one batch, given as inputs of a and of b."""
        return _Batch(self, graphs, inputs).run()


class _Batch:
    """One batch. `env`: the value of every node of a's graph; `own`: what a and b compute, where no rule is needed."""

    def __init__(self, walk: Walk, graphs: tuple[Trace, Trace], inputs: tuple[Any, Any]) -> None:
        self.walk, self.graphs, self.twins = walk, graphs, Twins(*graphs)
        self.inputs: tuple[Iterator[Tensor], ...] = tuple(iter(input_tensors(x)) for x in inputs)
        self.env: dict[fx.Node, Any] = {}
        self.own: dict[fx.Node, tuple[Any, Any]] = {}
        self.learnt: set[fx.Node] = set()  # nodes that depend on weights
        self.given: set[fx.Node] = set()  # nodes that depend on inputs
        self.lost = False  # whether values may have left the range of their dtype

    def run(self) -> list[Any]:
        for node, twin in self.twins:
            if node is None or twin is None:
                self._cast(node, twin)
            elif node.op == "output":
                flat = node.args[0] if isinstance(node.args[0], (tuple, list)) else [node.args[0]]
                return [self._out(self.env[n]) if isinstance(n, fx.Node) else None for n in flat]
            elif node.op == "placeholder":
                self._placeholder(node, twin)
            elif node.op == "get_attr":
                pairs = ((node, self.graphs[0]), (twin, self.graphs[1]))
                self._keep(node, *(operator.attrgetter(str(n.target))(g.graph) for n, g in pairs))
            elif op_name(node) not in _SILENT:
                self._call(node, twin)
        raise BoundError("no bound is known for a network without outputs")

    def _out(self, value: Any) -> Any:
        lost = Far(math.inf, math.inf, math.inf)
        return replace(value, far=lost) if self.lost and isinstance(value, Value) else value

    # -------------------------------------------------------------- inputs, weights and constants

    def _placeholder(self, node: fx.Node, twin: fx.Node) -> None:
        graph_a, graph_b = self.graphs
        if node in graph_a.sources:
            self.learnt.add(node)
            if not self._remembered(node):
                name = graph_a.sources[node]
                tensors_a, tensors_b = self.walk.tensors
                self._keep(node, tensors_a[name], tensors_b[graph_b.sources[twin]])
        elif node in graph_a.constants:
            self._keep(node, graph_a.constants[node], graph_b.constants[twin])
        elif isinstance(node.meta.get("val"), Tensor):
            self._input(node, next(self.inputs[0]), next(self.inputs[1]))
        else:
            self._keep(node, node.meta.get("val"), twin.meta.get("val"))

    def _input(self, node: fx.Node, x: Tensor, x_b: Tensor) -> None:
        self.given.add(node)
        if not x.is_floating_point():
            self._keep(node, x, x_b)
            return
        reference, start = x.double(), self.walk.start
        same = start is None and x.dtype == x_b.dtype
        apart = (0.0 if same else size(x_b.double() - reference)) if start is None else start
        self.env[node] = Value(reference, Far(size(reference), 0.0, apart), same)

    def _keep(self, node: fx.Node, own_a: Any, own_b: Any, a: Any = None, b: Any = None) -> None:
        self.own[node] = own_a, own_b
        self.env[node] = known(own_a, own_b, a, b)
        if node not in self.given:
            self.walk.still[node] = self.env[node], own_a, own_b

    def _remembered(self, node: fx.Node) -> bool:
        if node in self.walk.still:
            self.env[node], *pair = self.walk.still[node]
            self.own[node] = pair[0], pair[1]
        return node in self.walk.still

    # -------------------------------------------------------------- operations

    def _call(self, node: fx.Node, twin: fx.Node) -> None:
        used = node.all_input_nodes
        for group in (self.learnt, self.given):
            if not group.isdisjoint(used):
                group.add(node)
        if not all(n in self.own for n in used) or (node in self.learnt and node in self.given):
            self.env[node] = self._moved(node, twin)
        elif not self._remembered(node):
            self._compute(node, twin)

    def _compute(self, node: fx.Node, twin: fx.Node) -> None:
        """Evaluate a node without a rule: in both networks, in their own dtypes and in float64."""
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise BoundError(f"no bound is known for {op_name(node)}, which draws at random")
        first = self.twins.first
        own_a = _evaluate(node, lambda n: self.own[n][0])
        own_b = own_a if self._equal(node, twin) else _evaluate(twin, lambda n: self.own[first(n)][1])
        a = _evaluate(node, self._reference, lift=True)
        b = a if own_b is own_a else _evaluate(twin, self._reference_b, lift=True)
        self._keep(node, own_a, own_b, a, b)

    def _equal(self, node: fx.Node, twin: fx.Node) -> bool:
        return node is twin and all(self._same(n) for n in node.all_input_nodes)

    def _same(self, node: fx.Node) -> bool:
        value = self.env[node]
        return all(v.same for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, Value))

    def _moved(self, node: fx.Node, twin: fx.Node) -> Value:
        """The value of a node by its rule."""
        if node.target is operator.getitem:
            whole, at = self.env[cast(fx.Node, node.args[0])], cast(int, node.args[1])
            part = whole.a[at]
            norm = size(part) if self.walk.data else whole.far.norm
            return Value(part, Far(norm, whole.far.off, whole.far.apart), whole.same)
        bind(node, self.env.__getitem__)  # refused before it is computed
        self.twins.check(node, twin)
        out = _evaluate(node, self._reference, lift=True)
        if isinstance(out, Tensor) and not out.is_floating_point():
            raise BoundError(f"no bound is known for {op_name(node)}, whose values are not real numbers")
        arithmetic = self._arithmetic(node, twin)
        norms = self.walk.operators.setdefault(node, {})
        far = apply(node, self.env.__getitem__, out, arithmetic, self.walk.data, norms)
        same = dtype_of(node) == dtype_of(twin) and all(self._same(n) for n in node.all_input_nodes)
        far = Far(far.norm, far.off, 0.0) if same else far
        reached = far.norm + far.off
        if not (reached <= arithmetic[1].most and reached + far.apart <= arithmetic[2].most):
            self.lost = True
        return Value(out, far, same)

    def _arithmetic(self, node: fx.Node, twin: fx.Node) -> tuple[Arithmetic, Arithmetic, Arithmetic]:
        if self.walk.start is not None:
            return EXACT, EXACT, EXACT
        own = [Arithmetic.of(dtype_of(n), self.walk.device) for n in (node, twin)]
        return _REFERENCE, own[0], own[1]

    def _cast(self, node: fx.Node | None, twin: fx.Node | None) -> None:
        """A cast that only one of the two graphs has, because the networks have different dtypes: one rounding."""
        there = node or cast(fx.Node, twin)
        source = self.twins.first(cast(fx.Node, there.args[0])) if node is None else cast(fx.Node, there.args[0])
        value = self.env[source]
        if node is not None:
            for group in (self.learnt, self.given):
                if source in group:
                    group.add(node)
        target = source if node is None else node
        if source in self.own:
            own_a, own_b = self.own[source]
            own_a, own_b = (own_a.to(dtype_of(there)), own_b) if node else (own_a, own_b.to(dtype_of(there)))
            self._keep(target, own_a, own_b)
            return
        point = 1 if node else 2
        count = value.a.numel()
        slip = Arithmetic.of(dtype_of(there)).error(0, 0.0, 1, value.at(point), count)
        far = Far(value.far.norm, value.far.off + (slip if node else 0.0), value.far.apart + slip)
        self.env[target] = Value(value.a, far, False)

    def _reference(self, node: fx.Node) -> Any:
        return _plain(self.env[node], self.own.get(node, (None,))[0], "a")

    def _reference_b(self, twin: fx.Node) -> Any:
        node = self.twins.first(twin)
        return _plain(self.env[node], self.own.get(node, (None,))[0], "b")


def _plain(value: Any, own: Any, at: str) -> Any:
    if isinstance(value, tuple):
        return tuple(_plain(v, o, at) for v, o in zip(value, own, strict=True))
    if not isinstance(value, Value):
        return value
    return getattr(value, at).item() if isinstance(own, (int, float)) else getattr(value, at)


def _evaluate(node: fx.Node, look: Callable[[fx.Node], Any], lift: bool = False) -> Any:
    """A node's value; with `lift` in float64, whatever dtype its arguments ask for."""
    args, kwargs = cast(Any, fx.map_arg)((node.args, node.kwargs), look)
    target = cast(Callable[..., Any], node.target)
    if not lift:
        return target(*args, **kwargs)
    try:
        out = target(*map(_double, args), **{key: _double(x) for key, x in kwargs.items()})
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        raise BoundError(f"no bound is known for {op_name(node)}, which has no value in float64 ({said})") from error
    return _wide(out) if isinstance(out, Tensor) else out


def _double(x: Any) -> Any:
    return torch.float64 if isinstance(x, torch.dtype) and x.is_floating_point else x
