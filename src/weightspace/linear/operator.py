"""Operators: linear maps given by their matrix-vector products, such as the Jacobian of a network on data.

A vector of weight space is `weights.flat()`; a vector of outputs has one entry for every output of every example.
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

_LARGEST_DENSE = 1 << 26  # entries of a matrix that is written out


@public
class Operator:
    """A linear map R^columns -> R^rows given by its products v -> A v and u -> A^T u, without its matrix.

    `A @ v` is a vector; `A @ B`, `A.T`, `A + B` and `2.0 * A` are operators. A symmetric operator is its own transpose.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> a = ws.gauss_newton(net, task.take(2))
    >>> a.shape, a.symmetric, (a @ net.weights.flat()).shape
    ((1210, 1210), True, torch.Size([1210]))
    >>> a.trace(probes=30).products
    30
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
        """`action` is v -> A v, `adjoint` u -> A^T u; without an adjoint the operator is symmetric.

        `matmat` is V -> A V for a matrix of columns, by default column by column; `exact` returns diag A.
        """
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
        """A V for a matrix V. Raises `OperatorError` for another number of rows."""
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
        """The symmetric operator A^T A."""
        return Operator(self.columns, self.columns, lambda v: self.T @ (self @ v))

    def dense(self, dtype: torch.dtype = torch.float64) -> Float[Tensor, "rows columns"]:
        """The matrix of the operator. Raises `OperatorError` above 2^26 entries."""
        if self.rows * self.columns > _LARGEST_DENSE:
            raise OperatorError(f"a matrix of {self.rows} x {self.columns} is too large; use products, as A @ v")
        return self.matmat(torch.eye(self.columns, dtype=dtype))

    @public(renamed={"samples": "probes"})
    def trace(self, probes: int = 32, seed: int = 0, method: traces.Method = "hutch++") -> Estimate:
        """The trace of A, estimated from `probes` matrix-vector products: see `linear.trace` for the methods."""
        self._square()
        return traces.trace(self, method, probes, seed)

    @public(renamed={"samples": "probes"})
    def diagonal(self, probes: int | None = None, seed: int = 0) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """The diagonal of A, and the standard error of every entry.

        Without `probes`, and where the operator has an exact diagonal, that one, with errors 0. Else the mean of
        z * (A z) over `probes` (32) random sign vectors z.
        """
        self._square()
        if probes is None and self._exact is not None:
            exact = self.exact_diagonal()
            return exact, torch.zeros_like(exact)
        return traces.diagonal(self, 32 if probes is None else probes, seed)

    def exact_diagonal(self) -> Float[Tensor, " n"]:
        """The diagonal of A. Raises `OperatorError` for an operator that was made without `exact`."""
        if self._exact is None:
            raise OperatorError("this operator has no exact diagonal; estimate it with diagonal(probes)")
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
        """The k largest eigenvalues of a symmetric A, in descending order: Lanczos, to a relative `tolerance`.

        Repeated eigenvalues are listed as often as they occur: new start vectors are tried until one finds no more.
        `steps` (10 k + 100) products are for the first start and as many for all others, in `dtype`; where these are
        too few, the values are lower bounds, and repeated ones may be missing.
        """
        n = self._symmetric()
        return krylov.eigenvalues(self, k, seed, dtype, tolerance, min(n, steps or 10 * k + 100))

    @public(renamed={"samples": "probes"})
    def logdet(
        self, scale: float = 1.0, probes: int = 6, steps: int = 30, seed: int = 0, *, rank: int | None = None
    ) -> Estimate:
        """log det(I + A / scale) of a positive semidefinite A, by Lanczos quadrature with a Nystrom preconditioner.

        The preconditioner has `rank` min(256, n / 4); exact where n products cost no more. See `linear.logdet`.
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
        """`logdet` with its bounds, nystrom <= exact <= blocks <= diagonal, checked against each other.

        `parts`: A's diagonal blocks, or the diagonals of blocks that are too large; `curvature.blocks` gives both.
        """
        n = self._symmetric()
        estimate, part = determinants.logdet(self, scale, rank, probes, steps, seed)
        part = part or determinants.nystrom(self, max(1, min(256, n // 4)), seed)
        return determinants.bracket(estimate, part.logdet(scale), parts, scale)

    def cost(self, what: determinants.What, **how: Any) -> Cost:
        """The products and bytes that an estimate takes, before it is made: see `linear.cost`."""
        return determinants.cost(what, self.rows, **how)

    def solve(self, vector: Tensor, shift: float = 0.0, tolerance: float = 1e-6, steps: int = 200) -> Tensor:
        """The solution x of (A + shift I) x = v for a positive semidefinite A, by conjugate gradients.

        At most `steps` products, until the residual is below `tolerance` |v|. Raises `OperatorError` where A + shift I
        turns out not to be positive definite.
        """
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
                raise OperatorError(f"v^T A v is {curvature:.1e} for some v; the operator is not positive definite")
            x, r = x + size / curvature * p, r - size / curvature * q
            size, before = float(r @ r), size
            p = r + size / before * p
        return x

    def _square(self) -> int:
        if self.rows != self.columns:
            raise OperatorError(f"{self.rows} rows and {self.columns} columns; give a square one, such as A.gram()")
        return self.rows

    def _symmetric(self) -> int:
        if not self.symmetric:
            raise OperatorError("this needs a symmetric operator; give A.gram(), or an operator without adjoint")
        return self.rows


@public
def cgls(
    operator: Operator, target: Tensor, shift: float = 0.0, steps: int = 20, tolerance: float = 1e-6
) -> Float[Tensor, " columns"]:
    """The least-squares solution argmin_x |A x - b|^2 + shift |x|^2, by conjugate gradients on the normal equations.

    For shift 0, the solution of least norm. At most `steps` iterations, until the residual of the normal equations has
    fallen by `tolerance`.

    >>> import torch
    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> jacobian = ws.jacobian(net, task.take(2))
    >>> x = ws.linear.cgls(jacobian, torch.ones(jacobian.rows), steps=60)
    >>> bool((jacobian @ x - 1).norm() < 0.1)  # 20 outputs, 1210 weights: solved
    True
    """
    r, s = target, operator.T @ target
    x, p = torch.zeros_like(s), s
    size = first = float(s @ s)
    for _ in range(steps):
        if size <= tolerance**2 * first or size == 0:
            break
        q = operator @ p
        curvature = float(q @ q) + shift * float(p @ p)
        if not curvature:  # too small for the dtype
            break
        alpha = size / curvature
        x, r = x + alpha * p, r - alpha * q
        s = operator.T @ r - shift * x
        size, before = float(s @ s), size
        p = s + size / before * p
    return x
