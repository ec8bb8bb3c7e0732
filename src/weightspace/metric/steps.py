"""A gradient in the eigenvectors of a metric, and all steps that trade progress on it against drift.

v(lam) = -lam (G + lam)^-1 g is the gradient itself for lam -> infinity, and its part in the null space of G for
lam -> 0; its length, drift and progress are sums over modes, so that a step of a given length or budget is a
one-dimensional search for lam.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from weightspace.net.weights import Weights

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Modes", "Step", "Tradeoff", "largest_shift", "ratio", "secular"]


_ROUNDS, _POINTS = 6, 64


@dataclass(frozen=True)
class Modes:
    """A gradient g in eigenvectors e_i of a metric G: eigenvalues `values`, and `coefficients` of g.

    Modes of value zero do not change the outputs. `assemble(f)` is sum_i f_i coefficients_i e_i. `exact`: all of g is
    in the modes and all values are eigenvalues. `told`, `kept`: the guarantee for a step, and for one in the null
    space, in words.
    """

    values: Float[Tensor, " k"]
    coefficients: Float[Tensor, " k"]
    assemble: Callable[[Tensor], Tensor]
    exact: bool
    told: str = ""
    kept: str = ""

    def shrunk(self, lam: float) -> Tensor:
        """lam / (value + lam) for every mode; 0 <= lam <= infinity."""
        return torch.from_numpy(self._shares(lam)).to(self.values)

    @cached_property
    def _numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """Values and coefficients for the search for lam, in NumPy, whose calls cost a tenth."""
        return self.values.numpy(force=True).astype(float), self.coefficients.numpy(force=True).astype(float)

    def _shares(self, lam: float) -> np.ndarray:
        values = self._numbers[0]
        if math.isinf(lam):
            return np.ones_like(values)
        return np.where(values > 0, lam / np.maximum(values + lam, 1e-300), 1.0)

    def length(self, lam: float) -> float:
        """|v(lam)|."""
        return float(np.linalg.norm(self._shares(lam) * self._numbers[1]))

    def drift(self, lam: float) -> float:
        """|A v(lam)|."""
        values, coefficients = self._numbers
        return float(np.linalg.norm(np.sqrt(values) * self._shares(lam) * coefficients))

    def progress(self, lam: float) -> float:
        """-<g, v(lam)>."""
        return float(self._shares(lam) @ np.square(self._numbers[1]))


@dataclass(frozen=True)
class Step:
    """A step v under a pullback metric: `length` |v|, predicted `drift`, `progress` -<g, v>, `shift` lam."""

    vector: Weights
    length: float
    drift: float
    progress: float
    shift: float
    guarantee: str


@dataclass(frozen=True)
class Tradeoff:
    """Progress against drift for steps of one length, from the null space (shift 0) to the gradient (infinite)."""

    shift: Float[np.ndarray, " n"]
    drift: Float[np.ndarray, " n"]
    progress: Float[np.ndarray, " n"]


def ratio(modes: Modes, shift: float) -> float:
    """The drift of a step of length 1."""
    length = modes.length(shift)
    return modes.drift(shift) / length if length else math.inf


def largest_shift(modes: Modes, limit: float, most: float = math.inf) -> float:
    """The largest lam up to `most` for which a step of length 1 drifts by at most `limit`: drift grows with lam."""
    if ratio(modes, most) <= limit:
        return most
    top = float(modes.values.max()) or 1.0
    low, high = math.log(1e-12 * top), math.log(min(1e6 * top, most))
    if low >= high or ratio(modes, math.exp(low)) > limit:
        return min(math.exp(low), most)
    values, coefficients = modes._numbers
    for _ in range(_ROUNDS):
        grid = np.linspace(low, high, _POINTS)
        parts = np.where(values > 0, 1 / (1 + values / np.exp(grid)[:, None]), 1.0) * coefficients
        drifts, lengths = (np.linalg.norm(p, axis=1) for p in (np.sqrt(values) * parts, parts))
        within = int(np.argmin(np.append(drifts[1:] <= limit * lengths[1:], False)))
        low, high = grid[within], grid[min(within + 1, _POINTS - 1)]
    return math.exp(low)


def secular(modes: Modes, beta: float, size: float) -> float:
    """lam with (beta / 2) |(G + lam)^-1 g| = size: it falls from infinity to zero as lam grows."""
    top = float(modes.values.max()) or 1.0
    reach = lambda lam: beta / 2 * modes.length(lam) / lam  # noqa: E731
    low, high = math.log(1e-14 * top), math.log(1e6 * max(top, beta * float(modes.coefficients.norm()) / size))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if reach(math.exp(middle)) > size else (low, middle)
    return math.exp((low + high) / 2)
