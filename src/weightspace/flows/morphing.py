"""Training along a homotopy of tasks: the task moves on only as fast as the loss stays low.

The network is at the bottom of the loss of one task, and the loss changes into that of another task while the network
follows. Every step is made on the task a little further on, at t + d. Where the loss there is within the bound, t moves
on and d grows; where it is not, t stays and d shrinks, so that training goes on close to t until it is.
Source: Machine learning, math, and generalization (Sorensen, 2018), section 7.2; Numerical continuation methods
(Allgower, Georg, 1990), for the control of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from weightspace.flows.batches import positive
from weightspace.flows.result import Flow
from weightspace.flows.stepper import flow
from weightspace.metric.metric import Adam, Metric
from weightspace.metric.pullback import Pullback
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.task.classification import is_cross_entropy
from weightspace.task.goal import Goal, differentiated
from weightspace.task.task import Task

__all__ = ["Morph", "Stage", "least_loss", "morph"]


_FIRST, _GROW, _SHRINK = 0.05, 1.5, 0.5
_SMALLEST = 2.0**-12


@public
@dataclass(frozen=True)
class Stage:
    """One step of a morph: it was made on the task at `tried`, with the loss `excess` before it; `t` is reached.

    `excess` is the loss above the least one that the labels allow (`least_loss`).
    """

    step: int
    tried: float
    excess: float
    t: float


@public
@dataclass(frozen=True)
class Morph:
    """The result of `morph`: the path of networks, and how far the task came at every step.

    `path`: a `Flow`, whose last network is the answer. `stages`: one a gradient.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.morph(net, ws.homotopy(task, task.mapped(lambda x: 1 - x)), bound=3, budget=20)
    >>> found, len(found.stages), found.net is found.path[-1]
    (Morph(t = 1 after 6 of 20 gradients), 20, True)
    """

    path: Flow
    stages: tuple[Stage, ...]

    @property
    def net(self) -> Net:
        """The last network."""
        return self.path[-1]

    @property
    def t(self) -> float:
        """How far the task came: 1 where the last task was reached."""
        return self.stages[-1].t if self.stages else 0.0

    @property
    def arrived(self) -> int | None:
        """How many gradients it took to reach t = 1; None where it was not reached."""
        return next((stage.step + 1 for stage in self.stages if stage.t == 1), None)

    def __repr__(self) -> str:
        return f"Morph(t = {self.t:.3g} after {self.arrived or len(self.stages)} of {len(self.stages)} gradients)"


@public
def morph(
    net: Net,
    homotopy: Callable[[float], Task],
    metric: Metric | Pullback | None = None,
    *,
    bound: float,
    budget: int = 1000,
    size: float | Callable[[float], float] = 0.003,
    batch: int = 128,
    seed: int = 0,
) -> Morph:
    """Train a network while its task changes from `homotopy(0)` to `homotopy(1)`, with the loss within `bound`.

    Every one of the `budget` steps takes one gradient, on `batch` examples of the task at t + d, and moves the network
    by `size` under `metric` as `flow` does (by default Adam). t moves to t + d, and d grows by half, where the loss
    there was at most `bound` above the least that the labels allow; else t stays, and d is halved. At t = 1 what is
    left of the budget trains on the last task. The loss is that of the batch, before the step. Frozen weights stay, and
    a `Pullback` of the first task keeps its outputs on the way. Raises `WeightspaceError` for a bound or budget that is
    not positive and a function that does not give tasks. Where the bound is too low for the budget, the flow ends
    before the last task, and `Morph.t` is below 1.

    >>> import weightspace as ws
    >>> net, a = ws.demo.example()
    >>> b = a.mapped(lambda x: x.flip(-1))                                 # images from right to left
    >>> net = ws.flow(net, ws.learn(a), ws.Adam(), steps=60, size=0.01)[-1]
    >>> found = ws.morph(net, ws.homotopy(a, b), bound=1.0, budget=60, size=0.01)
    >>> found.t, bool(b(found.net) < b(net))
    (1.0, True)
    """
    if not 0 < bound < math.inf or budget < 1:
        raise WeightspaceError(f"a morph needs a positive bound and at least one gradient, got {bound} and {budget}")
    positive("a batch", batch)
    if not isinstance(first := homotopy(0.0), Task):
        raise WeightspaceError(f"a homotopy gives a Task for every t, not a {type(first).__name__}")
    first.fits(net)
    homotopy(1.0).fits(net)
    walk = _Along(homotopy, bound, batch, seed)
    path = flow(net, walk, Adam() if metric is None else metric, steps=budget, size=size)
    return Morph(path, tuple(walk.stages))


@dataclass
class _Along(Goal):
    """The goal of `morph`: the loss of a task that moves on as the goal is asked; for one flow."""

    homotopy: Callable[[float], Task]
    bound: float
    batch: int
    seed: int
    t: float = 0.0
    ahead: float = _FIRST
    stages: list[Stage] = field(default_factory=list)

    def value_and_gradient(self, net: Net, step: int) -> tuple[float, Weights]:
        """The loss of the task a little further on and its gradient, on the batch of this step."""
        tried = min(1.0, self.t + self.ahead)
        some = self.homotopy(tried).minibatch(self.batch, step, self.seed)
        value, slope = differentiated(some, net)
        excess = value - least_loss(some)
        within = excess <= self.bound
        self.t = max(self.t, tried) if within else self.t
        self.ahead = max(_SMALLEST, self.ahead * (_GROW if within else _SHRINK))
        self.stages.append(Stage(step, tried, excess, self.t))
        return value, slope


@public
def least_loss(task: Task) -> float:
    """The least loss that labels allow: the mean entropy -sum_k y_k log y_k of soft labels under a cross-entropy.

    Zero for other labels and losses. Where inputs are mixed so are labels, and no network gets below this.

    >>> import torch, weightspace as ws
    >>> task = ws.Task(torch.zeros(4, 2), torch.full((4, 2), 0.5), metric="cross-entropy")
    >>> round(ws.flows.least_loss(task), 3)
    0.693
    """
    if not is_cross_entropy(task) or task.aggregate not in ("mean", "sum"):
        return 0.0
    found = [y for _, y in task.batches() if y is not None and y.is_floating_point()]
    rows = sum(len(y) for _, y in task.batches() if y is not None)
    entropy = sum(float(-torch.xlogy(y.double(), y.double()).sum()) for y in found)
    return entropy / (rows if task.aggregate == "mean" else 1)
