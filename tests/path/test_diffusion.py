"""Actions, rates and paths of least action, against one dimension done exactly, Langevin runs and known saddles."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from weightspace.curvature.curvature import hessian
from weightspace.linear.operator import Operator
from weightspace.net.errors import ArchitectureMismatch, WeightspaceError
from weightspace.net.net import Net
from weightspace.path.barrier import kramers_rate, minimum_action_path
from weightspace.path.diffusion import (
    Action,
    action,
    action_cost,
    laplacian,
    path_integral,
    sgd_temperature,
    spectral_gap,
)
from weightspace.path.path import Path, line
from weightspace.task.goal import gradient
from weightspace.task.task import Task

HEAT, TIME = 0.25, 2.0


def double_well(w):
    return (w.square() - 1).square() + 0.2 * w


class Point(nn.Module):
    """Weights without a function."""

    def __init__(self, place) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(place, dtype=torch.float64))

    def forward(self, x):
        return x * self.w.sum()


def point(*place: float) -> Net:
    return Net.of(Point(place))


def mlp(seed: int = 0, width: int = 6) -> Net:
    torch.manual_seed(seed)
    return Net.of(nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3)).double())


def task(n: int = 30, **options) -> Task:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return Task(x, torch.randint(0, 3, (n,), generator=generator), **options)


def full_hessian(net: Net, goal) -> torch.Tensor:
    flat = net.weights.flat().clone()
    return torch.autograd.functional.hessian(lambda w: goal(net.at(net.weights.shaped(w))), flat)


# ------------------------------------------------------------------ one dimension


def test_the_path_integral_is_the_law_of_the_diffusion():
    """A double well at D = .25: how many are in the other well at T = 2, by 100,000 runs."""
    grid = torch.linspace(-2.6, 2.6, 521)
    density = path_integral(double_well, -1.0, HEAT, TIME, grid)
    spacing = float(grid[1] - grid[0])
    assert float(density.sum()) * spacing == pytest.approx(1, abs=2e-3)
    share = float(density[grid > 0.5].sum()) * spacing
    generator, n, step = torch.Generator().manual_seed(0), 100_000, 0.005
    w = torch.full((n,), -1.0, dtype=torch.float64)
    for _ in range(round(TIME / step)):
        slope = 4 * w * (w.square() - 1) + 0.2
        w += -step * slope + math.sqrt(2 * HEAT * step) * torch.randn(n, generator=generator, dtype=torch.float64)
    seen = float((w > 0.5).double().mean())
    assert abs(share - seen) < 3 * math.sqrt(share / n)
    wrong = path_integral(double_well, -1.0, 1.2 * HEAT, TIME, grid)
    assert abs(float(wrong[grid > 0.5].sum()) * spacing - seen) > 3 * math.sqrt(share / n), "another D is seen"


def test_the_rate_is_nearly_the_gap():
    """Forth and back by Eyring-Kramers, against the gap of the transfer matrix, at a barrier of 3 to 5 D."""
    roots = torch.from_numpy(__import__("numpy").roots([4.0, 0, -4, 0.2]).real.copy()).sort().values
    bend, height = 12 * roots.square() - 4, double_well(roots)
    rates = [kramers_rate(float(height[1] - height[k]), HEAT, bend[k].view(1, 1), bend[1].view(1, 1)) for k in (0, 2)]
    both = sum(rate.value for rate in rates)
    gap = spectral_gap(double_well, HEAT, torch.linspace(-2.6, 2.6, 521))
    assert gap == pytest.approx(0.0373, abs=2e-4)
    assert both == pytest.approx(0.0415, abs=2e-4)
    given = kramers_rate(
        float(height[1] - height[0]), HEAT, float(bend[0].log()), float(-bend[1]) and math.log(-float(bend[1])),
        unstable=float(bend[1]),
    )  # fmt: skip
    assert given.log == pytest.approx(rates[0].log)
    assert rates[0].log == rates[0].prefactor + rates[0].exponent and rates[0].data()["unstable"] < 0


def test_the_discrete_action_is_that_of_the_path_integral():
    """The weight of a sampled path, Girsanov's exponent and this sum: the same up to the order of the step."""
    generator, n, step = torch.Generator().manual_seed(0), 250, 4e-3
    kicks = math.sqrt(2 * HEAT * step) * torch.randn(n, generator=generator, dtype=torch.float64)
    places = [-1.0]
    for kick in kicks.tolist():
        w = places[-1]
        places.append(w - step * (4 * w * (w * w - 1) + 0.2) + kick)
    found = action([point(p) for p in places], lambda net: double_well(net.weights["w"]).sum(), HEAT, n * step)
    exact = float(kicks.square().sum()) / (4 * HEAT * step)
    assert found.total == pytest.approx(exact, abs=1)
    assert found.error == 0 and found.entropic < -3, "without the Laplacian it would be seen"


# ------------------------------------------------------------------ the action


def test_a_quadratic_has_a_formula():
    """L = w A w / 2 along the exact descent: kinetic and force cancel the static part, and lap L = tr A."""
    a = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    goal = lambda net: net.weights["w"] @ a @ net.weights["w"] / 2  # noqa: E731
    times = torch.linspace(0, 1, 101, dtype=torch.float64)
    places = torch.stack([(-times).exp(), 2 * (-3 * times).exp()], 1)
    found = action([point(*p) for p in places.tolist()], goal, 0.1, times.tolist())
    assert found.entropic == pytest.approx(-0.5 * 4.0, rel=1e-9)
    exact = (places[-1] @ a @ places[-1] - places[0] @ a @ places[0]) / 2 / 0.2
    assert found.static == pytest.approx(float(exact), rel=1e-9)
    assert found.kinetic == pytest.approx(-found.static / 2, rel=3e-3)
    assert found.force == pytest.approx(-found.static / 2, rel=3e-3)
    assert found.total == pytest.approx(found.entropic, rel=2e-2)
    back = action([point(*p) for p in reversed(places.tolist())], goal, 0.1, 1.0)
    assert back.total - found.total == pytest.approx(2 * back.static, rel=1e-3), "uphill costs 2 dL / 2D more"


@pytest.mark.parametrize("options", [{}, {"batch": 7}, {"aggregate": "sum", "batch": 7}])
def test_the_laplacian_is_the_trace_of_the_hessian(options):
    net, goal = mlp(), task(**options)
    exact = float(full_hessian(net, goal).trace())
    size = net.weights.numel
    assert laplacian(net, goal, probes=size).value == pytest.approx(exact, rel=1e-9)
    found = laplacian(net, goal, probes=40)
    assert abs(found.value - exact) < 4 * found.error and 0 < found.error < abs(exact)
    free = laplacian(net, lambda other: goal(other), probes=40)
    assert free.value == pytest.approx(found.value, rel=1e-9) and free.products == 40
    assert laplacian(net, lambda other: other.weights["0.weight"].sum(), probes=size).value == 0


def test_the_action_of_a_path_is_that_of_its_points():
    net, goal = mlp(), task()
    far = line(net, net + 0.3 * net.weights.randn(0))
    path = Path.through([far(t) for t in (0.0, 0.2, 1.0)], [0, 1, 5])
    found = action(path, goal, 0.01, 5.0, probes=200)
    assert isinstance(found, Action) and found.times == pytest.approx([0, 1, 5])
    again = action([*path], goal, 0.01, [0.0, 1.0, 5.0], probes=200)
    assert again.dynamic == pytest.approx(found.dynamic)
    lengths = [float((far(0.2) - far(0.0)).norm()), float((far(1.0) - far(0.2)).norm())]
    assert found.kinetic == pytest.approx((lengths[0] ** 2 + lengths[1] ** 2 / 4) / 0.04)
    slopes = [float(gradient(goal, far(t)).norm()) ** 2 for t in (0.0, 0.2, 1.0)]
    assert found.force == pytest.approx((0.5 * slopes[0] + 2.5 * slopes[1] + 2 * slopes[2]) / 0.04)
    assert found.data()["total"] == found.static + found.dynamic == found.total
    rough = [action(path, goal, 0.01, 5.0, probes=4, seed=10 * k) for k in range(12)]
    spread = torch.tensor([other.entropic for other in rough]).std()
    assert float(spread) == pytest.approx(sum(other.error for other in rough) / 12, rel=0.7)
    seen: list[int] = []
    action(path, goal, 0.01, 5.0, probes=1, progress=lambda done, total: seen.append(done))
    assert seen == [1, 2, 3] and action_cost(path, 6).passes == 3 * 8 and action_cost(path).bytes > 0


def test_the_error_of_an_action_is_how_far_draws_are_apart():
    half = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = half @ half.T
    goal = lambda net: net.weights["w"] @ a @ net.weights["w"] / 2  # noqa: E731
    points = [point(*row) for row in half[:3].tolist()]
    found = [action(points, goal, 0.1, [0.0, 1.0, 5.0], probes=4, seed=10 * k) for k in range(60)]
    values, errors = (torch.tensor([getattr(f, name) for f in found]) for name in ("entropic", "error"))
    assert float(values.std()) == pytest.approx(float(errors.square().mean().sqrt()), rel=0.3)


def test_the_temperature_is_that_of_a_step_s_noise():
    """A step's mean squared deviation, an example's over the batch, is 2 D for a weight and unit of time."""
    net, goal, rate, batch = mlp(), task(25), 0.1, 5
    x, y = next(goal.batches())
    each = torch.stack([gradient(Task(x[k : k + 1], y[k : k + 1]), net).flat() for k in range(25)])
    deviation = rate**2 * float(each.var(0).sum()) / batch
    assert sgd_temperature(net, goal, rate, batch) == pytest.approx(deviation / rate / net.weights.numel / 2, rel=1e-9)


STILL = [mlp(0), mlp(1)]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: action(STILL, task(), 0.0, 1.0), "temperature must be positive and finite, got 0"),
        (lambda: action(STILL, task(), math.nan, 1.0), "got nan"),
        (lambda: action(STILL, task(), 1.0, -1.0), "the duration must be positive"),
        (lambda: action(STILL, task(), 1.0, [0.0, 0.0]), "times must rise"),
        (lambda: action(STILL, task(), 1.0, [0.0, math.nan]), "times must rise"),
        (lambda: action(STILL, task(), 1.0, [0.0]), "2 networks but 1 times"),
        (lambda: action(STILL[:1], task(), 1.0, 1.0), "at least two networks"),
        (lambda: action([mlp(), mlp(width=7)], task(), 1.0, 1.0), "not the same architecture"),
        (lambda: action([mlp(), mlp() + math.nan * mlp().weights], task(), 1.0, 1.0), "loss is nan at point 1"),
        (lambda: laplacian(mlp(), task(), probes=0), "got 0 and"),
        (lambda: sgd_temperature(mlp(), task(), 0.1, 0), "a batch of 0 examples"),
        (lambda: path_integral(double_well, 0.0, 1.0, 1.0, torch.tensor([0.0, 1.0, 3.0])), "equal steps"),
        (lambda: path_integral(torch.log, 1.0, 1.0, 1.0, torch.linspace(-1, 1, 9)), "not finite on the grid"),
        (lambda: kramers_rate(-1.0, 1.0, 0.0, 0.0, unstable=-1.0), "the barrier is -1"),
        (lambda: kramers_rate(1.0, 1.0, 0.0, 0.0), "negative eigenvalue too, got unstable=None"),
        (lambda: kramers_rate(1.0, 1.0, torch.eye(2), torch.eye(2)), "has 0 falling"),
        (lambda: kramers_rate(1.0, 1.0, -torch.eye(2), torch.eye(2)), "the minimum has a curvature -1"),
        (lambda: kramers_rate(1.0, 1.0, torch.ones(2, 3), torch.eye(2)), r"square matrix .* \(2, 3\)"),
        (lambda: kramers_rate(1.0, 1.0, torch.tensor([[1.0, 2], [0, 1]]), torch.eye(2)), "symmetric"),
        (lambda: kramers_rate(1.0, 1.0, 0.0, torch.eye(2)), "not float and Tensor"),
        (lambda: minimum_action_path(*STILL, task(), images=2), "3 images"),
        (lambda: minimum_action_path(*STILL, task(), size=0.0), "size must be positive"),
        (lambda: minimum_action_path(mlp(), mlp() + math.inf * mlp().weights, task()), "not finite after 0 steps"),
        (lambda: minimum_action_path(mlp(), mlp(width=7), task()), "not the same architecture"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(call, message):
    with pytest.raises((WeightspaceError, ArchitectureMismatch, WeightspaceError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ rates and saddles


def test_operators_give_the_rate_of_their_matrices():
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64))[0]
    low = turn @ torch.diag(torch.linspace(1, 9, 40, dtype=torch.float64)) @ turn.T
    high = torch.diag(torch.cat([torch.tensor([-2.0]), torch.linspace(0.5, 4, 39)]).double())
    exact = kramers_rate(3.0, 0.5, low, high)
    found = kramers_rate(3.0, 0.5, *(Operator(40, 40, lambda v, h=h: h.to(v) @ v) for h in (low, high)), scale=1e-4)
    assert found.unstable == pytest.approx(-2, rel=1e-6)
    assert abs(found.log - exact.log) < max(4 * found.error, 1e-3) and found.exponent == -6
    with pytest.raises(WeightspaceError, match="a direction that falls"):
        kramers_rate(1.0, 1.0, *(Operator(40, 40, lambda v: low.to(v) @ v) for _ in range(2)))


def test_the_error_of_a_rate_is_how_far_draws_are_apart():
    generator = torch.Generator().manual_seed(0)
    turns = [torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))[0] for _ in range(2)]
    values = torch.linspace(1, 9, 12).double(), torch.cat([torch.tensor([-2.0]), torch.linspace(0.5, 4, 11)]).double()
    low, high = (turn @ v.diag() @ turn.T for turn, v in zip(turns, values, strict=True))
    both = [Operator(12, 12, lambda v, h=h: h.to(v) @ v) for h in (low, high)]
    found = [kramers_rate(3.0, 0.5, *both, scale=1e-4, seed=seed) for seed in range(40)]
    logs, errors = (torch.tensor([getattr(f, name) for f in found]) for name in ("log", "error"))
    assert float(logs.std()) == pytest.approx(float(errors.square().mean().sqrt()), rel=0.4)


def surface(net: Net) -> torch.Tensor:
    """The surface of Mueller and Brown (1979), 1/100 of it."""
    x, y = net.weights["w"]
    a, b, c = (-1.0, -1.0, -6.5, 0.7), (0.0, 0.0, 11.0, 0.6), (-10.0, -10.0, -6.5, 0.7)
    height, where = (-200.0, -100.0, -170.0, 15.0), ((1.0, 0.0), (0.0, 0.5), (-0.5, 1.5), (-1.0, 1.0))
    terms = (
        h * torch.exp(p * (x - u) ** 2 + q * (x - u) * (y - v) + r * (y - v) ** 2)
        for h, p, q, r, (u, v) in zip(height, a, b, c, where, strict=True)
    )
    return torch.stack([*terms]).sum() / 100


def test_the_saddle_of_a_known_surface():
    a, b = point(-0.5582, 1.4417), point(-0.0500, 0.4667)
    seen: list[int] = []
    found = minimum_action_path(a, b, surface, images=9, steps=100, size=0.04, progress=lambda k, n: seen.append(k))
    assert found.saddle.weights["w"].tolist() == pytest.approx([-0.8220, 0.6243], abs=2e-3)
    assert found.barrier == pytest.approx(1.06035, abs=2e-4) and found.back == pytest.approx(0.4010, abs=3e-4)
    assert float(gradient(surface, found.saddle).norm()) < 1e-3 and found.residual < 0.5
    assert line(a, b).barrier(surface) > found.barrier
    steps = [float((q - p).norm()) for p, q in zip(found.path, [*found.path][1:], strict=False)]
    assert max(steps[: found.top]) == pytest.approx(min(steps[: found.top]), rel=0.15)
    assert seen[-1] == 100 and found.data()["barrier"] == found.barrier
    low, high = (full_hessian(net, surface) for net in (a, found.saddle))
    assert kramers_rate(found.barrier, 0.1, low, high).log < 0
    other = minimum_action_path(point(0.6235, 0.0280), b, surface, images=7, steps=100, size=0.03)
    assert other.saddle.weights["w"].tolist() == pytest.approx([0.2125, 0.2930], abs=2e-3)


def test_a_path_that_only_falls_has_no_barrier():
    bowl = lambda net: net.weights["w"].square().sum()  # noqa: E731
    found = minimum_action_path(point(0.0, 0.0), point(1.0, 0.0), bowl, images=5, steps=4)
    assert (found.top, found.back, found.barrier) == (len(found.losses) - 1, 0.0, pytest.approx(1.0))


def test_the_action_of_the_string_is_the_barrier_over_the_temperature():
    """Uphill at the speed of the gradient: static + dynamic without the Laplacian is dL / D; downhill it is nothing."""
    a, b = point(-0.5582, 1.4417), point(-0.0500, 0.4667)
    found = minimum_action_path(a, b, surface, images=19, steps=60, size=0.03)
    nets, times = [*found.path][1:-1], [0.0]
    slopes = [float(gradient(surface, net).norm()) for net in nets]
    for k in range(len(nets) - 1):
        gap = float((nets[k + 1] - nets[k]).norm())
        times.append(times[-1] + gap / max(1e-3, (slopes[k] + slopes[k + 1]) / 2))
    cost = action(nets, surface, 0.05, times)
    assert cost.static + cost.kinetic + cost.force == pytest.approx(found.barrier / 0.05, rel=0.06)


def test_two_networks_of_one_task():
    """A string between two trained networks lowers the barrier of the straight line."""
    goal, ends = task(40), []
    for seed in (0, 1):
        module = mlp(seed).module()
        x, y = next(goal.batches())
        optimiser = torch.optim.Adam(module.parameters(), lr=0.03)
        for _ in range(100):
            optimiser.zero_grad()
            F.cross_entropy(module(x), y).backward()
            optimiser.step()
        ends.append(Net.of(module))
    straight = line(*ends).barrier(goal)
    found = minimum_action_path(*ends, goal, images=7, steps=50, size=0.4)
    assert straight > 0.2 and found.barrier < 0.5 * straight
    assert found.losses[0] == pytest.approx(float(goal(ends[0]))) and len(found.path) == 7
    bent = minimum_action_path(*ends, goal, images=7, steps=1, size=1e-9, path=found.path)
    assert max(bent.losses) < 1.2 * max(found.losses)
    scale = 0.05
    rate = kramers_rate(found.barrier, 0.01, hessian(ends[0], goal), hessian(found.saddle, goal), scale=scale * 40)
    assert math.isfinite(rate.log) and rate.unstable < 0
