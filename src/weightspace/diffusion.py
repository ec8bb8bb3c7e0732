"""Training as diffusion, dw = -grad L dt + sqrt(2 D) dB: what a path costs, and how long a barrier holds.

The density of going from w_0 to w_f in time T is e^{-(L_f - L_0)/2D} times the integral, over all paths between them, of
exp(-(1/2D) int 1/2 |w'|^2 + V dt), V = 1/2 |grad L|^2 - D lap L: a static part, which knows the ends alone, and a
dynamic one. L is the goal as it is given (a Task's mean, in nats, unless it says "sum"), and D has its units.
Stochastic gradient descent has no single D, for its noise has the directions of the Fisher information: a number is a
model of it. Sources: Critical learning periods and the dynamics of task transfer (Achille, Mbeng, Soatto, 2018); On the
fluctuations and irreversible processes (Onsager, Machlup, 1953); Simplified and improved string method (E, Ren,
Vanden-Eijnden, 2007); A climbing image nudged elastic band method (Henkelman, Uberuaga, Jonsson, 2000).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weightspace.fisher import gradient_noise
from weightspace.net import Net, WeightspaceError, checked, math_attention
from weightspace.operator import Estimate, Operator, lanczos
from weightspace.path import Path
from weightspace.task import Task, value_and_gradient

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "Action", "ActionCost", "Crossing", "DiffusionError", "Rate", "action", "action_cost", "kramers_rate", "laplacian",
    "minimum_action_path", "path_integral", "sgd_temperature", "spectral_gap",
]  # fmt: skip

Goal = Callable[[Net], Tensor]
_SYMMETRIC = 1e-4


class DiffusionError(WeightspaceError):
    """A temperature, times, curvatures or a step that make no sense, or a loss that is not finite."""


# ------------------------------------------------------------------ the action of a path


@dataclass(frozen=True)
class Action:
    """-log of a path's weight under a diffusion, in nats, split; up to a constant of the times and the dimension.

    `static`: (L_f - L_0) / 2D. `kinetic`, `force`, `entropic`: (1/2D) int of 1/2 |w'|^2, 1/2 |grad L|^2, -D lap L, the
    last one known up to `error`. `times`, `losses`, `slopes` (|grad L|^2), `laplacians`: at every marked point.
    Never exponentiated: in P dimensions the entropic part is of order P. The kinetic part of a noisy path grows with
    the number of points, so compare paths that are marked alike.
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
        """Static and dynamic part together."""
        return self.static + self.dynamic

    def data(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {**asdict(self), "dynamic": self.dynamic, "total": self.total}


@dataclass(frozen=True)
class ActionCost:
    """Passes forward and back over the task, and bytes of weights held beside the path's own."""

    passes: int
    bytes: int


def action_cost(path: Path | Sequence[Net], samples: int = 8) -> ActionCost:
    """What `action` will cost: two passes a point and one for every sample of the Hessian's trace."""
    net = path[0]
    return ActionCost(len(path) * (2 + samples), (3 + samples) * 8 * net.weights.numel)


def action(
    path: Path | Sequence[Net],
    task: Goal,
    temperature: float,
    times: float | Sequence[float],
    *,
    samples: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Action:
    """The action of a path through its marked points, static and dynamic part, at temperature D.

    `times`: when the points were met, in units of step size times steps, or the whole duration. Speeds are those of the
    chords; the potential is summed by trapezoids; lap L = tr H by `samples` products with signs at every point
    (Hutchinson), exact where there are no more weights than samples. About 30 points are enough for the potential of a
    training run. Raises `DiffusionError` for a temperature that is not positive, times that do not rise, and losses or
    gradients that are not finite.
    """
    heat = _positive("temperature", temperature)
    points = [checked(net) for net in path]
    marks = _marks(path, points, times)
    losses, slopes, traces = [], [], []
    for k, net in enumerate(points):
        points[0].check(net)
        value, slope = value_and_gradient(task, net)
        losses.append(_finite("loss", value, k))
        slopes.append(_finite("squared gradient", float(slope.dot(slope)), k))
        traces.append(laplacian(net, task, samples, seed + k))
        if progress is not None:
            progress(k + 1, len(points))
    gaps = [t - s for s, t in pairwise(marks)]
    shares = [(left + right) / 2 for left, right in zip([0.0, *gaps], [*gaps, 0.0], strict=True)]
    speed = sum(float((b - a).norm()) ** 2 / gap for (a, b), gap in zip(pairwise(points), gaps, strict=True))
    bend = [trace.value for trace in traces]
    return Action(
        static=(losses[-1] - losses[0]) / (2 * heat),
        kinetic=speed / (4 * heat),
        force=_weighed(shares, slopes) / (4 * heat),
        entropic=-_weighed(shares, bend) / 2,
        error=math.sqrt(sum((share * trace.error) ** 2 for share, trace in zip(shares, traces, strict=True))) / 2,
        temperature=heat,
        times=marks,
        losses=losses,
        slopes=slopes,
        laplacians=bend,
    )


def laplacian(net: Net, goal: Goal, samples: int = 8, seed: int = 0) -> Estimate:
    """lap L = tr H, H the Hessian of the goal: the mean of z . H z over signs z, and its standard error.

    Exact where there are no more weights than samples. A batch's graph is held while all samples pass back through it.
    """
    leaf = net.weights.map(lambda w: w.detach().clone().requires_grad_(w.is_floating_point()))
    leaves = [flat for flat in leaf.buffers if flat.requires_grad]
    if samples < 1 or not leaves:
        raise DiffusionError(f"a trace needs one sample or more and weights that can learn, got {samples} samples")
    size = sum(flat.numel() for flat in leaves)
    exact = size <= samples
    probes = torch.eye(size) if exact else _signs(samples, size, seed)
    draws = torch.zeros(len(probes), dtype=torch.float64)
    with math_attention(), torch.enable_grad():
        for part in _parts(net.at(leaf), goal):
            slopes = torch.autograd.grad(part, leaves, create_graph=True, materialize_grads=True)
            slope = torch.cat([s.flatten() for s in slopes])
            if not slope.requires_grad:
                continue  # linear in the weights
            for k, probe in enumerate(probes.to(slope)):
                bent = torch.autograd.grad(slope @ probe, leaves, retain_graph=True, materialize_grads=True)
                draws[k] += (torch.cat([b.flatten() for b in bent]).double() @ probe.double()).cpu()
    if exact:
        return Estimate(float(draws.sum()), 0.0, size)
    error = float(draws.std()) / math.sqrt(samples) if samples > 1 else math.inf
    return Estimate(float(draws.mean()), error, samples)


def _signs(samples: int, size: int, seed: int) -> Tensor:
    return torch.randint(0, 2, (samples, size), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0


def _parts(net: Net, goal: Goal) -> Any:
    """The goal as a sum, a batch at a time where it is a mean or a sum over examples."""
    if not isinstance(goal, Task) or goal.aggregate not in ("mean", "sum"):
        yield goal(net)
        return
    counts = [goal.slopes(goal.forward(net, x), y)[1] for x, y in goal.batches(net)]
    for count, (x, y) in zip(counts, goal.batches(net), strict=True):
        if count:
            yield goal.loss(goal.forward(net, x), y) * (count / (sum(counts) if goal.aggregate == "mean" else 1))


def sgd_temperature(net: Net, task: Task, rate: float, batch: int) -> float:
    """D = rate tr(Sigma) / (2 batch P): the isotropic noise of the same total power as that of SGD. A model of it.

    Sigma is the covariance of one example's gradient at this network (`gradient_noise`), P the number of weights. The
    noise of SGD lies in few directions and changes along the way, so this is an average over directions, of one place.
    """
    if batch < 1:
        raise DiffusionError(f"a batch of {batch} examples; give 1 or more")
    noise = gradient_noise(task, by_layer=True)(net).trace
    return _positive("rate", rate) * noise / (2 * batch * net.weights.numel)


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise DiffusionError(f"{name} must be positive and finite, got {value}")
    return float(value)


def _marks(path: Path | Sequence[Net], points: list[Net], times: float | Sequence[float]) -> list[float]:
    if len(points) < 2:
        raise DiffusionError(f"a path has at least two networks, got {len(points)}")
    if isinstance(times, (int, float)):
        duration = _positive("the duration", times)
        unit = path.times if isinstance(path, Path) else [k / (len(points) - 1) for k in range(len(points))]
        return [duration * t for t in unit]
    marks = [float(t) for t in times]
    if len(marks) != len(points):
        raise DiffusionError(f"{len(points)} networks but {len(marks)} times; give one time to each network")
    if not all(s < t < math.inf for s, t in pairwise(marks)):
        raise DiffusionError("times must rise; give step size times steps of every network")
    return marks


def _finite(name: str, value: float, k: int) -> float:
    if not math.isfinite(value):
        raise DiffusionError(f"the {name} is {value} at point {k} of the path; leave out what diverged")
    return value


def _weighed(shares: list[float], values: list[float]) -> float:
    return sum(share * value for share, value in zip(shares, values, strict=True))


# ------------------------------------------------------------------ one dimension, exactly


def path_integral(
    potential: Callable[[Tensor], Tensor],
    start: float,
    temperature: float,
    duration: float,
    grid: Float[Tensor, " n"],
    steps: int = 1000,
) -> Float[Tensor, " n"]:
    """p(x, T | start) on an even grid: the sum over all paths on it, as a product of `steps` transfer matrices.

    K = exp(-(x - y)^2 / 4 D dt - (V(x) + V(y)) dt / 4 D) / sqrt(4 pi D dt), and the static factor at the end. Good while
    the grid's spacing is below sqrt(2 D dt) and the density does not reach its ends: the integral should be 1.
    """
    x, spacing = _even(grid)
    heat, step = _positive("temperature", temperature), _positive("duration", duration) / steps
    matrix = _transfer(potential, x, spacing, heat, step)
    level, _, _ = _jet(potential, torch.cat([x, x.new_tensor([start])]))
    lifted = torch.zeros_like(x)
    lifted[int((x - start).abs().argmin())] = 1 / spacing
    density = torch.linalg.matrix_power(matrix, steps) @ lifted
    return density * torch.exp(-(level[:-1] - level[-1]) / (2 * heat))


def spectral_gap(
    potential: Callable[[Tensor], Tensor], temperature: float, grid: Float[Tensor, " n"], step: float = 1e-3
) -> float:
    """The rate at which the slowest perturbation of equilibrium dies: the gap of the transfer matrix's spectrum."""
    x, spacing = _even(grid)
    values = torch.linalg.eigvalsh(_transfer(potential, x, spacing, _positive("temperature", temperature), step))
    return float((values[-1] / values[-2]).log()) / step


def _even(grid: Tensor) -> tuple[Tensor, float]:
    x = grid.double()
    spacing = float(x[1] - x[0]) if len(x) > 2 else 0.0
    if spacing <= 0 or float((x.diff() - spacing).abs().max()) > 1e-6 * spacing:
        raise DiffusionError("the grid must rise in equal steps; give torch.linspace(low, high, n)")
    return x, spacing


def _jet(potential: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L, L' and L''."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        level = potential(leaf)
        (slope,) = torch.autograd.grad(level.sum(), leaf, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), leaf, materialize_grads=True)
    if not bool((level + slope + bend).isfinite().all()):
        raise DiffusionError("the potential or a derivative of it is not finite on the grid")
    return level.detach(), slope.detach(), bend.detach()


def _transfer(
    potential: Callable[[Tensor], Tensor], x: Tensor, spacing: float, heat: float, step: float
) -> Float[Tensor, "n n"]:
    _, slope, bend = _jet(potential, x)
    height = slope.square() / 2 - heat * bend
    apart = (x[:, None] - x).square() / (4 * heat * step) + (height[:, None] + height) * step / (4 * heat)
    return torch.exp(-apart) * spacing / math.sqrt(4 * math.pi * heat * step)


# ------------------------------------------------------------------ rates


@dataclass(frozen=True)
class Rate:
    """An escape rate: `log` = `prefactor` + `exponent`, the logarithm of it per unit of time; `error` of the logarithm.

    `unstable`: the negative eigenvalue of the Hessian at the saddle.
    """

    log: float
    prefactor: float
    exponent: float
    unstable: float
    error: float = 0.0

    @property
    def value(self) -> float:
        """The rate; 0 where it is too small to be told from it."""
        return math.exp(self.log)

    def data(self) -> dict[str, float]:
        """All of it, as JSON can hold it."""
        return asdict(self)


def kramers_rate(
    barrier: float,
    temperature: float,
    minimum: float | Tensor | Operator,
    saddle: float | Tensor | Operator,
    *,
    unstable: float | None = None,
    scale: float = 1e-3,
    seed: int = 0,
) -> Rate:
    """r = |u| / (2 pi) sqrt(det H_min / |det H_saddle|) e^{-barrier / D}, u the negative eigenvalue at the saddle.

    The curvatures are two Hessians written out, two logarithms of |det| with `unstable` given, or two `Operator`s, for
    which log det(I + H / scale) stands for log det(H / scale): directions flatter than `scale` count as equally flat at
    both, and directions that fall, but for the steepest one, as flat. Valid where the barrier is several D. Raises
    `DiffusionError` for a minimum or a saddle that is none.
    Sources: Kramers, 1940; Langer, 1969, after Eyring, 1935.
    """
    exponent = -barrier / _positive("temperature", temperature)
    if not barrier >= 0:
        raise DiffusionError(f"the barrier is {barrier}; it is the loss of the saddle less that of the minimum")
    kinds = [Operator if isinstance(h, Operator) else type(h) for h in (minimum, saddle)]
    error = 0.0
    if isinstance(minimum, Tensor) and isinstance(saddle, Tensor):
        low, falling = _spectrum(minimum), _spectrum(saddle)
        if not bool((low > 0).all()):
            raise DiffusionError(f"the minimum has a curvature {float(low[0]):.3g}; it is none, or a flat one")
        if not (falling[0] < 0 and bool((falling[1:] > 0).all())):
            raise DiffusionError(
                f"the saddle has {int((falling <= 0).sum())} falling or flat directions; it must have 1"
            )
        ratio, down = float(low.log().sum() - falling.abs().log().sum()), float(falling[0])
    elif isinstance(minimum, Operator) and isinstance(saddle, Operator):
        ratio, error, down = _ratio(minimum, saddle, _positive("scale", scale), seed)
    elif isinstance(minimum, (int, float)) and isinstance(saddle, (int, float)):
        if unstable is None or not unstable < 0:
            raise DiffusionError(f"two log-determinants need the saddle's negative eigenvalue too, got {unstable}")
        ratio, down = minimum - saddle, float(unstable)
    else:
        raise DiffusionError(
            f"give two numbers, two matrices or two operators, not {kinds[0].__name__} and {kinds[1].__name__}"
        )
    prefactor = math.log(-down / (2 * math.pi)) + ratio / 2
    return Rate(prefactor + exponent, prefactor, exponent, down, error / 2)


def _spectrum(matrix: Tensor) -> Tensor:
    h = matrix.double()
    if h.dim() != 2 or h.shape[0] != h.shape[1] or not bool(h.isfinite().all()):
        raise DiffusionError(f"a Hessian is a square matrix of finite numbers, got shape {tuple(h.shape)}")
    if float((h - h.T).norm()) > _SYMMETRIC * float(h.norm()):
        raise DiffusionError("a Hessian is symmetric; this matrix is not")
    return torch.linalg.eigvalsh(h)


def _ratio(minimum: Operator, saddle: Operator, scale: float, seed: int) -> tuple[float, float, float]:
    """log det(I + H_min / s) - log det(I + |H_saddle| / s), its error, and the negative eigenvalue."""
    start = torch.randn(saddle.rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = lanczos(saddle, start, min(saddle.rows, 60))
    values, vectors = torch.linalg.eigh(found.matrix)
    down, along = float(values[0]), found.basis.T @ vectors[:, 0].to(found.basis)
    if not down < 0:
        raise DiffusionError(f"the saddle's lowest curvature is {down:.3g}; a saddle has a direction that falls")
    turned = Operator(saddle.rows, saddle.rows, lambda v: saddle @ v - 2 * down * along.to(v) * (along.to(v) @ v))
    low, high = minimum.logdet(scale, seed=seed), turned.logdet(scale, seed=seed)
    return low.value - high.value, math.hypot(low.error, high.error), down


# ------------------------------------------------------------------ from one network to another


@dataclass(frozen=True)
class Crossing:
    """The path of least action between two networks as D -> 0: uphill against the gradient, over a saddle, and down.

    `path`: its images, evenly spaced; `losses` of each; `top`: which is the saddle; `residual`: the largest gradient
    across the path, beside the largest along it, which is 0 for the path sought.
    """

    path: Path
    losses: list[float]
    top: int
    residual: float

    @property
    def saddle(self) -> Net:
        """The highest image; it has climbed to where the gradient vanishes, unless it is an end."""
        return self.path[self.top]

    @property
    def barrier(self) -> float:
        """The saddle's loss above that of the first network; the least action to get there is this over D."""
        return self.losses[self.top] - self.losses[0]

    @property
    def back(self) -> float:
        """The saddle's loss above that of the last network."""
        return self.losses[self.top] - self.losses[-1]

    def data(self) -> dict[str, Any]:
        """All but the networks, as JSON can hold it."""
        told = {"losses": self.losses, "top": self.top, "residual": self.residual}
        return {**told, "barrier": self.barrier, "back": self.back}


def minimum_action_path(
    a: Net,
    b: Net,
    goal: Goal,
    *,
    images: int = 11,
    steps: int = 200,
    size: float = 0.05,
    path: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Crossing:
    """The string method: `images` networks from a to b descend by `size` times the gradient and are spaced evenly again.

    In the second half of the `steps` the highest image climbs along the path and descends across it, until it stands on
    the saddle. a and b stay where they are: give two minima. The string begins on the straight line, or on `path`. Cost:
    (images - 2) gradients a step; memory: three times the images. Raises `DiffusionError` for fewer than three images,
    steps that are not positive, or a loss that is not finite.
    """
    a.check(b)
    if images < 3 or steps < 1:
        raise DiffusionError(f"a string needs 3 images and 1 step or more, got {images} and {steps}")
    size = _positive("size", size)
    start = Path.through([a, b]) if path is None else path
    nets = [a, *(start(k / (images - 1)) for k in range(1, images - 1)), b]
    flat = torch.stack([net.weights.flat().detach() for net in nets])
    climber: int | None = None
    for step in range(steps + 1):
        values, slopes = _slopes(nets, goal, step)
        if step == steps:
            break
        if step >= steps // 2 and climber is None:
            top = max(range(images), key=values.__getitem__)
            climber = top if 0 < top < images - 1 else None
        flat[1:-1] -= size * _pull(flat, slopes, climber)[1:-1]
        flat = _spaced(flat, climber)
        nets = [a, *(net.at(net.weights.shaped(row)) for net, row in zip(nets[1:-1], flat[1:-1], strict=True)), b]
        if progress is not None:
            progress(step + 1, steps)
    top = max(range(images), key=values.__getitem__) if climber is None else climber
    return Crossing(Path.through(nets), values, top, _residual(flat, slopes))


def _slopes(nets: list[Net], goal: Goal, step: int) -> tuple[list[float], Tensor]:
    found = [value_and_gradient(goal, net) for net in nets]
    values = [value for value, _ in found]
    if not all(math.isfinite(value) for value in values):
        raise DiffusionError(f"a loss along the string is not finite after {step} steps; take a smaller size")
    return values, torch.stack([slope.flat() for _, slope in found])


def _tangents(flat: Tensor) -> Tensor:
    """Unit vectors along the string, at the images between its ends."""
    along = flat[2:] - flat[:-2]
    return along / along.norm(dim=1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)


def _pull(flat: Tensor, slopes: Tensor, climber: int | None) -> Tensor:
    """The gradients, at the image that climbs with its part along the string reversed."""
    if climber is None:
        return slopes
    pull, along = slopes.clone(), _tangents(flat)[climber - 1]
    pull[climber] -= 2 * (slopes[climber] @ along) * along
    return pull


def _spaced(flat: Tensor, still: int | None) -> Tensor:
    """Images at equal distances along their own polyline; those on both sides of `still` each for themselves."""
    if still is not None:
        return torch.cat([_spaced(flat[: still + 1], None), _spaced(flat[still:], None)[1:]])
    reach = torch.cat([flat.new_zeros(1), (flat[1:] - flat[:-1]).norm(dim=1).cumsum(0)])
    wanted = torch.linspace(0, float(reach[-1]), len(flat)).to(reach)[1:-1]
    right = torch.searchsorted(reach, wanted).clamp(1, len(flat) - 1)
    gap = (reach[right] - reach[right - 1]).clamp_min(torch.finfo(flat.dtype).tiny)
    share = ((wanted - reach[right - 1]) / gap)[:, None]
    return torch.cat([flat[:1], flat[right - 1].lerp(flat[right], share), flat[-1:]])


def _residual(flat: Tensor, slopes: Tensor) -> float:
    along, inner = _tangents(flat), slopes[1:-1]
    part = (inner * along).sum(1, keepdim=True)
    across = (inner - part * along).norm(dim=1)
    return float(across.max() / part.abs().max().clamp_min(torch.finfo(flat.dtype).tiny))
