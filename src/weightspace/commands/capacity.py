"""`weightspace capacity`: how much of the gradient of a new task leaves the outputs on old data alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weightspace.commands.data import splits
from weightspace.commands.settings import Settings
from weightspace.metric.pullback import Pullback
from weightspace.net.cost import Cost
from weightspace.net.errors import WeightspaceError

__all__ = ["Capacity", "capacity"]


@dataclass(frozen=True)
class Capacity:
    """Share of a new task's gradient that leaves the outputs on the data to keep alone.

    `free`: to first order; `layers`: for steps of any length; `tradeoff`: drift and progress of steps of `length`;
    `spectrum`: the largest eigenvalues of the pullback metric; `rows`: number of outputs to keep.
    """

    name: str
    examples: int
    rows: int
    weights: int
    free: float
    layers: float | None
    length: float
    tradeoff: list[tuple[float, float]]
    spectrum: list[float]
    cost: Cost

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "cost": self.cost.data()}


def capacity(
    path: Path,
    keep: str,
    new: str,
    *,
    memory: int = 100,
    limit: int = 2048,
    settings: Settings,
) -> Capacity:
    """Measure the capacity for `new` of a network that must keep its outputs on `memory` examples of `keep`.

    Nothing is changed or written. Raises `WeightspaceError`.
    """
    net, seed = settings.open(path).net, settings.seed
    held, goal = splits(keep, limit, seed)[0].take(memory, seed), splits(new, limit, seed)[0].take(memory, seed)
    metric, length = Pullback(held), 0.01 * float(net.weights.norm())
    curve = metric.tradeoff(net, goal, length)
    try:
        layers = Pullback(held, solver="layer").capacity(net, goal)
    except WeightspaceError:
        layers = None
    return Capacity(
        name=path.name,
        examples=len(held),
        rows=metric.outputs(net).numel(),
        weights=net.weights.numel,
        free=metric.capacity(net, goal),
        layers=layers,
        length=length,
        tradeoff=pairs(curve.drift, curve.progress),
        spectrum=metric.spectrum(net, 20).tolist(),
        cost=metric.cost(net),
    )


def pairs(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in zip(x, y, strict=True)]
