"""The pullback metric against the dense matrix: solvers, limits, monotony, what a step and a correction promise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from dense import NETS, case, explicit
from torch import Tensor, nn

from weightspace.curvature.tangent_kernel import KernelError, kernel
from weightspace.flows.pruning import prune
from weightspace.flows.stepper import flow
from weightspace.graph.on_data import feed
from weightspace.metric.pullback import Pullback
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.symmetry.symmetry import Symmetry
from weightspace.task.goal import gradient
from weightspace.task.task import Task

OUTPUTS = ("logits", "fisher", "hellinger")


@pytest.fixture(params=NETS)
def name(request) -> str:
    return request.param


def goal(name: str) -> Task:
    _, task = case(name, 6)
    return Task(task.example(6).flip(0) * 1.3, torch.arange(6) % 2)


def dense_factor(net: Net, task: Task, output: str) -> Tensor:
    """A = B J / sqrt(N), written out."""
    j = explicit(net, task).view(len(task), -1, net.weights.numel)
    if output != "logits":
        p = task.outputs(net).softmax(-1)
        fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        values, vectors = torch.linalg.eigh(fisher)
        root = vectors @ torch.diag_embed(values.clamp(min=0).sqrt()) @ vectors.mT
        j = root @ j / (math.sqrt(8) if output == "hellinger" else 1)
    return j.flatten(0, 1) / math.sqrt(len(task))


# the kernel


def test_the_kernel_is_that_of_the_explicit_jacobian(name):
    net, task = case(name)
    j = explicit(net, task)
    found = kernel(net, task)
    assert torch.allclose(found, j @ j.T, atol=1e-10 * float(found.abs().max()))
    assert not torch.allclose(found, j.flip(1)[:, 1:] @ j.flip(1)[:, 1:].T, atol=1e-3), "a lost column must be seen"


def test_layers_that_mix_examples_are_left_out():
    class Over(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).transpose(0, 1)).transpose(0, 1)

    net = Net.of(Over()).double()
    fed, outputs = feed(net, Task(torch.randn(5, 5, 4).double()))
    assert outputs == 10 and len(fed) == 2  # examples stand in the second dimension of b, and are found there


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_map_whose_weight_is_a_buffer_is_held(bias):
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randn(6, 4))
            self.bias = nn.Parameter(torch.randn(6)) if bias else None
            self.last = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(nn.functional.linear(x, self.weight, self.bias)))

    torch.manual_seed(0)
    net = Net.of(Held()).double()
    task = Task(torch.randn(5, 4).double(), torch.arange(5) % 2)
    j = explicit(net, task)
    torch.testing.assert_close(kernel(net, task), j @ j.T)
    for solver in ("layer", "kronecker"):
        modes = Pullback(task, solver=solver).modes(net, gradient(task, net))
        assert modes.assemble(torch.ones_like(modes.values)).numel() == net.weights.numel
    path = flow(net, prune(0.4, repair="layer"), Pullback(task), steps=1)
    assert float((path[-1].weights["last.weight"] == 0).double().mean()) == pytest.approx(0.4, abs=0.05)


def test_a_kernel_that_would_not_fit_is_refused(monkeypatch):
    from weightspace.curvature import tangent_kernel

    monkeypatch.setattr(tangent_kernel, "_ROOM", 10)
    net, task = case("norm")
    with pytest.raises(KernelError, match="gltr"):
        kernel(net, task)


# the metric


@pytest.mark.parametrize("output", OUTPUTS)
def test_it_is_the_dense_metric(name, output):
    net, task = case(name)
    metric, a = Pullback(task, output), dense_factor(net, task, output)
    v, u = net.weights.randn(0), net.weights.randn(1)
    assert float(metric.norm(net, v)) == pytest.approx(float((a @ v.flat()).norm()), rel=1e-8)
    assert float(metric.inner(net, v, u)) == pytest.approx(float((a @ v.flat()) @ (a @ u.flat())), rel=1e-8)
    assert torch.allclose(metric.operator(net) @ v.flat(), a.T @ (a @ v.flat()), atol=1e-10)
    values = torch.linalg.eigvalsh(a @ a.T).flip(0)
    found = metric.spectrum(net)
    assert torch.allclose(found, values[: len(found)], atol=1e-9 * float(values[0]))
    assert len(found) >= int((values > 1e-6 * values[0]).sum())


def test_it_does_not_see_the_symmetry(name):
    net, task = case(name)
    group = Symmetry.of(net, task.example(2))
    kinds = ("permutation", "sign") if net.state else ("permutation", "scale", "sign")
    g, v = group.sample(seed=1, kinds=kinds), net.weights.randn(0)
    metric = Pullback(task)
    assert float(metric.norm(g(net), g(v))) == pytest.approx(float(metric.norm(net, v)), rel=1e-8)
    if group.axes:
        assert float(metric.norm(net, g(v))) != pytest.approx(float(metric.norm(net, v)), rel=1e-3)


@pytest.mark.parametrize("output", OUTPUTS)
def test_drift_is_what_the_norm_predicts(name, output):
    net, task = case(name)
    metric, v = Pullback(task, output), net.weights.randn(2)
    assert metric.drift(net + 0.1 * v, net) == metric.drift(net + 0.1 * v, metric.outputs(net))
    for size, order in ((1e-3, 1e-2), (1e-4, 1e-3)):
        measured, predicted = metric.drift(net + size * v, net), size * float(metric.norm(net, v))
        assert measured == pytest.approx(predicted, rel=30 * order)
    assert metric.drift(net, net) == 0


# steps


@pytest.mark.parametrize("output", OUTPUTS)
def test_solvers_agree_with_the_dense_solution(name, output):
    net, task = case(name)
    g = gradient(goal(name), net)
    a = dense_factor(net, task, output)
    shift = 0.1 * float(torch.linalg.matrix_norm(a, 2)) ** 2
    exact = -torch.linalg.solve(a.T @ a + shift * torch.eye(a.shape[1]), g.flat())
    exact = exact / exact.norm()
    for solver in ("dual", "gltr"):
        step = Pullback(task, output, solver=solver, damping=shift, steps=40).step(net, g, length=1.0)
        assert torch.allclose(step.vector.flat(), exact, atol=1e-5)
        assert step.length == pytest.approx(1.0) and float(step.vector.norm()) == pytest.approx(1.0, rel=1e-6)
        assert step.drift == pytest.approx(float((a @ exact).norm()), rel=1e-4)
        assert step.progress == pytest.approx(-float(g.flat() @ exact), rel=1e-4)


def test_a_gradient_that_lies_in_the_rows_makes_a_step_of_the_length_it_says():
    torch.manual_seed(0)
    net = Net.of(nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)))
    kept = Task(torch.randn(20, 6), torch.arange(20) % 3)
    found = {}
    for solver in ("dual", "gltr"):
        metric = Pullback(kept, solver=solver)
        for budget in (0.01, 0.1):
            step = metric.step(net, gradient(kept, net), length=0.1, budget=budget)
            assert float(step.vector.norm()) == pytest.approx(step.length, rel=1e-3)
            assert float(metric.norm(net, step.vector)) == pytest.approx(step.drift, rel=2e-3)
            assert metric.drift(net + step.vector, net) < 2 * budget
        found[solver] = step
    assert found["dual"].progress == pytest.approx(found["gltr"].progress, rel=0.05)


@pytest.mark.parametrize("output", ["fisher", "hellinger"])
@pytest.mark.parametrize("solver", ["dual", "gltr", "kronecker"])
def test_classes_of_a_sequence_are_those_of_its_positions(output, solver):
    torch.manual_seed(0)
    net = Net.of(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double())
    task = Task(torch.randn(4, 2, 4, dtype=torch.float64))
    j = explicit(net, task).view(8, 3, -1)
    p = net(task.example(4)).reshape(8, 3).softmax(-1)
    fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    g = torch.einsum("nai,nab,nbj->ij", j, fisher, j) / 4 / (8 if output == "hellinger" else 1)
    v = net.weights.randn(0)
    metric = Pullback(task, output, solver)
    assert float(metric.norm(net, v)) ** 2 == pytest.approx(float(v.flat() @ g @ v.flat()), rel=1e-9)
    if solver != "kronecker":
        assert float(metric.spectrum(net, 1)[0]) == pytest.approx(float(torch.linalg.eigvalsh(g)[-1]), rel=1e-6)
    else:
        ratio = metric.modes(net, v).values.max() / Pullback(task, "logits", solver).modes(net, v).values.max()
        assert float(ratio) < 0.5, "the output metric must be seen"


def test_a_factorisation_is_not_kept_beyond_its_network():
    torch.manual_seed(0)
    bn = Net.of(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)))
    one, other = (Task(torch.randn(10, 4) * s, torch.arange(10) % 3) for s in (1, 3))
    metric = Pullback(one, solver="dual")
    top = lambda m, net: float(m.spectrum(net, 1)[0])  # noqa: E731
    first = top(metric, bn)
    moved = Net(bn.architecture, bn.weights, bn.state.map(lambda b: b * 2 + 1))
    assert top(metric, moved) == top(Pullback(one, solver="dual"), moved) != first
    assert top(replace(metric, task=other), bn) == top(Pullback(other, solver="dual"), bn) != first
    assert top(replace(metric, output="fisher"), bn) == top(Pullback(one, "fisher", "dual"), bn)
    with torch.no_grad():
        bn.live()[0].weight.mul_(3.0)
    assert top(metric, bn) == top(Pullback(one, solver="dual"), bn) != first


def test_one_number_an_example_is_an_output():
    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.f(x).squeeze(-1)

    net, task = Net.of(Scalar().double()), Task(torch.randn(5, 4, dtype=torch.float64), torch.randn(5).double())
    for solver in ("dual", "gltr"):
        metric = Pullback(task, solver=solver)
        assert metric.outputs(net).shape == (5, 1)
        assert metric.step(net, net.weights.randn(0), length=0.1, budget=0.01).drift <= 0.0101


def test_the_limits_are_the_gradient_and_the_null_space(name):
    net, task = case(name, 2)
    g = gradient(goal(name), net)
    metric = Pullback(task)
    plain = metric.step(net, g, length=0.5)
    assert torch.allclose(plain.vector.flat(), -0.5 * g.flat() / g.flat().norm(), atol=1e-8)
    modes = metric.modes(net, g)
    free = -modes.assemble(modes.shrunk(0.0))
    a = dense_factor(net, task, "logits")
    projected = g.flat() - torch.linalg.pinv(a) @ (a @ g.flat())
    assert torch.allclose(free, -projected, atol=1e-6)
    assert float((a @ free).norm()) < 1e-6 * float((a @ g.flat()).norm())
    assert metric.capacity(net, goal(name)) == pytest.approx(float(projected.norm() / g.norm()), rel=1e-4, abs=1e-7)


def test_the_capacity_does_not_depend_on_the_solver(name):
    net, task = case(name, 2)
    found = [Pullback(task, solver=solver).capacity(net, goal(name)) for solver in ("dual", "gltr")]
    assert found[1] == pytest.approx(found[0], abs=1e-3)


def test_drift_rises_with_the_shift_and_so_does_progress(name):
    net, task = case(name)
    curve = Pullback(task).tradeoff(net, goal(name), length=0.3)
    assert (np.diff(curve.drift) >= -1e-9 * curve.drift[-1]).all()
    assert (np.diff(curve.progress) >= -1e-9 * curve.progress[-1]).all()
    g = gradient(goal(name), net)
    assert curve.progress[-1] == pytest.approx(0.3 * float(g.norm()))


@pytest.mark.parametrize("solver", ["dual", "gltr"])
def test_the_budget_is_kept_and_used(name, solver):
    net, task = case(name)
    g = gradient(goal(name), net)
    metric = Pullback(task, solver=solver, steps=40)
    whole = metric.step(net, g, length=0.2)
    for share in (0.5, 0.1):
        step = metric.step(net, g, length=0.2, budget=share * whole.drift)
        assert step.drift <= share * whole.drift * (1 + 1e-9)
        assert float(metric.norm(net, step.vector)) == pytest.approx(step.drift, rel=1e-4)
        assert step.length < 0.2 * (1 - 1e-6) or step.drift > 0.9 * share * whole.drift
        assert step.progress < whole.progress


def test_equation_4_depends_on_beta_over_the_root_of_eps_alone(name):
    net, task = case(name)
    g = gradient(goal(name), net)
    metric = Pullback(task)
    one, two = metric.step(net, g, beta=2.0, eps=0.04), metric.step(net, g, beta=6.0, eps=0.36)
    assert one.length == pytest.approx(0.2) and two.length == pytest.approx(0.6)
    assert torch.allclose(3 * one.vector.flat(), two.vector.flat(), atol=1e-6)
    a = dense_factor(net, task, "logits")

    def objective(v: Tensor) -> float:
        return float((a @ v).square().sum() + 2.0 * (v @ g.flat()))

    least = objective(one.vector.flat())
    for seed in range(20):
        other = one.vector.flat() + 0.05 * net.weights.randn(seed).flat()
        assert objective(0.2 * other / other.norm()) >= least - 1e-9


def test_steepest_has_length_one_in_the_damped_metric(name):
    net, task = case(name)
    g = gradient(goal(name), net)
    v = Pullback(task, damping=0.3).steepest(net, g)
    a = dense_factor(net, task, "logits")
    assert float((a @ v.flat()).square().sum() + 0.3 * v.flat().square().sum()) == pytest.approx(1.0, rel=1e-6)
    assert float(v.dot(g)) < 0


# corrections


def test_a_correction_raises_the_order_of_the_drift():
    net, task = case("mlp", 3)
    metric, g = Pullback(task), gradient(goal("mlp"), net)
    free = metric.modes(net, g)
    direction = net.weights.shaped(-free.assemble(free.shrunk(0.0)))
    direction = direction / float(direction.norm())
    sizes = (0.2, 0.1, 0.05)
    before = [metric.drift(net + s * direction, net) for s in sizes]
    after = [metric.drift(metric.retract(net + s * direction, net), net) for s in sizes]
    slope = lambda d: math.log2(d[0] / d[-1]) / 2  # noqa: E731
    assert 1.7 < slope(before) < 2.5
    assert slope(after) > 2.7
    assert after[0] < before[0]


def test_a_correction_leaves_masked_weights_alone():
    net, task = case("mlp", 3)
    mask = net.weights.map(lambda w: (torch.arange(len(w)) % 3 > 0).to(w))
    moved = net + 0.1 * net.weights.randn(0)
    back = Pullback(task, mask=mask).retract(moved, net, steps=3)
    change = (back - moved).flat()
    assert float(change[mask.flat() == 0].abs().max()) == 0
    assert Pullback(task).drift(back, net) < 0.1 * Pullback(task).drift(moved, net)


# bad input


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda t, n, g: Pullback(t, "probs"), "'logits'"),
        (lambda t, n, g: Pullback(t, solver="newton"), "'auto'"),
        (lambda t, n, g: Pullback(t, damping=-1.0), "damping"),
        (lambda t, n, g: Pullback(t).step(n, g), "give length"),
        (lambda t, n, g: Pullback(t, lambda raw: raw.sum()).outputs(n), "one number for all examples"),
        (lambda t, n, g: Pullback(t).step(n, g, length=0.0), "length must be positive"),
        (lambda t, n, g: Pullback(t).step(n, g, length=1.0, budget=0.0), "budget must be positive"),
        (lambda t, n, g: Pullback(t).step(n, g, beta=1.0), "give length"),
        (lambda t, n, g: Pullback(t).step(n, 0.0 * g, length=1.0), "zero"),
        (lambda t, n, g: Pullback(t).step(n, math.nan * g, length=1.0), "NaN"),
        (lambda t, n, g: Pullback(t).steepest(n, g), "without damping"),
        (lambda t, n, g: Pullback(Task(t.example(3)[:, :2])).norm(n, g), ""),
        (lambda t, n, g: Pullback(Task(math.nan * t.example(3))).outputs(n), "NaN"),
    ],
)
def test_bad_use_is_refused_in_one_line(act, words):
    net, task = case("mlp")
    g = gradient(goal("mlp"), net)
    with pytest.raises(
        (WeightspaceError, WeightspaceError, RuntimeError, TypeError)
    ) as error:  # beartype checks first here
        act(task, net, g)
    assert words in str(error.value)


@pytest.mark.parametrize("output", ["logits", "fisher"])
@pytest.mark.parametrize("solver", ["dual", "gltr", "layer"])
def test_padding_counts_nowhere(solver, output):
    """Positions labelled -100 may be added to a text, and what moving does to its outputs is what it was."""
    torch.manual_seed(0)
    net = Net.of(nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double())
    v, x, y = net.weights.randn(0), torch.randint(1, 11, (6, 4)), torch.randint(0, 5, (6, 4))
    y[:3, 3] = -100
    padded = torch.nn.functional.pad(x, (0, 3)), torch.nn.functional.pad(y, (0, 3), value=-100)

    def measured(batch, x, y):
        metric = Pullback(Task(x, y, batch=batch), output=output, solver=solver)
        return [float(metric.norm(net, v)), metric.drift(net + 0.1 * v, net), *metric.spectrum(net, 2).tolist()]

    right = measured(6, x, y)
    assert measured(6, *padded) == pytest.approx(right, rel=1e-9)
    assert measured(4, *padded) == pytest.approx(right, rel=1e-9)
    assert measured(6, padded[0], padded[1].clamp(min=0)) != pytest.approx(right, rel=1e-2)
