"""The options of a flow: what fits together, and what a path in a folder depends on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor

from weightspace.flows.pruning import Prune
from weightspace.metric.geodesic import kink
from weightspace.metric.metric import Metric
from weightspace.metric.pullback import Pullback
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.weights import Weights
from weightspace.task.digest import told
from weightspace.task.goal import Goal
from weightspace.task.task import Task

__all__ = ["Aim", "Options", "Size", "asked", "check_fit", "check_numbers", "check_pruning"]


Aim: TypeAlias = Task | Callable[[Net], Tensor] | Goal | Prune
Size: TypeAlias = float | Callable[[float], float]


@dataclass(frozen=True)
class Options:
    """Arguments of `flow` that do not change on the way."""

    budget: float | None
    probe: Task | None
    max_drift: float | None
    corrections: int
    accelerate: bool | Literal["force"]
    mask: Weights | None
    max_trust: float | None
    save: int
    check: int


def check_numbers(steps: int, size: Size, options: Options) -> None:
    """Refuse numbers of steps, sizes and limits that are not positive."""
    positive = {name: getattr(options, name) for name in ("budget", "max_drift", "max_trust")}
    for name, value in {**positive, "size": None if callable(size) else size}.items():
        if value is not None and not 0 < value < math.inf:
            raise WeightspaceError(f"{name} must be positive, got {value}")
    counts = {name: getattr(options, name) for name in ("save", "check", "corrections")}
    for name, value in {"steps": steps, **counts}.items():
        if value < (least := int(name != "corrections")):
            raise WeightspaceError(f"{name} must be at least {least}, got {value}")


def check_fit(net: Net, goal: Goal | Prune, metric: Metric | Pullback, options: Options) -> None:
    """Raise `WeightspaceError` where goal, metric and options do not fit together."""
    if net.frozen and len(net.frozen) == len(net.weights):
        raise WeightspaceError('every parameter of the network is frozen: nothing could move; give frozen="move"')
    if options.mask is not None:
        net.weights.check(options.mask)
        if not any(bool(m.any()) for m in options.mask.values()):
            raise WeightspaceError("the mask holds every weight: nothing could move")
    if isinstance(goal, Prune):
        check_pruning(goal, metric, options)
    if options.max_drift is not None and options.probe is None:
        raise WeightspaceError("max_drift is a drift on other examples; give them as probe=")
    if options.accelerate and not isinstance(metric, Pullback):
        raise WeightspaceError("only a Pullback metric has geodesics to accelerate along; give Pullback(task)")
    if options.accelerate is True and isinstance(metric, Pullback) and (at := kink(net, metric)):
        raise WeightspaceError(
            f'{at} has kinks that a second derivative does not see; use corrections, or accelerate="force"'
        )


def check_pruning(goal: Prune, metric: Metric | Pullback, options: Options) -> None:
    """Refuse pruning without a metric that can repair it."""
    if not isinstance(metric, Pullback):
        raise WeightspaceError("pruning is repaired under a Pullback metric; give Pullback(task)")
    if goal.repair == "descent" and options.budget is not None:
        raise WeightspaceError(
            "a descent keeps no budget at every step; leave it out, and look at the drift at the end"
        )
    if goal.repair == "layer" and options.mask is not None:
        raise WeightspaceError("the repair layer by layer moves all that is not cut; take another repair with a mask")
    if options.max_trust is not None:
        raise WeightspaceError("max_trust cuts the steps of a descent, and pruning has none; leave it out")


def asked(
    net: Net, goal: Goal | Prune, metric: Metric | Pullback, options: Options, steps: int, size: Size
) -> dict[str, Any]:
    """Everything that the path depends on, for a `trail` to be continued."""
    o = options
    asked = {
        "network": net, "goal": goal, "metric": metric, "size": size, "budget": o.budget, "probe": o.probe,
        "corrections": o.corrections, "accelerate": o.accelerate, "mask": o.mask, "max_trust": o.max_trust,
        "save": o.save, "check": o.check, "steps": steps if callable(size) or isinstance(goal, Prune) else None,
    }  # fmt: skip
    return {name: told(value) for name, value in asked.items()}
