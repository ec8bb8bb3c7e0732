"""Merging methods that hold a whole matrix: singular vectors of task vectors, and inner products of layers' inputs.

Tensors that are not matrices (biases, norms, convolutions) get the mean of the weighted task vectors in place of these:
theta_0 + (scale / n) sum_i w_i tau_i. Singular values below the rounding of the largest are left out, so that a task
vector of low rank is not given directions that it does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from weightspace.merging.elementwise import linear, shares, summed
from weightspace.merging.part import Part, Piece
from weightspace.merging.settings import Combine, Settings
from weightspace.merging.sparse import elect
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public
from weightspace.net.state import settled

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["iso_c", "iso_cts", "knots", "knots_ties", "regmean", "tsv_m"]

_NULL = 1e-12  # of the largest eigenvalue of inner products: what counts as zero


class _Singular(NamedTuple):
    """U, s and V of U diag(s) V^T, singular values from the largest."""

    left: Tensor
    values: Tensor
    right: Tensor

    def cut(self, rank: int) -> _Singular:
        return _Singular(self.left[:, :rank], self.values[:rank], self.right[:, :rank])


def iso_c(part: Part, settings: Settings) -> Combine | Tensor:
    """Isotropic merging in the common subspace: theta_0 + scale mean(s) U V^T, where sum_i w_i tau_i = U diag(s) V^T
    (No task left behind: isotropic model merging with common and task-specific subspaces, Marczak et al., 2025).

    The mean is over the numerical rank. Tensors that are not matrices: the mean of the task vectors.
    """
    if not _is_matrix(part):
        return _mean(settings)
    with settled():
        total = _singular(sum(_tasks(part, settings), torch.zeros(part.shape, dtype=part.dtype)))
        return _added(part, settings, _flat(total.left, total.values, total.right))


def iso_cts(part: Part, settings: Settings) -> Combine | Tensor:
    """Isotropic merging in common and task-specific subspaces (the same paper as `iso_c`).

    Of sum_i w_i tau_i, of full rank r, the first k singular directions are common. Each of n tasks adds the first
    s = floor((1 - common_share) r / n) of its part outside of the span of the common left ones, and k = r - n s. All
    left and all right ones are replaced by the nearest orthonormal sets (Procrustes), and all singular values by their
    mean. Tensors that are not matrices: the mean of the task vectors.
    """
    if not _is_matrix(part):
        return _mean(settings)
    with settled():
        rank, n = min(part.shape), len(part.sources)
        own = int((1 - settings.options["common_share"]) * rank / n + 1e-9)
        total = _singular(sum(_tasks(part, settings), torch.zeros(part.shape, dtype=part.dtype))).cut(rank - n * own)
        found = [total]
        for task in _tasks(part, settings) if own else ():
            found.append(_singular(task - total.left @ (total.left.mT @ task), like=task).cut(own))
        left, values, right = (torch.cat(side, -1) for side in zip(*found, strict=True))
        return _added(part, settings, _flat(_orthonormal(left), values, _orthonormal(right)))


def tsv_m(part: Part, settings: Settings) -> Combine | Tensor:
    """Task singular vectors, merged: theta_0 + scale U' diag(s) V'^T (Task singular vectors: reducing task interference
    in model merging, Gargiulo et al., 2025).

    s, U and V are those of the largest max(1, floor(r / n)) singular values of each of the n weighted task vectors, of
    full rank r, side by side; U' and V' are the nearest sets of orthonormal vectors (Procrustes). Tensors that are not
    matrices: the mean of the task vectors.
    """
    if not _is_matrix(part):
        return _mean(settings)
    with settled():
        rank = max(1, min(part.shape) // len(part.sources))
        found = [_singular(task).cut(rank) for task in _tasks(part, settings)]
        left, values, right = (torch.cat(side, -1) for side in zip(*found, strict=True))
        return _added(part, settings, (_orthonormal(left) * values) @ _orthonormal(right).mT)


def knots_ties(part: Part, settings: Settings) -> Combine | Tensor:
    """The base plus `knots` of the task vectors. Tensors that are not matrices: the mean of the task vectors."""
    if not _is_matrix(part):
        return _mean(settings)
    plain = Settings((1.0,) * len(part.sources))
    options = {name: settings.options[name] for name in ("density", "normalize")}
    return _added(part, settings, knots([*_tasks(part, plain)], settings.weights, **options))


@public
def knots(
    deltas: Sequence[Float[Tensor, "rows columns"]],
    weights: Sequence[float] | None = None,
    *,
    density: float = 0.2,
    normalize: float = 1.0,
) -> Float[Tensor, "rows columns"]:
    """Merge updates of one matrix in their common left singular vectors by TIES (Model merging with SVD to tie the
    KnOTS, Stoica et al., 2024).

    [D_1 .. D_n] = U diag(s) [V_1 .. V_n]^T; U diag(s) V^T, with V of the V_i by `ties`: of each the share `density` of
    largest magnitude is kept, entries against the sign of sum_i w_i V_i are left out, and the rest is averaged (summed
    with `normalize` 0). `deltas`: such as B_i A_i of LoRA adapters. The result has the rank of all of them together, at
    most. Raises `WeightspaceError` for no matrices or those of unlike shapes, and a density outside of (0, 1].

    >>> import torch
    >>> from weightspace.merging import knots
    >>> deltas = [torch.outer(torch.ones(3), row) for row in torch.tensor([[1.0, 0.0], [0.0, 2.0]])]
    >>> knots(deltas, density=1.0).round(decimals=3)
    tensor([[1., 2.],
            [1., 2.],
            [1., 2.]])
    """
    if not deltas or any(delta.dim() != 2 or delta.shape != deltas[0].shape for delta in deltas):
        raise WeightspaceError(f"knots merges matrices of one shape, not {[tuple(delta.shape) for delta in deltas]}")
    given = [1.0] * len(deltas) if weights is None else list(weights)
    if len(given) != len(deltas):
        raise WeightspaceError(f"{len(given)} weights for {len(deltas)} matrices; give one for each")
    if not 0 < density <= 1:
        raise WeightspaceError(f"knots takes a density above 0 up to 1, not {density:g}")
    own = deltas[0].dtype
    wide = torch.float64 if own == torch.float64 else torch.float32
    together = _singular(torch.cat([delta.to(wide) for delta in deltas], 1))
    rights = [*together.right.split(deltas[0].shape[1])]
    total, mass = elect([_largest(right, density) for right in rights], tuple(given))
    if normalize:
        total = total / torch.where(mass == 0, 1.0, mass)
    return ((together.left * together.values) @ total.mT).to(own)


def regmean(part: Part, settings: Settings) -> Combine | Tensor:
    """The matrix that is nearest to all networks on their own inputs (Dataless knowledge fusion by merging weights of
    language models, Jin et al., 2023).

    argmin_W sum_i w_i tr((W - W_i) C_i (W - W_i)^T) = (sum_i w_i W_i C_i) (sum_i w_i C_i)^-1, a row of W for each unit.
    C_i, beside the networks, are the inner products of the layer's inputs in network i, its entries off the diagonal
    times `alpha`; where they do not decide, the weighted mean. A convolution is the matrix of its flattened filters;
    tensors without inner products are the weighted mean. Raises `WeightspaceError` where only some networks have them.
    """
    have = [name in source for source, name in part.beside]
    if len(have) != len(part.sources) or any(have) != all(have):
        raise WeightspaceError(f"regmean needs the inner products of the inputs of every network for {part.name!r}")
    if not all(have):
        return linear(part, Settings(settings.weights, {"normalize": 1.0}))
    weights = shares(part, settings)
    rows = [part.parent(k).flatten(1).double() for k in range(len(part.sources))]
    mean = summed(rows, weights)
    right, total = torch.zeros_like(mean), torch.zeros(mean.shape[1], mean.shape[1]).to(mean)
    for row, weight, (source, name) in zip(rows, weights, part.beside, strict=True):
        given = source[name].detach().to(mean)
        if given.shape != total.shape:
            raise WeightspaceError(
                f"{part.name!r} has {mean.shape[1]} inputs, and inner products of shape {tuple(given.shape)}; give "
                "those of its own layer"
            )
        products = given * settings.options["alpha"]
        products.diagonal().copy_(given.diagonal())
        total.add_(products, alpha=weight)
        right.add_((row - mean) @ products, alpha=weight)
    solved = right @ torch.linalg.pinv(total, rtol=_NULL, hermitian=True)
    return (mean + solved).reshape(part.shape).to(part.dtype)


def _is_matrix(part: Part) -> bool:
    return len(part.shape) == 2 and part.shape.numel() > 0


def _tasks(part: Part, settings: Settings) -> Iterator[Tensor]:
    """The weighted task vectors, one matrix after another."""
    origin = part.origin()
    for k, weight in enumerate(settings.weights):
        yield part.parent(k).sub_(origin).mul_(weight)


def _added(part: Part, settings: Settings, delta: Tensor) -> Tensor:
    return delta.mul_(settings.options["scale"]).add_(part.origin())


def _mean(settings: Settings) -> Callable[[Piece], Tensor]:
    weights = [settings.options["scale"] * weight / len(settings.weights) for weight in settings.weights]

    def combine(piece: Piece) -> Tensor:
        total = summed(piece.deltas, weights)
        return total if piece.base is None else total.add_(piece.base)

    return combine


def _singular(matrix: Tensor, like: Tensor | None = None) -> _Singular:
    """The singular values and vectors of a matrix, to its numerical rank; `like` is what rounding is relative to."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    largest = values.amax() if like is None else torch.linalg.matrix_norm(like)
    rank = int((values > largest * max(matrix.shape) * torch.finfo(matrix.dtype).eps).sum())
    return _Singular(left, values, right.mT).cut(rank)


def _flat(left: Tensor, values: Tensor, right: Tensor) -> Tensor:
    """mean(s) U V^T."""
    return left @ right.mT * (values.mean() if values.numel() else 0.0)


def _orthonormal(columns: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns (rows, where there are more columns): P Q^T of P diag(s) Q^T."""
    left, _, right = torch.linalg.svd(columns, full_matrices=False)
    return left @ right


def _largest(matrix: Tensor, density: float) -> Tensor:
    """A copy with the share `density` of largest magnitude; of equal ones the first."""
    sizes, kept = matrix.abs().flatten(), max(1, int(density * matrix.numel()))
    if density == 1 or not matrix.numel():
        return matrix.clone()
    chosen = sizes.argsort(stable=True, descending=True)[:kept]
    return torch.zeros_like(sizes).index_put((chosen,), matrix.flatten()[chosen]).view(matrix.shape)
