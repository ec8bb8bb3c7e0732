"""How good a match is: the barrier of the line, or its divergence where there are no labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from weightspace.net.net import Net
from weightspace.path.divergence import Divergence, is_labelled
from weightspace.path.path import line
from weightspace.symmetry.align.repair import has_statistics, reset_statistics
from weightspace.task.task import Task

__all__ = ["Score"]


_EXAMPLES = 1024
_AT = (0.2, 0.4, 0.6, 0.8)
_NATS, _SHARE = 0.01, 0.02


class Score:
    """A function of a network: how high the line to it rises, from the network `to`, on some of the data.

    With labels the loss barrier, without (or with `labels=False`) the divergence from the mixture of the ends (see
    `Divergence`). BatchNorm statistics are re-estimated at every point. All networks asked about must be in one orbit:
    what is measured at the ends is measured once.
    """

    def __init__(self, to: Net, data: Task, seed: int, labels: bool | None = None) -> None:
        self.to, self.some = to, data.take(_EXAMPLES, seed=seed)
        self.labels = is_labelled(data) if labels is None else labels
        self.normed = has_statistics(to)
        self._ends: list[float] = []
        self._divergence: Divergence | None = None

    @property
    def what(self) -> str:
        """What is measured, in words."""
        return "barrier" if self.labels else "divergence without labels"

    def __call__(self, net: Net) -> float:
        """The height of the line to a network, infinite where it is not a number; never negative."""
        path = line(self.to, net).map(self._mended)
        with torch.no_grad():
            rise = self._losses(path) if self.labels else self._divergences(net, path)
        return max(0.0, *rise) if all(map(math.isfinite, rise)) else math.inf

    def near(self, net: Net) -> float:
        """The height that counts as none: .01 nats, or 2 % of the loss of the ends where it is not one of classes."""
        if self._look(net).kind != "squared":
            return _NATS
        return _SHARE * sum(self._ends) / 2 if self._ends else 0.0

    def _mended(self, net: Net) -> Net:
        return reset_statistics(net, self.some) if self.normed else net

    def _losses(self, path: Callable[[float], Net]) -> Sequence[float]:
        if not self._ends:
            self._ends = [float(self.some(path(0.0))), float(self.some(path(1.0)))]
        return [float(self.some(path(t))) - (1 - t) * self._ends[0] - t * self._ends[1] for t in _AT]

    def _divergences(self, net: Net, path: Callable[[float], Net]) -> Sequence[float]:
        look = self._look(net)
        return [float(look(path(t), (1 - t, t))) for t in _AT]

    def _look(self, net: Net) -> Divergence:
        if self._divergence is None:
            self._divergence = Divergence(self.some, [self.to, net])
        return self._divergence
