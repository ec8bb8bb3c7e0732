"""Crossing a loss barrier: escape rates (Kramers) and the minimum action path between two networks (string method).

Under dw = -grad L dt + sqrt(2 D) dB and as D -> 0, the path of least action between two minima goes uphill against the
gradient, over a saddle, and down along it; its action is (L_saddle - L_a) / D (Freidlin, Wentzell, 1984).
Sources: Simplified and improved string method (E, Ren, Vanden-Eijnden, 2007); A climbing image nudged elastic band
method (Henkelman, Uberuaga, Jonsson, 2000); Brownian motion in a field of force (Kramers, 1940); Statistical theory of
the decay of metastable states (Langer, 1969).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from weightspace.jobs.progress import Tick
from weightspace.linear.estimate import Estimate
from weightspace.linear.krylov import lanczos
from weightspace.linear.operator import Operator
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.path.diffusion import positive
from weightspace.path.path import Path
from weightspace.task.goal import value_and_gradient

__all__ = ["Passage", "Rate", "kramers_rate", "minimum_action_path"]


Goal = Callable[[Net], Tensor]
_SYMMETRIC = 1e-4
_PROBES, _STEPS = 8, 60


# ------------------------------------------------------------------ rates


@public
@dataclass(frozen=True)
class Rate:
    """An escape rate per unit of time as its logarithm `log` = `prefactor` + `exponent`, with standard error `error`.

    `unstable`: the negative eigenvalue of the Hessian at the saddle.
    """

    log: float
    prefactor: float
    exponent: float
    unstable: float
    error: float = 0.0

    @property
    def value(self) -> float:
        """The rate itself; 0 where it underflows."""
        return math.exp(self.log)

    def data(self) -> dict[str, float]:
        """All fields as plain data for JSON."""
        return asdict(self)


@public
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
    """The Kramers escape rate |u| / (2 pi) sqrt(det H_min / |det H_saddle|) e^{-barrier / D}.

    D is the `temperature`, u the negative eigenvalue at the saddle. `minimum` and `saddle` are the two Hessians as
    matrices, or two values of log |det H| (then give u as `unstable`), or two `Operator`s: for these log det(I + H /
    scale) replaces log det(H / scale), so that directions flatter than `scale` count as equally flat at both, and
    negative eigenvalues other than the lowest as zero. Valid for a barrier of several D. Raises `WeightspaceError`
    unless the minimum has positive eigenvalues only and the saddle exactly one negative one. Sources: Kramers, 1940;
    Langer, 1969, after Eyring, 1935.

    >>> import torch, weightspace as ws
    >>> rate = ws.kramers_rate(1.0, 0.1, torch.eye(2), torch.diag(torch.tensor([-1.0, 1.0])))
    >>> rate.exponent, round(rate.prefactor, 2)       # -barrier / D, and log(1 / 2 pi)
    (-10.0, -1.84)
    """
    exponent = -barrier / positive("temperature", temperature)
    if not barrier >= 0:
        raise WeightspaceError(
            f"the barrier is {barrier}; give the saddle's loss minus the minimum's, which is positive"
        )
    error = 0.0
    if isinstance(minimum, Tensor) and isinstance(saddle, Tensor):
        low, falling = _spectrum(minimum), _spectrum(saddle)
        if not bool((low > 0).all()):
            raise WeightspaceError(f"the minimum has a curvature {float(low[0]):.3g}; all of its must be positive")
        if not (falling[0] < 0 and bool((falling[1:] > 0).all())):
            raise WeightspaceError(
                f"the saddle has {int((falling <= 0).sum())} falling or flat directions; it must have 1"
            )
        ratio, down = float(low.log().sum() - falling.abs().log().sum()), float(falling[0])
    elif isinstance(minimum, Operator) and isinstance(saddle, Operator):
        ratio, error, down = _ratio(minimum, saddle, positive("scale", scale), seed)
    elif isinstance(minimum, (int, float)) and isinstance(saddle, (int, float)):
        if unstable is None or not unstable < 0:
            raise WeightspaceError(f"two log-determinants need the negative eigenvalue too, got unstable={unstable}")
        ratio, down = minimum - saddle, float(unstable)
    else:
        kinds = " and ".join(type(h).__name__ for h in (minimum, saddle))
        raise WeightspaceError(f"give two numbers, two matrices or two operators, not {kinds}")
    prefactor = math.log(-down / (2 * math.pi)) + ratio / 2
    return Rate(prefactor + exponent, prefactor, exponent, down, error / 2)


def _spectrum(matrix: Tensor) -> Tensor:
    h = matrix.double()
    if h.dim() != 2 or h.shape[0] != h.shape[1] or not bool(h.isfinite().all()):
        raise WeightspaceError(f"a Hessian must be a square matrix of finite numbers, got shape {tuple(h.shape)}")
    if float((h - h.T).norm()) > _SYMMETRIC * float(h.norm()):
        raise WeightspaceError("a Hessian must be symmetric; this matrix is not")
    return torch.linalg.eigvalsh(h)


def _ratio(minimum: Operator, saddle: Operator, scale: float, seed: int) -> tuple[float, float, float]:
    """log det(I + H_min / s) - log det(I + |H_saddle| / s), its error, and the negative eigenvalue."""
    low, high = (_positive_logdet(h, scale, seed) for h in (minimum, saddle))
    down = -float((-1.0 * saddle).eigenvalues(1)[0])
    if not down < 0:
        raise WeightspaceError(f"the saddle's lowest curvature is {down:.3g}; a saddle has a direction that falls")
    return low.value - high.value - math.log1p(-down / scale), math.hypot(low.error, high.error), down


def _positive_logdet(h: Operator, scale: float, seed: int) -> Estimate:
    """tr log(1 + max(H, 0) / scale), by Lanczos quadrature (Ubaru, Chen, Saad, 2017)."""
    generator, draws = torch.Generator().manual_seed(seed), []
    for _ in range(_PROBES):
        signs = torch.randint(0, 2, (h.rows,), generator=generator).double() * 2 - 1
        values, vectors = torch.linalg.eigh(lanczos(h, signs, min(h.rows, _STEPS)).matrix)
        draws.append(h.rows * float(vectors[0].square() @ (values.clamp(min=0) / scale).log1p()))
    found = torch.tensor(draws)
    return Estimate(float(found.mean()), float(found.std()) / math.sqrt(_PROBES), _PROBES * _STEPS)


# ------------------------------------------------------------------ from one network to another


@public
@dataclass(frozen=True)
class Passage:
    """The minimum action path between two networks as D -> 0: uphill against the gradient, over a saddle, and down.

    `path`: its networks ("images"), evenly spaced; `losses`: their losses; `top`: the index of the saddle; `residual`:
    the largest gradient perpendicular to the path over the largest along it, which is 0 once converged.
    """

    path: Path
    losses: list[float]
    top: int
    residual: float

    @property
    def saddle(self) -> Net:
        """The network of highest loss: a saddle (once converged), unless it is one of the two ends."""
        return self.path[self.top]

    @property
    def barrier(self) -> float:
        """The saddle's loss minus that of the first network; the least action to get there is this over D."""
        return self.losses[self.top] - self.losses[0]

    @property
    def back(self) -> float:
        """The saddle's loss minus that of the last network: the barrier on the way back."""
        return self.losses[self.top] - self.losses[-1]

    def data(self) -> dict[str, Any]:
        """All fields but the networks as plain data for JSON."""
        fields = {"losses": self.losses, "top": self.top, "residual": self.residual}
        return {**fields, "barrier": self.barrier, "back": self.back}


@public
def minimum_action_path(
    a: Net,
    b: Net,
    goal: Goal,
    *,
    images: int = 11,
    steps: int = 200,
    size: float = 0.05,
    path: Path | None = None,
    progress: Tick | None = None,
) -> Passage:
    """The minimum action path from a to b, by the string method with a climbing image.

    `images` networks between a and b take `steps` gradient steps of learning rate `size` and are spaced evenly again
    after each. In the second half the image of highest loss climbs along the path and descends perpendicular to it,
    onto the saddle. a and b stay fixed: give two minima. The string starts on the straight line, or on `path`.
    Cost: `images` gradients for every step; memory: three times the images. Raises `WeightspaceError` for fewer than
    three images, a size that is not positive, or a loss that is not finite.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.minimum_action_path(net, ws.demo.example(1)[0], task, images=5, steps=10)
    >>> len(found.path), found.barrier >= 0, found.saddle is found.path[found.top]
    (5, True, True)
    """
    a.check(b)
    if images < 3 or steps < 1:
        raise WeightspaceError(f"a string needs at least 3 images and 1 step, got {images} and {steps}")
    size = positive("size", size)
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
    return Passage(Path.through(nets), values, top, _residual(flat, slopes))


def _slopes(nets: list[Net], goal: Goal, step: int) -> tuple[list[float], Tensor]:
    found = [value_and_gradient(goal, net) for net in nets]
    values = [value for value, _ in found]
    if not all(math.isfinite(value) for value in values):
        raise WeightspaceError(f"a loss along the string is not finite after {step} steps; take a smaller size")
    return values, torch.stack([slope.flat() for _, slope in found])


def _tangents(flat: Tensor) -> Tensor:
    """Unit tangents of the string at its inner images."""
    along = flat[2:] - flat[:-2]
    return along / along.norm(dim=1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)


def _pull(flat: Tensor, slopes: Tensor, climber: int | None) -> Tensor:
    """The gradients; for the climbing image the component along the string is reversed."""
    if climber is None:
        return slopes
    pull, along = slopes.clone(), _tangents(flat)[climber - 1]
    pull[climber] -= 2 * (slopes[climber] @ along) * along
    return pull


def _spaced(flat: Tensor, still: int | None) -> Tensor:
    """The images respaced evenly along their polyline; `still` stays, and both sides are spaced separately."""
    if still is not None:
        return torch.cat([_spaced(flat[: still + 1], None), _spaced(flat[still:], None)[1:]])
    reach = torch.cat([flat.new_zeros(1), (flat[1:] - flat[:-1]).norm(dim=1).cumsum(0)])
    wanted = torch.linspace(0, float(reach[-1]), len(flat)).to(reach)[1:-1]
    right = torch.searchsorted(reach, wanted).clamp(1, len(flat) - 1)
    gap = (reach[right] - reach[right - 1]).clamp_min(torch.finfo(flat.dtype).tiny)
    share = ((wanted - reach[right - 1]) / gap)[:, None]
    return torch.cat([flat[:1], flat[right - 1].lerp(flat[right], share), flat[-1:]])


def _residual(flat: Tensor, slopes: Tensor) -> float:
    """The largest gradient perpendicular to the string over the largest along it."""
    along, inner = _tangents(flat), slopes[1:-1]
    part = (inner * along).sum(1, keepdim=True)
    across = (inner - part * along).norm(dim=1)
    return float(across.max() / part.abs().max().clamp_min(torch.finfo(flat.dtype).tiny))
