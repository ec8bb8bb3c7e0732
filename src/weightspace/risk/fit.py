"""A Gaussian distribution over weights, trained to lower a PAC-Bayes bound on its own error.

Training is in units of the prior's deviation l: with mu = w_0 + l m and s = l e^(r/2), KL = 1/2 sum(e^r + m^2 - 1 - r)
whatever l is, so that one learning rate does for all l. Each step descends a * error + b * KL / n, where a and b are
the derivatives of kl^-1: how much the bound rises per unit of error, and per nat. Where the last layer is a linear map,
the expected error over its weights is integrated in closed form and needs no surrogate loss.
Source: Computing nonvacuous generalization bounds (Dziugaite, Roy, 2017), for the prior's variance on a grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weightspace.codes.posterior import Gaussian, Noisy, stream
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.risk import inequalities

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Fit", "LARGEST", "SMALLEST", "descend", "expected_error", "on_grid", "places", "slopes"]


LARGEST, SMALLEST = 0.0, math.log(1e-8)  # range of the grid of log prior variances
_FLOOR = 1e-4  # least probability in the bounded cross-entropy
_MEMORY = 0.9  # decay of the running mean of the error


@public
class Fit:
    """The trained parameters of Q and P in units of P's deviation, as flat tensors: m, r, and log l^2 of every layer.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> fit = ws.risk.Fit(net, net, first=0.1)                             # Q = P = N(w, 0.1^2)
    >>> fit.kl().item()
    0.0
    >>> q, p, deviations = fit.rounded()
    >>> {layer: round(l, 3) for layer, l in deviations.items()}
    {'1': 0.1, '3': 0.1}
    """

    def __init__(self, start: Net, centre: Net, first: float, learnt: bool = False) -> None:
        """`start`: the mean of Q; `centre`: that of P; `first`: P's deviation l, or its start if it is `learnt`."""
        self.centre, self.learnt = centre, learnt
        if not 0 < first < math.inf:
            raise WeightspaceError(f"a prior deviation of {first:g}; give a positive number")
        weights = start.weights
        self.layers = list(dict.fromkeys(_layer(name) for name in weights))
        place = weights.flat().device
        self.index = torch.tensor([self.layers.index(_layer(name)) for name in weights], device=place)
        self.sizes = torch.tensor([w.numel() for w in weights.values()], device=place)
        self.counts = [int(self.sizes[self.index == k].sum()) for k in range(len(self.layers))]
        self.m = ((weights - centre.weights).flat().detach() / first).requires_grad_()
        self.r = torch.zeros_like(self.m).requires_grad_()
        self.scale = self.m.new_full((len(self.layers),), 2 * math.log(first)).requires_grad_(self.learnt)

    def kl(self) -> Float[Tensor, ""]:
        """KL(Q || P)."""
        return (self.r.exp() + self.m.square() - 1 - self.r).sum() / 2

    def pair(self) -> tuple[Weights, Weights]:
        """The mean mu and the variance s^2 of Q as weights, differentiable in m, r and l."""
        shaped, wide = self.centre.weights.shaped, (self.scale / 2).exp()[self.index].repeat_interleave(self.sizes)
        return shaped(self.centre.weights.flat() + wide * self.m), shaped(wide.square() * self.r.exp())

    def grid(self) -> float:
        """The nats paid for choosing the variances of P from a grid after the data."""
        return sum(math.log(places(size)) for size in self.counts) if self.learnt else 0.0

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the prior variances within the grid."""
        self.scale.clamp_(SMALLEST, LARGEST)

    @torch.no_grad()
    def rounded(self) -> tuple[Gaussian, Gaussian, dict[str, float]]:
        """Q, P, and P's deviation in every layer, rounded to the grid: of both neighbours the one with the lower KL."""
        mean, variance = self.pair()
        far = mean - self.centre.weights
        spread = {layer: 0.0 for layer in self.layers}
        for name in mean:
            spread[_layer(name)] += float((variance[name].double() + far[name].double().square()).sum())
        found = dict(zip(self.layers, self.scale.tolist(), strict=True))
        if self.learnt:
            found = {
                layer: on_grid(found[layer], spread[layer], size)
                for layer, size in zip(self.layers, self.counts, strict=True)
            }
        values = {name: torch.full_like(w, found[_layer(name)]) for name, w in mean.items()}
        q = Gaussian(self.centre.at(mean), variance.map(torch.log))
        p = Gaussian(self.centre, Weights(values))
        return q, p, {layer: math.exp(v / 2) for layer, v in found.items()}


def _layer(name: str) -> str:
    return name.rpartition(".")[0] or name


@public
def places(size: int) -> int:
    """The number of variances on the grid of a layer with `size` weights: more would cost more nats than they save.

    >>> import weightspace as ws
    >>> ws.risk.places(1000)
    207
    >>> ws.risk.places(100_000) > ws.risk.places(1000)
    True
    """
    return 1 + math.ceil((LARGEST - SMALLEST) * math.sqrt(max(size, 8) / 8))


@public
def on_grid(now: float, spread: float, size: int) -> float:
    """log l^2 rounded to the grid of a layer: of the points around `now` and log(spread / size), the one of least KL.

    `spread`: sum over the layer's `size` weights of s^2 + (mu - w_0)^2.

    >>> import weightspace as ws
    >>> round(ws.risk.on_grid(-4.0, spread=10.0, size=1000), 1)            # log(10 / 1000) = -4.6
    -4.6
    """
    step = (LARGEST - SMALLEST) / (places(size) - 1)
    near = [(min(max(v, SMALLEST), LARGEST) - SMALLEST) / step for v in (now, math.log(spread / size))]
    logs = [SMALLEST + step * side for j in near for side in (math.floor(j), math.ceil(j))]
    return min(logs, key=lambda v: spread * math.exp(-v) + size * v)


@public
def descend(
    fit: Fit,
    noisy: Noisy,
    choices: int | None,
    delta: float,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    generator: torch.Generator,
    say: Callable[[int], None],
) -> None:
    """Train a `Fit` by Adam on a * error + b * KL / n, a and b the derivatives of the bound at the running error.

    `choices`: the number of constants of Catoni's bound; None: Maurer's bound. `say` is called with the number of steps
    done.

    >>> import torch, weightspace as ws
    >>> net, task = ws.demo.example()
    >>> fit, noisy = ws.risk.Fit(net, net, 0.1), ws.codes.Noisy(net, task)
    >>> run = dict(delta=0.05, steps=5, batch=60, lr=0.1, seed=0, generator=torch.Generator())
    >>> ws.risk.descend(fit, noisy, None, **run, say=lambda done: None)
    >>> fit.kl().item() > 0                                                # Q has left the prior
    True
    """
    n, rates = len(noisy.task), [lr, lr / 3, lr / 3]
    leaves = [leaf for leaf in (fit.m, fit.r, fit.scale) if leaf.requires_grad]
    groups = [{"params": [leaf], "lr": r} for leaf, r in zip(leaves, rates, strict=False)]
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rates[: len(leaves)], steps + 1, pct_start=0.1, div_factor=10, cycle_momentum=False
    )
    late: float | None = None
    for step, (x, y) in zip(range(steps), stream(noisy.net, noisy.task, batch, seed), strict=False):
        optimiser.zero_grad()
        error, nats = expected_error(noisy, x, y, fit.pair(), generator), fit.kl()
        seen = float(error.detach())
        if not math.isfinite(seen + float(nats.detach())):
            raise WeightspaceError("the loss is NaN or infinite; look for it in the data and the weights, or lower lr=")
        late = seen if late is None else _MEMORY * late + (1 - _MEMORY) * seen
        price = math.log((choices or 2 * math.sqrt(n)) / delta)
        a, b = slopes(late, (float(nats.detach()) + fit.grid() + price) / n)
        (a * error + b / n * nats).backward()
        optimiser.step()
        cycle.step()
        fit.clamp()
        say(step + 1)


@public
def slopes(q: float, c: float) -> tuple[float, float]:
    """The partial derivatives of kl^-1(q, c) in q and in c.

    >>> import weightspace as ws
    >>> dq, dc = ws.risk.slopes(0.1, 0.05)
    >>> round(dc, 2), round((ws.kl_inverse(0.1, 0.0501) - ws.kl_inverse(0.1, 0.05)) / 1e-4, 2)
    (1.43, 1.43)
    """
    q = min(max(q, 1e-6), 1 - 1e-6)
    p = min(max(inequalities.kl_inverse(q, c), q + 1e-9), 1 - 1e-7)
    down = (p - q) / (p * (1 - p))
    return (math.log(p / q) + math.log((1 - q) / (1 - p))) / down, 1 / down


@public
def expected_error(
    noisy: Noisy, x: Any, y: Tensor | None, pair: tuple[Weights, Weights], generator: torch.Generator
) -> Float[Tensor, ""]:
    """The expected error on a batch over w ~ Q, the weights of a linear last layer integrated in closed form.

    All other weights are drawn. Exact for two classes; for more, the wrong outputs are drawn too. Without a linear last
    layer, the cross-entropy in units of its largest value, ln(1/p), with probabilities below p = .0001 taken as p.
    `pair`: the mean and the variance of Q.

    >>> import torch, weightspace as ws
    >>> net, task = ws.demo.example()
    >>> fit, (x, y) = ws.risk.Fit(net, net, 0.1), next(task.batches(net))
    >>> error = ws.risk.expected_error(ws.codes.Noisy(net, task), x, y, fit.pair(), torch.Generator())
    >>> bool(0 < error < 1), error.requires_grad
    (True, True)
    """
    f, mean, variance = noisy.moments(x, *pair, generator)
    assert y is not None
    if mean is None or variance is None:
        smallest = math.log(_FLOOR)
        return (f.log_softmax(-1).gather(1, y[:, None]).clamp_min(smallest) / smallest).mean()
    own, spread = (t.gather(1, y[:, None])[:, 0] for t in (mean, variance))
    if f.shape[1] == 2:
        other, spread = mean.gather(1, 1 - y[:, None])[:, 0], variance.sum(1)
    else:
        other = f.scatter(1, y[:, None], -math.inf).amax(1)
    return (torch.special.erfc((own - other) / (2 * spread + 1e-20).sqrt()) / 2).mean()
