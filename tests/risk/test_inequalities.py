"""Bounds on an expected loss: against arithmetic of 50 digits, published tables, simulated data, and one another."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightspace.net.errors import WeightspaceError
from weightspace.risk import inequalities
from weightspace.risk.inequalities import kl_bernoulli, kl_inverse

N, DELTA = 60_000, 0.05
FAMILIES = (
    inequalities.maurer,
    inequalities.langford,
    inequalities.pinsker,
    inequalities.f_quad,
    inequalities.f_lambda,
    inequalities.catoni,
    inequalities.mcallester,
)

# Dziugaite, Roy (2017), table 1: training error of the stochastic network, KL, certificate
TABLE = {
    "T-600": (0.028, 5144, 0.161),
    "T-300^2": (0.027, 5791, 0.170),
    "T-600^2": (0.028, 6534, 0.186),
    "T-1200^2": (0.029, 8558, 0.223),
}


def exact(q: float, p: float) -> mpmath.mpf:
    with mpmath.workdps(60):
        q, p = mpmath.mpf(q), mpmath.mpf(p)
        first = q * mpmath.log(q / p) if q else mpmath.mpf(0)
        if q < 1 and p == 1:
            return mpmath.inf
        return first + ((1 - q) * mpmath.log((1 - q) / (1 - p)) if q < 1 else 0)


losses = st.one_of(st.just(0.0), st.just(1.0), st.floats(1e-15, 1), st.floats(1e-15, 1).map(lambda x: 1 - x))


@settings(deadline=None, max_examples=400)
@given(losses, st.floats(-15, 2.5).map(lambda x: 10**x))
def test_the_inverse_is_never_below_the_root_and_hardly_above(q, c):
    p = kl_inverse(q, c)
    assert q <= p <= 1 and (p == 1 or exact(q, p) >= c)
    nearer = p - 1e-6 * (p - q) - 4 * math.ulp(p)
    assert nearer <= q or p == 1 or exact(q, nearer) < c


def test_a_bisection_that_stops_below_the_root_is_seen():
    low, high = 0.03, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if kl_bernoulli(0.03, middle) > 0.1 else (middle, high)
    assert exact(0.03, low) < 0.1 <= exact(0.03, kl_inverse(0.03, 0.1))


def test_edges_of_the_inverse():
    assert kl_inverse(0.0, 0.25) == pytest.approx(-math.expm1(-0.25), rel=1e-15)
    assert kl_inverse(0.3, 0.0) == 0.3 and kl_inverse(1.0, 0.1) == 1.0
    assert kl_inverse(0.1, 1e3) == 1.0 and kl_inverse(0.0, math.inf) == 1.0
    assert kl_bernoulli(0.2, 0.2) == 0 and kl_bernoulli(0.2, 1.0) == math.inf


@pytest.mark.parametrize("name", TABLE)
def test_published_certificates(name):
    q, nats, published = TABLE[name]
    paid = nats + inequalities.grid_nats(math.exp(-6))
    assert inequalities.langford(q, paid, 55_000, 0.025) == pytest.approx(published, abs=1.1e-3)
    assert inequalities.langford(q, nats / 2, 55_000, 0.025) < published - 0.02


def test_random_labels_are_not_certified():
    """The published 1.352 of R-600 is Pinsker's term alone, without a logarithm; the inverse stays below one."""
    q, nats = 0.112, 201_131
    assert math.sqrt(nats / 2 / 55_000) == pytest.approx(1.352, abs=1e-3)
    assert inequalities.langford(q, nats + inequalities.grid_nats(math.exp(-6)), 55_000, 0.025) == pytest.approx(
        0.989, abs=1e-3
    )
    assert inequalities.pinsker(q, nats, 55_000, 0.025) == 1


@settings(deadline=None, max_examples=100)
@given(st.floats(0, 0.6), st.floats(0, 5e4), st.integers(1, 10**6), st.floats(1e-6, 0.5))
def test_bounds_are_ordered(q, nats, n, delta):
    kl = inequalities.maurer(q, nats, n, delta)
    assert q <= kl <= inequalities.pinsker(q, nats, n, delta) + 1e-12
    best = inequalities.f_lambda(q, nats, n, delta)
    assert kl <= best + 1e-12 and best == pytest.approx(inequalities.f_quad(q, nats, n, delta), rel=1e-6)
    assert all(best <= inequalities.f_lambda(q, nats, n, delta, rate) + 1e-9 for rate in (0.1, 0.5, 1, 1.5))
    price = (nats + math.log(len(inequalities.CATONI) / delta)) / n
    assert kl_inverse(q, price) <= inequalities.catoni(q, nats, n, delta) + 1e-9


def test_the_best_constant_of_catoni_is_the_inverse():
    q, nats, n = 0.03, 500.0, 10_000
    fine = [k / 1000 for k in range(1, 5000)]
    least = min(inequalities.catoni(q, nats, n, DELTA, [c]) for c in fine)
    assert least == pytest.approx(kl_inverse(q, (nats + math.log(1 / DELTA)) / n), rel=1e-5)
    assert inequalities.catoni(q, nats, n, DELTA, fine) > least
    best = inequalities.constant(q, nats, n, DELTA)
    assert inequalities.catoni(q, nats, n, DELTA, [best]) <= least * (1 + 1e-12) and min(
        inequalities.CATONI
    ) < best < max(inequalities.CATONI)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_bounds_grow_with_loss_and_nats_and_fall_with_examples_and_delta(family):
    here = family(0.03, 100.0, 2000, DELTA)
    assert here < min(family(0.04, 100.0, 2000, DELTA), family(0.03, 110.0, 2000, DELTA))
    assert here > max(family(0.03, 100.0, 2500, DELTA), family(0.03, 100.0, 2000, 2 * DELTA))
    assert 0 < family(0.0, 0.0, 2000, DELTA) < 0.05 and family(0.0, 0.0, 1, DELTA) <= 1


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_bounds_hold_for_the_luckiest_of_many_guesses(family):
    """A thousand guesses at fair coins, the best of them picked afterwards: what the choice costs is ln 1000."""
    runs, n, guesses = 200, 100, 1000
    found = np.random.default_rng(0).binomial(n, 0.5, (runs, guesses)).min(1) / n
    kept = [family(float(q), math.log(guesses), n, DELTA) >= 0.5 for q in found]
    assert np.mean(kept) >= 1 - DELTA
    unpaid = [kl_inverse(float(q), math.log(1 / DELTA) / n) >= 0.5 for q in found]
    assert np.mean(unpaid) < 0.5


def test_the_bound_of_a_test_set_is_the_binomial_tail():
    from scipy.stats import binom

    for errors, n in ((0, 50), (3, 100), (330, 30_000)):
        p = inequalities.hold_out(errors, n, DELTA)
        assert DELTA * (1 - 1e-9) < binom.cdf(errors, n, p) <= DELTA
        assert p <= kl_inverse(errors / n, math.log(1 / DELTA) / n)
    assert inequalities.hold_out(0, 50, DELTA) == pytest.approx(1 - DELTA ** (1 / 50), rel=1e-12)
    assert inequalities.hold_out(7, 7, DELTA) == 1
    found = np.random.default_rng(1).binomial(200, 0.1, 2000)
    assert np.mean([inequalities.hold_out(int(k), 200, DELTA) >= 0.1 for k in found]) >= 1 - DELTA - 0.01


def test_draws_are_paid_for():
    """The two hundred values of a uniform mean; with many, little is paid."""
    means = np.random.default_rng(2).uniform(size=(1000, 200)).mean(1)
    assert np.mean([inequalities.monte_carlo(float(q), 200, 0.1) >= 0.5 for q in means]) >= 0.9
    assert inequalities.monte_carlo(0.026, 500, 0.01) == pytest.approx(0.056, abs=0.001)
    assert inequalities.monte_carlo(0.026, 1_000_000, 0.01) < 0.0266


def test_the_grid_is_a_distribution():
    nats = [inequalities.grid_nats(0.1 * math.exp(-j / 100)) for j in range(1, 5000)]
    assert 0.999 < sum(math.exp(-cost) for cost in nats) <= 1
    assert inequalities.grid_nats(math.exp(-6)) == pytest.approx(
        2 * math.log(369.74) + math.log(math.pi**2 / 6), abs=1e-4
    )


def test_no_variance_below_the_top_of_the_grid_costs_less_than_its_first_point():
    """Those between the top and the first point are paid for like the first; below it, less variance costs more."""
    least = inequalities.grid_nats(0.1 * math.exp(-1 / 100))
    nats = [inequalities.grid_nats(0.1 * math.exp(-k / 1000)) for k in range(1, 100)]
    assert least == pytest.approx(math.log(math.pi**2 / 6)) and nats == sorted(nats)
    assert min(nats) == pytest.approx(least)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, 2.0, math.nan])
@pytest.mark.parametrize("family", [*FAMILIES, lambda q, nats, n, d: inequalities.hold_out(3, n, d)])
def test_delta_is_a_probability(family, delta):
    with pytest.raises(WeightspaceError, match="delta is .*; give a probability"):
        family(0.1, 5.0, 100, delta)


def test_numbers_of_which_no_bound_can_be_made():
    for call, what in (
        (lambda: kl_inverse(1.2, 0.1), "a loss of 1.2"),
        (lambda: kl_inverse(math.nan, 0.1), "a loss of nan"),
        (lambda: kl_inverse(0.2, -1.0), "a divergence of -1.0 nats"),
        (lambda: inequalities.maurer(0.1, math.nan, 10, DELTA), "a divergence of nan"),
        (lambda: inequalities.maurer(0.1, 1.0, 0, DELTA), "0 examples"),
        (lambda: inequalities.hold_out(5, 4, DELTA), "5 errors among 4"),
        (lambda: inequalities.f_lambda(0.1, 1.0, 10, DELTA, 2.0), "rate is 2.0"),
        (lambda: inequalities.catoni(0.1, 1.0, 10, DELTA, ()), "no positive constant"),
        (lambda: inequalities.mcallester(0.1, 1.0, 10, DELTA, (0.5,)), "above 1/2"),
        (lambda: inequalities.constant(0.0, 1.0, 10, DELTA), "guess a loss above 0"),
        (lambda: inequalities.grid_nats(0.2), "not between 0 and 0.1"),
    ):
        with pytest.raises(WeightspaceError, match=what) as caught:
            call()
        assert "\n" not in str(caught.value)
