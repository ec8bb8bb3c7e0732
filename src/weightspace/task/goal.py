"""A goal: what a step lowers, with its value and its gradient at a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.task.task import Task, descend

__all__ = ["Goal", "GoalError", "as_goal", "covector", "gradient", "not_aliased", "value_and_gradient"]


@public
def gradient(goal: Task | Callable[[Net], Tensor] | Any, net: Net) -> Weights:
    """dL/dw at the net's weights; a Task holds the graph of one batch at a time, a goal of `flow` gives its first step.

    An aggregate that does not stream ("linf", a function) costs one forward pass more. Raises `TaskError` for
    a goal that is not a differentiable 0-d tensor.
    """
    if hasattr(goal, "covector"):
        return goal.covector(checked(net), 0)[0]
    return value_and_gradient(goal, net)[1]


@public
def value_and_gradient(goal: Task | Callable[[Net], Tensor], net: Net) -> tuple[float, Weights]:
    """L and dL/dw at the net's weights, as `gradient`, in one pass."""
    factor = torch.ones(())
    with torch.enable_grad():
        vector = checked(net).weights.map(lambda w: w.detach().clone().requires_grad_(w.is_floating_point()))
        leaf = net.at(vector)
        if isinstance(goal, Task):
            factor, value = goal._backward(leaf)
        else:
            value = descend(goal(leaf))
    return value, vector.map(lambda w: torch.zeros_like(w) if w.grad is None else w.grad.mul_(factor.to(w)))


class GoalError(WeightspaceError):
    """A goal that makes no sense, or that has no gradient in what it is asked about."""


@public
class Goal:
    """What a flow lowers, step by step. Goals add up and take factors."""

    def covector(self, net: Net, step: int) -> tuple[Weights, float]:
        """The gradient at the net for this step, and the value there (NaN: it has none)."""
        raise NotImplementedError

    def __add__(self, other: Any) -> Goal:
        return self if isinstance(other, int) and other == 0 else Sum(((1.0, self), (1.0, as_goal(other))))

    __radd__ = __add__

    def __mul__(self, factor: float) -> Goal:
        return Sum(((float(factor), self),))

    __rmul__ = __mul__


@dataclass(frozen=True)
class Sum(Goal):
    """sum_k factor_k goal_k."""

    terms: tuple[tuple[float, Goal], ...]

    def covector(self, net: Net, step: int) -> tuple[Weights, float]:
        """The sum of the gradients and of the values."""
        total, value = net.weights.zeros(), 0.0
        for factor, goal in self.terms:
            vector, worth = goal.covector(net, step)
            total, value = total + factor * vector, value + factor * worth
        return total, value


@dataclass(frozen=True)
class Plain(Goal):
    """A task, or a function of the network, the same at every step."""

    function: Task | Callable[[Net], Tensor]

    def covector(self, net: Net, step: int) -> tuple[Weights, float]:
        """Its gradient and its value."""
        return swapped(value_and_gradient(self.function, net))


@public
def as_goal(aim: Any) -> Goal:
    """A task or a function of a network as a goal that adds up. Raises `GoalError` for anything else."""
    if isinstance(aim, Goal):
        return aim
    if isinstance(aim, Task) or callable(aim):
        return Plain(aim)
    raise GoalError(f"a goal is a task or a function of a network, not a {type(aim).__name__}")


@public
def covector(goal: Goal | Task | Callable[[Net], Tensor], net: Net, step: int = 0) -> tuple[Weights, float]:
    """The gradient of any goal at the net, and its value."""
    return as_goal(goal).covector(net, step)


@public
def not_aliased(net: Net, anchor: Net) -> None:
    """Raise `GoalError` where two networks share the memory of their weights."""
    mine = {t.untyped_storage().data_ptr() for t in net.weights.buffers}
    if mine & {t.untyped_storage().data_ptr() for t in anchor.weights.buffers}:
        raise GoalError("the anchor shares its memory with the network that moves, and would move too; clone() it")


def descended(goal: Callable[[Net], Tensor], net: Net) -> tuple[Weights, float]:
    return swapped(value_and_gradient(goal, net))


def swapped(pair: tuple[float, Weights]) -> tuple[Weights, float]:
    return pair[1], pair[0]
