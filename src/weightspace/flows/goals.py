"""Goals: what a flow lowers.

Any function of a network whose value is one differentiable number is a goal. Those here change from step to step
(batches), look at other networks as well, or bend the gradient; they add up: `learn(new) + 0.5 * hold(memory, net)`.
The known methods of continual learning are sums of them, under `Euclidean` or `Adam`:

    naive               learn(new)
    experience replay   learn(new) + learn(memory)
    LwF                 learn(new) + hold(new, net, "kl", temperature=2)
    frozen teacher      learn(new) + hold(memory, net, "bhattacharyya")
    DER++               learn(new) + hold(memory, net, "squared", labels=a)
    EWC                 learn(new) + ewc(net, old)
    A-GEM, GEM          gem(learn(new), [memory, ...])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import nnls
from torch import Tensor

from weightspace.flows.attacks import input_gradient
from weightspace.flows.batches import Augment, changed, mean_of, positive
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.task.goal import Goal, GoalError, as_goal, differentiated, gradient
from weightspace.task.task import Task

__all__ = ["drift", "gem", "learn", "spread", "toward"]


# ------------------------------------------------------------------ tasks, old and new


@dataclass(frozen=True)
class Learn(Goal):
    """The loss of a task, on another batch at every step."""

    task: Task
    batch: int
    seed: int
    augment: Augment | None

    def value_and_gradient(self, net: Net, step: int) -> tuple[float, Weights]:
        """The gradient and the loss of one batch."""
        some = self.task.minibatch(self.batch, step, self.seed)
        if self.augment is not None:
            some = some.mapped(lambda x: changed(x, self.augment, self.seed, step))
        return differentiated(some, net)


@public
def learn(task: Task, batch: int = 128, seed: int = 0, augment: Augment | None = None) -> Goal:
    """The task's loss, on `batch` examples at every step, in another order every epoch.

    `augment(inputs, generator)` changes the inputs of a batch on the way.
    """
    positive("a batch", batch)
    return Learn(task, batch, seed, augment)


@dataclass(frozen=True)
class Gem(Goal):
    """A goal whose gradient is bent until it hurts no memory."""

    goal: Goal
    memories: tuple[Task, ...]
    batch: int
    seed: int

    def value_and_gradient(self, net: Net, step: int) -> tuple[float, Weights]:
        """The nearest vector with no negative product with the gradient of any memory, and the goal's value."""
        value, wanted = self.goal.value_and_gradient(net, step)
        rows = [gradient(m.minibatch(self.batch, step, self.seed), net).flat() for m in self.memories]
        a, g = torch.stack(rows).double(), wanted.flat().double()
        if not bool(a.isfinite().all() and g.isfinite().all()) or bool((a @ g >= 0).all()):
            return value, wanted
        gram = (a @ a.T).numpy(force=True)
        root = np.linalg.cholesky(gram + 1e-10 * np.trace(gram) * np.eye(len(gram)))
        weights, _ = nnls(root.T, -np.linalg.solve(root, (a @ g).numpy(force=True)))
        return value, wanted.shaped((g + torch.from_numpy(weights).to(a) @ a).to(wanted.flat()))


@public
def gem(goal: Goal | Task | Callable[[Net], Tensor], memories: Sequence[Task], batch: int = 64, seed: int = 0) -> Goal:
    """`goal` with its gradient g replaced by argmin |v - g| over <v, g_k> >= 0, g_k the gradient of memory k.

    One memory of all old tasks is A-GEM. Sources: Gradient episodic memory for continual learning (Lopez-Paz, Ranzato,
    2017); Efficient lifelong learning with A-GEM (Chaudhry, Ranzato, Rohrbach, Elhoseiny, 2019).
    """
    if isinstance(memories, Task) or not memories:
        raise GoalError("which memories are protected? give a list of at least one task")
    positive("a batch", batch)
    return Gem(as_goal(goal), tuple(memories), batch, seed)


# ------------------------------------------------------------------ other networks, other inputs


@dataclass(frozen=True)
class Drift(Goal):
    """No goal but a heading: a random direction, the same at every step."""

    seed: int

    def value_and_gradient(self, net: Net, step: int) -> tuple[float, Weights]:
        """The direction; it has no value."""
        return math.nan, net.weights.randn(self.seed)


@public
def drift(seed: int) -> Goal:
    """Explore: a random heading drawn from `seed`, kept as far as the metric allows."""
    if not 0 <= seed < 1 << 63:
        raise GoalError(f"a seed is a whole number from 0 to 2^63, got {seed}")
    return Drift(seed)


@dataclass(frozen=True)
class Toward(Goal):
    """Half the squared distance to another network."""

    other: Net

    def __call__(self, net: Net) -> Tensor:
        """|w - w_other|^2 / 2, with its graph."""
        net.check(self.other)
        parts = [(w - self.other.weights[n].to(w)).square().sum() / 2 for n, w in net.weights.items()]
        return torch.stack(parts).sum()

    def value_and_gradient(self, net: Net, step: int) -> tuple[float, Weights]:
        """w - w_other, and the value."""
        return differentiated(self, net)


@public
def toward(other: Net) -> Goal:
    """|w - w_other|^2 / 2: go to another network (align it first)."""
    return Toward(checked(other))


@dataclass(frozen=True)
class Spread(Goal):
    """How alike the input gradients of networks are."""

    others: tuple[Net, ...]
    task: Task
    batch: int
    seed: int

    def value_and_gradient(self, net: Net, step: int) -> tuple[float, Weights]:
        """The gradient and the coherence on one batch."""
        batches = list(self.task.minibatch(self.batch, step, self.seed).batches(net))
        theirs = [[input_gradient(other, self.task, x, y).detach() for other in self.others] for x, y in batches]

        def coherence(w: Net) -> Tensor:
            parts: list[tuple[Tensor, int]] = []
            for (x, y), rows in zip(batches, theirs, strict=True):
                mine = input_gradient(w, self.task, x, y, graph=True)
                parts += [(F.cosine_similarity(mine, row.to(mine), dim=1).sum(), len(row)) for row in rows]
            return mean_of(parts)

        return differentiated(coherence, net)


@public
def spread(others: Sequence[Net], task: Task, batch: int = 64, seed: int = 0) -> Goal:
    """mean over examples and others of cos(grad_x L(f), grad_x L(f_other)): networks that fool one another less.

    Source: Improving adversarial robustness of ensembles with diversity training (Kariyappa, Qureshi, 2019).
    """
    if not others:
        raise GoalError("spread from which networks? give at least one")
    positive("a batch", batch)
    return Spread(tuple(checked(o) for o in others), task, batch, seed)
