"""Squared per-example gradients, layer by layer, from one backward pass for all examples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from weightspace.graph.layer import Layer
from weightspace.graph.on_data import derived_graph, layers_on, pulled
from weightspace.net.differentiable import called, told
from weightspace.net.errors import SymmetryError, WeightspaceError, first_line
from weightspace.net.inputs import arguments, carried, each, leaves
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.state import math_attention
from weightspace.task.examples import normal, uniform
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["squared_gradients", "squares", "traces"]


_ROOM = 1 << 25
_ALIKE = 10
_CACHE = 1 << 18  # numbers that fit into the processor's cache


@public
def traces(
    net: Net, task: Task, names: list[str], *, draws: int = 8, seed: int = 0
) -> Iterator[tuple[dict[str, float], float]]:
    """Monte Carlo estimates of the trace of G_l = J_l^T J_l for every tensor l: |J_l^T u|^2 with u ~ N(0, 1).

    Yields for every draw of u: (name -> the sum over the examples, |f| over all outputs).

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> for found, size in ws.curvature.traces(net, task, ["3.weight", "3.bias"], draws=2):
    ...     print(sorted(found), 200 < found["3.bias"] < 1000, size > 0)     # 600 is expected: the number of outputs
    ['3.bias', '3.weight'] True True
    ['3.bias', '3.weight'] True True
    """
    totals = [dict.fromkeys(names, 0.0) for _ in range(draws)]
    square, start = 0.0, 0
    for x, _ in task.batches(net):
        with torch.no_grad(), math_attention():
            out = task.output(net(carried(x, net)))
        square += float(out.double().square().sum())
        drawn = [normal(u).to(out) for u in uniform(out.shape, draws, seed, start)]
        start += len(out)
        for total, found in zip(totals, squares(net, task, x, drawn, names), strict=True):
            for name, each_one in found.items():
                total[name] += float(each_one.sum())
    for total in totals:
        yield total, math.sqrt(square)


@public
def squares(
    net: Net, task: Task, x: Any, cotangents: Sequence[Tensor], names: Sequence[str]
) -> list[dict[str, Float[Tensor, " examples"]]]:
    """The squared norm of every example's gradient, for every tensor: name -> |J_il^T u_i|^2, in float64.

    J_il^T u_i is the gradient of u_i . f(x_i) in the tensor l; one dict for every u, which has the shape of the outputs
    of x. Linear maps and convolutions whose weight is used once take one backward pass for all; other tensors, a
    gradient for every example.

    >>> import torch, weightspace as ws
    >>> net, task = ws.demo.example()
    >>> [found] = ws.curvature.squares(net, task, task.example(3), [torch.ones(3, 10)], ["1.weight", "3.bias"])
    >>> found["1.weight"].shape, found["3.bias"].tolist()
    (torch.Size([3]), [10.0, 10.0, 10.0])
    """
    x = carried(x, net)
    _by_itself(net, task, x)
    totals: list[dict[str, Tensor]] = [{} for _ in cotangents]
    done = _of_layers(net, task, x, cotangents, set(names), totals)
    if rest := [name for name in names if name not in done]:
        _of_rest(net, task, x, cotangents, rest, totals)
    return [{name: total[name] for name in names} for total in totals]


@torch.no_grad()
def _by_itself(net: Net, task: Task, x: Any) -> None:
    """Raise `WeightspaceError` where the outputs on one example depend on another, so that it has no own gradient."""
    if len(leaves(x)[0]) < 2:
        return
    pair = each(lambda t: torch.stack([t[0], t[-1]]), x)
    why = "the outputs on one example depend on the examples beside it"
    with math_attention():
        try:
            together = task.forward(net, pair)
            apart = [task.forward(net, each(lambda t, k=k: t[k : k + 1], pair)) for k in (0, 1)]
        except (WeightspaceError, ValueError) as error:
            apart, why = [], f"the network does not take one example alone ({first_line(error)})"
    if apart:
        alone = torch.cat(apart)
        rounding = _ALIKE * torch.finfo(together.dtype).eps ** 0.5 * together.abs().max().clamp_min(1e-30)
        if alone.shape == together.shape and not bool(((alone - together).abs() > rounding).any()):
            return
    raise WeightspaceError(
        f"{why}, so that none has a gradient of its own: batch statistics, attention or a recurrence over the examples "
        "(batch_first=True is missing), or random numbers"
    )


@dataclass(frozen=True)
class _Met:
    """A layer on a batch: its tensors that are wanted, its inputs, and each cotangent pulled back to its output.

    `met`, the inputs, is None where the outputs do not depend on the layer.
    """

    layer: Layer
    own: set[str]
    met: Tensor | None
    slopes: list[Float[Tensor, "examples positions units"]]


def _layers_met(net: Net, task: Task, x: Any, drawn: Sequence[Tensor], names: set[str]) -> Iterator[_Met]:
    """Inputs and slopes of linear maps and convolutions whose weight is used once: a backward pass for each u."""
    try:
        graph = derived_graph(net, x)
    except SymmetryError:
        return
    kept, out = layers_on(net, graph, x, lambda layer: bool({layer.weight, layer.bias} & names), task.output)
    kept = [part for part in kept if part.layer.plain(part.given)]
    if not kept:
        return
    try:
        first, slopes = pulled(kept, out), [pulled(kept, out, u) for u in drawn]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # an operation of the graph has no derivative, though the module's own has one
        return
    for k, part in enumerate(kept):
        layer, start = part.layer, first[k]
        own = ({layer.weight} | ({layer.bias} if layer.bias else set())) & names
        if start is None:
            yield _Met(layer, own, None, [])
        elif found := part.by_example(start, [u for slope in slopes if (u := slope[k]) is not None], len(out)):
            yield _Met(layer, own, *found)


def _of_layers(
    net: Net, task: Task, x: Any, cotangents: Sequence[Tensor], names: set[str], totals: list[dict[str, Tensor]]
) -> set[str]:
    """Add the squares of the tensors of layers to `totals`; returns the names of these tensors."""
    done: set[str] = set()
    for fed in _layers_met(net, task, x, cotangents, names):
        done |= fed.own
        if fed.met is None:
            for total, u in zip(totals, cotangents, strict=True):
                total.update({name: torch.zeros(len(u), dtype=torch.float64).to(u.device) for name in fed.own})
            continue
        for total, slope in zip(totals, fed.slopes, strict=True):
            _add(total, fed.own, fed.layer, fed.met, slope)
    return done


def _add(total: dict[str, Tensor], own: set[str], layer: Layer, met: Tensor, slope: Tensor) -> None:
    """|sum_t d_t h_t^T|^2 of every example for the weight, and |sum_t d_t|^2 for the bias."""
    h, d = met.double(), slope.double()
    h = h if layer.bias is None else h[..., :-1]
    if layer.weight in own:
        if h.shape[1] == 1:
            total[layer.weight] = h.square().sum((1, 2)) * d.square().sum((1, 2))
        else:
            step = max(1, _ROOM // (h.shape[-1] * d.shape[-1]))
            pairs = zip(h.split(step), d.split(step), strict=True)
            total[layer.weight] = torch.cat([(q.mT @ p).square().sum((1, 2)) for p, q in pairs])
    if layer.bias in own:
        total[layer.bias] = d.sum(1).square().sum(1)


@public
def squared_gradients(
    net: Net, task: Task, x: Any, cotangents: Sequence[Tensor], names: Sequence[str]
) -> dict[str, Tensor]:
    """The squared gradients entry by entry, summed over examples: name -> sum_u sum_i (J_il^T u_i)^2.

    Arguments as in `squares`, whose values are sums over the entries.

    >>> import torch, weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.curvature.squared_gradients(net, task, task.example(3), [torch.ones(3, 10)], ["1.weight", "3.bias"])
    >>> found["1.weight"].shape, found["3.bias"].tolist() == [3.0] * 10
    (torch.Size([16, 64]), True)
    """
    x = carried(x, net)
    _by_itself(net, task, x)
    total: dict[str, Tensor] = {}
    for fed in _layers_met(net, task, x, cotangents, set(names)):
        total.update({name: torch.zeros_like(net.weights[name]) for name in fed.own})
        if fed.met is not None:
            total.update(_entries(fed, net))
    rest = [name for name in names if name not in total]
    for u in cotangents if rest else ():
        for gradients in _every_gradient(net, task, x, u, rest):
            for name, g in gradients.items():
                total[name] = total.get(name, 0.0) + g.square().sum(0)
    return total


def _entries(fed: _Met, net: Net) -> dict[str, Tensor]:
    """sum_u sum_i (sum_t d_t h_t^T)^2 of every entry of a layer's weight and bias."""
    layer, h = fed.layer, fed.met
    assert h is not None
    found: dict[str, Tensor] = {}
    h = h if layer.bias is None else h[..., :-1]
    if h.shape[1] == 1:
        square = torch.zeros_like(fed.slopes[0][:, 0])
        for d in fed.slopes:
            square.addcmul_(d[:, 0], d[:, 0])
        weight, bias = square.T @ h[:, 0].square(), square.sum(0)
    else:
        d = torch.cat([d.mT for d in fed.slopes], 1)
        weight = torch.zeros_like(d[0] @ h[0])
        step = max(1, _CACHE // weight.numel())
        for p, q in zip(d.split(step), h.split(step), strict=True):
            weight += (p @ q).square_().sum(0)
        weight = weight.view(len(fed.slopes), -1, h.shape[-1]).sum(0)
        bias = d.sum(-1).square_().sum(0).view(len(fed.slopes), -1).sum(0)
    if layer.weight in fed.own:
        found[layer.weight] = weight.view(net.weights[layer.weight].shape)
    if layer.bias in fed.own:
        found[layer.bias] = bias
    return found


def _of_rest(
    net: Net, task: Task, x: Any, cotangents: Sequence[Tensor], rest: list[str], totals: list[dict[str, Tensor]]
) -> None:
    """The squares of all other tensors: of norms and embeddings, and weights that are used more than once."""
    for total, u in zip(totals, cotangents, strict=True):
        found = [*_every_gradient(net, task, x, u, rest)]
        for name in rest:
            total[name] = torch.cat([g[name].double().flatten(1).square().sum(1) for g in found])


def _every_gradient(net: Net, task: Task, x: Any, u: Tensor, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Name -> J_il^T u_i of every example, some examples at a time."""
    chosen = {name: net.weights[name].detach() for name in names}
    step = max(1, _ROOM // max(1, sum(t.numel() for t in chosen.values())))

    def f(values: dict[str, Tensor], one: Any, u: Tensor) -> Tensor:
        args, kwargs = arguments(each(lambda t: t[None], one))
        return (task.output(called(net.architecture, {**net.tensors, **values}, args, kwargs)) * u[None]).sum()

    together = vmap(grad(f), in_dims=(None, 0, 0))
    with math_attention(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # an operation that is batched one by one
        for at in range(0, len(u), step):
            part = slice(at, at + step)
            some = each(lambda t, part=part: t[part], x)
            try:
                yield together(chosen, some, u[part])
            except RuntimeError:  # an operation that cannot be batched
                for k in range(len(u[part])):
                    yield _one_by_one(f, chosen, each(lambda t, k=k: t[k], some), u[part][k])


def _one_by_one(f: Callable[..., Tensor], chosen: Mapping[str, Tensor], one: Any, u: Tensor) -> dict[str, Tensor]:
    with torch.enable_grad():
        leaves = {name: t.clone().requires_grad_() for name, t in chosen.items()}
        try:
            value = f(leaves, one, u)
        except (RuntimeError, LookupError) as error:
            raise WeightspaceError(
                f"the network does not take one example alone, as gradients need: {error}"
            ) from error
        try:
            found = torch.autograd.grad(value, [*leaves.values()], materialize_grads=True)
        except RuntimeError as error:
            raise WeightspaceError(f"the network has no derivative: {told(error)}") from error
    return {name: g[None] for name, g in zip(leaves, found, strict=True)}
