"""Two exported graphs node by node: the same operations, except for casts, which depend on a network's dtype."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from weightspace.graph.trace import Trace, op_name
from weightspace.trust.bounds.rounding import BoundError

__all__ = ["Twins", "dtype_of", "is_cast"]


def dtype_of(node: fx.Node) -> torch.dtype:
    """The dtype of a node's result: of its first floating-point tensor."""
    value = node.meta.get("val")
    parts = value if isinstance(value, (tuple, list)) else [value]
    found = (v.dtype for v in parts if isinstance(v, Tensor) and v.is_floating_point())
    dtype = next(found, None)
    if dtype is None:
        raise BoundError(f"no bound is known for {op_name(node)}, whose values are not real numbers")
    return dtype


def is_cast(node: fx.Node) -> bool:
    """Whether a node casts floating-point numbers of one dtype to another."""
    if node.op != "call_function" or op_name(node) not in ("to", "_to_copy"):
        return False
    source = node.args[0].meta.get("val") if isinstance(node.args[0], fx.Node) else None
    value = node.meta.get("val")
    return all(isinstance(v, Tensor) and v.is_floating_point() for v in (source, value))


class Twins:
    """The pairs of corresponding nodes of two graphs, in order; None beside a cast that the other graph lacks."""

    def __init__(self, a: Trace, b: Trace) -> None:
        self.a, self.b = a, b
        self._first: dict[fx.Node, fx.Node] = {}

    def first(self, twin: fx.Node) -> fx.Node:
        """The node of a's graph that corresponds to one of b's."""
        return twin if self.a is self.b else self._first[twin]

    def __iter__(self) -> Iterator[tuple[fx.Node | None, fx.Node | None]]:
        if self.a is self.b:
            yield from ((node, node) for node in self.a.nodes)
            return
        left, right = list(self.a.nodes), list(self.b.nodes)
        i = j = 0
        while i < len(left) or j < len(right):
            node, twin = (part[k] if k < len(part) else None for part, k in ((left, i), (right, j)))
            cast, other = node is not None and is_cast(node), twin is not None and is_cast(twin)
            if other and not cast and twin is not None:
                source = twin.args[0]
                assert isinstance(source, fx.Node)
                self._first[twin] = self._first[source]
                yield None, twin
                j += 1
            elif cast and not other:
                yield node, None
                i += 1
            else:
                if node is None or twin is None or (node.op, _target(node)) != (twin.op, _target(twin)):
                    seen = " and ".join("nothing" if n is None else _said(n) for n in (node, twin))
                    raise BoundError(f"the two networks compute different functions ({seen} at the same place)")
                self._first[twin] = node
                yield node, twin
                i, j = i + 1, j + 1

    def check(self, node: fx.Node, twin: fx.Node) -> None:
        """Raise `BoundError` unless both are called on the same values with the same settings."""
        if node is not twin and _form((node.args, node.kwargs), _bare) != _form((twin.args, twin.kwargs), self._bare_b):
            raise BoundError(
                f"the two networks call {op_name(node)} in different ways: {node.args} {node.kwargs} and {twin.args} "
                f"{twin.kwargs}"
            )

    def _bare_b(self, twin: fx.Node) -> fx.Node:
        return _bare(self._first[_bare(twin)])


def _target(node: fx.Node) -> Any:
    return node.target if node.op == "call_function" else None


def _said(node: fx.Node) -> str:
    return op_name(node) if node.op == "call_function" else node.op


def _bare(node: fx.Node) -> fx.Node:
    while is_cast(node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _form(value: Any, bare: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_form(v, bare) for v in value]
    if isinstance(value, dict):
        return {k: _form(v, bare) for k, v in value.items()}
    if isinstance(value, torch.dtype):
        return "real" if value.is_floating_point else value
    return bare(value) if isinstance(value, fx.Node) else value
