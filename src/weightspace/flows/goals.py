"""Goals: the objectives that a flow lowers, from new tasks to gradient episodic memory.

Any function of a network whose value is one differentiable number is a goal. Those here change from step to step
(batches), compare with other networks, or project the gradient; they add up: `learn(new) + 0.5 * hold(memory, net)`.
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
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.task.goal import Goal, as_goal, differentiated, gradient
from weightspace.task.task import Task

__all__ = ["drift", "gem", "learn", "spread", "toward"]


# ------------------------------------------------------------------ tasks, old and new


@dataclass(frozen=True)
class Learn(Goal):
    """The goal of `learn`: the loss of a task, on another batch at every step."""

    task: Task
    batch: int
    seed: int
    augment: Augment | None

    def value_and_gradient(self, net: Net, step: int) -> tuple[float, Weights]:
        """The loss and its gradient on the batch of this step."""
        some = self.task.minibatch(self.batch, step, self.seed)
        if self.augment is not None:
            some = some.mapped(lambda x: changed(x, self.augment, self.seed, step))
        return differentiated(some, net)


@public
def learn(task: Task, batch: int = 128, seed: int = 0, augment: Augment | None = None) -> Goal:
    """A goal: the task's loss, on `batch` examples at every step, in a new order every epoch.

    `augment(inputs, generator)` changes the inputs of a batch beforehand.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> goal = ws.learn(task, batch=20)
    >>> value, gradient = goal.value_and_gradient(net, step=0)
    >>> path = ws.flow(net, goal, ws.Adam(), steps=15, size=0.01)          # five epochs of Adam
    >>> bool(task(path[-1]) < task(net))
    True
    """
    positive("a batch", batch)
    return Learn(task, batch, seed, augment)


@dataclass(frozen=True)
class Gem(Goal):
    """The goal of `gem`: a goal whose gradient is projected so that it raises the loss of no memory."""

    goal: Goal
    memories: tuple[Task, ...]
    batch: int
    seed: int

    def value_and_gradient(self, net: Net, step: int) -> tuple[float, Weights]:
        """The goal's value, and the nearest vector with no negative product with a memory's gradient."""
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
    """Gradient episodic memory, a goal: `goal` with its gradient projected so that no memory's loss rises.

    The gradient g becomes argmin |v - g| over <v, g_k> >= 0, g_k the gradient of memory k. One memory of all old tasks
    is A-GEM. Sources: Gradient episodic memory for continual learning (Lopez-Paz, Ranzato, 2017); Efficient lifelong
    learning with A-GEM (Chaudhry, Ranzato, Rohrbach, Elhoseiny, 2019).

    >>> import weightspace as ws
    >>> net, old = ws.demo.example()
    >>> new = ws.random_labels(old, 1.0, seed=0)
    >>> _, v = ws.gem(ws.learn(new, batch=60), [old], batch=60).value_and_gradient(net, step=0)
    >>> bool(v.dot(ws.gradient(old, net)) > -1e-4)                         # a step along -v does not raise the old loss
    True
    """
    if isinstance(memories, Task) or not memories:
        raise WeightspaceError("gem needs a list of at least one task as memories")
    positive("a batch", batch)
    return Gem(as_goal(goal), tuple(memories), batch, seed)


# ------------------------------------------------------------------ other networks, other inputs


@dataclass(frozen=True)
class Drift(Goal):
    """The goal of `drift`: a random direction, the same at every step."""

    seed: int

    def value_and_gradient(self, net: Net, step: int) -> tuple[float, Weights]:
        """NaN, since it has no value, and the direction."""
        return math.nan, net.weights.randn(self.seed)


@public
def drift(seed: int) -> Goal:
    """A goal for exploring: a random direction drawn from `seed`, the same at every step.

    Under a `Pullback`, a flow along it finds other networks with the same outputs.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> path = ws.flow(net, ws.drift(0), ws.Pullback(task.take(20)), steps=3, size=0.2)
    >>> bool((path[-1] - net).norm() > 0.3), path.log[-1].drift < 0.01      # far in weights, near in outputs
    (True, True)
    """
    if not 0 <= seed < 1 << 63:
        raise WeightspaceError(f"a seed is a whole number from 0 to 2^63, got {seed}")
    return Drift(seed)


@dataclass(frozen=True)
class Toward(Goal):
    """The goal of `toward`: half the squared distance to another network."""

    other: Net

    def __call__(self, net: Net) -> Tensor:
        """|w - w_other|^2 / 2, differentiable."""
        net.check(self.other)
        parts = [(w - self.other.weights[n].to(w)).square().sum() / 2 for n, w in net.weights.items()]
        return torch.stack(parts).sum()

    def value_and_gradient(self, net: Net, step: int) -> tuple[float, Weights]:
        """The value, and w - w_other."""
        return differentiated(self, net)


@public
def toward(other: Net) -> Goal:
    """A goal: half the squared distance |w - w_other|^2 / 2 to another network (align it first).

    >>> import weightspace as ws
    >>> (a, task), (b, _) = ws.demo.example(), ws.demo.example(1)
    >>> path = ws.flow(a, ws.toward(b), ws.Euclidean(), steps=5, size=0.5)
    >>> round(float((b - a).norm() - (b - path[-1]).norm()), 2)
    2.5
    """
    return Toward(checked(other))


@dataclass(frozen=True)
class Spread(Goal):
    """The goal of `spread`: the coherence of input gradients with those of other networks."""

    others: tuple[Net, ...]
    task: Task
    batch: int
    seed: int

    def value_and_gradient(self, net: Net, step: int) -> tuple[float, Weights]:
        """The coherence and its gradient on the batch of this step."""
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
    """A goal for diverse ensembles: the mean cosine similarity of input gradients, cos(grad_x L(f), grad_x L(f_other)).

    Lowering it makes networks that the same adversarial examples do not fool; see `coherence`.
    Source: Improving adversarial robustness of ensembles with diversity training (Kariyappa, Qureshi, 2019).

    >>> import weightspace as ws
    >>> (a, task), (b, _) = ws.demo.example(), ws.demo.example(1)
    >>> path = ws.flow(a, ws.spread([b], task), ws.Euclidean(), steps=3, size=0.1)
    >>> ws.coherence([path[-1], b], task) < ws.coherence([a, b], task)
    True
    """
    if not others:
        raise WeightspaceError("spread needs at least one other network")
    positive("a batch", batch)
    return Spread(tuple(checked(o) for o in others), task, batch, seed)
