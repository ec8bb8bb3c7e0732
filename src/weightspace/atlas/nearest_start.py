"""Which of many networks to start from for a task: one question, asked in several ways, each with its cost.

| `by` | what is compared | looks at | the labels may be |
|---|---|---|---|
| "loss", "accuracy", "perplexity" | outputs and labels, by successive halving over examples | outputs | those known |
| "logme" | the evidence of the features for the labels | features | any |
| "steps" | the loss after fine-tuning, by successive halving over steps | all | any, with `head="fitted"` |
| "task2vec", "codes" | the distance from the task that each has learnt | the tasks alone | classes |
| "weights" | weights, modulo the group, to a network trained a little | weights | those of one architecture |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any, Literal, TypeAlias

from weightspace.atlas.asked import Answer, Head, rank, rank_starts, some, trial_of
from weightspace.atlas.by_distance import (
    code_passes,
    embedding_passes,
    first_opened,
    rank_by_codes,
    rank_by_task2vec,
    rank_by_weights,
    with_target,
)
from weightspace.atlas.question import Members
from weightspace.atlas.starts import BACK
from weightspace.atlas.tried import planned, rounds
from weightspace.codes import transfer
from weightspace.net.cost import Cost
from weightspace.net.errors import CallError, WeightspaceError
from weightspace.net.model import Model
from weightspace.net.public import public
from weightspace.task.task import Task

__all__ = ["Route", "cost", "nearest"]

Route: TypeAlias = Literal["loss", "accuracy", "perplexity", "logme", "steps", "task2vec", "codes", "weights"]
_STEPS = 20


@public
def nearest(task: Task, nets: Members, by: Route = "steps", **options: Any) -> Answer:
    """The networks in the order in which to start from them for a task, the nearest first.

    `nets`: name -> network, or a function that opens it. `by`, and the options of each (see the function named):

    - "loss", "accuracy", "perplexity": how far the outputs are from the labels, as they are: `atlas.rank`;
    - "logme": the worth of the features below the head for any labels: `atlas.rank`;
    - "steps": the loss on held-out examples after fine-tuning; all take a quarter of `steps` (20), the better half
      twice as many, and so on: `atlas.rank_starts`;
    - "task2vec", "codes": the distance from the task that each has learnt (`sources`: name -> task):
      `atlas.rank_by_task2vec`, `atlas.rank_by_codes`;
    - "weights": the distance modulo the group from a network of random weights that was trained on the task for a few
      steps: `atlas.rank_by_weights`.

    Every answer carries standard errors and which others cannot be told from the first; what cannot read the task is
    listed with the reason. `atlas.cost` says before what it takes. From few labels every way is uncertain, and says so
    by its ties: the experiment `nearest` measures how much worse the chosen start is than the best of all.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> nets = {"far": ws.perturb(net, 3.0), "near": ws.perturb(net, 0.1)}
    >>> [ws.nearest(task, nets, by).best for by in ("steps", "loss", "weights")]
    ['near', 'near', 'near']
    """
    return _way(by, options)[0](task, nets, by, **options)


@public
def cost(task: Task, nets: Members, by: Route = "steps", **options: Any) -> Cost:
    """What `nearest` of these arguments takes: steps, codes and examples, before it runs.

    `examples`: those that are passed through a network, at most; a step passes its batch three times, forward and
    back. `bytes`: networks that are held beside one, with the moments of their optimisers.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> nets = {"far": ws.perturb(net, 3.0), "near": ws.perturb(net, 0.1)}
    >>> print(ws.atlas.cost(task, nets, "steps", steps=20))
    40 steps of 30 examples, 0 MiB
    >>> print(ws.atlas.cost(task, nets, "loss"))
    24 examples passed, 0 MiB
    """
    return _way(by, options)[1](task, nets, **options)


def _way(by: str, options: Mapping[str, Any]) -> tuple[Callable[..., Answer], Callable[..., Cost]]:
    if by not in _WAYS:
        raise WeightspaceError(f"nothing is nearest by {by!r}; choose {', '.join(_WAYS)}")
    answer, cost, asked = _WAYS[by]
    taken = signature(asked).parameters
    known = [name for name, each in taken.items() if name not in ("members", "task", "by")]
    wrong = [name for name in options if name not in known]
    if wrong and all(each.kind is not Parameter.VAR_KEYWORD for each in taken.values()):
        raise CallError(f"nearest by {by!r} takes no {wrong[0]}; its options are {', '.join(known)}")
    return answer, cost


# ------------------------------------------------------------------ answers


def _asked(task: Task, nets: Members, by: Any, **options: Any) -> Answer:
    return rank(nets, task, by, **options)


def _tried(task: Task, nets: Members, by: str, *, steps: int = _STEPS, **options: Any) -> Answer:
    return rank_starts(nets, task, steps=steps, **({"first": _first(steps)} | options))


def _first(steps: int) -> int:
    return max(1, steps // 4)


def _embedded(task: Task, nets: Members, by: str, *, sources: Any = None, **more: Any) -> Answer:
    return rank_by_task2vec(nets, task, sources or {}, **more)


def _coded(task: Task, nets: Members, by: str, *, sources: Any = None, **more: Any) -> Answer:
    return rank_by_codes(nets, task, sources or {}, **more)


def _weighed(task: Task, nets: Members, by: str, **options: Any) -> Answer:
    return rank_by_weights(nets, task, **options)


# ------------------------------------------------------------------ costs


def _cost_of_asking(task: Task, nets: Members, budget: float = 0.2, **_: Any) -> Cost:
    some(nets)
    return Cost(examples=round(budget * len(nets) * len(task)))


def _cost_of_features(task: Task, nets: Members, budget: float = 0.2, **_: Any) -> Cost:
    some(nets)
    return Cost(examples=len(nets) * max(1, round(budget * len(task))))


def _cost_of_steps(
    task: Task, nets: Members, steps: int = _STEPS, head: Head = "kept", lr: float = 1e-3, batch: int = 64,
    share: float = 0.5, seed: int = 0, **more: Any,
) -> Cost:  # fmt: skip
    some(nets)
    trial, first = trial_of(task, "loss", steps, lr, batch, share, seed, head), more.get("first", _first(steps))
    total, passed = planned(len(nets), trial, steps, first)
    held = 4 * _size(nets) * len(nets) * (len(rounds(len(nets), steps, first)) > 1)  # the network, Adam's two, a slope
    return Cost(steps=total, batch=min(batch, len(trial.train)), examples=passed, bytes=held)


def _cost_of_embedding(
    task: Task, nets: Members, sources: Mapping[str, Task] | None = None, parts: int = 5, **_: Any
) -> Cost:
    tasks = with_target(nets, task, sources or {})[0]
    return Cost(examples=sum(embedding_passes(each, parts) for each in tasks.values()), bytes=2 * _size(nets))


def _cost_of_codes(
    task: Task, nets: Members, sources: Mapping[str, Task] | None = None, model: Model | None = None,
    known: Any = None, engine: Any = 1, progress: Any = None, confidence: float = 0.95, **settings: Any,
) -> Cost:  # fmt: skip
    tasks = with_target(nets, task, sources or {})[0]
    used = first_opened(None, nets) if model is None else model
    told = transfer.cost(tasks, used, targets=[*tasks][-1:], **settings)
    return Cost(codes=told.codes, steps=told.steps, examples=code_passes(told), bytes=told.bytes)


def _cost_of_weights(
    task: Task, nets: Members, model: Model | None = None, steps: int = 100, batch: int = 64,
    seeds: Sequence[int] = (0, 1, 2), **_: Any,
) -> Cost:  # fmt: skip
    some(nets)
    taken, batch = len({*seeds}) * steps, min(batch, len(task))
    return Cost(steps=taken, batch=batch, examples=BACK * taken * batch, bytes=(len({*seeds}) + 4) * _size(nets))


def _size(nets: Members) -> int:
    """The bytes of the first network that can be opened."""
    net = first_opened(None, nets)
    return sum(flat.nbytes for flat in (*net.weights.buffers, *net.state.buffers))


_WAYS: dict[str, tuple[Callable[..., Answer], Callable[..., Cost], Callable[..., Answer]]] = {
    "loss": (_asked, _cost_of_asking, rank),
    "accuracy": (_asked, _cost_of_asking, rank),
    "perplexity": (_asked, _cost_of_asking, rank),
    "logme": (_asked, _cost_of_features, rank),
    "steps": (_tried, _cost_of_steps, rank_starts),
    "task2vec": (_embedded, _cost_of_embedding, rank_by_task2vec),  # type: ignore[has-type]  # of a cycle of stubs
    "codes": (_coded, _cost_of_codes, rank_by_codes),  # type: ignore[has-type]  # of a cycle of stubs
    "weights": (_weighed, _cost_of_weights, rank_by_weights),  # type: ignore[has-type]  # of a cycle of stubs
}
