"""Linear maps known by their action: the Jacobian of a network on data, its Gram operators, and what one asks of them.

A vector of weight space is `weights.flat()`; a vector of outputs has one row for every output of every example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weightspace.linear import determinants, krylov, traces
from weightspace.linear.estimate import Bracket, Estimate, OperatorError
from weightspace.net.cost import Cost
from weightspace.net.public import public

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Operator", "cgls"]


Action = Callable[[Tensor], Tensor]

_LARGEST_DENSE = 1 << 26


@public
class Operator:
    """A linear map R^columns -> R^rows: v -> A v and u -> A^T u, and no matrix.

    `A @ v`, `A @ B`, `A.T`, `A + B` and `2.0 * A` are operators or vectors again. A symmetric one says so and is its
    own transpose. Actions take and give vectors; `matmat` goes column by column.
    """

    __slots__ = ("_action", "_adjoint", "_exact", "_matmat", "columns", "rows", "symmetric")

    def __init__(
        self,
        rows: int,
        columns: int,
        action: Action,
        adjoint: Action | None = None,
        *,
        matmat: Action | None = None,
        exact: Callable[[], Tensor] | None = None,
    ) -> None:
        """`adjoint` is v -> A^T v; without it the operator is symmetric. `matmat` is V -> A V; `exact` gives diag A."""
        if adjoint is None and rows != columns:
            raise OperatorError(f"an operator of {rows} rows and {columns} columns is not symmetric; give its adjoint")
        self.rows, self.columns, self.symmetric = rows, columns, adjoint is None
        self._action, self._adjoint = action, adjoint or action
        self._matmat, self._exact = matmat, exact

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.rows, self.columns

    @property
    def T(self) -> Operator:
        """A^T."""
        if self.symmetric:
            return self
        return Operator(self.columns, self.rows, self._adjoint, self._action, exact=self._exact)

    def matvec(self, vector: Float[Tensor, " columns"]) -> Float[Tensor, " rows"]:
        """A v. Raises `OperatorError` for a vector of another size."""
        if vector.shape != (self.columns,):
            raise OperatorError(f"expected a vector of {self.columns} numbers, got shape {tuple(vector.shape)}")
        return self._action(vector)

    def matmat(self, matrix: Float[Tensor, "columns k"]) -> Float[Tensor, "rows k"]:
        """A V, a column at a time where the operator knows no better. Raises `OperatorError` for another size."""
        if matrix.shape[0] != self.columns:
            raise OperatorError(f"expected columns of {self.columns} numbers, got shape {tuple(matrix.shape)}")
        if self._matmat is not None and matrix.shape[1]:
            return self._matmat(matrix)
        return torch.stack([self.matvec(column) for column in matrix.T], 1)

    def __matmul__(self, other: Tensor | Operator) -> Any:
        if isinstance(other, Operator):
            if self.columns != other.rows:
                raise OperatorError(f"cannot multiply {self.shape} with {other.shape}")
            left, right = self, other
            return Operator(
                left.rows, right.columns, lambda v: left @ (right @ v), lambda v: right.T @ (left.T @ v)
            )  # fmt: skip
        return self.matvec(other) if other.ndim == 1 else self.matmat(other)

    def __add__(self, other: Operator) -> Operator:
        if self.shape != other.shape:
            raise OperatorError(f"cannot add {self.shape} and {other.shape}")
        both = self.symmetric and other.symmetric
        adjoint = None if both else lambda v: self.T @ v + other.T @ v
        mine, its = self._exact, other._exact
        exact = None if mine is None or its is None else lambda: mine() + its()

        def total(v: Tensor) -> Tensor:
            return self @ v + other @ v

        return Operator(*self.shape, total, adjoint, matmat=total, exact=exact)

    def __rmul__(self, scalar: float) -> Operator:
        adjoint = None if self.symmetric else lambda v: scalar * (self.T @ v)
        mine = self._exact
        exact = None if mine is None else lambda: scalar * mine()

        def scaled(v: Tensor) -> Tensor:
            return scalar * (self @ v)

        return Operator(*self.shape, scaled, adjoint, matmat=scaled, exact=exact)

    def gram(self) -> Operator:
        """A^T A."""
        return Operator(self.columns, self.columns, lambda v: self.T @ (self @ v))

    def dense(self, dtype: torch.dtype = torch.float64) -> Float[Tensor, "rows columns"]:
        """The matrix. Raises `OperatorError` for one that is not small."""
        if self.rows * self.columns > _LARGEST_DENSE:
            raise OperatorError(f"{self.rows} x {self.columns} is too large to be written out")
        return self.matmat(torch.eye(self.columns, dtype=dtype))

    @public(renamed={"samples": "probes"})
    def trace(self, probes: int = 32, seed: int = 0, method: str = "hutch++") -> Estimate:
        """tr A from so many products: "hutchinson", "hutch++" or "xtrace", as `estimators.trace` tells."""
        self._square()
        return traces.trace(self, method, probes, seed)

    @public(renamed={"samples": "probes"})
    def diagonal(self, probes: int | None = None, seed: int = 0) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """diag A and the standard error of every entry: zero where A knows it and no number of `probes` is asked for.

        Else E z * A z over signs z, of 32 probes.
        """
        self._square()
        if probes is None and self._exact is not None:
            exact = self.exact_diagonal()
            return exact, torch.zeros_like(exact)
        return traces.diagonal(self, 32 if probes is None else probes, seed)

    def exact_diagonal(self) -> Float[Tensor, " n"]:
        """diag A. Raises `OperatorError` where A does not know it."""
        if self._exact is None:
            raise OperatorError("this operator does not know its diagonal; estimate it with diagonal(probes)")
        return self._exact()

    def eigenvalues(
        self,
        k: int = 10,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        *,
        tolerance: float = 1e-6,
        steps: int | None = None,
    ) -> Float[Tensor, " k"]:
        """The k largest eigenvalues of a symmetric A: Lanczos, until their residuals are `tolerance` times the largest.

        Each is listed as often as it occurs: other starts are tried until one finds no more. `steps` (10 k + 100)
        products are for the first start and as many for the others, in `dtype`; where they do not suffice, values are
        too small, and those of a repeated one may be missing.
        """
        n = self._symmetric()
        return krylov.eigenvalues(self, k, seed, dtype, tolerance, min(n, steps or 10 * k + 100))

    @public(renamed={"samples": "probes"})
    def logdet(
        self, scale: float = 1.0, probes: int = 6, steps: int = 30, seed: int = 0, *, rank: int | None = None
    ) -> Estimate:
        """log det(I + A / scale) of a positive semidefinite A: Lanczos quadrature behind a Nystrom preconditioner.

        Of `rank` min(256, n / 4); where n products would be no more, exact. As `estimators.logdet` tells.
        """
        self._symmetric()
        return determinants.logdet(self, scale, rank, probes, steps, seed)[0]

    @public(renamed={"samples": "probes"})
    def bracket(
        self,
        scale: float = 1.0,
        parts: Iterable[Tensor] = (),
        probes: int = 6,
        steps: int = 30,
        seed: int = 0,
        *,
        rank: int | None = None,
    ) -> Bracket:
        """`logdet` between its bounds: nystrom <= exact <= blocks <= diagonal, checked.

        `parts`: A's diagonal blocks, of those too large their diagonals; `curvature.blocks` gives both.
        """
        n = self._symmetric()
        estimate, part = determinants.logdet(self, scale, rank, probes, steps, seed)
        part = part or determinants.nystrom(self, max(1, min(256, n // 4)), seed)
        return determinants.bracket(estimate, part.logdet(scale), parts, scale)

    def cost(self, what: str, **how: Any) -> Cost:
        """Products and bytes of an estimate before it is made: `determinants.cost`."""
        return determinants.cost(what, self.rows, **how)

    def solve(self, vector: Tensor, shift: float = 0.0, tolerance: float = 1e-6, steps: int = 200) -> Tensor:
        """x with (A + shift) x = v for a positive semidefinite A, by conjugate gradients."""
        self._symmetric()
        x, r = torch.zeros_like(vector), vector.clone()
        p, size = r.clone(), float(r @ r)
        goal = tolerance**2 * size
        for _ in range(steps):
            if size <= goal:
                break
            q = self @ p + shift * p
            curvature = float(p @ q)
            if not curvature > 0:
                raise OperatorError(f"conjugate gradients met curvature {curvature:.1e}; the operator is not positive")
            x, r = x + size / curvature * p, r - size / curvature * q
            size, before = float(r @ r), size
            p = r + size / before * p
        return x

    def _square(self) -> int:
        if self.rows != self.columns:
            raise OperatorError(f"{self.rows} rows and {self.columns} columns: only a square operator has this")
        return self.rows

    def _symmetric(self) -> int:
        if not self.symmetric:
            raise OperatorError("this needs a symmetric operator; take A.gram()")
        return self.rows


@public
def cgls(
    operator: Operator, target: Tensor, shift: float = 0.0, steps: int = 20, tolerance: float = 1e-6
) -> Float[Tensor, " columns"]:
    """argmin |A x - b|^2 + shift |x|^2 by conjugate gradients on the normal equations; the least norm for shift 0."""
    r, s = target, operator.T @ target
    x, p = torch.zeros_like(s), s
    size = first = float(s @ s)
    for _ in range(steps):
        if size <= tolerance**2 * first or size == 0:
            break
        q = operator @ p
        alpha = size / (float(q @ q) + shift * float(p @ p))
        x, r = x + alpha * p, r - alpha * q
        s = operator.T @ r - shift * x
        size, before = float(s @ s), size
        p = s + size / before * p
    return x
