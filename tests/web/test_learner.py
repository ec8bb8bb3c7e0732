"""A learner is the library's network, trained by the library's optimisers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import weightspace as ws
from weightspace.web.playground.learner import LARGEST, Learner, fisher_angle, sound
from weightspace.web.playground.networks import scores
from weightspace.web.playground.points import drawn
from weightspace.web.playground.state import ALGORITHMS, Limits, State


def state(**given):
    return State.of({"depth": 2, "width": 3, "rate": 0.05, **given}, Limits())


@pytest.fixture(scope="module")
def points():
    return drawn("xor", 40, 0.05, 0, 0.5)[0]


@pytest.mark.parametrize("activation", ["tanh", "relu", "leaky_relu", "sigmoid"])
def test_responses_and_scores_are_those_of_the_network(activation, points):
    learner = Learner(state(activation=activation, depth=3), 1)
    net, task = learner.net(), points.task()
    assert net.dtype == torch.float64 and torch.equal(learner.responses(points.x)[-1], net(points.x))
    hidden = ws.features(task, of="maps")(net)
    assert torch.allclose(hidden[[*hidden][-1]].double(), net(points.x), atol=1e-6)
    seen = scores(learner, points)
    assert seen["loss"] == pytest.approx(float(task(net)), rel=1e-12)
    assert seen["accuracy"] == pytest.approx(ws.accuracy(task)(net))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_step_is_that_of_the_library(algorithm, points):
    learner = Learner(state(algorithm=algorithm), 0)
    module, net = learner.net().module(), learner.net()
    optimiser = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
        "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, lr=0.05),
        "fromage": lambda p: ws.optim.Fromage(p, lr=0.05),
        "lamb": lambda p: ws.optim.Lamb(p, lr=0.05),
    }.get(algorithm)
    made = optimiser(module.parameters()) if optimiser else None
    for _ in range(3):
        learner.learn(points.x, points.y)
        if made:
            made.zero_grad()
            F.binary_cross_entropy_with_logits(module(points.x)[:, 0], points.y).backward()
            made.step()
        else:
            slope = ws.gradient(points.task(), net)
            fisher = ws.Pullback(points.task(), fisher_angle, damping=1e-3)
            metric = ws.Spectral() if algorithm == "spectral" else fisher
            net = net + 0.05 * metric.steepest(net, slope)
    expected = ws.Net.of(module) if made else net
    assert float((learner.net() - expected).norm()) < 1e-9 * float(expected.weights.norm())


def test_the_natural_step_is_against_the_fisher_information(points):
    """G from the gradients of every example: sum_i p_i (1 - p_i) df_i df_i^T / N, written out."""
    learner = Learner(state(algorithm="natural"), 0)
    net, before = learner.net(), learner.flat.clone()
    f = [
        torch.autograd.functional.jacobian(lambda w, x=x: learner.responses(x[None], w)[-1][0, 0], before)
        for x in points.x
    ]
    jacobian, p = torch.stack(f), net(points.x).sigmoid()[:, 0]
    fisher = jacobian.T @ (jacobian * (p * (1 - p))[:, None]) / len(points)
    damped = fisher + 1e-3 * torch.eye(len(before), dtype=torch.float64)
    slope = ws.gradient(points.task(), net).flat()
    wanted = -torch.linalg.solve(damped, slope)
    wanted /= (wanted @ damped @ wanted).sqrt()
    learner.learn(points.x, points.y)
    away = (learner.flat - before - 0.05 * wanted).norm() / (0.05 * wanted).norm()
    assert float(away) < 1e-4  # eigenvalues of rounding size are left out


def test_the_gradient_is_of_the_last_batch(points):
    learner = Learner(state(), 0)
    assert learner.gradient is None
    before = learner.net()
    learner.learn(points.x, points.y)
    assert torch.allclose(learner.gradient, ws.gradient(points.task(), before).flat())
    learner.put(before.weights.flat())
    assert learner.gradient is None


def test_seeds_draw_other_weights_and_signals_keep_their_size():
    deep = [Learner(state(depth=20, width=16, activation="tanh"), seed) for seed in (0, 0, 1)]
    assert torch.equal(deep[0].flat, deep[1].flat) and not torch.equal(deep[0].flat, deep[2].flat)
    x = drawn("spiral", 100, 0.0, 0, 0.5)[0].x
    assert all(0.1 < float(h.square().mean().sqrt()) < 1 for h in deep[0].responses(x)[:-1])


def test_sound_weights():
    assert sound(torch.tensor([1.0, -LARGEST]))
    for bad in (float("nan"), float("inf"), -2 * LARGEST):
        assert not sound(torch.tensor([0.0, bad]))
