"""Activations of two networks on the same data, as terms to be matched.

The tensors compared are those that enter a contraction (a linear map, a convolution, attention): what one layer hands
to the next. Every unit is standardised over the examples (and over space or time), so that inner products are correlations
(Li, Yosinski, Clune, Lipson and Hopcroft, Convergent learning, 2016). The graph gives them: no hooks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from weightspace.net import Net
from weightspace.symmetry import index
from weightspace.symmetry.ascent import Terms
from weightspace.symmetry.group import Block, Group, SymmetryError, as_blocks
from weightspace.symmetry.read import label
from weightspace.symmetry.trace import Trace, arguments, math_attention, op_name

__all__ = ["activation_terms"]

_CONTRACTIONS = {
    "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "bilinear", "convolution", "conv1d", "conv2d",
    "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "scaled_dot_product_attention",
}  # fmt: skip


def activation_terms(group: Group, a: Net, b: Net, x: Any) -> Terms:
    """Standardised activations of a and b on the batch x, in blocks of the group's axes."""
    a, b = a.to(torch.float32), b.to(torch.float32)
    graph, draft = label(a, x)
    if [(axis.name, axis.size) for axis in draft.every] != [(axis.name, axis.size) for axis in group.every]:
        raise SymmetryError("this data takes the network along another path than the example it was read on")
    where: dict[fx.Node, list[Block]] = {}
    movable = {axis.name for axis in group.axes}
    for node in _entering(graph):
        labels = draft.reading.values.get(node)
        if labels is None or isinstance(labels, tuple):
            continue
        blocks = list(as_blocks(node.name, labels.shape, index.blocks(labels.dims), draft.names))
        if any(movable & set(block.leaves) for block in blocks):
            where[node] = blocks
    fixed, moving = (_standardised(group, graph, net, x, where) for net in (a, b))
    blocks = [
        Block(f"{node.name}#{k}", 0, _strides(fixed[f"{node.name}#{k}"]), block.leaves, block.dims)
        for node, found in where.items()
        for k, block in enumerate(found)
        if movable & set(block.leaves)
    ]
    return Terms(blocks, [None] * len(blocks), fixed, moving)


def _entering(graph: Trace) -> list[fx.Node]:
    entering = {
        used
        for node in graph.nodes
        if node.op == "call_function" and op_name(node) in _CONTRACTIONS
        for used in node.all_input_nodes
        if used.op == "call_function"
    }
    return [node for node in graph.nodes if node in entering]


def _strides(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.stride())


def _standardised(group: Group, graph: Trace, net: Net, x: Any, where: dict[fx.Node, list[Block]]) -> dict[str, Tensor]:
    movable = {axis.name for axis in group.axes}
    kept: dict[str, Tensor] = {}

    def watch(node: fx.Node, value: Any) -> None:
        for k, block in enumerate(where.get(node, ())):
            if not movable & set(block.leaves):
                continue
            view = group.view(block, value.contiguous()).float()
            samples = [d for d, leaf in enumerate(block.leaves) if leaf not in movable]
            if samples:
                view = view - view.mean(samples, keepdim=True)
                view = view / view.square().sum(samples, keepdim=True).sqrt().clamp(min=1e-12)
            kept[f"{node.name}#{k}"] = view.contiguous()

    args, kwargs = arguments(x)
    with torch.no_grad(), math_attention():
        graph.run(net.tensors, [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)], watch, lift=False)
    return kept
