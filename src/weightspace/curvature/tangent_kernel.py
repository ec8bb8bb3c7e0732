"""The empirical neural tangent kernel K = J J^T of a network on data, summed layer by layer without forming J.

J has a row for every output of every example. A layer z = V h adds sum_{s,t} (h_is . h_jt)(d_iks . d_jlt) to the entry
of output k of example i and output l of example j, where d = d(output)/dz and s, t run over positions (tokens,
pixels). One backward pass per output gives d for all examples, which are independent in evaluation mode.
Source: Neural tangent kernel (Jacot, Gabriel, Hongler, 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from weightspace.graph.on_data import Fed, feed
from weightspace.net.differentiable import called
from weightspace.net.errors import WeightspaceError
from weightspace.net.inputs import arguments, carried, each
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.state import math_attention
from weightspace.task.outputs import counted, logits
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["KernelError", "kernel"]


_ROOM = 1 << 26


class KernelError(WeightspaceError):
    """Raised for a kernel that is too large: too many numbers in a weight that needs its rows of J one by one."""


@public
def kernel(net: Net, task: Task, output: Callable[[Any], Tensor] = logits) -> Float[Tensor, "rows rows"]:
    """The neural tangent kernel K = J J^T of a network on a task, in float64; rows are outputs example by example.

    Raises `KernelError` where it would need too much memory.

    >>> import torch, weightspace as ws
    >>> net, task = ws.demo.example()
    >>> some = task.take(5, seed=0)
    >>> k = ws.curvature.kernel(net, some)
    >>> j = ws.jacobian(net, some).dense().double()
    >>> k.shape, torch.allclose(k, j @ j.T, rtol=1e-3, atol=1e-3)
    (torch.Size([50, 50]), True)
    """
    fed, outputs = feed(net, task, output)
    rows = len(task) * outputs
    total = torch.zeros(rows, rows, dtype=torch.float64, device=net.weights.flat().device)
    covered: set[str] = set()
    for fed_ in fed:
        total += _of_layer(fed_, rows)
        covered |= {fed_.layer.weight} | ({fed_.layer.bias} if fed_.layer.bias else set())
    rest = {name: t for name, t in net.weights.items() if name not in covered and t.is_floating_point()}
    for block in _of_rest(net, task, output, rest, rows):
        total += block
    return total


def _of_layer(fed: Fed, rows: int) -> Tensor:
    h, d = fed.met, fed.slope
    n, m, positions, units = d.shape
    if positions == 1:
        inner = (h[:, 0] @ h[:, 0].T).double()
        flat = d.reshape(rows, units)
        outer = (flat @ flat.T).double().view(n, m, n, m)
        return (inner[:, None, :, None] * outer).view(rows, rows)
    total = torch.zeros(rows, rows, dtype=torch.float64, device=d.device)
    step = max(1, _ROOM // (rows * h.shape[-1]))
    for at in range(0, units, step):
        block = torch.einsum("imtu,itc->imuc", d[..., at : at + step], h).reshape(rows, -1)
        total += (block @ block.T).double()
    return total


def _of_rest(
    net: Net, task: Task, output: Callable[[Any], Tensor], rest: dict[str, Tensor], rows: int
) -> Iterator[Tensor]:
    """The parts of all other weights (norms, embeddings, used more than once), from their rows of J, one by one."""
    x, y = carried(task.example(len(task)), net), task.positions()
    for name, tensor in rest.items():
        if rows * tensor.numel() > _ROOM:
            raise KernelError(
                f"{name}, which is used more than once or in a layer without a rule, is too large for "
                f'{rows} rows; take solver="gltr" or fewer examples'
            )

        def f(value: Tensor, one: Any, label: Tensor | None, name: str = name) -> Tensor:
            args, kwargs = arguments(each(lambda t: t[None], one))
            out = output(called(net.architecture, {**net.tensors, name: value}, args, kwargs))
            return (out if label is None else counted(out, label[None])).flatten()

        with math_attention():
            block = vmap(jacrev(f), in_dims=(None, 0, None if y is None else 0), chunk_size=_chunk(rows, tensor))(
                tensor.detach(), x, y
            )
        flat = block.detach().reshape(rows, -1)
        yield (flat @ flat.T).double()


def _chunk(rows: int, tensor: Tensor) -> int:
    return max(1, (_ROOM >> 3) // max(1, tensor.numel()) // 16)
