"""Steps from few directions against the exact ones, in float64: what they promise is true, and little is missed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from weightspace.metric import preconditioned
from weightspace.metric.preconditioned import Near, Preconditioner
from weightspace.metric.pullback import Pullback
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.task.goal import gradient
from weightspace.task.task import Task

NETS = {
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(36, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4)
    ),
    "cnn": lambda: nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(36, 10), nn.Tanh(), nn.Linear(10, 4)),
    ),
}
LENGTH, BUDGET = 0.5, 0.05


@pytest.fixture(params=NETS)
def made(request) -> tuple[Net, Task, Task]:
    torch.manual_seed(0)
    x = torch.randn(30, 1, 6, 6, dtype=torch.float64)
    old, new = Task(x[:15], torch.arange(15) % 4), Task(x[15:], torch.arange(15) % 3)
    return Net.of(NETS[request.param]()).double(), old, new


def taken(metric: Pullback, net: Net, new: Task, p: Preconditioner | None = None):
    near = metric.near(net)
    modes = metric.near_modes(near, gradient(new, net), p or near.preconditioner(), LENGTH, BUDGET)
    return metric.along(net, modes, LENGTH, BUDGET), modes


@pytest.mark.parametrize("output", ["logits", "fisher"])
def test_a_step_of_few_directions_is_nearly_the_best_one(made, output):
    net, old, new = made
    metric = Pullback(old, output)
    metric.outputs(net)
    step, modes = taken(metric, net, new)
    best = metric.step(net, gradient(new, net), length=LENGTH, budget=BUDGET)
    assert 0.93 * best.progress < step.progress <= best.progress * (1 + 1e-9)
    assert len(modes.values) < 31 and step.drift <= BUDGET * (1 + 1e-9)


def test_what_a_step_predicts_is_true_whatever_the_preconditioner(made):
    net, old, new = made
    metric, g = Pullback(old), gradient(new, net)
    n = len(old) * 4
    matrix = torch.randn(n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for p in (None, lambda r: r, lambda r: matrix @ (matrix.T @ r)):
        step, _ = taken(metric, net, new, p)
        assert math.isclose(step.drift, float(metric.norm(net, step.vector)), rel_tol=1e-6)
        assert math.isclose(step.length, float(step.vector.norm()), rel_tol=1e-6)
        assert math.isclose(step.progress, -float(g.dot(step.vector)), rel_tol=1e-6)


def test_all_directions_are_the_exact_step(made, monkeypatch):
    net, old, new = made
    monkeypatch.setattr(preconditioned, "_GAIN", -1.0)
    metric = Pullback(old, steps=70)
    found, best = taken(metric, net, new)[0], metric.step(net, gradient(new, net), length=LENGTH, budget=BUDGET)
    assert math.isclose(found.progress, best.progress, rel_tol=1e-4)
    assert float((found.vector - best.vector).norm()) < 0.02 * LENGTH


def test_a_correction_falls_with_the_cube_of_the_step_and_more_than_with_a_wrong_sign(made):
    net, old, new = made
    metric = Pullback(old)
    reference, direction = metric.outputs(net), taken(metric, net, new)[0].vector

    def drifts(size: float) -> tuple[float, float]:
        near = metric.near(net)
        there = near.at(net + size * direction)
        back = there.retracted(reference, 1, 0.0, 60, 0.0)
        return there.drift(reference), back.drift(reference)

    (before, after), (_, smaller) = drifts(0.4), drifts(0.2)
    assert after < 0.1 * before and smaller < after / 3
    near = metric.near(net)
    away = net + 0.4 * direction
    there = near.at(away)
    residual = there.turn((there.outputs - reference).flatten())
    d = there.returned(residual, 0.0, 60, 0.0)
    assert near.at(away + net.weights.shaped(d)).drift(reference) > before, "the wrong sign must be seen"


def test_a_correction_ends_where_it_is_enough(made):
    net, old, new = made
    metric = Pullback(old)
    reference, near = metric.outputs(net), metric.near(net)
    there = near.at(net + 0.4 * net.weights.randn(0) / float(net.weights.randn(0).norm()))
    drift = there.drift(reference)
    assert there.retracted(reference, 1, 0.0, 60, 2 * drift) is there
    some, all_of_it = (there.retracted(reference, 1, 0.0, 60, share * drift).drift(reference) for share in (0.5, 0))
    assert all_of_it < some < drift


def test_a_correction_that_leaves_more_than_there_was_is_not_taken(made, monkeypatch):
    net, old, _ = made
    metric = Pullback(old)
    reference, near = metric.outputs(net), metric.near(net)
    there = near.at(net + 0.02 * net.weights.randn(0))
    assert there.retracted(reference, 2, 0.0, 60, 0.0).drift(reference) < there.drift(reference)
    returned = Near.returned
    monkeypatch.setattr(Near, "returned", lambda *args: -3 * returned(*args))
    assert there.retracted(reference, 2, 0.0, 60, 0.0) is there


def test_products_too_large_for_the_dtype_are_refused():
    net, x = Net.of(nn.Linear(4, 3)), torch.randn(6, 4)
    new = Task(x, torch.arange(6) % 3)
    with pytest.raises(WeightspaceError, match="kernel holds NaN or infinity"):
        taken(Pullback(Task(1e30 * x)), net, new)


def test_a_chosen_solver_and_more_outputs_than_are_factorised_are_solved_as_they_were(made):
    """Krylov steps of large memories learn better there than steps nearer to the exact one do."""
    net, old, _ = made
    assert Pullback(old).near(net) is not None
    assert all(Pullback(old, solver=solver).near(net) is None for solver in ("dual", "gltr", "layer"))
    many = Task(next(old.batches())[0].repeat(26, 1, 1, 1))  # 390 images, four outputs each
    assert Pullback(many).near(net) is None


@pytest.mark.parametrize("output", ["logits", "fisher"])
def test_networks_whose_layers_all_have_positions_take_nearly_the_best_step(output):
    torch.manual_seed(0)
    x = torch.randn(24, 2, 5, 5, dtype=torch.float64)
    net = Net.of(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 3, 3), nn.Flatten())).double()
    old, new = Task(x[:12], torch.arange(12) % 3), Task(x[12:], torch.arange(12) % 3)
    metric = Pullback(old, output)
    metric.outputs(net)
    assert not metric.near(net).layered.part().any()
    step, _ = taken(metric, net, new)
    best = metric.step(net, gradient(new, net), length=LENGTH, budget=BUDGET)
    assert 0.93 * best.progress < step.progress <= best.progress * (1 + 1e-9)


def test_masks_and_other_solvers_take_another_way(made):
    net, old, _ = made
    assert Pullback(old).near(net) is not None and Pullback(old, solver="dual").near(net) is None
    assert Pullback(old, mask=net.weights.map(torch.ones_like)).near(net) is None


def test_it_is_drift_as_the_metric_measures_it(made):
    net, old, _ = made
    for output in ("logits", "fisher"):
        metric, other = Pullback(old, output), net + 0.1 * net.weights.randn(0)
        reference = metric.outputs(net)
        near = metric.near(net)
        assert isinstance(near, Near)
        assert math.isclose(near.at(other).drift(reference), metric.drift(other, net), rel_tol=1e-6)
