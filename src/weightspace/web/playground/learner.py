"""One network that learns: its weights in one buffer, changed in place by an optimiser, and its responses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.metric.metric import Spectral
from weightspace.metric.optim import Fromage, Lamb
from weightspace.metric.pullback import Pullback
from weightspace.net.errors import WeightspaceError
from weightspace.net.model import fresh
from weightspace.net.net import Net
from weightspace.task.task import Task
from weightspace.web.playground.state import State

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["LARGEST", "Learner", "architecture", "sound"]

LARGEST = 1e6  # of a weight; beyond, training has left what can be computed with
_MOMENTUM, _DAMPING = 0.9, 1e-3
_FUNCTIONS = {"tanh": torch.tanh, "relu": torch.relu, "leaky_relu": F.leaky_relu, "sigmoid": torch.sigmoid}
_GAINS = {"tanh": 5 / 3, "relu": math.sqrt(2), "leaky_relu": math.sqrt(2 / (1 + 1e-4)), "sigmoid": 1.0}
_MODULES = {"tanh": nn.Tanh, "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "sigmoid": nn.Sigmoid}


def architecture(depth: int, width: int, activation: str) -> nn.Sequential:
    """Two inputs, `depth` hidden layers of `width` neurons, one output; orthogonal weights, biases of zero.

    Orthogonal matrices times the gain of the activation keep the size of signals through twenty layers.
    """
    sizes = [2, *[width] * depth, 1]
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(sizes):
        layer = nn.Linear(n, m)
        nn.init.orthogonal_(layer.weight, _GAINS[activation])
        nn.init.zeros_(layer.bias)
        layers += [layer, _MODULES[activation]()]
    return nn.Sequential(*layers[:-1])


class Learner:
    """A network in training. `flat`: all its weights; `gradient`: that of the last training batch, or None.

    `like`: a network of the same architecture, for which the library may know the graph already.

    >>> import torch
    >>> from weightspace.web.playground.learner import Learner
    >>> from weightspace.web.playground.state import Limits, State
    >>> learner = Learner(State.of({"depth": 2, "width": 4}, Limits()), seed=0)
    >>> x = torch.rand(5, 2, dtype=torch.float64)
    >>> bool((learner.responses(x)[-1][:, 0] == learner.net()(x)[:, 0]).all())
    True
    """

    def __init__(self, state: State, seed: int, like: Net | None = None) -> None:
        self.activation = _FUNCTIONS[state.activation]
        made = fresh(lambda: architecture(state.depth, state.width, state.activation), seed).double()
        self.begun = made if like is None else like.at(made.weights)  # one architecture is traced once
        self.flat = self.begun.weights.flat().clone()
        self.sizes = [2, *[state.width] * state.depth, 1]
        self.parameters = [nn.Parameter(view) for view in self.views(self.flat)]
        self.gradient: Tensor | None = None
        self.start_over(state)

    def start_over(self, state: State) -> None:
        """A new optimiser, without a history."""
        self.rate, self.algorithm = state.rate, state.algorithm
        self.optimiser = _optimiser(self.parameters, state)

    def views(self, flat: Tensor) -> list[Tensor]:
        """The matrix and the biases of every layer, as views of a vector of all weights."""
        found, start = [], 0
        for n, m in itertools.pairwise(self.sizes):
            found += [flat[start : start + n * m].view(m, n), flat[start + n * m : start + n * m + m]]
            start += n * m + m
        return found

    def net(self, flat: Tensor | None = None) -> Net:
        """The network as the library takes it, with a copy of the weights; or one with other weights."""
        values = self.flat.clone() if flat is None else flat
        return self.begun.at(self.begun.weights.shaped(values))

    def put(self, flat: Tensor) -> None:
        """Take other weights; the gradient of those before is dropped."""
        self.flat.copy_(flat)
        self.gradient = None

    def responses(self, x: Float[Tensor, "n 2"], flat: Tensor | None = None) -> list[Tensor]:
        """The activations of every hidden layer, (n, width) each, and the logits, (n, 1); in the dtype of x."""
        views = self.views((self.flat if flat is None else flat).to(x.dtype))
        found, h = [], x
        for k in range(0, len(views), 2):
            h = F.linear(h, views[k], views[k + 1])
            if k + 2 < len(views):
                h = self.activation(h)
            found.append(h)
        return found

    def learn(self, x: Float[Tensor, "n 2"], y: Float[Tensor, " n"]) -> None:
        """One training step on a batch."""
        h, last = x, len(self.parameters) - 2
        for k in range(0, last, 2):
            h = self.activation(F.linear(h, self.parameters[k], self.parameters[k + 1]))
        h = F.linear(h, self.parameters[last], self.parameters[last + 1])
        loss = F.binary_cross_entropy_with_logits(h[:, 0], y)
        found = torch.autograd.grad(loss, self.parameters)
        for parameter, gradient in zip(self.parameters, found, strict=True):
            parameter.grad = gradient
        self.gradient = torch.cat([g.reshape(-1) for g in found])
        if self.optimiser is not None:
            self.optimiser.step()
        elif bool(self.gradient.any()):
            self.flat.add_(self._steepest(x, y, self.gradient), alpha=self.rate)

    def _steepest(self, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
        """The step of length one under the spectral metric, or under the Fisher information of the batch."""
        net = self.net()
        covector = net.weights.shaped(gradient)
        if self.algorithm == "spectral":
            return Spectral().steepest(net, covector).flat()
        return Pullback(Task(x, y), fisher_angle, damping=_DAMPING).steepest(net, covector).flat()

    def norms(self, flat: Tensor) -> list[float]:
        """The norm of every layer's matrix in a vector of all weights."""
        return torch.stack(torch._foreach_norm(self.views(flat)[::2])).tolist()


def fisher_angle(logits: Tensor) -> Tensor:
    """2 atan(exp(f / 2)), whose slope is sqrt(p (1 - p)): its pullback is the Fisher information of a coin."""
    return 2 * torch.atan(torch.exp((logits / 2).clamp(max=300.0)))


def sound(flat: Tensor) -> bool:
    """Whether all numbers are finite and of a size to compute with."""
    low, high = (float(end) for end in flat.aminmax())
    return math.isfinite(low) and math.isfinite(high) and max(-low, high) <= LARGEST


def _optimiser(parameters: Sequence[nn.Parameter], state: State) -> torch.optim.Optimizer | None:
    """The optimiser by its name; None for steps along the steepest direction of a metric."""
    if state.algorithm in ("spectral", "natural"):
        return None
    if state.algorithm == "fromage":
        return Fromage(parameters, lr=state.rate)
    if state.algorithm == "lamb":
        return Lamb(parameters, lr=state.rate)
    if state.algorithm == "adam":
        return torch.optim.Adam(parameters, lr=state.rate, fused=True)
    if state.algorithm in ("sgd", "momentum"):
        momentum = _MOMENTUM if state.algorithm == "momentum" else 0.0
        return torch.optim.SGD(parameters, lr=state.rate, momentum=momentum, fused=True)
    raise WeightspaceError(f"no algorithm {state.algorithm}")
