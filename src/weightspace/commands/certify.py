"""`weightspace certify`: a PAC-Bayes bound on the error on new data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from weightspace.checkpoint.architecture import ArchitectureError
from weightspace.commands.data import labelled, limited, train_and_test
from weightspace.commands.progress import duration, seconds
from weightspace.commands.scores import scored
from weightspace.commands.settings import Settings
from weightspace.net.cost import Cost
from weightspace.net.net import Net
from weightspace.risk import pac_bound
from weightspace.risk.pac_bound import RiskBound, pac_bayes
from weightspace.task.task import Task

__all__ = ["Certified", "Prior", "certify"]

_NARROW = 0.01  # standard deviation of the prior around a checkpoint that is its own prior


@dataclass(frozen=True)
class Certified:
    """The bound for networks drawn from Q, and the errors of the checkpoint itself; `out`: where the mean of Q is."""

    name: str
    data_name: str
    found: RiskBound
    own_error: float | None
    own_test_error: float | None
    unseen: bool
    out: str | None = None

    def remarks(self) -> list[str]:
        """The sentences below the table."""
        q = self.found
        said = [f"{q.verdict[0].upper()}{q.verdict[1:]}."]
        if self.unseen:
            said.append(
                f"{self.name} itself, if it has seen none of these {q.examples:,} examples, errs on at most "
                f"{q.hold_out:.2%} of new ones (the hold-out bound, with the same probability)."
            )
        elif q.kind == "random":
            said.append(
                f"This holds for networks drawn from Q, which was trained here from the prior; for {self.name} alone "
                "no such bound is known. New examples must come from the same distribution as these."
            )
        else:
            said.append(
                "It holds if the prior was chosen without these examples; none of those of --seen is among them."
            )
        return said

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return {**{k: v for k, v in vars(self).items() if k != "found"}, **self.found.data()}


@dataclass(frozen=True)
class Prior:
    """Where the prior is centred; a fresh initialisation by default.

    `file`: a checkpoint from before training, or trained on other data, `seen`. `unseen`: the checkpoint to certify
    itself, because it has seen none of the examples.
    """

    file: Path | None = None
    seen: str | None = None
    unseen: bool = False


def certify(
    path: Path,
    data: str,
    prior: Prior,
    *,
    delta: float = 0.05,
    steps: int | None = None,
    draws: int | None = None,
    limit: int = 60_000,
    out: Path | None = None,
    settings: Settings,
) -> Certified:
    """`pac_bayes` for a checkpoint on the training examples of `data`; the cost is told before it runs.

    `delta`: the probability with which the bound may fail. `steps` of training on the bound; `draws`: networks drawn to
    estimate the error. `out`: where the mean of Q is written. Raises `WeightspaceError`.
    """
    if prior.unseen and prior.file:
        raise ArchitectureError("--unseen takes the checkpoint itself as the prior; leave out --prior")
    file, progress = settings.open(path), settings.progress
    task, test = train_and_test(data)
    task = limited(labelled(task, data), limit, settings.seed)
    centre = file.net if prior.unseen else file.like(prior.file) if prior.file else None
    seen = train_and_test(prior.seen)[0] if prior.seen else None
    given = {name: value for name, value in (("steps", steps), ("draws", draws)) if value is not None}
    cost = pac_bound.cost(file.net, task, **given)
    options: dict[str, Any] = {**given, "deviation": _NARROW} if prior.unseen else {**given}
    what = f"{cost}, about {duration(_expected_seconds(file.net, task, cost))}"
    progress(what, 0, 0)
    found = pac_bayes(
        file.net, task, delta, prior=centre, seen=seen, test=test, seed=settings.seed,
        progress=partial(progress, what), **options,
    )  # fmt: skip
    if prior.unseen or prior.seen:
        found = replace(found, kind="data")
    if out:
        file.save(found.posterior.net, out, "the mean of Q, certified")
    own, own_test = _error(file.net, task), None if test is None else _error(file.net, test)
    return Certified(path.name, data, found, own, own_test, prior.unseen, None if out is None else str(out))


def _error(net: Net, task: Task) -> float | None:
    score = scored(task, net)
    return 1 - score[0].accuracy if score and score[0].accuracy is not None else None


def _expected_seconds(net: Net, task: Task, cost: Cost) -> float:
    """Seconds expected: a step is about two passes forward and back over its batch, a draw two passes forward."""
    some = task.take(cost.batch, 0)
    one = seconds(net, some)
    return 2 * one * cost.steps + one * cost.draws / len(some)
