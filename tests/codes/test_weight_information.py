"""Information in the weights: against dense matrices, against one another, and what is said when there is none."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from weightspace.codes import attribution
from weightspace.codes.quadratic import Quadratic
from weightspace.codes.weight_information import Unconverged, cost, flatness_bound, information
from weightspace.linear.operator import Operator
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.task.task import Task

N, D = 40, 5


def linear(v: float = 0.5, beta: float = 1.0) -> tuple[Net, Task]:
    """Linear regression with two outputs, at the minimum of L + beta/2 |w|^2 / v."""
    torch.manual_seed(0)
    x = torch.randn(N, D, dtype=torch.float64)
    y = x @ torch.randn(D, 2, dtype=torch.float64) + 0.3 * torch.randn(N, 2, dtype=torch.float64)
    module = nn.Linear(D, 2, bias=False).double()
    ridge = 2 * x.T @ x + beta / v * torch.eye(D, dtype=torch.float64)
    module.weight.data = torch.linalg.solve(ridge, 2 * x.T @ y).T.clone()
    return Net.of(module), Task(x, y)


def quadratic(net: Net, task: Task) -> Quadratic:
    """What is known of `linear` without any network: 2 X^T X for each output."""
    x = task.example(N)
    block = 2 * x.T @ x
    return Quadratic(float(task(net)) * N, torch.block_diag(block, block), net.weights.flat())


def classifier(trained: bool = True) -> tuple[Net, Task]:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(30, 4, dtype=torch.float64)
    y = (x @ torch.randn(4, 3, dtype=torch.float64) + torch.randn(30, 3, dtype=torch.float64)).argmax(1)
    optimiser = torch.optim.LBFGS(module.parameters(), max_iter=200)

    def step() -> Tensor:
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(module(x), y) + 1e-2 * sum(p.square().sum() for p in module.parameters())
        loss.backward()
        return loss

    if trained:
        optimiser.step(step)
    return Net.of(module), Task(x, y, batch=13)


def dense(net: Net, task: Task) -> Tensor:
    """sum_t J^T (diag p - p p^T) J, written out."""
    x = task.example(len(task))

    def f(flat: Tensor) -> Tensor:
        return functional_call(net.architecture, dict(net.weights.shaped(flat)), (x,))

    j = jacrev(f)(net.weights.flat())
    p = f(net.weights.flat()).softmax(-1)
    return torch.einsum("tki,tkl,tlj->ij", j, torch.diag_embed(p) - p[:, :, None] * p[:, None], j)


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
def test_local_is_the_closed_form_of_a_linear_model(beta):
    net, task = linear(beta=beta)
    q = quadratic(net, task)
    found = information(net, task, prior=0.5, beta=beta)
    assert found.slope < 1e-8
    assert found.value == pytest.approx(q.kl(0.5, beta), abs=1e-8)
    assert found.length == pytest.approx(q.length(0.5, beta), abs=1e-8)
    assert found.dimension == pytest.approx(float(q.dimensions(0.5, beta).sum()), abs=1e-8)
    assert found.error == 0 and found.layers == {"weight": pytest.approx(found.value)} and found.products == 14
    assert found.harmonic == pytest.approx(1, abs=0.8)
    assert found.bracket.diagonal == pytest.approx((q.factorised.length(0.5, beta) - q.loss) / beta, abs=1e-8)
    assert abs(Quadratic(q.loss, q.hessian / 2, q.offset).kl(0.5, beta) - found.value) > 0.1  # a lost 1/2 is seen


def test_the_variational_code_of_a_linear_model_is_the_closed_form_too():
    net, task = linear()
    alone = quadratic(net, task).factorised
    found = information(net, task, "variational", prior=0.5, steps=400, draws=200, repeats=2)
    assert found.length == pytest.approx(alone.length(0.5), abs=0.5)
    assert found.value == pytest.approx(alone.kl(0.5), rel=0.02)
    assert found.dimension == pytest.approx(float(alone.dimensions(0.5).sum()), rel=0.02)
    assert sum(found.layers.values()) == pytest.approx(found.value)
    assert 0 <= found.error < 0.3 and found.bracket is None


def test_the_matrix_is_gauss_newton_and_the_prior_best_for_independent_weights():
    net, task = classifier()
    h = dense(net, task)
    q = Quadratic(float(task(net)) * 30, h, net.weights.flat())
    sizes = [w.numel() for w in net.weights.values()]
    v = q.factorised.best_variance(1.0, sizes)
    found = information(net, task)
    assert found.value == pytest.approx(q.kl(v), rel=1e-8) and found.length == pytest.approx(q.length(v), rel=1e-8)
    assert list(found.variance.values()) == pytest.approx([float(part[0]) for part in v.split(sizes)])
    blocks = torch.block_diag(*[h[a][:, a] for a in torch.arange(len(h)).split(sizes)])
    assert found.bracket.block == pytest.approx(Quadratic(0.0, blocks, q.offset).length(v), rel=1e-8)
    assert found.bracket.value <= found.bracket.block <= found.bracket.diagonal
    one = information(net, task, prior="one")
    assert [*one.variance.values()] == pytest.approx([one.variance["0.bias"]] * 4)
    assert one.bracket.diagonal >= found.bracket.diagonal  # a prior for every tensor is the better one
    anchored = information(net, task, anchor=net, prior=0.5)
    far = float(net.weights.norm()) ** 2 / 0.5
    assert information(net, task, prior=0.5).value - anchored.value == pytest.approx(far / 2)


def test_estimates_are_within_their_errors_and_the_bracket(monkeypatch):
    net, task = classifier()
    exact = information(net, task)
    monkeypatch.setattr(attribution, "_DENSE", 20)
    seen = []
    found = information(net, task, probes=4, rank=12, progress=lambda *k: seen.append(k))
    assert 0 < found.error < 0.05 * exact.value
    assert abs(found.value - exact.value) < 5 * found.error
    assert abs(found.dimension - exact.dimension) < 10 * found.error
    bracket = found.bracket
    assert bracket.lower <= bracket.value + 3 * bracket.error
    assert bracket.lower <= exact.bracket.value <= exact.bracket.block <= bracket.diagonal
    assert bracket.block == pytest.approx(exact.bracket.block, rel=0.05)
    assert sum(found.layers.values()) == pytest.approx(found.value)
    told = cost(net, task, probes=4, rank=12)
    assert found.products == seen[-2][0] + 4 <= told.products and seen[-1] == (told.products, told.products)
    assert information(net, task, probes=4, rank=12, blocks=False).bracket.block is None


def test_a_network_that_is_not_at_a_minimum_is_told_of():
    net, task = classifier(trained=False)
    with pytest.warns(Unconverged, match="not at a minimum"):
        found = information(net, task)
    assert found.slope > 0.3 and "train on" in found.notes[0]
    trained, _ = classifier()
    assert information(trained, task).slope < 0.3


def test_a_saturated_minimum_is_narrower_than_it_looks():
    net, task = classifier()
    assert information(net, task).harmonic < 3
    y = net(task.example(30)).argmax(1)
    sharp = net.at(
        net.weights.replace({"2.weight": 40 * net.weights["2.weight"], "2.bias": 40 * net.weights["2.bias"]})
    )
    found = information(sharp, task.relabelled(y))
    assert found.loss < 10 and found.harmonic > 3 and any("narrower" in note for note in found.notes)


def test_layers_that_are_not_felt_hold_nothing():
    net, task = classifier()
    dead = net.at(net.weights.replace({"2.weight": torch.zeros(3, 6)}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Unconverged)
        found = information(dead, task)
    assert found.layers["0.weight"] == pytest.approx(0) and "do not depend on 0.weight, 0.bias" in found.notes[-1]
    assert math.isfinite(found.value)


def test_flatness_is_what_the_sum_over_weights_cannot_exceed():
    net, task = classifier()
    diagonal, w = dense(net, task).diagonal(), net.weights.flat()
    for beta in (0.5, 1.0):
        code = 0.5 * float((w.square() * diagonal / beta).log().sum())
        assert code <= flatness_bound(net, task, beta)
    assert information(net, task).flatness == pytest.approx(flatness_bound(net, task))
    single = Net.of(nn.Linear(1, 1, bias=False).double())
    one = Task(torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    weight = float(single.weights.flat()[0])
    assert flatness_bound(single, one) == pytest.approx(0.5 * math.log(2 * weight**2))  # of one weight it is exact
    assert flatness_bound(single.at(single.weights.zeros()), one) == -math.inf


def test_sgld_is_the_learning_coefficient_times_log_n():
    net, task = linear()
    found = information(net, task, "sgld", chains=32, draws=100, burn=50, pull=1e-3)
    assert abs(found.dimension - 10) < 6 * found.error / math.log(N) + 0.5
    assert found.value == pytest.approx(found.dimension / 2 * math.log(N))
    assert found.length == pytest.approx(float(task(net)) * N + found.value)
    json.dumps(found.data(), allow_nan=False)


def test_results_are_plain_data_and_cost_is_told():
    net, task = linear()
    told = information(net, task).data()
    assert json.loads(json.dumps(told, allow_nan=False))["length"] == pytest.approx(told["length"])
    assert "passes" in str(cost(net, task)) and cost(net, task, "variational", steps=10).products == 40
    assert cost(net, task, "sgld").products == 1600


def test_float32():
    net, task = classifier()
    assert information(net.to(torch.float32), task).value == pytest.approx(information(net, task).value, rel=1e-3)


def mistakes():
    net, task = linear()
    x, y = task.example(N), torch.arange(N) % 2
    yield "method takes 'local' or 'variational' or 'sgld', got", lambda: information(net, task, "fisher")
    yield "prior takes 'layer' or 'one' or a number, got", lambda: information(net, task, prior="best")
    yield "prior must be a positive", lambda: information(net, task, prior=-1.0)
    yield "beta must be a positive", lambda: information(net, task, beta=0.0)
    yield "has no steps", lambda: information(net, task, steps=5)
    yield "has no prior", lambda: information(net, task, "sgld", prior=1.0)
    yield "one variance a tensor", lambda: information(net, task, "variational", prior="one")
    yield "repeats", lambda: information(net, task, "variational", repeats=0)
    yield "outside the 2 outputs", lambda: information(net, Task(x, y + 1))
    yield "NaN", lambda: information(net, Task(x * float("nan"), y))
    yield "NaN", lambda: information(net.at(net.weights * float("nan")), task)
    yield "no labels", lambda: information(net, Task(x))
    yield "empty|no examples", lambda: information(net, Task(torch.zeros(0, D), torch.zeros(0, 2)))
    mixed = nn.Sequential(nn.Linear(D, 2).double(), nn.Linear(2, 2))
    yield "several dtypes", lambda: information(Net.of(mixed), task)
    yield "no gradient", lambda: information(net, Task(x, y, metric="zero-one"))


@pytest.mark.parametrize(("words", "wrong"), [*mistakes()])
def test_mistakes_are_told_in_one_line(words, wrong):
    with pytest.raises(WeightspaceError, match=words) as seen:
        wrong()
    assert "\n" not in str(seen.value)


def test_the_error_of_what_is_known_is_how_far_draws_are_apart():
    half = torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = Operator(16, 16, lambda v: half @ (half.T @ v))
    found = [attribution._sampled(a, 0.05, [6, 10], 3, 4, False, 10 * seed) for seed in range(16)]
    sums = torch.tensor([sum(one.known) for one in found])
    errors = torch.tensor([one.errors[1] for one in found])
    assert float(sums.std()) == pytest.approx(float(errors.square().mean().sqrt()), rel=0.5)
