"""The shortest code of a task: a Gaussian posterior trained on loss plus description length, and its length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from weightspace.codes.posterior import TINY, Gaussian, Noisy, stream
from weightspace.jobs.progress import Tick
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.task.classification import classifies
from weightspace.task.losses import IGNORED
from weightspace.task.task import Task

__all__ = ["Code", "encode"]

_WARM = 0.5
_START = 0.1  # standard deviation of a weight at the start, over its tensor's root mean square


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
        means = torch.stack([part.mean() for part in second.split(self.sizes)]) + TINY
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
        scale = math.log(TINY if self.variance is None else self.variance)
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
    progress: Tick | None = None,
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
    progress: Tick | None,
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
