"""The trace of the Fisher information, and the gradient noise scale, of a network on a task.

The Fisher information F = E_x E_{y ~ p_w(.|x)} g g^T, g = grad_w log p_w(y|x), takes its labels from the network. With
J = d(outputs)/dw, g = J^T u where u = d(log p)/d(outputs): one backward pass gives |g|^2 of every example and tensor.
p is the `likelihood` of the loss: for "cross-entropy" the softmax, for "squared" a Gaussian of unit variance, for
binary cross-entropy a Bernoulli distribution for every output.
Sources: Critical learning periods in deep networks (Achille, Rovere, Soatto, 2019); New insights and perspectives on
the natural gradient method (Martens, 2020), on the empirical Fisher; An empirical model of large-batch training
(McCandlish, Kaplan, Amodei, 2018).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import torch
from torch import Tensor

from weightspace.curvature.gradients import squares
from weightspace.curvature.outputs import law_of, likelihood, nats
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.net.state import math_attention
from weightspace.task.goal import gradient
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["FisherTrace", "GradientNoise", "Unmeasured", "fisher_trace", "gradient_noise"]


Labels: TypeAlias = Literal["model", "data", "all"]
_TOGETHER = 16  # backward passes through one graph


@public
class Unmeasured(UserWarning):
    """A warning: the examples are too few for a ratio, whose denominator may be zero."""


@public
@dataclass(frozen=True)
class FisherTrace:
    """The trace of the Fisher information, of all weights or one tensor, with its standard error over the examples.

    `layers`: name -> the part of that tensor; the values add up. Made by `fisher_trace`.
    """

    value: float
    error: float
    layers: Mapping[str, FisherTrace] = field(default_factory=dict)


@public
@dataclass(frozen=True)
class GradientNoise:
    """The noise of per-example gradients: tr Sigma of their covariance and |G|^2 of their mean, both unbiased.

    `trace` is tr Sigma, `square` is |G|^2, from so many `examples`; `layers`: the same for every tensor, which add up.
    Made by `gradient_noise`.

    >>> import weightspace as ws
    >>> noise = ws.curvature.GradientNoise(trace=50.0, square=-0.2, examples=100)
    >>> noise.scale, noise.why[:75]
    (inf, 'infinite: the mean gradient of 100 examples is no larger than its sampling ')
    """

    trace: float
    square: float
    layers: Mapping[str, GradientNoise] = field(default_factory=dict)
    examples: int = 0

    @property
    def scale(self) -> float:
        """The noise scale tr Sigma / |G|^2, a batch size; infinite where the estimate of |G|^2 is not positive."""
        return self.trace / self.square if self.square > 0 else math.inf if self.trace else math.nan

    @property
    def why(self) -> str:
        """Why the scale is not a finite number, in one sentence; empty where it is.

        |G|^2 is estimated as |mean g|^2 - tr Sigma / N. It is not positive where the mean gradient of the N examples is
        within its own sampling error: at a minimum, where G is zero, or with fewer examples than the scale itself.
        """
        if self.square > 0:
            return ""
        if not self.trace:
            return "not a number: the gradient of every example is zero, and so is its noise"
        return (
            f"infinite: the mean gradient of {self.examples} examples is no larger than its sampling error, so the "
            f"true one may be zero: the network is at a minimum, or the noise scale is above about {self.examples}; "
            "give more examples"
        )


@overload
def fisher_trace(
    task: Task, *, draws: int = ..., seed: int = ..., labels: Labels = ..., by_layer: Literal[False] = ...
) -> Callable[[Net], float]: ...
@overload
def fisher_trace(
    task: Task, *, draws: int = ..., seed: int = ..., labels: Labels = ..., by_layer: Literal[True]
) -> Callable[[Net], FisherTrace]: ...
@public
def fisher_trace(
    task: Task, *, draws: int = 1, seed: int = 0, labels: Labels = "model", by_layer: bool = False
) -> Callable[[Net], Any]:
    """A function of a network that returns the trace of its Fisher information, tr F = E_x E_y |grad_w log p_w(y|x)|^2.

    With `by_layer`, the function returns a `FisherTrace`. `labels`: "model", y drawn from the network, `draws` labels
    per example; "all", the exact expectation over y, with a backward pass per output; "data", the task's own labels,
    which gives the trace of the empirical Fisher instead. Positions of a sequence count as separate labels: their terms
    add up, without those that the task labels -100. Evaluation mode. Raises `WeightspaceError` for a loss that is not a
    negative log-likelihood, missing labels, and outputs that are not finite.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> exact = ws.fisher_trace(task, labels="all", by_layer=True)(net)
    >>> list(exact.layers), round(exact.value, 1)
    (['1.weight', '1.bias', '3.weight', '3.bias'], 3.9)
    >>> abs(ws.fisher_trace(task, draws=5)(net) - exact.value) < 1
    True
    """
    if draws < 1:
        raise WeightspaceError(f"draws is {draws}; give 1 or more labels an example")
    law_of(task)  # refuses a loss that is not a likelihood

    @public
    def fisher_trace(net: Net) -> float | FisherTrace:
        names, start = _learnt(checked(net)), 0
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        for x, y, f in _outputs(net, task):
            seen = likelihood(task, f, y)
            if labels == "data":
                drawn: Iterator[Tensor] = iter([-nats(task, f) * task.slopes(f, y)[0]])
            else:
                drawn = (u for _, u in seen.factors(draws if labels == "model" else None, seed, start))
            start += len(f)
            for name, found in _summed(net, task, x, drawn, names).items():
                parts[name].append(found / (draws if labels == "model" else 1))
        layers = {name: torch.cat(part) for name, part in parts.items()}
        whole = _mean(torch.stack([*layers.values()]).sum(0))
        if not by_layer:
            return whole.value
        return FisherTrace(whole.value, whole.error, {name: _mean(part) for name, part in layers.items()})

    return fisher_trace


@overload
def gradient_noise(task: Task, *, by_layer: Literal[False] = ...) -> Callable[[Net], float]: ...
@overload
def gradient_noise(task: Task, *, by_layer: Literal[True]) -> Callable[[Net], GradientNoise]: ...
@public
def gradient_noise(task: Task, *, by_layer: bool = False) -> Callable[[Net], Any]:
    """A function of a network that returns its gradient noise scale tr Sigma / |G|^2, a batch size.

    With `by_layer`, the function returns a `GradientNoise`. Sigma = cov_i g_i and G = E g_i, g_i the gradient of one
    example's loss. From N examples, tr Sigma is estimated as (sum |g_i|^2 - N |mean g|^2) / (N - 1) and |G|^2 as
    |mean g|^2 - tr Sigma / N; where this is not positive the scale is infinite, which a warning (`Unmeasured`) and
    `GradientNoise.why` explain. For a sequence, g_i is the sum over its labelled positions, divided by their mean
    number. Evaluation mode. Raises `WeightspaceError` for fewer than two examples, no labels, and outputs that are not
    finite.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> 10 < ws.gradient_noise(task)(net) < 1000
    True
    >>> noise = ws.gradient_noise(task, by_layer=True)(net)
    >>> noise.scale == noise.trace / noise.square, list(noise.layers)
    (True, ['1.weight', '1.bias', '3.weight', '3.bias'])
    """

    @public
    def gradient_noise(net: Net) -> float | GradientNoise:
        names, n, count = _learnt(checked(net)), 0, 0
        power, total = dict.fromkeys(names, 0.0), net.weights.zeros()
        for x, y, f in _outputs(net, task):
            slope, seen = task.slopes(f, y)
            for name, found in _summed(net, task, x, iter([slope]), names).items():
                power[name] += float(found.sum())
            total = total + gradient(_along(task, x, slope), net)
            n, count = n + len(f), count + seen
        if n < 2 or not count:
            raise WeightspaceError(f"{n} examples with {count} labels have no gradient noise; give two or more")
        layers = {name: _noise(power[name] * (n / count) ** 2, total[name] / count, n) for name in names}
        trace, square = sum(part.trace for part in layers.values()), sum(part.square for part in layers.values())
        whole = GradientNoise(trace, square, layers, n)
        if not by_layer and whole.why:
            warnings.warn(f"the noise scale is {whole.why}", Unmeasured, stacklevel=3)
        return whole if by_layer else whole.scale

    return gradient_noise


def _noise(power: float, mean: Tensor, n: int) -> GradientNoise:
    square = float(mean.double().square().sum())
    trace = max(0.0, power - n * square) / (n - 1)
    return GradientNoise(trace, square - trace / n, {}, n)


def _along(task: Task, x: Any, slope: Tensor) -> Callable[[Net], Tensor]:
    return lambda net: (task.forward(net, x) * slope).sum()


def _learnt(net: Net) -> list[str]:
    names = [name for name, w in net.weights.items() if w.is_floating_point()]
    if not names:
        raise WeightspaceError("the network has no weights that could have a gradient")
    return names


def _outputs(net: Net, task: Task) -> Iterator[tuple[Any, Tensor | None, Tensor]]:
    """Inputs, labels and outputs of every batch."""
    for x, y in task.batches(net):
        with torch.no_grad(), math_attention():
            f = task.forward(net, x)
        if not f.isfinite().all():
            raise WeightspaceError("the outputs hold NaN or infinity; look for it in the data and the weights")
        yield x, y, f


def _summed(
    net: Net, task: Task, x: Any, drawn: Iterator[Tensor], names: Sequence[str]
) -> dict[str, Float[Tensor, " examples"]]:
    """sum_u |J_il^T u_i|^2 for every tensor and example."""
    total: dict[str, Tensor] = {}
    while some := [*islice(drawn, _TOGETHER)]:
        for found in squares(net, task, x, some, names):
            total = {name: total.get(name, 0.0) + part for name, part in found.items()}
    return total


def _mean(values: Float[Tensor, " examples"]) -> FisherTrace:
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return FisherTrace(float(values.mean()), error)
