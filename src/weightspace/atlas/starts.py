"""What a start from a member would be worth: LogME of its features, or the loss after a few steps of fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

from weightspace.atlas.halving import Halving, Losses, Standing
from weightspace.atlas.question import Member, Question, opened, reason, single
from weightspace.codes.scores import head_features, logme
from weightspace.flows.goals import learn
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, loose
from weightspace.task.task import Task

__all__ = ["Features", "Trial", "by_evidence"]

_PARTS = 10  # of the jackknife


@dataclass(frozen=True)
class Features:
    """The LogME score of a member's features for the labels of a task, and without each tenth of the examples.

    A function of a member: scores (1 + parts,), or why there are none.
    """

    task: Task

    def __call__(self, member: Member) -> Tensor | str:
        """The scores; or, where the member cannot be opened or read the examples, why."""
        try:
            f, y = head_features(opened(member), self.task).double().cpu(), self.task.labels()
            part = torch.arange(len(f)) % _PARTS  # the examples are in random order
            kept = [part >= 0, *(part != k for k in range(_PARTS))]
            return torch.tensor([logme(f[some], y[some]) for some in kept], dtype=torch.float64)
        except (WeightspaceError, OSError) as error:
            return reason(error)


def by_evidence(found: Mapping[str, Tensor | str], examples: int, confidence: float) -> Halving:
    """The ranking by LogME, larger first, as one by loss: the loss is minus the score.

    Errors are those of the jackknife; a member is tied with the best where the difference of the two is within its
    t-interval at the level 1 - `confidence`, divided by the number of members.
    """
    scores = {name: -value for name, value in found.items() if isinstance(value, Tensor)}
    left_out = {name: value for name, value in found.items() if isinstance(value, str)}
    best, *others = sorted(scores, key=lambda name: float(scores[name][0]))
    quantile = float(stdtrit(_PARTS - 1, 1 - (1 - confidence) / 2 / max(1, len(others))))
    rows = []
    for name in [best, *others]:
        behind, error = _jackknifed(scores[name] - scores[best])
        tied = behind <= quantile * error or name == best
        rows.append(Standing(name, *_jackknifed(scores[name]), examples, behind, error, tied))
    passes = len(scores) * examples
    return Halving(tuple(rows), left_out, {}, passes, passes, confidence)


def _jackknifed(values: Tensor) -> tuple[float, float]:
    """A value, and its standard error by the values without each part."""
    apart = values[1:] - values[1:].mean()
    return float(values[0]), math.sqrt((_PARTS - 1) / _PARTS * float(apart.square().sum()))


@dataclass(frozen=True)
class Trial:
    """The losses on held-out examples after a few steps of Adam from a member; statistics of norms stay as they are.

    A function of (member, start, stop), like `Question`. All members take the same batches.
    """

    train: Task
    test: Question
    steps: int
    lr: float
    batch: int
    seed: int

    def __call__(self, member: Member, start: int, stop: int) -> Losses | str:
        """The losses; or, where the member cannot be opened or learn the task, why."""
        try:
            found = self.test.of(self.tuned(opened(member)), start, stop)
        except (WeightspaceError, OSError) as error:
            return reason(error)
        taken = 3 * self.steps * min(self.batch, len(self.train))  # a step passes forward and back
        return Losses(found.sums, found.counts, stop - start + taken)

    def tuned(self, start: Net) -> Net:
        """The network after the steps; one in half precision is tuned in float32, where small steps are not lost."""
        start = single(start)
        net, free = start.clone(), loose(start)
        learnt = [flat for flat in net.weights.buffers if flat.is_floating_point()]
        adam, goal = torch.optim.Adam(learnt, self.lr), learn(self.train, self.batch, self.seed)
        for step in range(self.steps):
            slopes = goal.value_and_gradient(net, step)[1]
            for flat, slope, mask in zip(net.weights.buffers, slopes.buffers, free.buffers, strict=True):
                flat.grad = slope * mask if flat.is_floating_point() else None
            adam.step()
        return net
