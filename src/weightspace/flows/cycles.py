"""Cyclical step sizes with a network kept in every cycle: snapshot ensembles and fast geometric ensembles (FGE).

One training run gives several networks. In a training loop, `cycle.update(module)` after every step of the optimiser
sets its next step size and keeps the module where the step size is lowest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from weightspace.flows.ensembles import ensemble
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.path.path import Path
from weightspace.training.points import Points, entry

__all__ = ["Cycle", "fge", "snapshots"]


@public
class Cycle:
    """A cyclical step size, and the networks kept where it is lowest: what `snapshots` and `fge` make.

    The step size is set from the first step on. `calls`: the number of steps; `rates`: the highest step size of every
    group of the optimiser.

    >>> import torch, weightspace as ws
    >>> layer = torch.nn.Linear(3, 2)
    >>> optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    >>> cycle, sizes = ws.fge(optimiser, steps=4, low=0.1), []
    >>> for step in range(8):
    ...     sizes.append(round(optimiser.param_groups[0]["lr"], 3))
    ...     optimiser.step()
    ...     cycle.update(layer)
    >>> sizes
    [0.055, 0.01, 0.055, 0.1, 0.055, 0.01, 0.055, 0.1]
    >>> list(cycle.members)
    ['step 2', 'step 6']
    """

    def __init__(self, optimiser: Optimizer, kind: str, steps: int, low: float, last: int | None = None) -> None:
        if last is not None and last < 1:
            raise WeightspaceError(f"last is {last}; give 1 or more networks to keep, or None for all")
        self.optimiser, self.kind, self.steps, self.low = optimiser, kind, steps, low
        self.calls, self._points = 0, Points(last)
        self.rates = [float(group["lr"]) for group in optimiser.param_groups]
        self._set()

    def share(self, step: int) -> float:
        """The step size at a step, counted from 0, as a share of the highest."""
        at = step % self.steps
        if self.kind == "snapshots":
            return self.low + (1 - self.low) * (1 + math.cos(math.pi * at / self.steps)) / 2
        t = (at + 1) / self.steps
        return 1 - (1 - self.low) * (2 * t if t <= 0.5 else 2 - 2 * t)

    def update(self, module: nn.Module | Net) -> None:
        """Count a step of the optimiser: keep the module at the low end of a cycle, and set the next step size.

        Raises `ArchitectureMismatch` for a module with other tensors than before, and `WeightspaceError` for weights
        with NaN or infinity.
        """
        kept = self.steps if self.kind == "snapshots" else self.steps // 2
        if (self.calls + 1) % self.steps == kept % self.steps:
            self._points.add(self.calls + 1, self._points.read(module))
        self.calls += 1
        self._set()

    def _set(self) -> None:
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            size = rate * self.share(self.calls)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(size)
            else:
                group["lr"] = size

    @property
    def members(self) -> dict[str, Net]:
        """The networks kept, by their step: for `ensemble`, `swa(members.values())` or the greedy `atlas.soup`."""
        return {f"step {step}": net for step, net in self._points.nets().items()}

    def net(self) -> Net:
        """The ensemble of the networks kept, as one network (see `ensemble`), each with its own running statistics."""
        return ensemble(self._whole(1))

    def path(self) -> Path:
        """The polyline through the networks kept, in the time of the steps. Raises for fewer than two."""
        return Path.through(self._whole(2), [*self._points.kept])

    def _whole(self, least: int) -> list[Net]:
        nets = [*self._points.nets().values()]
        if len(nets) < least:
            raise WeightspaceError(
                f"{len(nets)} networks were kept after {self.calls} steps, and this needs {least}; train for longer, "
                "or take shorter cycles"
            )
        return nets

    def state_dict(self) -> dict[str, Any]:
        """The steps, the step sizes and the networks kept, which `torch.save` writes and reads safely."""
        told = {name: getattr(self, name) for name in ("kind", "steps", "low", "calls")}
        return {**told, "rates": [*self.rates], "points": self._points.state()}

    def load_state_dict(self, state: Mapping[str, Any], module: nn.Module | Net) -> None:
        """Take up a `state_dict` for a module of the same architecture, and set the step size of the step that follows.

        Raises `WeightspaceError` for the state of other cycles or of an optimiser with other groups, and
        `ArchitectureMismatch` for one of other tensors.
        """
        for name in ("kind", "steps", "low"):
            if (seen := entry(state, name, object)) != getattr(self, name):
                raise WeightspaceError(
                    f"the state has {name} {seen}, these cycles {getattr(self, name)}; make it the same"
                )
        rates, calls = entry(state, "rates", list), entry(state, "calls", int)
        if len(rates) != len(self.rates) or not all(isinstance(rate, float) for rate in rates):
            raise WeightspaceError(
                f"the state has {len(rates)} step sizes, the optimiser {len(self.rates)} groups; give the same groups"
            )
        self._points.restore(entry(state, "points", Mapping), module)
        self.rates, self.calls = [*rates], calls
        self._set()

    def __repr__(self) -> str:
        return f"Cycle({self.kind} of {self.steps} steps, {len(self._points.kept)} networks after {self.calls} steps)"


@public
def snapshots(optimiser: Optimizer, steps: int, low: float = 0.0, last: int | None = None) -> Cycle:
    """Snapshot ensembles: step sizes that fall along half a cosine in every cycle of `steps`, then start anew.

    The size at step k of a cycle is s (low + (1 - low) (1 + cos(pi k / steps)) / 2), with s the optimiser's own; a
    network is kept at the end of every cycle, the `last` ones or all. `cycle.update(module)` follows every step of the
    optimiser; `cycle.net()` is the ensemble. No other scheduler may set the step sizes. Raises `WeightspaceError` for
    less than one step a cycle, and a `low` outside of [0, 1].
    Source: Snapshot ensembles, train 1, get M for free (Huang, Li, Pleiss, Liu, Hopcroft, Weinberger, 2017).

    >>> import torch, weightspace as ws
    >>> layer = torch.nn.Linear(3, 2)
    >>> optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    >>> cycle = ws.snapshots(optimiser, steps=10)
    >>> for step in range(30):
    ...     layer(torch.ones(1, 3)).square().sum().backward()
    ...     optimiser.step()
    ...     cycle.update(layer)
    >>> cycle, cycle.net()(torch.ones(4, 3)).exp().sum(1).round(decimals=3)
    (Cycle(snapshots of 10 steps, 3 networks after 30 steps), tensor([1., 1., 1., 1.]))
    """
    _check(steps, low, 1)
    return Cycle(optimiser, "snapshots", steps, low, last)


@public
def fge(optimiser: Optimizer, steps: int, low: float = 0.01, last: int | None = None) -> Cycle:
    """Fast geometric ensembles: step sizes that fall and rise in straight lines, in short cycles of `steps`.

    They go from s, the optimiser's own, to low s in the middle of a cycle, where a network is kept, and back. Begin
    from a network trained for most of the budget: its minima are joined by paths of low loss, and the networks lie
    along one (`cycle.path().barrier(task)`). `cycle.net()` is their ensemble, `swa(cycle.members.values())` their
    mean. No other scheduler may set the step sizes. Raises `WeightspaceError` for an odd number of steps a cycle, and a
    `low` outside of [0, 1]. Source: Loss surfaces, mode connectivity, and fast ensembling of DNNs (Garipov, Izmailov,
    Podoprikhin, Vetrov, Wilson, 2018).

    >>> import torch, weightspace as ws
    >>> layer = torch.nn.Linear(3, 2)
    >>> optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    >>> cycle = ws.fge(optimiser, steps=6, last=3)
    >>> for step in range(30):
    ...     layer(torch.ones(1, 3)).square().sum().backward()
    ...     optimiser.step()
    ...     cycle.update(layer)
    >>> list(cycle.members), ws.swa(cycle.members.values())
    (['step 15', 'step 21', 'step 27'], Net(Linear, 8 weights, torch.float32))
    """
    _check(steps, low, 2)
    return Cycle(optimiser, "fge", steps, low, last)


def _check(steps: int, low: float, parts: int) -> None:
    if steps < parts or steps % parts:
        even = " and an even number, with its lowest step size in the middle" if parts == 2 else ""
        raise WeightspaceError(f"a cycle has {parts} or more steps{even}; got {steps}")
    if not 0 <= low <= 1:
        raise WeightspaceError(f"low is a share of the highest step size, from 0 to 1; got {low}")
