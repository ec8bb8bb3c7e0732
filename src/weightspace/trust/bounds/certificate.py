"""What a change of the weights can do to the outputs, proven: a certificate for a pair of networks.

Through the graph of the network goes, for every value h, a bound d >= |h_b - h_a| on how far it is in b from what it is
in a. A linear map adds what its own change does: d' = |W_b|_2 d + |(W_b - W_a) h + (bias_b - bias_a)|, a non-linearity
multiplies by its Lipschitz constant, a sum adds, a product has the product rule. With the data, |h_a| and what the
change of a layer does to h_a are measured; without, |h_a| is bounded too, from |x| on: for a net without biases that
gives |x| prod_l (|W_l|_2 + |dW_l|_2) - |x| prod_l |W_l|_2. Operator norms are bounded from above. Every operation adds
the rounding of both networks' arithmetic; where both do the same arithmetic on the same numbers, they get the same
numbers, so that what comes before the first weight that differs adds nothing, and equal networks have the bound zero.
A rule that does not cover an argument of an operation refuses it (`bounds.rule`).
Source: Optimisation and generalisation in networks of neurons (Bernstein, 2022), lemma of chapter 6; the step by step
form with data is folklore.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from weightspace.graph.on_data import graph_of
from weightspace.net.errors import WeightspaceError
from weightspace.net.inputs import carried
from weightspace.net.net import Net, checked, math_attention
from weightspace.net.public import public
from weightspace.task.task import Task
from weightspace.trust.bounds.rounding import Arithmetic, BoundError
from weightspace.trust.bounds.rule import Value, size
from weightspace.trust.bounds.walk import Walk

__all__ = ["BoundError", "Certificate", "certificate", "certificates", "lipschitz"]


_START = 1e-12
_SLACK = 1e-9


@public
@dataclass(frozen=True)
class Certificate:
    """sqrt(mean_x |f_b(x) - f_a(x)|^2) <= `bound`, proven; `relative` = bound / sqrt(mean_x |f_a(x)|^2)."""

    bound: float
    relative: float


@public
def certificate(a: Net, b: Net, task: Task, *, data: bool = True) -> Certificate:
    """A number that sqrt(mean_x |f_b(x) - f_a(x)|^2) does not exceed on the inputs of `task`.

    f is what a network computes in its own dtype: rounding is part of the bound, and b may have another dtype than a.
    `data`: with the activations of a on these inputs; without, from the norms of the inputs and weights alone. Cost: a
    forward pass of both networks, one of a in float64, and a Cholesky factor for every weight. What is measured on the
    way is compared with the bound, and nothing is handed out that it exceeds. The bound is infinity where values may
    leave the range of their dtype, such as 65504 in float16. Raises `BoundError`, which names the operation and the
    argument, where no bound is known, such as for an exponential; `WeightspaceError` for NaN or infinity in the
    weights.
    """
    return _certificates(a, b, task, (data,))[0]


@public
def certificates(a: Net, b: Net, task: Task) -> tuple[Certificate, Certificate]:
    """`certificate` without the data and with it, for little more than the price of one."""
    without, with_data = _certificates(a, b, task, (False, True))
    return without, with_data


def _certificates(a: Net, b: Net, task: Task, modes: tuple[bool, ...]) -> list[Certificate]:
    checked(a).check(checked(b))
    for net in (a, b):
        for buffer in net.weights.buffers:
            if buffer.is_floating_point():
                Arithmetic.of(buffer.dtype)
        if bad := net.weights.unusable():
            raise WeightspaceError(f"NaN or infinity in {bad[0]}; a network of finite weights has a certificate")
    first = Walk(a, b, modes[0])
    walks = [first, *(Walk(a, b, mode, None, first.operators, first.still) for mode in modes[1:])]
    found, norm, moved = through(a, b, task, walks)
    if not math.isfinite(moved):
        raise BoundError("the outputs are not finite, so nothing is known of them; compare in a wider dtype")
    for apart in found:
        if not moved <= apart * (1 + _SLACK):
            raise BoundError(
                f"the outputs move by {moved:.3g}, more than the {apart:.3g} that the rules allow: the networks "
                "compute something else than their graph; please report it"
            )
    per = math.sqrt(len(task))
    return [Certificate(apart / per, apart / norm if norm else math.inf) for apart in found]


@public
def lipschitz(net: Net, task: Task) -> float:
    """A number that |f(x + dx) - f(x)| / |dx| does not exceed: the product of the layers' operator norms, from above.

    For every dx, where the network has no LayerNorm or product of activations; with one of these, for dx -> 0 around
    the inputs of `task`. Of the function, not of its rounding. Raises `BoundError` as `certificate`.
    """
    walk, worst = Walk(checked(net), net, True, _START), 0.0
    for x, _ in task.recut(net):
        graph = graph_of(net, x)
        with torch.no_grad(), math_attention():
            values = walk.batch((graph, graph), (x, x))
            _, _, at = _output(net, task, x, values)
        worst = max(worst, values[at].far.apart / _START)
    return worst


def through(a: Net, b: Net, task: Task, walks: list[Walk]) -> tuple[list[float], float, float]:
    """Over all batches, squares added: for every walk a bound on how far the outputs are apart; |f_a|, |f_b - f_a|."""
    found, norm, moved = [0.0 for _ in walks], 0.0, 0.0
    for x, _ in task.recut():
        inputs = carried(x, a), carried(x, b)
        graphs = graph_of(a, inputs[0]), graph_of(b, inputs[1])
        with torch.no_grad(), math_attention():
            values = [walk.batch(graphs, inputs) for walk in walks]
            out, leaf, at = _output(a, task, inputs[0], values[0])
            for k, those in enumerate(values):
                _agrees(leaf, those[at])
                found[k] = math.hypot(found[k], those[at].far.apart)
            out_b = task.forward(b, inputs[1]).double()
        norm = math.hypot(norm, size(out))
        moved = math.hypot(moved, float((out_b - out.double()).norm()))
    return found, norm, moved


def _output(net: Net, task: Task, x: Any, values: list[Any]) -> tuple[Tensor, Tensor, int]:
    """What the task takes of the network's outputs, which of these it is, and where that is among the graph's."""
    raw = task.raw(net, x)
    out, leaves = task.output(raw), pytree.tree_leaves(raw)
    places = range(len(values) - len(leaves), len(values))
    inside = [
        (leaf, at)
        for leaf, at in zip(leaves, places, strict=True)
        if isinstance(leaf, Tensor) and isinstance(values[at], Value) and _inside(out, leaf)
    ]
    if not inside:
        raise BoundError("the task's output is computed from the network's; give one that picks an output as it is")
    same = (p for p in inside if p[0].shape == out.shape and p[0].data_ptr() == out.data_ptr())
    return out, *next(same, inside[0])


def _inside(part: Tensor, whole: Tensor) -> bool:
    return part.numel() <= whole.numel() and part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def _agrees(leaf: Tensor, value: Value) -> None:
    """The network itself is as far from the reference as rounding may take it."""
    away = float((leaf.double() - value.a).norm())
    if not away <= value.far.off * (1 + _SLACK):
        raise BoundError(
            f"the outputs are {away:.3g} away from their value in float64, more than the {value.far.off:.3g} that "
            "rounding explains: the network computes something else than its graph, or its kernels round in other ways"
        )
