"""Matrices that act on axes: applied to blocks of tensors, inverted, and drawn at random."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

    from weightspace.symmetry.axis import Generator

__all__ = ["complement", "drawn", "best_turn", "inverse", "on_all", "polar", "root", "rotations", "turn_value",
           "turned"]  # fmt: skip


_SPREAD = 0.5  # of the logarithm of a drawn matrix: its condition number stays below about e^2


def turned(value: Tensor, turns: Iterable[tuple[Tensor, float, list[int]]]) -> Tensor:
    """A block with matrices M applied to some of its dimensions.

    A turn is (M, exponent, dimensions): M has the shape (outer.., n, n) and acts on the last of the dimensions, which
    are (outer.., own); with exponent -1 it is M^-T. Computed in float32 or wider.
    """
    out = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    for matrix, exponent, dims in turns:
        acting = (matrix if exponent > 0 else inverse(matrix).mT).to(out)
        order = [*dims, *(d for d in range(out.dim()) if d not in dims)]
        lead = out.permute(order)
        moved = acting @ lead.reshape(*lead.shape[: len(dims)], -1)
        out = moved.reshape(lead.shape).permute([order.index(d) for d in range(out.dim())])
    return out.to(value)


def inverse(matrix: Tensor) -> Tensor:
    """M^-1, in float64."""
    return torch.linalg.inv(matrix.double())


def polar(matrix: Tensor) -> Tensor:
    """The orthogonal matrix nearest M, which maximises <Q, M>: U V^T for M = U diag(s) V^T, in float64."""
    u, _, v = torch.linalg.svd(matrix.double())
    return u @ v


def rotations(angles: Tensor) -> Tensor:
    """The rotations [[cos t, -sin t], [sin t, cos t]] of a plane, of shape (.., 2, 2), in float64."""
    c, s = angles.double().cos(), angles.double().sin()
    return torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)


def _along(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The inner products of 2 x 2 matrices with the identity and with a quarter turn: <R_t, G> = a cos t + b sin t."""
    g = gram.double()
    return g[..., 0, 0] + g[..., 1, 1], g[..., 1, 0] - g[..., 0, 1]


def best_turn(gram: Tensor, moves: Generator) -> Tensor:
    """The orthogonal matrices Q of these moves that maximise <Q, G>, one for every matrix of a batch."""
    if moves.proper:
        a, b = _along(gram)
        return rotations(torch.atan2(b, a))
    if not moves.ones:
        return polar(gram)
    h = complement(gram.shape[-1])
    return on_all(polar(h.T @ gram.double() @ h), h)


def turn_value(gram: Tensor, moves: Generator) -> Tensor:
    """max_Q <Q, G> for every matrix of a batch: the sum of the singular values, or (a^2 + b^2)^1/2 in a plane."""
    if moves.proper:
        return torch.hypot(*_along(gram))
    if not moves.ones:
        return torch.linalg.svdvals(gram.double()).sum(-1)
    h = complement(gram.shape[-1])
    return torch.linalg.svdvals(h.T @ gram.double() @ h).sum(-1) + gram.double().sum((-1, -2)) / gram.shape[-1]


def root(matrix: Tensor, power: float) -> Tensor:
    """A power of symmetric positive definite matrices, by their eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix.double())
    return (vectors * values.clamp_min(1e-300)[..., None, :] ** power) @ vectors.mT


def complement(n: int) -> Float[Tensor, "n less"]:
    """An orthonormal basis of the vectors of n numbers whose sum is zero, as columns."""
    columns = torch.cat([torch.ones(n, 1, dtype=torch.float64), torch.eye(n, n - 1, dtype=torch.float64)], 1)
    return torch.linalg.qr(columns).Q[:, 1:]


def on_all(small: Tensor, h: Tensor) -> Tensor:
    """H O H^T + 1 1^T / n for O on the vectors whose sum is zero, H = `complement(n)`: the vector of ones stays."""
    return h @ small @ h.T + 1 / len(h)


def drawn(moves: Generator, sizes: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random matrices of the kind of these moves, one for every outer index: (outer.., n, n).

    Orthogonal ones are uniform; general linear ones are an orthogonal matrix times exp(G), G Gaussian of size 1/2, so
    that they are well conditioned.
    """
    if moves.proper:
        return rotations(2 * torch.pi * torch.rand(sizes[:-1], generator=generator, dtype=torch.float64))
    n = sizes[-1] - moves.ones
    noise = torch.randn(*sizes[:-1], n, n, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(noise)
    matrix = q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    if moves.kind == "linear":
        noise = torch.randn(*sizes[:-1], n, n, generator=generator, dtype=torch.float64)
        matrix = matrix @ torch.linalg.matrix_exp(_SPREAD / 2 / n**0.5 * noise)
    return on_all(matrix, complement(sizes[-1])) if moves.ones else matrix
