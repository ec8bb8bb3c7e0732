"""Solvers that take layers by themselves, and geodesic acceleration: limits, orders, dense oracles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from weightspace.curvature.tangent_kernel import KernelError
from weightspace.flows.goals import drift
from weightspace.flows.pruning import prune
from weightspace.flows.stepper import flow
from weightspace.metric.geodesic import acceleration, kink
from weightspace.metric.per_layer import compensated, moments
from weightspace.metric.pullback import Pullback
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.task.goal import gradient
from weightspace.task.task import Task


def wide(kind: type[nn.Module] = nn.Tanh, seed: int = 0) -> Net:
    """More columns than examples in every layer: null spaces are there."""
    torch.manual_seed(seed)
    return Net.of(nn.Sequential(nn.Linear(20, 24), kind(), nn.Linear(24, 24), kind(), nn.Linear(24, 3)).double())


def cnn() -> Net:
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 40, 3), nn.ReLU(), nn.Conv2d(40, 8, 2), nn.BatchNorm2d(8), nn.ReLU()
    return Net.of(nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 3)).double())


def old(n: int = 6, shape: tuple[int, ...] = (20,), seed: int = 0) -> Task:
    g = torch.Generator().manual_seed(seed)
    return Task(torch.randn(n, *shape, generator=g, dtype=torch.float64), torch.arange(n) % 3)


# layers by themselves


@pytest.mark.parametrize("length", [0.1, 3.0, 100.0])
@pytest.mark.parametrize("case", ["mlp", "cnn"])
def test_in_the_layers_null_space_no_length_moves_the_outputs(case, length):
    net, kept = (wide(), old()) if case == "mlp" else (cnn(), old(2, (2, 4, 4)))
    new = old(8, (20,) if case == "mlp" else (2, 4, 4), seed=1)
    metric = Pullback(kept, solver="layer")
    step = metric.step(net, gradient(new, net), length=length, budget=1e-9 * max(1.0, length))
    assert step.length == pytest.approx(length) and step.drift <= 1.001e-9 * max(1.0, length)
    assert step.guarantee.startswith("any length")
    assert metric.drift(net + step.vector, net) < 1e-7 * length
    first_order = Pullback(kept).step(net, gradient(new, net), length=length, budget=1e-9)
    if length == 3.0 and case == "mlp":
        assert metric.drift(net + first_order.vector, net) > 0.1, (
            "the Jacobian's null space is a promise of first order"
        )


def test_the_layers_null_space_lies_in_that_of_the_jacobian():
    net, kept, new = wide(), old(), old(8, seed=1)
    inside, whole = (Pullback(kept, solver=s).capacity(net, new) for s in ("layer", "dual"))
    assert 0.1 < inside < whole < 1
    v = Pullback(kept, solver="layer").step(net, gradient(new, net), length=1.0, budget=1e-9).vector
    assert float(Pullback(kept).norm(net, v)) < 1e-7


def test_a_step_between_is_the_dense_minimiser_of_each_layer():
    net, kept, new = wide(), old(), old(8, seed=1)
    g, lam = gradient(new, net), 0.3
    modes = Pullback(kept, solver="layer").modes(net, g)
    v = net.weights.shaped(-modes.assemble(modes.shrunk(lam)))
    for layer, c in moments(net, kept):
        both = torch.cat([g[layer.weight], g[layer.bias][:, None]], 1)
        expected = -both @ torch.linalg.inv(c / lam + torch.eye(len(c)))
        found = torch.cat([v[layer.weight], v[layer.bias][:, None]], 1)
        assert torch.allclose(found, expected, atol=1e-9)
    assert modes.length(lam) == pytest.approx(float(v.norm()))
    assert modes.progress(lam) == pytest.approx(-float(g.dot(v)))


def test_one_linear_map_and_one_example_are_exactly_kronecker():
    torch.manual_seed(0)
    net, kept, new = Net.of(nn.Linear(5, 3).double()), old(1, (5,)), old(4, (5,), 1)
    g = gradient(new, net)
    a, b = (Pullback(kept, solver=s).step(net, g, length=0.5, budget=0.05).vector for s in ("kronecker", "dual"))
    assert float((a - b).norm()) < 1e-6
    net, kept = wide(), old(2)
    metric = Pullback(kept, solver="kronecker")
    modes = metric.modes(net, gradient(new := old(8, seed=1), net))
    assert modes.length(float("inf")) == pytest.approx(float(gradient(new, net).norm()))
    step = metric.step(net, gradient(new, net), length=0.1, budget=0.01)
    assert "Kronecker" in step.guarantee
    assert float(Pullback(kept).norm(net, step.vector)) < 0.3 * float(
        Pullback(kept).norm(net, -0.1 / float(gradient(new, net).norm()) * gradient(new, net))
    )


def test_other_weights_stay_and_it_is_said():
    net, kept = cnn(), old(2, (2, 4, 4))
    step = Pullback(kept, solver="layer").step(net, net.weights.randn(0), length=1.0)
    assert float(step.vector["3.weight"].abs().max()) == 0 and "2 other tensors stay" in step.guarantee


def test_a_flow_in_the_layers_null_space_keeps_everything():
    net, kept, new = wide(), old(), old(8, seed=1)
    path = flow(net, new, Pullback(kept, solver="layer"), steps=15, size=0.5, budget=1e-6, corrections=0)
    assert path.why == "steps" and float((path[-1] - net).norm()) > 2
    assert Pullback(kept).drift(path[-1], net) <= 1e-6 and float(new(path[-1])) < 0.8 * float(new(net))


def test_solvers_that_do_not_fit_are_refused():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(20, 3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.w) @ self.w.T @ self.w

    net = Net.of(Bare())
    with pytest.raises(KernelError, match="gltr"):
        Pullback(old(), solver="layer").step(net, net.weights.randn(0), length=1.0)
    mlp = wide()
    mask = mlp.weights.map(torch.ones_like)
    with pytest.raises(WeightspaceError, match="mask"):
        Pullback(old(), solver="layer", mask=mask).step(mlp, mlp.weights.randn(0), length=1.0)


def test_what_goes_is_passed_on_where_another_input_says_the_same():
    torch.manual_seed(0)
    net, half = Net.of(nn.Linear(8, 3).double()), torch.randn(40, 4, dtype=torch.float64)
    task = Task(torch.cat([half, half], 1), torch.zeros(40).long())
    mask = net.weights.map(torch.ones_like)
    mask["weight"][:, 0:2] = 0
    end = compensated(net, task, mask)
    cut = net.at(net.weights.shaped(net.weights.flat() * mask.flat()))
    metric = Pullback(task)
    assert float(end.weights["weight"][:, :2].abs().max()) == 0
    assert metric.drift(end, net) < 0.01 * metric.drift(cut, net)


def test_a_row_is_the_least_squares_solution_with_its_zeros():
    torch.manual_seed(0)
    net, task = Net.of(nn.Linear(6, 2).double()), old(50, (6,))
    mask = net.weights.map(torch.ones_like)
    mask["weight"][0, :3] = 0  # the first columns: a column passes on to all after it, and that is exact
    end, x = compensated(net, task, mask), torch.cat([task.example(50)[:, 3:], torch.ones(50, 1).double()], 1)
    best = torch.linalg.lstsq(x, net(task.example(50))[:, :1]).solution[:, 0]
    found = torch.cat([end.weights["weight"][0, 3:], end.weights["bias"][:1]])
    assert torch.allclose(found, best, atol=1e-3)
    assert torch.allclose(end.weights["weight"][1], net.weights["weight"][1], atol=1e-9)


def test_pruning_layer_by_layer_repairs_something():
    net, kept = wide(), old(200)
    metric = Pullback(kept)
    path = flow(net, prune(0.5, repair="layer"), metric, steps=1)
    cut = net.at(net.weights.shaped(net.weights.flat() * path.mask.flat()))
    assert metric.drift(path[-1], net) < 0.9 * metric.drift(cut, net)
    whole = flow(net, prune(0.5), metric, steps=1)
    assert metric.drift(whole[-1], net) < metric.drift(path[-1], net), "outputs matter, not what layers say"


def test_the_cost_is_known_before():
    net, kept = wide(), old()
    found = {s: Pullback(kept, solver=s).cost(net) for s in ("auto", "dual", "gltr", "layer", "kronecker")}
    assert found["auto"] == found["dual"] and found["dual"].rows == 18 and found["dual"].passes == 4
    assert found["gltr"].bytes == 8 * net.weights.numel * 19 and found["layer"].passes == 1
    assert Pullback(old(600)).cost(net).solver == "gltr"


# geodesics


def test_acceleration_raises_the_order_of_the_drift_of_a_smooth_network():
    net, kept = wide(), old()
    metric = Pullback(kept, damping=0.0)
    v = metric.step(net, net.weights.randn(1), length=1.0, budget=1e-12).vector
    plain, bent = [], []
    for t in (0.02, 0.04, 0.08):
        step = t * v
        plain.append(metric.drift(net + step, net))
        bent.append(metric.drift(net + step + acceleration(metric, net, step, inner=60), net))
    for k in (0, 1):
        assert 3.6 < plain[k + 1] / plain[k] < 4.4, "second order before"
        assert 7.0 < bent[k + 1] / bent[k] < 9.0, "third order after"
    assert bent[0] < 0.05 * plain[0]


@pytest.mark.parametrize("output", ["fisher", "hellinger"])
def test_acceleration_knows_the_output_metric(output):
    net, kept = wide(), old()
    metric = Pullback(kept, output)
    step = 0.05 * Pullback(kept).step(net, net.weights.randn(1), length=1.0, budget=1e-12).vector
    bent = step + acceleration(metric, net, step, inner=60)
    assert metric.drift(net + bent, net) < 0.1 * metric.drift(net + step, net)


def test_kinks_are_named_and_refused_unless_forced():
    net, kept = wide(nn.ReLU), old()
    metric, v = Pullback(kept), net.weights.randn(0)
    assert kink(net, metric) == "relu" and kink(wide(), metric) is None
    with pytest.raises(WeightspaceError, match="relu has kinks"):
        acceleration(metric, net, v)
    assert acceleration(metric, net, v, force=True).norm() >= 0
    with pytest.raises(WeightspaceError, match="relu has kinks"):
        flow(net, old(8, seed=1), metric, accelerate=True)
    assert len(flow(net, old(8, seed=1), metric, steps=2, size=0.05, accelerate="force").log) == 2


BENT = [
    nn.ELU(0.5), nn.ELU(1.0), nn.ELU(2.0), nn.ELU(-1.0), nn.CELU(0.5), nn.SELU(), nn.GELU(), nn.SiLU(), nn.Mish(),
    nn.LeakyReLU(0.1), nn.LeakyReLU(3.0), nn.ReLU6(), nn.Softshrink(0.0), nn.Hardshrink(0.0), nn.PReLU(), nn.Tanh(),
]  # fmt: skip


@pytest.mark.parametrize("function", BENT, ids=repr)
def test_a_slope_that_jumps_at_zero_is_a_kink(function):
    here = torch.tensor([-1e-9, 1e-9], dtype=torch.float64, requires_grad=True)
    left, right = torch.autograd.grad(function.double()(here).sum(), here)[0].tolist()
    torch.manual_seed(0)
    net = Net.of(nn.Sequential(nn.Linear(20, 4), function, nn.Linear(4, 3)).double())
    if abs(left - right) > 1e-6:
        assert kink(net, Pullback(old()))
    elif isinstance(function, nn.Tanh | nn.GELU | nn.SiLU | nn.Mish) or getattr(function, "alpha", 0) == 1:
        assert kink(net, Pullback(old())) is None


def test_a_flow_with_acceleration_drifts_less():
    net, kept = wide(), old()
    ends = [
        flow(net, drift(3), Pullback(kept), steps=8, size=0.5, budget=0.05, corrections=0, accelerate=a)
        for a in (False, True)
    ]
    assert all(float((end[-1] - net).norm()) > 3.9 for end in ends)
    assert ends[1].log[-1].drift < 0.6 * ends[0].log[-1].drift
