"""Linear maps known by their action: the Jacobian of a network on data, its Gram operators, and what one asks of them.

A vector of weight space is `weights.flat()`; a vector of outputs has one row for every output of every example.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.func import jvp

from weightspace import estimators
from weightspace.differentiable import called, custom_functions, told
from weightspace.digest import form
from weightspace.estimators import Bracket, Cost, Estimate, Krylov, OperatorError, lanczos
from weightspace.net import Net, math_attention
from weightspace.public import public
from weightspace.task import Task, TaskError, carried, counted, logits

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "Estimate",
    "Krylov",
    "Linearised",
    "Operator",
    "OperatorError",
    "cgls",
    "jacobian",
    "lanczos",
    "tangent",
    "trusted",
]

Action = Callable[[Tensor], Tensor]

_LARGEST_DENSE = 1 << 26
_HELD = 1 << 13  # outputs of a task whose graphs are kept
_AGREE = 10.0  # square roots of rounding, relative, by which a product and its transpose may differ


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

    def trace(self, samples: int = 32, seed: int = 0, method: str = "hutch++") -> Estimate:
        """tr A from so many products: "hutchinson", "hutch++" or "xtrace", as `estimators.trace` tells."""
        self._square()
        return estimators.trace(self, method, samples, seed)

    def diagonal(self, samples: int | None = None, seed: int = 0) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """diag A and the standard error of every entry: zero where A knows it and no number of `samples` is asked for.

        Else E z * A z over signs z, of 32 samples.
        """
        self._square()
        if samples is None and self._exact is not None:
            exact = self.exact_diagonal()
            return exact, torch.zeros_like(exact)
        return estimators.diagonal(self, 32 if samples is None else samples, seed)

    def exact_diagonal(self) -> Float[Tensor, " n"]:
        """diag A. Raises `OperatorError` where A does not know it."""
        if self._exact is None:
            raise OperatorError("this operator does not know its diagonal; estimate it with diagonal(samples)")
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
        return estimators.eigenvalues(self, k, seed, dtype, tolerance, min(n, steps or 10 * k + 100))

    def logdet(
        self, scale: float = 1.0, samples: int = 6, steps: int = 30, seed: int = 0, *, rank: int | None = None
    ) -> Estimate:
        """log det(I + A / scale) of a positive semidefinite A: Lanczos quadrature behind a Nystrom preconditioner.

        Of `rank` min(256, n / 4); where n products would be no more, exact. As `estimators.logdet` tells.
        """
        self._symmetric()
        return estimators.logdet(self, scale, rank, samples, steps, seed)[0]

    def bracket(
        self,
        scale: float = 1.0,
        parts: Iterable[Tensor] = (),
        samples: int = 6,
        steps: int = 30,
        seed: int = 0,
        *,
        rank: int | None = None,
    ) -> Bracket:
        """`logdet` between its bounds: nystrom <= exact <= blocks <= diagonal, checked.

        `parts`: A's diagonal blocks, of those too large their diagonals; `curvature.blocks` gives both.
        """
        n = self._symmetric()
        estimate, part = estimators.logdet(self, scale, rank, samples, steps, seed)
        part = part or estimators.nystrom(self, max(1, min(256, n // 4)), seed)
        return estimators.bracket(estimate, part.logdet(scale), parts, scale)

    def cost(self, what: str, **how: Any) -> Cost:
        """Products and bytes of an estimate before it is made: `estimators.cost`."""
        return estimators.cost(what, self.rows, **how)

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


# ------------------------------------------------------------------ the Jacobian of a network on data


Function = Callable[[Sequence[Tensor]], Tensor]


@public
class Linearised:
    """f around a point as a linear map: J v and J^T u from one graph.

    J v is the derivative of u -> J^T u along v, and so its transpose: what a pass back leaves out, J leaves out too.
    With `forward`, or where an operation cannot be differentiated twice, it is a tangent instead. Raises
    `OperatorError` for outputs that do not depend on the point, and where torch has neither.
    """

    def __init__(self, f: Function, point: Sequence[Tensor], forward: bool = False) -> None:
        self._f, self._forward = f, forward
        self.point = [t.detach().requires_grad_() for t in point]
        with torch.enable_grad(), math_attention():
            self.outputs = f(self.point)
        if not self.outputs.requires_grad:
            raise OperatorError("the outputs do not depend on the weights")

    @cached_property
    def back(self) -> tuple[Tensor, list[Tensor | None]]:
        """u, and J^T u as a function of it; u is nowhere in particular, as some formulas divide by it."""
        drawn = torch.randn(self.outputs.shape, generator=torch.Generator().manual_seed(0))
        u = drawn.to(self.outputs).requires_grad_()
        with torch.enable_grad(), math_attention():
            return u, [*grad(self.outputs, self.point, u, create_graph=True, allow_unused=True)]

    def push(self, vector: Sequence[Tensor]) -> Tensor:
        """J v."""
        if self._forward:
            return tangent(self._f, self.point, vector)
        try:
            u, back = self.back
            used = [(b, v) for b, v in zip(back, vector, strict=True) if b is not None and b.requires_grad]
            if not used:
                return torch.zeros_like(u)
            return grad([b for b, _ in used], u, [v for _, v in used], retain_graph=True, materialize_grads=True)[0]
        except RuntimeError as error:
            self._forward = True
            try:
                return tangent(self._f, self.point, vector)
            except OperatorError:
                raise OperatorError(_missing(error)) from error

    def pull(self, u: Tensor) -> list[Tensor | None]:
        """J^T u; None where the outputs do not depend on a part of the point."""
        try:
            return [*grad(self.outputs, self.point, u, retain_graph=True, allow_unused=True)]
        except RuntimeError as error:
            raise OperatorError(_missing(error)) from error


def _missing(error: BaseException) -> str:
    return f"{told(error)}; write it by operations that have one"


@public
def tangent(f: Function, point: Sequence[Tensor], vector: Sequence[Tensor]) -> Tensor:
    """J v, forward. Raises `OperatorError` where an operation has no forward derivative."""
    with math_attention(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own forward mode raises one when first used
        try:
            found = jvp(
                lambda *w: f(w),
                tuple(t.detach() for t in point),
                tuple(v.to(t) for v, t in zip(vector, point, strict=True)),
            )
        except (RuntimeError, NotImplementedError) as error:
            raise OperatorError(_missing(error)) from error
    return found[1].detach()


_trusted: WeakKeyDictionary[nn.Module, dict[str | None, tuple[bool, bool]]] = WeakKeyDictionary()


@public
def trusted(net: Net, some: Iterable[Function], point: Sequence[Tensor], of: str | None) -> tuple[bool, bool]:
    """Whether J is the transpose of J^T where it is taken from two passes back, and where it is taken forward.

    torch's forward mode follows what is computed under no_grad, and a derivative written in Python may follow nothing.
    Tried once for every architecture and form `of` its inputs (`digest.form`), by |J^T r|^2 = <r, J J^T r>, on the
    first of `some` that can be computed: a network may not take two examples alone. Raises `OperatorError` where
    neither is.
    """
    kept = _trusted.setdefault(net.architecture, {})
    if of in kept:
        return kept[of]
    f, back = _first(some, point)
    drawn = torch.randn(back.outputs.shape, generator=torch.Generator().manual_seed(1)).to(back.outputs)
    along = [torch.zeros_like(w) if g is None else g for g, w in zip(back.pull(drawn), back.point, strict=True)]
    size = sum(float(g.double().square().sum()) for g in along)
    rounding = _AGREE * torch.finfo(back.outputs.dtype).eps ** 0.5

    def agrees(push: Callable[[], Tensor]) -> bool:
        try:
            found = float((push().double() * drawn.double()).sum())
        except (RuntimeError, OperatorError) as error:
            why.append(str(error))
            return False
        return not abs(found - size) > rounding * size

    why: list[str] = []
    verdict = agrees(lambda: back.push(along)), agrees(lambda: tangent(f, point, along))
    if not any(verdict):
        names = custom_functions(back.outputs)
        raise OperatorError(_opaque(names) if names or not why else why[0])
    if of is not None:
        kept[of] = verdict
    return verdict


def _first(some: Iterable[Function], point: Sequence[Tensor]) -> tuple[Function, Linearised]:
    *before, last = some
    for f in before:
        with contextlib.suppress(RuntimeError, TaskError):
            return f, Linearised(f, point)
    return last, Linearised(last, point)


def _opaque(names: Sequence[str]) -> str:
    return (
        f"the derivative of {', '.join(names) or 'an operation or a hook'} cannot itself be differentiated; write its "
        "backward pass by operations of torch"
    )


@public
def jacobian(net: Net, task: Task, output: Callable[[Any], Tensor] = logits) -> Operator:
    """J = d(outputs of all examples)/dw: rows are outputs example by example, columns weights.

    J and J^T are transposes of one another: what a pass back leaves out, as the row of an embedding's padding, J leaves
    out. Nothing is stored but a batch at a time, and the graphs of all where these are small. J v then costs about a
    pass forward and back, else a pass forward and its tangent; J^T u one pass forward and back. The net is in
    evaluation mode: running statistics are constants. Raises `OperatorError` for outputs that do not depend on the
    weights, and for an operation whose derivative torch has only once. Positions of a sequence that are labelled -100
    have rows of zeros.
    """
    weights, state = net.weights, dict(net.state)
    flat = weights.flat()
    batches = [*task.batches(net)]
    task.fits(net)

    def at(x: Any, y: Tensor | None) -> Function:
        def f(w: Sequence[Tensor]) -> Tensor:
            args, kwargs = ((), dict(x)) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
            out = counted(output(called(net.architecture, {**weights.shaped(w[0]), **state}, args, kwargs)), y)
            return out.reshape(len(out), -1)

        return f

    with torch.no_grad(), math_attention():
        sizes = [at(*batch)([flat]).numel() for batch in batches]
    held: dict[int, Linearised] = {}
    keep = sum(sizes) <= _HELD
    some = [at(carried(task.example(2), net), None), at(*batches[0])]
    back, forward = trusted(net, some, [flat], form(net, task.example(1)))

    def linear(k: int) -> Linearised:
        """A batch; those of a small task are kept."""
        if k in held:
            return held[k]
        found = Linearised(at(*batches[k]), [flat], not back)
        if keep:
            held[k] = found
        return found

    def push(v: Tensor) -> Tensor:
        along = [v.to(flat)]
        ahead = forward and not keep
        parts = (tangent(at(*b), [flat], along) if ahead else linear(k).push(along) for k, b in enumerate(batches))
        return torch.cat([part.flatten() for part in parts])

    def pull(u: Tensor) -> Tensor:
        def transposed(k: int, part: Tensor) -> Tensor:
            found = linear(k)
            return found.pull(part.view(found.outputs.shape))[0]  # type: ignore[return-value]

        return reduce(Tensor.add_, (transposed(k, part) for k, part in enumerate(u.to(flat).split(sizes))))

    return Operator(sum(sizes), len(flat), push, pull)
