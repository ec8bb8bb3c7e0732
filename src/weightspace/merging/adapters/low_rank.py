"""Matrices of low rank in factors, L R: their sums, products, norms and truncations, never as dense matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightspace.net.errors import WeightspaceError

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["LowRank", "stacked", "tied"]

_ZERO = 1e-12  # singular values below this share of the largest are rounding


@dataclass(frozen=True)
class LowRank:
    """The matrix L R of shape (m, n), of its factors in float64; (L M^-1)(M R) is the same one for any invertible M."""

    left: Float[Tensor, "m r"]
    right: Float[Tensor, "r n"]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m, n) of the product."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """The rank of the factors; that of the product may be lower."""
        return self.left.shape[1]

    def dense(self) -> Float[Tensor, "m n"]:
        """The product."""
        return self.left @ self.right

    def inner(self, other: LowRank) -> float:
        """<L R, L' R'> = sum (L^T L') * (R R'^T)."""
        return float(((self.left.mT @ other.left) * (self.right @ other.right.mT)).sum())

    def norm(self) -> float:
        """The Frobenius norm, from the triangular factors of both sides."""
        return float(self._core()[1].norm())

    def values(self) -> Float[Tensor, " r"]:
        """The singular values, at most min(m, n, r)."""
        return torch.linalg.svdvals(self._core()[1])

    def cut(self, rank: int) -> tuple[LowRank, float]:
        """The nearest matrix of at most this rank, in balanced factors, and |difference| / |matrix|.

        From Q S Q'^T with the orthogonal factors of both sides and the SVD of the small S (Eckart and Young, 1936).
        """
        if rank < 1:
            raise WeightspaceError(f"a rank of {rank}; give 1 or more")
        outer, core, inner = self._core()
        u, s, v = torch.linalg.svd(core, full_matrices=False)
        kept = min(rank, len(s))
        size, lost = float(s.norm()), float(s[kept:].norm())
        root = s[:kept].sqrt()
        found = LowRank(outer @ u[:, :kept] * root, root[:, None] * (v[:kept] @ inner.mT))
        return found, lost / size if size else 0.0

    def _core(self) -> tuple[Tensor, Tensor, Tensor]:
        """Orthogonal Q, Q' and a small S with L R = Q S Q'^T."""
        outer, upper = torch.linalg.qr(self.left)
        inner, lower = torch.linalg.qr(self.right.mT)
        return outer, upper @ lower.mT, inner


def stacked(parts: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """sum_i w_i L_i R_i, in factors whose rank is the sum of the ranks."""
    left = torch.cat([weight * part.left for part, weight in zip(parts, weights, strict=True)], 1)
    return LowRank(left, torch.cat([part.right for part in parts]))


def tied(parts: Sequence[LowRank]) -> tuple[Float[Tensor, "m k"], list[Float[Tensor, "k n"]]]:
    """U S and V_1 .. V_p with L_i R_i = U S V_i, from the SVD of all matrices side by side.

    Directions whose singular value is rounding are left out. Source: Stoica, Ramesh, Ecsedi, Choshen and Hoffman, Model
    merging with SVD to tie the knots, 2025.
    """
    basis, upper = torch.linalg.qr(torch.cat([part.left for part in parts], 1))
    columns, small, start = [], [], 0
    for part in parts:
        q, lower = torch.linalg.qr(part.right.mT)
        small.append(upper[:, start : start + part.rank] @ lower.mT)
        columns.append(q)
        start += part.rank
    u, s, v = torch.linalg.svd(torch.cat(small, 1), full_matrices=False)
    kept = max(1, int((s > _ZERO * s[0]).sum()))
    rights, start = [], 0
    for q in columns:
        rights.append(v[:kept, start : start + q.shape[1]] @ q.mT)
        start += q.shape[1]
    return basis @ u[:, :kept] * s[:kept], rights
