"""The layers of a graph (linear maps, convolutions, norms): their weights, and the inputs of every unit."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from weightspace.graph.trace import Trace, op_name

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Layer", "layers", "rows_met"]


_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")


@dataclass(frozen=True)
class Layer:
    """A node of a graph whose weight is used nowhere else; `at` is the dimension of its output over its units."""

    node: fx.Node
    name: str
    weight: str
    bias: str | None
    at: int

    def learnt(self, weights: Container[str]) -> bool:
        """Whether its weight and bias are among the weights, and not buffers."""
        return self.weight in weights and (self.bias is None or self.bias in weights)

    @property
    def contracts(self) -> bool:
        """Whether it is a linear map or a convolution."""
        return self.name == "linear" or self.name in _CONVOLUTIONS

    def plain(self, given: tuple[Any, ...]) -> bool:
        """Whether it is a linear map or a convolution without groups, so that every unit sees all input channels."""
        return self.contracts and not (self.name in _CONVOLUTIONS and len(given) > 6 and given[6] != 1)


def layers(graph: Trace) -> Iterator[Layer]:
    """The layers of a graph: all nodes whose weight, and bias if there is one, is used nowhere else."""
    uses: dict[str, int] = {}
    for node in graph.nodes:
        for used in node.all_input_nodes:
            if used in graph.sources:
                uses[graph.sources[used]] = uses.get(graph.sources[used], 0) + 1
    units = {"linear": (1, -1), "layer_norm": (2, -1), "group_norm": (2, 1)} | dict.fromkeys(_CONVOLUTIONS, (1, 1))
    for node in graph.nodes:
        name = op_name(node) if node.op == "call_function" else ""
        if name not in units or node.kwargs:
            continue
        first, at = units[name]
        named = [graph.sources.get(n) if isinstance(n, fx.Node) else None for n in node.args[first : first + 2]]
        weight, bias = (*named, None, None)[:2]
        if weight is not None and uses[weight] == 1 and (bias is None or uses[bias] == 1):
            yield Layer(node, name, weight, bias, at)


def rows_met(
    layer: Layer, given: tuple[Any, ...], part: slice = slice(None)
) -> Float[Tensor, "examples positions columns"]:
    """The inputs that the rows of a layer's weight are multiplied with, at every position; and a one for the bias.

    For a convolution, patches. `part`: which examples.
    """
    x, weight = given[0][part], given[1]
    if layer.name != "linear":
        patch = torch.eye(weight[0].numel()).to(weight).reshape(-1, *weight.shape[1:])
        x = layer.node.target(x, patch, None, *given[3:6]).movedim(1, -1)  # type: ignore[operator]
    rows = x.reshape(len(x), -1, x.shape[-1])
    return rows if layer.bias is None else torch.cat([rows, torch.ones_like(rows[..., :1])], -1)
