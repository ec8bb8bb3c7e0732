"""Estimates with standard errors and costs, and the protocol of a square matrix given by its products with vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public
from weightspace.net.weights import finite

__all__ = ["Bracket", "Estimate", "Linear", "OperatorError"]


class OperatorError(WeightspaceError):
    """A vector of the wrong size, an operator that a method cannot work with, or NaN or infinity in a product."""


@public
@dataclass(frozen=True)
class Estimate:
    """An estimated number: its value, its standard error, and the number of matrix-vector products that it took.

    >>> import weightspace as ws
    >>> ws.linear.Estimate(value=2.5, error=0.1, products=30)
    Estimate(value=2.5, error=0.1, products=30)
    """

    value: float
    error: float
    products: int


@public
@dataclass(frozen=True)
class Bracket:
    """Bounds of log det(I + A / scale): nystrom <= exact <= blocks <= diagonal; None for a bound not asked for.

    `nystrom` is the value for a Nystrom approximation of A, `blocks` for A's diagonal blocks alone (Fischer's
    inequality), `diagonal` for A's diagonal alone (Hadamard's inequality).

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.gauss_newton(net, task.take(2)).bracket(scale=1.0)
    >>> found.nystrom <= found.estimate.value + 1e-6, found.blocks
    (True, None)
    """

    nystrom: float
    estimate: Estimate
    blocks: float | None = None
    diagonal: float | None = None


@runtime_checkable
class Linear(Protocol):
    """A square matrix that can be multiplied with a vector or with the columns of a matrix: `Operator` is one."""

    @property
    def rows(self) -> int:
        """The number of rows, and of columns."""
        ...

    def __matmul__(self, other: Any) -> Any: ...


def times(a: Linear, v: Tensor) -> Tensor:
    """A v in the dtype of v. Raises `OperatorError` where it holds NaN or infinity."""
    found = (a @ v).to(v)
    if not finite(found):
        raise OperatorError("the operator gave NaN or infinity; look for it in the data and the weights")
    return found


# ------------------------------------------------------------------ random vectors


def gaussian(n: int, k: int, seed: int) -> Tensor:
    """k random vectors of n standard normal numbers, as columns, in float64."""
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def signs(n: int, probes: int, seed: int) -> Iterator[Tensor]:
    """Random vectors of n entries +1 or -1 (Rademacher vectors), in float64."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(probes):
        yield torch.randint(0, 2, (n,), generator=generator).double() * 2 - 1


def estimated(draws: list[float], products: int) -> Estimate:
    """The mean of independent draws with its standard error; infinite for one draw."""
    values = torch.tensor(draws, dtype=torch.float64)
    error = float(values.std()) / math.sqrt(len(draws)) if len(draws) > 1 else math.inf
    return Estimate(float(values.mean()), error, products)
