"""Generalization bounds as formulas: an upper bound on an expected loss, from the loss on n examples.

Losses lie in [0, 1], n examples are drawn independently, q is the loss measured on them, averaged over a distribution Q
of networks, and `nats` is KL(Q || P), P chosen before the examples were seen. Each bound holds for all Q at once with
probability 1 - delta over the draw of the examples. kl(q || p) is the divergence of two Bernoulli distributions, in
nats.
Sources: PAC-Bayesian model averaging (McAllester, 1999); Bounds for averaging classifiers (Langford, Seeger, 2001);
A note on the PAC Bayesian theorem (Maurer, 2004); Tutorial on practical prediction theory for classification (Langford,
2005); PAC-Bayesian supervised classification (Catoni, 2007); A PAC-Bayesian tutorial with a dropout bound (McAllester,
2013); A strongly quasiconvex PAC-Bayesian bound (Thiemann, Igel, Wintenberger, Seldin, 2017); Computing nonvacuous
generalization bounds (Dziugaite, Roy, 2017); Tighter risk certificates for neural networks (Perez-Ortiz, Rivasplata,
Shawe-Taylor, Szepesvari, 2021), for f_quad and f_lambda side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public

__all__ = [
    "CATONI",
    "LINEAR",
    "catoni",
    "constant",
    "f_lambda",
    "f_quad",
    "grid_nats",
    "hold_out",
    "kl_bernoulli",
    "kl_inverse",
    "langford",
    "maurer",
    "mcallester",
    "monte_carlo",
    "pinsker",
]


CATONI = tuple(2.0 ** (k / 2) for k in range(-9, 9))  # grid of the free constant of `catoni`
LINEAR = tuple(2.0 ** (k / 2) for k in range(0, 12))  # and of `mcallester`
_ROUNDING = 8 * math.ulp(1.0)


@public
def kl_bernoulli(q: float, p: float) -> float:
    """KL divergence of two Bernoulli distributions: kl(q || p) = q ln(q / p) + (1 - q) ln((1 - q) / (1 - p)), in nats.

    >>> import weightspace as ws
    >>> round(ws.risk.kl_bernoulli(0.1, 0.2), 4)
    0.0367
    >>> ws.risk.kl_bernoulli(0.1, 0.1)
    0.0
    """
    return sum(_terms(_loss(q), _loss(p)))


@public
def kl_inverse(q: float, c: float) -> float:
    """The inverse of kl in its second argument: the largest p with kl(q || p) <= c.

    Rounded upward: kl(q || p) >= c for the p returned, or p is 1. Newton's steps from above stay above the root, since
    kl is convex in p; they start where Pinsker's inequality or the entropy of q gives a kl of c or more. An error of
    rounding is made up for at the end.

    >>> import weightspace as ws
    >>> p = ws.kl_inverse(0.1, 0.05)
    >>> round(p, 3)
    0.22
    >>> ws.risk.kl_bernoulli(0.1, p) >= 0.05
    True
    """
    q = _loss(q)
    if math.isnan(c) or c < 0:
        raise WeightspaceError(f"a divergence of {c} nats; give 0 or more")
    if c == 0 or q == 1:
        return q
    entropy = -sum(x * math.log(x) for x in (q, 1 - q) if x)
    p = min(q + math.sqrt(c / 2), -math.expm1(-(c + entropy) / (1 - q)))
    for _ in range(100):
        if not q < p < 1:
            break
        step = (sum(_terms(q, p)) - c) * p * (1 - p) / (p - q)
        if step <= 0 or p - step <= q:
            break
        p -= step
    more = math.ulp(p)
    while p < 1 and _certainly(q, p) < c:
        p, more = min(1.0, p + more), 2 * more
    return p


@public
def maurer(q: float, nats: float, n: int, delta: float) -> float:
    """The PAC-Bayes-kl bound of Langford, Seeger, Maurer: the L with kl(q || L) = (nats + ln(2 sqrt(n) / delta)) / n.

    >>> import weightspace as ws
    >>> round(ws.risk.maurer(0.05, nats=100, n=10_000, delta=0.05), 3)     # error .05 on 10 000 examples
    0.089
    """
    return kl_inverse(q, _maurer(nats, n, delta))


@public
def langford(q: float, nats: float, n: int, delta: float) -> float:
    """Langford and Seeger's PAC-Bayes bound as in Dziugaite and Roy: kl(q || L) = (nats + ln(n / delta)) / (n - 1).

    >>> import weightspace as ws
    >>> round(ws.risk.langford(0.05, nats=100, n=10_000, delta=0.05), 3)
    0.089
    """
    _checked(nats, n, delta)
    return kl_inverse(q, (nats + math.log(n / delta)) / (n - 1)) if n > 1 else 1.0


@public
def pinsker(q: float, nats: float, n: int, delta: float) -> float:
    """The square-root PAC-Bayes bound L = q + sqrt((nats + ln(2 sqrt(n) / delta)) / 2n).

    It is `maurer` loosened by kl(q || p) >= 2 (p - q)^2, so never below it.

    >>> import weightspace as ws
    >>> round(ws.risk.pinsker(0.05, nats=100, n=10_000, delta=0.05), 3)
    0.124
    >>> ws.risk.pinsker(0.05, 100, 10_000, 0.05) > ws.risk.maurer(0.05, 100, 10_000, 0.05)
    True
    """
    return min(1.0, _loss(q) + math.sqrt(_maurer(nats, n, delta) / 2))


@public
def f_quad(q: float, nats: float, n: int, delta: float) -> float:
    """The quadratic PAC-Bayes bound L = (sqrt(q + b) + sqrt(b))^2, b = (nats + ln(2 sqrt(n) / delta)) / 2n.

    For small q it is below `pinsker`.

    >>> import weightspace as ws
    >>> round(ws.risk.f_quad(0.05, nats=100, n=10_000, delta=0.05), 3)
    0.095
    """
    half = _maurer(nats, n, delta) / 2
    return min(1.0, (math.sqrt(_loss(q) + half) + math.sqrt(half)) ** 2)


@public
def f_lambda(q: float, nats: float, n: int, delta: float, rate: float | None = None) -> float:
    """The PAC-Bayes-lambda bound L = q / (1 - r/2) + (nats + ln(2 sqrt(n) / delta)) / (n r (1 - r/2)), r = `rate`.

    It holds for all r in (0, 2) at once; by default, the r for which it is least.

    >>> import weightspace as ws
    >>> best = ws.risk.f_lambda(0.05, nats=100, n=10_000, delta=0.05)
    >>> round(best, 3)
    0.095
    >>> best <= ws.risk.f_lambda(0.05, 100, 10_000, 0.05, rate=1.0)
    True
    """
    c, q = _maurer(nats, n, delta), _loss(q)
    rate = 2 / (math.sqrt(2 * q / c + 1) + 1) if rate is None else rate
    if not 0 < rate < 2:
        raise WeightspaceError(f"rate is {rate}; give a number in (0, 2)")
    return min(1.0, q / (1 - rate / 2) + c / (rate * (1 - rate / 2)))


@public
def catoni(q: float, nats: float, n: int, delta: float, constants: Sequence[float] = CATONI) -> float:
    """Catoni's PAC-Bayes bound L = (1 - exp(-c q - (nats + ln(K / delta)) / n)) / (1 - exp(-c)).

    The least over K constants c. The constants are chosen before the examples are seen; the union over them costs ln K.

    >>> import weightspace as ws
    >>> round(ws.risk.catoni(0.05, nats=100, n=10_000, delta=0.05), 3)                       # the grid CATONI
    0.089
    >>> round(ws.risk.catoni(0.05, nats=100, n=10_000, delta=0.05, constants=[1.0]), 3)
    0.093
    """
    _checked(nats, n, delta, constants)
    price = (nats + math.log(len(constants) / delta)) / n
    return min(1.0, *(math.expm1(-c * _loss(q) - price) / math.expm1(-c) for c in constants))


@public
def constant(q: float, nats: float, n: int, delta: float) -> float:
    """The constant c with the least `catoni` bound at loss q > 0; from a guess of q and nats made beforehand.

    >>> import weightspace as ws
    >>> c = ws.risk.constant(0.05, nats=100, n=10_000, delta=0.05)
    >>> round(c, 2)
    0.6
    >>> ws.risk.catoni(0.05, 100, 10_000, 0.05, [c]) < ws.risk.catoni(0.05, 100, 10_000, 0.05, [2 * c])
    True
    """
    _checked(nats, n, delta)
    p = kl_inverse(q, (nats + math.log(1 / delta)) / n)
    if not 0 < q < p < 1:
        raise WeightspaceError(
            f"no constant for a loss of {q} and {nats} nats among {n} examples; guess a loss above 0"
        )
    return math.log(p / q) - math.log((1 - p) / (1 - q))


@public
def mcallester(q: float, nats: float, n: int, delta: float, constants: Sequence[float] = LINEAR) -> float:
    """McAllester's linear PAC-Bayes bound L = (q + b (nats + ln(K / delta)) / n) / (1 - 1/2b).

    The least over K constants b > 1/2. The constants are chosen before the examples are seen.

    >>> import weightspace as ws
    >>> round(ws.risk.mcallester(0.05, nats=100, n=10_000, delta=0.05), 3)
    0.095
    """
    _checked(nats, n, delta, constants)
    price = (nats + math.log(len(constants) / delta)) / n
    if min(constants) <= 0.5:
        raise WeightspaceError(f"a constant of {min(constants)}; give numbers above 1/2")
    return min(1.0, *((_loss(q) + b * price) / (1 - 0.5 / b) for b in constants))


@public
def hold_out(errors: int, n: int, delta: float) -> float:
    """The test-set bound: the largest p for which `errors` or fewer among n unseen examples have probability delta.

    Clopper and Pearson's upper confidence limit, for one network fixed beforehand.

    >>> import weightspace as ws
    >>> round(ws.risk.hold_out(50, n=1000, delta=0.05), 3)                 # 5 % errors on 1000 test examples
    0.063
    """
    from scipy.stats import beta, binom

    _checked(0.0, n, delta)
    if not 0 <= errors <= n:
        raise WeightspaceError(f"{errors} errors among {n} examples; give 0 to {n}")
    p = 1.0 if errors == n else float(beta.ppf(1 - delta, errors + 1, n - errors))
    more = math.ulp(p)
    while p < 1 and binom.cdf(errors, n, p) > delta:
        p, more = min(1.0, p + more), 2 * more
    return p


@public
def monte_carlo(mean: float, draws: int, delta: float) -> float:
    """An upper bound on the expectation of a value in [0, 1], from `draws` independent values and their `mean`.

    It is kl^-1(mean, ln(2 / delta) / draws). The values need not be distributed alike (Probability inequalities for
    sums, Hoeffding, 1963, theorem 1).

    >>> import weightspace as ws
    >>> round(ws.risk.monte_carlo(0.1, draws=1000, delta=0.05), 3)
    0.128
    >>> ws.risk.monte_carlo(0.1, draws=100_000, delta=0.05) < 0.11
    True
    """
    _checked(0.0, draws, delta)
    return kl_inverse(mean, math.log(2 / delta) / draws)


@public
def grid_nats(variance: float, precision: float = 100.0, largest: float = 0.1) -> float:
    """The price, in nats, of choosing a prior's variance after the data from the grid c e^(-j/b), j = 1, 2, ..

    It is 2 ln j + ln(pi^2/6), c = `largest`, b = `precision`; the sum over j of exp(-price) is 1. Raises
    `WeightspaceError` for a variance above the grid.

    >>> import weightspace as ws
    >>> round(ws.risk.grid_nats(0.01), 1)
    11.4
    >>> ws.risk.grid_nats(1e-6) > ws.risk.grid_nats(0.01)                  # further down the grid
    True
    """
    if not 0 < variance < largest:
        raise WeightspaceError(
            f"a prior variance of {variance:.3g} is not between 0 and {largest:g}, where the grid is"
        )
    return 2 * math.log(max(1.0, precision * math.log(largest / variance))) + math.log(math.pi**2 / 6)


def _maurer(nats: float, n: int, delta: float) -> float:
    _checked(nats, n, delta)
    return (nats + math.log(2 * math.sqrt(n) / delta)) / n


def _terms(q: float, p: float) -> tuple[float, float]:
    """The two terms of kl(q || p), computed from small differences."""
    if (p == 0 and q > 0) or (p == 1 and q < 1):
        return math.inf, 0.0
    first = q * math.log1p((q - p) / p) if q > p / 2 else q * math.log(q / p) if q else 0.0
    return first, (1 - q) * (math.log1p((p - q) / (1 - p)) if q < 1 else 0.0)


def _certainly(q: float, p: float) -> float:
    """A lower bound on kl(q || p), rounding included."""
    first, second = _terms(q, p)
    return first + second - _ROUNDING * (abs(first) + abs(second)) if math.isfinite(first) else math.inf


def _loss(q: float) -> float:
    if not 0 <= q <= 1:
        raise WeightspaceError(f"a loss of {q}; the bounds need losses in [0, 1]")
    return float(q)


def _checked(nats: float, n: int, delta: float, constants: Sequence[float] = (1.0,)) -> None:
    if not 0 < delta < 1:
        raise WeightspaceError(f"delta is {delta}; give a probability of failure between 0 and 1, such as 0.05")
    if n < 1:
        raise WeightspaceError(f"{n} examples; a bound needs 1 or more")
    if not nats >= 0:
        raise WeightspaceError(f"a divergence of {nats} nats; give 0 or more")
    if not constants or min(constants) <= 0:
        raise WeightspaceError("no positive constant to choose from; give 1 or more")
