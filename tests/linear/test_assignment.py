"""Assignment without a network: exact against scipy's dense solver, proved by its duals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from weightspace.linear.assignment import DUALS_FROM, assign, assign_many, duals
from weightspace.net.errors import WeightspaceError


def value(gain: np.ndarray, pi: np.ndarray) -> float:
    return float(np.asarray(gain, dtype=float)[np.arange(len(pi)), pi].sum())


def best(gain: np.ndarray) -> float:
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return float(gain[rows, columns].sum())


def short_by(gain: np.ndarray, pi: np.ndarray) -> float:
    """How far below the optimum, in units of the largest gain; infinite for what is no permutation."""
    if sorted(pi.tolist()) != list(range(len(gain))):
        return float("inf")
    return (best(gain) - value(gain, pi)) / max(float(np.abs(gain).max(initial=0.0)), 1e-300)


def correlated(n: int, seed: int, noise: float = 1.0) -> np.ndarray:
    """Gains of a planted permutation under noise, as matching units gives them."""
    generator = np.random.default_rng(seed)
    a = generator.standard_normal((n, 40))
    b = a[generator.permutation(n)] + noise * generator.standard_normal((n, 40))
    return a @ b.T


HARD = {
    "uniform": lambda n, seed: np.random.default_rng(seed).random((n, n)),
    "normal": lambda n, seed: np.random.default_rng(seed).standard_normal((n, n)),
    "planted": correlated,
    "ties": lambda n, seed: np.random.default_rng(seed).integers(0, 3, (n, n)).astype(float),
    "constant": lambda n, seed: np.full((n, n), 2.5),
    "zero": lambda n, seed: np.zeros((n, n)),
    "rank one": lambda n, seed: np.outer(*np.random.default_rng(seed).standard_normal((2, n))),
    "chain": lambda n, seed: -np.abs(np.subtract.outer(np.arange(n), np.random.default_rng(seed).random(n) * n)),
    "huge": lambda n, seed: 1e200 * np.random.default_rng(seed).standard_normal((n, n)),
    "tiny": lambda n, seed: 1e-200 * np.random.default_rng(seed).standard_normal((n, n)),
    "dead rows": lambda n, seed: correlated(n, seed) * (np.arange(n) % 3 > 0)[:, None],
}


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("n", [1, 2, 7, DUALS_FROM + 8])
def test_it_is_optimal(kind, n):
    gain = HARD[kind](n, seed=n)
    assert short_by(gain, assign(gain)) <= 1e-12 * n


@settings(max_examples=40, deadline=None)
@given(n=st.integers(0, 12), seed=st.integers(0, 2**31 - 1), levels=st.integers(1, 6))
def test_small_ones_with_ties(n, seed, levels):
    gain = np.random.default_rng(seed).integers(-levels, levels, (n, n)).astype(float)
    assert short_by(gain, assign(gain)) == 0


@pytest.mark.parametrize("kind", ["normal", "planted"])
def test_the_duals_are_near_the_optimum(kind):
    """sum_i max_j (G_ij - v_j) + sum_j v_j bounds every permutation from above, and by how little."""
    gain = HARD[kind](DUALS_FROM + 64, seed=1)

    def over(v: np.ndarray) -> float:
        return float((gain - v).max(1).sum() + v.sum()) / best(gain) - 1

    found = over(duals(torch.as_tensor(gain)).numpy())
    assert 0 <= found < 0.1
    assert found < 0.5 * over(np.zeros(len(gain)))


def test_it_moves_with_the_columns():
    gain = correlated(DUALS_FROM + 8, seed=4)
    order = np.random.default_rng(5).permutation(len(gain))
    assert np.array_equal(order[assign(gain[:, order])], assign(gain))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int64])
def test_any_real_dtype(dtype):
    gain = (10 * torch.randn(20, 20, generator=torch.Generator().manual_seed(0))).to(dtype)
    assert short_by(gain.double().numpy(), assign(gain)) < 1e-12


def test_families():
    gains = np.random.default_rng(0).standard_normal((5, 9, 9))
    found = assign_many(gains)
    assert found.shape == (5, 9)
    assert all(short_by(g, pi) < 1e-12 for g, pi in zip(gains, found, strict=True))
    assert assign_many(np.empty((0, 4, 4))).shape == (0, 4)


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (np.ones((2, 3)), "2x3"),
        (np.ones(4), "square"),
        (np.array([[1.0, np.nan], [0, 1]]), "NaN"),
        (np.array([[1.0, np.inf], [0, 1]]), "infinity"),
    ],
)
def test_bad_gains_are_refused(gain, words):
    with pytest.raises(WeightspaceError) as error:
        assign(gain)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_family_is_three_dimensional():
    with pytest.raises(WeightspaceError):
        assign_many(np.ones((2, 2)))


def test_the_oracle_sees_a_wrong_answer():
    gain = correlated(30, seed=6)
    pi = assign(gain)
    swapped = pi.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert short_by(gain, swapped) > 1e-3
    assert short_by(gain, np.zeros(30, dtype=int)) == float("inf")
