"""Geodesic acceleration: the second-order correction of a step under the pullback metric.

Along v the outputs move by J v + D^2 f[v, v] / 2. The step v + a / 2 with J a = -D^2 f[v, v], a of least norm,
cancels the second term; a is the Christoffel term of the pullback metric along v. Source: Improvements to the
Levenberg-Marquardt algorithm for nonlinear least-squares minimization (Transtrum, Sethna, 2012).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp

from weightspace.graph.on_data import graph_of
from weightspace.graph.trace import op_name
from weightspace.linear.operator import cgls
from weightspace.metric.pullback import Pullback
from weightspace.net.differentiable import called
from weightspace.net.errors import SymmetryError, WeightspaceError
from weightspace.net.inputs import arguments
from weightspace.net.net import Net
from weightspace.net.state import forward_mode
from weightspace.net.weights import Weights

__all__ = ["acceleration", "kink"]


_KINKED = {"relu", "relu_", "leaky_relu", "leaky_relu_", "prelu", "rrelu", "hardtanh", "hardtanh_", "relu6", "abs",
           "hardswish", "hardsigmoid", "clamp", "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool2d",
           "maximum", "minimum", "max", "min", "threshold", "clamp_min", "clamp_max", "clamp_min_", "selu", "selu_",
           "softshrink", "hardshrink", "_prelu_kernel", "relu6_", "hardswish_", "hardsigmoid_"}  # fmt: skip


def kink(net: Net, metric: Pullback) -> str | None:
    """The name of the first operation with a kink, such as ReLU, or that may have one; None for a smooth network."""
    try:
        graph = graph_of(net, metric.task.example(2))
    except SymmetryError:
        return "a module that cannot be exported"
    for node in graph.nodes:
        name = op_name(node) if node.op == "call_function" else ""
        bent = name in ("elu", "elu_", "celu") and len(node.args) > 1 and node.args[1] != 1
        if name in _KINKED or bent:
            return name
    return None


def acceleration(metric: Pullback, net: Net, vector: Weights, force: bool = False, inner: int = 20) -> Weights:
    """The correction a / 2 of the step v = `vector`, by `inner` steps of CGLS.

    Raises `WeightspaceError` for a network with kinks unless `force`: between kinks its second derivative has about a
    tenth of the change of the outputs on a finite step, and `retract`, which has all of it, costs less.
    """
    where = None if force else kink(net, metric)
    if where:
        raise WeightspaceError(
            f"{where} has kinks, which a second derivative leaves out; use corrections, or force=True"
        )
    weights, state, pick = net.weights, dict(net.state), metric.picked
    flat, v = weights.flat(), vector.flat()
    parts: list[Tensor] = []
    for x, _ in metric.task.batches(net):
        args, kwargs = arguments(x)
        f = partial(_outputs, net, state, pick, args, kwargs)
        with forward_mode():
            bend = jvp(lambda w, f=f: jvp(f, (w,), (v,))[1], (flat,), (v,))[1]
        parts.append(bend.detach())
    target = metric.turned(net, torch.cat(parts).flatten())
    half = cgls(metric.factor(net), target, metric.damping, inner) / -2
    return weights.shaped(half.to(flat))


def _outputs(
    net: Net, state: dict[str, Tensor], pick: Callable[[Any], Tensor], args: Any, kwargs: Any, w: Tensor
) -> Tensor:
    out = pick(called(net.architecture, {**net.weights.shaped(w), **state}, args, kwargs))
    return out.reshape(len(out), -1)
