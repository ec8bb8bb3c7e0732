"""Linear assignment: the permutation pi that maximises sum_i G[i, pi(i)], exactly.

The dual problem minimises sum_i u_i + sum_j v_j over all u_i + v_j >= G_ij. Every such (u, v) bounds every pi,

    sum_i G[i, pi(i)] <= sum_i u_i + sum_j v_j,   with equality only where pi is optimal,

so a large problem may be solved on a sparse graph and proved on the whole matrix: a few Sinkhorn sweeps (or the duals
of a similar problem) give nearly optimal duals; the candidates of every row and column with the least reduced cost
u_i + v_j - G_ij form a graph; the duals of its best matching, made feasible on all of G, close the gap, or else show
which candidates were missing.
Sources: "A shortest augmenting path algorithm for dense and sparse linear assignment problems" (Jonker, Volgenant,
1987); "Sinkhorn distances: lightspeed computation of optimal transport" (Cuturi, 2013).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from weightspace.net import WeightspaceError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["AssignmentError", "Duals", "assign", "assign_many"]

SPARSE_FROM = 512  # measured: below it one dense solve is faster than the way round

_CANDIDATES = 24
_TEMPERATURE = 0.2
_SWEEPS = 10
_STRIDE = 4
_ROUNDS = 8
_CROWDED = 512
_BLOCK = 1 << 17
_ROUNDING = 16 * float(np.finfo(np.float64).eps)


class AssignmentError(WeightspaceError):
    """Gains that are not finite, or not a square matrix."""


class Duals(NamedTuple):
    """(u, v) with u_i + v_j >= G_ij: a bound on every assignment, and a warm start for the next one.

    Where the columns have been reordered meanwhile, G[:, pi], carry `Duals(u, v[pi])`.
    """

    u: Float[Tensor, " n"]
    v: Float[Tensor, " n"]

    def gap(self, gain: np.ndarray | Tensor, pi: np.ndarray) -> float:
        """sum u + sum v - sum_i G[i, pi(i)] >= 0: what another permutation may gain at most; zero is a proof."""
        return float((self.u + self.v - _picked(_matrix(gain), pi)).sum())


def assign(gain: np.ndarray | Tensor, warm: Duals | None = None) -> tuple[Int[np.ndarray, " n"], Duals | None]:
    """The permutation pi that maximises sum_i G[i, pi(i)], exact in float64, and feasible duals.

    `gain`: (n, n), any real dtype. `warm`: the duals of an earlier, similar problem; it changes the time, never the
    objective. From n = 512 on duals come back and `duals.gap(gain, pi)` is zero to rounding, except where ties leave
    them loose (a dense solve then decides); below, a dense solve is the fastest and None comes back.
    Raises `AssignmentError` for NaN, infinity, or a matrix that is not square.
    """
    matrix = _matrix(gain)
    scale = _scale(matrix)
    if warm is not None and len(warm.v) != len(matrix):
        raise AssignmentError(f"duals of size {len(warm.v)} for {_shape(matrix)} gains; start again with warm=None")
    if len(matrix) < SPARSE_FROM:
        return _dense(matrix), None
    for v, candidates in _starts(matrix, scale, warm):
        duals = Duals(_row_duals(matrix, v), v)
        pi, duals = _proved(matrix, duals, _select(matrix, duals, candidates), scale)
        if pi is not None:
            return pi, duals
    return _dense(matrix, duals), duals


def assign_many(gains: np.ndarray | Tensor) -> Int[np.ndarray, "k n"]:
    """One exact assignment for every matrix of a family (k, n, n), such as the inner axes of k heads."""
    family = torch.as_tensor(gains)
    if family.ndim != 3:
        raise AssignmentError(f"a family of gains is (k, n, n), got {_shape(family)}; use `assign` for one matrix")
    solved = [assign(gain)[0] for gain in family]
    return np.stack(solved) if solved else np.empty((0, family.shape[-1]), dtype=np.int64)


def _proved(matrix: Tensor, duals: Duals, edges: Tensor, scale: float) -> tuple[np.ndarray | None, Duals]:
    """The best matching along `edges`, more edges added until its duals hold for all of G; None if that fails."""
    for _ in range(_ROUNDS):
        if len(edges) > _CROWDED * len(matrix):
            break
        graph = _Graph.of(matrix, duals, edges)
        pi = graph.matching()
        y = None if pi is None else graph.column_duals(pi)
        if pi is None or y is None:
            break
        v = duals.v - y
        tight = _picked(matrix, pi) - v[torch.from_numpy(pi)]
        u, missing = _price(matrix, tight, v)
        duals = Duals(u, v)
        if duals.gap(matrix, pi) <= _ROUNDING * (scale + float(v.abs().max())) * len(matrix):
            return pi, duals
        edges = torch.cat([edges, missing]).unique()
    return None, duals


class _Graph(NamedTuple):
    """A sparse part of the reduced costs c_ij = u_i + v_j - G_ij >= 0, its edges ordered by row."""

    rows: np.ndarray
    columns: np.ndarray
    costs: np.ndarray
    size: int

    @classmethod
    def of(cls, matrix: Tensor, duals: Duals, edges: Tensor) -> _Graph:
        """The graph of the `edges`, given as i n + j in ascending order."""
        rows, columns = edges // len(matrix), edges % len(matrix)
        costs = (duals.u[rows] + duals.v[columns]).sub_(matrix[rows, columns]).clamp_(min=0)
        return cls(rows.numpy(), columns.numpy(), costs.numpy(), len(matrix))

    def matching(self) -> np.ndarray | None:
        """The permutation of least cost along the edges, or None where there is no permutation at all."""
        # the solver takes a cost of zero for a missing edge
        shifted = self.costs + (self.costs.max() or 1.0)
        try:
            _, pi = min_weight_full_bipartite_matching(
                csr_array((shifted, (self.rows, self.columns)), shape=(self.size, self.size))
            )
        except ValueError:
            return None
        return pi.astype(np.int64)

    def column_duals(self, pi: np.ndarray) -> Tensor | None:
        """y_j = min over rows i and paths of c_ij - c_i,pi(i) + y_pi(i): shortest paths, by Bellman and Ford.

        None where they do not settle, because `pi` is not optimal on these edges.
        """
        order = np.argsort(self.columns, kind="stable")
        rows, columns, costs = self.rows[order], self.columns[order], self.costs[order]
        own = np.empty(self.size)
        matched = columns == pi[rows]
        own[rows[matched]] = costs[matched]
        steps, sources = costs - own[rows], pi[rows]
        starts = np.searchsorted(columns, np.arange(self.size))
        settled = _ROUNDING * float(costs.max())
        y = np.zeros(self.size)
        for _ in range(self.size):
            shorter = np.minimum(y, np.minimum.reduceat(steps + y[sources], starts))
            if float((y - shorter).max()) <= settled:
                return torch.from_numpy(y)
            y = shorter
        return None


def _starts(matrix: Tensor, scale: float, warm: Duals | None) -> Iterator[tuple[Tensor, int]]:
    """Column duals to start from and the number of candidates to try with them, the cheapest start first."""
    if warm is not None:
        yield warm.v, _CANDIDATES
    v = _sinkhorn(matrix, scale)
    yield v, _CANDIDATES


def _sinkhorn(matrix: Tensor, scale: float) -> Tensor:
    """v after a few Sinkhorn sweeps at temperature 0.2 standard deviations of G.

    The kernel exp((G_ij - u_i - v_j) / T) is formed once, in float32, about duals that make its row maxima 1.
    """
    temperature = _TEMPERATURE * float(matrix[:: max(1, len(matrix) // 64)].double().std())
    v = matrix.amax(0).double()
    if not temperature > _ROUNDING * scale:
        return v
    kernel = torch.empty(matrix.shape, dtype=torch.float32)
    for part, block in _reduced(matrix, v):
        kernel[part] = block.sub_(block.amax(1, keepdim=True)).div_(temperature).clamp_(min=-60)
        kernel[part].exp_()
    b = torch.ones(len(matrix))
    for _ in range(_SWEEPS):
        a = (kernel @ b).clamp_(1e-30, 1e30).reciprocal_()
        b = (a @ kernel).clamp_(1e-30, 1e30).reciprocal_()
    return v - temperature * b.double().log()


def _row_duals(matrix: Tensor, v: Tensor) -> Tensor:
    """The least u that is feasible with v: u_i = max_j G_ij - v_j."""
    return torch.cat([block.amax(1) for _, block in _reduced(matrix, v)])


def _price(matrix: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The least u that is feasible with v, and the edges where the given u is not."""
    least, edges = [], []
    for part, block in _reduced(matrix, v):
        top = block.amax(1)
        least.append(top)
        over = (top > u[part]).nonzero().flatten()
        row, column = (block[over] > u[part][over, None]).nonzero(as_tuple=True)
        edges.append((over[row] + part.start) * len(matrix) + column)
    return torch.cat(least), torch.cat(edges)


def _select(matrix: Tensor, duals: Duals, count: int) -> Tensor:
    """About the `count` edges of least reduced cost of every row and of every column, as i n + j in order."""
    u, v = duals
    by_row = _quantile(matrix, v, count)
    by_column = _quantile(matrix.T, u, count) - v
    edges = []
    for part, block in _reduced(matrix, v):
        row, column = (block >= torch.minimum(by_row[part, None], u[part, None] + by_column)).nonzero(as_tuple=True)
        edges.append((row + part.start) * len(matrix) + column)
    return torch.cat(edges)


def _quantile(matrix: Tensor, v: Tensor, count: int) -> Tensor:
    """For every row i about the `count`-th largest G_ij - v_j, from every fourth column."""
    sample = _reduced(matrix[:, ::_STRIDE], v[::_STRIDE])
    return torch.cat([torch.topk(block, count // _STRIDE, dim=1).values[:, -1] for _, block in sample])


def _reduced(matrix: Tensor, v: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """G_ij - v_j in float64, some rows at a time in one buffer small enough for the cache."""
    step = max(1, min(len(matrix), _BLOCK // matrix.shape[1]))
    buffer = torch.empty((step, matrix.shape[1]), dtype=torch.float64)
    for start in range(0, len(matrix), step):
        part = slice(start, min(start + step, len(matrix)))
        yield part, torch.sub(matrix[part], v, out=buffer[: part.stop - part.start])


def _dense(matrix: Tensor, duals: Duals | None = None) -> np.ndarray:
    cost = -matrix.double() if duals is None else (duals.u[:, None] + duals.v).sub_(matrix)
    return linear_sum_assignment(cost.numpy())[1].astype(np.int64)


def _picked(matrix: Tensor, pi: np.ndarray) -> Tensor:
    return matrix[torch.arange(len(pi)), torch.from_numpy(pi)].double()


def _matrix(gain: np.ndarray | Tensor) -> Tensor:
    matrix = torch.as_tensor(gain).detach().cpu()
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise AssignmentError(f"gains must be one square matrix, got {_shape(matrix)}")
    return matrix if matrix.dtype in (torch.float32, torch.float64) else matrix.double()


def _scale(matrix: Tensor) -> float:
    """max |G_ij|, or an error unless every entry is finite."""
    scale = max(map(abs, map(float, matrix.aminmax()))) if len(matrix) else 0.0
    if not np.isfinite(scale):
        raise AssignmentError("gains hold NaN or infinity; look for them in the weights with `weights.unusable()`")
    return scale


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
