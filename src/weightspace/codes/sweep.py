"""Structure functions of tasks by sweeps of beta, each code stored on disk as it is found; random labels."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightspace.checkpoint import reader, writer
from weightspace.codes.encoding import Code, encode
from weightspace.codes.posterior import Gaussian
from weightspace.codes.store import Store
from weightspace.codes.structure_functions import Run, StructureFunction
from weightspace.jobs.engine import Engine, run, serial
from weightspace.jobs.progress import Tick
from weightspace.net.cost import Cost
from weightspace.net.errors import WeightspaceError
from weightspace.net.model import Model, fresh
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.task.classification import is_cross_entropy
from weightspace.task.digest import digest, response, told
from weightspace.task.losses import IGNORED
from weightspace.task.task import Task

__all__ = ["Run", "StructureFunction", "cost", "random_labels", "structure_function"]


BETAS = tuple(round(10 ** (k / 4), 4) for k in range(-8, 5))
_WAYS = ("up", "down")
_RANGE = 60.0  # of the log of a variance, from 1e-20 to 1e6
_VERSION = 2  # of the files in a folder


@public(order=("task", "model"))
def cost(
    model: Model,
    task: Task,
    betas: Sequence[float] | None = None,
    *,
    seeds: Sequence[int] = (0, 1),
    steps: int = 1000,
    batch: int = 512,
    calibrate: bool = False,
) -> Cost:
    """What `structure_function` with these arguments takes: so many codes, each of so many steps.

    `bytes`: means, variances, their gradients and the optimiser's moments; the graph of a batch comes on top.

    >>> import weightspace as ws
    >>> from weightspace.codes.sweep import cost
    >>> net, task = ws.demo.example()
    >>> cost(net, task, betas=(0.1, 1.0), seeds=(0,), steps=10).codes
    4
    """
    weights = fresh(model, seeds[0]).weights
    codes = len(_betas(betas)) * len(_WAYS) * len(seeds) * (1 + calibrate)
    numbers = sum(buffer.numel() * buffer.element_size() for buffer in weights.buffers)
    return Cost(batch=min(batch, len(task)), codes=codes, steps=steps, passes=codes * steps, bytes=2 * 4 * numbers)


@public(order=("task", "model"), renamed={"rate": "lr"})
def structure_function(
    model: Model,
    task: Task,
    betas: Sequence[float] | None = None,
    *,
    seeds: Sequence[int] = (0, 1),
    steps: int = 1000,
    batch: int = 512,
    lr: float = 0.03,
    draws: int = 16,
    anchor: Net | None = None,
    calibrate: bool = False,
    folder: str | os.PathLike[str] | None = None,
    engine: Engine = 1,
    progress: Tick | None = None,
) -> StructureFunction:
    """The structure function S(t) and description length C_beta of a task, by the codes that `encode` finds.

    For every seed, beta is swept up and down, each code starting from the last one (from a fresh network of `model` if
    that was trivial). `betas`: 13 from .01 to 10 by default. `anchor`, `steps`, `batch`, `lr`, `draws`: see `encode`.
    `calibrate`: also sweep random labels, for `efficiency`, at twice the cost. `folder`: codes are stored there, with
    the `digest` of task, network and options, and reused. `engine`: where sweeps are made, each one job (see
    `jobs.run`); a `folder` must then be one that all of its processes write to. `progress(done, total)` counts steps.
    Raises `WeightspaceError` for invalid betas or seeds and a folder of other sweeps; `DigestError` for a `folder` and
    a loss that hides state.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.structure_function(net, task, betas=(0.1, 1.0), seeds=(0,), steps=3, draws=2)
    >>> len(found.runs), found.length(0.1) <= found.length(1.0)       # up and down
    (4, True)
    """
    grid, chosen = _betas(betas), tuple(dict.fromkeys(seeds))
    if not chosen:
        raise WeightspaceError("no seeds; give one or more")
    options: dict[str, Any] = {"anchor": anchor, "steps": steps, "batch": batch, "lr": lr, "draws": draws}
    named = {"task": task} | ({"random": random_labels(task, seed=chosen[0])} if calibrate else {})
    sweep = _Sweep(model, named, grid, options, folder)
    jobs = {(name, seed, way): (name, seed, way) for name in named for seed in chosen for way in _WAYS}
    told = None if progress is None else _counted(progress, steps * len(grid))
    if serial(engine) and progress is not None:
        runs = {key: sweep(*key, _after(progress, k, len(jobs), steps * len(grid))) for k, key in enumerate(jobs)}
    else:
        runs = run(sweep, jobs, engine=engine, progress=told)
    found = []
    for name, some in named.items():
        constants, n = _constants(fresh(model, chosen[0]), some)
        every = [one for key in jobs if key[0] == name for one in runs[key]]
        found.append(StructureFunction(tuple(every), constants, n, prior=_prior(fresh(model, chosen[0]), some)))
    return replace(found[0], efficiency=found[1].collapse) if calibrate else found[0]


def _after(progress: Tick, sweeps: int, total: int, each: int) -> Callable[[int], None]:
    return lambda done: progress(sweeps * each + done, total * each)


def _counted(progress: Tick, each: int) -> Tick:
    return lambda done, total: progress(done * each, total * each)


@public
def random_labels(task: Task, share: float = 1.0, seed: int = 0) -> Task:
    """The task with random labels: those of a random `share` of its examples are redrawn uniformly from all classes.

    Raises `WeightspaceError` for a share outside [0, 1] and labels that are not classes.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> changed = ws.random_labels(task, share=0.5).labels() != task.labels()
    >>> len(changed), 0 < int(changed.sum()) <= 30
    (60, True)
    """
    if not 0 <= share <= 1:
        raise WeightspaceError(f"a share of {share}; give a number in [0, 1]")
    labels = [y for _, y in task.batches()]
    if any(y is None or y.is_floating_point() for y in labels):
        raise WeightspaceError("random labels need labels that are classes; give Task(inputs, integer labels)")
    y = torch.cat([y for y in labels if y is not None])
    draw = torch.Generator().manual_seed(seed)
    other = torch.randint(int(y.max()) + 1, y.shape, generator=draw)
    chosen = torch.randperm(len(y), generator=draw)[: round(share * len(y))]
    new = y.clone()
    new[chosen] = torch.where(y[chosen] == IGNORED, y[chosen], other[chosen].to(y))
    return task.relabelled(new)


def _betas(betas: Sequence[float] | None) -> list[float]:
    grid = sorted({float(beta) for beta in (BETAS if betas is None else betas)})
    if not grid or not all(0 < beta < math.inf for beta in grid):
        raise WeightspaceError(f"betas {list(betas or [])[:5]}; give one or more positive numbers")
    return grid


class _Kept(Store[float, Run]):
    """The codes of one sweep by beta, and where the last of them ended.

    A code depends on the task, the network that the seed draws, the options of `encode`, and the betas before its own.
    """

    rows, holds, instead = "runs", "sweeps", "choose another folder"

    def __init__(
        self, folder: Any, name: str, net: Net, task: Task, betas: Sequence[float], options: dict[str, Any]
    ) -> None:
        self._net, self._name = net, name
        at = None if folder is None else Path(folder)

        def about() -> dict[str, dict[str, Any]]:
            of = {"version": _VERSION, **{key: told(value) for key, value in sorted(options.items())}}
            return {"of": of | {"task": digest(task), "network": digest(net), "loss": response(task, net)}}

        super().__init__(at and at / f"{name}.json", about)
        last = self.more["last"] = str(self.more.get("last", ""))
        if any(a != b for a, b in zip(self.found, betas, strict=False)) or Path(last).name != last:
            raise WeightspaceError(
                f"{at} holds sweeps of other betas, and a code starts where the one before it ended; choose another"
            )
        if at is not None:
            at.mkdir(parents=True, exist_ok=True)

    def load(self, row: Any) -> tuple[float, Run]:
        """A code under its beta."""
        return row["beta"], Run(**row)

    def dump(self, key: float, value: Run) -> Any:
        """The code alone: its beta is in it."""
        return asdict(value)

    def other(self, group: str, name: str, before: Any, now: Any) -> str:
        """A short value is told."""
        assert self.path is not None
        short = not any(isinstance(v, list) or len(str(v)) > 20 for v in (before, now))
        which = f"{name} {before}, not {now}" if short else f"another {name}"
        return f"{self.path.parent} holds sweeps of {which}; choose another folder"

    def start(self) -> Gaussian | None:
        """Where the last code ended."""
        if self.path is None or not self.more["last"]:
            return None
        tensors = reader.read(self.path.with_name(self.more["last"]))
        parts = [{n: tensors[f"{part}:{n}"] for n in self._net.weights} for part in ("mean", "log_variance")]
        mean, spread = (self._net.weights.replace(part) for part in parts)
        return Gaussian(self._net.at(mean), spread)

    def add(self, run: Run, last: Gaussian | None) -> None:
        """Write a code down: first where it ended, under a name of its own, then that it is there."""
        before, self.more["last"] = self.more["last"], ""
        if last is not None and self.path is not None:
            tensors = {f"mean:{n}": w for n, w in last.net.weights.items()}
            tensors |= {f"log_variance:{n}": w for n, w in last.log_variance.items()}
            self.more["last"] = f"{self._name}-{len(self.found) + 1:03d}.safetensors"
            writer.save(tensors, self.path.with_name(self.more["last"]), force=True)
        self[run.beta] = run
        if self.path is not None and before and before != self.more["last"]:
            self.path.with_name(before).unlink(missing_ok=True)


@dataclass(frozen=True)
class _Sweep:
    """The codes of one sweep, in its order; those that are stored are taken from there."""

    model: Model
    tasks: dict[str, Task]
    betas: Sequence[float]
    options: dict[str, Any]
    folder: str | os.PathLike[str] | None

    def __call__(self, name: str, seed: int, way: str, progress: Callable[[int], None] | None = None) -> list[Run]:
        task, net = self.tasks[name], fresh(self.model, seed)
        order = self.betas if way == "up" else self.betas[::-1]
        kept = _Kept(self.folder, f"{name}-{seed}-{way}", net, task, order, self.options)
        start = kept.start()
        for k, beta in enumerate(order):
            if beta not in kept:

                def step(done: int, total: int, before: int = k * self.options["steps"]) -> None:
                    if progress is not None:
                        progress(before + done)

                code = encode(net, task, beta, start=start, seed=seed, progress=step, **self.options)
                start = _onwards(code)
                kept.add(Run(seed, way, beta, code.loss, code.error, code.kl, code.right), start)
        return [kept[beta] for beta in order]


def _onwards(code: Code) -> Gaussian | None:
    """The start of the next code: this posterior, unless it is trivial, from which training would not recover."""
    return code.posterior if code.kl > 1.0 else None


def _prior(net: Net, task: Task) -> float | None:
    """The nats that describe one variance for each tensor; None for labels that are not classes.

    Of d weights, log v is rounded to a grid of spacing h = sqrt(8 / d) over `_RANGE` nats: log(_RANGE / h) for the
    point, and at most d / 2 (e^(h / 2) - 1 - h / 2) for the rounding.
    """
    _, y = next(task.batches())
    if y is None or y.is_floating_point() or not is_cross_entropy(task):
        return None
    sizes = [w.numel() for w in net.weights.values()]
    spacings = [(d, math.sqrt(8 / d)) for d in sizes]
    return sum(math.log(_RANGE / h) + d / 2 * (math.exp(h / 2) - 1 - h / 2) for d, h in spacings)


def _constants(net: Net, task: Task) -> tuple[tuple[tuple[float, float], ...], int]:
    """(KL, loss) of outputs of zero and of the best constant output; and the number of labelled positions."""
    batches = [(y, task.forward(net, x).shape) for x, y in task.batches(net)]
    level = torch.zeros(batches[0][1][-1], dtype=torch.float64, requires_grad=True)
    counted = 0

    def total() -> Tensor:
        nonlocal counted
        parts = [task.summed(level.expand(shape), y) for y, shape in batches]
        counted = sum(n for _, n in parts)
        return torch.stack([part.double() for part, _ in parts]).sum()

    def descend() -> Tensor:
        optimiser.zero_grad()
        value = total()
        value.backward()
        return value

    with torch.enable_grad():
        silent = float(total().detach())
        optimiser = torch.optim.LBFGS([level], max_iter=100, line_search_fn="strong_wolfe")
        optimiser.step(descend)
        best = float(total().detach())
    free = len(level) - (task.metric == "cross-entropy")
    told = (free / 2 * math.log(counted), best)
    return ((0.0, silent), *([told] if best < silent else [])), counted
