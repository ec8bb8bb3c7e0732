"""A flow: steps from network to network, along what a goal asks for and a metric allows.

flow(net, goal, metric) goes, again and again, by the step of a given length that lowers the goal most among those that
the metric lets pass. Under `Pullback` of an old task this is a functionally invariant path: a predictor (the step of
largest progress within the drift that is left), a corrector (Gauss-Newton back to the anchor's outputs), and a measured
drift that decides whether the step counts. Under `Euclidean` it is gradient descent with steps of constant length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from weightspace.metric import Metric
from weightspace.net import Net, Weights, WeightspaceError
from weightspace.path import Path
from weightspace.pullback import Pullback
from weightspace.task import Task, gradient

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Flow", "FlowError", "Prune", "Record", "drift", "flow", "learn", "prune", "toward"]

Goal: TypeAlias = "Task | Callable[[Net], Tensor] | Learn | Drift | Prune"
Size: TypeAlias = "float | Callable[[float], float]"

_HALVINGS = 8
_GROW, _TRUST = 1.5, 2.0
_SHARE = 0.05


class FlowError(WeightspaceError):
    """A flow that cannot begin: a goal, a budget or a mask that makes no sense."""


@dataclass(frozen=True)
class Record:
    """One accepted step: its length, goal before it (NaN: not a number), drift measured and predicted, held-out."""

    step: int
    length: float
    goal: float
    drift: float
    predicted: float
    heldout: float


class Flow(Path):
    """The path of a flow: marked points are the networks that were saved, `log` has a record for every step.

    `why`: "steps" (all were made), "budget" (no step within it was left), "heldout", "goal" (its gradient vanished), or
    "nan in NAME". `mask`: zero where weights are held at zero.
    """

    __slots__ = ("log", "mask", "why")

    def __init__(self, nets: list[Net], log: list[Record], why: str, mask: Weights | None) -> None:
        through = Path.through(nets if len(nets) > 1 else nets * 2)
        super().__init__(through, through.times)
        self.log, self.why, self.mask = log, why, mask

    def __repr__(self) -> str:
        last = f", drift {self.log[-1].drift:.3g}" if self.log and not math.isnan(self.log[-1].drift) else ""
        return f"Flow({len(self.log)} steps, stopped by {self.why}{last})"


# ------------------------------------------------------------------ goals


@dataclass(frozen=True)
class Learn:
    """The loss of a task, on another batch at every step."""

    task: Task
    batch: int
    seed: int

    def covector(self, net: Net, step: int) -> tuple[Weights, float]:
        some = self.task.take(self.batch, seed=self.seed + step) if self.batch < len(self.task) else self.task
        with torch.no_grad():
            value = float(some(net))
        return gradient(some, net), value


@dataclass(frozen=True)
class Drift:
    """No goal but a heading: a random direction, the same at every step."""

    seed: int

    def covector(self, net: Net, step: int) -> tuple[Weights, float]:
        return net.weights.randn(self.seed), math.nan


@dataclass(frozen=True)
class Prune:
    """A share of the weights to zero: of all matrices and kernels together, the smallest; biases and norms stay."""

    sparsity: float
    structure: str


def learn(task: Task, batch: int = 128, seed: int = 0) -> Learn:
    """The task's loss as a goal, on `batch` examples drawn anew at every step."""
    if batch < 1:
        raise FlowError(f"a batch has at least one example, got {batch}")
    return Learn(task, batch, seed)


def drift(seed: int) -> Drift:
    """Explore: a random heading drawn from `seed`, kept as far as the metric allows."""
    return Drift(seed)


def toward(other: Net) -> Callable[[Net], Tensor]:
    """|w - w_other|^2 / 2: go to another network (align it first)."""

    def distance(net: Net) -> Tensor:
        net.check(other)
        return sum(
            ((w - other.weights[n].to(w)).square().sum() / 2 for n, w in net.weights.items()), torch.zeros(())
        )  # fmt: skip

    return distance


def prune(sparsity: float, structure: str = "unstructured") -> Prune:
    """Zero in a share `sparsity` of the weights of matrices and kernels, tightened step by step.

    `structure`: "unstructured", or "n:m" as in "2:4" (n of every m neighbours stay; the sparsity is then 1 - n/m).
    """
    if not 0 < sparsity < 1:
        raise FlowError(f"a sparsity lies between 0 and 1, got {sparsity}; 1 would empty every layer")
    if structure != "unstructured":
        n, colon, m = structure.partition(":")
        if not colon or not n.isdigit() or not m.isdigit() or not 0 < int(n) < int(m):
            raise FlowError(f'structure is "unstructured" or "n:m" such as "2:4", got {structure!r}')
    return Prune(sparsity, structure)


# ------------------------------------------------------------------ the flow


def flow(
    net: Net,
    goal: Goal,
    metric: Metric | Pullback,
    *,
    steps: int = 100,
    size: Size = 0.1,
    budget: float | None = None,
    probe: Task | None = None,
    limit: float | None = None,
    corrections: int = 1,
    mask: Weights | None = None,
    save: int = 10,
    progress: Callable[[Record], None] = lambda record: None,
) -> Flow:
    """From `net`, `steps` steps of length `size` (a number, or a function of the share done) that lower `goal`.

    `budget`: the drift on the metric's own examples, measured from `net`, that no accepted step exceeds. `probe`: other
    examples on which the drift is measured too, and `limit` the drift there that ends the flow. `corrections`: Gauss-
    Newton steps back to the anchor after every step. `mask`: weights where it is zero stay as they are. `save`: every
    how many steps a network is kept. Drifts are root mean squares in units of the outputs. `prune` ignores `size` and
    repairs with at least two corrections. Raises `FlowError`; what happens on the way ends the flow: see `why`.
    """
    _sound(steps, size, budget, limit, corrections, save)
    if mask is not None:
        net.weights.check(mask)
        if not any(bool(m.any()) for m in mask.values()):
            raise FlowError("the mask holds every weight: nothing could move")
    if isinstance(goal, Prune):
        if not isinstance(metric, Pullback):
            raise FlowError("pruning is repaired under a Pullback metric; give Pullback(task)")
        return _Run(net, metric, budget, probe, limit, max(corrections, 2), mask, save, progress).prune(goal, steps)
    return _Run(net, metric, budget, probe, limit, corrections, mask, save, progress).descend(goal, steps, size)


def _sound(steps: int, size: Any, budget: Any, limit: Any, corrections: int, save: int) -> None:
    for name, value in (("budget", budget), ("limit", limit), ("size", None if callable(size) else size)):
        if value is not None and not 0 < value < math.inf:
            raise FlowError(f"{name} must be positive, got {value}")
    for name, value, least in (("steps", steps, 1), ("save", save, 1), ("corrections", corrections, 0)):
        if value < least:
            raise FlowError(f"{name} must be at least {least}, got {value}")


class _Run:
    """What a flow knows on its way."""

    def __init__(
        self,
        net: Net,
        metric: Metric | Pullback,
        budget: float | None,
        probe: Task | None,
        limit: float | None,
        corrections: int,
        mask: Weights | None,
        save: int,
        progress: Callable[[Record], None],
    ) -> None:
        self.net, self.budget, self.limit = net, budget, limit
        self.corrections, self.mask, self.save, self.progress = corrections, mask, save, progress
        self.metric = replace(metric, mask=mask) if isinstance(metric, Pullback) and mask is not None else metric
        self.anchor = metric.outputs(net) if isinstance(metric, Pullback) else None
        if budget is not None and self.anchor is None:
            raise FlowError("a drift budget needs a Pullback metric, whose task says what must not drift")
        self.heldout = Pullback(probe, metric.output if isinstance(metric, Pullback) else "logits") if probe else None
        self.there = self.heldout.outputs(net) if self.heldout else None
        self.nets, self.log, self.trust = [net], list[Record](), 1.0

    def descend(self, goal: Goal, steps: int, size: Size) -> Flow:
        why = "steps"
        for k in range(steps):
            covector, value = _covector(goal, self.net, k)
            if bad := covector.unusable():
                why = f"nan in {bad[0]}"
                break
            if self.mask is not None:
                covector = self.mask.shaped(covector.flat() * self.mask.flat())
            if not float(covector.norm()):
                why = "goal"
                break
            length = size(k / steps) if callable(size) else size
            found = self._step(covector, length)
            if isinstance(found, str):
                why = found
                break
            net, predicted, length, moved = found
            if not self._accept(net, Record(k, length, value, moved, predicted, self._held(net)), last=k == steps - 1):
                why = "heldout"
                break
        return self._done(why)

    def _step(self, covector: Weights, length: float) -> tuple[Net, float, float, float] | str:
        """The longest step up to `length` that keeps the budget: network, predicted drift, length, drift."""
        if not isinstance(self.metric, Pullback):
            net = self.net + length * self._unit(covector)
            bad = net.weights.unusable()
            return f"nan in {bad[0]}" if bad else (net, math.nan, length, math.nan)
        modes = self.metric.modes(self.net, covector)
        for _ in range(_HALVINGS):
            # what a correction would take back is no progress: most of the step must leave the outputs alone as it is
            loose = self.budget or self.metric.along(self.net, modes, length).drift
            step = self.metric.along(self.net, modes, length, _SHARE * self.trust * loose if loose else None)
            net = self.net + step.vector
            if bad := net.weights.unusable():
                return f"nan in {bad[0]}"
            net = self.metric.retract(net, self._reference(), self.corrections) if self.corrections else net
            moved = self.metric.drift(net, self._reference())
            if not math.isfinite(moved):
                return f"nan in {next(iter(net.weights.unusable()), 'the outputs')}"
            if self.budget is None or moved <= self.budget:
                self.trust = min(1.0, self.trust * _GROW)
                return net, step.drift, step.length, moved
            self.trust, length = self.trust / _TRUST, length / 2
        return "budget"

    def _unit(self, covector: Weights) -> Weights:
        """The steepest direction at Euclidean length one."""
        v = self.metric.steepest(self.net, covector)
        return v / float(v.norm())

    def _reference(self) -> Float[Tensor, "examples outputs"]:
        assert self.anchor is not None
        return self.anchor

    def prune(self, goal: Prune, steps: int) -> Flow:
        assert isinstance(self.metric, Pullback)
        why = "steps"
        for k, share in enumerate(_schedule(goal.sparsity, steps)):
            mask = _smallest(self.net.weights, replace(goal, sparsity=share), self.mask, final=k == steps - 1)
            before = self.net.weights
            cut = before.shaped(before.flat() * mask.flat())
            self.mask, metric = mask, replace(self.metric, mask=mask, _last={})
            net = self.net.at(cut)
            predicted = metric.drift(net, self._reference())
            net = metric.retract(net, self._reference(), self.corrections)
            if bad := net.weights.unusable():
                why = f"nan in {bad[0]}"
                break
            moved = metric.drift(net, self._reference())
            if self.budget is not None and moved > self.budget:
                why = "budget"
                break
            record = Record(k, float((net.weights - before).norm()), math.nan, moved, predicted, self._held(net))
            if not self._accept(net, record, last=k == steps - 1):
                why = "heldout"
                break
        return self._done(why)

    def _held(self, net: Net) -> float:
        if self.heldout is None or self.there is None:
            return math.nan
        return self.heldout.drift(net, self.there)

    def _accept(self, net: Net, record: Record, last: bool) -> bool:
        if self.limit is not None and record.heldout > self.limit:
            return False
        self.net = net
        self.log.append(record)
        if record.step % self.save == self.save - 1 and not last:
            self.nets.append(net)
        self.progress(record)
        return True

    def _done(self, why: str) -> Flow:
        if self.net is not self.nets[-1]:
            self.nets.append(self.net)
        return Flow(self.nets, self.log, why, self.mask)


def _covector(goal: Goal, net: Net, step: int) -> tuple[Weights, float]:
    if isinstance(goal, (Learn, Drift)):
        return goal.covector(net, step)
    assert not isinstance(goal, Prune)
    with torch.no_grad():
        value = float(goal(net))
    return gradient(goal, net), value


def _schedule(sparsity: float, steps: int) -> Iterator[float]:
    """Rising to the sparsity by the cube of what is left (To prune, or not to prune; Zhu, Gupta, 2017)."""
    return (sparsity * (1 - (1 - (k + 1) / steps) ** 3) for k in range(steps))


def _smallest(weights: Weights, goal: Prune, before: Weights | None, final: bool) -> Weights:
    """One where a weight stays: every entry of vectors, the largest of matrices; what was zero stays zero."""
    mask = weights.map(torch.ones_like)
    names = [name for name, w in weights.items() if w.dim() > 1]
    if not names:
        raise FlowError("there is no matrix or kernel to prune")
    sizes = {n: weights[n].abs() * (before[n] if before is not None else 1) for n in names}
    if goal.structure != "unstructured" and final:
        n, m = map(int, goal.structure.split(":"))
        for name in names:
            rows = sizes[name].flatten(1)
            if rows.shape[1] % m == 0:
                groups = rows.reshape(-1, m)
                kept = torch.zeros_like(groups).scatter_(1, groups.topk(n, 1).indices, 1.0)
                mask[name].copy_(kept.reshape(weights[name].shape))
    else:
        every = torch.cat([size.flatten() for size in sizes.values()])
        count = round(goal.sparsity * len(every))
        order = every.argsort(stable=True)
        flat = torch.ones_like(every)
        flat[order[:count]] = 0
        for name, part in zip(names, flat.split([sizes[n].numel() for n in names]), strict=True):
            mask[name].copy_(part.view(weights[name].shape))
    for name in names:
        if before is not None:
            mask[name].mul_(before[name])
        if not bool(mask[name].any()):
            raise FlowError(f"this sparsity would empty {name}; ask for less")
    return mask
