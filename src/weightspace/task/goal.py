"""Goals: objectives that a step lowers, with their values and gradients in the weights of a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightspace.contents import deprecated
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.task.losses import descend
from weightspace.task.task import Task

__all__ = ["Goal", "as_goal", "gradient", "not_aliased", "value_and_gradient"]


@public
def gradient(goal: Goal | Task | Callable[[Net], Tensor], net: Net) -> Weights:
    """The gradient dL/dw of a loss at the weights of a network; of a goal of `flow`, that of its first step.

    A task is differentiated batch by batch, with the graph of one batch in memory; the aggregates "linf" and functions
    take a second forward pass. Raises `TaskError` for a goal that is not a differentiable 0-d tensor.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> gradient = ws.gradient(task, net)
    >>> gradient, bool(task(net + -0.01 * gradient) < task(net))
    (Weights(4 tensors, 1,210 numbers), True)
    """
    return value_and_gradient(goal, net)[1]


@public
def value_and_gradient(goal: Goal | Task | Callable[[Net], Tensor], net: Net, step: int = 0) -> tuple[float, Weights]:
    """A loss L and its gradient dL/dw at the weights of a network, in one pass; of a goal of `flow`, those of a `step`.

    The value is NaN for a goal that has none (a direction). Raises `TaskError` as `gradient` does.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> value, gradient = ws.task.value_and_gradient(task, net)
    >>> abs(value - float(task(net))) < 1e-5, gradient
    (True, Weights(4 tensors, 1,210 numbers))
    """
    return as_goal(goal).value_and_gradient(checked(net), step)


def differentiated(goal: Task | Callable[[Net], Tensor], net: Net) -> tuple[float, Weights]:
    """The value and the gradient of a task, or of a function of the network, by one backward pass."""
    factor = torch.ones(())
    with torch.enable_grad():
        vector = checked(net).weights.map(lambda w: w.detach().clone().requires_grad_(w.is_floating_point()))
        leaf = net.at(vector)
        if isinstance(goal, Task):
            factor, value = goal._backward(leaf)
        else:
            value = descend(goal(leaf))
    return value, vector.map(lambda w: torch.zeros_like(w) if w.grad is None else w.grad.mul_(factor.to(w)))


@public
class Goal:
    """An objective that a flow lowers step by step. Goals can be added and multiplied by numbers.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> goal = ws.learn(task) + 0.1 * ws.toward(net)
    >>> value, gradient = goal.value_and_gradient(net, step=0)
    >>> gradient
    Weights(4 tensors, 1,210 numbers)
    """

    def value_and_gradient(self, net: Net, step: int) -> tuple[float, Weights]:
        """The value of the goal at a network (NaN where it has none) and its gradient, for this step."""
        if type(self).covector is Goal.covector:
            raise NotImplementedError
        deprecated("a goal gives value_and_gradient(net, step) -> (value, gradient) now, in place of covector")
        gradient, value = self.covector(net, step)
        return value, gradient

    def covector(self, net: Net, step: int) -> tuple[Weights, float]:
        """Deprecated: the gradient, then the value; use `value_and_gradient`."""
        deprecated("covector(..) -> (gradient, value) is value_and_gradient(..) -> (value, gradient) now")
        value, gradient = self.value_and_gradient(net, step)
        return gradient, value

    def __add__(self, other: Any) -> Goal:
        return self if isinstance(other, int) and other == 0 else Sum(((1.0, self), (1.0, as_goal(other))))

    __radd__ = __add__

    def __mul__(self, factor: float) -> Goal:
        return Sum(((float(factor), self),))

    __rmul__ = __mul__


@dataclass(frozen=True)
class Sum(Goal):
    """The weighted sum of goals, sum_k factor_k goal_k."""

    terms: tuple[tuple[float, Goal], ...]

    def value_and_gradient(self, net: Net, step: int) -> tuple[float, Weights]:
        """The sum of the values and of the gradients."""
        total, value = net.weights.zeros(), 0.0
        for factor, goal in self.terms:
            worth, vector = goal.value_and_gradient(net, step)
            total, value = total + factor * vector, value + factor * worth
        return value, total


@dataclass(frozen=True)
class Plain(Goal):
    """A task, or a function of a network, as a goal that is the same at every step."""

    function: Task | Callable[[Net], Tensor]

    def value_and_gradient(self, net: Net, step: int) -> tuple[float, Weights]:
        """The value and the gradient of the task or function."""
        return differentiated(self.function, net)


@public
def as_goal(aim: Any) -> Goal:
    """A task, or a scalar function of a network, as a `Goal`. Raises `WeightspaceError` for anything else.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> goal = 0.5 * ws.task.as_goal(task)
    >>> abs(goal.value_and_gradient(net, 0)[0] - 0.5 * float(task(net))) < 1e-5
    True
    """
    if isinstance(aim, Goal):
        return aim
    if isinstance(aim, Task) or callable(aim):
        return Plain(aim)
    raise WeightspaceError(f"a goal is a task or a function of a network, not a {type(aim).__name__}")


def covector(goal: Goal | Task | Callable[[Net], Tensor], net: Net, step: int = 0) -> tuple[Weights, float]:
    """Deprecated: the gradient of a goal at a network, then its value; use `value_and_gradient`."""
    return as_goal(goal).covector(checked(net), step)


@public
def not_aliased(net: Net, anchor: Net) -> None:
    """Raise `WeightspaceError` where two networks share the memory of their weights.

    >>> import weightspace as ws
    >>> net, _ = ws.demo.example()
    >>> ws.task.not_aliased(net, net.clone())
    """
    mine = {t.untyped_storage().data_ptr() for t in net.weights.buffers}
    if mine & {t.untyped_storage().data_ptr() for t in anchor.weights.buffers}:
        raise WeightspaceError(
            "the anchor shares its memory with the network that moves, and would move too; clone() it"
        )
