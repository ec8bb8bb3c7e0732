"""Activations of two networks on the same data, as terms to be matched.

The tensors compared are those that enter a contraction (a linear map, a convolution, attention): what one layer hands
to the next. Every unit is standardised over the examples (and over space or time), so that inner products are
correlations (Li, Yosinski, Clune, Lipson and Hopcroft, Convergent learning, 2016). The graph gives them: no hooks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations, product
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from weightspace.graph import atoms
from weightspace.graph.trace import Trace, op_name
from weightspace.net.errors import SymmetryError
from weightspace.net.inputs import carried, input_tensors
from weightspace.net.net import Net
from weightspace.net.state import math_attention
from weightspace.symmetry.align.terms import Terms
from weightspace.symmetry.axis import MATRICES, Axis, Block, as_blocks
from weightspace.symmetry.group import Group
from weightspace.symmetry.pairs import joined
from weightspace.symmetry.read import label

__all__ = ["activation_terms"]


_CONTRACTIONS = {
    "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "bilinear", "convolution", "conv1d", "conv2d",
    "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "scaled_dot_product_attention",
}  # fmt: skip


_MOST_PATTERNS = 256


def activation_terms(group: Group, a: Net, b: Net, x: Any) -> Terms:
    """Standardised activations of a and b on the batch x, in blocks of the group's axes."""
    a, b = a.to(torch.float32), b.to(torch.float32)
    x = carried(x, a)
    graph, draft = label(a, x)
    pairs = {g.axis: group[g.axis] for g in group.generators if g.proper}
    known = {axis.name: axis.size for axis in group.every if axis.name not in pairs}
    planes = {axis.name for axis in draft.every if axis.size == 2 and axis.name in draft.fixed}
    own = {axis.name: axis.size for axis in draft.every if axis.name in known or not pairs or axis.name not in planes}
    if own != known:
        raise SymmetryError("this data takes the network along another path than the example it was read on")
    where: dict[fx.Node, list[Block]] = {}
    movable = {axis.name for axis in group.axes}
    for node in _entering(graph):
        labels = draft.reading.values.get(node)
        if labels is None or isinstance(labels, tuple):
            continue
        blocks = list(as_blocks(node.name, labels.shape, atoms.blocks(labels.dims), draft.names))
        for pair in pairs.values():
            blocks = _joined(blocks, pair, planes)
        blocks = [block for block in blocks if {*block.leaves} & planes <= {*known} and group.whole(block)]
        if any(movable & set(block.leaves) for block in blocks):
            where[node] = blocks
    fixed, moving = (_standardised(group, graph, net, x, where) for net in (a, b))
    blocks = [
        Block(f"{node.name}#{k}", 0, _strides(fixed[f"{node.name}#{k}"]), block.leaves, block.dims)
        for node, found in where.items()
        for k, block in enumerate(found)
        if movable & set(block.leaves)
    ]
    return Terms(blocks, _parities(group, graph, b, x, where, blocks, moving), fixed, moving)


def _joined(blocks: list[Block], pair: Axis, planes: Iterable[str]) -> list[Block]:
    """Blocks of an activation with the two coordinates of pairs as one axis, where they hold both."""
    numbers = [k for k, block in enumerate(blocks) if pair.over[-1] in block.leaves]
    found = joined(blocks, numbers, pair, [*planes, 2]) if numbers else None
    return blocks if found is None else found.blocks


def _parities(
    group: Group,
    graph: Trace,
    net: Net,
    x: Any,
    where: dict[fx.Node, list[Block]],
    blocks: list[Block],
    still: dict[str, Tensor],
) -> list[dict[int, frozenset[int]] | None]:
    """Which sign generators flip which activations, seen by flipping them all at random once."""
    signs = group.sample(0, ("sign",)).factors
    if not signs:
        return [{leaf: frozenset() for leaf in range(len(block.leaves))} for block in blocks]
    flipped = _standardised(group, graph, group.sample(0, ("sign",))(net), x, where)
    return [_parity(group, block, still[block.tensor], flipped[block.tensor], signs) for block in blocks]


def _parity(
    group: Group, block: Block, still: Tensor, flipped: Tensor, signs: Mapping[int, Tensor]
) -> dict[int, frozenset[int]] | None:
    """The sets of generators, one for every leaf, whose factors turn one activation into the other; None if unclear."""
    choices = []
    for name in block.leaves:
        own = [k for k in signs if group.generators[k].axis == name]
        choices.append([frozenset(c) for n in range(len(own) + 1) for c in combinations(own, n)])
    if prod(len(c) for c in choices) > _MOST_PATTERNS:
        return None
    for pattern in product(*choices):
        value = still
        for leaf, chosen in enumerate(pattern):
            for k in chosen:
                value = value * group.spread(signs[k].to(still), block, leaf)
        if torch.allclose(value, flipped, atol=1e-3):
            return dict(enumerate(pattern))
    return None


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
    turning = {g.axis for g in group.generators if g.kind in MATRICES}
    kept: dict[str, Tensor] = {}

    def watch(node: fx.Node, value: Any) -> None:
        for k, block in enumerate(where.get(node, ())):
            if not movable & set(block.leaves):
                continue
            view = group.view(block, value.contiguous()).float()
            samples = [d for d, leaf in enumerate(block.leaves) if leaf not in movable]
            if samples:
                view = view - view.mean(samples, keepdim=True)
                together = samples + [d for d, leaf in enumerate(block.leaves) if leaf in turning]
                view = view / view.square().sum(together, keepdim=True).sqrt().clamp(min=1e-12)
            kept[f"{node.name}#{k}"] = view.contiguous()

    with torch.no_grad(), math_attention():
        graph.run(net.tensors, input_tensors(x), watch, lift=False)
    return kept
