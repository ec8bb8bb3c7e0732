"""The commands `inform`, `tasks` and `certify`: what weights know, how far tasks are apart, what can be promised."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightspace import architecture, checkpoint, description, pac, structure, transfer
from weightspace.architecture import ArchitectureError, Stored
from weightspace.compare import Progress
from weightspace.description import Information, information
from weightspace.model import fresh
from weightspace.net import Net
from weightspace.pac import RiskBound, pac_bayes
from weightspace.structure import StructureFunction, random_labels, structure_function
from weightspace.task import Task, classifies, value_and_gradient
from weightspace.transfer import TaskMap, task_distances
from weightspace.walk import opened, picked
from weightspace.workbench import limited, scored, sources

__all__ = ["Apart", "Certified", "Informed", "certified", "informed", "named_task", "told_apart"]

_NARROW = 0.01  # the deviation of weights that are their own prior
METHODS = ("local", "variational", "sgld")


def _silent(what: str, done: int, total: int) -> None:
    pass


# ------------------------------------------------------------------ inform


@dataclass(frozen=True)
class Informed:
    """What the weights of a checkpoint hold about `examples` examples, by one or more methods; all in nats.

    `labels`: what it takes to write the labels down without the inputs, N times the entropy of the classes; `loss`: the
    network's own, summed. `structure`: of the task with networks of this architecture, where it was asked for.
    """

    name: str
    data_name: str
    weights: int
    examples: int
    loss: float
    right: float | None
    labels: float | None
    found: tuple[Information, ...]
    structure: StructureFunction | None = None

    @property
    def shortest(self) -> Information | None:
        """The code with the least E L + beta KL, where one was found."""
        return min((i for i in self.found if i.method != "sgld"), key=lambda i: i.length, default=None)

    def remarks(self) -> list[str]:
        """The sentences below the table."""
        said = [
            "information: KL between the weights that the task allows and what was known before, in nats. local: from "
            "the curvature at the network; variational: from the noise that its weights bear; sgld: from the loss at "
            "the temperature of the data, the learning coefficient times log N, without a prior."
        ]
        best = self.shortest
        if best is not None and self.labels:
            share = best.length / self.labels
            said.append(
                f"Network and what it leaves open take {best.length:,.0f} nats ({best.method}); the labels alone take "
                f"{self.labels:,.0f}. "
                + (f"The network saves {1 - share:.0%} of that." if share < 1 else
                   "Nothing is saved: this code of the network costs more than the labels that it explains.")
            )  # fmt: skip
        return [*said, *(f"{i.method}: {note}." for i in self.found for note in i.notes)]

    def data(self) -> dict[str, Any]:
        """As plain data."""
        told = {k: v for k, v in vars(self).items() if k not in ("found", "structure")}
        curve = self.structure.data() if self.structure else None
        return {**told, "found": [i.data() for i in self.found], "structure": curve}


def informed(
    path: Path,
    data: str,
    *,
    method: str = "local",
    arch: str | None = None,
    beta: float = 1.0,
    anchor: Path | None = None,
    curve: bool = False,
    rank: int | None = None,
    limit: int = 1000,
    trust_code: bool = False,
    seed: int = 0,
    progress: Progress = _silent,
) -> Informed:
    """`information` in a checkpoint about the training examples of `data`; what it takes is told before it runs.

    `anchor`: the checkpoint from before training. `rank`: of the local method. `curve`: the structure function of the
    task as well. Raises `WeightspaceError`.
    """
    if method not in (*METHODS, "all"):
        raise ArchitectureError(f"--method {method}: choose {', '.join(METHODS)} or all")
    template, net, *_ = opened(path, arch, trust_code)
    start = architecture.load(template, anchor, trust_code)[0] if anchor else None
    task = limited(_labelled(sources(data)[0], data), limit, seed)
    score = scored(task, net)
    one = _seconds(net, task)
    found = []
    for name in METHODS if method == "all" else (method,):
        options: dict[str, Any] = {} if name == "sgld" else {"beta": beta, "anchor": start}
        how: dict[str, Any] = {"blocks": False, "rank": rank} if name == "local" else {}
        cost = description.cost(net, task, name, **how)
        what = f"{name}: {cost}, about {_duration(one * cost.products)}"
        progress(what, 0, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", description.Unconverged)  # it is among the notes
            found.append(information(net, task, name, seed=seed, progress=partial(progress, what), **options, **how))
    swept = _swept(net, task, start, seed, one, progress) if curve else None
    total = score[0].loss * found[0].examples
    return Informed(
        path.name, data, net.weights.numel, found[0].examples, total, score[0].accuracy, _entropy(task), tuple(found),
        swept,
    )  # fmt: skip


def _swept(net: Net, task: Task, start: Net | None, seed: int, one: float, progress: Progress) -> StructureFunction:
    cost = structure.cost(task, net, seeds=(seed,))
    passes = cost.codes * cost.steps * min(1.0, cost.batch / len(task))
    what = f"structure function: {cost}, about {_duration(2 * one * passes)}"
    progress(what, 0, 0)
    return structure_function(task, net, seeds=(seed,), anchor=start, progress=partial(progress, what))


def _seconds(net: Net, task: Task) -> float:
    """What a pass forward and back over the task takes; the second of two."""
    value_and_gradient(task, net)
    begun = time.perf_counter()
    value_and_gradient(task, net)
    return time.perf_counter() - begun


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _entropy(task: Task) -> float | None:
    """N H(classes) in nats, where labels name classes."""
    if not classifies(task):
        return None
    y = task.labels()
    y = y if y.dim() == 1 else y.argmax(-1)
    share = y[y >= 0].bincount().double() / (y >= 0).sum()
    return float(-(share * share.clamp_min(1e-300).log()).sum() * (y >= 0).sum())


def _labelled(task: Task, data: str) -> Task:
    if any(y is None for _, y in task.batches()):
        raise ArchitectureError(f"{data}: no labels, and there is nothing to know; give x and y")
    return task


# ------------------------------------------------------------------ tasks


@dataclass(frozen=True)
class Apart:
    """How far tasks are from each other."""

    found: TaskMap

    def remarks(self) -> list[str]:
        """The sentences below the table."""
        told = self.found.data()["notes"]
        apart = [note for note in told if note.startswith("telling the tasks apart")]
        said = [f"The plane leaves out {self.found.stress:.0%} (stress) of the distances."]
        if apart:
            said.append(
                "With one head, telling tasks apart is part of the cost; --task-id gives each its own; choose by that."
            )
        return said + [f"{note[0].upper()}{note[1:]}." for note in told if note not in apart]

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return self.found.data()


def told_apart(
    names: Sequence[str],
    *,
    arch: str | None = None,
    limit: int = 500,
    seeds: int = 2,
    steps: int = 1000,
    task_id: bool = False,
    file: Path | None = None,
    trust_code: bool = False,
    seed: int = 0,
    progress: Progress = _silent,
) -> Apart:
    """`task_distances` between data sets named as `named_task` reads them; what it takes is told before it runs.

    `arch`: the network that codes are written with; without it, hidden layers of 64 and 32 units. `file`: codes are
    kept there, and a run that was cut off goes on. Raises `WeightspaceError`.
    """
    if len(set(names)) < max(2, len(names)):
        raise ArchitectureError("give two or more data sets, each once")
    found = {name: named_task(name, limit, seed) for name in names}
    model: Any = architecture.find(arch, [], trust_code) if arch else _perceptron([*found.values()])
    chosen = tuple(range(seed, seed + seeds))
    cost = transfer.cost(found, model, seeds=chosen, steps=steps, task_id=task_id)
    first = fresh(model, seed)
    passes = sum(_seconds(first, task) for task in found.values()) / len(found)
    seconds = 4 * passes * 1.5 * cost.steps  # a union is twice a task, a single one once; a step is four passes
    what = (
        f"{cost.codes} codes of {cost.steps // cost.codes:,} steps, {cost.bytes / 2**20:,.1f} MiB, about "
        f"{_duration(seconds)}"
    )
    progress(what, 0, cost.codes)
    tell = partial(progress, what)
    return Apart(
        task_distances(found, model, task_id=task_id, seeds=chosen, steps=steps, file=file, progress=tell)
    )  # fmt: skip


def named_task(name: str, limit: int, seed: int) -> Task:
    """A data set as `tasks` takes it, changed by words after colons: `mnist:0-4`, `digits:rotated`, `x.npz:random`.

    `0-4` or `1,3,7`: the examples of these classes, under the labels they have; `rotated`: images by a quarter turn;
    `random`: labels drawn at random among the classes there. At most `limit` training examples. Raises
    `ArchitectureError`.
    """
    data, *words = name.split(":") if not Path(name).exists() else [name]
    task = _labelled(sources(data)[0], name)
    for word in words:
        if word == "rotated":
            task = task.mapped(_turned)
        elif word == "random":
            chosen = task.labels().unique()
            task = random_labels(task, seed=seed)
            task = task.relabelled(chosen[task.labels() % len(chosen)])
        else:
            task = _of_classes(task, word, name)
    return limited(task, limit, seed)


def _of_classes(task: Task, word: str, name: str) -> Task:
    first, dash, last = word.partition("-")
    try:
        wanted = range(int(first), int(last) + 1) if dash else [int(part) for part in word.split(",")]
    except ValueError as error:
        raise ArchitectureError(f"{name}: {word!r} is no classes (0-4 or 1,3), rotated or random") from error
    y = task.labels()
    rows = torch.isin(y, torch.tensor([*wanted])).nonzero().flatten()
    if y.dim() != 1 or not len(rows):
        raise ArchitectureError(f"{name}: no example of the classes {word}")
    return task.pick(rows.tolist())


def _turned(x: Any) -> Tensor:
    if not isinstance(x, Tensor) or x.dim() < 3 or x.shape[-1] != x.shape[-2]:
        raise ArchitectureError("rotated: only square images can be turned")
    return x.rot90(1, (-2, -1))


def _perceptron(found: Sequence[Task]) -> Callable[[], nn.Module]:
    labels = [task.labels() for task in found]
    if any(y.is_floating_point() or y.dim() != 1 for y in labels):
        raise ArchitectureError("labels that are no classes need --arch")
    x = found[0].example(1)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ArchitectureError("inputs that are no images or numbers need --arch")
    inputs, classes = x[0].numel(), max(int(y.max()) for y in labels) + 1
    return lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes)
    )


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
    progress: Progress = _silent,
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
    task = limited(_labelled(task, data), limit, seed)
    centre = net if unseen else architecture.load(template, prior, trust_code)[0] if prior else None
    taught = sources(seen)[0] if seen else None
    given = {"steps": steps, "draws": draws}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    options |= {"deviation": _NARROW} if unseen else {}
    cost = pac.cost(net, task, **{name: value for name, value in options.items() if name != "deviation"})
    what = f"{cost}, about {_duration(_minutes(net, task, cost))}"
    progress(what, 0, 0)
    found = pac_bayes(
        net, task, delta, prior=centre, seen=taught, test=test, seed=seed, progress=partial(progress, what), **options
    )  # fmt: skip
    if unseen or seen:
        found = replace(found, kind="data")
    if out:
        stored = Stored(source, template, partial(picked, found.posterior.net.tensors))
        checkpoint.save(stored, out, force=force, metadata={**metadata, "weightspace": "the mean of Q, certified"})
    own, own_test = _error(net, task), None if test is None else _error(net, test)
    return Certified(path.name, data, found, own, own_test, unseen, None if out is None else str(out))


def _error(net: Net, task: Task) -> float | None:
    score = scored(task, net)
    return 1 - score[0].accuracy if score and score[0].accuracy is not None else None


def _minutes(net: Net, task: Task, cost: pac.Cost) -> float:
    """Seconds: a step is about two passes forward and back over its batch, a draw two passes forward."""
    some = task.take(cost.batch, 0)
    one = _seconds(net, some)
    return 2 * one * cost.steps + one * cost.draws / len(some)
