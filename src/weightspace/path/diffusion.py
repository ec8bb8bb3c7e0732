"""The Onsager-Machlup action of a path under Langevin training, dw = -grad L dt + sqrt(2 D) dB, at temperature D.

The transition density from w_0 to w_f in time T is e^{-(L_f - L_0)/2D} times the integral, over all paths between them,
of exp(-(1/2D) int 1/2 |w'|^2 + V dt), V = 1/2 |grad L|^2 - D lap L: a static part, which depends on the two ends only,
and a dynamic part. L is the loss as given (a Task's mean, in nats, unless its aggregate is "sum"); D has its units.
SGD has no single D, because its noise is anisotropic (it follows the Fisher information): one number is a model of it.
Sources: Fluctuations and irreversible processes (Onsager, Machlup, 1953); The dynamics of differential learning I:
information-dynamics and task reachability (Achille, Mbeng, Soatto, 2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weightspace.curvature.curvature import hessian
from weightspace.curvature.fisher import gradient_noise
from weightspace.jobs.progress import Tick
from weightspace.linear.estimate import Estimate
from weightspace.linear.operator import Operator
from weightspace.net.cost import Cost
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.net.seeds import derived
from weightspace.net.state import math_attention
from weightspace.path.path import Path
from weightspace.task.goal import value_and_gradient
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "Action",
    "action",
    "action_cost",
    "laplacian",
    "path_integral",
    "sgd_temperature",
    "spectral_gap",
]


Goal = Callable[[Net], Tensor]


# ------------------------------------------------------------------ the action of a path


@public
@dataclass(frozen=True)
class Action:
    """The action of a path, -log of its probability density, in nats and part by part; what `action` returns.

    It is known up to a constant that depends on the times and the dimension only. `static`: (L_f - L_0) / 2D.
    `kinetic`, `force`, `entropic`: (1/2D) int of 1/2 |w'|^2, 1/2 |grad L|^2, -D lap L; `error` is the standard error
    of the last. `times`, `losses`, `slopes` (|grad L|^2), `laplacians`: one value for every marked point. Do not
    exponentiate it: for a network every part is thousands of nats. The kinetic part of a noisy path grows with the
    number of points, so compare paths with the same number.
    """

    static: float
    kinetic: float
    force: float
    entropic: float
    error: float
    temperature: float
    times: list[float]
    losses: list[float]
    slopes: list[float]
    laplacians: list[float]

    @property
    def dynamic(self) -> float:
        """(1/2D) int 1/2 |w'|^2 + V dt."""
        return self.kinetic + self.force + self.entropic

    @property
    def total(self) -> float:
        """The sum of the static and the dynamic part."""
        return self.static + self.dynamic

    def data(self) -> dict[str, Any]:
        """All fields as plain data for JSON."""
        return {**asdict(self), "dynamic": self.dynamic, "total": self.total}


@public(renamed={"samples": "probes"})
def action_cost(path: Path | Sequence[Net], probes: int = 8) -> Cost:
    """The cost of `action` on this path: two passes for every point, and one for every probe of the Hessian's trace.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> ws.path.action_cost(ws.line(net, ws.demo.example(1)[0]), probes=8).passes
    20
    """
    net = path[0]
    return Cost(passes=len(path) * (2 + probes), bytes=(3 + probes) * 8 * net.weights.numel)


@public(renamed={"samples": "probes"})
def action(
    path: Path | Sequence[Net],
    task: Goal,
    temperature: float,
    times: float | Sequence[float],
    *,
    probes: int = 8,
    seed: int = 0,
    progress: Tick | None = None,
) -> Action:
    """The action of a path through its marked points at `temperature` D, static and dynamic part.

    `times`: the time of every point, in units of learning rate times steps; one number is the whole duration. The speed
    is that of the straight segments; the potential is integrated by the trapezoidal rule; lap L = tr H is estimated at
    every point with `probes` Hessian-vector products (Hutchinson; exact for no more weights than probes). About 30
    points are enough for the potential of a training run. Raises `WeightspaceError` for a temperature that is not
    positive, times that do not rise, and losses or gradients that are not finite.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.action(ws.line(net, ws.demo.example(1)[0]), task, temperature=0.01, times=10.0)
    >>> found.kinetic > 0, found.force > 0, len(found.losses)
    (True, True, 2)
    """
    heat, marks = positive("temperature", temperature), _marks(path, times)
    gaps = [t - s for s, t in pairwise(marks)]
    losses, slopes, traces, speed = [], [], [], 0.0
    before: Net | None = None
    for k, net in enumerate(path):
        if before is not None:
            speed += float((checked(net) - before).norm()) ** 2 / gaps[k - 1]
        value, slope = value_and_gradient(task, net)
        losses.append(_finite("loss", value, k))
        slopes.append(_finite("squared gradient", float(slope.dot(slope)), k))
        traces.append(laplacian(net, task, probes, derived(seed, "mark", k)))
        before = net
        if progress is not None:
            progress(k + 1, len(marks))
    shares = [(left + right) / 2 for left, right in zip([0.0, *gaps], [*gaps, 0.0], strict=True)]
    bend = [trace.value for trace in traces]
    error = math.sqrt(sum((share * trace.error) ** 2 for share, trace in zip(shares, traces, strict=True))) / 2
    return Action(
        static=(losses[-1] - losses[0]) / (2 * heat), kinetic=speed / (4 * heat),
        force=_weighed(shares, slopes) / (4 * heat), entropic=-_weighed(shares, bend) / 2, error=error,
        temperature=heat, times=marks, losses=losses, slopes=slopes, laplacians=bend,
    )  # fmt: skip


@public(renamed={"samples": "probes"})
def laplacian(net: Net, goal: Goal, probes: int = 8, seed: int = 0) -> Estimate:
    """lap L = tr H, H the Hessian of the goal: the mean of z . H z over random signs z, with its standard error.

    Exact where there are no more weights than probes.

    >>> import torch, weightspace as ws
    >>> net = ws.Net.of(torch.nn.Linear(2, 1, bias=False))
    >>> ws.path.laplacian(net, lambda net: (net.weights.flat() ** 2).sum()).value       # H = 2 I
    4.0
    """
    size = net.weights.numel
    if probes < 1 or not size:
        raise WeightspaceError(f"a trace needs a probe and a weight or more, got {probes} and {size}")
    exact, generator = size <= probes, torch.Generator().manual_seed(seed)
    signs = torch.eye(size) if exact else torch.randint(0, 2, (size, probes), generator=generator) * 2.0 - 1.0
    operator, share = _hessian(net, goal)
    z = signs.to(net.weights.flat())
    draws = (z.double() * (operator @ z).double()).sum(0) * share
    if exact:
        return Estimate(float(draws.sum()), 0.0, size)
    error = float(draws.std()) / math.sqrt(probes) if probes > 1 else math.inf
    return Estimate(float(draws.mean()), error, probes)


def _hessian(net: Net, goal: Goal) -> tuple[Operator, float]:
    """The Hessian up to a factor, and the factor: for a mean over examples `hessian` gives the sum."""
    if isinstance(goal, Task) and goal.aggregate in ("mean", "sum"):
        mean = goal.aggregate == "mean"
        count = sum(goal.slopes(goal.forward(net, x), y)[1] for x, y in goal.batches(net)) if mean else 1
        return hessian(net, goal), 1 / count
    leaf = net.weights.map(lambda w: w.detach().clone().requires_grad_())
    with math_attention(), torch.enable_grad():
        slopes = torch.autograd.grad(goal(net.at(leaf)), leaf.buffers, create_graph=True, materialize_grads=True)
        slope = torch.cat([s.flatten() for s in slopes])

    def action(vector: Tensor) -> Tensor:
        if not slope.requires_grad:  # linear in the weights
            return torch.zeros_like(vector)
        bent = torch.autograd.grad(slope @ vector, leaf.buffers, retain_graph=True, materialize_grads=True)
        return torch.cat([b.flatten() for b in bent])

    return Operator(len(slope), len(slope), action), 1.0


@public(renamed={"rate": "lr"})
def sgd_temperature(net: Net, task: Task, lr: float, batch: int) -> float:
    """D = lr tr(Sigma) / (2 batch P): the temperature of isotropic noise with the same total power as that of SGD.

    Sigma is the covariance of one example's gradient at this network (`gradient_noise`), P the number of weights. A
    model: the noise of SGD lies in few directions and changes during training; this is its average over directions at
    one network. Raises `WeightspaceError` for a learning rate or batch size that is not positive.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> 0 < ws.sgd_temperature(net, task, lr=0.1, batch=8) < 0.1
    True
    """
    if batch < 1:
        raise WeightspaceError(f"a batch of {batch} examples; give 1 or more")
    noise = gradient_noise(task, by_layer=True)(net).trace
    return positive("lr", lr) * noise / (2 * batch * net.weights.numel)


def positive(name: str, value: float) -> float:
    """The value as a float. Raises `WeightspaceError` unless it is positive and finite."""
    if not 0 < value < math.inf:
        raise WeightspaceError(f"{name} must be positive and finite, got {value}")
    return float(value)


def _marks(path: Path | Sequence[Net], times: float | Sequence[float]) -> list[float]:
    n = len(path)
    if n < 2:
        raise WeightspaceError(f"a path has at least two networks, got {n}")
    if isinstance(times, (int, float)):
        duration = positive("the duration", times)
        unit = path.times if isinstance(path, Path) else [k / (n - 1) for k in range(n)]
        return [duration * t for t in unit]
    marks = [float(t) for t in times]
    if len(marks) != n:
        raise WeightspaceError(f"{n} networks but {len(marks)} times; give one time to each network")
    if not all(s < t < math.inf for s, t in pairwise(marks)):
        raise WeightspaceError("times must rise; give learning rate times step for every network")
    return marks


def _finite(name: str, value: float, k: int) -> float:
    if not math.isfinite(value):
        raise WeightspaceError(f"the {name} is {value} at point {k} of the path; leave out the points that diverged")
    return value


def _weighed(shares: list[float], values: list[float]) -> float:
    return sum(share * value for share, value in zip(shares, values, strict=True))


# ------------------------------------------------------------------ one dimension: transfer matrices


@public
def path_integral(
    potential: Callable[[Tensor], Tensor],
    start: float,
    temperature: float,
    duration: float,
    grid: Float[Tensor, " n"],
    steps: int = 1000,
) -> Float[Tensor, " n"]:
    """The transition density p(x, T | start) in one dimension: the path integral, by `steps` transfer matrices.

    K = exp(-(x - y)^2 / 4 D dt - (V(x) + V(y)) dt / 4 D) / sqrt(4 pi D dt), times the static factor at the end; the
    `grid` is even. Accurate while the grid's spacing is below sqrt(2 D dt) and the density does not reach its ends:
    check that it integrates to 1. Raises `WeightspaceError` for an uneven grid or a potential that is not finite.

    >>> import torch, weightspace as ws
    >>> grid = torch.linspace(-6, 6, 241)
    >>> density = ws.path.path_integral(lambda x: x**2 / 2, start=1.0, temperature=0.5, duration=20.0, grid=grid)
    >>> round(float(density.sum() * 0.05), 3), round(float(density.max()), 2)       # the normal density of variance D
    (1.0, 0.56)
    """
    x, spacing = _even(grid)
    heat, step = positive("temperature", temperature), positive("duration", duration) / steps
    matrix = _transfer(potential, x, spacing, heat, step)
    level, _, _ = _jet(potential, torch.cat([x, x.new_tensor([start])]))
    lifted = torch.zeros_like(x)
    lifted[int((x - start).abs().argmin())] = 1 / spacing
    density = torch.linalg.matrix_power(matrix, steps) @ lifted
    return density * torch.exp(-(level[:-1] - level[-1]) / (2 * heat))


@public
def spectral_gap(
    potential: Callable[[Tensor], Tensor], temperature: float, grid: Float[Tensor, " n"], step: float = 1e-3
) -> float:
    """The relaxation rate in one dimension: the spectral gap, at which the slowest perturbation of equilibrium decays.

    From the two largest eigenvalues of the transfer matrix of a time `step` on an even `grid`.

    >>> import torch, weightspace as ws
    >>> round(ws.path.spectral_gap(lambda x: x**2 / 2, temperature=0.5, grid=torch.linspace(-5, 5, 501)), 2)
    1.0
    """
    x, spacing = _even(grid)
    values = torch.linalg.eigvalsh(_transfer(potential, x, spacing, positive("temperature", temperature), step))
    return float((values[-1] / values[-2]).log()) / step


def _even(grid: Tensor) -> tuple[Tensor, float]:
    n = len(grid)
    x = torch.linspace(float(grid[0]), float(grid[-1]), n, dtype=torch.float64) if n > 2 else grid.double()
    spacing = float(x[-1] - x[0]) / max(1, n - 1)
    if n < 3 or spacing <= 0 or float((grid - x).abs().max()) > 1e-3 * spacing:
        raise WeightspaceError("the grid must rise in equal steps; give torch.linspace(low, high, n) with n >= 3")
    return x, spacing


def _jet(potential: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L, L' and L''."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        level = potential(leaf)
        (slope,) = torch.autograd.grad(level.sum(), leaf, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), leaf, materialize_grads=True)
    if not bool((level + slope + bend).isfinite().all()):
        raise WeightspaceError("the potential or a derivative of it is not finite on the grid; choose another grid")
    return level.detach(), slope.detach(), bend.detach()


def _transfer(
    potential: Callable[[Tensor], Tensor], x: Tensor, spacing: float, heat: float, step: float
) -> Float[Tensor, "n n"]:
    _, slope, bend = _jet(potential, x)
    height = slope.square() / 2 - heat * bend
    apart = (x[:, None] - x).square() / (4 * heat * step) + (height[:, None] + height) * step / (4 * heat)
    return torch.exp(-apart) * spacing / math.sqrt(4 * math.pi * heat * step)
