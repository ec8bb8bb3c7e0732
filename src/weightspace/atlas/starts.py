"""What a start from a member would be worth: LogME of its features, or the loss after a few steps of fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor

from weightspace.atlas.halving import Halving, Losses, Standing
from weightspace.atlas.question import Member, Question, opened, reason, single
from weightspace.codes.scores import fitted_head, head_features, logme
from weightspace.flows.goals import learn
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, loose
from weightspace.task.task import Task

__all__ = ["BACK", "Features", "Trial", "Tuned", "by_least"]

BACK = 3  # passes that a step costs: forward, and back for twice as much
_PARTS = 10  # of the jackknife


@dataclass(frozen=True)
class Features:
    """Minus the LogME score of a member's features for the labels of a task, and without each tenth of the examples.

    A function of a member: values (1 + parts,), or why there are none.
    """

    task: Task

    def __call__(self, member: Member) -> Tensor | str:
        """The values; or, where the member cannot be opened or read the examples, why."""
        try:
            f, y = head_features(opened(member), self.task).double().cpu(), self.task.labels()
            part = torch.arange(len(f)) % _PARTS  # the examples are in random order
            kept = [part >= 0, *(part != k for k in range(_PARTS))]
            return -torch.tensor([logme(f[some], y[some]) for some in kept], dtype=torch.float64)
        except (WeightspaceError, OSError) as error:
            return reason(error)


def by_least(found: Mapping[str, Tensor | str], examples: int, passes: int, whole: int, confidence: float) -> Halving:
    """The ranking by values (1 + parts,), the least first: the value of each, and the same without each part.

    Errors are those of the jackknife; NaN for a value without parts. A member is tied with the best where the
    difference of the two is within its t-interval at the level 1 - `confidence`, divided by the number of members.
    Raises `WeightspaceError` where no member has a value.
    """
    values = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    left_out = {name: value for name, value in found.items() if isinstance(value, str)}
    if not values:
        name, why = next(iter(left_out.items()))
        raise WeightspaceError(f"no member can answer: {name}: {why}")
    best, *others = sorted(values, key=lambda name: float(values[name][0]))
    degrees = max(1, len(values[best]) - 2)
    quantile = float(stdtrit(degrees, 1 - (1 - confidence) / 2 / max(1, len(others))))
    rows = []
    for name in [best, *others]:
        behind, error = _jackknifed(values[name] - values[best])
        tied = behind == 0 or behind <= quantile * error
        rows.append(Standing(name, *_jackknifed(values[name]), examples, behind, error, tied))
    return Halving(tuple(rows), left_out, {}, passes, whole, confidence)


def _jackknifed(values: Tensor) -> tuple[float, float]:
    """A value, and its standard error by the values without each part."""
    parts = len(values) - 1
    if parts < 2:
        return float(values[0]), math.nan
    apart = values[1:] - values[1:].mean()
    return float(values[0]), math.sqrt((parts - 1) / parts * float(apart.square().sum()))


@dataclass(frozen=True)
class Tuned:
    """A network after so many steps of fine-tuning, with the moments of Adam, so that it can go on."""

    net: Net
    steps: int
    moments: dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """Fine-tuning from a member by steps of Adam, and the losses on held-out examples; norms keep their statistics.

    All members take the same batches. `classes`: outputs of a new head that is fitted to the examples first; None to
    keep the head that is there.
    """

    train: Task
    test: Question
    lr: float
    batch: int
    seed: int
    classes: int | None = None

    def __call__(self, member: Member | Tuned, steps: int) -> tuple[Losses, Tuned] | str:
        """The losses after so many steps in all, and the network; or, where the member cannot learn the task, why."""
        try:
            before = self.begun(opened(member)) if not isinstance(member, Tuned) else member
            tuned, size = self.on(before, steps), len(self.test.task)
            found = self.test.of(tuned.net, 0, size)
        except (WeightspaceError, OSError) as error:
            return reason(error)
        first = len(self.train) if not isinstance(member, Tuned) and self.classes is not None else 0
        return Losses(found.sums, found.counts, size + first + self.passes(steps - before.steps)), tuned

    def passes(self, steps: int) -> int:
        """The examples that so many steps pass through a network."""
        return BACK * steps * min(self.batch, len(self.train))

    def begun(self, start: Net) -> Tuned:
        """The start; one in half precision is tuned in float32, where small steps are not lost."""
        start = single(start)
        return Tuned(start if self.classes is None else fitted_head(start, self.train, classes=self.classes), 0, {})

    def on(self, before: Tuned, steps: int) -> Tuned:
        """The network after so many steps in all."""
        net, free = before.net.clone(), loose(before.net)
        learnt = [flat for flat in net.weights.buffers if flat.is_floating_point()]
        adam, goal = torch.optim.Adam(learnt, self.lr), learn(self.train, self.batch, self.seed)
        if before.moments:
            adam.load_state_dict(before.moments)
        for step in range(before.steps, steps):
            slopes = goal.value_and_gradient(net, step)[1]
            for flat, slope, mask in zip(net.weights.buffers, slopes.buffers, free.buffers, strict=True):
                flat.grad = slope * mask if flat.is_floating_point() else None
            adam.step()
        for flat in net.weights.buffers:
            flat.grad = None
        return Tuned(net, steps, adam.state_dict())
