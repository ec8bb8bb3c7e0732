"""Repair of an averaged network layer by layer, towards the mean outputs of its ends on data.

The network and its ends, units aligned, are evaluated side by side. Let h be the input of a layer in the network, z its
output, and z* the mean over the ends of the same layer's output in them.

rescale: z <- (z - m) s* / s + m*, with m, s the mean and deviation of a unit over the examples, and m*, s* the averages
of those in the ends (REPAIR: renormalizing permuted activations for interpolation repair; Jordan, Sedghi, Saukh,
Entezari, Neyshabur, 2023).

refit: W <- argmin_V sum |V h - z*|^2 + r |V - W|^2, the ridge r = 1e-4 of the mean over k of |h_k|^2 summed over
the examples (after PLeaS: merging models with permutations and least squares; Nasery, Hayase, Koh, Oh, 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.graph.layer import Layer, layers, rows_met
from weightspace.graph.trace import Trace, op_name, trace
from weightspace.net.errors import WeightspaceError
from weightspace.net.inputs import carried, input_tensors
from weightspace.net.net import Net
from weightspace.net.state import math_attention
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["NothingToMend", "refit", "rescale"]


_EXAMPLES = 2048
_ROOM = 1 << 27  # numbers in the widest value of all networks together
_RIDGE = 1e-4
_MOST = 4096  # columns of one least-squares problem
_CHUNK = 64


class NothingToMend(WeightspaceError):
    """A network without a layer that can be repaired."""


def rescale(net: Net, ends: list[Net], task: Task, examples: int = _EXAMPLES) -> Net:
    """Give every unit of `net` the mean and deviation that it has in `ends` on average.

    After every linear map, convolution, group or layer norm with a bias, except the output. Raises `WeightspaceError`
    where there is none.
    """
    return _mended(net, ends, task, examples, _rescaled)


def refit(net: Net, ends: list[Net], task: Task, examples: int = _EXAMPLES) -> Net:
    """Refit every layer of `net` so that, on its own inputs, it gives the average output of `ends`.

    Linear maps and convolutions by least squares; where these are too large for the examples, and for norms, as
    `rescale`. Raises `WeightspaceError` where there is no such layer.
    """
    return _mended(net, ends, task, examples, _refitted)


_New = dict[str, Tensor]
_Mend = Callable[[Layer, tuple[Any, ...], Tensor, Tensor, bool], _New]


def _mended(net: Net, ends: list[Net], task: Task, examples: int, mend: _Mend) -> Net:
    own = net.dtype
    if own in (torch.float16, torch.bfloat16):
        net, ends = net.to(torch.float32), [end.to(torch.float32) for end in ends]
    room = _ROOM // ((1 + len(ends)) * _widest(trace(net.live(), carried(task.example(2), net))))
    examples = min(examples, max(_CHUNK, room))
    x = carried(task.take(examples, seed=0).example(examples), net)
    graph = trace(net.live(), x)
    met = {layer.node: layer for layer in layers(graph) if layer.learnt(net.weights)}
    last = {used for node in graph.nodes if node.op == "output" for used in node.all_input_nodes}
    inputs = input_tensors(x)
    changed: _New = {}
    with torch.no_grad(), math_attention():
        for node, given, values in graph.walk([each.tensors for each in (net, *ends)], inputs, lift=False):
            if op_name(node) == "batch_norm" and node.op == "call_function":
                values[0].copy_(_normalised(*given[0]))
            elif node in met:
                wanted = values[1:]
                new = mend(met[node], given[0], values[0], torch.stack(wanted), node in last)
                changed |= new
                values[0].copy_(_again(met[node], given[0], {**net.weights, **changed}) if new else values[0])
    if not changed:
        raise NothingToMend("no layer has a weight and a bias of its own; nothing can be mended")
    return net.at(net.weights.replace(changed)).to(own)


def _widest(graph: Trace) -> int:
    """Numbers of the largest value for one example."""
    values = [n.meta.get("val") for n in graph.nodes if n.op == "call_function"]
    return max((t.numel() // max(len(t), 1) for t in values if isinstance(t, Tensor) and t.dim()), default=1)


def _normalised(h: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> Tensor:
    """BatchNorm with the statistics of these examples, which will be re-estimated in any case."""
    over = [k for k in range(h.dim()) if k != 1]
    return F.batch_norm(h, h.mean(over), h.var(over), weight, bias, eps=rest[4] if len(rest) > 4 else 1e-5)


def _again(layer: Layer, given: tuple[Any, ...], tensors: dict[str, Tensor]) -> Tensor:
    """The layer with new weights."""
    args = list(given)
    first = 1 if layer.contracts else 2
    args[first] = tensors[layer.weight]
    if layer.bias is not None:
        args[first + 1] = tensors[layer.bias]
    return layer.node.target(*args)  # type: ignore[operator]


def _rescaled(layer: Layer, given: tuple[Any, ...], value: Tensor, wanted: Tensor, last: bool) -> _New:
    if layer.bias is None or last:
        return {}
    first = 1 if layer.contracts else 2
    weight, bias = given[first], given[first + 1]
    mean, deviation = _moments(value, layer.at)
    moments = [_moments(each, layer.at) for each in wanted]
    mean_wanted, deviation_wanted = (torch.stack(each).mean(0) for each in zip(*moments, strict=True))
    factor = torch.where(deviation > 1e-6, deviation_wanted / deviation.clamp(min=1e-6), torch.ones_like(deviation))
    rows = factor.view(-1, *[1] * (weight.dim() - 1))
    return {layer.weight: weight * rows, layer.bias: (bias - mean) * factor + mean_wanted}


def _moments(value: Tensor, at: int) -> tuple[Float[Tensor, " units"], Float[Tensor, " units"]]:
    rows = value.movedim(at, 0).flatten(1)
    return rows.mean(1), rows.std(1, correction=0)


def _refitted(layer: Layer, given: tuple[Any, ...], value: Tensor, wanted: Tensor, last: bool) -> _New:
    if not _solvable(layer, given, value):
        return _rescaled(layer, given, value, wanted, last)
    weight = given[1]
    columns = weight[0].numel() + (layer.bias is not None)
    residual = wanted.mean(0) - value
    gram = torch.zeros(columns, columns, dtype=torch.float64, device=weight.device)
    right = torch.zeros(columns, len(weight), dtype=torch.float64, device=weight.device)
    for at in range(0, len(value), _CHUNK):
        h = rows_met(layer, given, slice(at, at + _CHUNK)).flatten(0, 1).double()
        gram += h.T @ h
        right += h.T @ residual[at : at + _CHUNK].movedim(layer.at, -1).flatten(0, -2).double()
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
    step = torch.linalg.solve(gram, right).T.to(weight)
    new = {layer.weight: weight + step[:, : weight[0].numel()].reshape(weight.shape)}
    if layer.bias is not None:
        new[layer.bias] = given[2] + step[:, -1]
    return new


def _solvable(layer: Layer, given: tuple[Any, ...], value: Tensor) -> bool:
    """Whether there are enough rows for the columns, and not too many columns."""
    if not layer.plain(given):
        return False
    columns = given[1][0].numel() + (layer.bias is not None)
    return columns <= min(_MOST, value.numel() // value.shape[layer.at])
