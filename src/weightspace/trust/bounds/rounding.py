"""Rounding: how far what a machine computes may be from what the formula says.

A number x is kept as x (1 + t), |t| <= u, u the unit roundoff of its dtype. A sum of n products, added up in any order,
is off by at most gamma_n times the sum of their absolute values, gamma_n = n u / (1 - n u). Products and sums of
bfloat16 and float16 are formed in float32 and rounded when they are kept. Kernels that transform before they multiply
(Winograd, FFT) have other constants and are not covered.
Source: Accuracy and stability of numerical algorithms (Higham, 2002), chapters 2 and 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch

from weightspace.net.errors import WeightspaceError

__all__ = ["Arithmetic", "BoundError", "EXACT", "gamma"]


_SINGLE, _TENSOR_FLOAT, _HALF = 2.0**-24, 2.0**-11, 2.0**-9


class BoundError(WeightspaceError):
    """A network with an operation, or with arguments of one, for which no bound is known."""


def gamma(n: float, unit: float) -> float:
    """n u / (1 - n u): the relative error of a sum of products, or infinity where nothing is known any more."""
    return n * unit / (1 - n * unit) if n * unit < 0.5 else math.inf


@dataclass(frozen=True)
class Arithmetic:
    """`unit`: roundoff of a number that is kept; `inner`: of a sum on its way; `factor`: of what is multiplied.

    `tiny`: what a number loses that is too small for the dtype; `most`: the largest number that it holds.
    """

    unit: float
    inner: float
    factor: float
    tiny: float
    most: float

    @classmethod
    def of(cls, dtype: torch.dtype, device: str = "cpu") -> Arithmetic:
        """That of a dtype on a device, with products as torch's settings have them. Raises `BoundError` for float8."""
        if dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            raise BoundError(f"no bound is known for the rounding of {dtype}; compare in float32 or bfloat16")
        return _of(dtype, _factor(device) if dtype == torch.float32 else 0.0)

    def error(self, terms: float, size: float, stores: float, kept: float, numel: int, products: bool = False) -> float:
        """Sums of `terms` terms, whose absolute values have norm `size`, in a result of norm `kept` that is rounded."""
        if not self.unit:
            return 0.0
        inner = gamma(terms, self.inner) + (gamma(2, self.factor) if products else 0.0)
        return _times(inner, size) + gamma(stores, self.unit) * kept + math.sqrt(numel) * self.tiny


EXACT = Arithmetic(0.0, 0.0, 0.0, 0.0, math.inf)


def _times(x: float, y: float) -> float:
    return x * y if x and y else 0.0


@cache
def _of(dtype: torch.dtype, factor: float) -> Arithmetic:
    info = torch.finfo(dtype)
    unit, inner = info.eps / 2, min(info.eps / 2, _SINGLE)
    tiny = 2 * info.tiny * info.eps if dtype in (torch.float16, torch.float64) else 2 * info.tiny
    return Arithmetic(unit, inner, factor, tiny, info.max)


def _factor(device: str) -> float:
    """Factors of float32 are rounded to fewer digits where torch is told that this is precise enough."""
    told = {"highest": 0.0, "high": _TENSOR_FLOAT, "medium": _HALF}[torch.get_float32_matmul_precision()]
    if device == "cuda" and torch.backends.cudnn.allow_tf32:
        return max(told, _TENSOR_FLOAT)
    return told
