"""Operators against the dense matrix; estimates against what they estimate."""

from __future__ import annotations

import math

import pytest
import torch
from dense import NETS, case, explicit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weightspace.curvature.linearised import jacobian
from weightspace.linear.estimate import OperatorError
from weightspace.linear.krylov import lanczos
from weightspace.linear.operator import Operator, cgls


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of(a: Tensor) -> Operator:
    return Operator(*a.shape, lambda v: a @ v, lambda u: a.T @ u)


def positive(n: int, seed: int = 0, rank: int | None = None) -> Tensor:
    half = matrix(n, rank or n, seed)
    return half @ half.T / n


def symmetric(a: Tensor) -> Operator:
    return Operator(len(a), len(a), lambda v: a @ v)


@pytest.fixture(params=NETS)
def name(request) -> str:
    return request.param


def test_the_jacobian_is_the_explicit_one(name):
    net, task = case(name)
    j, wanted = jacobian(net, task), explicit(net, task)
    assert torch.allclose(j.dense(), wanted, atol=1e-10)
    assert torch.allclose(j.T.dense(), wanted.T, atol=1e-10)
    assert not torch.allclose(j.dense(), wanted.flip(0), atol=1e-3), "rows must be told apart"


def test_batches_make_no_difference(name):
    net, _ = case(name)
    v = net.weights.randn(0).flat()
    found = [jacobian(net, case(name, batch=b)[1]) @ v for b in (1, 3, 100)]
    assert all(torch.allclose(found[0], f, atol=1e-12) for f in found)


def test_measuring_touches_nothing(name):
    net, task = case(name)
    before = {n: t.clone() for n, t in net.tensors.items()}
    j = jacobian(net, task)
    j.T @ (j @ net.weights.randn(0).flat())
    assert all(torch.equal(before[n], t) for n, t in net.tensors.items())
    assert all(t.grad is None for t in net.tensors.values())


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 6), columns=st.integers(1, 6), seed=st.integers(0, 1000))
def test_algebra(rows, columns, seed):
    a, b, c = matrix(rows, columns, seed), matrix(rows, columns, seed + 1), matrix(columns, 3, seed + 2)
    assert torch.allclose((of(a) + of(b)).dense(), a + b)
    assert torch.allclose((2.5 * of(a)).T.dense(), 2.5 * a.T)
    assert torch.allclose((of(a) @ of(c)).dense(), a @ c)
    assert torch.allclose((of(a) @ of(c)).T.dense(), (a @ c).T)
    assert torch.allclose(of(a) @ c, a @ c)
    assert torch.allclose(of(a).gram().dense(), a.T @ a)


def test_estimates_are_right_within_their_errors():
    a = positive(30)
    trace = symmetric(a).trace(400, method="hutchinson")
    assert abs(trace.value - float(a.trace())) < 4 * trace.error
    assert trace.error < 0.1 * float(a.trace())
    assert abs(trace.value - 1.5 * float(a.trace())) > 4 * trace.error, "a wrong trace must be told apart"
    diagonal, error = symmetric(a).diagonal(800)
    assert float(((diagonal - a.diagonal()).abs() < 5 * error).double().mean()) > 0.9
    logdet = symmetric(a).logdet(0.3, probes=20, rank=4)
    exact = float(torch.linalg.slogdet(torch.eye(30) + a / 0.3)[1])
    assert abs(logdet.value - exact) < 4 * logdet.error + 1e-6 * exact


def test_errors_shrink_as_the_root_of_the_samples():
    a = symmetric(positive(40))
    few, many = (a.trace(n, method="hutchinson").error for n in (50, 800))
    assert 2.5 < few / many < 6


def test_eigenvalues_and_solutions():
    a = positive(40, rank=12)
    assert torch.allclose(symmetric(a).eigenvalues(5, dtype=torch.float64), torch.linalg.eigvalsh(a).flip(0)[:5])
    b = matrix(40, 1)[:, 0]
    exact = torch.linalg.solve(a + 0.1 * torch.eye(40), b)
    assert torch.allclose(symmetric(a).solve(b, 0.1, tolerance=1e-12), exact, atol=1e-8)


def test_lanczos_is_orthonormal_and_ends_where_the_space_is_invariant():
    a = positive(40, rank=6)
    found = lanczos(symmetric(a), a @ matrix(40, 1)[:, 0], 30)
    assert len(found.basis) == 6
    assert torch.allclose(found.basis @ found.basis.T, torch.eye(6, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(found.basis @ a @ found.basis.T, found.matrix, atol=1e-8)
    assert torch.allclose(torch.linalg.eigvalsh(found.matrix), torch.linalg.eigvalsh(a)[-6:], atol=1e-8)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_least_squares(shape):
    a, b = matrix(*shape), matrix(shape[0], 1, 3)[:, 0]
    assert torch.allclose(cgls(of(a), b, steps=60, tolerance=1e-14), torch.linalg.pinv(a) @ b, atol=1e-6)
    damped = torch.linalg.solve(a.T @ a + 0.2 * torch.eye(shape[1]), a.T @ b)
    assert torch.allclose(cgls(of(a), b, 0.2, steps=60, tolerance=1e-14), damped, atol=1e-8)
    tiny = torch.full((1, 1), 2e-4, dtype=torch.float16)  # squares of its images are zero in this dtype
    assert torch.equal(cgls(of(tiny), torch.full((1,), 10.0).half(), tolerance=0), torch.zeros(1).half())


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: of(matrix(3, 4)) @ torch.zeros(3, dtype=torch.float64), "4 numbers"),
        (lambda: of(matrix(3, 4)) @ of(matrix(3, 4)), "cannot multiply"),
        (lambda: of(matrix(3, 4)) + of(matrix(4, 3)), "cannot add"),
        (lambda: of(matrix(3, 4)).trace(), "square"),
        (lambda: of(matrix(3, 3)).eigenvalues(), "symmetric"),
        (lambda: Operator(3, 4, lambda v: v), "adjoint"),
        (lambda: lanczos(symmetric(positive(3)), torch.zeros(3), 2), "norm 0"),
        (lambda: lanczos(symmetric(math.nan * positive(3)), torch.ones(3).double(), 2), "NaN"),
        (lambda: symmetric(-positive(3)).solve(torch.ones(3).double()), "not positive"),
        (lambda: Operator(1 << 14, 1 << 14, lambda v: v).dense(), "too large"),
    ],
)
def test_bad_use_is_refused_in_one_line(act, words):
    with pytest.raises(OperatorError) as error:
        act()
    assert words in str(error.value) and "\n" not in str(error.value)
