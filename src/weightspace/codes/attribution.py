"""log det(I + A / b) of a positive semi-definite operator A: estimates, bounds, and its parts by layer.

log det(I + A / b) = tr log(I + A / b), so the diagonal of log(I + A / b) splits it weight by weight; the diagonal of
A (A + b)^-1 splits the effective dimension likewise. One Krylov space of a random z gives both, f(A) z ~ Q^T f(T) e_1
|z|, and E z * f(A) z is the diagonal. For the Nystrom approximation A' of A both are known exactly, so only
z * (f(A) z - f(A') z) is estimated.
Source: Fast estimation of tr(f(A)) via stochastic Lanczos quadrature (Ubaru, Chen, Saad, 2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightspace.codes.quadratic import Quadratic
from weightspace.jobs.progress import Tick
from weightspace.linear.determinants import Nystrom, logdet
from weightspace.linear.krylov import lanczos
from weightspace.linear.operator import Operator
from weightspace.net.public import public
from weightspace.net.seeds import derived

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Attribution", "Scaled", "attributed", "products"]


_DENSE = 512  # rows up to which the dense matrix is used
_STEPS, _LANCZOS = 30, 40


@public
@dataclass(frozen=True)
class Attribution:
    """`logdet` = log det(I + A / b) and its parts by group of weights; what `attributed` returns.

    `lower`: that of the Nystrom approximation; `block`: that of A's block diagonal. `logs` and `known`: every group's
    part of log det(I + A / b) and of the effective dimension tr A (A + b)^-1. `errors`: the standard errors of the two
    sums.
    """

    logdet: float
    lower: float
    block: float | None
    logs: tuple[float, ...]
    known: tuple[float, ...]
    errors: tuple[float, float]


@public
class Scaled(Operator):
    """The operator diag(root) A diag(root) in float64, which counts its `products` with vectors.

    >>> import torch, weightspace as ws
    >>> a = ws.Operator(2, 2, lambda v: 2 * v)
    >>> scaled = ws.codes.Scaled(a, torch.tensor([1.0, 3.0]))
    >>> (scaled @ torch.ones(2)).tolist(), scaled.products
    ([2.0, 18.0], 1)
    """

    __slots__ = ("products",)

    def __init__(
        self,
        inner: Operator,
        root: Float[Tensor, " n"],
        progress: Tick | None = None,
        total: int = 0,
    ) -> None:
        """`inner` is A; `progress(done, total)` is called after every product."""
        self.products = 0

        def times(u: Tensor) -> Tensor:
            self.products += 1 if u.dim() == 1 else u.shape[1]
            if progress is not None:
                progress(min(self.products, total), total)
            scale = root if u.dim() == 1 else root[:, None]
            return scale * (inner @ (scale * u)).double()

        super().__init__(len(root), len(root), times, matmat=times)


@public
def products(sizes: Sequence[int], *, rank: int | None, probes: int, blocks: bool) -> tuple[int, int]:
    """The cost of `attributed` for groups of these sizes: products with A, and bytes, at most.

    >>> import weightspace as ws
    >>> ws.codes.products([100, 20], rank=None, probes=6, blocks=True)
    (120, 345600)
    """
    n = sum(sizes)
    if n <= _DENSE:
        return n, 3 * n * n * 8
    parts = [size if size <= _DENSE else _rank(size, rank) + probes * _STEPS for size in sizes] if blocks else []
    k = _rank(n, rank)
    return k + probes * (_STEPS + _LANCZOS) + sum(parts), (4 * k + _LANCZOS) * n * 8


@public
def attributed(
    a: Operator,
    b: float,
    sizes: Sequence[int],
    *,
    rank: int | None = None,
    probes: int = 6,
    blocks: bool = True,
    seed: int = 0,
) -> Attribution:
    """log det(I + A / b) split over consecutive groups of `sizes` weights: exact up to 512 rows, else estimated.

    Estimated from a Nystrom approximation of `rank` (a quarter of the rows, at most 256), and `probes` random vectors
    for each of two Lanczos quadratures of 30 and 40 steps; large blocks likewise.

    >>> import torch, weightspace as ws
    >>> a = ws.Operator(3, 3, lambda v: torch.tensor([1.0, 1.0, 3.0]).to(v) * v)
    >>> found = ws.codes.attributed(a, 1.0, [2, 1])
    >>> [round(part, 2) for part in found.logs], round(found.logdet, 2)       # 2 log 2, log 4, log 16
    ([1.39, 1.39], 2.77)
    """
    if a.rows <= _DENSE:
        return _written(a, b, sizes, blocks)
    return _sampled(a, b, sizes, rank, probes, blocks, seed)


def _rank(n: int, rank: int | None) -> int:
    return min(256, n // 4) if rank is None else min(rank, n)


def _dense(a: Operator) -> Quadratic:
    matrix = a.dense()
    return Quadratic(0.0, (matrix + matrix.T) / 2, torch.zeros(len(matrix)))


def _grouped(values: Tensor, sizes: Sequence[int]) -> tuple[float, ...]:
    return tuple(float(part.sum()) for part in values.split(list(sizes)))


def _written(a: Operator, b: float, sizes: Sequence[int], blocks: bool) -> Attribution:
    """From the dense matrix."""
    whole = _dense(a)
    known = whole.dimensions(1.0, b)
    logs = 2 * whole.nats(1.0, b) + known
    inside = [whole.hessian[part][:, part] for part in torch.arange(a.rows).split(list(sizes))]
    own = sum(Quadratic(0.0, part, torch.zeros(len(part))).logdet(1.0, b) for part in inside) if blocks else None
    total = float(logs.sum())
    return Attribution(total, total, own, _grouped(logs, sizes), _grouped(known, sizes), (0.0, 0.0))


def _sampled(
    a: Operator, b: float, sizes: Sequence[int], rank: int | None, probes: int, blocks: bool, seed: int
) -> Attribution:
    """From products with random vectors; the parts are scaled to add up to the better estimate of their sum."""
    found, part = logdet(a, b, _rank(a.rows, rank), probes, _STEPS, seed)
    assert part is not None
    logs, known, error = _functions(a, part, b, probes, seed)
    share = found.value / max(float(logs.sum()), 1e-300)
    own = None
    if blocks:
        options = {"probes": probes, "steps": _STEPS, "seed": seed}
        inside = [_inside(a, where) for where in torch.arange(a.rows).split(list(sizes))]
        own = sum(
            _dense(part).logdet(1.0, b)
            if part.rows <= _DENSE
            else part.logdet(b, rank=_rank(part.rows, rank), **options).value
            for part in inside
        )
    return Attribution(
        found.value, part.logdet(b), own, _grouped(share * logs, sizes), _grouped(known, sizes), (found.error, error)
    )


def _inside(a: Operator, where: Tensor) -> Operator:
    """The diagonal block of a symmetric operator for these weights."""

    def times(u: Tensor) -> Tensor:
        wide = u.new_zeros(a.columns, *u.shape[1:])
        wide[where] = u
        return (a @ wide)[where]

    return Operator(len(where), len(where), times, matmat=times)


def _functions(a: Operator, part: Nystrom, b: float, probes: int, seed: int) -> tuple[Tensor, Tensor, float]:
    """The diagonals of log(I + A / b) and A (A + b)^-1, and the standard error of the sum of the second."""

    def both(values: Tensor) -> list[Tensor]:
        values = values.clamp(min=0)
        return [(values / b).log1p(), values / (values + b)]

    generator = torch.Generator().manual_seed(derived(seed, "rest"))
    draws: list[list[Tensor]] = [[], []]
    for _ in range(probes):
        z = torch.randint(0, 2, (a.rows,), generator=generator).double() * 2 - 1
        space = lanczos(a, z, min(_LANCZOS, a.rows))
        values, vectors = torch.linalg.eigh(space.matrix)
        inside = part.basis.T @ z.to(part.basis)
        for into, f, g in zip(draws, both(values), both(part.values), strict=True):
            whole = space.basis.T @ (vectors @ (f * vectors[0])) * space.size
            into.append(z * (whole - part.basis @ (g.to(inside) * inside)))
    logs, known = (
        part.basis.square() @ g.to(part.basis) + torch.stack(drawn).mean(0)
        for drawn, g in zip(draws, both(part.values), strict=True)
    )
    totals = torch.stack(draws[1]).sum(1)
    return logs, known, float(totals.std()) / math.sqrt(probes) if probes > 1 else math.inf
