"""Traces and diagonals of a matrix from products alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightspace.linear.estimate import Estimate, Linear, OperatorError, estimated, gaussian, signs, times
from weightspace.net.public import public

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["diagonal", "trace"]


TRACES = ("hutch++", "xtrace", "hutchinson")


# ------------------------------------------------------------------ traces


@public
def trace(a: Linear, method: str, products: int, seed: int) -> Estimate:
    """tr A from so many products: "hutchinson", "hutch++" or "xtrace".

    Hutchinson: the mean of z^T A z over signs z. Hutch++: exact on the range of A S, S a third of the products wide,
    and Hutchinson outside of it. XTrace: the same with half, every column of S taking its turn at being the sample.
    The standard error of XTrace takes its terms as independent, which they are nearly. Raises `OperatorError` for an
    unknown method, too few products, NaN or infinity.
    """
    if method not in TRACES:
        raise OperatorError(f"unknown method {method!r}; choose {', '.join(TRACES)}")
    least = {"hutchinson": 1, "hutch++": 3, "xtrace": 4}[method]
    if products < least:
        raise OperatorError(f"{method} needs {least} products or more, got {products}")
    return {"hutchinson": _hutchinson, "hutch++": _hutchpp, "xtrace": _xtrace}[method](a, products, seed)


def _hutchinson(a: Linear, products: int, seed: int) -> Estimate:
    return estimated([float(z @ times(a, z)) for z in signs(a.rows, products, seed)], products)


def _hutchpp(a: Linear, products: int, seed: int) -> Estimate:
    n = a.rows
    k = min(products // 3, n)
    q = _range(times(a, gaussian(n, k, seed)))
    inside = float((q * times(a, q)).sum()) if q.shape[1] else 0.0
    draws = []
    for z in signs(n, products - 2 * k, seed + 1):
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


def _left_out(c: Tensor, i: int) -> Tensor:
    """The unit vector orthogonal to all columns but the i-th; zero where those span everything."""
    rest = torch.cat([c[:, :i], c[:, i + 1 :]], 1)
    if not len(c):
        return c.new_zeros(0)
    u, s, _ = torch.linalg.svd(rest, full_matrices=True)
    rank = int((s > 1e-10 * float(torch.linalg.matrix_norm(c, 2))).sum())
    return u[:, -1] if rank < len(c) else torch.zeros_like(u[:, -1])


def _range(y: Tensor) -> Tensor:
    """An orthonormal basis of what the columns span, as far as it is more than rounding."""
    q, r = torch.linalg.qr(y)
    u, s, _ = torch.linalg.svd(r)
    return q @ u[:, s > 1e-10 * s.max()] if float(s.max()) else q[:, :0]


@public(renamed={"samples": "probes"})
def diagonal(a: Linear, probes: int, seed: int) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """diag A = E z * A z over signs z, and the standard error of every entry."""
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
    if least < -allowed:
        raise OperatorError(
            f"the operator has a curvature of {least:.1e}; a log-determinant needs one that is positive"
        )
