"""The cheapest directed spanning tree of a graph from a root, by the algorithm of Edmonds.

Source: Edmonds, Optimum branchings, 1967.
"""

from __future__ import annotations

import numpy as np

__all__ = ["cheapest_parents"]


def cheapest_parents(cost: np.ndarray, root: int) -> list[int]:
    """The parent of every node in the directed spanning tree of least total cost; -1 for the root.

    `cost[i, j]` is that of the edge from i to j, infinite where there is none; every node must be reachable from the
    root. Every node takes its cheapest edge; a cycle is contracted into one node, and solved again.

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
    cycle = _cycle(parents)
    if not cycle:
        return parents
    outside = [k for k in range(len(cost)) if k not in set(cycle)]
    inside = np.array(cycle)
    saved = cost[[parents[k] for k in cycle], cycle]
    small = np.full((len(outside) + 1, len(outside) + 1), np.inf)
    small[:-1, :-1] = cost[np.ix_(outside, outside)]
    enter = cost[np.ix_(outside, cycle)] - saved
    leave = cost[np.ix_(cycle, outside)]
    small[:-1, -1], entered = enter.min(1), inside[enter.argmin(1)]
    small[-1, :-1], left = leave.min(0), inside[leave.argmin(0)]
    found = cheapest_parents(small, outside.index(root))
    last = len(outside)
    for k, parent in enumerate(found[:-1]):
        parents[outside[k]] = int(left[k]) if parent == last else (outside[parent] if parent >= 0 else -1)
    parents[int(entered[found[-1]])] = outside[found[-1]]
    return parents


def _cycle(parents: list[int]) -> list[int]:
    """A cycle of the graph in which every node has one parent, or nothing."""
    seen = [0] * len(parents)
    for start in range(len(parents)):
        node, way = start, []
        while node >= 0 and not seen[node]:
            seen[node] = start + 1
            way.append(node)
            node = parents[node]
        if node >= 0 and seen[node] == start + 1:
            return way[way.index(node) :]
    return []
