"""The closed form of the shortest code against codes that a minimiser finds, number by number."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from weightspace.codes.quadratic import Quadratic
from weightspace.net.errors import WeightspaceError


def case(seed: int = 0, n: int = 5, rank: int | None = None) -> Quadratic:
    draw = torch.Generator().manual_seed(seed)
    half = torch.randn(n, rank or n, generator=draw, dtype=torch.float64)
    return Quadratic(1.7, half @ half.T, torch.randn(n, generator=draw, dtype=torch.float64))


def divergence(s: Tensor, offset: Tensor, v: Tensor) -> Tensor:
    """KL of N(offset, S) from N(0, diag v), written out."""
    inverse = torch.diag(1 / v)
    return ((inverse @ s).trace() + offset @ inverse @ offset - len(offset) + v.log().sum() - s.logdet()) / 2


def written(q: Quadratic, s: Tensor, v: Tensor, beta: float) -> Tensor:
    """E_Q L + beta KL, written out for any S."""
    h = q.hessian if q.hessian.dim() == 2 else q.hessian.diag()
    return q.loss + (h @ s).trace() / 2 + beta * divergence(s, q.offset, v)


VARIANCES = (0.3, 2.0, torch.tensor([0.1, 0.5, 1.0, 3.0, 0.01], dtype=torch.float64))


@pytest.mark.parametrize("beta", [0.2, 1.0, 7.0])
@pytest.mark.parametrize("variance", VARIANCES, ids=("small", "wide", "each"))
def test_the_covariance_has_the_length_that_is_said_and_none_is_shorter(beta, variance):
    for q in (case(), case(rank=2), case().factorised):
        v = torch.as_tensor(variance, dtype=torch.float64).expand(5)
        s = q.covariance(variance, beta)
        s = s.diag() if s.dim() == 1 else s
        assert written(q, s, v, beta).item() == pytest.approx(q.length(variance, beta), abs=1e-10)
        assert float(divergence(s, q.offset, v)) == pytest.approx(q.kl(variance, beta), abs=1e-10)
        assert float((1 - s.diagonal() / v).sum()) == pytest.approx(
            float(q.dimensions(variance, beta).sum()), abs=1e-10
        )
        root = torch.linalg.cholesky(s).requires_grad_()
        lower = root.tril() if q.hessian.dim() == 2 else root.diagonal().diag()
        slope = torch.autograd.grad(written(q, lower @ lower.T, v, beta), root)[0]
        assert float(slope.abs().max()) < 1e-10


@pytest.mark.parametrize("beta", [0.2, 1.0, 7.0])
@pytest.mark.parametrize("variance", VARIANCES, ids=("small", "wide", "each"))
def test_what_the_weights_hold_adds_up_to_the_divergence(beta, variance):
    for q in (case(), case(rank=2), case().factorised):
        assert float(q.nats(variance, beta).sum()) == pytest.approx(q.kl(variance, beta), abs=1e-10)


def test_a_minimiser_of_numbers_finds_the_same_code():
    q, beta, v = case(3), 0.7, torch.full((5,), 0.8, dtype=torch.float64)
    rows, columns = torch.tril_indices(5, 5)

    def lower(numbers: Tensor) -> Tensor:
        root = torch.zeros(5, 5, dtype=torch.float64).index_put((rows, columns), numbers)
        return root.tril(-1) + root.diagonal().exp().diag()

    def value(numbers: object) -> tuple[float, object]:
        leaf = torch.tensor(numbers, dtype=torch.float64, requires_grad=True)
        root = lower(leaf)
        found = written(q, root @ root.T, v, beta)
        found.backward()
        return found.item(), leaf.grad.numpy()

    found = minimize(
        value, torch.zeros(15, dtype=torch.float64).numpy(), jac=True, method="BFGS", options={"gtol": 1e-9}
    )
    assert found.fun == pytest.approx(q.length(0.8, beta), abs=1e-10)
    root = lower(torch.from_numpy(found.x))
    torch.testing.assert_close(root @ root.T, q.covariance(0.8, beta), atol=1e-6, rtol=0)


def test_independent_weights_see_the_diagonal_and_pay_for_it():
    q, beta, v = case(1), 0.4, torch.full((5,), 1.3, dtype=torch.float64)
    log = (q.factorised.covariance(1.3, beta)).log().requires_grad_()
    slope = torch.autograd.grad(written(q, log.exp().diag(), v, beta), log)[0]
    assert float(slope.abs().max()) < 1e-10
    assert q.length(1.3, beta) < q.factorised.length(1.3, beta)


@pytest.mark.parametrize("sizes", [None, [2, 3], [1, 1, 1, 1, 1]])
def test_the_best_prior_is_a_fixed_point_and_no_other_is_better(sizes):
    for q in (case(2), case(4, rank=2), case(2).factorised):
        beta, groups = 0.6, sizes or [5]
        v = q.best_variance(beta, sizes)
        s = q.covariance(v, beta)
        known = s if s.dim() == 1 else s.diagonal()
        again = [
            (o.square().sum() + t.sum()) / len(o)
            for o, t in zip(q.offset.split(groups), known.split(groups), strict=True)
        ]
        torch.testing.assert_close(
            torch.stack([part[0] for part in v.split(groups)]), torch.stack(again), rtol=1e-10, atol=0
        )
        best = q.length(v, beta)
        for change in (0.99, 1.01):
            for k in range(len(groups)):
                factor = torch.ones(len(groups), dtype=torch.float64)
                factor[k] = change
                assert q.length(v * factor.repeat_interleave(torch.tensor(groups)), beta) > best
        assert q.kl(v, beta) == pytest.approx(q.logdet(v, beta) / 2, abs=1e-10)


def test_groups_that_are_at_the_prior_or_not_felt_cost_nothing():
    q = Quadratic(0.0, torch.tensor([2.0, 0.0, 3.0]), torch.tensor([1.0, 1.0, 0.0]))
    v = q.best_variance(1.0, [1, 1, 1])
    assert float(v[1]) > 1e20 and float(v[2]) < 1e-20
    alone = Quadratic(0.0, torch.tensor([2.0]), torch.tensor([1.0]))
    assert q.kl(v) == pytest.approx(alone.kl(alone.best_variance()), abs=1e-10)


def test_a_wrong_half_is_seen():
    """The paper's convention, L* + d^T H d, is another code: the test above would see it."""
    q = case()
    twice = Quadratic(q.loss, 2 * q.hessian, q.offset)
    assert abs(twice.length(0.3) - q.length(0.3)) > 0.1


def test_mistakes_are_told_in_one_line():
    q = case()
    for wrong in (
        lambda: q.length(0.0),
        lambda: q.kl(-1.0),
        lambda: q.length(1.0, 0.0),
        lambda: q.best_variance(1.0, [2]),
        lambda: Quadratic(0.0, torch.eye(3), torch.zeros(2)),
        lambda: Quadratic(0.0, torch.eye(1) * torch.nan, torch.zeros(1)),
    ):
        with pytest.raises(WeightspaceError) as seen:
            wrong()
        assert "\n" not in str(seen.value)
