"""After averaging: re-estimate normalisation statistics, and keep what mends the layers if it helps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.examples import each, shape
from weightspace.net import Net, WeightspaceError, checked
from weightspace.symmetry.merge import lifted
from weightspace.symmetry.refit import NothingToMend, refit, rescale
from weightspace.symmetry.trace import arguments, input_tensors
from weightspace.task import Task

__all__ = ["best_repaired", "has_statistics", "repair", "reset_statistics"]

_EXAMPLES, _FEW = 4096, 20
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def has_statistics(net: Net) -> bool:
    """Whether some norm keeps running statistics of the data."""
    return bool(_tracking(net.architecture))


def _tracking(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, _NORMS) and getattr(m, "running_mean", None) is not None]


def reset_statistics(net: Net, task: Task) -> Net:
    """`net` with every running mean and variance replaced by those of the task's inputs.

    mean = sum_b n_b m_b / N and var = sum_b n_b (v_b + m_b^2) / N - mean^2 over batches b in training mode, the
    variance unbiased as the norms keep it, summed in float64; a network of half precision is run in float32. Only the
    statistics change. Raises `WeightspaceError` for one example.
    """
    if not has_statistics(checked(net)):
        return net
    own, (net,) = net, lifted([net])
    module = net.module()
    norms = _tracking(module)
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # type: ignore[assignment]
    total = 0
    kept: list[tuple[Tensor, Tensor]] = [(n.running_mean, n.running_var) for n in norms]  # type: ignore[misc]
    sums = [(torch.zeros_like(m, dtype=torch.float64), torch.zeros_like(v, dtype=torch.float64)) for m, v in kept]
    with torch.no_grad():
        for x, _ in task.batches(net):
            size = _count(x)
            if size < 2:
                continue
            args, kwargs = arguments(x)
            try:
                module(*args, **kwargs)
            except RuntimeError as error:
                name, reason = type(net.architecture).__name__, str(error).splitlines()[0]
                raise WeightspaceError(f"{name} does not take inputs of shape {each(shape, x)}: {reason}") from error
            total += size
            for (mean, square), norm in zip(sums, norms, strict=True):
                mean += size * norm.running_mean.double()  # type: ignore[operator]
                square += size * (norm.running_var.double() + norm.running_mean.double() ** 2)  # type: ignore[operator]
    if not total:
        raise WeightspaceError("running statistics need batches of at least two examples; give more data")
    for (mean, square), norm in zip(sums, norms, strict=True):
        norm.running_mean.copy_(mean / total)  # type: ignore[operator]
        norm.running_var.copy_((square / total - (mean / total) ** 2).clamp(min=0))  # type: ignore[operator]
    buffers = dict(module.named_buffers())
    return own.at(own.weights, own.state.replace({name: buffers[name] for name in own.state}))


def _count(x: Any) -> int:
    return next((len(t) for t in input_tensors(x)), 0)


def repair(net: Net, ends: list[Net], task: Task) -> Net:
    """`net`, an average of `ends`, with its layers and statistics mended on the task's inputs.

    Running statistics are re-estimated where there are any. Units may be rescaled (`rescale`) or layers refitted
    (`refit`) to what the ends say on average; the way with the lowest loss is kept, each tried on four fifths of the
    examples and judged on the last.
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
        ways += [partial(_as_it_is, net), partial(rescale, net, ends), partial(refit, net, ends)]
    found: list[tuple[float, int]] = []
    for k, way in enumerate(ways):
        with suppress(NothingToMend), torch.no_grad():
            found.append((float(judge(reset_statistics(way(fit), fit))), k))
    return reset_statistics(ways[min(found)[1]](task), task)


def _as_it_is(net: Net, task: Task) -> Net:
    return net
