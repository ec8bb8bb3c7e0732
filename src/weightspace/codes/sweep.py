"""Structure functions of tasks by sweeps of beta, each code stored on disk as it is found; random labels."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightspace.checkpoint import files, reader, writer
from weightspace.codes.posterior import Code, Gaussian, encode
from weightspace.codes.structure_functions import Run, StructureError, StructureFunction
from weightspace.net.model import Model, fresh
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.task.digest import changed, digest, response, told
from weightspace.task.losses import IGNORED
from weightspace.task.task import Task

__all__ = ["Cost", "Run", "StructureError", "StructureFunction", "cost", "random_labels", "structure_function"]


BETAS = tuple(round(10 ** (k / 4), 4) for k in range(-8, 5))
_WAYS = ("up", "down")
_VERSION = 2  # of the files in a folder


@public
@dataclass(frozen=True)
class Cost:
    """What sweeps take: so many `codes` of `steps` steps, each a pass over `batch` examples forward and back.

    `bytes`: means, variances, their gradients and the optimiser's moments; the graph of a batch comes on top.
    """

    codes: int
    steps: int
    batch: int
    bytes: int

    def __str__(self) -> str:
        total = self.codes * self.steps
        return (
            f"{self.codes} codes of {self.steps:,} steps: {total:,} passes over {self.batch:,} examples forward and "
            f"back, and {self.bytes / 2**20:,.1f} MiB"
        )


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
    """What `structure_function` with these arguments takes, known before it runs."""
    weights = fresh(model, seeds[0]).weights
    codes = len(_betas(betas)) * len(_WAYS) * len(seeds) * (1 + calibrate)
    numbers = sum(buffer.numel() * buffer.element_size() for buffer in weights.buffers)
    return Cost(codes, steps, min(batch, len(task)), 2 * 4 * numbers)


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
    progress: Callable[[int, int], None] | None = None,
) -> StructureFunction:
    """The structure function S(t) and description length C_beta of a task, by the codes that `encode` finds.

    For every seed, beta is swept up and down, each code starting from the last one (from a fresh network of `model` if
    that was trivial). `betas`: 13 from .01 to 10 by default. `anchor`, `steps`, `batch`, `lr`, `draws`: see `encode`.
    `calibrate`: also sweep random labels, for `efficiency`, at twice the cost. `folder`: codes are stored there, with
    the `digest` of task, network and options, and reused. `progress(done, total)` counts steps. Raises `StructureError`
    for invalid betas or seeds and a folder of other sweeps; `DigestError` for a `folder` and a loss that hides state.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.structure_function(net, task, betas=(0.1, 1.0), seeds=(0,), steps=3, draws=2)
    >>> len(found.runs), found.length(0.1) <= found.length(1.0)       # up and down
    (4, True)
    """
    grid, chosen = _betas(betas), tuple(dict.fromkeys(seeds))
    if not chosen:
        raise StructureError("no seeds; give one or more")
    tasks = [task, *([random_labels(task, seed=chosen[0])] if calibrate else [])]
    total, done = len(tasks) * len(_WAYS) * len(chosen) * len(grid) * steps, 0
    options: dict[str, Any] = {"anchor": anchor, "steps": steps, "batch": batch, "lr": lr, "draws": draws}
    found = []
    for name, some in zip(("task", "random"), tasks, strict=False):
        runs: list[Run] = []
        for seed in chosen:
            net = fresh(model, seed)
            for way in _WAYS:
                order = grid if way == "up" else grid[::-1]
                kept = _Kept(folder, f"{name}-{seed}-{way}", net, some, order, options)
                after = None if progress is None else _after(progress, done, total)
                runs += _sweep(net, some, order, seed, way, options, kept, after)
                done += steps * len(grid)
        constants, n = _constants(fresh(model, chosen[0]), some)
        found.append(StructureFunction(tuple(runs), constants, n))
    if calibrate:
        return StructureFunction(found[0].runs, found[0].constants, found[0].examples, found[1].collapse)
    return found[0]


def _after(progress: Callable[[int, int], None], before: int, total: int) -> Callable[[int], None]:
    return lambda done: progress(before + done, total)


@public
def random_labels(task: Task, share: float = 1.0, seed: int = 0) -> Task:
    """The task with random labels: those of a random `share` of its examples are redrawn uniformly from all classes.

    Raises `StructureError` for a share outside [0, 1] and labels that are not classes.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> changed = ws.random_labels(task, share=0.5).labels() != task.labels()
    >>> len(changed), 0 < int(changed.sum()) <= 30
    (60, True)
    """
    if not 0 <= share <= 1:
        raise StructureError(f"a share of {share}; give a number in [0, 1]")
    labels = [y for _, y in task.batches()]
    if any(y is None or y.is_floating_point() for y in labels):
        raise StructureError("random labels need labels that are classes; give Task(inputs, integer labels)")
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
        raise StructureError(f"betas {list(betas or [])[:5]}; give one or more positive numbers")
    return grid


class _Kept:
    """The codes of one sweep on disk, and where the last of them ended.

    A code depends on the task, the network that the seed draws, the options of `encode`, and the betas before its own.
    """

    def __init__(
        self, folder: Any, name: str, net: Net, task: Task, betas: Sequence[float], options: dict[str, Any]
    ) -> None:
        self.runs: list[Run] = []
        self._net, self._at = net, None if folder is None else Path(folder)
        if self._at is None:
            return
        self._name, self._last = name, ""
        self._of = {"version": _VERSION, **{key: told(value) for key, value in sorted(options.items())}}
        self._of |= {"task": digest(task), "network": digest(net), "loss": response(task, net)}
        self._at.mkdir(parents=True, exist_ok=True)
        if self._rows.exists():
            self._read(self._at, betas)

    @property
    def _rows(self) -> Path:
        assert self._at is not None
        return self._at / f"{self._name}.json"

    def _read(self, at: Path, betas: Sequence[float]) -> None:
        try:
            seen = files.unsealed(files.read_json(self._rows))
            of, last, runs = dict(seen["of"]), str(seen.get("last", "")), [Run(**row) for row in seen["runs"]]
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise StructureError(f"{self._rows} holds no sweeps ({error}); choose another folder") from error
        if name := changed(of, self._of):
            values = of.get(name), self._of[name]
            short = not any(isinstance(v, list) or len(str(v)) > 20 for v in values)
            which = f"{name} {values[0]}, not {values[1]}" if short else f"another {name}"
            raise StructureError(f"{at} holds sweeps of {which}; choose another folder")
        if any(run.beta != beta for run, beta in zip(runs, betas, strict=False)) or Path(last).name != last:
            raise StructureError(
                f"{at} holds sweeps of other betas, and a code starts where the one before it ended; choose another"
            )
        self.runs, self._last = runs, last

    def start(self) -> Gaussian | None:
        """Where the last code ended."""
        if self._at is None or not self._last:
            return None
        tensors = reader.read(self._at / self._last)
        parts = [{n: tensors[f"{part}:{n}"] for n in self._net.weights} for part in ("mean", "log_variance")]
        mean, spread = (self._net.weights.replace(part) for part in parts)
        return Gaussian(self._net.at(mean), spread)

    def add(self, run: Run, last: Gaussian | None) -> None:
        """Write a code down: first where it ended, under a name of its own, then that it is there."""
        self.runs.append(run)
        if self._at is None:
            return
        before, self._last = self._last, ""
        if last is not None:
            tensors = {f"mean:{n}": w for n, w in last.net.weights.items()}
            tensors |= {f"log_variance:{n}": w for n, w in last.log_variance.items()}
            self._last = f"{self._name}-{len(self.runs):03d}.safetensors"
            writer.save(tensors, self._at / self._last, force=True)
        kept = {"of": self._of, "last": self._last, "runs": [asdict(run) for run in self.runs]}
        try:
            files.write(self._rows, json.dumps(files.sealed(kept)))
        except OSError as error:
            raise StructureError(f"{self._rows} cannot be written ({error.strerror}); free space there") from error
        if before and before != self._last:
            (self._at / before).unlink(missing_ok=True)


def _sweep(
    net: Net,
    task: Task,
    betas: Sequence[float],
    seed: int,
    way: str,
    options: dict[str, Any],
    kept: _Kept,
    progress: Callable[[int], None] | None,
) -> Iterator[Run]:
    """Find the codes of one sweep, in its order, or take those that are stored."""
    known = {run.beta: run for run in kept.runs}
    start = kept.start()
    for k, beta in enumerate(betas):
        if beta not in known:

            def step(done: int, total: int, before: int = k * options["steps"]) -> None:
                if progress is not None:
                    progress(before + done)

            code = encode(net, task, beta, start=start, seed=seed, progress=step, **options)
            start = _onwards(code)
            known[beta] = Run(seed, way, beta, code.loss, code.error, code.kl, code.right)
            kept.add(known[beta], start)
        yield known[beta]


def _onwards(code: Code) -> Gaussian | None:
    """The start of the next code: this posterior, unless it is trivial, from which training would not recover."""
    return code.posterior if code.kl > 1.0 else None


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
