"""The distance between two tasks: the nats that task b costs once task a has been learnt.

    C(D) = min_Q E_{w ~ Q} L_D(w) + beta KL(Q | P),     d(a -> b) = C(ab) - C(a)

C(D) is the shortest description length that `encode` finds for the labels of D given its inputs, the network included:
a sum over the examples. ab are the examples of both tasks. For i.i.d. examples and a perfect code, d(a -> b) lies
between 0 (a contains all of b) and C(b) (a helps nothing); random labels cost N log(classes) from anywhere. It is
asymmetric, and since C(ab) = C(ba) the asymmetry is that of the two lengths: d(a -> b) - d(b -> a) = C(b) - C(a). A
complex task is a better source for a simple one than the other way round.
With one head, a code of ab must also distinguish the examples of the two tasks, which can cost up to (N_a + N_b) log 2,
so that d may exceed C(b). With `task_id` the network has a head for each task and the task of every example is an
input: then the same inputs may have different labels in the two tasks, and distinguishing tasks costs nothing.
Source: The information complexity of learning tasks, their structure and their distance (Achille, Paolini, Mbeng,
Soatto, 2021).
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import combinations, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightspace import __version__
from weightspace.codes.encoding import encode
from weightspace.codes.store import Store
from weightspace.codes.task_map import Distance, Key, TaskMap
from weightspace.jobs.engine import Engine, Results, run
from weightspace.jobs.progress import Tick
from weightspace.net.cost import Cost
from weightspace.net.errors import WeightspaceError
from weightspace.net.inputs import each, leaves
from weightspace.net.model import Model, fresh
from weightspace.net.net import Net, grown
from weightspace.net.public import public
from weightspace.task.digest import DigestError, Frame, digest, response, told
from weightspace.task.outputs import logits
from weightspace.task.task import Task

__all__ = ["cost", "task_distance", "task_distances"]


_VERSION = 2  # of the file


@public(renamed={"rate": "lr"})
def task_distance(
    a: Task,
    b: Task,
    model: Model,
    *,
    task_id: bool = False,
    seeds: Sequence[int] = (0, 1, 2),
    beta: float = 1.0,
    steps: int = 1000,
    lr: float = 0.02,
    file: str | os.PathLike[str] | None = None,
    engine: Engine = 1,
    progress: Tick | None = None,
    **options: Any,
) -> Distance:
    """The distance d(a -> b) = C(ab) - C(a) between two tasks: the nats that b costs once a has been learnt.

    `model`: a function that makes the module, or a module or Net, whose weights are drawn anew for every seed. C is the
    shortest of the codes from all `seeds` and the trivial one. `task_id`: a head for each task; then two networks, one
    for each task, are a code of both, and C(ab) <= C(a) + C(b). A code of ab is one of a, hence C(a) <= C(ab). Both are
    enforced, with a note where a fit violates them. `steps`, `lr` and `options` are those of `encode`. `file`: codes
    are stored there as they are found, and an interrupted run resumes. `engine`: where codes are found, see `jobs.run`.
    `progress(done, total)` counts codes. Cost: three codes for every seed (see `cost`). Raises `WeightspaceError` for
    tasks that do not fit each other or the model.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.task_distance(task, ws.random_labels(task), net, seeds=(0,), steps=3, draws=2)
    >>> 0 <= found.value == found.joint - found.source
    True
    """
    pair: dict[str, Any] = {"task_id": task_id, "seeds": seeds, "beta": beta, "steps": steps, "lr": lr, **options}
    found = task_distances({"a": a, "b": b}, model, file=file, engine=engine, progress=progress, **pair)
    return found.distance("a", "b")


@public(renamed={"rate": "lr"})
def task_distances(
    tasks: Mapping[str, Task],
    model: Model,
    *,
    targets: Sequence[str] | None = None,
    task_id: bool = False,
    seeds: Sequence[int] = (0, 1, 2),
    beta: float = 1.0,
    steps: int = 1000,
    lr: float = 0.02,
    file: str | os.PathLike[str] | None = None,
    known: Results | None = None,
    engine: Engine = 1,
    progress: Tick | None = None,
    **options: Any,
) -> TaskMap:
    """The distances d(a -> b) between all pairs of `tasks`, see `task_distance`; one code serves both directions.

    `targets`: only pairs with at least one of these. Cost: n (n + 1) / 2 codes for every seed, fewer with `targets`
    (see `cost`). `file`: every length is stored there as it is found, with the `digest` of the tasks, networks and
    settings it depends on, and reused by later runs, also with more tasks, seeds or pairs. `known`: the same in place
    of a file, in a mapping from the key of a code, which holds these digests, to its length, such as `atlas.jobs`.
    `engine`: where codes are found, each a job of its own, see `jobs.run`. Raises `WeightspaceError` for fewer than two
    tasks, tasks of different inputs or losses, without labels, or with labels for which the network has no output, and
    for a file of other tasks, networks or settings; `DigestError` where a loss hides its state.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.task_distances({"a": task, "b": ws.random_labels(task)}, net, seeds=(0,), steps=3, draws=2)
    >>> found.values.shape, found.nearest("a")
    (torch.Size([2, 2]), 'b')
    """
    wanted, seeds = _wanted(tasks, targets), [*dict.fromkeys(seeds)]
    options = {"beta": beta, "steps": steps, "lr": lr, **options}
    _checked(tasks, model, task_id, seeds)
    if file is not None and known is not None:
        raise WeightspaceError("codes are kept in a file or in known=; give one of the two")
    settings = {"task_id": task_id, **options}
    book = _Book(file, settings, tasks, model, seeds) if known is None else _Keyed(known, settings, tasks, model, seeds)
    encoder = _Encoder(_Maker(model, task_id), tasks, options)
    jobs = {(_sorted(key), seed): (key, seed) for seed, key in product(seeds, wanted)}
    run(encoder, jobs, engine=engine, done=book, progress=progress)
    codes = {key: tuple(book[_sorted(key), seed] for seed in seeds) for key in wanted}
    return TaskMap(tuple(tasks), codes, tuple(len(task) for task in tasks.values()), beta, task_id)


@public
def cost(
    tasks: Mapping[str, Task],
    model: Model,
    *,
    targets: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 1000,
    batch: int = 512,
    task_id: bool = False,
    **options: Any,
) -> Cost:
    """What `task_distances` of these arguments takes: codes, their steps in all, examples passed forward and back.

    A step costs about four passes of the plain network forward and back over its batch. `bytes`: the Gaussian, its
    gradients and the optimiser's moments; activations of one batch come on top.

    >>> import weightspace as ws
    >>> from weightspace.codes.transfer import cost
    >>> net, task = ws.demo.example()
    >>> cost({"a": task.take(30), "b": task.take(20)}, net, seeds=(0,), steps=10).codes     # a, b and both together
    3
    """
    net = _checked(tasks, model, task_id, seeds)
    sizes = [sum(len(tasks[name]) for name in key) for key in _wanted(tasks, targets)]
    codes = len(sizes) * len(seeds)
    passed = sum(min(batch, size) for size in sizes) * steps * len(seeds)
    room = 8 * sum(w.nbytes for w in net.weights.values())
    return Cost(codes=codes, steps=codes * steps, examples=passed, bytes=room)


def _sorted(key: Sequence[str]) -> Key:
    return tuple(sorted(key))


def _wanted(tasks: Mapping[str, Task], targets: Sequence[str] | None) -> list[Key]:
    """The tasks and pairs of tasks for which codes are needed."""
    if unknown := [name for name in targets or () if name not in tasks]:
        raise WeightspaceError(f"no task {unknown[0]!r} for targets=; there are {', '.join(tasks)}")
    pairs = [pair for pair in combinations(tasks, 2) if targets is None or {*pair} & {*targets}]
    return [*((name,) for name in tasks), *pairs]


# ------------------------------------------------------------------ networks


class _Maker:
    """Fresh networks of a model, one for every seed, with one shared architecture, so that its graph is read once."""

    def __init__(self, model: Model, task_id: bool) -> None:
        self.model, self.task_id = model, task_id
        self._forms: dict[tuple[int, str], Net] = {}

    def placed(self, tasks: Sequence[Task], seed: int) -> tuple[Net, Task]:
        """A fresh network, with a head for each task where asked for, and the union of the tasks as its input."""
        net, heads = fresh(self.model, seed), len(tasks) if self.task_id else 1
        if heads > 1:
            net = _headed(net, tasks[0], heads, seed)
            tasks = [_told(task, k, heads, net.dtype) for k, task in enumerate(tasks)]
        try:
            form = self._forms.setdefault((heads, digest(Frame(net))), net)
        except DigestError:  # a network without a digest is not shared
            form = net
        return form.at(net.weights, net.state), reduce(operator.or_, tasks)


@dataclass(frozen=True)
class _Encoder:
    """The length of the code of a union of tasks, of these names, for a seed."""

    maker: _Maker
    tasks: Mapping[str, Task]
    options: dict[str, Any]

    def __call__(self, key: Key, seed: int) -> float:
        net, task = self.maker.placed([self.tasks[name] for name in key], seed)
        return encode(net, task, seed=seed, **self.options).length


class _Heads(nn.Module):
    """A network with a head for each task; the last input, `which`, is the one-hot number of the task."""

    def __init__(self, module: nn.Module, output: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.module, self.output = module, output

    def forward(self, *given: Any, **named: Any) -> Tensor:
        which = named.pop("which") if named else given[-1]
        f = self.output(self.module(*(given if named else given[:-1]), **named))
        f = f.unflatten(-1, (which.shape[-1], -1))
        return (f * which.view(len(which), *[1] * (f.dim() - 3), which.shape[-1], 1)).sum(-2)


@torch.no_grad()
def _headed(net: Net, task: Task, heads: int, seed: int) -> Net:
    """The network with `heads` times as many outputs of its last linear layer, one head for each task."""
    before = task.forward(net, task.example(2))
    outputs = before.shape[-1] if before.dim() > 1 else 0
    wide = grown(net, (heads - 1) * outputs, None, seed) if outputs else net
    after = task.forward(wide, task.example(2))
    if after.shape != (*before.shape[:-1], heads * outputs) or not torch.allclose(after[..., :outputs], before):
        seen = f"outputs {tuple(before.shape)} became {tuple(after.shape)} with more rows in the last linear map"
        raise WeightspaceError(f"{seen}; task_id needs one that gives the outputs directly")
    return Net.of(_Heads(wide.live(), task.output))


def _told(task: Task, k: int, heads: int, dtype: torch.dtype) -> Task:
    """The task with the one-hot number of its head as a further input, held in memory."""

    def beside(x: Any) -> Any:
        which = torch.zeros(len(leaves(x)[0]), heads, dtype=dtype)
        which[:, k] = 1
        return {**x, "which": which} if isinstance(x, Mapping) else (*x, which) if isinstance(x, tuple) else (x, which)

    told = task.mapped(beside)
    told.output = logits
    return told


# ------------------------------------------------------------------ checks of tasks and model


def _checked(tasks: Mapping[str, Task], model: Model, task_id: bool, seeds: Sequence[int]) -> Net:
    """A fresh network that fits all tasks. Raises `WeightspaceError` for tasks that do not fit it or each other."""
    if len(tasks) < 2:
        raise WeightspaceError(f"a distance is between two tasks, got {len(tasks)}; give two or more")
    if not seeds:
        raise WeightspaceError("no seeds; give one or more")
    shapes: dict[Any, str] = {}
    for name, task in tasks.items():
        if not isinstance(task, Task):
            raise WeightspaceError(f"{name} is a {type(task).__name__}; give Task(inputs, labels)")
        with _blamed(name):
            x, y = next(task.batches())
        if y is None:
            raise WeightspaceError(f"{name} has no labels, and a distance is one of labels; give Task(inputs, labels)")
        shapes.setdefault(repr(each(lambda t: tuple(t.shape[1:]), x)), name)
    if len(shapes) > 1:
        (one, a), (other, b), *_ = shapes.items()
        raise WeightspaceError(f"an example of {a} has shape {one}, one of {b} {other}; bring them to one shape")
    net = fresh(model, seeds[0])
    first = next(iter(tasks.values()))
    for name, task in tasks.items():
        with _blamed(name):
            value = float(task(net))
            first | task
        if not math.isfinite(value):
            raise WeightspaceError(
                f"{name}: the loss of a fresh network is {value}; look for NaN and infinity in the inputs"
            )
    return _headed(net, first, 2, seeds[0]) if task_id else net


@contextmanager
def _blamed(name: str) -> Iterator[None]:
    """Put the name of the task in front of the message of an error."""
    try:
        yield
    except WeightspaceError as error:
        raise WeightspaceError(f"{name}: {error}") from error


# ------------------------------------------------------------------ what was found, in a file


class _Book(Store[tuple[Key, int], float]):
    """Lengths by tasks and seed, whatever the order of the tasks.

    `settings`, `tasks` and `networks` (by seed) say what the lengths depend on; `seen` is the loss of every task at the
    networks that the seeds draw, which shows what no code does.
    """

    rows, holds, instead, version = "lengths", "lengths of codes", "give another file, or none", _VERSION
    grows = ("tasks", "networks", "seen")

    def __init__(
        self,
        file: str | os.PathLike[str] | None,
        settings: dict[str, Any],
        tasks: Mapping[str, Task],
        model: Model,
        seeds: Sequence[int],
    ) -> None:
        def about() -> dict[str, dict[str, Any]]:
            nets = {seed: fresh(model, seed) for seed in seeds}
            return {
                "settings": {name: told(value) for name, value in sorted(settings.items())},
                "tasks": {name: digest(task) for name, task in tasks.items()},
                "networks": {str(seed): digest(net) for seed, net in nets.items()},
                "seen": {f"{name} {s}": response(task, nets[s]) for name, task in tasks.items() for s in seeds},
            }

        super().__init__(None if file is None else Path(file), about)

    def load(self, row: Any) -> tuple[tuple[Key, int], float]:
        """Names of tasks and seed, and the length."""
        key, seed, length = row
        return (_sorted(key), int(seed)), float(length)

    def dump(self, key: tuple[Key, int], value: float) -> Any:
        """[names, seed, length]."""
        return [[*key[0]], key[1], value]

    def other(self, group: str, name: str, before: Any, now: Any) -> str:
        """A setting is told; all else is a digest."""
        if group == "settings":
            return f"{self.path} was measured with another {name} ({before}); give another file"
        words = {"tasks": "", "networks": "network for seed ", "seen": "loss of task and seed "}[group]
        return f"{self.path} holds codes of another {words}{name}; give another file"


class _Keyed:
    """Lengths by tasks and seed, in a mapping whose keys hold all that a length depends on."""

    def __init__(
        self, kept: Results, settings: dict[str, Any], tasks: Mapping[str, Task], model: Model, seeds: Sequence[int]
    ) -> None:
        self.kept = kept
        self._about = digest({name: told(value) for name, value in sorted(settings.items())}, __version__, _VERSION)
        self._tasks = {name: digest(task) for name, task in tasks.items()}
        self._nets = {seed: digest(fresh(model, seed)) for seed in seeds}

    def _key(self, key: tuple[Key, int]) -> str:
        names, seed = key
        return f"code {digest(self._about, sorted(self._tasks[name] for name in names), self._nets[seed])}"

    def __contains__(self, key: tuple[Key, int]) -> bool:
        return self._key(key) in self.kept

    def __getitem__(self, key: tuple[Key, int]) -> float:
        return float(self.kept[self._key(key)])

    def __setitem__(self, key: tuple[Key, int], value: float) -> None:
        self.kept[self._key(key)] = float(value)
