"""The local learning coefficient (LLC) of a network, estimated by stochastic gradient Langevin dynamics (SGLD).

Weights are drawn from exp(-n b L(w) - g/2 |w - w_0|^2) around w_0, L the mean loss of n examples, b = 1 / log n, by
SGLD with a constant diagonal preconditioner M,

    w' = w - e/2 M^-1 (n b grad L(w) + g (w - w_0)) + sqrt(e) M^-1/2 xi,   xi ~ N(0, I)

and lambda = n b (E L(w) - L(w_0)). For a regular model of P weights at its minimum lambda = P / 2; for a degenerate
minimum (a surface of minima, a singularity) it is less. The free energy of the posterior is n L(w_0) + lambda log n, so
lambda log n is the information in the weights about the examples, in nats.
Sources: A widely applicable Bayesian information criterion (Watanabe, 2013); The local learning coefficient (Lau,
Furman, Wang, Murfet, Wei, 2023); Bayesian learning via stochastic gradient Langevin dynamics (Welling, Teh, 2011).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from weightspace.jobs.progress import Tick
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.net.state import math_attention
from weightspace.net.weights import Weights
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["LearningCoefficient", "learning_coefficient", "loss_and_slope"]


_STABLE = 0.2  # step e times the largest preconditioned curvature
_POWERS = 24


@public
@dataclass(frozen=True)
class LearningCoefficient:
    """The local learning coefficient lambda = `value` with its standard `error` over the chains.

    `chains`: the estimate of every chain; `loss` = n L(w_0), `step` = e, `examples` = n; `steps`: gradients of all
    chains together. A negative value means that the chains found lower losses than at w_0.
    """

    value: float
    error: float
    chains: tuple[float, ...]
    loss: float
    step: float
    examples: int
    steps: int

    @property
    def nats(self) -> float:
        """The information lambda log n, in nats."""
        return self.value * math.log(self.examples)

    def data(self) -> dict[str, Any]:
        """All fields as plain data for JSON."""
        return {**asdict(self), "nats": self.nats}


@public
def learning_coefficient(
    net: Net,
    task: Task,
    *,
    chains: int = 4,
    draws: int = 200,
    burn: int = 200,
    step: float | None = None,
    pull: float = 100.0,
    metric: Weights | None = None,
    batch: int = 512,
    seed: int = 0,
    progress: Tick | None = None,
) -> LearningCoefficient:
    """The local learning coefficient lambda of a network at its weights w_0, by SGLD chains of `burn` + `draws` steps.

    `pull` is g: chains stay within about 1 / sqrt(g) of every weight, and directions whose curvature times n b is below
    g do not count. `metric`: the preconditioner M, one by default; n b diag H + g equalises stiff and soft directions.
    `step` is e; by default 0.2 over the largest preconditioned curvature, found by 24 Hessian-vector products: the
    stiffest direction is then 5 % too wide, the others less. Evaluation mode. Cost: chains (burn + draws) forward and
    backward passes of `batch` examples, all chains at once where vmap works. Frozen weights are fixed and not counted.
    Raises `WeightspaceError` for numbers that are not positive, fewer than 3 examples or 2 chains, losses without a
    gradient, and chains that diverge.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.learning_coefficient(net, task, chains=2, draws=20, burn=0)
    >>> len(found.chains), found.steps, found.examples
    (2, 40, 60)
    """
    _check(chains, draws, burn, step, pull)
    if bad := checked(net).weights.unusable():
        raise WeightspaceError(f"NaN or infinity in {bad[0]}; give a network of finite weights")
    if net.frozen:
        free = net.free()
        metric, net = (None if metric is None else Weights({m: metric[m] for m in free.weights})), free
    loss, _, n = loss_and_slope(net, task)
    if not math.isfinite(loss):
        raise WeightspaceError("the loss is NaN or infinite; look for it in the data and the weights")
    if n < 3:
        raise WeightspaceError(f"{n} examples; the temperature 1 / log n needs 3 or more")
    chosen = _Chains(net, task, n, pull, metric, batch, chains)
    size = chosen.stable() if step is None else step
    risen = chosen.run(burn + draws, size, seed, progress)[burn:].mean(0) * n / math.log(n)
    error = float(risen.std()) / math.sqrt(chains)
    return LearningCoefficient(
        float(risen.mean()), error, tuple(risen.tolist()), loss, size, n, chains * (burn + draws)
    )


def _check(chains: int, draws: int, burn: int, step: float | None, pull: float) -> None:
    for name, value, least in (("chains", chains, 2), ("draws", draws, 2), ("burn", burn, 0)):
        if value < least:
            raise WeightspaceError(f"{name} is {value}; give {least} or more")
    for name, given in (("step", step), ("pull", pull)):
        if given is not None and not 0 < given < math.inf:
            raise WeightspaceError(f"{name} must be a positive number, got {given}")


@public
def loss_and_slope(
    net: Net, task: Task, at: Tensor | None = None, batches: Iterable[tuple[Any, Tensor | None]] | None = None
) -> tuple[float, Float[Tensor, " n"], int]:
    """The loss summed over the examples, its gradient in the flat weights (of the net, or `at`), and their number.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> loss, gradient, n = ws.codes.loss_and_slope(net, task)
    >>> gradient.shape, n, abs(loss / n - float(task(net))) < 1e-4
    (torch.Size([1210]), 60, True)
    """
    leaf = (net.weights.flat() if at is None else at).detach().requires_grad_()
    there, total, slope, count = net.at(net.weights.shaped(leaf)), 0.0, torch.zeros_like(leaf), 0
    for x, y in task.batches(net) if batches is None else batches:
        with torch.enable_grad():
            loss, some = task.summed(task.forward(there, x), y)
            if not loss.requires_grad:
                raise WeightspaceError(f"{task} has no gradient in the weights; give a differentiable loss")
            slope += torch.autograd.grad(loss, leaf)[0]
        total, count = total + float(loss.detach()), count + some
    return total, slope, count


class _Chains:
    """SGLD chains that sample exp(-n b L(w) - g/2 |w - w_0|^2), all of them at once."""

    def __init__(
        self, net: Net, task: Task, n: int, pull: float, metric: Weights | None, batch: int, chains: int
    ) -> None:
        self.net, self.task, self.n, self.batch, self.pull, self.chains = net, task, n, batch, pull, chains
        self.start = net.weights.flat().detach()
        if metric is not None:
            net.weights.check(metric)
        self.metric = torch.ones_like(self.start) if metric is None else metric.flat().to(self.start)
        if not bool((self.metric > 0).all() and self.metric.isfinite().all()):
            raise WeightspaceError("the metric (preconditioner) must be positive and finite")
        self.whole = [*task.batches(net)] if batch >= len(task) else None
        self.together = True

    def stream(self, seed: int) -> Iterator[list[tuple[Any, Tensor | None]]]:
        for step in count():
            yield self.whole or [*self.task.minibatch(self.batch, step, seed).batches(self.net)]

    def slopes(
        self, rows: Float[Tensor, "k n"], batches: list[tuple[Any, Tensor | None]]
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, "k n"]]:
        """The mean loss of every row of weights, and its gradient: in one pass where vmap works."""
        if self.together:
            try:
                return self._mapped(rows, batches)
            except (RuntimeError, NotImplementedError, WeightspaceError):
                self.together = False
        found = [loss_and_slope(self.net, self.task, row, batches) for row in rows]
        losses = torch.tensor([loss / n for loss, _, n in found], dtype=torch.float64)
        return losses, torch.stack([slope / n for _, slope, n in found])

    def _mapped(self, rows: Tensor, batches: list[tuple[Any, Tensor | None]]) -> tuple[Tensor, Tensor]:
        total, slope, n = torch.zeros(len(rows), dtype=torch.float64), torch.zeros_like(rows), 0
        for x, y in batches:
            counted = 0

            def loss(flat: Tensor, x: Any = x, y: Tensor | None = y) -> Tensor:
                nonlocal counted
                value, counted = self.task.summed(self.task.forward(self.net.at(self.net.weights.shaped(flat)), x), y)
                return value

            with math_attention():
                slopes, losses = vmap(grad_and_value(loss))(rows)
            total, slope, n = total + losses.double().cpu(), slope + slopes, n + counted
        return total / n, slope / n

    def run(self, steps: int, size: float, seed: int, progress: Tick | None) -> Float[Tensor, "steps chains"]:
        """The mean loss of every chain at every step, minus that of w_0 on the same examples."""
        w, heat, risen = self.start.repeat(self.chains, 1), self.n / math.log(self.n), []
        root = (size / self.metric).sqrt()
        generator = torch.Generator().manual_seed(seed)
        for k, batches in zip(range(steps), self.stream(seed), strict=False):
            losses, slopes = self.slopes(torch.cat([self.start[None], w]), batches)
            risen.append(losses[1:] - losses[0])
            if not bool(losses.isfinite().all()):
                raise WeightspaceError(f"a chain diverged after {k} steps of size {size:.1e}; give a smaller step=")
            noise = torch.randn(w.shape, generator=generator, dtype=w.dtype).to(w.device)
            w = w - size / 2 * (heat * slopes[1:] + self.pull * (w - self.start)) / self.metric + root * noise
            if progress is not None:
                progress((k + 1) * self.chains, steps * self.chains)
        return torch.stack(risen)

    def stable(self) -> float:
        """The default step: 0.2 over the largest curvature, by power iteration on differences of gradients."""
        batches = next(self.stream(0))
        draw = torch.Generator().manual_seed(0)
        root = self.metric.sqrt()
        v = torch.randn(self.start.shape, generator=draw, dtype=self.start.dtype).to(self.start.device)
        top, heat = 0.0, self.n / math.log(self.n)
        far = torch.finfo(self.start.dtype).eps ** (1 / 3) * max(1.0, float(self.start.norm()))
        for _ in range(_POWERS):
            v = v / v.norm()
            move = far * v / root
            ahead, behind = self.slopes(torch.stack([self.start + move, self.start - move]), batches)[1]
            v = heat * (ahead - behind) / (2 * far) / root + self.pull * v / self.metric
            top = max(top, float(v.norm()))
        return _STABLE / top
