"""How the pullback metric is solved: roots of the Fisher information, eigenvectors of the dual, a Krylov space."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from weightspace.linear.krylov import lanczos
from weightspace.linear.operator import Operator
from weightspace.metric.steps import Modes
from weightspace.net.errors import WeightspaceError

__all__ = ["NULL", "Dual", "eigen_modes", "factorised", "krylov_modes", "softmax_root", "turning"]

NULL = 1e-7
_SMALL, _ROUNDING = 1e-3, 1e-9  # shares of |g|^2


class Dual(NamedTuple):
    """The eigenvalues and eigenvectors of K = A A^T that are not zero, and A."""

    values: Tensor
    vectors: Tensor
    factor: Operator


def softmax_root(outputs: Tensor, classes: int, kind: Literal["fisher", "hellinger"]) -> Tensor:
    """B = sqrt(p) (1 - 1 p^T) for every example and position, (examples x positions, classes, classes).

    B^T B is the Fisher information of the softmax; for "hellinger" an eighth of it.
    """
    p = outputs.double().reshape(-1, classes).softmax(-1)
    root = p.sqrt()
    mix = torch.diag_embed(root) - root[:, :, None] * p[:, None, :]
    return mix / math.sqrt(8) if kind == "hellinger" else mix


def turning(mix: Tensor | None, n: int) -> Callable[[Tensor], Tensor]:
    """The map B / sqrt(n) of flat outputs; None is the identity for B."""
    if mix is None:
        return lambda rows: rows / math.sqrt(n)
    return lambda rows: torch.einsum("nij,nj->ni", mix.to(rows), rows.view(len(mix), -1)).flatten() / math.sqrt(n)


def factorised(kernel: Tensor, mix: Tensor | None, n: int, factor: Operator) -> Dual:
    """The dual of a tangent kernel J J^T of n examples, with B on both sides. Raises `WeightspaceError` for NaN."""
    k = kernel
    if mix is not None:
        many, m = mix.shape[:2]
        k = torch.einsum("iab,ibjc,jdc->iajd", mix, k.view(many, m, many, m), mix).reshape(many * m, many * m)
    if not k.isfinite().all():
        raise WeightspaceError("the kernel holds NaN or infinity; look for it in the data and the weights")
    values, vectors = torch.linalg.eigh(k / n)
    kept = values > NULL * values[-1]
    return Dual(values[kept], vectors[:, kept], factor)


def eigen_modes(g: Tensor, dual: Dual) -> Modes:
    """Modes A^T u_i / sqrt(value_i) of a gradient, and one more: the rest of it, in the null space."""
    values, vectors, a = dual
    c = vectors.T @ (a @ g).double()
    coefficients = c / values.sqrt()
    size = float(g.double().square().sum())
    rest = max(size - float(coefficients.square().sum()), 0.0)
    alone = g if rest > _SMALL * size else _null_part(g, dual)
    if alone is not g:  # the rest is small; as a difference of large vectors it would be rounding
        left = float(alone.double().square().sum())
        alone, rest = (alone, left) if left > _ROUNDING * size else (torch.zeros_like(g), 0.0)

    def assemble(f: Tensor) -> Tensor:
        inside = vectors @ ((f[1:] - f[0] if alone is g else f[1:]) * c / values)
        return f[0] * alone + a.T @ inside.to(g)

    zero = values.new_zeros(1)
    return Modes(torch.cat([zero, values]), torch.cat([zero + math.sqrt(rest), coefficients]), assemble, True)


def _null_part(g: Tensor, dual: Dual) -> Tensor:
    """The part of g in the null space: the projection on the rows is subtracted twice, for precision."""
    values, vectors, a = dual
    for _ in range(2):
        g = g - a.T @ (vectors @ (vectors.T @ (a @ g).double() / values)).to(g)
    return g


def krylov_modes(gram: Operator, g: Tensor, steps: int) -> Modes:
    """The modes of a gradient in the Krylov space of G = A^T A that it spans, of dimension `steps`."""
    space = lanczos(gram, g, steps)
    values, vectors = torch.linalg.eigh(space.matrix)
    values = torch.where(values > NULL * values.max(), values, 0.0)
    coefficients = space.size * vectors[0]
    return Modes(values, coefficients, lambda f: space.basis.T @ (vectors @ (f * coefficients)).to(g), False)
