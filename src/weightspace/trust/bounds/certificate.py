"""Certificates: proven upper bounds on the distance between the outputs of two networks, rounding included.

For every activation h the graph carries a bound d >= |h_b - h_a|, its distance between networks a and b. A linear
layer: d' = |W_b|_2 d + |(W_b - W_a) h + (bias_b - bias_a)|, a non-linearity multiplies by its Lipschitz constant, a
sum adds, a product follows the product rule. With the data, |h_a| and the second term are measured; without, they are
bounded from |x| on: for a network without biases that gives |x| prod_l (|W_l|_2 + |dW_l|_2) - |x| prod_l |W_l|_2.
Operator norms are bounded from above. Every operation adds the rounding of both networks' arithmetic; where both do the
same arithmetic on the same numbers, they get the same numbers, so that layers before the first weight that differs add
nothing, and equal networks have the bound zero. An argument of an operation that no rule covers is refused (`rule`).
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
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.net.state import math_attention
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
    """A proven `bound` >= sqrt(mean_x |f_b(x) - f_a(x)|^2); `relative` = bound / sqrt(mean_x |f_a(x)|^2)."""

    bound: float
    relative: float


@public
def certificate(a: Net, b: Net, task: Task, *, data: bool = True) -> Certificate:
    """A proven upper bound on sqrt(mean_x |f_b(x) - f_a(x)|^2) over the inputs of `task`, for networks a and b.

    f is what a network computes in its own dtype: rounding is part of the bound, and b may have another dtype than a.
    `data`: use the activations of a on these inputs; without, only the norms of the inputs and weights. Cost: a forward
    pass of both networks, one of a in float64, and a Cholesky factor for every weight. The outputs' measured distance
    is compared with the bound before it is returned. The bound is infinity where values may leave the range of their
    dtype, such as 65504 in float16. Raises `BoundError`, which names the operation and the argument, where no bound is
    known, such as for an exponential; `WeightspaceError` for NaN or infinity in the weights.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> other = ws.perturb(net, 0.1, seed=0)
    >>> moved = (task.outputs(other) - task.outputs(net)).norm() / len(task) ** 0.5
    >>> float(moved) <= ws.certificate(net, other, task).bound
    True
    """
    return _certificates(a, b, task, (data,))[0]


@public
def certificates(a: Net, b: Net, task: Task) -> tuple[Certificate, Certificate]:
    """Two certificates of a pair of networks, without the data and with it, for little more than the cost of one.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> without, with_data = ws.trust.certificates(net, ws.perturb(net, 0.1, seed=0), task)
    >>> with_data.bound < without.bound
    True
    """
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
        raise BoundError("the outputs are not finite, so there is no bound on them; compare in a wider dtype")
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
    """A Lipschitz constant of a network in its inputs, |f(x + dx) - f(x)| <= lipschitz |dx|: a product over layers.

    An upper bound from the layers' operator norms, for every dx; for a network with LayerNorm or products of
    activations, for dx -> 0 around the inputs of `task`. Without rounding. Raises `BoundError` as `certificate`.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> x, y = task.example(2)
    >>> float((net(x) - net(y)).norm() / (x - y).norm()) <= ws.lipschitz(net, task)
    True
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
    """For every walk the bound on |f_b - f_a| over all batches (squares added); then |f_a| and |f_b - f_a| measured."""
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
    """The task's output, the output tensor of the network that it is (a part of), and its index among the graph's."""
    raw = task.raw(net, x)
    out, leaves = task.output(raw), pytree.tree_leaves(raw)
    places = range(len(values) - len(leaves), len(values))
    inside = [
        (leaf, at)
        for leaf, at in zip(leaves, places, strict=True)
        if isinstance(leaf, Tensor) and isinstance(values[at], Value) and _inside(out, leaf)
    ]
    if not inside:
        raise BoundError("the task's output is computed from the network's; give one that selects an output unchanged")
    same = (p for p in inside if p[0].shape == out.shape and p[0].data_ptr() == out.data_ptr())
    return out, *next(same, inside[0])


def _inside(part: Tensor, whole: Tensor) -> bool:
    return part.numel() <= whole.numel() and part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def _agrees(leaf: Tensor, value: Value) -> None:
    """Raise `BoundError` if the network is further from the reference in float64 than rounding allows."""
    away = float((leaf.double() - value.a).norm())
    if not away <= value.far.off * (1 + _SLACK):
        raise BoundError(
            f"the outputs are {away:.3g} away from their value in float64, more than the {value.far.off:.3g} that "
            "rounding explains: the network computes something else than its graph, or its kernels round in other ways"
        )
