"""Estimates from products alone, against the matrices they are estimates of."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.linear import determinants, krylov, traces
from weightspace.linear.determinants import bracket, cost, nystrom
from weightspace.linear.estimate import Estimate, OperatorError
from weightspace.linear.krylov import lanczos
from weightspace.linear.operator import Operator

TRACES = ("hutchinson", "hutch++", "xtrace")


def decaying(n: int = 60, power: float = 1.5, seed: int = 0, rank: int | None = None) -> Tensor:
    """A positive semidefinite matrix with eigenvalues 1 / k^power, as curvature has."""
    q = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    values = torch.arange(1, n + 1, dtype=torch.float64) ** -power
    values[rank if rank is not None else n :] = 0
    return 100 * (q * values) @ q.T


class Counted:
    """A matrix that counts the vectors it was multiplied with."""

    def __init__(self, matrix: Tensor, rounded: bool = False) -> None:
        self.matrix, self.products, self.rounded = matrix, 0, rounded

    @property
    def rows(self) -> int:
        return len(self.matrix)

    def __matmul__(self, v: Tensor) -> Tensor:
        self.products += 1 if v.ndim == 1 else v.shape[1]
        return self.matrix.float() @ v.float() if self.rounded else self.matrix @ v


def operator(matrix: Tensor) -> Operator:
    return Operator(len(matrix), len(matrix), lambda v: matrix @ v)


def exact(matrix: Tensor, scale: float) -> float:
    return float((torch.linalg.eigvalsh(matrix).clamp_min(0) / scale).log1p().sum())


# ------------------------------------------------------------------ traces


@pytest.mark.parametrize("method", TRACES)
def test_traces_are_unbiased(method):
    a = decaying(30)
    a = a + 0.3 * torch.triu(a, 1)  # not symmetric
    found = [operator_of(a).trace(12, seed, method) for seed in range(200)]
    values = torch.tensor([e.value for e in found])
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - float(a.trace())) < 4 * error
    assert abs(float(values.mean()) - 1.2 * float(a.trace())) > 4 * error, "a wrong trace must be told apart"
    stated = torch.tensor([e.error for e in found])
    assert 0.4 < float(stated.square().mean().sqrt() / values.std()) < 1.6


def operator_of(a: Tensor) -> Operator:
    return Operator(*a.shape, lambda v: a @ v, lambda u: a.T @ u)


def test_hutchpp_and_xtrace_see_more_with_as_many_products():
    a = decaying(60)
    errors = {
        method: torch.tensor([operator(a).trace(30, seed, method).value for seed in range(60)])
        .sub(a.trace())
        .square()
        .mean()
        .sqrt()
        for method in TRACES
    }
    assert errors["xtrace"] < errors["hutch++"] < 0.5 * errors["hutchinson"]


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_trace_of_low_rank_is_exact(method, rank):
    a = decaying(40, rank=rank)
    found = operator(a).trace(15, method=method)
    assert found.value == pytest.approx(float(a.trace()), rel=1e-9, abs=1e-12) and found.error < 1e-9
    assert math.isfinite(found.error)


@pytest.mark.parametrize("method", TRACES)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_more_products_than_rows_are_no_harm(method, n):
    found = operator(torch.eye(n, dtype=torch.float64)).trace(40, method=method)
    assert found.value == pytest.approx(n)


def test_a_diagonal_that_is_known_is_exact():
    a = decaying(20)
    known = Operator(20, 20, lambda v: a @ v, exact=lambda: a.diagonal().clone())
    for some, wanted in ((known, a), (2.0 * known, 2 * a), (known + known, 2 * a), (known.T, a)):
        values, error = some.diagonal()
        assert torch.equal(values, wanted.diagonal()) and not error.any()
    values, error = known.diagonal(400)
    assert error.any() and float(((values - a.diagonal()).abs() < 5 * error).double().mean()) > 0.9
    with pytest.raises(OperatorError, match="has no exact diagonal"):
        operator(a).exact_diagonal()


# ------------------------------------------------------------------ eigenvalues


@pytest.mark.parametrize("power", [0.5, 1.5, 4.0])
def test_the_largest_eigenvalues_are_found(power):
    a = decaying(200, power)
    found = operator(a).eigenvalues(10)
    assert torch.allclose(found, torch.linalg.eigvalsh(a).flip(0)[:10], rtol=1e-8, atol=1e-6)
    few = torch.linalg.eigvalsh(lanczos(operator(a), torch.ones(200).double(), 12).matrix).flip(0)[:10]
    assert not torch.allclose(few, found, rtol=1e-3), "a space of 12 dimensions is not enough"


def diagonal(values) -> Operator:
    return Operator(len(values), len(values), lambda v: values.to(v) * v)


SPECTRA = {
    "geometric": lambda n: 0.7 ** torch.arange(n, dtype=torch.float64),
    "even": lambda n: 1 - torch.arange(n, dtype=torch.float64) / n,
    "few": lambda n: torch.tensor([3.0, 2.0, 1.0, 0.5] + [0.0] * n, dtype=torch.float64)[:n],
    "of both signs": lambda n: torch.cat([1 / torch.arange(1, n), torch.tensor([-3.0])]).double(),
}


@pytest.mark.parametrize("many", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("apart", [0.0, 1e-8])
def test_an_eigenvalue_is_listed_as_often_as_it_occurs(spectrum, many, apart):
    """Equal ones, and clusters that no Krylov space of a sensible size tells apart."""
    for n, k in ((20, 3), (20, 30), (120, 10)):
        values = SPECTRA[spectrum](n).repeat_interleave(many)[:n] * (1 + apart * torch.arange(n) % 5)
        found = diagonal(values).eigenvalues(k)
        assert torch.allclose(found, values.sort(descending=True).values[:k], rtol=1e-6, atol=1e-6)


def test_one_start_alone_would_miss_them(monkeypatch):
    grow = krylov._Grown.grow
    monkeypatch.setattr(krylov._Grown, "grow", lambda *given: grow(*given) and False)
    values = SPECTRA["geometric"](60).repeat_interleave(3)[:60]
    assert not torch.allclose(diagonal(values).eigenvalues(6), values[:6], rtol=1e-3)


def test_a_gap_of_any_width_is_looked_into():
    """A second copy of the largest of many, which a random start hardly meets."""
    values = torch.cat([torch.ones(2), 0.97 * torch.rand(4000, generator=torch.Generator().manual_seed(0))]).double()
    assert torch.allclose(diagonal(values).eigenvalues(3)[:2], torch.ones(2).double(), atol=1e-6)


def test_the_space_stays_orthonormal():
    a = decaying(200, 6.0)
    basis = lanczos(operator(a), torch.ones(200).double(), 60).basis
    assert torch.allclose(basis @ basis.T, torch.eye(len(basis), dtype=torch.float64), atol=1e-12)


# ------------------------------------------------------------------ log-determinants


@pytest.mark.parametrize("scale", [1e2, 1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("rounded", [False, True])
def test_log_determinants_are_right_within_their_errors(scale, rounded):
    a = decaying(150)
    wanted, parts = exact(a, scale), [a[:70, :70], a[70:, 70:].diagonal()]
    for seed in range(6):
        found, part = determinants.logdet(Counted(a, rounded), scale, 20, 6, 20, seed)
        assert abs(found.value - wanted) < 3.5 * found.error + 1e-6 * wanted
        assert found.error < 0.1 * wanted
        whole = bracket(found, part.logdet(scale), parts, scale)
        assert whole.nystrom <= wanted * (1 + 1e-6) <= whole.blocks * (1 + 2e-6) <= whole.diagonal * (1 + 3e-6)


def test_the_preconditioner_pays():
    a = decaying(200, 3.0)
    with_it, without = (determinants.logdet(operator(a), 1e-2, rank, 6, 20, 0)[0] for rank in (60, 0))
    assert with_it.error < 0.3 * without.error


def test_too_few_steps_are_part_of_the_error():
    a = decaying(150)
    for steps in (1, 2, 4):
        found, _ = determinants.logdet(operator(a), 1e-4, 0, 40, steps, 0)
        assert abs(found.value - exact(a, 1e-4)) < 3 * found.error
    assert found.error > 0.02 * found.value


def test_a_nystrom_approximation_is_below_the_matrix():
    a = decaying(60)
    part = nystrom(operator(a), 15, 0)
    low = (part.basis * part.values) @ part.basis.T
    assert float(torch.linalg.eigvalsh(a - low)[0]) > -1e-10
    assert float(torch.linalg.eigvalsh(0.9 * a - low)[0]) < -1e-3
    assert torch.allclose(part.basis.T @ part.basis, torch.eye(len(part.values), dtype=torch.float64), atol=1e-10)


@pytest.mark.parametrize("rank", [None, 0, 5])
def test_nothing_has_a_volume_of_nothing(rank):
    found = operator(torch.zeros(50, 50, dtype=torch.float64)).logdet(1e-8, rank=rank)
    assert found.value == found.error == 0


@pytest.mark.parametrize("planted", [0.5, 2.0])
def test_a_wrong_estimate_leaves_its_bracket(planted):
    a = decaying(80)
    value, low = exact(a, 1.0), nystrom(operator(a), 40, 0).logdet(1.0)
    bracket(Estimate(value, 0.0, 1), low, [a], 1.0)
    with pytest.raises(OperatorError, match="outside of its bounds"):
        bracket(Estimate(planted * value, 0.0, 1), low, [a], 1.0)


# ------------------------------------------------------------------ what it costs

WAYS = {
    "trace": [("trace", {"probes": 30}, lambda a, m=m: traces.trace(a, m, 30, 0)) for m in TRACES],
    "diagonal": [("diagonal", {"probes": 20}, lambda a: traces.diagonal(a, 20, 0))],
    "eigenvalues": [("eigenvalues", {"steps": 40}, lambda a: krylov.eigenvalues(a, 8, 0, torch.float64, 1e-6, 40))],
    "logdet": [
        ("logdet", {"rank": r, "probes": 3, "steps": 10}, lambda a, r=r: determinants.logdet(a, 0.1, r, 3, 10, 0))
        for r in (0, 30, None)
    ],
}


@pytest.mark.parametrize("what", WAYS)
def test_what_is_stated_is_kept(what):
    matrix = torch.diag(100 / torch.arange(1, 1501, dtype=torch.float64))
    for name, how, act in WAYS[what]:
        a = Counted(matrix)
        stated = cost(name, a.rows, **how)
        assert peak(lambda act=act, a=a: act(a)) < stated.bytes + (1 << 16)
        assert 0 < a.products <= stated.products
        assert operator(matrix).cost(name, **how) == stated


def peak(act) -> int:
    """The most bytes held at once by tensors that were made while it ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        act()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def test_a_plain_matrix_weighs_what_it_weighs():
    assert 8_000_000 <= peak(lambda: torch.zeros(1000, 1000, dtype=torch.float64)) < 8_100_000


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda a: a.trace(30, method="guess"), "trace: method takes 'hutch++' or 'xtrace' or 'hutchinson', got"),
        (lambda a: a.trace(2), "hutch++ needs 3 products"),
        (lambda a: a.trace(3, method="xtrace"), "xtrace needs 4 products"),
        (lambda a: a.trace(0, method="hutchinson"), "needs 1 products"),
        (lambda a: a.logdet(0.0), "scale must be a positive number"),
        (lambda a: a.logdet(math.nan), "scale must be a positive number"),
        (lambda a: a.logdet(1.0, probes=0), "give 1 or more"),
        (lambda a: (-1.0 * a).logdet(1.0), "needs one that is positive"),
        (lambda a: (-1.0 * a).logdet(1.0, rank=3), "needs one that is positive"),
        (lambda a: (-1.0 * a).logdet(1.0, rank=0), "none below zero"),
        (lambda a: (math.nan * a).trace(), "NaN or infinity"),
        (lambda a: (math.nan * a).logdet(), "NaN or infinity"),
        (lambda a: (math.nan * a).eigenvalues(), "NaN or infinity"),
        (lambda a: (math.nan * a).diagonal(), "NaN or infinity"),
        (lambda a: a.cost("guess"), "cost: what takes 'trace' or 'diagonal'"),
        (lambda a: a @ torch.zeros(3, 2, dtype=torch.float64), "columns of 20 numbers"),
    ],
)
def test_mistakes_are_one_line(act, words):
    with pytest.raises(ws.WeightspaceError) as error:
        act(operator(decaying(20)))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
def test_a_quadratic_form_lies_between_its_quadratures(spread):
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64))[0]
    values = 1 + spread * torch.linspace(0, 1, 20, dtype=torch.float64).square()
    b = turn @ values.diag() @ turn.T
    z = torch.randint(0, 2, (20,), generator=generator).double() * 2 - 1
    exact = float((turn.T @ z).square() @ values.log()) / 20
    for steps in range(1, 9):
        above, below, _ = determinants._quadratures(lanczos(Operator(20, 20, lambda v: b @ v), z, steps), 1e-12)
        assert below - 1e-6 <= exact <= above + 1e-12
