"""The worst and the mean loss in a ball: against the definition in dense form, planted errors, and training loops."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import weightspace as ws
from weightspace.net.errors import WeightspaceError

BALLS = {
    "euclidean": lambda some: ws.Euclidean(),
    "relative": lambda some: ws.Relative(),
    "neuron": lambda some: ws.Relative("neuron"),
    "spectral": lambda some: ws.Spectral(),
    "functions": lambda some: ws.Pullback(some, damping=0.1),
    "fisher": lambda some: ws.Pullback(some, output="fisher", damping=0.1),
}


def module(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).double()


def data(n: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 5, generator=g, dtype=torch.float64), torch.randint(0, 3, (n,), generator=g)


def task(n: int = 20) -> ws.Task:
    return ws.Task(*data(n))


def dense(net: ws.Net, flat: torch.Tensor) -> torch.Tensor:
    """The loss as a function of the flat weights, by torch alone."""
    w, (x, y) = net.weights.shaped(flat), data()
    hidden = torch.tanh(x @ w["0.weight"].T + w["0.bias"])
    return F.cross_entropy(hidden @ w["2.weight"].T + w["2.bias"], y)


def slope(net: ws.Net, flat: torch.Tensor) -> torch.Tensor:
    leaf = flat.clone().requires_grad_()
    return torch.autograd.grad(dense(net, leaf), leaf)[0]


def uphill(net: ws.Net, ball: str, g: torch.Tensor) -> torch.Tensor:
    """The unit step of a ball along which a gradient rises most, from the definition of the ball."""
    w = net.weights.flat()
    if ball == "euclidean":
        return g / g.norm()
    if ball in ("relative", "neuron", "spectral"):
        named, steps = net.weights.shaped(g), {}
        for name, tensor in net.weights.items():
            own = named[name]
            if ball == "spectral" and own.dim() > 1:
                u, _, vh = torch.linalg.svd(own, full_matrices=False)
                steps[name] = u @ vh
            elif ball == "neuron" and own.dim() > 1:
                steps[name] = own / own.norm(dim=1, keepdim=True) * tensor.norm(dim=1, keepdim=True)
            else:
                steps[name] = own / own.norm() * (1 if ball == "spectral" else tensor.norm())
        return net.weights.replace(steps).flat()
    x, _ = data()
    outputs = lambda flat: dense_outputs(net, flat, x)  # noqa: E731
    j = torch.func.jacrev(outputs)(w).reshape(-1, len(w))
    if ball == "fisher":
        p = outputs(w).softmax(1)
        blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        j3 = j.view(len(x), 3, -1)
        metric = torch.einsum("nai,nab,nbj->ij", j3, blocks, j3) / len(x)
    else:
        metric = j.T @ j / len(x)
    v = torch.linalg.solve(metric + 0.1 * torch.eye(len(w)).to(w), g)
    return v / (g @ v).sqrt()


def dense_outputs(net: ws.Net, flat: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    w = net.weights.shaped(flat)
    return torch.tanh(x @ w["0.weight"].T + w["0.bias"]) @ w["2.weight"].T + w["2.bias"]


@pytest.mark.parametrize("ball", BALLS)
def test_the_worst_is_the_gradient_at_the_end_of_a_step_uphill(ball):
    net, radius = ws.Net.of(module()), 0.3
    value, found = ws.neighbourhood(task(), BALLS[ball](task()), radius).value_and_gradient(net, 0)
    w = net.weights.flat()
    there = w + radius * uphill(net, ball, slope(net, w))
    assert value == pytest.approx(float(dense(net, there)), rel=1e-6)
    assert float((found.flat() - slope(net, there)).norm()) < 1e-6 * float(slope(net, there).norm())
    assert value > float(task()(net))


@pytest.mark.parametrize("planted", ["half the radius", "downhill", "the gradient at the start"])
def test_a_wrong_ball_would_be_seen(planted):
    net, radius = ws.Net.of(module()), 0.3
    found = ws.neighbourhood(task(), ws.Euclidean(), radius).value_and_gradient(net, 0)[1].flat()
    w = net.weights.flat()
    away = {"half the radius": radius / 2, "downhill": -radius, "the gradient at the start": 0.0}[planted]
    wrong = slope(net, w + away * uphill(net, "euclidean", slope(net, w)))
    assert float((found - wrong).norm()) > 1e-2 * float(wrong.norm())


@pytest.mark.parametrize("ball", ["euclidean", "relative", "functions"])
def test_the_mean_is_over_two_opposite_points_of_the_ball(ball):
    net, radius = ws.Net.of(module()), 0.1
    metric = BALLS[ball](task())
    goal = ws.neighbourhood(task(), metric, radius, "mean", seed=4)
    value, found = goal.value_and_gradient(net, 3)
    one, other = goal._around(net, net.weights, 3)
    assert torch.equal(one.flat(), -other.flat())
    w = net.weights.flat()
    ends = [w + one.flat(), w + other.flat()]
    assert value == pytest.approx(sum(float(dense(net, e)) for e in ends) / 2, rel=1e-6)
    assert float((found.flat() - sum(slope(net, e) for e in ends) / 2).norm()) < 1e-7
    if ball != "functions":  # whose norm leaves the damping out
        assert float(metric.norm(net, one)) == pytest.approx(radius)
    assert value != goal.value_and_gradient(net, 4)[0]
    assert value == ws.neighbourhood(task(), metric, radius, "mean", seed=4).value_and_gradient(net, 3)[0]


def test_over_many_draws_the_mean_is_the_loss_and_half_the_trace_of_the_hessian_a_weight():
    net, radius = ws.Net.of(module()), 0.05
    w = net.weights.flat()
    trace = torch.autograd.functional.hessian(lambda flat: dense(net, flat), w).trace()
    expected = radius**2 * float(trace) / (2 * len(w))
    goal = ws.neighbourhood(task(), ws.Euclidean(), radius, "mean")
    rise = [goal.value_and_gradient(net, step)[0] - float(dense(net, w)) for step in range(200)]
    assert sum(rise) / 200 == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("kind", ["worst", "mean"])
def test_a_ball_of_radius_zero_is_the_goal_itself(kind):
    net, plain = ws.Net.of(module()), ws.learn(task(), batch=6)
    value, found = ws.neighbourhood(plain, ws.Euclidean(), 0.0, kind).value_and_gradient(net, 2)
    assert (value, True) == (plain.value_and_gradient(net, 2)[0], torch.equal(found.flat(), ws_flat(plain, net, 2)))


def ws_flat(goal, net: ws.Net, step: int) -> torch.Tensor:
    return goal.value_and_gradient(net, step)[1].flat()


def test_the_step_uphill_is_on_the_batch_of_the_step():
    net, plain = ws.Net.of(module()), ws.learn(task(), batch=6)
    goal = ws.neighbourhood(plain, ws.Euclidean(), 0.3)
    for step in (0, 1):
        g = ws_flat(plain, net, step)
        there = net.at(net.weights.shaped(net.weights.flat() + 0.3 * g / g.norm()))
        assert torch.allclose(ws_flat(goal, net, step), ws_flat(plain, there, step), atol=1e-12)


def test_at_a_stationary_point_there_is_no_way_up():
    net = ws.Net.of(module())
    for metric in (ws.Euclidean(), ws.Pullback(task(), damping=0.1)):
        goal = ws.neighbourhood(lambda w: 0 * w.weights["0.weight"].sum(), metric, 0.3)
        value, found = goal.value_and_gradient(net, 0)
        assert value == 0 and not found.flat().any()


@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("kind", ["worst", "mean"])
def test_frozen_weights_are_not_moved(ball, kind):
    torch.manual_seed(0)
    half = module()
    half[0].weight.requires_grad_(False)
    net = ws.Net.of(half)
    goal = ws.neighbourhood(task(), BALLS[ball](task()), 0.3, kind)
    away = goal._around(net, ws.gradient(task(), net), 0)[0]
    assert not away["0.weight"].any() and away["2.weight"].any()
    kept = half[0].weight.clone()
    goal.backward(half, lambda: F.cross_entropy(half(data()[0]), data()[1]))
    assert torch.equal(half[0].weight, kept) and half[0].weight.grad is None


def test_a_diverged_goal_ends_a_flow_and_does_not_raise():
    net = ws.Net.of(module())
    goal = ws.neighbourhood(lambda w: w.weights["0.weight"].sum() * float("nan"), ws.Euclidean(), 0.1)
    assert ws.flow(net, goal, ws.Euclidean(), steps=2).why == "nan in 0.weight"


# ------------------------------------------------------------------ in a loop of one's own


@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("kind", ["worst", "mean"])
def test_in_a_training_loop_it_is_the_same_gradient(ball, kind):
    own, (x, y) = module(), data()
    before, net = copy.deepcopy(own.state_dict()), ws.Net.of(own)
    goal = ws.neighbourhood(task(), BALLS[ball](task()), 0.3, kind)
    with torch.no_grad():
        value = goal.backward(own, lambda: F.cross_entropy(own(x), y), step=5)
    right, gradient = goal.value_and_gradient(net, 5)
    assert value == pytest.approx(right, rel=1e-9)
    for name, parameter in own.named_parameters():
        assert torch.allclose(parameter.grad, gradient[name], atol=1e-9)
        assert torch.equal(parameter.detach(), before[name])


@pytest.mark.parametrize("kind", ["worst", "mean"])
def test_running_statistics_are_those_of_one_call(kind):
    own, (x, y) = normed().train(), data()
    calls = []

    def loss():
        torch.manual_seed(len(calls))
        calls.append({n: b.clone() for n, b in own.named_buffers()})
        return F.cross_entropy(own(x), y)

    ws.neighbourhood(task(), ws.Euclidean(), 0.3, kind).backward(own, loss)
    assert len(calls) == 2 and own.training
    assert int(own[1].num_batches_tracked) == 1
    for name, buffer in own.named_buffers():
        assert torch.equal(buffer, calls[1][name])


def test_weights_are_put_back_where_the_loss_fails():
    own, (x, y) = module(), data()
    before, calls = copy.deepcopy(own.state_dict()), []

    def loss():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return F.cross_entropy(own(x), y)

    with pytest.raises(RuntimeError, match="out of memory"):
        ws.neighbourhood(task(), ws.Euclidean(), 0.3).backward(own, loss)
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())


def test_sam_in_a_loop_trains():
    own, (x, y) = module(), data()
    optimiser, goal = torch.optim.SGD(own.parameters(), lr=0.5), ws.neighbourhood(task(), ws.Euclidean(), 0.05)
    values = []
    for step in range(30):
        values.append(goal.backward(own, lambda: F.cross_entropy(own(x), y), step))
        optimiser.step()
    assert values[-1] < values[0] / 2


def test_a_gradient_that_is_not_finite_is_set_for_the_scaler_to_see():
    own = module()
    value = ws.neighbourhood(task(), ws.Euclidean(), 0.1).backward(own, lambda: own(data()[0]).sum() * float("inf"))
    assert value != 0 and not own[0].weight.grad.isfinite().all()


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((ws.Euclidean(), -0.1), "a radius is a number from 0, got -0.1"),
        ((ws.Euclidean(), float("nan")), "a radius is a number from 0, got nan"),
        ((ws.Euclidean(), float("inf")), "a radius is a number from 0"),
        ((ws.Euclidean(), 0.1, "best"), "kind"),
        ((ws.Adam(), 0.1), "Adam's steps are not of length one"),
        ((ws.Pullback(task()), 0.1), "without damping a ball of the Pullback is unbounded"),
        ((3, 0.1), "metric"),
    ],
)
def test_what_is_no_ball_is_refused(arguments, told):
    with pytest.raises(WeightspaceError, match=told):
        ws.neighbourhood(task(), *arguments)


def test_a_loss_that_cannot_be_differentiated_is_refused():
    goal, own = ws.neighbourhood(task(), ws.Euclidean(), 0.1), module()
    for loss in (lambda: 0.5, lambda: torch.zeros(3, requires_grad=True), lambda: own(data()[0]).sum().detach()):
        with pytest.raises(WeightspaceError, match="one differentiable number"):
            goal.backward(own, loss)
    with pytest.raises(WeightspaceError, match="every parameter of the module is frozen"):
        goal.backward(module().requires_grad_(False), lambda: torch.zeros(()))
