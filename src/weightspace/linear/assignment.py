"""Linear assignment: the permutation pi that maximises sum_i G[i, pi(i)], exactly.

Subtracting a constant v_j from column j changes the sum of every permutation by the same amount. The dense solver
(shortest augmenting paths: Crouse, On implementing 2D rectangular assignment algorithms, 2016) is fastest where v is
near the optimal dual variables, and a few Sinkhorn iterations approximate these (Cuturi, Sinkhorn distances: lightspeed
computation of optimal transport, 2013). The answer stays exact, and comes three times as fast for trained weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from weightspace.net.errors import WeightspaceError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["assign", "assign_many"]


DUALS_FROM = 256  # rows; measured: for smaller matrices the Sinkhorn iterations cost more than they save

_TEMPERATURE = 0.25
_SWEEPS = 15
_COLDEST = -60.0


def assign(gain: np.ndarray | Tensor) -> Int[np.ndarray, " n"]:
    """The permutation pi that maximises sum_i G[i, pi(i)], exact in float64.

    `gain`: (n, n), any real dtype. Raises `WeightspaceError` for NaN, infinity, or a matrix that is not square.

    >>> import numpy as np
    >>> from weightspace.linear.assignment import assign
    >>> assign(np.array([[1.0, 5.0], [4.0, 7.0]]))  # 5 + 4 is more than 1 + 7
    array([1, 0])
    """
    matrix = torch.as_tensor(gain).detach().cpu().double()
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise WeightspaceError(f"gains must be one square matrix, got {_shape(matrix)}")
    if not matrix.isfinite().all():
        raise WeightspaceError("gains hold NaN or infinity; find them in the weights with `weights.unusable()`")
    if len(matrix) >= DUALS_FROM:
        matrix = matrix - duals(matrix)
    return paired(matrix, maximize=True)[1].astype(np.int64)


def paired(costs: Float[Tensor, "m n"], maximize: bool = False) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Rows and columns of the cheapest assignment, or of the dearest, by scipy; k is the smaller side."""
    from scipy.optimize import linear_sum_assignment  # loaded when needed: it takes longer than most assignments

    rows, columns = linear_sum_assignment(costs.numpy(), maximize=maximize)
    return rows, columns


def assign_many(gains: np.ndarray | Tensor) -> Int[np.ndarray, "k n"]:
    """One exact assignment for each of k matrices (k, n, n), such as those of the heads of an attention layer.

    Raises `WeightspaceError` as `assign` does.

    >>> import numpy as np
    >>> from weightspace.linear.assignment import assign_many
    >>> assign_many(np.stack([np.eye(2), np.eye(2)[::-1]]))
    array([[0, 1],
           [1, 0]])
    """
    family = torch.as_tensor(gains)
    if family.ndim != 3:
        raise WeightspaceError(
            f"several gain matrices are (k, n, n), got {_shape(family)}; use `assign` for one matrix"
        )
    solved = [assign(gain) for gain in family]
    return np.stack(solved) if solved else np.empty((0, family.shape[-1]), dtype=np.int64)


def duals(matrix: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """Approximate dual variables v_j: Sinkhorn iterations at temperature T = a quarter of the standard deviation of G.

    The kernel exp((G_ij - u_i - v_j) / T) is formed once, in float32, with u and v such that its row maxima are 1.
    """
    v = matrix.amax(0)
    temperature = _TEMPERATURE * float(matrix[:: max(1, len(matrix) // 64)].std())
    if not 1e-12 * float(matrix.abs().max()) < temperature < np.inf:
        return v
    kernel = matrix - v
    kernel -= kernel.amax(1, keepdim=True)
    kernel = kernel.div_(temperature).clamp_(min=_COLDEST).float().exp_()
    b = torch.ones(len(matrix))
    for _ in range(_SWEEPS):
        a = (kernel @ b).clamp_(1e-30, 1e30).reciprocal_()
        b = (a @ kernel).clamp_(1e-30, 1e30).reciprocal_()
    return v - temperature * b.double().log()


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
