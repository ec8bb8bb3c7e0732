"""Traces and diagonals of a matrix, estimated from matrix-vector products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from weightspace.linear.estimate import Estimate, Linear, OperatorError, estimated, gaussian, signs, times
from weightspace.net.public import public
from weightspace.net.seeds import derived

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["diagonal", "trace"]


Method: TypeAlias = Literal["hutch++", "xtrace", "hutchinson"]


# ------------------------------------------------------------------ traces


@public
def trace(a: Linear, method: Method, products: int, seed: int) -> Estimate:
    """The trace of A, estimated from a number of matrix-vector products by a stochastic method.

    "hutchinson": the mean of z^T A z over random sign vectors z. "hutch++": exact on the range of A S, where S has a
    third as many columns as there are products, and Hutchinson on its complement. "xtrace": the same with half as many,
    each column of S in turn being the sample; its standard error takes its terms as independent, which they nearly are.
    Raises `OperatorError` for too few products, NaN or infinity.
    Sources: Meyer, Musco, Musco, Woodruff, Hutch++: optimal stochastic trace estimation, 2021; Epperly, Tropp, Webber,
    XTrace: making the most of every sample in stochastic trace estimation, 2024.

    >>> import torch
    >>> import weightspace as ws
    >>> a = ws.Operator(4, 4, lambda v: torch.tensor([1.0, 2.0, 3.0, 4.0]) * v)
    >>> ws.linear.trace(a, "hutchinson", products=5, seed=0)  # exact for a diagonal matrix
    Estimate(value=10.0, error=0.0, products=5)
    """
    least, estimate = _METHODS[method]
    if products < least:
        raise OperatorError(f"{method} needs {least} products or more, got {products}")
    return estimate(a, products, seed)


def _hutchinson(a: Linear, products: int, seed: int) -> Estimate:
    return estimated([float(z @ times(a, z)) for z in signs(a.rows, products, seed)], products)


def _hutchpp(a: Linear, products: int, seed: int) -> Estimate:
    n = a.rows
    k = min(products // 3, n)
    q = _range(times(a, gaussian(n, k, seed)))
    inside = float((q * times(a, q)).sum()) if q.shape[1] else 0.0
    draws = []
    for z in signs(n, products - 2 * k, derived(seed, "rest")):
        x = z - q @ (q.T @ z)
        draws.append(float(x @ times(a, x)) if q.shape[1] < n else 0.0)
    outside = estimated(draws, products)
    return Estimate(inside + outside.value, outside.error, products)


def _xtrace(a: Linear, products: int, seed: int) -> Estimate:
    n = a.rows
    k = min(products // 2, n)
    omega = gaussian(n, k, seed)
    y = times(a, omega)
    q = _range(y)
    r = q.shape[1]
    z = times(a, q) if r else torch.zeros_like(q)
    h, c, w, t = q.T @ z, q.T @ y, q.T @ omega, z.T @ omega
    diagonal, total = (omega * y).sum(0), omega.square().sum(0)
    draws = []
    for i in range(k):
        s = _left_out(c, i)
        p = w[:, i] - s * (s @ w[:, i])
        inside = float(h.trace() - s @ h @ s)
        size = float(total[i] - p @ p)
        rank = r - round(float(s @ s))
        quadratic = float(diagonal[i] - t[:, i] @ p - p @ c[:, i] + p @ h @ p)
        draws.append(inside + ((n - rank) * quadratic / size if rank < n and size > 1e-12 * n else 0.0))
    return estimated(draws, k + r)


_METHODS: dict[Method, tuple[int, Callable[[Linear, int, int], Estimate]]] = {  # with the fewest products
    "hutchinson": (1, _hutchinson),
    "hutch++": (3, _hutchpp),
    "xtrace": (4, _xtrace),
}


def _left_out(c: Tensor, i: int) -> Tensor:
    """The unit vector orthogonal to all columns but the i-th; zero where these columns span the whole space."""
    rest = torch.cat([c[:, :i], c[:, i + 1 :]], 1)
    if not len(c):
        return c.new_zeros(0)
    u, s, _ = torch.linalg.svd(rest, full_matrices=True)
    rank = int((s > 1e-10 * float(torch.linalg.matrix_norm(c, 2))).sum())
    return u[:, -1] if rank < len(c) else torch.zeros_like(u[:, -1])


def _range(y: Tensor) -> Tensor:
    """An orthonormal basis of the span of the columns, directions at the level of rounding left out."""
    q, r = torch.linalg.qr(y)
    u, s, _ = torch.linalg.svd(r)
    return q @ u[:, s > 1e-10 * s.max()] if float(s.max()) else q[:, :0]


@public(renamed={"samples": "probes"})
def diagonal(a: Linear, probes: int, seed: int) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """The diagonal of A, estimated as the mean of z * (A z) over random sign vectors z, and its standard errors.

    The standard errors are infinite for one probe.

    >>> import torch
    >>> import weightspace as ws
    >>> a = ws.Operator(3, 3, lambda v: torch.tensor([1.0, 2.0, 3.0]) * v)
    >>> ws.linear.diagonal(a, probes=4, seed=0)[0]
    tensor([1., 2., 3.], dtype=torch.float64)
    """
    total, square = torch.zeros(a.rows, dtype=torch.float64), torch.zeros(a.rows, dtype=torch.float64)
    for z in signs(a.rows, probes, seed):
        draw = z * times(a, z)
        total += draw
        square += draw.square()
    mean = total / probes
    if probes < 2:
        return mean, torch.full_like(mean, math.inf)
    return mean, ((square / probes - mean.square()).clamp_min(0) / (probes - 1)).sqrt()


def nonnegative(least: float, allowed: float) -> None:
    """Raise `OperatorError` for a least eigenvalue that is negative by more than rounding."""
    if least < -allowed:
        raise OperatorError(
            f"the operator has an eigenvalue of {least:.1e}; a log-determinant needs one that is positive"
        )
