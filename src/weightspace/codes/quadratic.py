"""The optimal Gaussian posterior of a quadratic loss, in closed form: information in the weights near a minimum.

With L(w* + d) = L* + 1/2 d^T H d in nats (H the Hessian of the SUM over examples), a prior P = N(w_0, V) with V =
diag(v) and Q = N(w*, S), the description length C_beta = E_Q L + beta KL(Q | P) is shortest for

    S = beta (H + beta V^-1)^-1
    C_beta = L* + beta/2 [(w* - w_0)^T V^-1 (w* - w_0) + log det(I + V H / beta)]
    KL = 1/2 [(w* - w_0)^T V^-1 (w* - w_0) + log det(I + V H / beta) - d],   d = tr H (H + beta V^-1)^-1

d is the effective dimension. The expansion has the factor 1/2, so H is the Hessian itself; papers that write L* +
d^T H d have H/2 for our H. The best diagonal S follows from the same formulas with H replaced by its diagonal. If the
mean of Q is optimised too, it moves to the minimum of L + beta/2 |w - w_0|^2 / v.
Sources: Keeping neural networks simple by minimizing the description length of the weights (Hinton, van Camp, 1993);
Bayesian interpolation (MacKay, 1992), for the prior; Where is the information in a deep neural network? (Achille,
Paolini, Soatto, 2019).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = [
    "Quadratic",
]


_WIDEST = 60.0  # |log of a variance| beyond which it counts as zero, or infinite
_NEWTON = 60


@public
@dataclass(frozen=True)
class Quadratic:
    """A quadratic loss L(w^* + d) = `loss` + 1/2 d^T H d around w^*, with `offset` = w^* - w_0 from the prior's mean.

    `hessian` is H, or its diagonal as a vector. The argument `variance` of the methods is v: a number, or one for every
    weight. Everything in float64. Raises `WeightspaceError` for shapes that do not fit, NaN and infinity.

    >>> import torch, weightspace as ws
    >>> bowl = ws.Quadratic(1.0, torch.diag(torch.tensor([3.0, 0.0])), torch.zeros(2))
    >>> round(bowl.length(1.0), 3), bowl.dimensions(1.0).tolist()       # 1 + log(1 + 3) / 2; the second is free
    (1.693, [0.75, 0.0])
    """

    loss: float
    hessian: Tensor
    offset: Float[Tensor, " n"]

    def __post_init__(self) -> None:
        n, h = len(self.offset), self.hessian
        if h.shape not in ((n,), (n, n)):
            raise WeightspaceError(f"a Hessian of shape {tuple(h.shape)} does not fit an offset of {n} numbers")
        if not (h.isfinite().all() and self.offset.isfinite().all() and math.isfinite(self.loss)):
            raise WeightspaceError("NaN or infinity in the loss, the Hessian or the offset")
        for name, value in (("hessian", h), ("offset", self.offset)):
            object.__setattr__(self, name, value.detach().double())

    @property
    def factorised(self) -> Quadratic:
        """The same quadratic with H replaced by its diagonal, as posteriors with independent weights see it."""
        return replace(self, hessian=self.hessian.diagonal()) if self.hessian.dim() == 2 else self

    def covariance(self, variance: float | Tensor, beta: float = 1.0) -> Tensor:
        """The posterior covariance S as a matrix, or its diagonal where H is a diagonal."""
        v, b = self._wide(variance), positive("beta", beta)
        if self.hessian.dim() == 1:
            return b * v / (v * self.hessian + b)
        root = v.sqrt()
        inner = root[:, None] * self.hessian * root + b * torch.eye(len(v), dtype=torch.float64)
        return b * root[:, None] * torch.cholesky_inverse(torch.linalg.cholesky(inner)) * root

    def length(self, variance: float | Tensor, beta: float = 1.0) -> float:
        """The description length C_beta, in nats."""
        return self.loss + positive("beta", beta) / 2 * (self._far(variance) + self.logdet(variance, beta))

    def kl(self, variance: float | Tensor, beta: float = 1.0) -> float:
        """KL(Q | P): the information in the weights, in nats."""
        return (self._far(variance) + self.logdet(variance, beta) - float(self.dimensions(variance, beta).sum())) / 2

    def logdet(self, variance: float | Tensor, beta: float = 1.0) -> float:
        """log det(I + V H / beta)."""
        return float((self._spectrum(variance)[0] / positive("beta", beta)).log1p().sum())

    def dimensions(self, variance: float | Tensor, beta: float = 1.0) -> Float[Tensor, " n"]:
        """The effective dimension 1 - S_ii / v_i of every weight, from 0 (as in the prior) to 1; their sum is d."""
        values, vectors = self._spectrum(variance)
        known = values / (values + positive("beta", beta))
        return known if vectors is None else vectors.square() @ known

    def nats(self, variance: float | Tensor, beta: float = 1.0) -> Float[Tensor, " n"]:
        """Every weight's part of the KL: log det is the trace of the matrix logarithm, and its diagonal is split."""
        values, vectors = self._spectrum(variance)
        logs = (values / positive("beta", beta)).log1p()
        logs = logs if vectors is None else vectors.square() @ logs
        return (self.offset.square() / self._wide(variance) + logs - self.dimensions(variance, beta)) / 2

    def best_variance(self, beta: float = 1.0, sizes: Sequence[int] | None = None) -> Float[Tensor, " n"]:
        """The prior variance v that minimises C_beta, with one value for each group of `sizes` consecutive weights.

        Without `sizes` one value for all. It solves v_l = (|w^*_l - w_0l|^2 + tr S_l) / n_l, which is v_l =
        |w^*_l - w_0l|^2 / d_l. C_beta is convex in log v, so the minimum is unique, found by Newton's method. Groups at
        w_0, where it is zero, get e^-60; groups with zero curvature, where it is infinite, e^60.
        """
        group = _groups(sizes or [len(self.offset)], len(self.offset))
        far = _summed(self.offset.square(), group)
        steep = _summed(self.hessian if self.hessian.dim() == 1 else self.hessian.diagonal(), group)
        free = (far > 0) & (steep > 0)
        found = torch.where(far > 0, _WIDEST, -_WIDEST).to(far)
        found[free] = (far / torch.bincount(group)).clamp(min=math.exp(-_WIDEST)).log()[free]
        value = self.length(found.exp()[group], beta)
        for _ in range(_NEWTON):
            if not bool(free.any()):
                break
            slope, bend = self._slope(found, group, far, beta)
            step = torch.zeros_like(found)
            step[free] = torch.linalg.solve(bend[free][:, free], -slope[free]).clamp(-4, 4)
            size = 1.0
            while size > 1e-6 and self.length((found + size * step).exp()[group], beta) > value + 1e-13 * abs(value):
                size /= 2
            found = (found + size * step).clamp(-_WIDEST, _WIDEST)
            value = self.length(found.exp()[group], beta)
            if float((size * step).abs().max()) < 1e-12:
                break
        return found.exp()[group]

    def _slope(self, s: Tensor, group: Tensor, far: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """First and second derivatives of 2 (C_beta - L*) / beta in s = log v."""
        values, vectors = self._spectrum(s.exp()[group])
        known = values / (values + beta)
        if vectors is None:
            own, square = known, torch.diag(_summed(known.square(), group))
        else:
            resolution = (vectors * known) @ vectors.T
            own = resolution.diagonal()
            square = _summed(_summed(resolution.square(), group).T, group)
        pull, d = far * (-s).exp(), _summed(own, group)
        return d - pull, torch.diag(d + pull) - square

    def _far(self, variance: float | Tensor) -> float:
        return float((self.offset.square() / self._wide(variance)).sum())

    def _wide(self, variance: float | Tensor) -> Float[Tensor, " n"]:
        v = torch.as_tensor(variance, dtype=torch.float64).expand(len(self.offset))
        if not bool((v > 0).all() and v.isfinite().all()):
            raise WeightspaceError("the variance of a prior must be positive and finite")
        return v

    def _spectrum(self, variance: float | Tensor) -> tuple[Tensor, Tensor | None]:
        """Eigenvalues and eigenvectors of V^1/2 H V^1/2; negative ones, from rounding, are set to zero."""
        v = self._wide(variance)
        if self.hessian.dim() == 1:
            return (v * self.hessian).clamp(min=0), None
        root = v.sqrt()
        values, vectors = torch.linalg.eigh(root[:, None] * self.hessian * root)
        return values.clamp(min=0), vectors


def _groups(sizes: Sequence[int], n: int) -> Int[Tensor, " n"]:
    if sum(sizes) != n or min(sizes) < 1:
        raise WeightspaceError(f"groups of {list(sizes)[:5]} weights do not make up {n}")
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(list(sizes)))


def _summed(values: Tensor, group: Tensor) -> Tensor:
    """The sums of the rows of a vector or matrix over every group."""
    total = values.new_zeros(int(group[-1]) + 1, *values.shape[1:])
    return total.index_add_(0, group, values)


def positive(name: str, value: float) -> float:
    """The value as a float. Raises `WeightspaceError` unless it is positive and finite."""
    if not 0 < value < math.inf:
        raise WeightspaceError(f"{name} must be a positive number, got {value}")
    return float(value)
