"""Members tried by fine-tuning, in rounds: the better half goes on to twice as many steps.

All members take the first steps; those whose loss on held-out examples is in the better half go on, with the moments
of their optimiser, so that no step is taken twice. The cost is known before: it depends on numbers alone.
Source: Almost optimal exploration in multi-armed bandits (Karnin, Koren, Somekh, 2013), with steps in place of pulls;
Non-stochastic best arm identification and hyperparameter optimization (Jamieson, Talwalkar, 2016).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from weightspace.atlas.halving import Halving, Losses, Standing, halve
from weightspace.atlas.question import Member, Members
from weightspace.atlas.starts import Trial, Tuned
from weightspace.jobs.calls import Pool
from weightspace.jobs.engine import run
from weightspace.jobs.progress import Tick

__all__ = ["planned", "rounds", "tried"]


def rounds(members: int, steps: int, first: int | None) -> list[tuple[int, int]]:
    """(members, steps in all) of every round: `first` steps of all, then twice as many of the better half."""
    found = [(members, min(steps, steps if first is None else first))]
    while found[-1][1] < steps:
        alive, taken = found[-1]
        found.append((min(members, max(2, math.ceil(alive / 2))), min(steps, 2 * taken)))
    return found


def planned(members: int, trial: Trial, steps: int, first: int | None) -> tuple[int, int]:
    """The steps that all rounds take, and the examples that they pass through members."""
    total, passed, before = 0, 0, 0
    for alive, upto in rounds(members, steps, first):
        total += alive * (upto - before)
        passed += alive * (trial.passes(upto - before) + len(trial.test.task))
        before = upto
    return total, passed + (members * len(trial.train) if trial.classes is not None else 0)


def tried(
    trial: Trial,
    members: Members,
    steps: int,
    first: int | None = None,
    *,
    pool: Pool,
    confidence: float = 0.95,
    progress: Tick | None = None,
) -> Halving:
    """The ranking by the loss after `steps`; members dropped after fewer steps come behind, the last dropped first.

    How far those are behind, and whether they are tied, is said against the best of the round in which they were
    dropped. Raises `WeightspaceError` where no member can learn the task.
    """
    found = _Rounds(trial, members, pool, progress, planned(len(members), trial, steps, first)[1])
    plan = rounds(len(members), steps, first)
    level, size = 1 - (1 - confidence) / len(plan), len(trial.test.task)
    alive, dropped, left_out = [*members], list[Standing](), dict[str, str]()
    for number, (_, upto) in enumerate(plan):
        found.upto = upto
        halved = halve(found.ask, alive, size, first=size, confidence=level)
        left_out |= halved.left_out
        more = plan[number + 1][0] if number + 1 < len(plan) else len(halved.ranking)
        dropped = [*halved.ranking[more:], *dropped]
        alive = [row.name for row in halved.ranking[:more]]
        found.forget(alive)
    ranking = (*halved.ranking, *dropped)
    each = trial.passes(steps) + size + (len(trial.train) if trial.classes is not None else 0)
    return Halving(ranking, left_out, {}, found.passes, max(found.passes, len(ranking) * each), confidence)


class _Rounds:
    """The networks of the members that are left, as far as they have learnt."""

    def __init__(self, trial: Trial, members: Members, pool: Pool, progress: Tick | None, whole: int) -> None:
        self.trial, self.pool, self.progress, self.whole = trial, pool, progress, whole
        self.upto, self.passes = 0, 0
        self._now: dict[str, Member | Tuned] = dict(members)

    def ask(self, names: Sequence[str], start: int, stop: int) -> dict[str, Losses | str]:
        """The losses of members after `upto` steps."""
        found = run(self.trial, {name: (self._now[name], self.upto) for name in names}, engine=self.pool)
        answers: dict[str, Losses | str] = {}
        for name, value in found.items():
            answers[name] = value if isinstance(value, str) else value[0]
            if not isinstance(value, str):
                self._now[name] = value[1]
                self.passes += value[0].passes
        if self.progress is not None:
            self.progress(self.passes, max(self.passes, self.whole))
        return answers

    def forget(self, alive: Sequence[str]) -> None:
        """Let go of the networks that are dropped."""
        self._now = {name: self._now[name] for name in alive}
