"""The result of a flow: the path, why it ended, and a record of every step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.path.path import Path

__all__ = ["Flow", "Record"]


@public
@dataclass(frozen=True)
class Record:
    """One accepted step: its length, the goal before it (NaN if none), drift measured and predicted, held-out drift."""

    step: int
    length: float
    goal: float
    drift: float
    predicted: float
    heldout: float


@public
class Flow(Path):
    """The path of a flow: its marked points are the saved networks, and `log` has a record of every step.

    `why` it ended: "steps" (all were made), "budget" (no step within it was left), "heldout", "goal" (its gradient
    vanished), or "nan in NAME". `mask`: zero where weights are held at zero.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> path = ws.flow(net, ws.learn(task), ws.Euclidean(), steps=20, size=0.1)
    >>> path
    Flow(20 steps, stopped by steps)
    >>> path.why, len(path.log), len(path)                                 # the start, then every tenth step
    ('steps', 20, 3)
    """

    __slots__ = ("log", "mask", "why")

    def __init__(self, nets: list[Net], log: list[Record], why: str, mask: Weights | None) -> None:
        through = Path.through(nets if len(nets) > 1 else nets * 2)
        super().__init__(through, through.times)
        self.log, self.why, self.mask = log, why, mask

    def __repr__(self) -> str:
        last = f", drift {self.log[-1].drift:.3g}" if self.log and not math.isnan(self.log[-1].drift) else ""
        return f"Flow({len(self.log)} steps, stopped by {self.why}{last})"
