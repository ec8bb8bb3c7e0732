"""Linear assignment: the permutation pi that maximises sum_i G[i, pi(i)], exactly.

The dual problem minimises sum_i u_i + sum_j v_j over all u_i + v_j >= G_ij. Every such (u, v) bounds every pi,

    sum_i G[i, pi(i)] <= sum_i u_i + sum_j v_j,   with equality only where pi is optimal,

so a large problem may be solved on a sparse graph and proved on the whole matrix:

1. nearly optimal v: a few Sinkhorn sweeps, or the duals of a similar problem solved before;
2. a graph of the edges with the least reduced cost u_i + v_j - G_ij in each row and each column;
3. its best matching, by shortest augmenting paths from all free rows at once;
4. its duals made feasible on all of G: the gap is closed, or the edges that opened it join the graph (go to 3).

A graph that is too hard (many ties, one-dimensional chains) is given up within a budget for a dense solver.
Sources: "A shortest augmenting path algorithm for dense and sparse linear assignment problems" (Jonker, Volgenant,
1987); "Sinkhorn distances: lightspeed computation of optimal transport" (Cuturi, 2013); "Delta-stepping: a
parallelizable shortest path algorithm" (Meyer, Sanders, 2003).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from weightspace.net import WeightspaceError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["AssignmentError", "Duals", "assign", "assign_many"]

SPARSE_FROM = 512  # measured: below, one dense solve is faster than the way round

_CANDIDATES = 16
_STRIDE = 4
_TEMPERATURE = 0.2
_SWEEPS = 10
_BUDGET = 80
_STEP = 1000
_ROUNDS = 12
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
    """The permutation pi that maximises sum_i G[i, pi(i)], exact in float64, and the duals that prove it.

    `gain`: (n, n), any real dtype. `warm`: the duals of an earlier, similar problem; they change the time, never the
    objective. The duals come back, with `duals.gap(gain, pi)` zero to rounding, from n = 512 on; below, and where the
    dense solver had to decide, None. Raises `AssignmentError` for NaN, infinity, or a matrix that is not square.
    """
    matrix = _matrix(gain)
    scale = _scale(matrix)
    if warm is not None and len(warm.v) != len(matrix):
        raise AssignmentError(f"duals of size {len(warm.v)} for {_shape(matrix)} gains; start again with warm=None")
    if len(matrix) >= SPARSE_FROM:
        proved = _proved(matrix, _sinkhorn(matrix, scale, warm), scale)
        if proved is not None:
            return proved
    return linear_sum_assignment(matrix.double().numpy(), maximize=True)[1].astype(np.int64), None


def assign_many(gains: np.ndarray | Tensor) -> Int[np.ndarray, "k n"]:
    """One exact assignment for every matrix of a family (k, n, n), such as the inner axes of k heads."""
    family = torch.as_tensor(gains)
    if family.ndim != 3:
        raise AssignmentError(f"a family of gains is (k, n, n), got {_shape(family)}; use `assign` for one matrix")
    solved = [assign(gain)[0] for gain in family]
    return np.stack(solved) if solved else np.empty((0, family.shape[-1]), dtype=np.int64)


def _proved(matrix: Tensor, v: Tensor, scale: float) -> tuple[np.ndarray, Duals] | None:
    """The assignment and its proof, from a graph that grows until it holds all the edges that matter; or None."""
    n = len(matrix)
    edges = _cheap_edges(matrix, Duals(_row_duals(matrix, v), v))
    matching = _Matching(v.numpy())
    for _ in range(_ROUNDS):
        if len(edges) > _STEP * n or not matching.solve(_Graph.of(matrix, edges), _ROUNDING * scale):
            return None
        v = torch.from_numpy(matching.v)
        u, missing = _price(matrix, torch.from_numpy(matching.u), v)
        duals = Duals(u, v)
        if duals.gap(matrix, matching.pi) <= _ROUNDING * (scale + float(v.abs().max())) * n:
            return matching.pi, duals
        edges = torch.cat([edges, missing]).unique()
    return None


class _Graph(NamedTuple):
    """Edges of the gain matrix, ordered by row: those of row i are starts[i] to starts[i + 1]."""

    starts: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    gains: np.ndarray

    @classmethod
    def of(cls, matrix: Tensor, edges: Tensor) -> _Graph:
        """The graph of `edges`, given as i n + j in ascending order; every row must have one."""
        rows, columns = edges // len(matrix), edges % len(matrix)
        starts = np.searchsorted(rows.numpy(), np.arange(len(matrix) + 1))
        return cls(starts, rows.numpy(), columns.numpy(), matrix[rows, columns].double().numpy())

    def out_of(self, rows: np.ndarray) -> np.ndarray:
        """The edges of some rows, one row after the other."""
        first, count = self.starts[rows], self.starts[rows + 1] - self.starts[rows]
        ends = np.cumsum(count)
        return np.repeat(first - ends + count, count) + np.arange(ends[-1])


class _Matching:
    """A partial assignment, optimal for its duals: u_i + v_j >= g_ij on every edge, with equality where matched."""

    def __init__(self, v: np.ndarray) -> None:
        self.v, self.u = v.copy(), np.zeros(len(v))
        self.pi, self.row_of = np.full(len(v), -1), np.full(len(v), -1)

    def solve(self, graph: _Graph, rounding: float) -> bool:
        """Complete the assignment along the edges of `graph`; False where there is none or the budget is spent."""
        slack = self._tighten(graph, rounding)
        self._match_tight(graph, slack)
        positive = np.sort(slack[slack > rounding])[: len(slack) // 8]
        width = float(positive.mean()) / 2 if len(positive) else 1.0
        budget = _BUDGET * (len(graph.gains) + _STEP)
        while (self.pi < 0).any():
            budget = self._augment(graph, width, budget)
            if budget <= 0:
                return False
        return True

    def _tighten(self, graph: _Graph, rounding: float) -> np.ndarray:
        """The least feasible u; rows that are no longer matched along a tight edge are set free."""
        self.u = np.maximum.reduceat(graph.gains - self.v[graph.columns], graph.starts[:-1])
        slack = self.u[graph.rows] + self.v[graph.columns] - graph.gains
        held = (self.pi[graph.rows] == graph.columns) & (slack <= rounding)
        free = np.ones(len(self.u), dtype=bool)
        free[graph.rows[held]] = False
        free &= self.pi >= 0
        self.row_of[self.pi[free]], self.pi[free] = -1, -1
        return slack

    def _match_tight(self, graph: _Graph, slack: np.ndarray) -> None:
        """Give every free row the first tight column of its own that is free, where no other row takes it."""
        tight = np.flatnonzero((slack <= 0) & (self.pi[graph.rows] < 0) & (self.row_of[graph.columns] < 0))[::-1]
        rows, columns = graph.rows[tight], graph.columns[tight]
        wish = np.full(len(self.u), -1)
        wish[rows] = columns
        (rows,) = np.nonzero(wish >= 0)
        self.row_of[wish[rows[::-1]]] = rows[::-1]
        (columns,) = np.nonzero(self.row_of >= 0)
        self.pi[self.row_of[columns]] = columns

    def _augment(self, graph: _Graph, width: float, budget: int) -> int:
        """Shortest paths from all free rows; one augmenting path for every tree that has one. Returns the budget left.

        d is the length of the shortest alternating path to a column, in slack. The trees of different free rows are
        disjoint, and every path of a tree is tight once d, cut off at the farthest free column, has joined the duals.
        """
        to_column, to_row, parent, budget = self._grow(graph, width, budget)
        (open_columns,) = np.nonzero(self.row_of < 0)
        ends = open_columns[parent[open_columns] >= 0]
        if budget <= 0 or not len(ends):
            return 0
        ends = ends[np.argsort(to_column[ends], kind="stable")]
        root = parent[ends]
        while (inside := self.pi[root] >= 0).any():
            root[inside] = parent[self.pi[root[inside]]]
        ends = ends[np.unique(root, return_index=True)[1]]
        horizon = to_column[open_columns].max()
        if horizon == np.inf:
            horizon = to_column[to_column < np.inf].max()
        self.u += np.minimum(to_row, horizon)
        self.v -= np.minimum(to_column, horizon)
        while len(ends):
            rows = parent[ends]
            before = self.pi[rows]
            self.pi[rows], self.row_of[ends] = ends, rows
            ends = before[before >= 0]
        return budget

    def _grow(self, graph: _Graph, width: float, budget: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Lengths to columns and to rows, and the row before every column, exact up to the farthest free column."""
        n = len(self.u)
        to_column, to_row, parent = np.full(n, np.inf), np.full(n, np.inf), np.full(n, -1)
        (rows,) = np.nonzero(self.pi < 0)
        to_row[rows] = 0
        taken, waiting = self.row_of >= 0, np.zeros(n, dtype=bool)
        reach, horizon = width, np.inf
        while len(rows) and budget > 0:
            edges = graph.out_of(rows)
            budget -= len(edges) + _STEP
            sources, targets = graph.rows[edges], graph.columns[edges]
            slack = self.u[sources] + self.v[targets] - graph.gains[edges]
            length = to_row[sources] + np.maximum(slack, 0)
            (better,) = np.nonzero((length < to_column[targets]) & (length <= horizon))
            better = better[np.argsort(-length[better], kind="stable")]  # the shortest is written last
            targets = targets[better]
            to_column[targets], parent[targets], waiting[targets] = length[better], sources[better], taken[targets]
            horizon = to_column[~taken].max()
            (columns,) = np.nonzero(waiting & (to_column < horizon))
            if len(columns):
                reach = max(reach, float(to_column[columns].min()) + width)
                columns = columns[to_column[columns] <= reach]
            waiting[columns] = False
            rows = self.row_of[columns]
            to_row[rows] = to_column[columns]
        columns = self.pi[self.pi >= 0]
        to_row[self.row_of[columns]] = to_column[columns]
        return to_column, to_row, parent, budget


def _sinkhorn(matrix: Tensor, scale: float, warm: Duals | None) -> Tensor:
    """v after a few Sinkhorn sweeps at temperature 0.2 standard deviations of G, from the warm v if there is one.

    The kernel exp((G_ij - u_i - v_j) / T) is formed once, in float32, about duals that make its row maxima 1.
    """
    temperature = _TEMPERATURE * float(matrix[:: max(1, len(matrix) // 64)].double().std())
    v = matrix.amax(0).double() if warm is None else warm.v.double()
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
        (over,) = (top > u[part]).nonzero(as_tuple=True)
        row, column = (block[over] > u[part][over, None]).nonzero(as_tuple=True)
        edges.append((over[row] + part.start) * len(matrix) + column)
    return torch.cat(least), torch.cat(edges)


def _cheap_edges(matrix: Tensor, duals: Duals) -> Tensor:
    """About the 16 edges of least reduced cost of every row and of every column, as i n + j in order."""
    u, v = duals
    by_row = _quantile(matrix, v)
    by_column = _quantile(matrix.T, u) - v
    edges = []
    for part, block in _reduced(matrix, v):
        row, column = (block >= torch.minimum(by_row[part, None], u[part, None] + by_column)).nonzero(as_tuple=True)
        edges.append((row + part.start) * len(matrix) + column)
    return torch.cat(edges)


def _quantile(matrix: Tensor, v: Tensor) -> Tensor:
    """For every row i about the 16th largest G_ij - v_j, from every fourth column."""
    sample = _reduced(matrix[:, ::_STRIDE], v[::_STRIDE])
    count = min(_CANDIDATES // _STRIDE, len(v[::_STRIDE]))
    return torch.cat([torch.topk(block, count, dim=1).values[:, -1] for _, block in sample])


def _reduced(matrix: Tensor, v: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """G_ij - v_j in float64, some rows at a time in one buffer small enough for the cache."""
    height, width = matrix.shape
    step = max(1, min(height, _BLOCK // width))
    buffer = torch.empty((step, width), dtype=torch.float64)
    for start in range(0, height, step):
        part = slice(start, min(start + step, height))
        yield part, torch.sub(matrix[part], v, out=buffer[: part.stop - start])


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
