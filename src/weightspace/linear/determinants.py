"""log det(I + A / b) of a positive matrix from products alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightspace.linear.estimate import (
    Bracket,
    Estimate,
    Linear,
    OperatorError,
    estimated,
    gaussian,
    signs,
    times,
)
from weightspace.linear.krylov import Krylov, lanczos
from weightspace.linear.traces import nonnegative
from weightspace.net.cost import Cost
from weightspace.net.public import public

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Nystrom", "bracket", "cost", "logdet", "nystrom"]

_SINGLE = 1e-8  # rounding that float32 adds nothing to
_RANK, _SAMPLES, _STEPS = 256, 6, 30


# ------------------------------------------------------------------ log-determinants


@public
@dataclass(frozen=True)
class Nystrom:
    """U diag(values) U^T <= A of a positive semidefinite A, U with orthonormal columns; `noise`: A's own rounding."""

    basis: Float[Tensor, "n k"]
    values: Float[Tensor, " k"]
    noise: float

    def logdet(self, scale: float) -> float:
        """log det(I + U diag(values) U^T / scale)."""
        return float((self.values / scale).log1p().sum())


@public
def nystrom(a: Linear, rank: int, seed: int) -> Nystrom:
    """A S (S^T A S)^+ S^T A, S Gaussian of `rank` columns: as many products. Raises `OperatorError` if not A >= 0."""
    s = torch.linalg.qr(gaussian(a.rows, rank, seed))[0]
    y = times(a, s)
    inner = s.T @ y
    size = float(inner.norm())
    noise = max(1e-14, float((inner - inner.T).norm()) / size) if size else 0.0
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    nonnegative(float(values[0]), 1e3 * noise * size)
    kept = values > 10 * noise * values[-1]
    root = y @ (vectors[:, kept] / values[kept].sqrt())
    del s, y
    q, r = torch.linalg.qr(root)
    del root
    u, sizes, _ = torch.linalg.svd(r)
    return Nystrom(q @ u, sizes.square(), noise)


@public(renamed={"samples": "probes"})
def logdet(
    a: Linear, scale: float, rank: int | None, probes: int, steps: int, seed: int
) -> tuple[Estimate, Nystrom | None]:
    """log det(I + A / scale) of a positive semidefinite A, and the Nystrom approximation that it was seen through.

    With A' <= A of `rank` and P = I + A' / scale: log det P + E z^T log(P^-1/2 (I + A / scale) P^-1/2) z over signs z.
    The quadratic forms lie between Gauss and Gauss-Radau quadrature from `steps` of Lanczos: the value is their middle,
    and half of what is between them is part of the error. Where n products are fewer, and no rank is asked for, the
    matrix is written out: no error.
    """
    if not 0 < scale < math.inf:
        raise OperatorError(f"the scale must be a positive number, got {scale}")
    if probes < 1 or steps < 1 or (rank is not None and rank < 0):
        raise OperatorError(f"{probes} probes of {steps} steps at rank {rank}; give 1 or more, and a rank from 0")
    n = a.rows
    if rank is None and n <= cost("logdet", n, probes=probes, steps=steps).products:
        return _dense_logdet(a, scale), None
    k = min(n, _default_rank(n) if rank is None else rank)
    part = nystrom(a, k, seed) if k else Nystrom(torch.zeros(n, 0, dtype=torch.float64), torch.zeros(0).double(), 0.0)
    if part.noise > _SINGLE and float(part.values.sum()) < scale / _SINGLE:  # the products are no better
        part = Nystrom(part.basis.float(), part.values, part.noise)
    seen = _Preconditioned(a, part, scale)
    noise = 1e3 * part.noise * float(part.values.sum()) / scale
    draws, gaps, used = [], [], k
    for z in signs(n, probes, seed + 1):
        above, below, made = _quadratures(lanczos(seen, z, min(steps, n)), noise)
        draws.append(n * (above + below) / 2)
        gaps.append(n * (above - below) / 2)
        used += made
    rest = estimated(draws, used)
    error = rest.error + sum(gaps) / len(gaps)
    return Estimate(part.logdet(scale) + rest.value, error, used), part


def _default_rank(n: int) -> int:
    return min(_RANK, n // 4)


def _dense_logdet(a: Linear, scale: float) -> Estimate:
    matrix = times(a, torch.eye(a.rows, dtype=torch.float64))
    values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    nonnegative(float(values[0]), 1e-10 * float(matrix.norm()) + 1e3 * float((matrix - matrix.T).norm()))
    return Estimate(float((values.clamp_min(0) / scale).log1p().sum()), 0.0, a.rows)


@dataclass(frozen=True)
class _Preconditioned:
    """P^-1/2 (I + A / scale) P^-1/2 >= I, P = I + U diag(values) U^T / scale."""

    a: Linear
    part: Nystrom
    scale: float

    @property
    def rows(self) -> int:
        return self.a.rows

    def __matmul__(self, v: Tensor) -> Tensor:
        u = self._root(v)
        return self._root(u + times(self.a, u) / self.scale)

    def _root(self, v: Tensor) -> Tensor:
        basis = self.part.basis
        factor = (1 + self.part.values / self.scale).rsqrt() - 1
        return v + (basis @ (factor.to(basis) * (basis.T @ v.to(basis)))).to(v)


def _quadratures(found: Krylov, noise: float) -> tuple[float, float, int]:
    """e_1^T log(T) e_1 for a T >= I: Gauss, from above; Gauss-Radau with a node at 1, from below; and the steps."""
    matrix = found.matrix
    above, least = _log_form(matrix)
    if least < 0.5 - noise:
        raise OperatorError(f"the operator has a curvature of {least - 1:.1e} scales; it must have none below zero")
    if not found.rest:
        return above, above, len(matrix)
    k = len(matrix)
    unit = torch.zeros(k, dtype=torch.float64)
    unit[-1] = found.rest**2
    node = min(1.0, least) - 1e-6
    inside = matrix - node * torch.eye(k, dtype=torch.float64)
    wider = torch.zeros(k + 1, k + 1, dtype=torch.float64)
    wider[:k, :k], wider[k, k - 1], wider[k - 1, k] = matrix, found.rest, found.rest
    wider[k, k] = node + float(torch.linalg.solve(inside, unit)[-1])
    below, _ = _log_form(wider)
    return above, min(max(below, 0.0), above), k


def _log_form(matrix: Tensor) -> tuple[float, float]:
    values, vectors = torch.linalg.eigh(matrix)
    return float(vectors[0].square() @ values.clamp_min(1.0).log()), float(values[0])


@public
def bracket(estimate: Estimate, lower: float, parts: Iterable[Tensor], scale: float) -> Bracket:
    """The estimate between its bounds; `parts` are A's diagonal blocks, or the diagonals of such: matrices or vectors.

    Raises `OperatorError` where a bound is broken by more than six errors: then A is not symmetric and positive
    semidefinite, or the parts are not its own.
    """
    blocks, diagonal, size, some = 0.0, 0.0, 0, False
    for part in parts:
        own = part.double() if part.ndim == 1 else part.double().diagonal()
        single = float((own.clamp_min(0) / scale).log1p().sum())
        diagonal, size, some = diagonal + single, size + len(own), True
        values = None if part.ndim == 1 else torch.linalg.eigvalsh(part.double()).clamp_min(0)
        blocks += single if values is None else float((values / scale).log1p().sum())
    found = Bracket(lower, estimate, blocks if some else None, diagonal if some else None)
    slack = 6 * estimate.error + 1e-5 * abs(estimate.value)
    bounds = [found.nystrom - slack, estimate.value, *([found.blocks, found.diagonal] if some else [])]
    upper = [estimate.value, blocks + slack, diagonal * (1 + 1e-9)] if some else [estimate.value]
    for low, high in zip(bounds, upper, strict=False):
        if low is not None and low > high:
            raise OperatorError(
                f"log det {estimate.value:.6g} lies outside of its bounds {found}; A is not what it says"
            )
    return found


# ------------------------------------------------------------------ what it costs


@public(renamed={"samples": "probes"})
def cost(
    what: str, n: int, *, probes: int = _SAMPLES, steps: int = _STEPS, rank: int | None = None, k: int = 10
) -> Cost:
    """The products of an estimate, and its memory in bytes, at most: what = "trace" (probes: products), "diagonal",
    "eigenvalues" (k, steps) or "logdet".
    """
    if what == "trace":
        return Cost(products=probes, bytes=8 * n * (3 * probes + 8))
    if what == "diagonal":
        return Cost(products=probes, bytes=8 * n * 6)
    if what == "eigenvalues":
        most = min(n, steps)
        return Cost(products=2 * most, bytes=8 * n * (2 * most + k + 6) + 32 * (2 * most + k) ** 2)
    if what == "logdet":
        r = _default_rank(n) if rank is None else min(rank, n)
        products = r + probes * min(steps, n)
        if rank is None and n <= products:
            return Cost(products=n, bytes=8 * n * n * 4)
        return Cost(products=products, bytes=8 * n * (max(4 * r, r + min(steps, n)) + 8))
    raise OperatorError(f"unknown estimate {what!r}; choose trace, diagonal, eigenvalues or logdet")
