"""The learning coefficient where it is known: a regular model, a singular one, and integrals done on a grid."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from weightspace.codes.langevin import LearningCoefficient, learning_coefficient
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.task.task import Task

N = 100


class Product(nn.Module):
    """f(x) = a b x: the minimum of f = 0 is a cross, where the model is singular."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * self.b * x


def regular(weights: int) -> tuple[Net, Task]:
    """Linear regression at its minimum."""
    torch.manual_seed(0)
    x = torch.randn(N, weights, dtype=torch.float64)
    y = x.sum(1, keepdim=True) + torch.randn(N, 1, dtype=torch.float64)
    module = nn.Linear(weights, 1, bias=False).double()
    module.weight.data = torch.linalg.lstsq(x, y).solution.T.clone()
    return Net.of(module), Task(x, y)


def singular() -> tuple[Net, Task]:
    torch.manual_seed(1)
    x = torch.randn(N, 1, dtype=torch.float64)
    return Net.of(Product().double()), Task(x, torch.zeros(N, 1, dtype=torch.float64))


def on_a_grid(task: Task, pull: float) -> float:
    """n b E L of f = a b x, by a sum over the plane."""
    x = task.example(N)
    heat = 1 / math.log(N)
    u = torch.linspace(-5, 5, 1201, dtype=torch.float64) / math.sqrt(pull)
    a, b = torch.meshgrid(u, u, indexing="ij")
    energy = heat * float(x.square().sum()) * (a * b).square()
    weight = (-energy - pull / 2 * (a.square() + b.square())).exp()
    return float((weight * energy).sum() / weight.sum())


def test_a_regular_model_has_half_its_weights():
    net, task = regular(4)
    found = learning_coefficient(net, task, chains=16, draws=200, burn=100, pull=1e-3, seed=1)
    assert abs(found.value - 2) < 3 * found.error + 0.1  # the step widens the stiffest direction by up to 5 %
    assert 0 < found.error < 0.3
    assert found.steps == 16 * 300 and found.examples == N
    assert found.nats == pytest.approx(found.value * math.log(N))
    assert isinstance(found, LearningCoefficient) and found.data()["nats"] == found.nats


def test_a_singular_model_has_less_and_what_the_integral_says():
    net, task = singular()
    known = on_a_grid(task, 1.0)
    assert known < 0.5  # lambda = 1/2 is reached from below, like 1 / log n
    found = learning_coefficient(net, task, draws=500, burn=500, pull=1.0, step=4e-3, chains=128, seed=2)
    assert abs(found.value - known) < 3 * found.error + 0.03
    assert found.value < 0.6  # two weights of a regular model would have 1
    assert found.error < 0.1


def test_a_metric_changes_the_pace_and_not_the_value():
    net, task = regular(3)
    heat = 1 / math.log(N)
    stiff = 2 * heat * task.example(N).square().sum(0)
    metric = net.weights.shaped(stiff)
    found = learning_coefficient(net, task, chains=16, draws=150, pull=1e-3, metric=metric, batch=32)
    assert abs(found.value - 1.5) < 3 * found.error + 0.15
    assert found.step == pytest.approx(0.2, rel=0.5)


@pytest.mark.parametrize("pull", [1e-3, 30.0, 1e3])
@pytest.mark.parametrize("metric", [(1.0, 1.0, 1.0), (0.1, 1.0, 30.0)])
def test_the_step_is_a_fifth_over_the_largest_curvature_in_units_of_the_metric(pull, metric):
    net, task = regular(3)
    x, root = task.example(N), torch.tensor(metric, dtype=torch.float64).sqrt()
    curved = 2 * x.T @ x / math.log(N) + pull * torch.eye(3, dtype=torch.float64)
    top = float(torch.linalg.eigvalsh(curved / root / root[:, None])[-1])
    given = net.weights.shaped(root.square())
    found = learning_coefficient(net, task, chains=2, draws=2, burn=0, pull=pull, metric=given)
    assert found.step == pytest.approx(0.2 / top, rel=0.02)


def test_chains_repeat_themselves_and_count_their_steps():
    net, task = regular(2)
    seen = []
    runs = [
        learning_coefficient(net, task, draws=5, burn=2, chains=2, seed=3, progress=lambda *k: seen.append(k))
        for _ in range(2)
    ]
    assert runs[0] == runs[1] != learning_coefficient(net, task, draws=5, burn=2, chains=2, seed=4)
    assert seen[:2] == [(2, 14), (4, 14)] and seen[6] == (14, 14)


def test_mistakes_are_told_in_one_line():
    net, task = regular(2)
    few = Task(torch.zeros(2, 2), torch.zeros(2, 1))
    lost = net.at(net.weights * float("nan"))
    wide = Task(torch.randn(9, 2), torch.full((9, 1), float("inf")))
    for wrong in (
        lambda: learning_coefficient(net, task, chains=1),
        lambda: learning_coefficient(net, task, draws=1),
        lambda: learning_coefficient(net, task, step=-1.0),
        lambda: learning_coefficient(net, task, pull=0.0),
        lambda: learning_coefficient(net, few),
        lambda: learning_coefficient(lost, task),
        lambda: learning_coefficient(net, wide),
        lambda: learning_coefficient(net, task, step=1e6),
        lambda: learning_coefficient(net, task, metric=net.weights.zeros()),
    ):
        with pytest.raises(WeightspaceError) as seen:
            wrong()
        assert "\n" not in str(seen.value)
