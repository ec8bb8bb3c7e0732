"""Trying one move alone, by evaluating again only what it changes: a move inside one layer costs that layer.

A run of the graph is kept. The tensors of a move are moved, and operations are evaluated again from there in order of
execution, as long as one of their inputs has changed. A value that is the same but for rounding ends its branch, so a
move that a layer undoes is never felt by the layers after it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from weightspace.graph.trace import Trace, evaluate
from weightspace.net.state import math_attention
from weightspace.symmetry.element import Element
from weightspace.symmetry.moved import touched
from weightspace.symmetry.sign import ordinary

__all__ = ["Alone"]


_ROUNDING = 1e-12  # relative; what is smaller would have to grow a thousandfold to count as a change of an output


class Alone:
    """One run of a graph with its values, in which moves are tried one at a time."""

    def __init__(self, graph: Trace, tensors: dict[str, Tensor], inputs: list[Tensor]) -> None:
        self.order = {node: k for k, node in enumerate(graph.nodes)}
        self.homes: dict[str, list[fx.Node]] = {}
        for node, name in graph.sources.items():
            self.homes.setdefault(name, []).append(node)
        self.values: dict[fx.Node, Any] = {}
        with torch.no_grad(), math_attention():
            for node, _, (value,) in graph.walk([tensors], inputs):
                self.values[node] = value

    def outputs(self, element: Element) -> tuple[list[Tensor], list[Tensor]] | None:
        """The outputs before and after a move; None where no output changes. Raises `SymmetryError`."""
        moving = {node: name for name in touched(element) for node in self.homes.get(name, [])}
        changed: dict[fx.Node, Any] = {}

        def at(node: fx.Node) -> Any:
            if node not in moving or node in changed:
                return changed.get(node, self.values[node])
            value = element.move(moving[node], self.values[node], self._stored)
            if len(node.users) > 1:  # others are not kept, or a move of a whole stream would copy the network
                changed[node] = value
            return value

        todo: list[tuple[int, fx.Node]] = []
        met: set[fx.Node] = set()
        for node in moving:
            self._push(todo, met, node)
        with torch.no_grad(), math_attention():
            while todo:
                _, node = heapq.heappop(todo)
                if node.op == "output":
                    return [*_floats(self.values[node])], [*_floats(fx.map_arg(node.args[0], at))]
                args, kwargs = fx.map_arg((node.args, node.kwargs), at)
                value = evaluate(node, args, kwargs, torch.float64)
                if not _same(self.values[node], value):
                    changed[node] = value
                    self._push(todo, met, node)
        return None

    def _stored(self, name: str) -> Tensor:
        value: Tensor = self.values[self.homes[name][0]]
        return value

    def _push(self, todo: list[tuple[int, fx.Node]], met: set[fx.Node], node: fx.Node) -> None:
        for user in node.users:
            if user not in met:
                met.add(user)
                heapq.heappush(todo, (self.order[user], user))


def _floats(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        if tree.is_floating_point():
            yield tree
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _floats(item)


def _same(before: Any, after: Any) -> bool:
    """Whether two values of an operation are the same, rounding aside."""
    if isinstance(before, (list, tuple)):
        return all(_same(a, b) for a, b in zip(before, after, strict=True))
    if not isinstance(before, Tensor):
        return bool(before == after)
    if not before.is_floating_point():
        return torch.equal(before, after)
    return torch.allclose(after, before, rtol=_ROUNDING, atol=_ROUNDING * ordinary(before), equal_nan=True)
