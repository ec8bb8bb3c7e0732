"""The Lanczos method: the largest eigenvalues of a symmetric matrix from matrix-vector products, with multiplicity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightspace.linear.estimate import Linear, OperatorError, times
from weightspace.net.public import public

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Krylov", "eigenvalues", "lanczos"]

_INVARIANT = 1e-6  # a residual of this size, relative to the eigenvalues, is taken for zero
_KEPT = 0.7  # an orthogonalisation that leaves this share of a vector's norm is not repeated
_SOME = 10  # steps of a Krylov space before its largest eigenvalue says anything


# ------------------------------------------------------------------ Krylov spaces


@public
@dataclass(frozen=True)
class Krylov:
    """A Krylov space of a symmetric A: an orthonormal basis, and A restricted to it.

    `basis` holds the orthonormal vectors as rows Q, `matrix` is Q A Q^T (tridiagonal), `size` the norm of the start
    vector, and `rest` the norm of the residual of the last vector: 0 where the space is invariant under A.
    """

    basis: Float[Tensor, "k n"]
    matrix: Float[Tensor, "k k"]
    size: float
    rest: float = 0.0


@public
def lanczos(a: Linear, start: Tensor, steps: int, tolerance: float = 0.0, wanted: int = 0) -> Krylov:
    """The Krylov space of a symmetric A and a start vector, of at most `steps` dimensions, fully reorthogonalised.

    It ends early where it is invariant under A; with `wanted`, also where the residuals of the `wanted` largest
    eigenvalues are below `tolerance` times the largest. The basis has the dtype of `start`. Raises `OperatorError` for
    a start of norm zero, and for NaN or infinity in a product.

    >>> import torch
    >>> import weightspace as ws
    >>> a = ws.Operator(3, 3, lambda v: torch.tensor([1.0, 2.0, 3.0]) * v)
    >>> found = ws.linear.lanczos(a, torch.ones(3), steps=3)
    >>> torch.linalg.eigvalsh(found.matrix).round(decimals=3)
    tensor([1., 2., 3.], dtype=torch.float64)
    """
    size = float(torch.linalg.vector_norm(start, dtype=torch.float64))
    if not 0 < size < math.inf:
        raise OperatorError(f"a Krylov space cannot start from a vector of norm {size}")
    space = torch.empty(min(steps, len(start)), len(start), dtype=start.dtype, device=start.device)
    space[0] = start / size
    matrix = torch.zeros(len(space), len(space), dtype=torch.float64)
    scale, rest, k = 0.0, 0.0, 0
    for k in range(len(space)):
        w = times(a, space[k])
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
    """w projected onto the orthogonal complement of orthonormal rows, and the norm of the result.

    The last two rows go first, as they hold nearly all of the part to remove in a Krylov space; then all rows; and all
    rows again where that removed much, since what one pass leaves behind is rounding relative to what it removed.
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
    """The k largest eigenvalues of a symmetric A, with multiplicity, in descending order; each is a lower bound.

    A Krylov space from one start vector holds only one eigenvector of a repeated eigenvalue. So one space is grown
    until k eigenvalues have converged (residuals below `tolerance` times the largest), their eigenvectors are kept, the
    next space is grown from a start orthogonal to them, and so on, until a space holds no eigenvalue above the k-th.
    `steps` products are for the first space and as many for all others; `dtype` is that of the vectors.

    >>> import torch
    >>> import weightspace as ws
    >>> a = ws.Operator(4, 4, lambda v: torch.tensor([3.0, 3.0, 2.0, 1.0]) * v)
    >>> ws.linear.eigenvalues(a, 2, seed=0, dtype=torch.float64, tolerance=1e-6, steps=50).round(decimals=3)
    tensor([3., 3.], dtype=torch.float64)
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
    """A sum of Krylov spaces: orthonormal rows, A restricted to them, and residual norms.

    `ends`: number of a row -> the norm of the part of A times this row that lies outside of the space. Those rows are
    the last one of each start, and all that were kept.
    """

    space: Tensor
    matrix: Tensor
    size: int
    ends: dict[int, float]

    @classmethod
    def begin(cls, n: int, most: int, dtype: torch.dtype) -> _Grown:
        """An empty space with memory for `most` rows."""
        return cls(torch.empty(most, n, dtype=dtype), torch.zeros(most, most, dtype=torch.float64), 0, {})

    def values(self, k: int) -> Tensor:
        """The k largest eigenvalues, in ascending order."""
        return torch.linalg.eigvalsh(self.matrix[: self.size, : self.size])[-k:]

    def keep(self, k: int, tolerance: float) -> None:
        """Keep only the converged eigenvectors of the k largest eigenvalues: others would hide their multiplicity."""
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
        """Residual norms |A y - theta y| of Ritz vectors y."""
        return torch.stack([rest * vectors[at] for at, rest in self.ends.items()]).norm(dim=0)

    def grow(self, a: Linear, start: Tensor, most: int, k: int, tolerance: float, known: float) -> bool:
        """Add the Krylov space of a start, until the k largest eigenvalues converge; whether one exceeds `known`."""
        first, (w, rest) = self.size, _orthogonal(start, self.space[: self.size])
        most = min(first + most, len(self.space))
        before = float(torch.linalg.vector_norm(start, dtype=torch.float64))
        while rest > _INVARIANT * before and self.size < most:
            at, self.size = self.size, self.size + 1
            self.space[at] = w / rest
            w = times(a, self.space[at])
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
        """Whether the k largest eigenvalues have converged, and those of the last start that could be among them."""
        if self.size < k:
            return False
        values, vectors = torch.linalg.eigh(self.matrix[: self.size, : self.size])
        away = self._away(vectors[:, -k:])
        if not bool((away <= tolerance * values.abs().max()).all()):
            return False
        return not first or self._largest_is_known(first, tolerance, known, float(values.abs().max()))

    def _largest_is_known(self, first: int, tolerance: float, known: float, scale: float) -> bool:
        """Whether the largest eigenvalue in the space of the last start has converged, or is bounded by `known`.

        The bound holds with probability 0.999 over random starts (Kuczynski, Wozniakowski, Estimating the largest
        eigenvalue by the power and Lanczos algorithms with a random start, 1992).
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
