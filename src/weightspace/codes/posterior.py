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

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
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
from weightspace.net.net import Net, checked, math_attention
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.task.classification import classifies
from weightspace.task.losses import IGNORED
from weightspace.task.task import Task

__all__ = ["Code", "Gaussian", "Noisy", "encode", "stream"]


_MAPS: dict[Any, str] = {F.linear: "linear", F.conv1d: "conv1d", F.conv2d: "conv2d", F.conv3d: "conv3d"}
_TINY = 1e-20
_WARM = 0.5
_START = 0.1  # standard deviation of a weight at the start, over its tensor's root mean square


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
                drawn = mean + (spread + _TINY).sqrt() * self._normal(mean)
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


# ------------------------------------------------------------------ the variational posterior of a task


@public(grad=False)
@dataclass(frozen=True)
class Code:
    """A variational posterior Q, with E_Q L = `loss` and KL(Q | P) = `kl` in nats; what `encode` returns.

    `error`: the standard error of `loss`. `prior`: P, with the variance of every tensor that is optimal for Q, unless
    it was given. `layers`: name -> its part of the KL. `right`: the accuracy of networks drawn from Q (NaN without
    classes). `trivial`: Q = P, because no posterior that was found has a shorter length.
    """

    loss: float
    error: float
    kl: float
    beta: float
    right: float
    posterior: Gaussian = field(repr=False)
    prior: Gaussian = field(repr=False)
    layers: Mapping[str, float] = field(repr=False, default_factory=dict)
    trivial: bool = False

    @property
    def length(self) -> float:
        """The description length E_Q L + beta KL, in nats."""
        return self.loss + self.beta * self.kl


@dataclass
class _Fit:
    """The parameters mu and log s^2 as two flat leaves, and the prior (mean and variance)."""

    net: Net
    anchor: Net
    variance: float | None
    mean: Tensor
    log_variance: Tensor

    def __post_init__(self) -> None:
        self.sizes = [w.numel() for w in self.net.weights.values()]
        self.counts = torch.tensor(self.sizes, device=self.mean.device)

    def scales(self) -> tuple[Tensor, Tensor]:
        """s_i^2 + (mu_i - w_0i)^2, and the prior's variance of every weight."""
        second = self.log_variance.exp() + (self.mean - self.anchor.weights.flat()).square()
        if self.variance is not None:
            return second, torch.full_like(second, self.variance)
        means = torch.stack([part.mean() for part in second.split(self.sizes)]) + _TINY
        return second, means.repeat_interleave(self.counts)

    @torch.no_grad()
    def pull(self, factor: float) -> None:
        """Add `factor` times the gradient of KL(Q | P) to both leaves; the gradient through the best prior is zero."""
        second, wide = self.scales()
        far = self.mean - self.anchor.weights.flat()
        assert self.mean.grad is not None and self.log_variance.grad is not None
        self.mean.grad.addcdiv_(far, wide, value=factor)
        self.log_variance.grad.add_(((second - far.square()) / wide - 1), alpha=factor / 2)

    def gaussians(self) -> tuple[Gaussian, Gaussian]:
        """Q and P."""
        shaped = self.net.weights.shaped
        q = Gaussian(self.net.at(shaped(self.mean.detach().clone())), shaped(self.log_variance.detach().clone()))
        return q, Gaussian(self.anchor, shaped(self.scales()[1].detach().log()))

    def silent(self) -> tuple[Gaussian, Gaussian]:
        """Q = P, nearly a point where the prior's variance is free."""
        scale = math.log(_TINY if self.variance is None else self.variance)
        p = Gaussian(self.anchor, self.anchor.weights.map(lambda w: torch.full_like(w, scale)))
        return p, p


@public(renamed={"rate": "lr"})
def encode(
    net: Net,
    task: Task,
    beta: float = 1.0,
    *,
    anchor: Net | None = None,
    variance: float | None = None,
    start: Gaussian | None = None,
    steps: int = 1000,
    batch: int = 512,
    lr: float = 0.03,
    draws: int = 16,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Code:
    """The variational posterior of a task: the Q = N(mu, diag s^2) that minimises E_Q L + beta KL(Q | P).

    P = N(w_0, l_t^2) has one variance for each tensor t: `variance`, or by default the optimal mean(s^2 + (mu -
    w_0)^2), whose own description length is not counted; w_0 are the weights of `anchor`, zero by default. Q starts at
    `net`, or at `start`. Adam on minibatches with a one-cycle schedule of peak learning rate `lr`, 3 `lr` for log s^2;
    beta is warmed up over the first half of the steps. E_Q L at the end is a mean over `draws` weights for every
    example. Q = P is returned where it is shorter. The examples are held in memory. Cost: `steps` forward and backward
    passes over `batch` examples, each twice the network's own, and `draws` passes over the task. Frozen weights are
    fixed: Q and P are over the others, those of `net.free()`; use net.thawed() to count all. Raises `WeightspaceError`
    for a beta, variance or steps that is not positive, and a loss that is not finite.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> code = ws.encode(net, task, beta=0.1, steps=20)
    >>> code.length == code.loss + 0.1 * code.kl, list(code.layers) == list(net.weights)
    (True, True)
    """
    for name, value in (("beta", beta), ("variance", variance), ("steps", steps), ("lr", lr), ("draws", draws)):
        if value is not None and not 0 < value < math.inf:
            raise WeightspaceError(f"{name} must be a positive number, got {value}")
    if checked(net).frozen:
        net, anchor, start = _free(net, anchor, start)
    fit = _begin(net, anchor, variance, start)
    task = task.mapped(lambda x: x)
    task.batch = batch
    task.fits(net)
    noisy = Noisy(net, task)
    generator = torch.Generator(device=fit.mean.device).manual_seed(seed)
    _train(fit, noisy, stream(net, task, batch, seed), beta, steps, lr, generator, progress)
    found = _measured(*fit.gaussians(), noisy, beta, draws, generator)
    silent = _measured(*fit.silent(), noisy, beta, draws, generator)
    return found if found.length <= silent.length else replace(silent, trivial=True)


def _train(
    fit: _Fit,
    noisy: Noisy,
    batches: Iterable[tuple[Any, Tensor | None]],
    beta: float,
    steps: int,
    lr: float,
    generator: torch.Generator,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Adam on E_Q L + beta KL / n, one minibatch a step, with one cycle of the learning rate."""
    task, shaped, n = noisy.task, noisy.net.weights.shaped, _count(noisy.task)
    optimiser = torch.optim.Adam(
        [{"params": [fit.mean], "lr": lr}, {"params": [fit.log_variance], "lr": 3 * lr}], fused=True
    )
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, [lr, 3 * lr], steps + 1, pct_start=0.1, div_factor=10)
    for step, (x, y) in zip(range(steps), batches, strict=False):
        optimiser.zero_grad(set_to_none=False)
        loss = task.loss(noisy(x, shaped(fit.mean), shaped(fit.log_variance.exp()), generator), y)
        if not bool(loss.isfinite()):
            raise WeightspaceError("the loss is NaN or infinite; look for it in the data, or lower lr=")
        loss.backward()
        fit.pull(min(1.0, (step + 1) / (_WARM * steps)) * beta / n)
        optimiser.step()
        cycle.step()
        if progress:
            progress(step + 1, steps)


def _free(net: Net, anchor: Net | None, start: Gaussian | None) -> tuple[Net, Net | None, Gaussian | None]:
    """The net, anchor and start without the weights that are frozen in the net."""
    net = net.free()
    anchor = None if anchor is None else checked(anchor).within(net.weights)
    if start is not None:
        kept = Weights({name: start.log_variance[name] for name in net.weights})
        start = Gaussian(start.net.within(net.weights), kept)
    return net, anchor, start


def _begin(net: Net, anchor: Net | None, variance: float | None, start: Gaussian | None) -> _Fit:
    if bad := net.weights.unusable():
        raise WeightspaceError(f"NaN or infinity in {bad[0]}; give a network of finite weights")
    if not all(w.is_floating_point() for w in net.weights.values()):
        raise WeightspaceError("integer weights cannot be random; give a network of floating-point weights")
    zero = net.at(net.weights.zeros()) if anchor is None else checked(anchor)
    net.weights.check(zero.weights)
    first = _around(net) if start is None else start
    net.weights.check(first.net.weights)
    leaves = [v.flat().detach().clone().requires_grad_() for v in (first.net.weights, first.log_variance)]
    return _Fit(net, zero, variance, *leaves)


def _around(net: Net) -> Gaussian:
    """A Gaussian at the net, with a tenth of each tensor's root mean square as standard deviation."""
    squares = {name: float(w.double().square().mean()) for name, w in net.weights.items()}
    whole = max(squares.values(), default=0.0) or 1.0
    scales = {name: math.log(_START**2 * (square or whole)) for name, square in squares.items()}
    return Gaussian(net, Weights({name: torch.full_like(w, scales[name]) for name, w in net.weights.items()}))


def _count(task: Task) -> int:
    """The number of labelled positions of a task, over which L is summed."""
    total = 0
    for _, y in task.batches():
        if y is None:
            raise WeightspaceError("the task has no labels, so there is nothing to encode; give Task(inputs, labels)")
        total += len(y) if y.is_floating_point() else int((y != IGNORED).sum())
    if not total:
        raise WeightspaceError(f"no example has a label: all are {IGNORED}")
    return total


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


@torch.no_grad()
def _measured(q: Gaussian, p: Gaussian, noisy: Noisy, beta: float, draws: int, generator: torch.Generator) -> Code:
    """The code of Q and P: the loss is estimated from draws, the KL is exact."""
    total, hits, seen = torch.zeros(draws, dtype=torch.float64), 0.0, 0
    variance = q.log_variance.map(torch.exp)
    known = classifies(noisy.task)
    for x, y in noisy.task.batches(q.net):
        for k in range(draws):
            f = noisy(x, q.net.weights, variance, generator)
            total[k] += float(noisy.task.summed(f, y)[0])
            if known and y is not None:
                right = noisy.task.wrong(f, y) == 0
                hits, seen = hits + float(right.sum()), seen + len(right)
    if not bool(total.isfinite().all()):
        raise WeightspaceError("the loss is NaN or infinite; look for it in the data and the weights")
    parts = q.kl_by_tensor(p)
    error = float(total.std()) / math.sqrt(draws) if draws > 1 else math.nan
    share = hits / seen if known else math.nan
    return Code(float(total.mean()), error, sum(parts.values()), beta, share, q, p, parts)
