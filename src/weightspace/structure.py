"""The structure of a task: how little it can be written with, for every price of a nat of network.

    S(t) = min of E L over codes with KL <= t     C_beta = min of E L + beta KL over codes = min over t of S(t) + beta t

L is the sum of the task's distances over the examples, in nats. C_beta is concave in beta and its slope is K(beta),
the information that is used; S(t) = max over beta of C_beta - beta t, where S is convex. C(D) = C_1 is the length of
the task. The smallest t with S(t) + t = C(D) is its structure; what comes beyond is learnt by heart: where codes are
perfect, S falls by a nat for each nat there, slope -1. Real codes pay more: random labels, which have no structure and
would be learnt up to beta = 1, are learnt up to beta = `efficiency` only.

Every code that was found for one beta is a code for all of them, so that C_beta is at most the least of these lines,
and of the codes that say nothing, or one constant. Optimisation gets stuck on both sides of a jump of K; beta is swept
up and down, for several seeds, and what the sweeps alone would have said is checked against the envelope.
Sources: Kolmogorov's structure functions and model selection (Vereshchagin, Vitanyi, 2004); The information complexity
of learning tasks, their structure and their distance (Achille, Paolini, Mbeng, Soatto, 2019); The loss-complexity
landscape and model structure functions (Kolpakov, 2025), for the susceptibility.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightspace import checkpoint
from weightspace.description import plain
from weightspace.model import Model, fresh
from weightspace.net import Net, WeightspaceError
from weightspace.posterior import Code, Gaussian, encode
from weightspace.task import IGNORED, Task

__all__ = [
    "Check", "Cost", "Run", "StructureError", "StructureFunction", "Transition", "cost", "random_labels",
    "structure_function",
]  # fmt: skip

BETAS = tuple(round(10 ** (k / 4), 4) for k in range(-8, 5))
_WAYS = ("up", "down")
_SHARP = 2.0  # K falls faster than beta^-2 in a jump
_NOTHING = 0.01  # of a loss: what noise may save
_LEARNT = 0.05  # of the loss of the trivial code: what is left where a task is learnt by heart


class StructureError(WeightspaceError):
    """A sweep that cannot be made, or taken up again."""


@dataclass(frozen=True)
class Run:
    """A code that a sweep found for `beta`: `loss` = E L with its standard error, `kl`, and the fraction right."""

    seed: int
    way: str
    beta: float
    loss: float
    error: float
    kl: float
    right: float

    @property
    def length(self) -> float:
        """E L + beta KL."""
        return self.loss + self.beta * self.kl


@dataclass(frozen=True)
class Transition:
    """At `beta` the information of the shortest code falls from `before` to `after`, and its loss rises by `rise`.

    `last`: what is left is no better than a constant, but for 1 % of the loss.
    """

    beta: float
    before: float
    after: float
    rise: float
    last: bool

    @property
    def name(self) -> str:
        """What happens there as nats of network become dearer."""
        return "nothing more than a constant is learnt" if self.last else "what was learnt by heart is given up"


@dataclass(frozen=True)
class Check:
    """A law that the sweeps alone should obey: by how many nats it was `violated` at worst, and at which beta."""

    name: str
    passed: bool
    violated: float
    beta: float
    law: str


@dataclass(frozen=True)
class StructureFunction:
    """What a task costs: `length(beta)`, `information(beta)`, `loss(t)`; nats, summed over its `examples`.

    `runs`: the codes that were found. `constants`: (KL, loss) of the codes without a network: nothing said, and one
    constant output written down to the precision that the examples give it, 1/2 log N nats a number. `efficiency`: the
    beta below which random labels are learnt, where it was measured.
    """

    runs: tuple[Run, ...]
    constants: tuple[tuple[float, float], ...]
    examples: int
    efficiency: float | None = None

    @cached_property
    def vertices(self) -> tuple[tuple[float, float], ...]:
        """(t, S(t)) at the corners of the convex hull of all codes, t rising."""
        kept: list[tuple[float, float]] = []
        for t, loss in sorted({*self.constants, *((run.kl, run.loss) for run in self.runs)}):
            if kept and loss >= kept[-1][1]:
                continue
            while len(kept) > 1 and _slope(kept[-2], kept[-1]) >= _slope(kept[-1], (t, loss)):
                kept.pop()
            kept.append((t, loss))
        return tuple(kept)

    def length(self, beta: float = 1.0) -> float:
        """C_beta; C(D) at beta = 1."""
        return min(loss + beta * t for t, loss in self.vertices)

    def information(self, beta: float = 1.0) -> float:
        """K(beta) = dC_beta / dbeta, the smaller one where C_beta has a kink."""
        return min((loss + beta * t, t) for t, loss in self.vertices)[1]

    def loss(self, t: float) -> float:
        """S(t) = max over beta of C_beta - beta t: the least loss of a code of t nats, on the convex hull."""
        if not t >= 0:
            raise StructureError(f"a code of {t} nats; give a number from 0")
        for a, b in zip(self.vertices, self.vertices[1:], strict=False):
            if t <= b[0]:
                return a[1] + _slope(a, b) * (t - a[0])
        return self.vertices[-1][1]

    @property
    def complexity(self) -> float:
        """The smallest t with S(t) + t = C(D): the structure of the task, by a code of this kind."""
        return self.information(1.0)

    @property
    def collapse(self) -> float:
        """beta_c, above which the shortest code says nothing of the examples but perhaps a constant."""
        crossings = [_crossing(self.constants, run) for run in self.runs if self._learnt(run.loss)]
        return max(crossings, default=0.0)

    def _learnt(self, loss: float) -> bool:
        """Whether a loss is more than 1 % below that of the best constant."""
        return loss < (1 - _NOTHING) * min(told for _, told in self.constants)

    @property
    def tail(self) -> float:
        """The slope of S from the structure of the task to where 5 % of the trivial loss is left; -1 for perfect codes.

        NaN where nothing lies beyond the structure.
        """
        least = max(_LEARNT * self.vertices[0][1], self.vertices[-1][1])
        start, end = self.complexity, self._reached(least)
        return (self.loss(end) - self.loss(start)) / (end - start) if end > start else math.nan

    def _reached(self, loss: float) -> float:
        """The smallest t with S(t) <= loss."""
        for a, b in zip(self.vertices, self.vertices[1:], strict=False):
            if loss >= b[1]:
                return a[0] + (min(loss, a[1]) - a[1]) / _slope(a, b)
        return self.vertices[-1][0]

    @property
    def betas(self) -> list[float]:
        """The betas of the sweeps, rising."""
        return sorted({run.beta for run in self.runs})

    @property
    def transitions(self) -> list[Transition]:
        """Where K(beta) jumps: it falls faster than beta^-2 between two betas of the sweeps, or to zero."""
        found = []
        for a, b in zip(self.vertices, self.vertices[1:], strict=False):
            beta, nothing = -_slope(a, b), not self._learnt(a[1])
            if not self._learnt(b[1]):
                continue
            if nothing or math.log(b[0] / a[0]) > _SHARP * math.log(self._grid(beta)):
                found.append(Transition(beta, b[0], a[0], a[1] - b[1], nothing))
        return found[::-1]

    def _grid(self, beta: float) -> float:
        """The ratio of the two betas of the sweeps next to this one."""
        ratios = [b / a for a, b in zip(self.betas, self.betas[1:], strict=False) if b >= beta]
        return ratios[0] if ratios else 2.0

    def susceptibility(self) -> list[tuple[float, float]]:
        """(beta, -dK / d log beta) between the betas of the sweeps, in nats; it peaks at transitions."""
        pairs = zip(self.betas, self.betas[1:], strict=False)
        return [
            (math.sqrt(a * b), (self.information(a) - self.information(b)) / math.log(b / a)) for a, b in pairs
        ]  # fmt: skip

    def best(self, beta: float) -> Run:
        """The shortest code that the sweeps found at this very beta."""
        return min((run for run in self.runs if run.beta == beta), key=lambda run: run.length)

    @cached_property
    def checks(self) -> tuple[Check, ...]:
        """The laws of C_beta on the sweeps alone, before the envelope; allowed are three standard errors and 1 %."""
        return tuple(_checks(self))

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of this result, a sentence each."""
        said = [f"{c.name}: violated by {c.violated:.3g} nats at beta {c.beta:g} ({c.law}); the envelope mends it"
                for c in self.checks if not c.passed]  # fmt: skip
        if self.runs and not self.collapse:
            said.append("no code was shorter than a constant: longer training or smaller betas may find one")
        if self.runs and self.collapse > self.betas[-1]:
            said.append(
                f"more than a constant is learnt at the largest beta, {self.betas[-1]:g}: the collapse is later"
            )
        return tuple(said)

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return plain({
            "examples": self.examples, "length": self.length(), "complexity": self.complexity,
            "collapse": self.collapse, "tail": self.tail,
            "efficiency": self.efficiency, "constants": self.constants,
            "vertices": self.vertices, "runs": [asdict(run) for run in self.runs],
            "curve": [{"beta": b, "length": self.length(b), "information": self.information(b)} for b in self.betas],
            "transitions": [{**asdict(t), "name": t.name} for t in self.transitions],
            "susceptibility": self.susceptibility(),
            "checks": [asdict(check) for check in self.checks], "notes": self.notes,
        })  # fmt: skip


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def _crossing(constants: Sequence[tuple[float, float]], run: Run) -> float:
    """The beta up to which a code is shorter than every constant."""
    over = [(loss - run.loss) / (run.kl - t) for t, loss in constants if run.kl > t]
    return max(0.0, min(over, default=0.0))


# ------------------------------------------------------------------ the laws, on what the sweeps found alone


def _checks(s: StructureFunction) -> Iterator[Check]:
    betas = s.betas
    best = [s.best(beta) for beta in betas]
    slack = [3 * (0.0 if math.isnan(run.error) else run.error) + 0.01 * s.constants[0][1] for run in best]

    def check(name: str, law: str, found: Sequence[tuple[float, float, float]]) -> Check:
        """`found`: nats beyond the law, nats allowed, beta."""
        worst = max(found, default=(0.0, 0.0, math.nan), key=lambda entry: entry[0] - entry[1])
        return Check(name, worst[0] <= worst[1], max(0.0, worst[0]), worst[2], law)

    hull = [run.length - s.length(run.beta) for run in best]
    yield check("envelope", "no code of another beta is shorter", [*zip(hull, slack, betas, strict=True)])
    chords = [
        (_chord(best[k - 1], best[k + 1], betas[k]) - best[k].length, slack[k], betas[k])
        for k in range(1, len(best) - 1)
    ]
    yield check("concave", "C lies above its chords", chords)
    pairs = [*zip(best, best[1:], strict=False)]
    legendre = [
        (max((b.length - a.length) - (b.beta - a.beta) * a.kl, (b.beta - a.beta) * b.kl - (b.length - a.length)),
         slack[k + 1], b.beta)
        for k, (a, b) in enumerate(pairs)
    ]  # fmt: skip
    yield check("Legendre", "dC / dbeta lies between K of the two betas", legendre)
    falling = [((b.kl - a.kl) * b.beta, slack[k + 1], b.beta) for k, (a, b) in enumerate(pairs)]
    yield check("falling", "K falls with beta; in nats of length", falling)
    bare = StructureFunction((), s.constants, s.examples)
    trivial = [run.length - bare.length(run.beta) for run in best]
    yield check("constant", "no constant is shorter", [*zip(trivial, slack, betas, strict=True)])
    for name, law, key in (("ways", "up and down agree", "way"), ("seeds", "the seeds agree", "seed")):
        yield check(
            name, law, [(_spread(s, beta, key), allowed, beta) for beta, allowed in zip(betas, slack, strict=True)]
        )


def _chord(a: Run, b: Run, beta: float) -> float:
    share = (beta - a.beta) / (b.beta - a.beta)
    return (1 - share) * a.length + share * b.length


def _spread(s: StructureFunction, beta: float, key: str) -> float:
    """How far apart the shortest codes of the two ways, or of the seeds, are."""
    shortest: dict[Any, float] = {}
    for run in s.runs:
        if run.beta == beta:
            of = getattr(run, key)
            shortest[of] = min(run.length, shortest.get(of, math.inf))
    return max(shortest.values()) - min(shortest.values())


# ------------------------------------------------------------------ the sweeps


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


def cost(
    task: Task,
    model: Model,
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


def structure_function(
    task: Task,
    model: Model,
    betas: Sequence[float] | None = None,
    *,
    seeds: Sequence[int] = (0, 1),
    steps: int = 1000,
    batch: int = 512,
    rate: float = 0.03,
    draws: int = 16,
    anchor: Net | None = None,
    calibrate: bool = False,
    folder: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> StructureFunction:
    """C_beta and S(t) of a task by the codes that `encode` finds: Gaussian networks with independent weights.

    For every seed, beta is swept up from the smallest and down from the largest, each code starting where the last one
    ended (from a fresh network where that one said nothing). `model`: what `fresh` draws networks from. `betas`: 13
    from .01 to 10 in equal ratios by default. `anchor`, `steps`, `batch`, `rate` and `draws` are those of `encode`.
    `calibrate`: also sweep the task with random labels, as costly again, for `efficiency`. `folder`: codes are kept
    there one by one, and those that are there are not sought again. `progress(done, total)` counts steps. `cost` tells
    all this before. Raises `StructureError` for betas or seeds that cannot be used and a folder of another sweep;
    `TaskError` for examples and labels that do not fit.
    """
    grid, chosen = _betas(betas), tuple(dict.fromkeys(seeds))
    if not chosen:
        raise StructureError("no seeds; give one or more")
    tasks = [task, *([random_labels(task, seed=chosen[0])] if calibrate else [])]
    total, done = len(tasks) * len(_WAYS) * len(chosen) * len(grid) * steps, 0
    options: dict[str, Any] = {"anchor": anchor, "steps": steps, "batch": batch, "rate": rate, "draws": draws}
    found = []
    for name, some in zip(("task", "random"), tasks, strict=False):
        runs: list[Run] = []
        for seed in chosen:
            net = fresh(model, seed)
            for way in _WAYS:
                kept = _Kept(folder, f"{name}-{seed}-{way}", net, some, options)
                told = None if progress is None else _after(progress, done, total)
                runs += _sweep(net, some, grid if way == "up" else grid[::-1], seed, way, options, kept, told)
                done += steps * len(grid)
        constants, n = _constants(fresh(model, chosen[0]), some)
        found.append(StructureFunction(tuple(runs), constants, n))
    if calibrate:
        return StructureFunction(found[0].runs, found[0].constants, found[0].examples, found[1].collapse)
    return found[0]


def _after(progress: Callable[[int, int], None], before: int, total: int) -> Callable[[int], None]:
    return lambda done: progress(before + done, total)


def random_labels(task: Task, share: float = 1.0, seed: int = 0) -> Task:
    """The task with the labels of a share of its examples, drawn at random, drawn anew from all classes alike.

    Raises `StructureError` for a share outside [0, 1] and labels that name no class.
    """
    if not 0 <= share <= 1:
        raise StructureError(f"a share of {share}; give a number in [0, 1]")
    labels = [y for _, y in task.batches()]
    if any(y is None or y.is_floating_point() for y in labels):
        raise StructureError("random labels need labels that are classes; give Task(inputs, labels) with integers")
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
    """The codes of one sweep on disk, and where the last of them ended."""

    def __init__(self, folder: Any, name: str, net: Net, task: Task, options: dict[str, Any]) -> None:
        self.runs: list[Run] = []
        self._net, self._at = net, None if folder is None else Path(folder)
        if self._at is None:
            return
        self._rows, self._last = self._at / f"{name}.json", self._at / f"{name}.safetensors"
        self._of = {
            "weights": net.weights.numel, "examples": len(task), "architecture": type(net.architecture).__name__,
            **{key: value for key, value in options.items() if key != "anchor"},
        }  # fmt: skip
        self._at.mkdir(parents=True, exist_ok=True)
        if self._rows.exists():
            seen = json.loads(self._rows.read_text())
            if seen.get("of") != self._of:
                raise StructureError(f"{self._at} holds sweeps of {seen.get('of')}, not of {self._of}; choose another")
            self.runs = [Run(**row) for row in seen["runs"]]

    def start(self) -> Gaussian | None:
        """Where the last code ended."""
        if self._at is None or not self._last.exists():
            return None
        tensors = checkpoint.read(self._last)
        parts = [{n: tensors[f"{part}:{n}"] for n in self._net.weights} for part in ("mean", "log_variance")]
        mean, spread = (self._net.weights.replace(part) for part in parts)
        return Gaussian(self._net.at(mean), spread)

    def add(self, run: Run, last: Gaussian | None) -> None:
        self.runs.append(run)
        if self._at is None:
            return
        if last is not None:
            tensors = {f"mean:{n}": w for n, w in last.net.weights.items()}
            tensors |= {f"log_variance:{n}": w for n, w in last.log_variance.items()}
            checkpoint.save(tensors, self._last, force=True)
        else:
            self._last.unlink(missing_ok=True)
        partial = self._rows.with_suffix(".tmp")
        partial.write_text(json.dumps({"of": self._of, "runs": [asdict(run) for run in self.runs]}))
        os.replace(partial, self._rows)


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
    """The codes of one sweep, in its order."""
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
    """Where the next code starts: at this one, unless it has forgotten everything and would not wake up."""
    return code.posterior if code.kl > 1.0 else None


def _constants(net: Net, task: Task) -> tuple[tuple[tuple[float, float], ...], int]:
    """(KL, loss) of outputs that are zero, and of the best constant; and the number of distances."""
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
