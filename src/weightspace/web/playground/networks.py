"""The networks of a session: set up, trained together, edited, and brought back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.seeds import derived
from weightspace.web.playground.learner import LARGEST, Learner, sound
from weightspace.web.playground.points import Points, drawn
from weightspace.web.playground.state import Limits, State

__all__ = ["Networks", "Shaken", "scores"]

_DATA = {"data", "noise", "points", "test"}
_FORM = {"depth", "width", "activation"}
_LEARNING = {"batch", "algorithm", "rate"}
_HUGE = f"the weights would grow beyond {LARGEST:g}; undo, or reset"


@dataclass(frozen=True)
class Shaken:
    """Noise that was added to one network: its weights before the first press, before the last, and after it."""

    first: Tensor
    before: Tensor
    after: Tensor
    presses: int
    percent: float


@dataclass(frozen=True)
class _Moment:
    """What `undo` goes back to."""

    flats: tuple[Tensor, ...]
    shaken: tuple[Shaken | None, ...]


class Networks:
    """One or two networks on the same data. `steps`: training steps since they were drawn; `diverged`: why it ended."""

    def __init__(self, state: State, limits: Limits) -> None:
        self.limits, self.state = limits, state
        self.train, self.test = self._data(state)
        self.draw()

    def draw(self, like: Net | None = None) -> None:
        """New networks from the seeds of the state, and the first epoch; `like`: a network of this architecture."""
        state = self.state
        first = Learner(state, state.seed, like)
        others = [Learner(state, state.other, first.begun)] if state.networks > 1 else []
        self.learners = (first, *others)
        self.start = self.flats()
        self.order = torch.Generator().manual_seed(state.seed)
        self.history: tuple[_Moment, ...] = ()
        self.steps, self.seen, self.draws = 0, 0, 0
        self.queue: Sequence[Tensor] = ()
        self.settle()

    def settle(self) -> None:
        """Forget what was said about weights that are no longer there."""
        self.shaken: tuple[Shaken | None, ...] = (None,) * len(self.learners)
        self.diverged: str | None = None

    def _data(self, state: State) -> tuple[Points, Points]:
        return drawn(state.data, state.points, state.noise, state.seed, state.test)

    def change(self, given: Mapping[str, Any]) -> None:
        """Another state: a new network where its form or a seed changes, else the same weights go on.

        Without the second network the first one goes on too.
        """
        state = self.state.with_fields(given)
        changed = state.changed(self.state)
        if changed & (_DATA | {"seed"}):
            self.train, self.test = self._data(state)
            self.queue = ()
        if "batch" in changed:
            self.queue = ()
        self.state, self.diverged = state, None
        drawn = changed - _DATA - _LEARNING
        if drawn == {"other"} and state.networks == 1:
            self._alone()
        elif drawn:
            self.draw(None if changed & _FORM else self.learners[0].begun)
        for learner in self.learners if changed & _LEARNING else ():
            learner.start_over(state)

    def _alone(self) -> None:
        """The first network as it is, with what was done to it, and no second one."""
        self.learners, self.start, self.shaken = self.learners[:1], self.start[:1], self.shaken[:1]
        self.history = tuple(_Moment(moment.flats[:1], moment.shaken[:1]) for moment in self.history)

    # -------------------------------------------------------------- which network

    def at(self, number: int) -> int:
        """The index of network 1 or 2. Raises `WeightspaceError` where there is no second."""
        if number > len(self.learners):
            raise WeightspaceError("there is one network; set other to the seed of a second one")
        return number - 1

    def both(self) -> None:
        """Raise `WeightspaceError` unless there are two networks."""
        self.at(2)

    def net(self, k: int) -> Net:
        """Network k as the library takes it."""
        return self.learners[k].net()

    def flats(self) -> tuple[Tensor, ...]:
        """A copy of all weights of each network."""
        return tuple(learner.flat.clone() for learner in self.learners)

    # -------------------------------------------------------------- changes

    def checked(self, net: Net) -> Tensor:
        """The weights of a network that may take the place of one here. Raises `WeightspaceError`."""
        flat = net.weights.flat().detach()
        if not sound(flat):
            raise WeightspaceError(_HUGE)
        return flat

    def put(self, new: Mapping[int, Tensor], shaken: Mapping[int, Shaken] | None = None) -> None:
        """Give networks other weights, in a way that `undo` takes back."""
        moment = _Moment(self.flats(), self.shaken)
        self.history = (*self.history, moment)[-self.limits.history :]
        self.settle()
        for k, flat in new.items():
            self.learners[k].put(flat)
            self.learners[k].start_over(self.state)
        if shaken is not None:
            self.shaken = tuple(shaken.get(k, moment.shaken[k]) for k in range(len(self.learners)))

    def undo(self) -> None:
        """Back to the weights before the last change. Raises `WeightspaceError` where there is none."""
        if not self.history:
            raise WeightspaceError(
                "nothing to undo: no noise, edit, shuffle or alignment since the networks were drawn"
            )
        *rest, moment = self.history
        self.history = tuple(rest)
        self.settle()
        for learner, flat in zip(self.learners, moment.flats, strict=True):
            learner.put(flat)
            learner.start_over(self.state)
        self.shaken = moment.shaken

    def seed(self) -> int:
        """A new seed for a draw: the same ones in the same order, for the same messages."""
        self.draws += 1
        return derived(self.state.seed, "draw", self.draws) % 2**31

    # -------------------------------------------------------------- training

    def learn(self, steps: int) -> None:
        """So many training steps of every network, on the same batches; unless they diverged."""
        if self.diverged:
            return
        before, begun = self.flats(), (self.steps, self.seen)
        self.settle()
        for _ in range(steps):
            batch = self._batch()
            self.steps += 1
            self.seen += len(batch)
            if not self._learnt(batch):
                self._stop(before, begun)
                return

    def _learnt(self, batch: Tensor) -> bool:
        """One step of every network; whether their weights can still be computed with."""
        x, y = self.train.x[batch], self.train.y[batch]
        try:
            for learner in self.learners:
                learner.learn(x, y)
        except (WeightspaceError, RuntimeError):  # a metric refuses what is not finite, and so does its factorisation
            return False
        return all(sound(learner.flat) for learner in self.learners)

    def _stop(self, before: tuple[Tensor, ...], begun: tuple[int, int]) -> None:
        """Back to the weights before the message in which training diverged."""
        self.diverged = f"training diverged at step {self.steps}: weights of step {begun[0]}: lower the rate"
        self.steps, self.seen = begun
        for learner, flat in zip(self.learners, before, strict=True):
            learner.put(flat)
            learner.start_over(self.state)

    def _batch(self) -> Tensor:
        """The indices of the next batch: every example once an epoch, in an order drawn anew."""
        if not self.queue:
            order = torch.randperm(len(self.train), generator=self.order)
            self.queue = order.split(min(self.state.batch, len(self.train)))
        first, *rest = self.queue
        self.queue = tuple(rest)
        return first


def scores(learner: Learner, points: Points, flat: Tensor | None = None) -> dict[str, float]:
    """The mean binary cross-entropy on points, in nats, and the accuracy."""
    with torch.no_grad():
        logits = learner.responses(points.x, flat)[-1][:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, points.y)
        return {"loss": float(loss), "accuracy": float(((logits > 0) == (points.y > 0)).double().mean())}
