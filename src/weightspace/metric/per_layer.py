"""Layer-wise metrics: a gradient in the eigenvectors of layers' input moments, or of Kronecker factors (K-FAC).

The inputs h of a layer z = V h on the task have the second moment C = sum h h^T / N (patches for a convolution, a one
for the bias). "layer" measures a step D of V by tr(D C D^T), the change of z: where that is zero in every layer, all
layers keep their inputs, and the outputs stay the same for a step of any length. "kronecker" measures it by
tr(D A D^T B), A the mean of h h^T and B the second moment of d(outputs)/dz: the pullback metric, if layers and
positions were independent. Sources: Gradient projection memory for continual learning (Saha, Garg, Roy,
2021); Optimizing neural networks with Kronecker-factored approximate curvature (Martens, Grosse, 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weightspace.curvature.tangent_kernel import KernelError
from weightspace.graph.layer import Layer, layers, rows_met
from weightspace.graph.on_data import feed, graph_of
from weightspace.metric.steps import Modes
from weightspace.net.inputs import input_tensors
from weightspace.net.net import Net
from weightspace.net.state import math_attention
from weightspace.net.weights import Weights
from weightspace.task.outputs import logits
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["NULL", "compensated", "layer_modes", "matrix_of", "moments", "put_matrix"]


NULL = 1e-12  # of the largest eigenvalue: where a second moment counts as zero
_DAMPING = 1e-4


@dataclass(frozen=True)
class _Basis:
    """Eigenvectors of the second moments of a layer's inputs, and of the derivatives of the outputs in its output."""

    layer: Layer
    given: Float[Tensor, "columns columns"]
    slopes: Float[Tensor, "units units"] | None
    values: Float[Tensor, " modes"]


def layer_modes(
    net: Net,
    task: Task,
    covector: Float[Tensor, " n"],
    output: Callable[[Any], Tensor] = logits,
    both: bool = False,
    mix: Tensor | None = None,
) -> Modes:
    """A gradient in the modes of all layers; with `both`, of Kronecker factors.

    Frozen weights, layers of which a part is frozen, and weights outside of linear maps and convolutions do not move.
    `mix`: the matrices B of the pullback metric, or None for the identity.
    Raises `KernelError` for a network without a layer of these kinds.
    """
    found = list(_kronecker(net.free(), task, output, mix) if both else _given(net.free(), task))
    if not found:
        raise KernelError('no linear map or convolution whose weight is used once; take solver="gltr"')
    g = net.weights.shaped(covector)
    parts = [_coordinates(basis, matrix_of(g, basis.layer.weight, basis.layer.bias)) for basis in found]
    sizes = [basis.values.numel() for basis in found]
    coefficients = torch.cat([part.square().sum(0).sqrt() if not both else part.flatten() for part in parts])

    def assemble(f: Tensor) -> Tensor:
        new = net.weights.zeros()
        for basis, part, scale in zip(found, parts, f.split(sizes), strict=True):
            moved = part * (scale if basis.slopes is None else scale.view(part.shape))
            whole = (moved if basis.slopes is None else basis.slopes @ moved) @ basis.given.T
            put_matrix(new, basis.layer.weight, basis.layer.bias, whole)
        return new.flat()

    told = "first order; layers apart, Kronecker factors" if both else "first order in the output of every layer"
    still = len(net.weights) - sum(1 + (basis.layer.bias is not None) for basis in found)
    rest = f"; {still} other tensors stay" if still else ""
    kept = told if both else "any length: every layer keeps its inputs"
    return Modes(torch.cat([b.values for b in found]), coefficients, assemble, False, told + rest, kept + rest)


def moments(net: Net, task: Task) -> Iterator[tuple[Layer, Float[Tensor, "columns columns"]]]:
    """The second moment C = sum h h^T / N of the inputs of every linear map and convolution, in float64."""
    sums: dict[str, tuple[Layer, Tensor]] = {}
    for x, _ in task.batches(net):
        graph = graph_of(net, x)
        found = {layer.node: layer for layer in layers(graph) if layer.learnt(net.weights)}
        with torch.no_grad(), math_attention():
            for node, given, _ in graph.walk([net.tensors], input_tensors(x), lift=False):
                if node in found and found[node].plain(given[0]):
                    rows = rows_met(found[node], given[0]).flatten(0, 1).double()
                    name = found[node].weight
                    before = sums[name][1] if name in sums else 0.0
                    sums[name] = found[node], before + rows.T @ rows
    for layer, total in sums.values():
        yield layer, total / len(task)


def compensated(net: Net, task: Task, mask: Weights) -> Net:
    """`net` pruned by a mask, the other weights of a layer adjusted to keep its outputs as near as possible.

    argmin_W' tr((W' - W) C (W' - W)^T) over W' with these zeros, column by column: the weights after a removed one make
    up for it. C is the second moment of the layer's inputs in `net`. Sources: Optimal brain surgeon
    (Hassibi, Stork, 1993); SparseGPT (Frantar, Alistarh, 2023).
    """
    new = net.weights.shaped(net.weights.flat() * mask.flat())
    for layer, moment in moments(net.free(), task):
        w, kept = (matrix_of(vector, layer.weight, layer.bias) for vector in (net.weights, mask))
        damped = moment + _DAMPING * moment.diagonal().mean() * torch.eye(len(moment)).to(moment)
        root = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
        for j in range(w.shape[1]):
            gone = (w[:, j] * (1 - kept[:, j])) / root[j, j]
            w[:, j:] -= torch.outer(gone, root[j, j:])
        put_matrix(new, layer.weight, layer.bias, w * kept)
    return net.at(new)


def _given(net: Net, task: Task) -> Iterator[_Basis]:
    for layer, moment in moments(net, task):
        values, vectors = torch.linalg.eigh(moment)
        yield _Basis(layer, vectors, None, torch.where(values > NULL * values[-1], values, 0.0))


def _kronecker(net: Net, task: Task, output: Callable[[Any], Tensor], mix: Tensor | None) -> Iterator[_Basis]:
    fed, _ = feed(net, task, output)
    for each in fed:
        h, d = each.met.double(), each.slope.double()
        if mix is not None:
            parts = d.reshape(len(mix), mix.shape[1], -1)
            d = torch.einsum("iab,ibx->iax", mix.to(d), parts).reshape(d.shape)
        rows, slopes = h.flatten(0, 1), d.flatten(0, 2)
        a, u = torch.linalg.eigh(rows.T @ rows / len(rows))
        b, v = torch.linalg.eigh(slopes.T @ slopes / len(h))
        values = torch.outer(b.clamp(min=0), a.clamp(min=0)).flatten()
        yield _Basis(each.layer, u, v, torch.where(values > NULL * values.max(), values, 0.0))


def _coordinates(basis: _Basis, matrix: Tensor) -> Tensor:
    inside = matrix @ basis.given
    return inside if basis.slopes is None else basis.slopes.T @ inside


def matrix_of(vector: Weights, weight: str, bias: str | None) -> Tensor:
    """The matrix V of a layer with z = V h, in float64: a row for each unit, the bias as the last column."""
    rows = vector[weight].flatten(1).double()
    return rows if bias is None else torch.cat([rows, vector[bias].double()[:, None]], 1)


def put_matrix(vector: Weights, weight: str, bias: str | None, matrix: Tensor) -> None:
    """Write the matrix of a layer into its weight and bias."""
    vector[weight].copy_(matrix[:, : vector[weight][0].numel()].reshape(vector[weight].shape))
    if bias is not None:
        vector[bias].copy_(matrix[:, -1])
