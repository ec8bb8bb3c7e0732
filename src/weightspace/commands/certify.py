"""What `weightspace certify` promises: a bound on the error on new data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from weightspace.checkpoint import architecture, writer
from weightspace.checkpoint.architecture import ArchitectureError, Stored
from weightspace.commands.progress import Progress, duration, seconds, silent
from weightspace.commands.workspace import labelled, limited, opened, picked, scored, sources
from weightspace.net.cost import Cost
from weightspace.net.net import Net
from weightspace.risk import pac_bound
from weightspace.risk.pac_bound import RiskBound, pac_bayes
from weightspace.task.task import Task

__all__ = ["Certified", "certified"]


_NARROW = 0.01  # the deviation of weights that are their own prior


# ------------------------------------------------------------------ certify


@dataclass(frozen=True)
class Certified:
    """What was promised for the networks drawn from Q, and what the checkpoint itself does; `out`: where mu went."""

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
                f"{q.hold_out:.2%} of new ones (by counting, with the same probability)."
            )
        elif q.kind == "random":
            said.append(
                f"This holds for networks drawn from Q, which was trained here from the prior; for {self.name} alone "
                "no such promise is known. What it promises, it promises for examples like these."
            )
        else:
            said.append("It holds if the prior was chosen without these examples; those given were compared.")
        return said

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return {**{k: v for k, v in vars(self).items() if k != "found"}, **self.found.data()}


def certified(
    path: Path,
    data: str,
    *,
    arch: str | None = None,
    prior: Path | None = None,
    seen: str | None = None,
    unseen: bool = False,
    delta: float = 0.05,
    steps: int | None = None,
    draws: int | None = None,
    limit: int = 60_000,
    out: Path | None = None,
    force: bool = False,
    trust_code: bool = False,
    seed: int = 0,
    progress: Progress = silent,
) -> Certified:
    """`pac_bayes` for a checkpoint on the training examples of `data`; what it takes is told before it runs.

    `prior`: the checkpoint from before training; `unseen`: the checkpoint itself, which has not seen `data`; neither: a
    fresh initialisation. `seen`: what the prior was trained on. `out`: where the mean of Q is written. Raises
    `WeightspaceError`.
    """
    if unseen and prior:
        raise ArchitectureError("--unseen takes the checkpoint itself as the prior; leave out --prior")
    template, net, source, metadata = opened(path, arch, trust_code)
    task, test = sources(data)
    task = limited(labelled(task, data), limit, seed)
    centre = net if unseen else architecture.load(template, prior, trust_code)[0] if prior else None
    taught = sources(seen)[0] if seen else None
    given = {"steps": steps, "draws": draws}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    options |= {"deviation": _NARROW} if unseen else {}
    cost = pac_bound.cost(net, task, **{name: value for name, value in options.items() if name != "deviation"})
    what = f"{cost}, about {duration(_expected_seconds(net, task, cost))}"
    progress(what, 0, 0)
    found = pac_bayes(
        net, task, delta, prior=centre, seen=taught, test=test, seed=seed, progress=partial(progress, what), **options
    )  # fmt: skip
    if unseen or seen:
        found = replace(found, kind="data")
    if out:
        stored = Stored(source, template, partial(picked, found.posterior.net.tensors))
        writer.save(stored, out, force=force, metadata={**metadata, "weightspace": "the mean of Q, certified"})
    own, own_test = _error(net, task), None if test is None else _error(net, test)
    return Certified(path.name, data, found, own, own_test, unseen, None if out is None else str(out))


def _error(net: Net, task: Task) -> float | None:
    score = scored(task, net)
    return 1 - score[0].accuracy if score and score[0].accuracy is not None else None


def _expected_seconds(net: Net, task: Task, cost: Cost) -> float:
    """Seconds: a step is about two passes forward and back over its batch, a draw two passes forward."""
    some = task.take(cost.batch, 0)
    one = seconds(net, some)
    return 2 * one * cost.steps + one * cost.draws / len(some)
