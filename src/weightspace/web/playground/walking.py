"""A walk that learns new points while the outputs on the old ones stay within a budget, a few steps at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from weightspace.metric.pullback import Pullback
from weightspace.metric.steps import Modes
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.seeds import derived
from weightspace.task.goal import gradient
from weightspace.web.playground.networks import Networks, scores
from weightspace.web.playground.points import Points, drawn, half

__all__ = ["Walk", "begun", "further", "told"]

_MEMORY = 100  # examples whose outputs are kept
_DAMPING = 1e-6
_TRIES, _SHORTER, _LONGER = 3, 4.0, 2.0  # lengths of a step that are tried, and how they change
_LEAST = 1e-4  # share of the first length at which a walk ends
_CORRECTION = 10  # products of a correction
_LINEAR = 0.5  # share of the budget that the step itself may take, before it is corrected


@dataclass(frozen=True)
class Walk:
    """A walk of network `k`: the points kept and learnt, the metric, the outputs at the start, and how far it is."""

    k: int
    kept: Points
    learnt: Points
    metric: Pullback
    anchor: Tensor
    budget: float
    longest: float
    length: float
    drift: float = 0.0
    step: int = 0
    ended: str | None = None


def begun(networks: Networks, k: int, learn: str, halves: bool, budget: float, size: float) -> Walk:
    """A walk that keeps the data of the state and learns another set; each on its half of the square with `halves`."""
    state, net = networks.state, networks.net(k)
    new, _ = drawn(learn, state.points, state.noise, derived(state.seed, "other points") % 2**31, state.test)
    kept, learnt = (half(networks.train, False), half(new, True)) if halves else (networks.train, new)
    metric = Pullback(kept.task().take(_MEMORY, seed=state.seed), damping=_DAMPING)
    length = size * float(net.weights.norm())
    if not length:
        raise WeightspaceError("all weights are zero, so that no step has a length relative to them; train first")
    return Walk(k, kept, learnt, metric, metric.outputs(net), budget, length, length)


def further(walk: Walk, net: Net, steps: int) -> tuple[Net, Walk]:
    """So many steps of the walk from `net`, or fewer where none fits the budget; the network after them."""
    goal = walk.learnt.task()
    for _ in range(steps):
        if walk.ended:
            break
        try:
            modes = walk.metric.modes(net, gradient(goal, net))
        except WeightspaceError as error:
            return net, replace(walk, ended=str(error))
        length = min(walk.longest, _LONGER * walk.length)
        for _ in range(_TRIES):
            new, drift = _tried(walk, net, modes, length)
            if drift <= walk.budget:
                net, walk = new, replace(walk, step=walk.step + 1, drift=drift, length=length)
                break
            length /= _SHORTER
        else:
            ended = "no further step fits the budget" if length < _LEAST * walk.longest else None
            return net, replace(walk, length=length / _LONGER, ended=ended)
    return net, walk


def _tried(walk: Walk, net: Net, modes: Modes, length: float) -> tuple[Net, float]:
    """A step of this length, corrected back to the old outputs, and the drift after it: infinite where it overflows."""
    step = walk.metric.along(net, modes, length, _LINEAR * walk.budget)
    try:
        new = walk.metric.retract(net + step.vector, walk.anchor, inner=_CORRECTION)
        return new, walk.metric.drift(new, walk.anchor)
    except WeightspaceError:
        return net, math.inf


def told(walk: Walk, networks: Networks) -> dict[str, Any]:
    """How far the walk is, with the scores on the old and the new points."""
    learner = networks.learners[walk.k]
    return {
        "step": walk.step,
        "kept": scores(learner, walk.kept),
        "learnt": scores(learner, walk.learnt),
        "drift": walk.drift,
        "budget": walk.budget,
        "ended": walk.ended,
    }
