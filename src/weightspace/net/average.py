"""The average of networks, tensor by tensor; nothing is aligned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, checked
from weightspace.net.weights import wide

__all__ = ["average", "lifted"]


def average(nets: Iterable[Net]) -> Net:
    """(1/n) sum_i w_i, floating-point and complex state too, in the dtypes of the first; nothing is aligned.

    Read one at a time, summed twice as wide (half precision in float32, all else in float64) and rounded once. Integer
    state is that of the first.
    """
    first, count = None, 0
    for net in nets:
        count += 1
        if first is None:
            first = checked(net)
            sums = [{name: torch.zeros_like(t, dtype=wide(t.dtype)) for name, t in part.items() if _averaged(t)}
                    for part in (net.weights, net.state)]  # fmt: skip
        first.check(net)
        for total, part in zip(sums, (net.weights, net.state), strict=True):
            for name in total:
                more = part[name].to(wide(part[name].dtype))
                total[name] = total[name].to(torch.promote_types(more.dtype, total[name].dtype)).add_(more)
    if first is None:
        raise WeightspaceError("the mean of no networks; give at least one network")
    weights, state = ({name: total / count for name, total in part.items()} for part in sums)
    return Net(first.architecture, first.weights.replace(weights), first.state.replace(state))


def _averaged(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def lifted(nets: Sequence[Net]) -> list[Net]:
    """The networks in one dtype, the widest of theirs and at least float32; those that are so already as they are."""
    found = {t.dtype for net in nets for t in checked(net).tensors.values() if t.is_floating_point()}
    common = torch.float64 if torch.float64 in found else torch.float32
    return list(nets) if found <= {common} else [net.to(common) for net in nets]
