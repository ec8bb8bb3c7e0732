"""Many networks asked with new data: ranked by loss, accuracy or perplexity, or by what a start from them is worth."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, cast

from weightspace.atlas.halving import Halving, Losses, Standing, halve
from weightspace.atlas.question import Members, Question, held
from weightspace.atlas.starts import Features, Trial, by_least
from weightspace.atlas.tried import tried
from weightspace.jobs.calls import Pool
from weightspace.jobs.engine import Engine, opened, run
from weightspace.jobs.progress import Tick
from weightspace.net.errors import WeightspaceError
from weightspace.net.plain import plain
from weightspace.net.public import public
from weightspace.task.classification import classifies
from weightspace.task.examples import shuffled
from weightspace.task.task import Task

__all__ = ["Answer", "By", "Head", "rank", "rank_starts", "some", "trial_of"]


By: TypeAlias = Literal["loss", "accuracy", "perplexity", "logme", "task2vec", "codes", "weights"]
Head: TypeAlias = Literal["kept", "fitted"]


@public
@dataclass(frozen=True)
class Answer:
    """The members of a set in the order of their worth for a task, the best first; what `rank` and `nearest` return.

    `by`: what is measured. `steps`: of fine-tuning before it. `found`: the ranking, its errors and its cost in
    examples; `seconds`: how long it took. `notes`: sentences about it.
    """

    by: By
    found: Halving
    seconds: float
    steps: int = 0
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> str:
        """The name of the best member."""
        return self.found.best

    @property
    def tied(self) -> tuple[str, ...]:
        """The names of the members that cannot be told from the best, the best among them."""
        return self.found.tied

    @property
    def left_out(self) -> Mapping[str, str]:
        """Member -> why it is not ranked."""
        return self.found.left_out

    @property
    def whole_seconds(self) -> float:
        """About how long asking every member on all examples takes; NaN where all was known before."""
        return self.seconds / self.found.share if self.found.passes else math.nan

    def value(self, row: Standing) -> tuple[float, float]:
        """The accuracy, perplexity, score or loss of a member, and its standard error."""
        if self.by == "perplexity":
            height = math.exp(row.loss) if row.loss < 700 else math.inf
            return height, height * row.error
        return {"accuracy": 1 - row.loss, "logme": -row.loss}.get(self.by, row.loss), row.error

    def table(self) -> str:
        """A Markdown table of the ranking."""
        lines = [["", "member", self.by, "±", "behind", "±", "examples"], ["---"] * 7]
        for place, row in enumerate(self.found.ranking, 1):
            numbers = (*self.value(row), row.behind, row.behind_error)
            mark = f"{place}{' =' * row.tied}"
            lines.append([mark, row.name.replace("|", "\\|"), *(f"{x:.4g}" for x in numbers), str(row.examples)])
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)

    def remarks(self) -> list[str]:
        """Sentences about the answer: ties, what is left out, the cost."""
        found, said = self.found, []
        if others := len(self.tied) - 1:
            said.append(f"{others} of the others cannot be told from {self.best} on these data (marked =).")
        whole = found.ranking[0].examples
        if few := [row.examples for row in found.ranking if row.examples < whole]:
            between = " to ".join(str(n) for n in sorted({min(few), max(few)}))
            said.append(
                f"{len(few)} of the others answered {between} examples, not {whole} as {self.best}, since only the "
                "better half of a round goes on: the order below the best may be another on all examples."
            )
        if found.instead:
            said.append(f"{len(found.instead)} near-duplicates were not asked; another of their group answered.")
        said += [f"{name} is left out: {why}." for name, why in found.left_out.items()]
        many = f"{found.passes:,} examples were passed through members"
        if found.passes < found.whole:
            many += f", {found.share:.0%} of asking all on all ({found.whole:,})"
        return [*said, *self.notes, f"{many}, in {self.seconds:.1f} s."]

    def data(self) -> dict[str, Any]:
        """All results as plain data for JSON."""
        rows = []
        for row in self.found.ranking:
            value, error = self.value(row)
            rows.append({"name": row.name, "value": value, "error": error, "examples": row.examples})
            rows[-1] |= {"behind": row.behind, "behind_error": row.behind_error, "tied": row.tied}
        own = {name: getattr(self.found, name) for name in ("left_out", "instead", "passes", "whole", "confidence")}
        times = {"seconds": self.seconds, "whole_seconds": self.whole_seconds}
        told = {"by": self.by, "steps": self.steps, "best": self.best, "tied": [*self.tied], "ranking": rows}
        notes = {"notes": [*self.notes]} if self.notes else {}
        return plain({**told, **own, **times, **notes})


@public
def rank(
    members: Members,
    task: Task,
    by: By = "loss",
    *,
    groups: Sequence[Sequence[str]] = (),
    budget: float = 0.2,
    confidence: float = 0.95,
    first: int | None = None,
    seed: int = 0,
    engine: Engine = 1,
    progress: Tick | None = None,
) -> Answer:
    """The members ranked by what they are worth for the data of `task`, without asking all of them on all examples.

    `members`: name -> network, or a function that opens it, called whenever the member is asked. `by`: "loss",
    "accuracy", "perplexity" (of tokens, see `task.next_token`), or "logme", the evidence of the features below the last
    linear map for the labels (see `codes.logme`), which any number of classes has. Losses are compared by successive
    halving, in an order of the examples drawn from `seed`: see `halve` for `budget`, `first`, `confidence` and
    `groups`. By "logme" every member is asked on `budget` of the examples (on all, with `budget` .999), and its errors
    are those of a jackknife. What cannot be opened, cannot read the data or has NaN losses is listed with the reason
    (`Answer.left_out`). `engine`: where members are asked, see `jobs.run`. Raises `WeightspaceError` where no member
    can answer, and `TaskError` for data without the labels that `by` needs.

    >>> import torch, weightspace as ws
    >>> net, task = ws.demo.example()
    >>> nets = {"net": net, "noisy": ws.perturb(net, 3.0), "other": ws.Net.of(torch.nn.Linear(3, 2))}
    >>> answer = ws.atlas.rank(nets, task)
    >>> answer.best, [*answer.left_out]
    ('net', ['other'])
    """
    began, task = time.perf_counter(), held(task)
    some(members)
    task = task._with(task._source.pick(shuffled(len(task), seed)))
    if by == "logme":
        count = max(1, round(budget * len(task)))
        scores = Features(task.take(count))
        scores.task.labels()
        found = run(scores, {name: (member,) for name, member in members.items()}, engine=engine, progress=progress)
        passes = count * sum(not isinstance(value, str) for value in found.values())
        return Answer(by, by_least(found, count, passes, passes, confidence), time.perf_counter() - began)
    if by not in ("loss", "accuracy", "perplexity"):
        raise WeightspaceError(f"rank measures loss, accuracy, perplexity or logme, not {by}; see nearest")
    question = Question(task, cast(Any, by))
    question.check()
    with opened(engine) as pool:
        halved = halve(
            partial(_ask, pool, question, members), [*members], len(task),
            budget=budget, first=first, confidence=confidence, groups=groups, progress=progress,
        )  # fmt: skip
    return Answer(by, halved, time.perf_counter() - began)


@public
def rank_starts(
    members: Members,
    task: Task,
    by: Literal["loss", "accuracy", "perplexity"] = "loss",
    *,
    steps: int = 20,
    first: int | None = None,
    head: Head = "kept",
    lr: float = 1e-3,
    batch: int = 64,
    share: float = 0.5,
    confidence: float = 0.95,
    seed: int = 0,
    engine: Engine = 1,
    progress: Tick | None = None,
) -> Answer:
    """The members ranked by their loss after a few `steps` of fine-tuning on the data: what a start from each gives.

    Every member takes the same steps of Adam with the learning rate `lr`, on the same batches of a random `share` of
    the examples, and is measured on the others. All take all `steps`; with `first`, all take so many steps, the better
    half twice as many, and so on up to `steps` (see `atlas.tried`). `head`: "kept", or "fitted", a new last linear
    layer fitted to the features first (see `codes.fitted_head`): for other classes than those that a member knows, and
    then 0 steps will do. `confidence`, `seed`, `engine` and errors as for `rank`.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> nets = {"far": ws.perturb(net, 3.0), "near": ws.perturb(net, 0.1)}
    >>> ws.atlas.rank_starts(nets, task, steps=3).best
    'near'
    """
    began = time.perf_counter()
    some(members)
    trial = trial_of(task, by, steps, lr, batch, share, seed, head)
    if first is not None and not 1 <= first <= max(1, steps):
        raise WeightspaceError(f"{first} steps in the first round of {steps}; give 1 or more, and no more than all")
    with opened(engine) as pool:
        found = tried(trial, members, steps, first, pool=pool, confidence=confidence, progress=progress)
    return Answer(by, found, time.perf_counter() - began, steps)


def trial_of(
    task: Task, by: str, steps: int, lr: float, batch: int, share: float, seed: int, head: Head = "kept"
) -> Trial:
    """The trial that `rank_starts` makes of its arguments. Raises `WeightspaceError` for numbers out of range."""
    if steps < (head == "kept") or batch < 1 or not lr > 0:
        raise WeightspaceError(f"steps {steps}, batch {batch}, lr {lr}: give positive numbers")
    if head not in ("kept", "fitted"):
        raise WeightspaceError(f"a head is kept or fitted, not {head!r}")
    if by not in ("loss", "accuracy", "perplexity"):
        raise WeightspaceError(f"starts are ranked by loss, accuracy or perplexity, not by {by}")
    task = held(task)
    train, test = task.split(share, seed)
    question = Question(test, cast(Any, by))
    question.check()
    classes = None
    if head == "fitted":
        if not classifies(task):
            raise WeightspaceError('a head is fitted to classes, and the labels are none; give head="kept"')
        classes = int(task.labels().max()) + 1
    return Trial(train, question, lr, batch, seed, classes)


def some(members: Members) -> None:
    """Raise `WeightspaceError` where there are none."""
    if not members:
        raise WeightspaceError("no members to ask; give one or more networks by name")


def _ask(
    pool: Pool, question: Question, members: Members, names: Sequence[str], start: int, stop: int
) -> dict[str, Losses | str]:
    """The answers of members to the examples from `start` to `stop`."""
    return run(question, {name: (members[name], start, stop) for name in names}, engine=pool)
