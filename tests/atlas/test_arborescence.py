"""The cheapest directed spanning tree, against all trees of small graphs."""

from itertools import product

import numpy as np
import pytest

from weightspace.atlas.arborescence import cheapest_parents


def best(cost, root):
    """The least total cost over all choices of parents that reach the root."""
    n, least = len(cost), np.inf
    for parents in product(range(n), repeat=n):
        total = sum(cost[parents[k], k] for k in range(n) if k != root)
        if total < least and all(reaches(parents, k, root) for k in range(n)):
            least = total
    return least


def reaches(parents, node, root):
    for _ in range(len(parents)):
        if node == root:
            return True
        node = parents[node]
    return node == root


@pytest.mark.parametrize("seed", range(40))
def test_no_tree_is_cheaper(seed):
    generator = np.random.default_rng(seed)
    n = int(generator.integers(2, 6))
    cost = generator.integers(1, 9, (n, n)).astype(float)  # with ties
    parents = cheapest_parents(cost, 0)
    assert parents[0] == -1 and all(reaches([0, *parents[1:]], k, 0) for k in range(n))
    assert sum(cost[parents[k], k] for k in range(1, n)) == best(cost, 0)


def test_edges_that_are_not_there_are_not_taken():
    cost = np.array([[0, 5, np.inf, np.inf], [np.inf, 0, 1, 1], [np.inf, 1, 0, 1], [np.inf, 1, 1, 0]])
    parents = cheapest_parents(cost, 0)
    assert parents[1] == 0 and sum(cost[parents[k], k] for k in (1, 2, 3)) == 7.0


def test_a_deep_chain_of_cycles():
    n = 300
    cost = np.full((n + 1, n + 1), np.inf)
    cost[n, :n] = 4.0
    for k in range(n - 1):
        cost[k, k + 1], cost[k + 1, k] = 1.0, 1.0 + 1e-3
    assert cheapest_parents(cost, n)[:n] == [n, *range(n - 1)]
