"""Linear assignment: the permutation pi that maximises sum_i G[i, pi(i)], exactly.

The dual problem minimises sum_i u_i + sum_j v_j over all u_i + v_j >= G_ij. Every such (u, v) bounds every pi,

    sum_i G[i, pi(i)] <= sum_i u_i + sum_j v_j,   with equality only where pi is optimal,

so a large problem may be solved on a sparse graph and proved on the whole matrix:

1. nearly optimal v: a few Sinkhorn sweeps, or the duals of a similar problem solved before;
2. a graph of the edges with the least reduced cost u_i + v_j - G_ij in each row and each column;
3. its best matching, by shortest augmenting paths from all free rows at once;
4. its duals made feasible on all of G: the gap is closed, or the edges that opened it join the graph (go to 3), and so
   do more edges of the rows and columns that were still free when the work grew too large.

A graph that stays too hard (many ties, one-dimensional chains) is given up for a dense solver.
Sources: "A shortest augmenting path algorithm for dense and sparse linear assignment problems" (Jonker, Volgenant,
1987); "Sinkhorn distances: lightspeed computation of optimal transport" (Cuturi, 2013).
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
_BUDGET = 4
_CROWDED = 160
_MORE = 128
_RESCUE = 512
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
    if scale and not 1e-30 < scale < 1e30:  # part of the work is done in float32
        pi, duals = assign(matrix.double() / scale)
        return pi, None if duals is None else Duals(duals.u * scale, duals.v * scale)
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
        if len(edges) > _CROWDED * n:
            return None
        complete = matching.solve(_Graph.of(matrix, edges), _ROUNDING * scale)
        v = torch.from_numpy(matching.v)
        u, missing = _price(matrix, torch.from_numpy(matching.u), v)
        duals = Duals(u, v)
        if complete and duals.gap(matrix, matching.pi) <= _ROUNDING * (scale + float(v.abs().max())) * n:
            return matching.pi, duals
        edges = torch.cat([edges, missing, *_around_free(matrix, matching, duals)]).unique()
    return None


class _Graph(NamedTuple):
    """Edges of the gain matrix, ordered by column: those of column j begin at starts[j]."""

    starts: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    gains: np.ndarray

    @classmethod
    def of(cls, matrix: Tensor, edges: Tensor) -> _Graph:
        """The graph of `edges`, given as i + n j in ascending order; every row and every column must have one."""
        rows, columns = edges % len(matrix), edges // len(matrix)
        starts = np.searchsorted(columns.numpy(), np.arange(len(matrix)))
        return cls(starts, rows.numpy(), columns.numpy(), matrix[rows, columns].double().numpy())


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
        horizon = float(positive.mean()) if len(positive) else rounding
        budget = _BUDGET * len(self.pi) ** 2
        while free := int((self.pi < 0).sum()):
            found, work = self._augment(graph, horizon)
            budget -= work
            if budget < 0:
                return False
            if found < free / 5:
                horizon *= 1.5
        return True

    def _tighten(self, graph: _Graph, rounding: float) -> np.ndarray:
        """The least feasible u; rows that are no longer matched along a tight edge are set free."""
        self.u = np.full(len(self.v), -np.inf)
        np.maximum.at(self.u, graph.rows, graph.gains - self.v[graph.columns])
        slack = self.u[graph.rows] + self.v[graph.columns] - graph.gains
        loose = self.pi >= 0
        loose[graph.rows[(self.pi[graph.rows] == graph.columns) & (slack <= rounding)]] = False
        self.row_of[self.pi[loose]] = -1
        self.pi[loose] = -1
        return slack

    def _match_tight(self, graph: _Graph, slack: np.ndarray) -> None:
        """Give free rows a tight column of their own that is free, as far as they do not collide."""
        tight = (slack <= 0) & (self.pi[graph.rows] < 0) & (self.row_of[graph.columns] < 0)
        wish = np.full(len(self.u), -1)
        wish[graph.rows[tight]] = graph.columns[tight]
        (rows,) = np.nonzero(wish >= 0)
        self.row_of[wish[rows]] = rows
        (columns,) = np.nonzero(self.row_of >= 0)
        self.pi[self.row_of[columns]] = columns

    def _augment(self, graph: _Graph, horizon: float) -> tuple[int, int]:
        """Augment along shortest paths from all free rows, one in every tree that reaches a free column.

        d is the least slack of an alternating path to a column, as far as the horizon. The trees of different free
        rows are disjoint, and all their paths are tight once min(d, horizon) has joined the duals. Returns the number
        of rows matched and the work it took.
        """
        to_row, to_column, parent, work = self._shortest(graph, horizon)
        (ends,) = np.nonzero((self.row_of < 0) & (parent >= 0))
        ends = ends[np.argsort(to_column[ends], kind="stable")]
        root = parent[ends]
        while (inside := self.pi[root] >= 0).any():
            root[inside] = parent[self.pi[root[inside]]]
        ends = ends[np.unique(root, return_index=True)[1]]
        found = len(ends)
        self.u += np.minimum(to_row, horizon)
        self.v -= np.minimum(to_column, horizon)
        while len(ends):
            rows = parent[ends]
            before = self.pi[rows]
            self.pi[rows], self.row_of[ends] = ends, rows
            ends = before[before >= 0]
        return found, work

    def _shortest(self, graph: _Graph, horizon: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Lengths to rows and to columns, and the row before every column that is within the horizon."""
        slack = self.u[graph.rows] + self.v[graph.columns] - graph.gains
        (near,) = np.nonzero(slack <= horizon)
        rows, slack = graph.rows[near], np.maximum(slack[near], 0)
        columns, starts, edge_column = np.unique(graph.columns[near], return_index=True, return_inverse=True)
        to_row = np.append(np.where(self.pi < 0, 0.0, np.inf), np.inf)  # row -1 holds what reaches a free column
        length, settled, owner = np.full(len(columns), np.inf), np.zeros(len(columns), int), self.row_of[columns]
        steps, moved = 0, np.arange(len(columns))
        while len(moved):
            steps += 1
            shorter = np.minimum.reduceat(to_row[rows] + slack, starts)
            (moved,) = np.nonzero((shorter < length) & (shorter <= horizon))
            length[moved], settled[moved] = shorter[moved], steps
            to_row[owner[moved]] = length[moved]
        step_of_row = np.zeros(len(to_row), int)
        step_of_row[owner] = settled
        # a tie may close a circle of tight edges: only what was settled earlier can be a parent
        tight = (to_row[rows] + slack == length[edge_column]) & (step_of_row[rows] < settled[edge_column])
        to_column, parent = np.full(len(self.v), np.inf), np.full(len(self.v), -1)
        to_column[columns] = length
        parent[columns[edge_column[tight]]] = rows[tight]
        return to_row[:-1], to_column, parent, (steps + 1) * (len(rows) + 1000)


def _sinkhorn(matrix: Tensor, scale: float, warm: Duals | None) -> Tensor:
    """v after a few Sinkhorn sweeps at temperature 0.2 standard deviations of G, from the warm v if there is one.

    The kernel exp((G_ij - u_i - v_j) / T) is formed once, in float32, about duals that make its row maxima 1.
    """
    temperature = _TEMPERATURE * float(matrix[:: max(1, len(matrix) // 64)].double().std())
    v = matrix.amax(0).double() if warm is None else warm.v.double()
    if not temperature > _ROUNDING * scale:
        return v
    kernel = torch.empty(matrix.shape, dtype=torch.float32)
    for part, block in _reduced(matrix, v.to(matrix.dtype)):
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
    """The least u that is feasible with v, and more edges i + n j of the rows where the given u is not."""
    least, edges = [], []
    for part, block in _reduced(matrix, v):
        top = block.amax(1)
        least.append(top)
        (over,) = (top > u[part]).nonzero(as_tuple=True)
        columns = torch.topk(block[over], min(_MORE, len(v)), dim=1, sorted=False).indices
        edges.append((over[:, None] + part.start + len(matrix) * columns).flatten())
    return torch.cat(least), torch.cat(edges)


def _around_free(matrix: Tensor, matching: _Matching, duals: Duals) -> tuple[Tensor, Tensor]:
    """Edges i + n j of least reduced cost of the rows and columns that are still free."""
    n, (u, v) = len(matrix), (d.to(matrix.dtype) for d in duals)
    count = min(_RESCUE, n)
    (rows,), (columns,) = (torch.from_numpy(who < 0).nonzero(as_tuple=True) for who in (matching.pi, matching.row_of))
    to = torch.topk(matrix[rows] - v, count, dim=1, sorted=False).indices
    of = torch.topk(matrix[:, columns].T - u, count, dim=1, sorted=False).indices
    return (rows[:, None] + n * to).flatten(), (of + n * columns[:, None]).flatten()


def _cheap_edges(matrix: Tensor, duals: Duals) -> Tensor:
    """About the 16 edges of least reduced cost of every row and of every column, as i + n j in order."""
    u, v = duals
    by_row = _quantile(matrix, v)
    by_column = _quantile(matrix.T, u) - v
    edges = []
    for part, block in _reduced(matrix, v):
        row, column = (block >= torch.minimum(by_row[part, None], u[part, None] + by_column)).nonzero(as_tuple=True)
        edges.append(row + part.start + len(matrix) * column)
    return torch.cat(edges).sort().values


def _quantile(matrix: Tensor, v: Tensor) -> Tensor:
    """For every row i about the 16th largest G_ij - v_j, from every fourth column."""
    sample = _reduced(matrix[:, ::_STRIDE], v[::_STRIDE])
    count = min(_CANDIDATES // _STRIDE, len(v[::_STRIDE]))
    return torch.cat([torch.topk(block, count, dim=1).values[:, -1] for _, block in sample])


def _reduced(matrix: Tensor, v: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """G_ij - v_j in the dtype of v, some rows at a time in one buffer small enough for the cache."""
    height, width = matrix.shape
    step = max(1, min(height, _BLOCK // width))
    buffer = torch.empty((step, width), dtype=v.dtype)
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
