"""Repair of averaged networks: re-estimated normalisation statistics, and refitted layers where they lower the loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.net.average import lifted
from weightspace.net.errors import WeightspaceError, first_line
from weightspace.net.inputs import arguments, each, shape
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.path.divergence import Divergence, is_labelled
from weightspace.symmetry.align.refit import NothingToMend, refit, rescale
from weightspace.task.task import Task

__all__ = ["best_repaired", "has_statistics", "repair", "reset_statistics", "tracking"]


_EXAMPLES, _FEW = 4096, 20
_ROOM = 1 << 26  # numbers that enter a norm at once
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def has_statistics(net: Net) -> bool:
    """Whether some norm layer keeps running statistics of the data."""
    return bool(tracking(net.architecture))


def tracking(module: nn.Module) -> list[nn.Module]:
    """The norm layers of a module that keep running statistics of the data."""
    return [m for m in module.modules() if isinstance(m, _NORMS) and getattr(m, "running_mean", None) is not None]


@public
def reset_statistics(net: Net, task: Task) -> Net:
    """`net` with every running mean and variance re-estimated on the task's inputs.

    They are those of training mode with all examples as one batch: every norm has the mean and the variance (unbiased,
    as the norms keep it) of all its inputs, the norms before it using theirs. They do not depend on the batch size; a
    network of half precision is run in float32. Only the statistics change. Cost: a forward pass where all examples fit
    into one batch, else a pass up to each norm. Raises `WeightspaceError` where a norm gets only one number per
    channel.

    >>> import torch.nn as nn, weightspace as ws
    >>> module = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    >>> net, task = ws.fresh(module, 0), ws.demo.example()[1]
    >>> after = ws.reset_statistics(net, task)
    >>> bool(net.state["2.running_mean"].any()), bool(after.state["2.running_mean"].any())
    (False, True)
    """
    if not has_statistics(checked(net)):
        return net
    own, (net,) = net, lifted([net])
    module = net.module()
    met = _Met(tracking(module))
    with torch.no_grad():
        task = _together(net, task, met, module)
        while True:
            batches = task.batches(net)
            first, second = next(batches), next(batches, None)
            met.single = second is None
            read = chain([first], [] if second is None else [second], batches)
            reached = [_run(net, module, x, met) for x, _ in read]
            met.close()
            if met.single or not any(reached):
                break
    met.write()
    buffers = dict(module.named_buffers())
    return own.at(own.weights, own.state.replace({name: buffers[name] for name in own.state}))


class _Reached(Exception):
    """Raised at a norm whose statistics are not known yet."""


@dataclass
class _Moments:
    """Count, mean and sum of squared deviations of every channel, in float64."""

    norm: nn.Module
    count: int = 0
    mean: Any = 0.0
    rest: Any = 0.0

    def add(self, x: Tensor) -> None:
        """Add the inputs of a norm, (example, channel, ..); in an instance norm, each example has its own moments."""
        wide = x.float() if x.device.type == "mps" else x.double()
        if isinstance(self.norm, nn.modules.instancenorm._InstanceNorm):
            wide = wide if wide.dim() == self.norm._get_no_batch_dim() + 1 else wide[None]
            var, mean = torch.var_mean(wide.flatten(2), 2)
            self.mean, self.rest = self.mean + mean.sum(0), self.rest + var.sum(0)
            self.count += len(wide)
            return
        rows = wide.movedim(1, -1).flatten(0, -2)
        n, total = len(rows), self.count + len(rows)
        mean = rows.mean(0)
        away = mean - self.mean
        self.rest = self.rest + (rows - mean).square().sum(0) + away.square() * (self.count * n / total)
        self.mean, self.count = self.mean + away * (n / total), total

    def put(self, biased: bool) -> None:
        """Write them into the norm: `biased` as a batch is normalised, else as the norms keep it."""
        mean, var = self.mean, self.rest
        if isinstance(self.norm, nn.modules.instancenorm._InstanceNorm):
            mean, var = mean / self.count, var / self.count
        else:
            if self.count < 2:
                raise WeightspaceError("running statistics need two numbers for each channel; give more examples")
            var = var / (self.count if biased else self.count - 1)
        self.norm.running_mean.copy_(mean)  # type: ignore[operator]
        self.norm.running_var.copy_(var)  # type: ignore[operator]


class _Met:
    """The norm calls of a forward pass in order: moments of those that are known, and of the next one."""

    def __init__(self, norms: list[nn.Module]) -> None:
        self.known: list[_Moments] = []
        self.next: _Moments | None = None
        self.single, self.at, self.largest = True, 0, 0
        for norm in norms:
            norm.register_forward_pre_hook(self._entered)

    def _entered(self, norm: nn.Module, given: tuple[Any, ...]) -> None:
        x, number = given[0], self.at
        self.at += 1
        self.largest = max(self.largest, x.numel())
        if number == len(self.known):
            self.next = self.next or _Moments(norm)
            self.next.add(x)
            if not self.single:
                raise _Reached
            self.close()
        if not isinstance(norm, nn.modules.instancenorm._InstanceNorm):  # which in training looks at each example
            self.known[number].put(biased=True)
            norm.eval()
        else:
            norm.train()

    def close(self) -> None:
        """Count the next one as known."""
        self.known += [] if self.next is None else [self.next]
        self.next = None

    def write(self) -> None:
        """Write the statistics of every norm, of its last call where it is called several times."""
        for moments in self.known:
            moments.put(biased=False)


def _run(net: Net, module: nn.Module, x: Any, met: _Met) -> bool:
    """One pass; whether it ended at a norm."""
    args, kwargs = arguments(x)
    met.at = 0
    try:
        module(*args, **kwargs)
    except _Reached:
        return True
    except RuntimeError as error:
        name, reason = type(net.architecture).__name__, first_line(error)
        raise WeightspaceError(f"{name} does not take inputs of shape {each(shape, x)}: {reason}") from error
    return False


def _together(net: Net, task: Task, met: _Met, module: nn.Module) -> Task:
    """The task as one batch, where it is held in memory and the inputs of the norms are small enough."""
    if not task.in_memory or task.batch >= len(task):
        return task
    some = task.take(2)
    some.batch = 2
    for x, _ in some.batches(net):
        _run(net, module, x, met)
    met.known.clear()
    whole = copy.copy(task)
    whole.batch = len(task)
    return whole if met.largest / len(some) * len(task) <= _ROOM else task


@public
def repair(net: Net, ends: list[Net], task: Task) -> Net:
    """Repair `net`, an average of `ends`: re-estimated statistics, and units rescaled or layers refitted if that helps.

    Units may be rescaled (`rescale`) or layers refitted (`refit`) to the average outputs of the ends; the variant with
    the lowest loss is kept, each fitted on four fifths of the examples and judged on the rest; without labels, the one
    with the lowest divergence from the mean outputs of the ends (see `Divergence`). Where weights are frozen, only
    statistics are repaired.

    >>> import torch.nn as nn, weightspace as ws
    >>> module = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    >>> (a, b), task = (ws.fresh(module, seed) for seed in (0, 1)), ws.demo.example()[1]
    >>> middle = a.lerp(b, 0.5)
    >>> mended = ws.repair(middle, [a, b], task)
    >>> bool(mended.state["2.running_mean"].any())
    True
    """
    return best_repaired([(net, ends)], task)


def best_repaired(averages: list[tuple[Net, list[Net]]], task: Task) -> Net:
    """The best of several averages, each with its ends and repaired: all are judged on the same examples."""
    for net, ends in averages:
        if not ends:
            raise WeightspaceError("an average of no networks cannot be repaired; give its ends")
        for end in ends:
            checked(net).check(end)
    some = task.take(_EXAMPLES, seed=0)
    fit, judge = some.split(0.8, seed=0) if len(some) >= _FEW else (some, some)
    ways: list[Callable[[Task], Net]] = []
    for net, ends in averages:
        ways += [partial(_as_it_is, net)]
        if not any(some.frozen for some in (net, *ends)):  # layers cannot be refitted around frozen ones
            ways += [partial(rescale, net, ends), partial(refit, net, ends)]
    loss = judge if is_labelled(task) else Divergence(judge, averages[0][1])
    found: list[tuple[float, int]] = []
    for k, way in enumerate(ways):
        with suppress(NothingToMend), torch.no_grad():
            found.append((float(loss(reset_statistics(way(fit), fit))), k))
    return reset_statistics(ways[min(found)[1]](task), task)


def _as_it_is(net: Net, task: Task) -> Net:
    return net
