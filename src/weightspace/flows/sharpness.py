"""Sharpness-aware goals: the worst or the mean loss in a ball of weights, whose shape is that of a metric.

The worst loss is taken to first order, at the end of one step uphill; a goal costs two gradients a step:

    SAM                 neighbourhood(learn(task), Euclidean(), radius)
    ASAM, by tensors    neighbourhood(learn(task), Relative(), radius)
    Fisher-SAM          neighbourhood(learn(task), Pullback(some, output="fisher", damping=..), radius)
    a ball of functions neighbourhood(learn(task), Pullback(some, damping=..), radius)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from weightspace.metric.metric import Adam, Metric
from weightspace.metric.pullback import Pullback
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, loose
from weightspace.net.public import public
from weightspace.net.seeds import derived
from weightspace.net.weights import Weights
from weightspace.task.goal import Goal, as_goal
from weightspace.task.task import Task

__all__ = ["Neighbourhood", "neighbourhood"]


Kind: TypeAlias = Literal["worst", "mean"]
Loss: TypeAlias = Callable[[], Tensor]


@dataclass(frozen=True)
class Neighbourhood(Goal):
    """The goal of `neighbourhood`: the worst or the mean value of a goal in a ball around the network."""

    goal: Goal
    metric: Metric | Pullback
    radius: float
    kind: Kind
    seed: int

    def value_and_gradient(self, net: Net, step: int) -> tuple[float, Weights]:
        """The value and the gradient at the worst point, or their means over two opposite points."""
        value, wanted = math.nan, net.weights
        if self.kind == "worst" or not self.radius:
            value, wanted = self.goal.value_and_gradient(net, step)
            if not self.radius or wanted.unusable():
                return value, wanted
        found = [self.goal.value_and_gradient(net + away, step) for away in self._around(net, wanted, step)]
        gradient = found[0][1] if len(found) == 1 else (found[0][1] + found[1][1]) / 2
        return math.fsum(worth for worth, _ in found) / len(found), gradient

    def backward(self, module: nn.Module, loss: Loss, step: int = 0) -> float:
        """Set `.grad` of a module's parameters to this goal's gradient, of `loss()` in place of the goal's own value.

        For a training loop of one's own, in place of `loss().backward()`: `loss` computes the loss of a batch with the
        module as it is, in training mode, with its dropout and autocast, and is called twice. Weights and buffers are
        put back afterwards, also where `loss` fails; buffers (running statistics) to what the first call made of them.
        A gradient with NaN or infinity is set as it is. `step`: the number of the step, from which the directions of
        "mean" are drawn. Returns the value. Raises `WeightspaceError` for a loss that is not a differentiable number.
        """
        own = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not own:
            raise WeightspaceError("every parameter of the module is frozen, so that there is no gradient to set")
        parts = [_differentiated(loss, own)] if self.kind == "worst" or not self.radius else []
        net = Net.of(module)
        wanted = net.weights.zeros().replace(parts[0][1]) if parts else net.weights
        if self.radius and not (parts and wanted.unusable()):
            around = self._around(net, wanted, step)
            called, parts = bool(parts), []
            for away in around:
                with _moved(module, away, called):
                    parts.append(_differentiated(loss, own))
                called = True
        for name, parameter in own.items():
            one, *others = (found[name] for _, found in parts)
            parameter.grad = (one + others[0]) / 2 if others else one
        return math.fsum(value for value, _ in parts) / len(parts)

    def _around(self, net: Net, gradient: Weights, step: int) -> list[Weights]:
        """The steps to the points of the ball: uphill for "worst"; for "mean", one at random and its opposite."""
        mean = self.kind == "mean"
        wanted = net.weights.randn(derived(self.seed, "ball", step)) if mean else gradient
        held = loose(net).flat() if net.frozen else None
        if held is not None:
            wanted = wanted.shaped(wanted.flat() * held)
        if not any(wanted.flat().aminmax()):  # a stationary point: nowhere is uphill
            return [net.weights.zeros()]
        away = self.metric.steepest(net, wanted) * -self.radius
        if held is not None:  # a metric may spread what it is given over a layer
            away = away.shaped(away.flat() * held)
        return [away, -away] if mean else [away]


@public
def neighbourhood(
    goal: Goal | Task | Callable[[Net], Tensor],
    metric: Metric | Pullback,
    radius: float,
    kind: Kind = "worst",
    seed: int = 0,
) -> Neighbourhood:
    """A goal: the worst or the mean value of `goal` in the ball |v|_w <= radius of a metric, for flat minima.

    "worst" is L(w + v), v = radius argmax <g, v> over |v|_w = 1 with g the gradient of this step: the maximum over the
    ball to first order. v is held fixed in the gradient, which is dL at w + v. "mean" is (L(w + v) + L(w - v)) / 2, v
    radius times the steepest step of a gradient drawn at random (a point on the sphere under `Euclidean`): L plus half
    the curvature along v, to third order. Both take two gradients a step, in place of one. Radius 0 is the goal itself.

    `goal`: `learn(task, batch)` for batches, whose step uphill is on the same batch; a task is taken whole. `metric`:
    `Euclidean()` gives SAM; `Relative()` a ball in shares of every tensor's norm, as ASAM has of every weight's;
    `Pullback(some, damping=)` a ball of the outputs on `some` examples, or with output="fisher" of the Fisher
    information, where |v|^2 = v . (G + damping) v. Frozen weights are not moved. `seed`: of the directions of "mean".
    `backward` of what is returned serves a training loop of one's own. Raises `WeightspaceError` for a radius that is
    negative or not finite, a metric without steps of length one (`Adam`), and a `Pullback` without damping, whose balls
    are unbounded.
    Sources: Sharpness-aware minimization for efficiently improving generalization (Foret, Kleiner, Mobahi, Neyshabur,
    2021); ASAM (Kwon, Kim, Park, Choi, 2021); Fisher SAM (Kim, Li, Hu, Hospedales, 2022).

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> goal = ws.neighbourhood(ws.learn(task, batch=20), ws.Euclidean(), radius=0.05)
    >>> value, gradient = goal.value_and_gradient(net, step=0)
    >>> value > ws.learn(task, batch=20).value_and_gradient(net, step=0)[0]
    True
    >>> path = ws.flow(net, goal, ws.Adam(), steps=15, size=0.01)              # SAM with Adam's steps
    >>> bool(task(path[-1]) < task(net))
    True
    """
    if not 0 <= radius < math.inf:
        raise WeightspaceError(f"a radius is a number from 0, got {radius}")
    if kind not in ("worst", "mean"):
        raise WeightspaceError(f"kind is {kind!r}; choose 'worst' or 'mean'")
    if not 0 <= seed < 1 << 63:
        raise WeightspaceError(f"a seed is a whole number from 0 to 2^63, got {seed}")
    if isinstance(metric, Adam):
        raise WeightspaceError("Adam's steps are not of length one, so that it has no balls; give Euclidean()")
    if isinstance(metric, Pullback) and not metric.damping:
        raise WeightspaceError(
            "without damping a ball of the Pullback is unbounded where outputs do not change; give Pullback(task, "
            "damping=...)"
        )
    return Neighbourhood(as_goal(goal), metric, float(radius), kind, seed)


# ------------------------------------------------------------------ modules of a training loop


def _differentiated(loss: Loss, parameters: Mapping[str, nn.Parameter]) -> tuple[float, dict[str, Tensor]]:
    """The value of a loss and its gradient in the parameters."""
    with torch.enable_grad():
        value = loss()
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise WeightspaceError("the loss must be a function that returns one differentiable number, as a 0-d tensor")
    found = torch.autograd.grad(value, [*parameters.values()], torch.ones_like(value), allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters.values(), strict=True)]
    return float(value.detach()), dict(zip(parameters, filled, strict=True))


@contextmanager
def _moved(module: nn.Module, away: Weights, called: bool) -> Iterator[None]:
    """The module with its parameters moved by a step, and put back exactly; if `called` before, its buffers too."""
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    buffers = {name: b.detach().clone() for name, b in module.named_buffers()} if called else {}
    try:
        _put(dict(module.named_parameters()), {name: before[name] + step for name, step in away.items()})
        yield
    finally:
        _put(dict(module.named_parameters()), before)
        _put(dict(module.named_buffers()), buffers)


@torch.no_grad()
def _put(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        own[name].copy_(value)
