"""Lanczos: eigenvalues of a symmetric matrix from products alone, multiplicities included."""

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

_INVARIANT = 1e-6
_KEPT = 0.7  # of a vector, by an orthogonalisation that need not be made again
_SOME = 10  # steps of a Krylov space before it tells anything


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
