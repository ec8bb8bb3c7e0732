"""Adversarial examples: inputs moved to raise the loss, and adversarial training as a goal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weightspace.flows.batches import forward, mean_of, positive
from weightspace.net.errors import WeightspaceError
from weightspace.net.inputs import each, leaves
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.state import math_attention
from weightspace.net.weights import Weights
from weightspace.task.goal import Goal, differentiated
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["attacked", "harden", "input_gradient"]


@public(order=("task", "net"))
def input_gradient(
    net: Net, task: Task, x: Any, y: Tensor | None, graph: bool = False
) -> Float[Tensor, "examples numbers"]:
    """The gradient of every example's loss with respect to its inputs, as rows.

    `graph`: keep the graph, for second derivatives. Raises `WeightspaceError` for inputs that are not floating-point.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> x, y = next(task.batches(net))
    >>> ws.flows.input_gradient(net, task, x, y).shape                     # 60 images of 64 pixels
    torch.Size([60, 64])
    """
    parts = leaves(x)
    if not all(part.is_floating_point() for part in parts):
        raise WeightspaceError("these inputs are integers (tokens) and have no gradient; give embeddings or images")
    seen = each(lambda t: t.detach().requires_grad_(), x)
    with torch.enable_grad(), math_attention():
        loss = task.summed(forward(task, net, seen), y)[0]
        found = torch.autograd.grad(loss, leaves(seen), create_graph=graph)
    return torch.cat([part.flatten(1) for part in found], 1)


@dataclass(frozen=True)
class Harden(Goal):
    """The goal of `harden`: the loss on attacked inputs."""

    task: Task
    radius: float
    steps: int
    batch: int
    seed: int
    span: tuple[float, float]

    def value_and_gradient(self, net: Net, step: int) -> tuple[float, Weights]:
        """The loss and its gradient on one attacked batch."""
        some = self.task.minibatch(self.batch, step, self.seed)
        moved = [(attacked(net, self.task, x, y, self.radius, self.steps, self.span), y) for x, y in some.batches(net)]
        return differentiated(lambda w: mean_of([self.task.summed(forward(self.task, w, x), y) for x, y in moved]), net)


@public
def harden(
    task: Task,
    radius: float,
    steps: int = 7,
    batch: int = 128,
    seed: int = 0,
    span: tuple[float, float] = (-math.inf, math.inf),
) -> Goal:
    """Adversarial training, a goal: max L(x + d) over |d|_inf <= radius, by `steps` of projected gradient ascent.

    Inputs stay within `span`. Source: Towards deep learning models resistant to adversarial attacks (Madry et al.,
    2018).

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> goal = ws.harden(task, radius=0.1, batch=60)
    >>> goal.value_and_gradient(net, step=0)[0] > float(task(net))
    True
    """
    if not 0 < radius < math.inf or steps < 1:
        raise WeightspaceError(f"an attack needs a positive radius and at least one step, got {radius} and {steps}")
    positive("a batch", batch)
    return Harden(task, radius, steps, batch, seed, span)


@public(order=("task", "net"))
def attacked(
    net: Net, task: Task, x: Any, y: Tensor | None, radius: float, steps: int, span: tuple[float, float]
) -> Tensor:
    """Adversarial examples: the inputs after `steps` of projected gradient ascent on the loss within |d|_inf <= radius.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> x, y = next(task.batches(net))
    >>> moved = ws.flows.attacked(net, task, x, y, radius=0.1, steps=3, span=(0, 1))
    >>> round(float((moved - x).abs().max()), 3), bool(ws.Task(moved, y)(net) > task(net))
    (0.1, True)
    """
    if not isinstance(x, Tensor):
        raise WeightspaceError("an attack moves one tensor of inputs; these have several")
    moved = x
    for _ in range(steps):
        rise = input_gradient(net, task, moved, y).view_as(x).sign()
        moved = torch.clamp(moved + 2.5 * radius / steps * rise, x - radius, x + radius).clamp(*span)
    return moved.detach()
