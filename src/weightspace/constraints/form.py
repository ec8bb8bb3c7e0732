"""Kinds of constraints: the form that a weight keeps, and the free parameters that it is written in.

A kind is a map from free parameters to weights, W = B(theta), whose values are the weights of one form, and a nearest
point: for any W the theta with the least |B(theta) - W| in the Frobenius norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public

__all__ = ["Kind"]


@public(grad=False)
@dataclass(frozen=True)
class Kind:
    """A constraint on one weight: the form that it has, whatever its free parameters are.

    The kinds are its subclasses, such as `Circulant` and `LowRank`. `str(kind)` is the text from which it is read.

    >>> import torch
    >>> import weightspace as ws
    >>> kind = ws.constraints.LowRank(2)
    >>> str(kind), kind.size((8, 5))                                       # (8 + 5) x 2 free parameters
    ('low-rank:2', 26)
    >>> near = kind.nearest(torch.randn(8, 5))
    >>> int(torch.linalg.matrix_rank(near))
    2
    """

    text: ClassVar[str] = ""

    def check(self, shape: tuple[int, ...], name: str = "the weight") -> None:
        """Raise `WeightspaceError` where a weight of that shape cannot have this form."""
        raise NotImplementedError

    def constants(self, shape: tuple[int, ...], name: str) -> dict[str, Tensor]:
        """Tensors that are computed once for a shape, by name; `name` of the weight gives seeds of its own."""
        return {}

    def weight(self, free: tuple[Tensor, ...], shape: tuple[int, ...], constants: Mapping[str, Tensor]) -> Tensor:
        """The weight of these free parameters, differentiable."""
        raise NotImplementedError

    def solved(self, weight: Tensor, constants: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The free parameters of the nearest weight of this form, of a weight in float64."""
        raise NotImplementedError

    def state(self, weight: Tensor) -> dict[str, Tensor]:
        """What the nearest weight keeps beside its free parameters, as buffers of the network."""
        return {}

    def nearest(self, weight: Tensor, name: str = "the weight") -> Tensor:
        """The nearest weight of this form in the Frobenius norm, in the same dtype. Raises `WeightspaceError`."""
        self.check(tuple(weight.shape), name)
        usable(weight, name)
        wide = weight.detach().double()
        constants = placed(self.constants(tuple(weight.shape), name) | self.state(wide), wide)
        return self.weight(self.solved(wide, constants), tuple(weight.shape), constants).to(weight.dtype)

    def size(self, shape: tuple[int, ...]) -> int:
        """The number of free parameters of a weight of that shape. Raises `WeightspaceError` for one that does not fit.

        An orthogonal matrix that is not square, and an order by norms, have more parameters than dimensions.
        """
        self.check(shape)
        zero = torch.zeros(shape, dtype=torch.float64)
        return sum(t.numel() for t in self.solved(zero, self.constants(shape, "")))

    def __str__(self) -> str:
        return self.text


def placed(constants: Mapping[str, Tensor], like: Tensor) -> dict[str, Tensor]:
    """Constants on the device of a tensor, those with fractions in its dtype."""
    return {n: t.to(like) if t.is_floating_point() else t.to(like.device) for n, t in constants.items()}


def usable(weight: Tensor, name: str) -> None:
    """Raise `WeightspaceError` for a tensor without real numbers, or with NaN or infinity."""
    if not weight.is_floating_point():
        raise WeightspaceError(f"{name} holds {weight.dtype}; constraints are for real floating-point weights")
    if not bool(weight.isfinite().all()):
        raise WeightspaceError(f"{name} holds NaN or infinity, to which no weight is nearest; repair it first")


def matrix(shape: tuple[int, ...], name: str, what: str) -> tuple[int, int]:
    """Rows and columns of a matrix. Raises `WeightspaceError` for another shape."""
    if len(shape) != 2 or 0 in shape:
        raise WeightspaceError(f"{name} has shape {shape}, and {what} is a matrix; constrain a matrix")
    return shape[0], shape[1]


def square(shape: tuple[int, ...], name: str, what: str, instead: str = "constrain a square one") -> int:
    """The side of a square matrix. Raises `WeightspaceError` for another shape."""
    rows, columns = matrix(shape, name, what)
    if rows != columns:
        raise WeightspaceError(f"{name} is {rows} x {columns}, and {what} is square; {instead}")
    return rows


def unfolded(shape: tuple[int, ...], name: str, what: str) -> tuple[int, int]:
    """Rows, and entries of a row, of a matrix or a kernel. Raises `WeightspaceError` for less than two dimensions."""
    if len(shape) < 2 or 0 in shape:
        raise WeightspaceError(f"{name} has shape {shape}, and {what} needs rows and columns; constrain a matrix")
    return shape[0], math.prod(shape[1:])


def whole(value: object, what: str) -> int:
    """A whole number from one. Raises `WeightspaceError` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise WeightspaceError(f"{what} is a whole number from 1, got {value!r}")
    return value
