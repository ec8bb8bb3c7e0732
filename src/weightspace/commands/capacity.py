"""What `weightspace capacity` measures: how much of a new task leaves the outputs on old data alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weightspace.commands.workspace import opened, splits
from weightspace.metric.pullback import Pullback
from weightspace.net.cost import Cost
from weightspace.net.errors import WeightspaceError

__all__ = ["Room", "capacity"]


@dataclass(frozen=True)
class Room:
    """How much of a new task's gradient leaves the outputs on some data alone, before anything is moved.

    `free`: to first order; `layers`: for steps of any length; `tradeoff`: drift and progress of a step of `length`;
    `spectrum`: the largest eigenvalues of the metric; `rows`: how many outputs are held.
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
    arch: str | None = None,
    memory: int = 100,
    limit: int = 2048,
    trust_code: bool = False,
    seed: int = 0,
) -> Room:
    """Measure the room, and move nothing. Raises `WeightspaceError`."""
    _, net, _, _ = opened(path, arch, trust_code)
    held, goal = splits(keep, limit, seed)[0].take(memory, seed), splits(new, limit, seed)[0].take(memory, seed)
    metric, length = Pullback(held), 0.01 * float(net.weights.norm())
    curve = metric.tradeoff(net, goal, length)
    try:
        layers = Pullback(held, solver="layer").capacity(net, goal)
    except WeightspaceError:
        layers = None
    return Room(
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
