"""The average of the weights of networks, tensor by tensor, without alignment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, checked
from weightspace.net.weights import wide

__all__ = ["average", "lifted"]


def average(nets: Iterable[Net]) -> Net:
    """The network with the mean weights (1/n) sum_i w_i and the mean state, in the dtypes of the first; not aligned.

    The networks are read one at a time. Half precision is summed in float32, everything else in float64, and rounded
    once. Integer state is that of the first network. Raises `WeightspaceError` for no networks, `ArchitectureMismatch`
    for networks of different architectures.

    >>> import weightspace as ws
    >>> from weightspace.net.average import average
    >>> a, b = ws.demo.example(0)[0], ws.demo.example(1)[0]
    >>> bool((average([a, b]) - a.lerp(b, 0.5)).norm() < 1e-6)
    True
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
        raise WeightspaceError("no networks to average; give one or more")
    weights, state = ({name: total / count for name, total in part.items()} for part in sums)
    return Net(first.architecture, first.weights.replace(weights), first.state.replace(state))


def _averaged(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def lifted(nets: Sequence[Net]) -> list[Net]:
    """The networks in one dtype: float64 if one of them has it, else float32. Unchanged where they have it already."""
    found = {t.dtype for net in nets for t in checked(net).tensors.values() if t.is_floating_point()}
    common = torch.float64 if torch.float64 in found else torch.float32
    return list(nets) if found <= {common} else [net.to(common) for net in nets]
