"""Log-determinants log det(I + A / scale) of a positive semidefinite A, estimated from matrix-vector products."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

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
from weightspace.net.seeds import derived

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Nystrom", "bracket", "cost", "logdet", "nystrom"]

_SINGLE = 1e-8  # a relative error of the products beside which float32 rounding is negligible
_RANK, _PROBES, _STEPS = 256, 6, 30


# ------------------------------------------------------------------ log-determinants


@public
@dataclass(frozen=True)
class Nystrom:
    """A low-rank approximation U diag(values) U^T <= A of a positive semidefinite A: see `nystrom`.

    `basis` is U, with orthonormal columns; `noise` is the relative rounding error of A's products.
    """

    basis: Float[Tensor, "n k"]
    values: Float[Tensor, " k"]
    noise: float

    def logdet(self, scale: float) -> float:
        """log det(I + U diag(values) U^T / scale), a lower bound of log det(I + A / scale)."""
        return float((self.values / scale).log1p().sum())


@public
def nystrom(a: Linear, rank: int, seed: int) -> Nystrom:
    """The Nystrom approximation A S (S^T A S)^+ S^T A of a positive semidefinite A, S Gaussian with `rank` columns.

    Costs `rank` products with A. Raises `OperatorError` where A is not positive semidefinite.

    >>> import torch
    >>> import weightspace as ws
    >>> a = ws.Operator(4, 4, lambda v: torch.tensor([9.0, 4.0, 0.0, 0.0]) * v)
    >>> ws.linear.nystrom(a, rank=3, seed=0).values.sort().values.round()
    tensor([4., 9.], dtype=torch.float64)
    """
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
    """log det(I + A / scale) of a positive semidefinite A with its error, and the Nystrom preconditioner that was used.

    With A' <= A the Nystrom approximation of `rank` and P = I + A' / scale, it is
    log det P + E z^T log(P^-1/2 (I + A / scale) P^-1/2) z over random sign vectors z, of which `probes` are drawn.
    Each quadratic form lies between a Gauss and a Gauss-Radau quadrature from `steps` of Lanczos: the value is their
    midpoint, and half of their difference is part of the error. Where n products would cost no more and `rank` is None,
    the dense matrix is used: the error is 0, and the preconditioner None. Raises `OperatorError` where A is not
    positive semidefinite, and for a scale, a rank or a number that cannot be.

    >>> import torch
    >>> import weightspace as ws
    >>> a = ws.Operator(4, 4, lambda v: torch.tensor([9.0, 4.0, 0.0, 0.0]) * v)
    >>> estimate, _ = ws.linear.logdet(a, scale=1.0, rank=None, probes=6, steps=30, seed=0)
    >>> round(estimate.value, 2), estimate.error  # log 10 + log 5
    (3.91, 0.0)
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
    for z in signs(n, probes, derived(seed, "rest")):
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
    """Bounds of e_1^T log(T) e_1 for a T >= I, and the number of Lanczos steps.

    The upper bound is the Gauss quadrature, the lower one Gauss-Radau with a node at 1.
    """
    matrix = found.matrix
    above, least = _log_form(matrix)
    if least < 0.5 - noise:
        raise OperatorError(f"the operator has an eigenvalue of {least - 1:.1e} scales; it must have none below zero")
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
    """An estimate of log det(I + A / scale) with its lower bound and two upper bounds, checked against each other.

    `lower`: the bound of a Nystrom approximation. `parts`: A's diagonal blocks (matrices), or their diagonals
    (vectors). Raises `OperatorError` where a bound is violated by more than six standard errors: A is then not
    symmetric positive semidefinite, or the parts are not A's.

    >>> import math
    >>> import torch
    >>> import weightspace as ws
    >>> a = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> estimate = ws.linear.Estimate(math.log(8), 0.0, 2)  # det(I + A) = 8
    >>> found = ws.linear.bracket(estimate, lower=0.5, parts=[a.diagonal()], scale=1.0)
    >>> round(found.diagonal, 2) == round(math.log(9), 2)  # Hadamard's inequality
    True
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
                f"log det {estimate.value:.6g} lies outside of its bounds {found}; give a symmetric positive "
                "semidefinite A, and its own blocks"
            )
    return found


# ------------------------------------------------------------------ what it costs

What: TypeAlias = Literal["trace", "diagonal", "eigenvalues", "logdet"]


@public(renamed={"samples": "probes"})
def cost(
    what: What, n: int, *, probes: int = _PROBES, steps: int = _STEPS, rank: int | None = None, k: int = 10
) -> Cost:
    """The largest number of products and of bytes that an estimate for an n x n operator takes.

    `what`: "trace" and "diagonal" depend on `probes`, "eigenvalues" on `k` and `steps`, "logdet" on `probes`, `steps`
    and `rank`.

    >>> import weightspace as ws
    >>> ws.linear.cost("trace", 1000, probes=30).products
    30
    """
    if what == "trace":
        return Cost(products=probes, bytes=8 * n * (3 * probes + 8))
    if what == "diagonal":
        return Cost(products=probes, bytes=8 * n * 6)
    if what == "eigenvalues":
        most = min(n, steps)
        return Cost(products=2 * most, bytes=8 * n * (2 * most + k + 6) + 32 * (2 * most + k) ** 2)
    r = _default_rank(n) if rank is None else min(rank, n)
    products = r + probes * min(steps, n)
    if rank is None and n <= products:
        return Cost(products=n, bytes=8 * n * n * 4)
    return Cost(products=products, bytes=8 * n * (max(4 * r, r + min(steps, n)) + 8))
