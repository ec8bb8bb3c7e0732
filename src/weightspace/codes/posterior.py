"""Gaussian distributions over weights: outputs of noisy networks, and the variational posterior of a task.

    Q = N(mu, diag s^2),  P = N(w_0, diag l^2)
    KL(Q | P) = 1/2 sum_i [(s_i^2 + (mu_i - w_0i)^2) / l_i^2 - 1 - log(s_i^2 / l_i^2)]
    C_beta = min_Q E_{w ~ Q} L(w) + beta KL(Q | P),   L = the task's loss summed over the examples, in nats

C_beta is a description length: Q is a code for the labels, of E_Q L + beta KL nats. Weights are drawn anew for every
example. A linear layer z = W x + b has z ~ N(mu x + mu_b, s^2 x^2 + s_b^2), independent over units; where a weight is
shared by several positions (pixels, tokens), the batch shares one noise matrix with random signs for every example and
unit, so that each example alone has weights from Q. All other weights are drawn once for a batch. The output of every
single example has its exact distribution.
Sources: Keeping neural networks simple by minimizing the description length of the weights (Hinton, van Camp, 1993);
Variational dropout and the local reparameterization trick (Kingma, Salimans, Welling, 2015); Flipout (Wen, Vicol, Ba,
Tran, Grosse, 2018).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from weightspace.graph.on_data import graph_of, layers_on, pulled
from weightspace.net.differentiable import called
from weightspace.net.errors import SymmetryError, WeightspaceError
from weightspace.net.inputs import arguments, carried
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.net.state import math_attention
from weightspace.net.weights import Weights
from weightspace.task.task import Task

__all__ = ["Gaussian", "Noisy", "stream"]


_MAPS: dict[Any, str] = {F.linear: "linear", F.conv1d: "conv1d", F.conv2d: "conv2d", F.conv3d: "conv3d"}
TINY = 1e-20


@public(grad=False)
@dataclass(frozen=True)
class Gaussian:
    """A Gaussian distribution over weights, N(mu, diag s^2): `net` has the weights mu, `log_variance` is log s^2.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> q = ws.Gaussian(net, net.weights.map(lambda w: 0 * w - 4))
    >>> q.sample(seed=0)(task.example(3)).shape, q.kl(q)
    (torch.Size([3, 10]), 0.0)
    """

    net: Net
    log_variance: Weights

    def __post_init__(self) -> None:
        checked(self.net).weights.check(self.log_variance)
        if bad := self.net.weights.unusable() or self.log_variance.unusable():
            raise WeightspaceError(f"NaN or infinity in {bad[0]}; a Gaussian has finite means and variances")

    def sample(self, seed: int) -> Net:
        """A network with weights drawn from the Gaussian."""
        noise = self.net.weights.randn(seed).flat()
        return self.net.at(
            self.net.weights.shaped(self.net.weights.flat() + (self.log_variance.flat() / 2).exp() * noise)
        )

    def kl(self, prior: Gaussian) -> float:
        """KL(self | prior) in nats, in float64. Raises `ArchitectureMismatch` unless both have the same tensors."""
        return sum(self.kl_by_tensor(prior).values())

    def kl_by_tensor(self, prior: Gaussian) -> dict[str, float]:
        """The part of every tensor in KL(self | prior): name -> nats."""
        self.net.weights.check(prior.net.weights)
        parts = {}
        for name, mean in self.net.weights.items():
            s, ell = self.log_variance[name].double(), prior.log_variance[name].double()
            far = (mean.double() - prior.net.weights[name].double()).square()
            parts[name] = float(((s - ell).exp() + far * (-ell).exp() - 1 - s + ell).sum()) / 2
        return parts


# ------------------------------------------------------------------ outputs with random weights


class _Drawn(TorchFunctionMode):
    """A mode in which linear layers and convolutions with a random weight return a sample of their output."""

    def __init__(self, known: Mapping[int, tuple[Tensor, Tensor | None]], generator: torch.Generator) -> None:
        super().__init__()
        self._known, self._generator = known, generator
        self.last: tuple[Tensor, Tensor, Tensor] | None = None  # of linear maps of one position: draw, mean, variance

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _MAPS or not self._known:
            return func(*args, **kwargs)
        names = ("input", "weight", "bias")
        given: list[Any] = [args[k] if k < len(args) else kwargs.get(n) for k, n in enumerate(names)]
        if id(given[1]) not in self._known:
            return func(*args, **kwargs)
        x, weight, bias = given
        rest = {k: v for k, v in kwargs.items() if k not in names}
        variance, of_bias = self._known[id(weight)]

        def apply(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
            out: Tensor = func(x, w, b, *args[3:], **rest)
            return out

        with torch._C.DisableTorchFunctionSubclass():
            mean = apply(x, weight, bias)
            if x.dim() == 2 and func is F.linear:
                spread = apply(x.square(), variance, of_bias)
                drawn = mean + (spread + TINY).sqrt() * self._normal(mean)
                self.last = drawn, mean, spread
                return drawn
            at = 1 if func is not F.linear else -1
            out = mean + self._signs(mean, at) * apply(self._signs(x, at) * x, variance.sqrt() * self._normal(weight))
            if of_bias is None:
                return out
            own = self._normal(mean.new_empty(len(mean), len(of_bias))) * of_bias.sqrt()
            return out + own.view(_form(out, at, own.shape[1]))

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._generator, dtype=like.dtype, device=like.device)

    def _signs(self, like: Tensor, at: int) -> Tensor:
        """Random signs for every example and unit, the same at all positions."""
        shape = (len(like), like.shape[at])
        drawn = torch.randint(0, 2, shape, generator=self._generator, device=like.device).to(like.dtype) * 2 - 1
        return drawn.view(_form(like, at, shape[1]))


def _form(like: Tensor, at: int, units: int) -> tuple[int, ...]:
    """The shape (examples, 1, .., units, .., 1), units in the dimension `at`."""
    form = [len(like), *[1] * (like.dim() - 1)]
    form[at] = units
    return tuple(form)


@dataclass(frozen=True)
class _Map:
    """A linear layer or convolution whose weight is used once: its bias, and whether examples have one position."""

    bias: str | None
    single: bool


@public
class Noisy:
    """A network with random weights, x -> f_w(x), w ~ N(mu, diag s^2) for every example, differentiable in mu and s^2.

    `exact`: whether the examples of a batch have independent weights (all weights are in linear layers on single
    positions), so that a batch of n gives n independent samples.

    >>> import torch, weightspace as ws
    >>> net, task = ws.demo.example()
    >>> noisy = ws.codes.Noisy(net, task)
    >>> variance = net.weights.map(lambda w: 0 * w + 0.01)
    >>> noisy(task.example(3), net.weights, variance, torch.Generator().manual_seed(0)).shape, noisy.exact
    (torch.Size([3, 10]), True)
    """

    def __init__(self, net: Net, task: Task) -> None:
        """Find the layers of `net` in its graph, on two examples of `task`."""
        self.net, self.task = checked(net), task
        self._maps = _read(net, task)
        self._biases = {m.bias for m in self._maps.values() if m.bias}
        learnt = {name for name, w in net.weights.items() if w.is_floating_point()}
        self.exact = {*self._maps, *self._biases} == learnt and all(m.single for m in self._maps.values())

    def __call__(self, x: Any, mean: Weights, variance: Weights, generator: torch.Generator) -> Tensor:
        """A sample of the outputs of a batch, in the form of `task.forward`."""
        return self._run(x, mean, variance, generator)[0]

    def moments(
        self, x: Any, mean: Weights, variance: Weights, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """A sample of the outputs, with their mean and variance given the sampled inputs of a linear last layer.

        Mean and variance are None where the last layer is not linear.
        """
        outputs, last = self._run(x, mean, variance, generator)
        return (outputs, *last[1:]) if last is not None and last[0] is outputs else (outputs, None, None)

    def _run(
        self, x: Any, mean: Weights, variance: Weights, generator: torch.Generator
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
        tensors, known = dict(mean), {}
        for name, mu in mean.items():
            if name in self._maps:
                bias = self._maps[name].bias
                known[id(mu)] = (variance[name], variance[bias] if bias else None)
            elif name not in self._biases and mu.is_floating_point():
                noise = torch.randn(mu.shape, generator=generator, dtype=mu.dtype, device=mu.device)
                tensors[name] = mu + variance[name].sqrt() * noise
        args, kwargs = arguments(x)
        with math_attention(), _Drawn(known, generator) as drawn:
            raw = called(self.net.architecture, {**tensors, **self.net.state}, args, kwargs)
        return self.task.output(raw), drawn.last


def _read(net: Net, task: Task) -> dict[str, _Map]:
    """Weight -> its layer, where the first dimension is the batch and the weight is used nowhere else."""
    x = carried(task.example(2), net)
    try:
        graph = graph_of(net, x)
    except SymmetryError:
        return {}
    kept, out = layers_on(net, graph, x, lambda layer: layer.contracts and layer.learnt(net.weights), task.output)
    if not kept:
        return {}
    return {
        part.layer.weight: _Map(part.layer.bias, part.given[0].dim() == 2 and part.layer.name == "linear")
        for part, slope in zip(kept, pulled(kept, out), strict=True)
        if slope is not None and len(slope) == len(out) > 1 and not bool(slope[1:].any())
    }


@public
def stream(net: Net, task: Task, batch: int, seed: int) -> Iterator[tuple[Any, Tensor | None]]:
    """An endless stream of minibatches, or of the whole task where it has no more than `batch` examples.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> x, y = next(ws.codes.stream(net, task, batch=8, seed=0))
    >>> x.shape, y.shape
    (torch.Size([8, 1, 8, 8]), torch.Size([8]))
    """
    whole = [*task.batches(net)] if batch >= len(task) else []
    for step in count():
        yield from whole or task.minibatch(batch, step, seed).batches(net)
