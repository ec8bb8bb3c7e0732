"""Averages of the weights along a training run: exponential (EMA), equal (SWA), and of the latest points (LAWA).

In a training loop, `average.update(module)` after every step takes the module's weights in, and `average.net(data)` is
the averaged network, with the running statistics of its norms re-estimated on data. The module is only read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn

from weightspace.net.average import average
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.weights import wide
from weightspace.path.path import Path
from weightspace.symmetry.align.repair import has_statistics, reset_statistics
from weightspace.task.task import Task
from weightspace.training.points import Points, averaged, entry

__all__ = ["Average", "ema", "lawa", "swa"]


@public
class Average:
    """An average of the weights along a training run, which `update` takes in: what `ema`, `swa` and `lawa` make.

    `kind`: "ema", "swa" or "lawa", with its `settings`; `calls`: how often `update` was called, `taken`: how many
    points it took in. Nothing depends on the mode, the device or the dtype of the module but the dtypes of the result:
    sums are in float64 (in float32 for half precision) and rounded once. Floating-point buffers are averaged too,
    integer buffers are those of the last point.

    >>> import torch, weightspace as ws
    >>> layer, average = torch.nn.Linear(3, 2), ws.swa()
    >>> for step in range(4):
    ...     _ = layer.bias.data.fill_(step)                                    # a step of training
    ...     average.update(layer)
    >>> average, average.net().weights["bias"]
    (Average(swa of 4 points), tensor([1.5000, 1.5000]))
    """

    def __init__(self, kind: str, settings: Mapping[str, float], every: int = 1, start: int = 0) -> None:
        for name, value, least in (("every", every, 1), ("start", start, 0)):
            if value < least:
                raise WeightspaceError(f"{name} is {value}; give {least} or more steps")
        self.kind, self.settings = kind, {**settings, "every": every, "start": start}
        self.calls = self.taken = 0
        self._points = Points(int(settings["last"]) if kind == "lawa" else 1)
        self._moving = False  # whether running statistics, and other buffers, changed from point to point

    def update(self, module: nn.Module | Net) -> None:
        """Take in the weights of the module as they are now, at one of every `every` calls after the first `start`.

        Raises `ArchitectureMismatch` for a module with other tensors than before, and `WeightspaceError` for weights
        with NaN or infinity; the average then stays as it was.
        """
        since = self.calls + 1 - int(self.settings["start"])
        if since > 0 and since % int(self.settings["every"]) == 0:
            self._take(self._points.read(module))
            self.taken += 1
        self.calls += 1

    def _take(self, tensors: dict[str, Tensor]) -> None:
        points, like = self._points, self._points.like
        latest = next(reversed(points.kept.values()), None)
        if latest is not None and like is not None:
            own = (name for name, tensor in like.state.items() if averaged(tensor))
            self._moving |= any(not torch.equal(latest[name], tensors[name].to(latest[name])) for name in own)
        if self.kind == "lawa":
            points.add(self.calls + 1, tensors)
        elif latest is None:
            points.add(0, {n: t.to(_summed(t)) if averaged(t) else t for n, t in tensors.items()})
        else:
            rate = self._rate(self.taken + 1)
            for name, total in latest.items():
                _mix(total, tensors[name].to(total), rate)

    def _rate(self, n: int) -> float:
        """The weight of the n-th point in the average of the first n."""
        decay = self.settings.get("decay")
        return 1 / n if decay is None else (1 - decay) / (1 - decay**n)

    def net(self, data: Task | None = None) -> Net:
        """The averaged network, with running statistics re-estimated on `data` (see `reset_statistics`).

        `data` is needed where the network has norms whose statistics changed along the run: the statistics of averaged
        weights are not the averages of statistics. Raises `WeightspaceError` without it, and before the first point.
        """
        if not self.taken:
            raise WeightspaceError(f"no point was taken in after {self.calls} calls; call update(module) in the loop")
        alone = self.taken == 1 or self.settings.get("decay") == 0 or self.settings.get("last") == 1
        nets = [*reversed(self._points.nets().values())]  # integer buffers are those of the last
        found = nets[0] if len(nets) == 1 else average(nets)
        found = found if alone else found.refreshed()
        if data is not None:
            return reset_statistics(found, data)
        if has_statistics(found) and self._moving and not alone:
            raise WeightspaceError(
                "the running statistics of norms do not fit averaged weights; give examples: net(training data)"
            )
        return found

    @property
    def members(self) -> dict[str, Net]:
        """The points of `lawa`, by their step, for `ensemble` or the greedy average `atlas.soup`; of others none."""
        nets = self._points.nets() if self.kind == "lawa" else {}
        return {f"step {step}": net for step, net in nets.items()}

    def state_dict(self) -> dict[str, Any]:
        """All that the average is made of: numbers, text and tensors, which `torch.save` writes and reads safely."""
        told = {name: getattr(self, name) for name in ("kind", "calls", "taken")}
        return {**told, "moving": self._moving, "settings": dict(self.settings), "points": self._points.state()}

    def load_state_dict(self, state: Mapping[str, Any], module: nn.Module | Net) -> None:
        """Take up a `state_dict` for a module of the same architecture: the average goes on as if never interrupted.

        Raises `WeightspaceError` for the state of another kind of average, or of other settings, and
        `ArchitectureMismatch` for one of other tensors.
        """
        kind, settings = entry(state, "kind", str), dict(entry(state, "settings", Mapping))
        if (kind, settings) != (self.kind, self.settings):
            raise WeightspaceError(
                f"the state is of {_told(kind, settings)}, this is {_told(self.kind, self.settings)}; make it the same"
            )
        calls, taken = entry(state, "calls", int), entry(state, "taken", int)
        moving, points = entry(state, "moving", bool), entry(state, "points", Mapping)
        self._points.restore(points, module)
        self.calls, self.taken, self._moving = calls, taken, moving

    def __repr__(self) -> str:
        return f"Average({self.kind} of {self.taken} point{'s' * (self.taken != 1)})"


@public
def ema(decay: float = 0.999, every: int = 1, start: int = 0) -> Average:
    """The exponential moving average of the weights along a run: sum_i decay^(n - i) w_i / sum_i decay^(n - i).

    Its memory is about 1 / (1 - decay) points. The division corrects the bias towards the first points, as in Adam; an
    average that begins at the first point and is not divided (as in torch.optim.swa_utils) is the same after a few
    memories. decay 0 is the last point. `every`, `start`: see `Average.update`. Raises `WeightspaceError` for a decay
    outside of [0, 1). Source: Acceleration of stochastic approximation by averaging (Polyak, Juditsky, 1992).

    >>> import torch, weightspace as ws
    >>> layer, average = torch.nn.Linear(3, 2), ws.ema(decay=0.5)
    >>> for step in range(2):
    ...     _ = layer.bias.data.fill_(step)                                    # a step of training
    ...     average.update(layer)
    >>> average.net().weights["bias"]                                          # (0.5 * 0 + 1) / (0.5 + 1)
    tensor([0.6667, 0.6667])
    """
    if not 0 <= decay < 1:
        raise WeightspaceError(f"a decay is a number from 0 and below 1, got {decay}")
    return Average("ema", {"decay": decay}, every, start)


@public
def lawa(last: int = 10, every: int = 1, start: int = 0) -> Average:
    """The mean of the latest `last` points of a run: latest weight averaging (LAWA), which holds them all in memory.

    `every`: so many calls of `update` lie between two points; one epoch in the source. `members` are the points.
    Raises `WeightspaceError` for less than one. Source: Stop wasting my time! Saving days of ImageNet and BERT training
    with latest weight averaging (Kaddour, 2022).

    >>> import torch, weightspace as ws
    >>> layer, average = torch.nn.Linear(3, 2), ws.lawa(last=2)
    >>> for step in range(5):
    ...     _ = layer.bias.data.fill_(step)                                    # a step of training
    ...     average.update(layer)
    >>> average.net().weights["bias"], list(average.members)
    (tensor([3.5000, 3.5000]), ['step 4', 'step 5'])
    """
    if last < 1:
        raise WeightspaceError(f"last is {last}; give 1 or more points")
    return Average("lawa", {"last": last}, every, start)


@overload
def swa(nets: Path | Iterable[Net]) -> Net: ...
@overload
def swa(nets: None = None, *, every: int = 1, start: int = 0) -> Average: ...
@public
def swa(nets: Path | Iterable[Net] | None = None, *, every: int = 1, start: int = 0) -> Net | Average:
    """The mean (1 / n) sum_k w_k: of networks, or of a path's marked points; with none, an average along a run.

    Of networks, it is a network. Weights and floating-point state are averaged; integer state and dtypes are those of
    the first. Networks are read one at a time, summed in float32 or better and rounded once. BatchNorm statistics do
    not fit the mean network: re-estimate them from data (`reset_statistics`). Without networks, an `Average` for a
    training loop, which takes in one of every `every` steps after the first `start`: stochastic weight averaging, with
    a constant or cyclical step size from then on. Raises `ArchitectureMismatch` unless all have the same tensors.
    Source: Averaging weights leads to wider optima and better generalization (Izmailov et al., 2018).

    >>> import weightspace as ws
    >>> a, b = ws.demo.example()[0], ws.demo.example(1)[0]
    >>> float((ws.swa([a, b]) - a.lerp(b, 0.5)).norm()) < 1e-6
    True
    >>> average = ws.swa(every=2, start=10)                                    # in a training loop
    >>> for step in range(20):
    ...     average.update(a)
    >>> average
    Average(swa of 5 points)
    """
    if nets is None:
        return Average("swa", {}, every, start)
    if (every, start) != (1, 0):
        raise WeightspaceError("`every` and `start` are for a training loop; leave the networks out, or pick some")
    return average(nets)


def _summed(tensor: Tensor) -> torch.dtype:
    """The dtype in which a tensor is summed; a device without float64 sums in float32."""
    return torch.float32 if tensor.device.type == "mps" and not tensor.is_complex() else wide(tensor.dtype)


def _mix(total: Tensor, new: Tensor, rate: float) -> None:
    """(1 - rate) total + rate new, in place; what is equal stays so, infinite masks among it."""
    if rate == 1 or not averaged(total):
        total.copy_(new)
    else:
        total.add_(torch.where(new == total, 0.0, new - total), alpha=rate)


def _told(kind: str, settings: Mapping[str, Any]) -> str:
    return f"{kind}({', '.join(f'{name}={value}' for name, value in settings.items())})"
