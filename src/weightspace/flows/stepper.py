"""`flow`: steepest descent of a goal under a metric, which includes training, pruning and invariant paths.

flow(net, goal, metric) repeats the step of a given length that lowers the goal most at the least cost in the metric.
Under `Pullback` of an old task this is a functionally invariant path: a predictor (the step of
largest progress within the drift that is left), a corrector (Gauss-Newton back to the anchor's outputs), and a measured
drift that decides whether the step counts. Under `Euclidean` it is gradient descent with steps of constant length,
under `Adam` the optimiser of that name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from weightspace.flows.anchors import hold
from weightspace.flows.options import Aim, Options, Size, asked, check_fit, check_numbers
from weightspace.flows.predictor import Predictor
from weightspace.flows.pruning import Prune, share_at, tightened
from weightspace.flows.result import Flow, Record
from weightspace.metric.metric import Adam, Metric, Remembering
from weightspace.metric.per_layer import compensated
from weightspace.metric.pullback import Pullback
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, checked, loose, unfrozen
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.path.trail import Trail
from weightspace.symmetry.symmetry import Symmetry
from weightspace.task.digest import changed
from weightspace.task.goal import as_goal, value_and_gradient
from weightspace.task.task import Task
from weightspace.trust.relative import relative_distances

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["flow"]


_BISECTIONS = 40
_TIGHTENING, _TIGHTEN_EVERY = 0.4, 20  # of the steps of a descent; then every so many
_TEMPERATURE = 4.0
_LOOKED_AT = 1 << 14  # numbers of a gradient at a time, until one is not zero


@public(renamed={"limit": "max_drift"})
def flow(
    net: Net, goal: Aim, metric: Metric | Pullback, *, steps: int = 100, size: Size = 0.1, budget: float | None = None,
    probe: Task | None = None, max_drift: float | None = None, corrections: int = 1,
    accelerate: bool | Literal["force"] = False, mask: Weights | None = None,
    frozen: Literal["stay", "move"] = "stay", max_trust: float | None = None, save: int = 10, check: int = 1,
    trail: str | os.PathLike[str] | None = None, progress: Callable[[Record], None] = lambda record: None,
) -> Flow:  # fmt: skip
    """Move `net` by `steps` steps of length `size` that lower `goal` as far as `metric` allows; returns the path.

    `size`: a length in weight space, or a function of the share of steps done. `budget`: the largest drift on the
    metric's own examples, measured from `net`. `probe`: other examples to measure drift on, every `check` steps;
    `max_drift`: the drift there that ends the flow. Drifts are root mean squares in units of the outputs.
    `corrections`: Gauss-Newton steps back to the original outputs after every step; with a budget, solver "auto", at
    most 1,500 outputs to keep and linear maps and convolutions alone, after those that end above 2 % of the budget.
    `accelerate`: bend every step by the geodesic's acceleration (refused for a network with kinks, unless "force").
    `mask`: weights where it is zero stay fixed. `frozen`: "stay" also fixes weights with requires_grad=False, "move"
    does not. `max_trust`: the largest `relative_trust` of a step (not for `prune`). `save`: every how many steps a
    network is kept; with `trail`, in that folder too, from which an interrupted flow continues if all it depends on
    is the same: the network, the goal, the metric and their examples, and every argument above but `max_drift` and,
    where `size` is a number and nothing is pruned, `steps`. `prune` with Gauss-Newton repair ignores `size` and makes
    at least two corrections a step; with descent, `size` is Adam's highest learning rate. Raises `WeightspaceError`;
    what happens on the way ends the flow: `why`.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> path = ws.flow(net, ws.learn(task), ws.Euclidean(), steps=10, size=0.1)     # gradient descent
    >>> path, bool(task(path[-1]) < task(net))
    (Flow(10 steps, stopped by steps), True)
    >>> kept = ws.Pullback(task.take(20))                                           # keep the outputs on 20 examples
    >>> path = ws.flow(net, ws.prune(0.5), kept, steps=3)
    >>> path.log[-1].drift < 0.01
    True
    """
    options = Options(budget, probe, max_drift, corrections, accelerate, mask, max_trust, save, check)
    check_numbers(steps, size, options)
    goal = goal if isinstance(goal, Prune) else as_goal(goal)
    net = unfrozen(checked(net), frozen)
    check_fit(net, goal, metric, options)
    metric = metric.begin() if isinstance(metric, Remembering) else metric
    if isinstance(goal, Prune) and goal.repair == "gauss-newton":
        options = replace(options, corrections=max(corrections, 2))
    run = _Run(net, metric, options, trail, progress)
    if run.trail is not None:
        run.resume(run.trail, asked(net, goal, metric, options, steps, size), steps)
    return run.go(goal, steps, size)


class _Run:
    """The state of a running flow."""

    def __init__(
        self,
        net: Net,
        metric: Metric | Pullback,
        options: Options,
        trail: str | os.PathLike[str] | None,
        progress: Callable[[Record], None],
    ) -> None:
        mask, probe = options.mask, options.probe
        self.start, self.net, self.budget, self.limit = net, net, options.budget, options.max_drift
        self.corrections = options.corrections
        self.max_trust = options.max_trust
        self.still = net.frozen
        self.held, self.cut = _holding(net, mask), None if mask is None else _already(net, mask)
        self.save, self.check, self.progress = options.save, options.check, progress
        self.metric = replace(metric, mask=mask) if isinstance(metric, Pullback) and mask is not None else metric
        self.anchor = metric.outputs(net) if isinstance(metric, Pullback) else None
        if self.budget is not None and self.anchor is None:
            raise WeightspaceError("a drift budget needs a Pullback metric, whose task says what must not drift")
        self.heldout = Pullback(probe, metric.output if isinstance(metric, Pullback) else "logits") if probe else None
        self.there = self.heldout.outputs(net) if self.heldout else None
        self.predictor: Predictor | None = None
        if isinstance(self.metric, Pullback) and self.anchor is not None:
            how = options.corrections, options.accelerate
            self.predictor = Predictor(self.metric, self.anchor, self.budget, *how)
        self.nets, self.log, self.begun = [net], list[Record](), 0
        self._history: Remembering | None = metric if isinstance(metric, Remembering) else None
        self._saved: dict[str, Tensor] = {}
        self.trail = None if trail is None else Trail(trail, net)

    def go(self, goal: Any, steps: int, size: Size) -> Flow:
        """The flow towards a goal."""
        self.remember()
        if not isinstance(goal, Prune):
            return self.descend(goal, steps, size)
        return self.carve(goal, steps, size) if goal.repair == "descent" else self.prune(goal, steps)

    # -------------------------------------------------------------- descending

    def descend(self, goal: Any, steps: int, size: Size) -> Flow:
        why = "steps"
        for k in range(self.begun, steps):
            value, wanted = value_and_gradient(goal, self.net, k)
            if bad := wanted.unusable():
                why = f"nan in {bad[0]}"
                break
            if self.held is not None:
                wanted = self.held.shaped(wanted.flat() * self.held.flat())
            if not any(bool(part.any()) for part in wanted.flat().split(_LOOKED_AT)):
                why = "goal"
                break
            length, state = self._length(size, k / steps), self._snapshot(self._history)
            found = self._step(wanted, length)
            if isinstance(found, str):
                why = found
                break
            net, predicted, length, moved = found
            record = Record(k, length, value, moved, predicted, self._held(net, k, steps))
            if not self._accept(net, record, last=k == steps - 1, cut=self.cut):
                if self._history:
                    self._history.restore(self.net, state)
                why = "heldout"
                break
        return self._done(why)

    def _snapshot(self, history: Remembering | None) -> dict[str, Tensor]:
        """The moments to restore if the step is refused for its held-out drift."""
        return history.state() if history is not None and self.limit is not None else {}

    def _length(self, size: Size, done: float) -> float:
        length = size(done) if callable(size) else size
        if not 0 <= length < math.inf:
            raise WeightspaceError(f"size gave {length} at {done:.0%} of the way; it must give lengths from 0")
        return length

    def _step(self, wanted: Weights, length: float) -> tuple[Net, float, float, float] | str:
        """The longest step up to `length` that keeps the budget: network, predicted drift, length, drift."""
        if not isinstance(self.metric, Pullback):
            vector = self.metric.steepest(self.net, wanted)
            if self.held is not None:  # a metric may spread what it is given over a layer
                vector = vector.shaped(vector.flat() * self.held.flat())
            net = self._clipped(_moved(self.net, vector, length))
            bad = net.weights.unusable()
            return f"nan in {bad[0]}" if bad else (net, math.nan, length, math.nan)
        assert self.predictor is not None
        return self.predictor.step(self.net, wanted, length, self._clipped)

    def _clipped(self, net: Net) -> Net:
        """The farthest point on the straight step to `net` that `max_trust` allows."""
        if self.max_trust is None or net.weights.unusable():
            return net
        apart = [float(d.max()) for d in relative_distances(self.net, net).values()]
        most, low, high = math.log1p(self.max_trust), 0.0, 1.0
        if sum(math.log1p(d) for d in apart) <= most:
            return net
        for _ in range(_BISECTIONS):
            share = (low + high) / 2
            low, high = (share, high) if sum(math.log1p(share * d) for d in apart) <= most else (low, share)
        return self.net + low * (net - self.net)

    def _reference(self) -> Float[Tensor, "examples outputs"]:
        assert self.anchor is not None
        return self.anchor

    # -------------------------------------------------------------- pruning

    def prune(self, goal: Prune, steps: int) -> Flow:
        """Prune gradually: cut a few weights, repair on the metric's examples (Gauss-Newton or by layer), repeat."""
        assert isinstance(self.metric, Pullback)
        why, group = "steps", self._group(goal)
        for k in range(self.begun, steps):
            before, cut = self.net.weights, self._tighter(goal, share_at(goal.sparsity, (k + 1) / steps), group)
            moving = cut if self.held is None else cut.shaped(cut.flat() * self.held.flat())
            metric = replace(self.metric, mask=moving, _last={})
            net = self.net.at(before.shaped(before.flat() * cut.flat()))
            predicted = metric.drift(net, self._reference())
            if goal.repair == "layer":
                net = compensated(self.net, metric.task, cut)
            else:
                net = metric.retract(net, self._reference(), self.corrections)
            net = net.refreshed()
            if bad := net.weights.unusable():
                why = f"nan in {bad[0]}"
                break
            moved = metric.drift(net, self._reference())
            if self.budget is not None and moved > self.budget:
                why = "budget"
                break
            held = self._held(net, k, steps)
            record = Record(k, float((net.weights - before).norm()), math.nan, moved, predicted, held)
            if not self._accept(net, record, last=k == steps - 1, cut=cut):
                why = "heldout"
                break
        return self._done(why)

    def carve(self, goal: Prune, steps: int, size: Size) -> Flow:
        """Prune during a descent that holds the outputs: every few steps, cut the weights with the least w^2 h.

        h is Adam's mean squared gradient: w^2 h is the second-order damage of removing a weight, with the squared
        gradient for the curvature (Optimal brain damage; LeCun, Denker, Solla, 1990).
        """
        assert isinstance(self.metric, Pullback)
        why, group, adam = "steps", self._group(goal), Adam()
        self.remember(adam)
        near = hold(
            self.metric.task, self.start, "kl",
            batch=goal.batch, seed=goal.seed, temperature=_TEMPERATURE, augment=goal.augment,
        )  # fmt: skip
        last = min(steps - 1, round(_TIGHTENING * steps))
        every = max(1, min(_TIGHTEN_EVERY, last // 10))
        for k in range(self.begun, steps):
            cut, state = self.cut, self._snapshot(adam)
            if k == last or (k < last and k % every == 0):
                worth = self._worth(adam) if adam.seen else None
                cut = self._tighter(goal, share_at(goal.sparsity, k / last if last else 1.0), group, worth)
            weights = self.net.weights
            net = self.net if cut is None else self.net.at(weights.shaped(weights.flat() * cut.flat()))
            value, wanted = near.value_and_gradient(net, k)
            if bad := wanted.unusable():
                why = f"nan in {bad[0]}"
                break
            for mask in (cut, self.held):
                wanted = wanted if mask is None else mask.shaped(wanted.flat() * mask.flat())
            rate = self._length(size, k / steps) if callable(size) else size * (1 + math.cos(math.pi * k / steps)) / 2
            net = _moved(net, adam.steepest(net, wanted), rate)
            if cut is not None:  # momentum of what was cut
                net = net.at(net.weights.shaped(net.weights.flat() * cut.flat()))
            if bad := net.weights.unusable():
                why = f"nan in {bad[0]}"
                break
            moved = self.metric.drift(net, self._reference()) if k == steps - 1 else math.nan
            record = Record(k, rate, value, moved, math.nan, self._held(net, k, steps))
            if not self._accept(net, record, last=k == steps - 1, cut=cut):
                adam.restore(self.net, state)
                why = "heldout"
                break
        return self._done(why)

    def _tighter(self, goal: Prune, share: float, group: Symmetry | None, worth: Weights | None = None) -> Weights:
        """The next pruning mask; weights that the caller holds are neither cut nor counted."""
        weights = self.net.weights
        value = (weights if worth is None else worth).map(torch.abs)
        if self.held is not None:
            value = value.shaped(torch.where(self.held.flat() == 0, math.inf, value.flat()))
            zero = (self.held.flat() == 0) & (weights.flat() == 0)
            value = value.shaped(torch.where(zero, 0.0, value.flat()))
        return tightened(weights, goal, share, self.cut, worth=value, group=group, frozen=self.still)

    def _worth(self, adam: Adam) -> Weights:
        weights = self.net.weights
        return weights.shaped(weights.flat() * adam.curvature(self.net).flat())

    def _group(self, goal: Prune) -> Symmetry | None:
        assert isinstance(self.metric, Pullback)
        return Symmetry.of(self.net, self.metric.task.example(2), scales=False) if goal.structure == "neuron" else None

    # -------------------------------------------------------------- common to all steps

    def _held(self, net: Net, step: int, steps: int) -> float:
        if self.heldout is None or self.there is None or ((step + 1) % self.check and step != steps - 1):
            return math.nan
        return self.heldout.drift(net, self.there)

    def _accept(self, net: Net, record: Record, last: bool, cut: Weights | None = None) -> bool:
        if self.limit is not None and record.heldout > self.limit:
            return False
        self.net, self.cut = net, cut
        self.log.append(record)
        if record.step % self.save == self.save - 1 and not last:
            self._keep()
        self.progress(record)
        return True

    def _keep(self) -> None:
        self.nets.append(self.net)
        if self.trail is None:
            return
        trust = 1.0 if self.predictor is None else self.predictor.trust
        kept: dict[str, Tensor] = {"trust": torch.tensor(trust, dtype=torch.float64)}
        adam = self._history
        kept |= {f"adam.{name}": t for name, t in adam.state().items()} if adam else {}
        kept |= {"cut": self.cut.flat().bool()} if self.cut is not None else {}
        kept["log"] = torch.tensor([list(asdict(r).values()) for r in self.log], dtype=torch.float64)
        facts = {name: value for name, value in asdict(self.log[-1]).items() if name != "step" and value == value}
        self.trail.append(self.net, self.log[-1].step + 1, kept, **facts)

    def remember(self, history: Remembering | None = None) -> None:
        """Save the history of a metric with the points from now on, and restore those that were saved."""
        self._history = history or self._history
        state = {name.removeprefix("adam."): t for name, t in self._saved.items() if name.startswith("adam.")}
        if self._history is not None and state:
            self._history.restore(self.net, state)

    def resume(self, trail: Trail, asked: dict[str, Any], steps: int) -> None:
        """Continue an interrupted flow with the same arguments."""
        begun, before = trail[0], trail.index.get("asked")
        if float((begun - self.start).norm()) > 0 or float((begun.state - self.start.state).norm()) > 0:
            raise WeightspaceError(f"{trail.folder}: the path there began at another network; choose another folder")
        if before is None and len(trail) == 1 and "toward" not in trail.index:
            trail.note(asked=asked)
        elif before is None:
            raise WeightspaceError(
                f"{trail.folder}: holds a path that no flow wrote, or an older one; choose another folder"
            )
        elif name := changed(before, asked):
            kind = "goal or metric" if name in ("goal", "metric") else name
            raise WeightspaceError(f"{trail.folder}: the path there has another {kind}; choose another folder")
        self._saved = trail.resumed()
        if self._saved:
            self.nets, self.begun = list(trail), int(trail.facts(-1)["step"])
            self.net = self.nets[-1]
            if self.predictor is not None:
                self.predictor.trust = float(self._saved["trust"])
            self.log = [Record(int(row[0]), *row[1:]) for row in self._saved["log"].tolist()]
            if "cut" in self._saved:
                weights = self.net.weights
                self.cut = weights.shaped(self._saved["cut"].to(weights.flat()))
        if self.begun > steps or (self.limit is not None and any(r.heldout > self.limit for r in self.log)):
            what = f"{self.begun} steps" if self.begun > steps else f"steps beyond the limit {self.limit:g}"
            raise WeightspaceError(f"{trail.folder}: the path there has {what}; choose another folder")

    def _done(self, why: str) -> Flow:
        if self.net is not self.nets[-1]:
            self._keep()
        return Flow(self.nets, self.log, why, self._mask())

    def _mask(self) -> Weights | None:
        """Zero where weights were cut, or held by the caller."""
        if self.held is None or self.cut is None:
            return self.held if self.cut is None else self.cut
        return self.cut.shaped(self.cut.flat() * self.held.flat())


def _moved(net: Net, vector: Weights, length: float) -> Net:
    """w + length v, in one pass over the weights."""
    return net.at(net.weights.shaped(torch.add(net.weights.flat(), vector.flat(), alpha=length))).refreshed()


def _holding(net: Net, mask: Weights | None) -> Weights | None:
    """The caller's mask, with zeros where weights are frozen."""
    if not net.frozen:
        return mask
    free = loose(net)
    return free if mask is None else free.shaped(free.flat() * mask.flat().to(free.flat()))


def _already(net: Net, mask: Weights) -> Weights:
    """Zero where the mask is zero and so is the weight: pruned before."""
    return mask.shaped(((mask.flat() != 0) | (net.weights.flat() != 0)).to(mask.flat()))
