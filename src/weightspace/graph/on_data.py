"""The graph of a network on a task's examples: exported once, with the inputs and output derivatives of each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from weightspace.graph.layer import Layer, layers, rows_met
from weightspace.graph.trace import Trace, trace
from weightspace.net.differentiable import called
from weightspace.net.errors import SymmetryError
from weightspace.net.inputs import arguments, carried, input_tensors
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.state import math_attention
from weightspace.task.digest import DigestError, Frame, digest, shapes
from weightspace.task.outputs import counted, logits
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Fed", "derived_graph", "examples_at", "feed", "graph_of"]


@public
@dataclass(frozen=True)
class Fed:
    """A layer on data: `met` are its inputs, `slope` is d(outputs)/d(its output), at every position. Made by `feed`."""

    layer: Layer
    met: Float[Tensor, "examples positions columns"]
    slope: Float[Tensor, "examples outputs positions units"]


@dataclass(frozen=True)
class Kept:
    """A layer while the graph runs on a batch: what it was given and what it gave, differentiable in the weights."""

    layer: Layer
    given: tuple[Any, ...]
    value: Tensor

    def by_example(self, first: Tensor, slopes: Sequence[Tensor], n: int) -> tuple[Tensor, list[Tensor]] | None:
        """What the rows of its weight meet (example, position, column), and slopes (example, position, unit).

        None where its output has no dimension of examples: several of them have become one. `first`: the slope of the
        outputs of the first of `n` examples.
        """
        at = examples_at(first, n, self.layer)
        if at is None:
            return None
        unit, (x, *rest) = self.layer.at, self.given
        with torch.no_grad():
            met = rows_met(self.layer, (x.movedim(at, 0), *rest)).detach()
            turned = [slope.detach().movedim(at, 0) for slope in slopes]
            turned = turned if unit < 0 else [t.movedim(unit, -1) for t in turned]
            return met, [t.reshape(len(met), -1, self.value.shape[unit]) for t in turned]


def layers_on(
    net: Net, graph: Trace, x: Any, chosen: Callable[[Layer], bool], output: Callable[[Any], Tensor]
) -> tuple[list[Kept], Tensor]:
    """The layers that are chosen, on a batch, and its outputs."""
    found = {layer.node: layer for layer in layers(graph) if chosen(layer)}
    learnt = {n: t.detach().requires_grad_(t.is_floating_point()) for n, t in net.weights.items()}
    kept: list[Kept] = []
    with torch.enable_grad(), math_attention():
        raw: Any = None
        for node, (given,), (value,) in graph.walk([{**net.state, **learnt}], input_tensors(x), lift=False):
            if node.op == "output":
                raw = value
            elif node in found:
                kept.append(Kept(found[node], given, value))
        return kept, output(raw if not isinstance(raw, (tuple, list)) or len(raw) > 1 else raw[0])


def pulled(kept: Sequence[Kept], out: Tensor, u: Tensor | None = None) -> tuple[Tensor | None, ...]:
    """d(u . outputs) / d(a layer's output) for every layer; None where the outputs do not depend on it.

    Without u it is that of the sum of the first example's outputs, which shows where the examples lie.
    """
    if u is None:
        u = torch.zeros_like(out)
        u[0] = 1
    return torch.autograd.grad(out, [part.value for part in kept], u.view(out.shape), True, allow_unused=True)


@public
def feed(net: Net, task: Task, output: Callable[[Any], Tensor] = logits) -> tuple[list[Fed], int]:
    """The inputs and output derivatives of linear maps and convolutions on all examples; and the number of outputs.

    Without layers whose weight is used more than once, or whose output has no axis over the examples.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> fed, outputs = ws.graph.feed(net, task)
    >>> [found.layer.weight for found in fed], outputs
    (['1.weight', '3.weight'], 10)
    >>> fed[0].met.shape, fed[0].slope.shape     # 64 inputs and a one for the bias; 16 units
    (torch.Size([60, 1, 65]), torch.Size([60, 10, 1, 16]))
    """
    x = carried(task.example(len(task)), net)

    def flat(raw: Any) -> Tensor:
        out = counted(output(raw), task.positions())
        return out.reshape(len(out), -1)

    kept, out = layers_on(net, derived_graph(net, x), x, lambda layer: layer.learnt(net.weights), flat)
    kept = [part for part in kept if part.layer.plain(part.given)]

    def filled(slopes: tuple[Tensor | None, ...]) -> list[Tensor]:
        return [torch.zeros_like(k.value) if g is None else g for k, g in zip(kept, slopes, strict=True)]

    if not kept:
        return [], out.shape[1]
    first = filled(pulled(kept, out))
    slopes = [filled(pulled(kept, out, unit.expand_as(out).contiguous())) for unit in torch.eye(out.shape[1]).to(out)]
    fed = []
    for k, part in enumerate(kept):
        if found := part.by_example(first[k], [slope[k] for slope in slopes], len(out)):
            fed.append(Fed(part.layer, found[0], torch.stack(found[1], 1)))
    return fed, out.shape[1]


_graphs: WeakKeyDictionary[nn.Module, dict[str, Trace]] = WeakKeyDictionary()


@public
def graph_of(net: Net, x: Any) -> Trace:
    """The exported graph (`Trace`) of a network on inputs like x, cached as long as the architecture lives.

    The cache key is all of the network but the numbers in its weights and state (`digest.Frame`), the names, order,
    nesting, shapes, dtypes and devices of the inputs, values that are not tensors, and torch's default dtype and
    autocast. Nothing is cached where an attribute of the module has state that cannot be read.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> graph = ws.graph.graph_of(net, task.example(2))
    >>> sorted(graph.sources.values())     # the placeholders that are weights
    ['1.bias', '1.weight', '3.bias', '3.weight']
    >>> ws.graph.graph_of(net, task.example(2)) is graph
    True
    """
    ambient = torch.get_default_dtype(), torch.is_autocast_enabled(net.device.type)
    try:
        key = digest(Frame(net), shapes(x), ambient)
    except DigestError:
        return trace(net.live(), x)
    seen = _graphs.setdefault(net.architecture, {})
    if key not in seen:
        seen[key] = trace(net.live(), x)
    return seen[key]


@public
def derived_graph(net: Net, x: Any) -> Trace:
    """`graph_of`, checked to have the same derivatives as the module; raises `SymmetryError` where they differ.

    Export keeps what is computed, but not a backward pass written in Python, a detached part, or a hook. Checked once
    for every graph, on a random linear combination of the outputs.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> ws.graph.derived_graph(net, task.example(2)).derived
    True
    """
    graph = graph_of(net, x)
    if graph.derived is None:
        graph.derived = _agree(net, x, graph)
    if not graph.derived:
        name = type(net.architecture).__name__
        raise SymmetryError(
            f"{name}, as exported, has other derivatives than the module; look for detach, hooks, backward passes"
        )
    return graph


def _agree(net: Net, x: Any, graph: Trace) -> bool:
    try:
        pairs = [*zip(_slopes(net, x, graph), _slopes(net, x, None), strict=True)]
    except (RuntimeError, ValueError):
        return False
    rounding = 10 * torch.finfo(net.dtype).eps ** 0.5
    return all(m.shape == t.shape and not bool((m - t).norm() > rounding * t.norm()) for m, t in pairs)


def _slopes(net: Net, x: Any, graph: Trace | None) -> list[Tensor]:
    """The first output, and the gradient in the weights of a random combination of it: by the graph or the module."""
    learnt = {n: t.detach().requires_grad_(t.is_floating_point()) for n, t in net.weights.items()}
    tensors = {**net.state, **learnt}
    with torch.enable_grad(), math_attention():
        if graph is None:
            args, kwargs = arguments(x)
            out: Any = tree_flatten(called(net.architecture, tensors, args, kwargs))[0]
        else:
            out = graph.run(tensors, input_tensors(x), lift=False)
        found = next(t for t in out if isinstance(t, Tensor) and t.is_floating_point())
        drawn = torch.randn(found.shape, generator=torch.Generator().manual_seed(0)).to(found)
        leaves = [w for w in learnt.values() if w.requires_grad]
        if not found.requires_grad:
            return [found]
        return [found.detach(), *torch.autograd.grad(found, leaves, drawn, materialize_grads=True)]


@public
def examples_at(slope: Tensor, n: int, layer: Layer) -> int | None:
    """The dimension of a layer's output that is over the n examples, or None.

    `slope` is the gradient of the first example's outputs there: it is zero outside of the first slice.

    >>> import torch, weightspace as ws
    >>> net, task = ws.demo.example()
    >>> layer = ws.graph.feed(net, task)[0][0].layer
    >>> slope = torch.zeros(60, 16).index_fill(0, torch.tensor(0), 1.0)
    >>> ws.graph.examples_at(slope, 60, layer)
    0
    """
    for k in range(slope.dim() - 1) if layer.name == "linear" else (0,):
        if slope.shape[k] == n and not bool(slope.narrow(k, 1, n - 1).any()):
            return k
    return None
