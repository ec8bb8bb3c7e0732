"""The information in the weights of a network about its data, in nats: one definition, three estimators.

    information = KL(Q | P) of the posterior Q that minimises C_beta = E_{w ~ Q} L(w) + beta KL(Q | P)

L is the task's loss summed over the examples, in nats (a mean loss times their number). P = N(w_0, V).

- "local": Q = N(w, S) with the full covariance S that is optimal for the quadratic of the Gauss-Newton matrix G at the
  network: the closed form of `quadratic`, exact for a quadratic loss, and its log-determinant bracketed. Up to 512
  weights exact, beyond that a Nystrom approximation of `rank` (a quarter of the weights, at most 256) and `probes`
  random vectors; `blocks=False` leaves out `Bracket.block`. Warns with `Unconverged` where the gradient of L, and that
  of L + beta/2 (w - w_0)^2 / v too, exceeds .3 of what a network drawn from Q would have: train on, or take
  "variational".
- "variational": Q = N(mu, diag s^2) with mu and s trained on L itself, from the network: the shortest of `repeats` (2)
  runs of `encode`, whose `steps`, `batch`, `lr` and `draws` may be given; `error` is that of their mean.
- "sgld": lambda log n from the local learning coefficient, `dimension` 2 lambda, without prior and beta; `chains`,
  `draws`, `burn`, `step`, `pull` and `batch` are those of `learning_coefficient`.

Sources: The emergence of invariance and disentanglement in deep representations (Achille, Soatto, 2018); Where is the
information in a deep neural network? (Achille, Paolini, Soatto, 2019); and those of the three files.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from weightspace.codes.attribution import Scaled, attributed, products
from weightspace.codes.encoding import encode
from weightspace.codes.langevin import learning_coefficient, loss_and_slope
from weightspace.codes.quadratic import Quadratic, positive
from weightspace.curvature.curvature import curvature_diagonal, gauss_newton
from weightspace.jobs.progress import Tick
from weightspace.net.cost import Cost
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, checked
from weightspace.net.plain import plain
from weightspace.net.public import public
from weightspace.net.seeds import derived
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "Bracket",
    "Information",
    "Unconverged",
    "cost",
    "flatness_bound",
    "information",
]


Method: TypeAlias = Literal["local", "variational", "sgld"]
Prior: TypeAlias = Literal["layer", "one"]
_METHODS = ("local", "variational", "sgld")
_UNSETTLED = 0.3
_HARMONIC, _DRAWS = 2.0, 4


@public
class Unconverged(UserWarning):
    """A warning: the network is not at a minimum, so the local quadratic approximation may be poor."""


@public
@dataclass(frozen=True)
class Bracket:
    """Lower and upper bounds on (C_beta - L) / beta = 1/2 [sum (w - w_0)^2 / v + log det(I + V G / beta)], in nats.

    In rising order `lower`: a low-rank (Nystrom) approximation of G; `value`: all of G, with its standard error
    `error`; `block`: G's diagonal blocks, one for every tensor (None where not asked for); `diagonal`: diag G, the best
    posterior with independent weights.
    """

    lower: float
    value: float
    error: float
    block: float | None
    diagonal: float


@public
@dataclass(frozen=True)
class Information:
    """The information in the weights, `value` = KL(Q | P) in nats, with its standard `error`; `loss` is E_Q L.

    `dimension`: the effective dimension sum_i 1 - S_ii / v_i. `layers`: name -> its part of `value`. `variance`: name
    -> v of the prior. `flatness`: see `flatness_bound`. `slope`: the norm of the gradient of L (for "local", of L plus
    the prior's term where that is smaller) over its norm at a network drawn from Q. `products`: forward and backward
    passes, or products with G, over the whole task. `examples`: the number of terms in L. `harmonic`, for "local": the
    measured rise of the loss for weights drawn from the best posterior with independent weights, over that of the
    quadratic: 1 where it holds, far above where the minimum is narrower than its curvature, as for a saturated softmax.
    """

    method: str
    value: float
    error: float
    loss: float
    beta: float
    dimension: float
    layers: Mapping[str, float]
    variance: Mapping[str, float]
    flatness: float
    slope: float
    examples: int
    products: int
    bracket: Bracket | None = None
    harmonic: float = math.nan
    notes: tuple[str, ...] = field(default=())

    @property
    def length(self) -> float:
        """The description length C_beta = E_Q L + beta KL, in nats."""
        return self.loss + self.beta * self.value

    def data(self) -> dict[str, Any]:
        """All fields as plain data for JSON; NaN and infinity become None."""
        return plain({**asdict(self), "length": self.length})


@public
def cost(
    net: Net,
    task: Task,
    method: str = "local",
    *,
    rank: int | None = None,
    probes: int = 6,
    blocks: bool = True,
    steps: int = 1000,
    batch: int = 512,
    repeats: int = 2,
    chains: int = 4,
    draws: int = 200,
    burn: int = 200,
) -> Cost:
    """What `information` with these arguments takes, known before it runs.

    Each of the `products` is a pass forward and back over all examples or a little more. `bytes`: beside the network's
    graph on the task (`curvature.graph_bytes`).

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> ws.codes.cost(net, task, "local", rank=10).products < ws.codes.cost(net, task, "local", rank=20).products
    True
    """
    net = net.free()
    n, share = net.weights.numel, min(1.0, batch / len(task))
    if method == "variational":
        return _passes(math.ceil(repeats * 2 * steps * share), 2 * 4 * n * 8)
    if method == "sgld":
        return _passes(math.ceil(chains * (burn + draws) * share), 4 * n * 8)
    _known_method(method)
    sizes = [w.numel() for w in net.weights.values()]
    many, room = products(sizes, rank=rank, probes=probes, blocks=blocks)
    return _passes(many + _DRAWS, room)


def _passes(n: int, room: int) -> Cost:
    return Cost(products=n, passes=n, bytes=room)


@public
def information(
    net: Net,
    task: Task,
    method: Method = "local",
    *,
    beta: float = 1.0,
    prior: Prior | float = "layer",
    anchor: Net | None = None,
    rank: int | None = None,
    probes: int = 6,
    blocks: bool = True,
    seed: int = 0,
    progress: Tick | None = None,
    **options: Any,
) -> Information:
    """The information in the weights of a network about a task, in nats, by one of three methods (see the module).

    `prior`: the variance of P, or the optimal one for every tensor ("layer") or for all weights ("one", local only),
    whose own description length is not counted; for "local" it is that of a Q with independent weights, and a number
    that fits their covariance gives fewer nats where there are more weights than examples. `anchor`: a network at w_0
    (zero by default). `options` are those of the method. Frozen weights are not counted. `progress(done, total)` counts
    products or steps (see `cost`). Raises `WeightspaceError` for arguments that do not go together; the errors of
    `curvature` and `Task` for losses, labels and outputs that cannot be used. Warns with `Unconverged` away from a
    minimum.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.information(net, task, "variational", steps=5, repeats=1)
    >>> found.value >= 0, found.length == found.loss + found.value
    (True, True)
    """
    positive("beta", beta)
    if not isinstance(prior, str):
        positive("prior", prior)
    if len(checked(net).weights.buffers) > 1:
        raise WeightspaceError("weights of several dtypes or devices; convert them with net.to(torch.float32)")
    if net.frozen:
        net = net.free()
        anchor = None if anchor is None else checked(anchor).within(net.weights)
    loss, slope, count = loss_and_slope(net, task)
    if not math.isfinite(loss) or not bool(slope.isfinite().all()):
        raise WeightspaceError("the loss or its gradient is NaN or infinite; look for NaN in the data and the weights")
    known = _Known(net, task, beta, anchor, loss, slope.double().cpu(), count)
    if method == "local":
        if options:
            raise WeightspaceError(f"the local method has no {', '.join(options)}; it has rank, probes and blocks")
        return _local(known, prior, rank, probes, blocks, seed, progress)
    if method == "variational":
        return _variational(known, prior, seed, progress, **options)
    if prior != "layer" or anchor is not None or beta != 1:
        raise WeightspaceError("the sgld method has no prior, anchor or beta; leave them out")
    return _sgld(known, seed, progress, **options)


@public
def flatness_bound(net: Net, task: Task, beta: float = 1.0) -> float:
    """The flatness bound K/2 [log |w|^2 + log tr G - log(K^2 beta)] on the information in K weights, in nats.

    An upper bound for multiplicative noise w_i (1 + e_i), e_i of variance a_i, and a prior uniform in log |w|: L rises
    by 1/2 sum a_i w_i^2 G_ii and the information is -1/2 sum log a_i plus a constant of the (improper) prior. The
    optimum a_i = beta / (w_i^2 G_ii) gives 1/2 sum log(w_i^2 G_ii / beta), and concavity of the logarithm this bound.
    The constant is left out, so the number may be negative: compare networks of one architecture. The paper's
    expansion has no 1/2, hence its beta/2, and a second K before the last logarithm, with which the bound would change
    with the unit of the weights. Source: The emergence of invariance and disentanglement in deep representations
    (Achille, Soatto, 2018), proposition 4.3.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> ws.flatness_bound(net, task, beta=10.0) < ws.flatness_bound(net, task)
    True
    """
    net = checked(net).free()
    diagonal = curvature_diagonal(net, task).flat().double().clamp(min=0)
    return _flatness(net, float(diagonal.sum()), positive("beta", beta))


def _flatness(net: Net, trace: float, beta: float) -> float:
    n, square = net.weights.numel, float(net.weights.norm()) ** 2
    if not trace or not square:
        return -math.inf
    return n / 2 * (math.log(square) + math.log(trace) - math.log(n**2 * beta))


def _known_method(method: str) -> None:
    if method not in _METHODS:
        raise WeightspaceError(f"unknown method {method!r}; give one of {', '.join(_METHODS)}")


@dataclass(frozen=True)
class _Known:
    """The inputs that all methods share: network, task, beta, anchor, and the loss and its gradient at the network."""

    net: Net
    task: Task
    beta: float
    anchor: Net | None
    loss: float
    slope: Tensor
    count: int

    @property
    def offset(self) -> Float[Tensor, " n"]:
        """The offset w - w_0 from the prior's mean."""
        w = self.net.weights.flat().double().cpu()
        if self.anchor is None:
            return w
        self.net.weights.check(checked(self.anchor).weights)
        return w - self.anchor.weights.flat().double().cpu()

    def diagonal(self) -> Float[Tensor, " n"]:
        """The diagonal of the Gauss-Newton matrix G."""
        return curvature_diagonal(self.net, self.task).flat().double().cpu().clamp(min=0)

    @property
    def sizes(self) -> list[int]:
        return [w.numel() for w in self.net.weights.values()]

    def named(self, values: Float[Tensor, " n"], how: Callable[[Tensor], Tensor] = torch.sum) -> dict[str, float]:
        """Name -> `how` of the values of that tensor, by default their sum."""
        flat = self.net.weights.shaped(values.to(self.net.weights.flat()))
        return {name: float(how(part.double())) for name, part in flat.items()}


# ------------------------------------------------------------------ local


def _local(
    known: _Known,
    prior: str | float,
    rank: int | None,
    probes: int,
    blocks: bool,
    seed: int,
    progress: Tick | None,
) -> Information:
    net, beta = known.net, known.beta
    total = cost(net, known.task, rank=rank, probes=probes, blocks=blocks).products
    alone = Quadratic(known.loss, known.diagonal(), known.offset)
    v = _variance(alone, prior, known)
    felt = torch.cat([part.sum().gt(0).expand(len(part)) for part in alone.hessian.split(known.sizes)])
    root = v.sqrt() * felt
    scaled = Scaled(gauss_newton(net, known.task), root, progress, total)
    found = attributed(scaled, beta, known.sizes, rank=rank, probes=probes, blocks=blocks, seed=seed)
    if progress is not None:
        progress(total, total)
    far = alone.offset.square() / v
    half = float(far.sum()) / 2
    diagonal = half + alone.logdet(v, beta) / 2
    values = [None if part is None else half + part / 2 for part in (found.lower, found.block)]
    bracket = Bracket(values[0] or half, half + found.logdet / 2, found.errors[0] / 2, values[1], diagonal)
    parts = zip(known.named(far).items(), found.logs, found.known, strict=True)
    layers = {name: (pull + log - d) / 2 for (name, pull), log, d in parts}
    dimension = sum(found.known)
    trace = float(alone.hessian.sum())
    harmonic = _harmonic(known, alone, alone.covariance(v, beta) * felt, seed)
    ratio = min(_ratio(known, known.slope, trace), _ratio(known, known.slope + beta * alone.offset / v, trace))
    notes = _remarks(known, ratio, harmonic, felt)
    if ratio > _UNSETTLED:
        warnings.warn(notes[0], Unconverged, stacklevel=3)
    return Information(
        "local", sum(layers.values()), math.hypot(*found.errors) / 2, known.loss + beta / 2 * dimension, beta,
        dimension, layers, known.named(v, torch.mean), _flatness(net, trace, beta), ratio, known.count,
        scaled.products + _DRAWS, bracket, harmonic, tuple(notes),
    )  # fmt: skip


def _variance(alone: Quadratic, prior: str | float, known: _Known) -> Float[Tensor, " n"]:
    if isinstance(prior, str):
        return alone.best_variance(known.beta, known.sizes if prior == "layer" else None)
    return torch.full_like(alone.offset, prior)


def _ratio(known: _Known, slope: Tensor, trace: float) -> float:
    """|slope| over the gradient's norm at a network drawn from Q, whose square is tr G S G <= beta tr G."""
    size = float(slope.double().norm())
    return size / math.sqrt(known.beta * trace) if trace else math.inf if size else 0.0


@torch.no_grad()
def _harmonic(known: _Known, alone: Quadratic, variance: Float[Tensor, " n"], seed: int) -> float:
    """The measured rise of the loss for weight noise of this variance, over 1/2 sum_i G_ii s_i^2."""
    expected = float(alone.hessian @ variance) / 2
    if not expected:
        return math.nan
    net, generator, lost = known.net, torch.Generator().manual_seed(seed), 0.0
    flat = net.weights.flat()
    for _ in range(_DRAWS):
        noise = torch.randn(len(variance), generator=generator, dtype=torch.float64) * variance.sqrt()
        other = net.at(net.weights.shaped(flat + noise.to(flat)))
        parts = [known.task.summed(known.task.forward(other, x), y)[0] for x, y in known.task.batches(other)]
        lost += sum(float(part) for part in parts) - known.loss
    return lost / _DRAWS / expected


def _remarks(known: _Known, ratio: float, harmonic: float, felt: Tensor) -> list[str]:
    said = []
    if ratio > _UNSETTLED:
        said.append(
            f"the network is not at a minimum: its gradient, of norm {float(known.slope.norm()):.3g} nats, is "
            f'{ratio:.2g} of that at a network drawn from the posterior; train on, or take method="variational"'
        )
    if harmonic > _HARMONIC:
        said.append(
            f"the loss rises {harmonic:.2g} times as much as the quadratic predicts: the minimum is narrower than its "
            'curvature, and the information is more; method="variational" needs no quadratic'
        )
    unfelt = [name for name, mean in known.named(felt.double(), torch.mean).items() if not mean]
    if unfelt:
        names = f"{', '.join(unfelt[:3])}{' and more' * (len(unfelt) > 3)}"
        said.append(f"the outputs do not depend on {names}: no information there")
    return said


# ------------------------------------------------------------------ variational and sgld


def _variational(
    known: _Known,
    prior: str | float,
    seed: int,
    progress: Tick | None,
    repeats: int = 2,
    steps: int = 1000,
    batch: int = 512,
    **options: Any,
) -> Information:
    if prior == "one":
        raise WeightspaceError('the variational method has one variance a tensor: give prior="layer", or a number')
    if repeats < 1:
        raise WeightspaceError(f"repeats is {repeats}; give 1 or more")
    found = []
    for k in range(repeats):
        told = None if progress is None else _after(progress, k * steps, repeats * steps)
        width = None if isinstance(prior, str) else prior
        found.append(
            encode(known.net, known.task, known.beta, anchor=known.anchor, variance=width, steps=steps, batch=batch,
                   seed=derived(seed, "code", k), progress=told, **options)
        )  # fmt: skip
    code = min(found, key=lambda one: one.length)
    values = torch.tensor([one.kl for one in found], dtype=torch.float64)
    error = float(values.std()) / math.sqrt(repeats) if repeats > 1 else math.nan
    v = code.prior.log_variance.flat().double().exp()
    left = code.posterior.log_variance.flat().double().exp() / v
    trace = float(known.diagonal().sum())
    products = math.ceil(repeats * 2 * steps * min(1.0, batch / len(known.task)))
    notes = ["no posterior was shorter than the trivial one, Q = P"] if code.trivial else []
    return Information(
        "variational", code.kl, error, code.loss, known.beta, float((1 - left).sum()), dict(code.layers),
        known.named(v, torch.mean), _flatness(known.net, trace, known.beta), _ratio(known, known.slope, trace),
        known.count, products, notes=tuple(notes),
    )  # fmt: skip


def _after(progress: Tick, before: int, total: int) -> Tick:
    return lambda done, _: progress(before + done, total)


def _sgld(known: _Known, seed: int, progress: Tick | None, pull: float = 100.0, **options: Any) -> Information:
    n, flat = known.count, known.net.weights.flat()
    diagonal = known.diagonal()
    metric = known.net.weights.shaped((diagonal / math.log(max(n, 3)) + pull).to(flat))
    found = learning_coefficient(
        known.net, known.task, pull=pull, metric=metric, seed=seed, progress=progress, **options
    )  # fmt: skip
    trace = float(diagonal.sum())
    notes = ["value = lambda log n: without a prior, at the temperature of n examples"]
    if found.value < 0:
        notes.append("the chains found lower losses than that of the network: it is not at a minimum")
    size = options.get("batch", 512)
    return Information(
        "sgld", found.nats, found.error * math.log(n), known.loss, 1.0, 2 * found.value, {}, {},
        _flatness(known.net, trace, 1.0), _ratio(known, known.slope, trace), n,
        math.ceil(found.steps * min(1.0, size / len(known.task))), notes=tuple(notes),
    )  # fmt: skip
