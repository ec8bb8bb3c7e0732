"""An estimate with its standard error and its cost, and a square matrix known by its products."""

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
    """A vector of the wrong size, an operator that is not what a method needs, or numbers that are not finite."""


@public
@dataclass(frozen=True)
class Estimate:
    """A number known up to `error` (its standard error), and how many products it cost."""

    value: float
    error: float
    products: int


@public
@dataclass(frozen=True)
class Bracket:
    """log det(I + A / scale) in its bounds: nystrom <= exact <= blocks <= diagonal; None for a bound not asked for.

    `nystrom` is that of a part of A, `blocks` of A without what lies between tensors (Fischer's inequality), `diagonal`
    of A without what lies between entries (Hadamard's).
    """

    nystrom: float
    estimate: Estimate
    blocks: float | None = None
    diagonal: float | None = None


@runtime_checkable
class Linear(Protocol):
    """A square matrix that can be multiplied with a vector or a matrix of columns."""

    @property
    def rows(self) -> int:
        """n."""
        ...

    def __matmul__(self, other: Any) -> Any: ...


def times(a: Linear, v: Tensor) -> Tensor:
    found = (a @ v).to(v)
    if not finite(found):
        raise OperatorError("the operator gave NaN or infinity; look for it in the data and the weights")
    return found


# ------------------------------------------------------------------ random vectors


def gaussian(n: int, k: int, seed: int) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def signs(n: int, samples: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(samples):
        yield torch.randint(0, 2, (n,), generator=generator).double() * 2 - 1


def estimated(draws: list[float], products: int) -> Estimate:
    values = torch.tensor(draws, dtype=torch.float64)
    error = float(values.std()) / math.sqrt(len(draws)) if len(draws) > 1 else math.inf
    return Estimate(float(values.mean()), error, products)
