"""One step of an invariant path: a predictor, a corrector, and the measured drift that decides whether it counts.

The predictor is the step of most progress whose predicted drift is a small share of the budget; the corrector goes back
towards the anchor's outputs by Gauss-Newton; the drift is measured at the network that comes out. With a budget, and
where `Pullback.near` can, all products of a step come from the forward passes that measure drift, and both solves end
at the accuracy that the step needs: the predictor once a further direction adds less than three hundredths to its
progress; the corrector begins where the drift is above a fiftieth of the budget, and ends below a hundredth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from weightspace.metric.geodesic import acceleration
from weightspace.metric.preconditioned import Near, Preconditioner
from weightspace.metric.pullback import Pullback
from weightspace.metric.steps import Modes
from weightspace.net.net import Net
from weightspace.net.weights import Weights

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Predictor"]


_HALVINGS = 8
_GROW, _TRUST = 1.5, 2.0
_SHARE = 0.05  # of the budget: what a step may predict
_TRIGGER, _LEFT = 0.02, 0.01  # .. what calls for a correction, and what it leaves; larger ones learn less at the end
_INNER = 20  # directions of a correction, at most


class Predictor:
    """The steps of one flow under a pullback metric; `trust`, at most one, shrinks where the budget was not kept."""

    def __init__(
        self,
        metric: Pullback,
        anchor: Float[Tensor, "examples outputs"],
        budget: float | None,
        corrections: int,
        accelerate: bool | Literal["force"],
    ) -> None:
        self.metric, self.anchor, self.budget = metric, anchor, budget
        self.corrections, self.accelerate = corrections, accelerate
        self.trust = 1.0
        self._near: Near | None = None
        self._apart = budget is None  # whether steps are taken without `Near`

    def step(
        self, net: Net, wanted: Weights, length: float, clipped: Callable[[Net], Net]
    ) -> tuple[Net, float, float, float] | str:
        """The longest step up to `length` that keeps the budget: network, predicted drift, length, drift.

        Or why there is none. `clipped` cuts the way to a network.
        """
        if not length:
            return net, 0.0, 0.0, self.metric.drift(net, self.anchor)
        near = self._here(net)
        found = None if near is None else near.preconditioner()
        modes = self._modes(net, wanted, length, near, found)
        for _ in range(_HALVINGS):
            step = self.metric.along(net, modes, length, self._share(net, modes, length))
            new = net + step.vector
            if self.accelerate:
                new = new + acceleration(self.metric, net, step.vector, self.accelerate == "force")
            new = new.refreshed()
            if bad := new.weights.unusable():
                return f"nan in {bad[0]}"
            new, moved = self._corrected(clipped(new), clipped, near, found)
            if not math.isfinite(moved):
                return f"nan in {next(iter(new.weights.unusable()), 'the outputs')}"
            if self.budget is None or moved <= self.budget:
                self.trust = min(1.0, self.trust * _GROW)
                return new, step.drift, step.length, moved
            self.trust, length = self.trust / _TRUST, length / 2
        return "budget"

    def _here(self, net: Net) -> Near | None:
        """The network that the last step measured, or that of the flow's beginning."""
        if self._apart or (self._near is not None and self._near.net is net):
            return self._near
        self._near = self.metric.near(net) if self._near is None else self._near.at(net)
        self._apart = self._near is None
        return self._near

    def _modes(
        self, net: Net, wanted: Weights, length: float, near: Near | None, found: Preconditioner | None
    ) -> Modes:
        if near is None or found is None or self.budget is None:
            return self.metric.modes(net, wanted)
        return self.metric.near_modes(near, wanted, found, length, _SHARE * self.trust * self.budget)

    def _share(self, net: Net, modes: Modes, length: float) -> float | None:
        """The drift that a step may predict: what a correction would take back is no progress."""
        loose = self.budget or self.metric.along(net, modes, length).drift
        return _SHARE * self.trust * loose if loose else None

    def _corrected(
        self, net: Net, clipped: Callable[[Net], Net], near: Near | None, found: Preconditioner | None
    ) -> tuple[Net, float]:
        """The network after the corrections, and its drift."""
        if near is None or found is None or self.budget is None:
            if self.corrections:
                net = clipped(self.metric.retract(net, self.anchor, self.corrections)).refreshed()
            return net, self.metric.drift(net, self.anchor)
        here = near.at(net)
        there, limits = here, (_TRIGGER * self.budget, _LEFT * self.budget)
        if self.corrections and here.drift(self.anchor) > limits[0]:
            how = self.corrections, self.metric.damping, _INNER, limits[1]
            there = here.retracted(self.anchor, *how)
        if (cut := clipped(there.net)) is not there.net:
            there = near.at(cut.refreshed())
        self._near = there
        return there.net, there.drift(self.anchor)
