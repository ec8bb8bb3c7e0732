"""The cheapest directed spanning tree, against all trees of small graphs."""

import tracemalloc
from itertools import product

import networkx as nx
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


@pytest.mark.parametrize("seed", range(4))
def test_large_trees_cost_what_another_program_finds(seed):
    generator = np.random.default_rng(seed)
    n = 40
    places = generator.standard_normal((n, 2)).round(1)
    cost = np.linalg.norm(places[:, None] - places, axis=-1) + 0.01 * generator.random((n, n))  # many short cycles
    parents = cheapest_parents(cost, 0)
    graph = nx.DiGraph()
    graph.add_weighted_edges_from((i, j, cost[i, j]) for i in range(n) for j in range(1, n) if i != j)
    expected = nx.minimum_spanning_arborescence(graph).size(weight="weight")
    assert all(reaches([0, *parents[1:]], k, 0) for k in range(n))
    assert sum(cost[parents[k], k] for k in range(1, n)) == pytest.approx(expected, rel=1e-12)


def test_memory_does_not_grow_with_the_number_of_cycles():
    n = 400
    places = np.arange(n) // 2 * 10.0 + np.arange(n) % 2
    cost = np.abs(places[:, None] - places)
    tracemalloc.start()
    parents = cheapest_parents(cost, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert parents[0] == -1 and parents.count(-1) == 1
    assert peak < 10 * cost.nbytes
