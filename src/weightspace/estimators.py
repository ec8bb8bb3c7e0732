"""Traces, diagonals, eigenvalues and log-determinants of a square matrix A that is known by its products alone.

Products may be of any precision; everything else is in float64. `n` is the number of rows throughout. `cost` tells
how many products an estimate takes and how much memory beside them, before anything runs.
Sources: A stochastic estimator of the trace (Hutchinson, 1990); Hutch++: optimal stochastic trace estimation (Meyer,
Musco, Musco, Woodruff, 2021); XTrace: making the most of every sample in stochastic trace estimation (Epperly, Tropp,
Webber, 2024); Fast estimation of tr(f(A)) via stochastic Lanczos quadrature (Ubaru, Chen, Saad, 2017); Randomized
Nystrom preconditioning (Frangella, Tropp, Udell, 2023); Matrices, moments and quadrature (Golub, Meurant, 1994).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from weightspace.net import WeightspaceError, finite
from weightspace.public import public

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "Bracket",
    "Cost",
    "Estimate",
    "Krylov",
    "Linear",
    "Nystrom",
    "OperatorError",
    "bracket",
    "cost",
    "diagonal",
    "eigenvalues",
    "lanczos",
    "logdet",
    "nystrom",
    "trace",
]

TRACES = ("hutch++", "xtrace", "hutchinson")
_INVARIANT = 1e-6
_KEPT = 0.7  # of a vector, by an orthogonalisation that need not be made again
_SINGLE = 1e-8  # rounding that float32 adds nothing to
_RANK, _SAMPLES, _STEPS = 256, 6, 30
_SOME = 10  # steps of a Krylov space before it tells anything


class OperatorError(WeightspaceError):
    """A vector of the wrong size, an operator that is not what a method needs, or numbers that are not finite."""


@public
@dataclass(frozen=True)
class Estimate:
    """A number known up to `error` (its standard error), and how many products it cost."""

    value: float
    error: float
    products: int


@public
@dataclass(frozen=True)
class Cost:
    """How many products with a vector, and how many bytes beside what a product itself takes."""

    products: int
    bytes: int


@public
@dataclass(frozen=True)
class Bracket:
    """log det(I + A / scale) in its bounds: nystrom <= exact <= blocks <= diagonal; None for a bound not asked for.

    `nystrom` is that of a part of A, `blocks` of A without what lies between tensors (Fischer's inequality), `diagonal`
    of A without what lies between entries (Hadamard's).
    """

    nystrom: float
    estimate: Estimate
    blocks: float | None = None
    diagonal: float | None = None


@runtime_checkable
class Linear(Protocol):
    """A square matrix that can be multiplied with a vector or a matrix of columns."""

    @property
    def rows(self) -> int:
        """n."""
        ...

    def __matmul__(self, other: Any) -> Any: ...


def _times(a: Linear, v: Tensor) -> Tensor:
    found = (a @ v).to(v)
    if not finite(found):
        raise OperatorError("the operator gave NaN or infinity; look for it in the data and the weights")
    return found


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
    return _estimate([float(z @ _times(a, z)) for z in _signs(a.rows, products, seed)], products)


def _hutchpp(a: Linear, products: int, seed: int) -> Estimate:
    n = a.rows
    k = min(products // 3, n)
    q = _range(_times(a, _gaussian(n, k, seed)))
    inside = float((q * _times(a, q)).sum()) if q.shape[1] else 0.0
    draws = []
    for z in _signs(n, products - 2 * k, seed + 1):
        x = z - q @ (q.T @ z)
        draws.append(float(x @ _times(a, x)) if q.shape[1] < n else 0.0)
    outside = _estimate(draws, products)
    return Estimate(inside + outside.value, outside.error, products)


def _xtrace(a: Linear, products: int, seed: int) -> Estimate:
    n = a.rows
    k = min(products // 2, n)
    omega = _gaussian(n, k, seed)
    y = _times(a, omega)
    q = _range(y)
    r = q.shape[1]
    z = _times(a, q) if r else torch.zeros_like(q)
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
    return _estimate(draws, k + r)


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


@public
def diagonal(a: Linear, samples: int, seed: int) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """diag A = E z * A z over signs z, and the standard error of every entry."""
    total, square = torch.zeros(a.rows, dtype=torch.float64), torch.zeros(a.rows, dtype=torch.float64)
    for z in _signs(a.rows, samples, seed):
        draw = z * _times(a, z)
        total += draw
        square += draw.square()
    mean = total / samples
    if samples < 2:
        return mean, torch.full_like(mean, math.inf)
    return mean, ((square / samples - mean.square()).clamp_min(0) / (samples - 1)).sqrt()


# ------------------------------------------------------------------ Krylov spaces


@public
@dataclass(frozen=True)
class Krylov:
    """Q^T A Q = `matrix` (tridiagonal) on the orthonormal rows Q of `basis`, grown from a start of norm `size`.

    `rest` is the norm of A q - (its part in the space) for the last q: what the next step would add, 0 if invariant.
    """

    basis: Float[Tensor, "k n"]
    matrix: Float[Tensor, "k k"]
    size: float
    rest: float = 0.0


@public
def lanczos(a: Linear, start: Tensor, steps: int, tolerance: float = 0.0, wanted: int = 0) -> Krylov:
    """The Krylov space of `start`, reorthogonalised in full, twice; it ends early where it is invariant.

    With `wanted`, it also ends where the residuals of so many largest eigenvalues are below `tolerance` times the
    largest. The basis has the dtype of `start`.
    """
    size = float(torch.linalg.vector_norm(start, dtype=torch.float64))
    if not 0 < size < math.inf:
        raise OperatorError(f"a Krylov space cannot start from a vector of norm {size}")
    space = torch.empty(min(steps, len(start)), len(start), dtype=start.dtype, device=start.device)
    space[0] = start / size
    matrix = torch.zeros(len(space), len(space), dtype=torch.float64)
    scale, rest, k = 0.0, 0.0, 0
    for k in range(len(space)):
        w = _times(a, space[k])
        matrix[k, k] = float(w @ space[k])
        scale = max(scale, abs(float(matrix[k, k])))
        w, rest = _orthogonal(w, space[: k + 1])
        if rest <= _INVARIANT * scale:
            rest = 0.0
        done = bool(wanted) and k % 5 == 4 and _settled(matrix[: k + 1, : k + 1], rest, tolerance, wanted)
        if not rest or k + 1 == len(space) or done:
            break
        matrix[k, k + 1] = matrix[k + 1, k] = rest
        space[k + 1] = w / rest
    return Krylov(space[: k + 1], matrix[: k + 1, : k + 1], size, rest)


def _orthogonal(w: Tensor, rows: Tensor) -> tuple[Tensor, float]:
    """w without its part in the span of orthonormal rows, and its norm.

    First without the last two rows, which hold nearly all of it in a Krylov space; then without all; and again where
    that took much away, for what a pass leaves of the rows is rounding, as a share of what it took.
    """
    w = w - rows[-2:].T @ (rows[-2:] @ w)
    before = float(torch.linalg.vector_norm(w, dtype=torch.float64))
    for _ in range(2):
        w = w - rows.T @ (rows @ w)
        after = float(torch.linalg.vector_norm(w, dtype=torch.float64))
        if after > _KEPT * before:
            break
    return w, after


def _settled(matrix: Tensor, rest: float, tolerance: float, wanted: int) -> bool:
    if len(matrix) < wanted:
        return False
    values, vectors = torch.linalg.eigh(matrix)
    return bool((rest * vectors[-1].abs()[-wanted:] <= tolerance * values.abs().max()).all())


@public
def eigenvalues(a: Linear, k: int, seed: int, dtype: torch.dtype, tolerance: float, steps: int) -> Float[Tensor, " k"]:
    """The k largest eigenvalues of a symmetric A, from below, each as often as it occurs.

    The Krylov space of one start sees one vector of those that share an eigenvalue; the others are orthogonal to it.
    So a space is grown from one start until k values are settled, their vectors are kept, another is grown from a start
    orthogonal to these, and so on, until one finds nothing above the k-th.
    """
    limit, k = min(a.rows, steps), min(k, a.rows)
    found = _Grown.begin(a.rows, min(a.rows, limit + k + limit), dtype)
    generator, known, used, more = torch.Generator().manual_seed(seed), -math.inf, 0, True
    while more:
        if used:
            found.keep(k, tolerance)
        start = torch.randn(a.rows, generator=generator, dtype=torch.float64).to(dtype)
        before = found.size
        above = found.grow(a, start, 2 * limit - used if used else limit, k, tolerance, known)
        used += found.size - before
        known = float(found.values(k)[0]) if found.size >= k else -math.inf
        more = before < found.size < a.rows and used < 2 * limit and (above and k > 1 or found.size < k)
    return found.values(k).flip(0)


@dataclass
class _Grown:
    """Orthonormal rows, and A on what they span; `ends`: number of a row -> the size of what A adds to it from outside.

    Those are the last row of a start, and all rows that were kept.
    """

    space: Tensor
    matrix: Tensor
    size: int
    ends: dict[int, float]

    @classmethod
    def begin(cls, n: int, most: int, dtype: torch.dtype) -> _Grown:
        """Nothing yet; room for `most` rows."""
        return cls(torch.empty(most, n, dtype=dtype), torch.zeros(most, most, dtype=torch.float64), 0, {})

    def values(self, k: int) -> Tensor:
        """The k largest eigenvalues, the smallest of them first."""
        return torch.linalg.eigvalsh(self.matrix[: self.size, : self.size])[-k:]

    def keep(self, k: int, tolerance: float) -> None:
        """The vectors of the k largest alone that are settled: beside half a vector nothing is found of its equals."""
        values, vectors = torch.linalg.eigh(self.matrix[: self.size, : self.size])
        away = self._away(vectors)
        if float(away.max()) <= _INVARIANT * float(values.abs().max()):
            return
        settled = (away[-k:] <= tolerance * values.abs().max()).nonzero()[:, 0] + self.size - min(k, self.size)
        self.space[: len(settled)] = vectors[:, settled].T.to(self.space) @ self.space[: self.size]
        self.size = len(settled)
        self.matrix.zero_()
        self.matrix[: self.size, : self.size] = values[settled].diag()
        self.ends = dict(enumerate(away[settled].tolist()))

    def _away(self, vectors: Tensor) -> Tensor:
        """|A y - theta y| of Ritz vectors."""
        return torch.stack([rest * vectors[at] for at, rest in self.ends.items()]).norm(dim=0)

    def grow(self, a: Linear, start: Tensor, most: int, k: int, tolerance: float, known: float) -> bool:
        """Add the Krylov space of a start, until the k largest are settled and nothing above `known` is left in it.

        Whether there was something above.
        """
        first, (w, rest) = self.size, _orthogonal(start, self.space[: self.size])
        most = min(first + most, len(self.space))
        before = float(torch.linalg.vector_norm(start, dtype=torch.float64))
        while rest > _INVARIANT * before and self.size < most:
            at, self.size = self.size, self.size + 1
            self.space[at] = w / rest
            w = _times(a, self.space[at])
            if at > first:
                del self.ends[at - 1]
            seen = slice(0 if first else max(0, at - 1), at + 1)  # A is tridiagonal on the rows of one start
            self.matrix[seen, at] = self.matrix[at, seen] = (self.space[seen] @ w).double().cpu()
            w, rest = _orthogonal(w, self.space[: self.size])
            before = float(self.matrix.diagonal()[: self.size].abs().max())
            self.ends[at] = rest
            if (at - first) % 5 == 4 and self._done(first, k, tolerance, known):
                break
        return first < self.size and self._above(first, known, tolerance)

    def _done(self, first: int, k: int, tolerance: float, known: float) -> bool:
        """Whether the k largest are settled, and those of the last start that could be above are."""
        if self.size < k:
            return False
        values, vectors = torch.linalg.eigh(self.matrix[: self.size, : self.size])
        away = self._away(vectors[:, -k:])
        if not bool((away <= tolerance * values.abs().max()).all()):
            return False
        return not first or self._told(first, tolerance, known, float(values.abs().max()))

    def _told(self, first: int, tolerance: float, known: float, scale: float) -> bool:
        """Whether the last start tells the largest value outside of those before: to the tolerance, or its bound.

        A Krylov space of m steps from a random start is below it by no more than a share of the spectrum's width that
        Kuczynski and Wozniakowski (1992) bound, but for one start in a thousand.
        """
        values, vectors = torch.linalg.eigh(self.matrix[first : self.size, first : self.size])
        steps, rest = len(values), self.ends[self.size - 1]
        if steps < _SOME:
            return False
        share = (math.log(1.648e3 * math.sqrt(self.space.shape[1])) / (2 * steps - 1)) ** 2
        top, width = float(values[-1]), float(values[-1] - values[0])
        below = share < 1 and top + share / (1 - share) * width <= known
        return below or rest * float(vectors[-1, -1].abs()) <= tolerance * scale

    def _above(self, first: int, known: float, tolerance: float) -> bool:
        values = torch.linalg.eigvalsh(self.matrix[first : self.size, first : self.size])
        return float(values[-1]) > known + tolerance * float(self.matrix.diagonal().abs().max())


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
    s = torch.linalg.qr(_gaussian(a.rows, rank, seed))[0]
    y = _times(a, s)
    inner = s.T @ y
    size = float(inner.norm())
    noise = max(1e-14, float((inner - inner.T).norm()) / size) if size else 0.0
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    _nonnegative(float(values[0]), 1e3 * noise * size)
    kept = values > 10 * noise * values[-1]
    root = y @ (vectors[:, kept] / values[kept].sqrt())
    del s, y
    q, r = torch.linalg.qr(root)
    del root
    u, sizes, _ = torch.linalg.svd(r)
    return Nystrom(q @ u, sizes.square(), noise)


def _nonnegative(least: float, allowed: float) -> None:
    if least < -allowed:
        raise OperatorError(
            f"the operator has a curvature of {least:.1e}; a log-determinant needs one that is positive"
        )


@public
def logdet(
    a: Linear, scale: float, rank: int | None, samples: int, steps: int, seed: int
) -> tuple[Estimate, Nystrom | None]:
    """log det(I + A / scale) of a positive semidefinite A, and the Nystrom approximation that it was seen through.

    With A' <= A of `rank` and P = I + A' / scale: log det P + E z^T log(P^-1/2 (I + A / scale) P^-1/2) z over signs z.
    The quadratic forms lie between Gauss and Gauss-Radau quadrature from `steps` of Lanczos: the value is their middle,
    and half of what is between them is part of the error. Where n products are fewer, and no rank is asked for, the
    matrix is written out: no error.
    """
    if not 0 < scale < math.inf:
        raise OperatorError(f"the scale must be a positive number, got {scale}")
    if samples < 1 or steps < 1 or (rank is not None and rank < 0):
        raise OperatorError(f"{samples} samples of {steps} steps at rank {rank}; give 1 or more, and a rank from 0")
    n = a.rows
    if rank is None and n <= cost("logdet", n, samples=samples, steps=steps).products:
        return _dense_logdet(a, scale), None
    k = min(n, _default_rank(n) if rank is None else rank)
    part = nystrom(a, k, seed) if k else Nystrom(torch.zeros(n, 0, dtype=torch.float64), torch.zeros(0).double(), 0.0)
    if part.noise > _SINGLE and float(part.values.sum()) < scale / _SINGLE:  # the products are no better
        part = Nystrom(part.basis.float(), part.values, part.noise)
    seen = _Preconditioned(a, part, scale)
    noise = 1e3 * part.noise * float(part.values.sum()) / scale
    draws, gaps, used = [], [], k
    for z in _signs(n, samples, seed + 1):
        above, below, made = _quadratures(lanczos(seen, z, min(steps, n)), noise)
        draws.append(n * (above + below) / 2)
        gaps.append(n * (above - below) / 2)
        used += made
    rest = _estimate(draws, used)
    error = rest.error + sum(gaps) / len(gaps)
    return Estimate(part.logdet(scale) + rest.value, error, used), part


def _default_rank(n: int) -> int:
    return min(_RANK, n // 4)


def _dense_logdet(a: Linear, scale: float) -> Estimate:
    matrix = _times(a, torch.eye(a.rows, dtype=torch.float64))
    values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    _nonnegative(float(values[0]), 1e-10 * float(matrix.norm()) + 1e3 * float((matrix - matrix.T).norm()))
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
        return self._root(u + _times(self.a, u) / self.scale)

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


@public
def cost(
    what: str, n: int, *, samples: int = _SAMPLES, steps: int = _STEPS, rank: int | None = None, k: int = 10
) -> Cost:
    """The products of an estimate, and its memory in bytes, at most: what = "trace" (samples: products), "diagonal",
    "eigenvalues" (k, steps) or "logdet".
    """
    if what == "trace":
        return Cost(samples, 8 * n * (3 * samples + 8))
    if what == "diagonal":
        return Cost(samples, 8 * n * 6)
    if what == "eigenvalues":
        most = min(n, steps)
        return Cost(2 * most, 8 * n * (2 * most + k + 6) + 32 * (2 * most + k) ** 2)
    if what == "logdet":
        r = _default_rank(n) if rank is None else min(rank, n)
        products = r + samples * min(steps, n)
        if rank is None and n <= products:
            return Cost(n, 8 * n * n * 4)
        return Cost(products, 8 * n * (max(4 * r, r + min(steps, n)) + 8))
    raise OperatorError(f"unknown estimate {what!r}; choose trace, diagonal, eigenvalues or logdet")


# ------------------------------------------------------------------ random vectors


def _gaussian(n: int, k: int, seed: int) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _signs(n: int, samples: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(samples):
        yield torch.randint(0, 2, (n,), generator=generator).double() * 2 - 1


def _estimate(draws: list[float], products: int) -> Estimate:
    values = torch.tensor(draws, dtype=torch.float64)
    error = float(values.std()) / math.sqrt(len(draws)) if len(draws) > 1 else math.inf
    return Estimate(float(values.mean()), error, products)
