"""Members ranked by a distance: from what they have learnt to a task, or from their weights to a network that knows it.

- "task2vec": the distance of the embeddings of two tasks, both by one probe network (see `codes.task2vec`);
- "codes": d(source -> task) = C(both) - C(source), the nats that the task costs once the source is known, from codes
  (see `codes.task_distance`);
- "weights": |w' - g w| modulo the group, w' a network of random weights that was trained on the task a little.

None of them looks at the member's losses on the task. The first two do not look at its weights at all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from weightspace.atlas.asked import Answer, some
from weightspace.atlas.question import Member, Members, Question, held, opened, reason
from weightspace.atlas.starts import BACK, Trial, Tuned, by_least
from weightspace.codes import transfer
from weightspace.codes.scores import Embedding, fitted_head, task2vec
from weightspace.codes.task_map import TaskMap
from weightspace.codes.transfer import task_distances
from weightspace.jobs.engine import Engine, Results
from weightspace.jobs.progress import Tick
from weightspace.net.cost import Cost
from weightspace.net.errors import WeightspaceError
from weightspace.net.model import Model, fresh
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.symmetry.quotient import modulo
from weightspace.symmetry.symmetry import Symmetry
from weightspace.symmetry.verdict import relative_distance
from weightspace.task.task import Task

__all__ = [
    "code_passes",
    "embedding_passes",
    "first_opened",
    "rank_by_codes",
    "rank_by_task2vec",
    "rank_by_weights",
    "with_target",
]

_TARGET = "the task"


# ------------------------------------------------------------------ distances of tasks


@public
def rank_by_task2vec(
    members: Members,
    task: Task,
    sources: Mapping[str, Task],
    probe: Net | None = None,
    *,
    asymmetric: bool = True,
    parts: int = 5,
    decay: float = 1e-2,
    confidence: float = 0.95,
) -> Answer:
    """The members ranked by the task2vec distance from what each has learnt to `task`, the nearest first.

    `sources`: member -> the task that it has learnt; members without one are left out. `probe`: the network that
    embeds all tasks, by default the first member that can. `asymmetric`: complex sources are nearer (see
    `Embedding.distance`). Errors are those of a jackknife over `parts` of the examples of both tasks, the head
    fitted anew each time (a head that is kept shows a fifth of the error); none with 1. Cost: `parts` times a pass
    forward and one back for every class, for every example of every task. Members of one source are tied. Raises
    `WeightspaceError` where no member has a source, and for labels that are not classes.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> nets = {"same": net, "random": ws.demo.example(1)[0]}
    >>> known = {"same": task, "random": ws.random_labels(task)}
    >>> ws.atlas.rank_by_task2vec(nets, task, known, asymmetric=False).best
    'same'
    """
    began, task = time.perf_counter(), held(task)
    known, left_out = _known(members, sources)
    if not 1 <= parts <= len(task):
        raise WeightspaceError(f"{parts} parts of {len(task)} examples; give 1 or more, and no more than examples")
    embedded, found = _Embedder(first_opened(probe, members), decay, parts), dict[str, Tensor | str](left_out)
    target, passes = embedded(task), embedding_passes(task, parts)
    for key, (source, names) in _shared(known).items():
        values: Tensor | str
        try:
            values = _apart(embedded(source), target, asymmetric)
            passes += embedding_passes(source, parts)
        except WeightspaceError as error:
            values = f"{key}: {reason(error)}"
        found |= dict.fromkeys(names, values)
    return Answer("task2vec", by_least(found, len(task), passes, passes, confidence), time.perf_counter() - began)


def _known(members: Members, sources: Mapping[str, Task]) -> tuple[dict[str, Task], dict[str, str]]:
    """The tasks of the members, and why others have none."""
    some(members)
    left_out = {
        name: "what it has learnt is not known (sources=, or --learnt)" for name in members if name not in sources
    }
    known = {name: sources[name] for name in members if name in sources}
    if not known:
        raise WeightspaceError("distance from which tasks? tell what each network has learnt, by sources= or --learnt")
    if wrong := [name for name, source in known.items() if not isinstance(source, Task)]:
        raise WeightspaceError(f"the source of {wrong[0]} is a {type(known[wrong[0]]).__name__}; give a Task")
    return known, left_out


def _shared(known: Mapping[str, Task]) -> dict[str, tuple[Task, list[str]]]:
    """Every task that is there, under the name of the first member that has learnt it, and all that have."""
    found: dict[int, tuple[str, Task, list[str]]] = {}
    for name, source in known.items():
        found.setdefault(id(source), (name, source, []))[2].append(name)
    return {name: (source, names) for name, source, names in found.values()}


def first_opened(probe: Net | None, members: Members) -> Net:
    """The probe; without one, the first member that can be opened."""
    if probe is not None:
        return probe
    why = ""
    for name, member in members.items():
        try:
            return opened(member)
        except (WeightspaceError, OSError) as error:
            why = why or f"{name}: {reason(error)}"
    raise WeightspaceError(f"no member can be opened: {why}")


class _Embedder:
    """The embeddings of tasks by one probe, whose head is fitted to each; its graph is read once for each head."""

    def __init__(self, probe: Net, decay: float, parts: int) -> None:
        self.probe, self.decay, self.parts = probe, decay, parts
        self._forms: dict[str, Net] = {}

    def __call__(self, task: Task) -> list[Embedding]:
        """The embedding of a task, and without each part of its examples, the head fitted anew each time."""
        task, n = held(task), len(task)
        classes = int(task.labels().max()) + 1
        left = [[k for k in range(n) if k % self.parts != part] for part in range(self.parts if self.parts > 1 else 0)]
        return [self._of(task, classes), *(self._of(task.pick(rows), classes) for rows in left if rows)]

    def _of(self, task: Task, classes: int) -> Embedding:
        fitted = fitted_head(self.probe, task, classes=classes, decay=self.decay)
        form = self._forms.setdefault(fitted.fingerprint, fitted)
        return task2vec(form.at(fitted.weights, fitted.state), task, fit=False)


def _apart(source: Sequence[Embedding], target: Sequence[Embedding], asymmetric: bool) -> Tensor:
    """The distance from source to target, and without each part of either."""
    kind: Any = "asymmetric" if asymmetric else "cosine"
    pairs = [(source[0], target[0]), *((source[0], t) for t in target[1:]), *((s, target[0]) for s in source[1:])]
    return torch.tensor([one.distance(other, kind) for one, other in pairs], dtype=torch.float64)


def embedding_passes(task: Task, parts: int) -> int:
    """Examples passed forward, or back for one class (which is twice as much), for an embedding and its error."""
    return max(1, parts) * len(task) * (1 + (BACK - 1) * (int(task.labels().max()) + 1))


@public
def rank_by_codes(
    members: Members,
    task: Task,
    sources: Mapping[str, Task],
    model: Model | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 1000,
    known: Results | None = None,
    confidence: float = 0.95,
    engine: Engine = 1,
    progress: Tick | None = None,
    **options: Any,
) -> Answer:
    """The members ranked by d(source -> task) = C(both) - C(source), in nats: what the task adds to its own.

    `sources`: as for `rank_by_task2vec`. `model`: the network whose codes are found, by default a member's
    architecture. Codes that are in `known` (of an atlas, `atlas.jobs`) are not found again, and new ones are written
    there. Errors are those of a jackknife over `seeds`, of which the shortest code counts. `options`: of
    `task_distances`, such as `task_id=True`, a head for each task. Cost: two codes for every source and seed, and one
    for the task (see `atlas.cost`). Raises `WeightspaceError` for tasks that do not fit each other or the model.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> known = {"same": task, "random": ws.random_labels(task)}
    >>> nets = {"same": net, "random": net}
    >>> ws.atlas.rank_by_codes(nets, task.take(30), known, seeds=(0, 1), steps=30, task_id=True).best
    'same'
    """
    began, task = time.perf_counter(), held(task)
    tasks, shared, left_out = with_target(members, task, sources)
    used, told = first_opened(None, members) if model is None else model, Counted(known)
    settings = {"seeds": seeds, "steps": steps, **options}
    found = task_distances(
        tasks, used, targets=[_TARGET], known=told, engine=engine, progress=progress, **settings
    )  # fmt: skip
    values: dict[str, Tensor | str] = dict(left_out)
    for key, names in shared.items():
        values |= dict.fromkeys(names, _without_each(found, key, len([*dict.fromkeys(seeds)])))
    whole = code_passes(transfer.cost(tasks, used, targets=[_TARGET], **settings))
    passes = round(whole * told.new / max(1, told.new + told.old))
    ranked = by_least(values, len(task), passes, whole, confidence)
    notes = (f"{told.old} of {told.old + told.new} codes were known.",) if told.old else ()
    return Answer("codes", ranked, time.perf_counter() - began, notes=notes)


def with_target(
    members: Members, task: Task, sources: Mapping[str, Task]
) -> tuple[dict[str, Task], dict[str, list[str]], dict[str, str]]:
    """The tasks by the first member of each and the target; the members of each; why others have none."""
    known, left_out = _known(members, sources)
    if _TARGET in known:
        raise WeightspaceError(f"a member is called {_TARGET!r}, which is the name of the target; give another name")
    shared = _shared(known)
    tasks = {**{key: held(source) for key, (source, _) in shared.items()}, _TARGET: task}
    return tasks, {key: names for key, (_, names) in shared.items()}, left_out


class Counted:
    """Results that are looked up in others, or kept for one call alone; how many were there, and how many are new."""

    def __init__(self, kept: Results | None) -> None:
        self.kept: Results = {} if kept is None else kept
        self.old, self.new = 0, 0

    def __contains__(self, key: Any) -> bool:
        there = key in self.kept
        self.old += there
        return there

    def __getitem__(self, key: Any) -> Any:
        return self.kept[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.kept[key] = value
        self.new += 1


def _without_each(found: TaskMap, source: str, seeds: int) -> Tensor:
    """The distance from a source to the target, and the same without each seed."""
    maps = [found]
    for k in range(seeds if seeds > 1 else 0):
        codes = {key: lengths[:k] + lengths[k + 1 :] for key, lengths in found.codes.items()}
        maps.append(replace(found, codes=codes))
    return torch.tensor([each.distance(source, _TARGET).value for each in maps], dtype=torch.float64)


def code_passes(cost: Cost) -> int:
    """Examples passed through a network by the steps of codes: a step is about four passes forward and back."""
    return 4 * BACK * cost.examples


# ------------------------------------------------------------------ distance of weights


@public
def rank_by_weights(
    members: Members,
    task: Task,
    model: Model | None = None,
    *,
    steps: int = 100,
    lr: float = 1e-3,
    batch: int = 64,
    seeds: Sequence[int] = (0, 1, 2),
    confidence: float = 0.95,
    progress: Tick | None = None,
) -> Answer:
    """The members ranked by the distance modulo the group from a network that was trained on the task a little.

    A network of random weights (`model`, by default the architecture of the first member) takes so many `steps` of
    Adam on the task, once for every seed. The distance is |a - g b| / sqrt((|a|^2 + |b|^2) / 2) over matrices, scales
    balanced, for the g that is found (see `modulo`): 0 for a copy, sqrt(2) for unrelated weights. Errors are those of
    the mean over seeds. Members of another architecture are left out. Raises `WeightspaceError` where none can be
    compared.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> nets = {"net": net, "noise": ws.perturb(net, 3.0)}
    >>> ws.atlas.rank_by_weights(nets, task, steps=30).best
    'net'
    """
    began, task = time.perf_counter(), held(task)
    some(members)
    if steps < 1 or batch < 1 or not lr > 0 or not seeds:
        raise WeightspaceError(f"steps {steps}, batch {batch}, lr {lr}, {len(seeds)} seeds: give positive numbers")
    used = first_opened(None, members) if model is None else model
    Question(task, "loss").check()
    ends = [_trained(used, task, steps, lr, batch, seed) for seed in dict.fromkeys(seeds)]
    apart, found = _Modulo(Symmetry.of(ends[0], task.example(2)), ends), dict[str, Tensor | str]()
    for number, (name, member) in enumerate(members.items()):
        found[name] = apart(member)
        if progress is not None:
            progress(number + 1, len(members))
    passes = len(ends) * BACK * steps * min(batch, len(task))
    return Answer("weights", by_least(found, len(task), passes, passes, confidence), time.perf_counter() - began)


def _trained(model: Model, task: Task, steps: int, lr: float, batch: int, seed: int) -> Net:
    trial = Trial(task, Question(task, "loss"), lr, batch, seed)
    return trial.on(Tuned(fresh(model, seed), 0, {}), steps).net


class _Modulo:
    """The relative distance modulo a group of a member from several networks: the mean, and without each."""

    def __init__(self, group: Symmetry, ends: Sequence[Net]) -> None:
        self.apart, self.ends = modulo(group, relative_distance), ends

    def __call__(self, member: Member) -> Tensor | str:
        try:
            net = opened(member)
            each = torch.tensor([self.apart(end, net).upper for end in self.ends], dtype=torch.float64)
        except (WeightspaceError, OSError) as error:
            return reason(error)
        n = len(each)
        return torch.cat([each.mean()[None], (each.sum() - each) / (n - 1)]) if n > 1 else each
