"""Another metric's steps, projected so that layers go on answering alike to the inputs that they had on a task.

The inputs h of a layer z = V h on the task have the second moment C = sum h h^T / N, and a step D of V changes z by
tr(D C D^T) / N on average. A step is replaced by the nearest one in which that is cheap:

    D P = argmin_X |X - D|^2 + tr(X C X^T) / (damping m),    P = (I + C / (damping m))^-1,    m = tr(C) / dim

and for `damping` 0, in which that is zero: then all layers keep their inputs, whatever the length of the way.
Sources: Training networks in null space of feature covariance for continual learning (Wang, Li, Sun, Xu, 2021);
Gradient projection memory for continual learning (Saha, Garg, Roy, 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightspace.curvature.tangent_kernel import KernelError
from weightspace.metric.metric import Metric, Remembering
from weightspace.metric.per_layer import NULL, matrix_of, moments, put_matrix
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["NullSpace"]


@dataclass(frozen=True)
class _Given:
    """The inputs of one layer: the name of its bias, how many units it had, sum h h^T, and the projection P."""

    bias: str | None
    units: int
    total: Float[Tensor, "columns columns"]
    kept: Float[Tensor, "columns columns"]


@public
class NullSpace:
    """The metric `metric`, with steps projected onto the null spaces of layers' inputs. Made by `NullSpace.of`.

    v = P steepest(net, covector), P = (I + C / (damping m))^-1 from the right in every linear map and convolution, C
    the second moment of the layer's inputs (with a one for the bias) and m its mean eigenvalue; `damping` 0 projects
    onto the null space of C. Tensors outside of these layers do not move, nor do layers of which the weight or the bias
    is frozen. Units that a layer did not have at the network given to `of` and `add`, the new outputs of `grow`, move
    freely: old outputs are kept while they learn; give the network that has grown to keep all. `add` takes the inputs
    of another task in; no example is kept. A flow of `size` s under
    `NullSpace.of(Adam(), ...)` is Adam with learning rate s and projected steps.

    >>> import torch
    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> old, new = task.take(10), task.take(60, seed=1)
    >>> kept = ws.NullSpace.of(ws.Adam(), net, old)
    >>> path = ws.flow(net, ws.learn(new), kept, steps=30, size=0.01)
    >>> round(float(ws.functional(net, path[-1], old)), 3), bool(new(path[-1]) < new(net))
    (0.0, True)
    """

    def __init__(self, metric: Metric, given: Mapping[str, _Given], damping: float, count: int) -> None:
        self.metric, self.damping, self.count = metric, damping, count
        self._given = dict(given)

    @classmethod
    def of(cls, metric: Metric, net: Net, task: Task, damping: float = 0.0) -> NullSpace:
        """`metric` with the inputs of the layers of `net` on a task taken out of its steps.

        `damping`: the change that is allowed, in parts of the mean second moment of a layer's inputs; infinity leaves
        the steps as they are. Raises `KernelError` for a network without a linear map or convolution whose weight is
        used once, `WeightspaceError` for a damping below 0.
        """
        if not damping >= 0:
            raise WeightspaceError(f"a null space takes a damping from 0, got {damping}; give 0 for an exact one")
        return cls(metric, {}, float(damping), 0).add(net, task)

    def add(self, net: Net, task: Task) -> NullSpace:
        """The same with the inputs of another task taken out too, each example of each task with the same weight."""
        found = {layer.weight: (layer.bias, moment) for layer, moment in moments(net.free(), task)}
        if not found:
            raise KernelError(
                "no linear map or convolution whose weight is used once and learns with its bias: no null space"
            )
        if self._given and found.keys() != self._given.keys():
            other = next(iter(found.keys() ^ self._given.keys()))
            raise WeightspaceError(f"the null spaces are those of another network: {other} is in one of them only")
        given = {}
        for name, (bias, moment) in found.items():
            total = moment * len(task)
            if name in self._given:
                before = self._given[name].total
                if before.shape != total.shape:
                    raise WeightspaceError(f"the null spaces are those of another network: {name} has another shape")
                total = before + total
            given[name] = _Given(bias, len(net.weights[name]), total, _projection(total, self.damping))
        return NullSpace(self.metric, given, self.damping, self.count + len(task))

    @property
    def free(self) -> dict[str, float]:
        """The share of a random step of each layer that is left, tr(P) / dim: 0 where nothing can be learnt."""
        return {name: float(one.kept.diagonal().mean()) for name, one in self._given.items()}

    def project(self, net: Net, vector: Weights) -> Weights:
        """The part P v of a step that leaves the outputs of layers alone."""
        net.weights.check(vector)
        new = vector.zeros()
        for name, one in self._given.items():
            if name not in vector or {name, one.bias} & net.frozen:
                continue
            step = matrix_of(vector, name, one.bias)
            put_matrix(new, name, one.bias, torch.cat([step[: one.units] @ one.kept, step[one.units :]]))
        return new

    def norm(self, net: Net, vector: Weights) -> Float[Tensor, ""]:
        """|v| in the metric whose steps are projected."""
        return self.metric.norm(net, vector)

    def steepest(self, net: Net, covector: Weights) -> Weights:
        """P times the step of the metric; shorter than its steps by what is taken out."""
        return self.project(net, self.metric.steepest(net, covector))

    def begin(self) -> NullSpace:
        """The same settings and null spaces, without a history of gradients."""
        metric = self.metric.begin() if isinstance(self.metric, Remembering) else self.metric
        return NullSpace(metric, self._given, self.damping, self.count)

    def state(self) -> dict[str, Tensor]:
        """A copy of the history of gradients, where the metric has one."""
        return self.metric.state() if isinstance(self.metric, Remembering) else {}

    def restore(self, net: Net, state: Mapping[str, Tensor]) -> None:
        """Set the history to a `state()`."""
        if isinstance(self.metric, Remembering):
            self.metric.restore(net, state)

    def __repr__(self) -> str:
        mean = sum(self.free.values()) / len(self._given)
        return f"NullSpace({self.metric}, {self.count:,} examples, {mean:.0%} free)"


def _projection(total: Tensor, damping: float) -> Tensor:
    """(I + C / (damping m))^-1, or the projection onto the null space of C."""
    values, vectors = torch.linalg.eigh(total)
    if damping:
        shares = 1 / (1 + values.clamp(min=0) / (damping * values.mean().clamp(min=torch.finfo(torch.float64).tiny)))
    else:
        shares = (values <= NULL * values[-1]).double()
    return (vectors * shares) @ vectors.T
