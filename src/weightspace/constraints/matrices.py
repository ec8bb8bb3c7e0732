"""Weights that are matrices of a kind: of low rank, as a product of two factors, and with orthonormal rows or columns.

Sources: The approximation of one matrix by another of lower rank (Eckart, Young, 1936); A generalized solution of the
orthogonal Procrustes problem (Schonemann, 1966); Cheap orthogonal constraints in neural networks (Lezcano-Casado,
Martinez-Rubio, 2019).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import scipy.linalg
import torch
from torch import Tensor

from weightspace.constraints.form import Kind, unfolded, whole
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public

__all__ = ["LowRank", "Orthogonal"]


@public(grad=False)
@dataclass(frozen=True)
class LowRank(Kind):
    """A weight of rank `rank` at most, W = A B with A of (rows, rank) and B of (rank, columns); a kernel is unfolded.

    The nearest keeps the largest singular values, shared out evenly: A = U sqrt(S), B = sqrt(S) V^T. GL(rank) moves the
    factors and leaves W alone; `Symmetry.of` finds it. Text: "low-rank:4".

    >>> import torch
    >>> import weightspace as ws
    >>> ws.constraints.LowRank(1).nearest(torch.diag(torch.tensor([3.0, 1.0])))
    tensor([[3., 0.],
            [0., 0.]])
    """

    rank: int

    def __post_init__(self) -> None:
        whole(self.rank, "a rank")

    def __str__(self) -> str:
        return f"low-rank:{self.rank}"

    def check(self, shape: tuple[int, ...], name: str = "the weight") -> None:
        """Raise `WeightspaceError` where a weight of that shape cannot have this form."""
        rows, columns = unfolded(shape, name, "a product of two factors")
        if self.rank > min(rows, columns):
            raise WeightspaceError(
                f"{name} is {rows} x {columns}, so that its rank is at most {min(rows, columns)}, not {self.rank}; "
                "give a smaller rank"
            )

    def size(self, shape: tuple[int, ...]) -> int:
        """The number of free parameters, (rows + columns) x rank."""
        self.check(shape)
        return (shape[0] + math.prod(shape[1:])) * self.rank

    def weight(self, free: tuple[Tensor, ...], shape: tuple[int, ...], constants: Mapping[str, Tensor]) -> Tensor:
        """A B."""
        return (free[0] @ free[1]).view(shape)

    def solved(self, weight: Tensor, constants: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The factors of the nearest weight, by a singular value decomposition."""
        u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        root = s[: self.rank].sqrt()
        return u[:, : self.rank] * root, root[:, None] * v[: self.rank]


@public(grad=False)
@dataclass(frozen=True)
class Orthogonal(Kind):
    """A weight with orthonormal columns (or rows, where there are fewer): W = exp(A) D, A antisymmetric.

    The entries of A above the diagonal are free: n (n - 1) / 2 for the longer side n. A square weight has det W = 1 or
    -1, which no path of orthogonal weights changes: D = diag(1, .., 1, +-1) is kept beside the parameters, as a buffer.
    On a line between networks of opposite signs the buffer is mixed too: its last column shrinks through zero. A weight
    that is not square takes the first columns, and its parameters are more than its dimensions. The nearest is the
    polar factor U V^T of W = U S V^T. A kernel is unfolded. Text: "orthogonal".

    >>> import torch
    >>> import weightspace as ws
    >>> kind = ws.constraints.Orthogonal()
    >>> near = kind.nearest(torch.randn(4, 3))
    >>> bool((near.T @ near - torch.eye(3)).abs().max() < 1e-6)
    True
    >>> kind.size((4, 4))
    6
    """

    text: ClassVar[str] = "orthogonal"

    def check(self, shape: tuple[int, ...], name: str = "the weight") -> None:
        """Raise `WeightspaceError` where a weight of that shape cannot have this form."""
        if max(unfolded(shape, name, "an orthogonal weight")) < 2:
            raise WeightspaceError(f"{name} is a single number, and an orthogonal one is 1 or -1; leave it out")

    def size(self, shape: tuple[int, ...]) -> int:
        """The number of free parameters, n (n - 1) / 2 for the longer side n."""
        self.check(shape)
        side = max(shape[0], math.prod(shape[1:]))
        return side * (side - 1) // 2

    def constants(self, shape: tuple[int, ...], name: str) -> dict[str, Tensor]:
        """Where the free entries lie in A."""
        side = max(shape[0], math.prod(shape[1:]))
        row, column = torch.triu_indices(side, side, 1)
        return {"where": row * side + column}

    def weight(self, free: tuple[Tensor, ...], shape: tuple[int, ...], constants: Mapping[str, Tensor]) -> Tensor:
        """exp(A) D, its first columns or rows."""
        rows, columns = shape[0], math.prod(shape[1:])
        side = max(rows, columns)
        angles = free[0].float() if free[0].dtype.itemsize < 4 else free[0]
        upper = angles.new_zeros(side * side).scatter(0, constants["where"], angles).view(side, side)
        turned = torch.matrix_exp(upper - upper.mT)
        if rows == columns:
            sign = constants["orientation"].to(turned)
            turned = torch.cat([turned[:, :-1], turned[:, -1:] * sign], 1)
        found = turned[:, :columns] if rows >= columns else turned[:, :rows].mT
        return found.reshape(shape).to(free[0].dtype)

    def solved(self, weight: Tensor, constants: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The angles of the polar factor."""
        return (logarithm(_rotation(weight)[0]).reshape(-1)[constants["where"]],)

    def state(self, weight: Tensor) -> dict[str, Tensor]:
        """The determinant of the nearest square weight, 1 or -1."""
        square = weight.flatten(1).shape[0] == weight.flatten(1).shape[1]
        return {"orientation": _rotation(weight)[1]} if square else {}


def _rotation(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The rotation whose first columns (or rows) are the polar factor, up to the sign of the last; and that sign."""
    flat = weight.flatten(1)
    tall = flat if flat.shape[0] >= flat.shape[1] else flat.mT
    u, _, v = torch.linalg.svd(tall, full_matrices=True)
    columns = tall.shape[1]
    found = torch.cat([u[:, :columns] @ v, u[:, columns:]], 1)
    sign = torch.linalg.slogdet(found)[0].sign()
    return torch.cat([found[:, :-1], found[:, -1:] * sign], 1), sign


def logarithm(rotation: Tensor) -> Tensor:
    """The antisymmetric A of least norm with exp(A) = Q, for an orthogonal Q with determinant one.

    By the real Schur form Q = V T V^T, whose blocks are rotations of planes; half turns come in pairs of -1.
    """
    blocks, basis = scipy.linalg.schur(rotation.double().numpy(force=True), output="real")
    angles = torch.zeros(rotation.shape, dtype=torch.float64)
    k, half, size = 0, [], len(blocks)
    while k < size:
        if k + 1 < size and abs(blocks[k + 1, k]) > 1e-12:
            angle = math.atan2(blocks[k + 1, k] - blocks[k, k + 1], blocks[k, k] + blocks[k + 1, k + 1])
            angles[k + 1, k], angles[k, k + 1] = angle, -angle
            k += 2
        else:
            half += [k] if blocks[k, k] < 0 else []
            k += 1
    for one, other in zip(half[::2], half[1::2], strict=True):
        angles[other, one], angles[one, other] = math.pi, -math.pi
    turn = torch.from_numpy(basis)
    return (turn @ angles @ turn.T).to(rotation)
