"""Labelled points in the square [-1, 1]^2: circle, exclusive or, two Gaussians, spiral, checkerboard."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["SETS", "Points", "drawn", "half"]

_CELLS = 3  # of the checkerboard, on a side
_TURNS = 1.5  # of a spiral's arm


@dataclass(frozen=True)
class Points:
    """Points `x` in the plane with labels `y`, 0 or 1, both float64."""

    x: Float[Tensor, "n 2"]
    y: Float[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.y)

    def task(self) -> Task:
        """The points as a task: the mean binary cross-entropy of one logit."""
        return Task(self.x, self.y.long(), loss=F.binary_cross_entropy_with_logits)

    def rows(self) -> Float[Tensor, "n 3"]:
        """x, y and label of every point."""
        return torch.cat([self.x, self.y[:, None]], 1)


def drawn(kind: str, n: int, noise: float, seed: int, held: float) -> tuple[Points, Points]:
    """Training and test points of a set; `noise`: deviation added to coordinates; `held`: share of test points."""
    generator = torch.Generator().manual_seed(seed)
    x, y = SETS[kind](n, generator)
    x = x + noise * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    order = torch.randperm(n, generator=generator)
    cut = min(max(round(held * n), 1), n - 1)
    test, train = order[:cut], order[cut:]
    return Points(x[train], y[train]), Points(x[test], y[test])


def half(points: Points, right: bool) -> Points:
    """The points on one half of the square: all of them where that half has none."""
    there = (points.x[:, 0] >= 0) == right
    return Points(points.x[there], points.y[there]) if bool(there.any()) else points


def _uniform(n: int, generator: torch.Generator, *size: int) -> Tensor:
    return torch.rand((n, *size), generator=generator, dtype=torch.float64)


def _labels(n: int) -> Tensor:
    """Every other point is of class 1."""
    return (torch.arange(n) % 2).double()


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def _circle(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A disc inside of a ring."""
    y, share = _labels(n), _uniform(n, generator)
    radius = torch.where(y > 0, 0.45 * share.sqrt(), 0.65 + 0.3 * share)
    return _polar(radius, 2 * math.pi * _uniform(n, generator)), y


def _xor(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Class 1 where both coordinates have one sign."""
    x = 2 * _uniform(n, generator, 2) - 1
    x = x + 0.05 * x.sign()
    return x / 1.05, (x.prod(1) > 0).double()


def _gauss(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two Gaussians of deviation 0.15 around (0.4, 0.4) and (-0.4, -0.4)."""
    y = _labels(n)
    noise = torch.randn((n, 2), generator=generator, dtype=torch.float64)
    return 0.4 * (2 * y[:, None] - 1) + 0.15 * noise, y


def _spiral(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two arms of a spiral, opposite each other."""
    y, share = _labels(n), _uniform(n, generator)
    return _polar(0.05 + 0.9 * share, 2 * math.pi * _TURNS * share + math.pi * y), y


def _checkerboard(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The squares of a board of 3 x 3."""
    x = 2 * _uniform(n, generator, 2) - 1
    return x, ((x + 1) * _CELLS / 2).floor().sum(1).remainder(2)


SETS: dict[str, Callable[[int, torch.Generator], tuple[Tensor, Tensor]]] = {
    "circle": _circle,
    "xor": _xor,
    "gauss": _gauss,
    "spiral": _spiral,
    "checkerboard": _checkerboard,
}
