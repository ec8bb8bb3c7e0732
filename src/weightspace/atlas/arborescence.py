"""The cheapest directed spanning tree of a graph from a root, by the algorithm of Edmonds.

Source: Edmonds, Optimum branchings, 1967.
"""

from __future__ import annotations

import numpy as np

__all__ = ["cheapest_parents"]


def cheapest_parents(cost: np.ndarray, root: int) -> list[int]:
    """The parent of every node in the directed spanning tree of least total cost; -1 for the root.

    `cost[i, j]` is that of the edge from i to j, infinite where there is none; every node must be reachable from the
    root. Every node takes its cheapest edge; cycles are contracted into one node each, and the rest is solved again:
    at most log2(n) times, in the memory of a few matrices.

    >>> import numpy as np
    >>> from weightspace.atlas.arborescence import cheapest_parents
    >>> cost = np.array([[0, 5, 6, 9], [9, 0, 1, 9], [9, 1, 0, 2], [9, 9, 9, 0]], dtype=float)
    >>> cheapest_parents(cost, 0)
    [-1, 0, 1, 2]
    """
    cost = cost.astype(float).copy()
    np.fill_diagonal(cost, np.inf)
    parents = [int(k) for k in cost.argmin(0)]
    parents[root] = -1
    cycles = _cycles(parents)
    if not cycles:
        return parents
    for cycle in cycles:  # an edge into a cycle takes the place of one in it
        cost[:, cycle] -= cost[[parents[k] for k in cycle], cycle]
    inside = {k for cycle in cycles for k in cycle}
    parts = [[k] for k in range(len(cost)) if k not in inside] + cycles
    tail, cost = _least(cost, parts)
    head, cost = _least(cost.T, parts)
    head, cost = head.T, cost.T
    for part, parent in enumerate(cheapest_parents(cost, parts.index([root]))):
        if parent >= 0:
            node = int(head[parent, part])
            parents[node] = int(tail[parent, node])
    return parents


def _least(cost: np.ndarray, parts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """The row with the least cost of every part, for each column: which one, and its cost."""
    which = np.stack([np.array(part)[cost[part].argmin(0)] for part in parts])
    return which, np.take_along_axis(cost, which, 0)


def _cycles(parents: list[int]) -> list[list[int]]:
    """The cycles of a graph in which every node has one parent, or none (-1)."""
    seen, found = [0] * len(parents), []
    for start in range(len(parents)):
        node, way = start, []
        while node >= 0 and not seen[node]:
            seen[node] = start + 1
            way.append(node)
            node = parents[node]
        if node >= 0 and seen[node] == start + 1:
            found.append(way[way.index(node) :])
    return found
