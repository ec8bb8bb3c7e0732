"""Rounding error of floating-point arithmetic, bounded: how far a computed value may be from the exact one.

A number x is stored as x (1 + t), |t| <= u, u the unit roundoff of its dtype. A sum of n products, added up in any
order, is off by at most gamma_n times the sum of their absolute values, gamma_n = n u / (1 - n u). Products and sums of
bfloat16 and float16 are formed in float32 and rounded when they are stored. Kernels that transform before they multiply
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
    """A network with an operation, or an argument of one, for which no bound is known."""


def gamma(n: float, unit: float) -> float:
    """n u / (1 - n u): the relative error bound of a sum of n products, or infinity from n u = 1/2 on."""
    return n * unit / (1 - n * unit) if n * unit < 0.5 else math.inf


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic of a dtype: its unit roundoffs and its range.

    `unit`: roundoff of a stored number; `inner`: of the accumulator of a sum; `factor`: of the factors of a product
    (TF32); `tiny`: the absolute error of underflow; `most`: the largest finite number.
    """

    unit: float
    inner: float
    factor: float
    tiny: float
    most: float

    @classmethod
    def of(cls, dtype: torch.dtype, device: str = "cpu") -> Arithmetic:
        """The arithmetic of a dtype on a device, under torch's matmul settings. Raises `BoundError` for float8."""
        if dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            raise BoundError(f"no bound is known for the rounding of {dtype}; compare in float32 or bfloat16")
        return _of(dtype, _factor(device) if dtype == torch.float32 else 0.0)

    def rounded(self, x: float) -> float:
        """How far a number may be from what is stored of it: exactly that, and more for one that underflows."""
        if not self.unit or not math.isfinite(x):
            return 0.0
        part, exponent = math.frexp(x)
        apart = abs(part - round(part / self.unit) * self.unit) * 2.0**exponent
        return apart + (self.tiny if 0 < abs(x) < self.tiny / self.unit else 0.0)

    def error(self, terms: float, size: float, stores: float, kept: float, numel: int, products: bool = False) -> float:
        """The rounding error of a result of norm `kept`, stored `stores` times, of sums of `terms` terms.

        `size`: the norm of the sums of the terms' absolute values; `numel`: the entries of the result; `products`: the
        terms are products.
        """
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
    """The roundoff of the factors of float32 products, which torch's settings allow to be rounded to TF32 or less."""
    unit = {"highest": 0.0, "high": _TENSOR_FLOAT, "medium": _HALF}[torch.get_float32_matmul_precision()]
    if device == "cuda" and torch.backends.cudnn.allow_tf32:
        return max(unit, _TENSOR_FLOAT)
    return unit
