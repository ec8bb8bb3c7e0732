"""Laws of paths, averages and planes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from weightspace.metric.metric import Euclidean
from weightspace.net.errors import ArchitectureMismatch, WeightspaceError
from weightspace.net.net import Net
from weightspace.net.weights import Weights
from weightspace.path.loss_plane import plane
from weightspace.path.path import Path, curve, line
from weightspace.task.task import Task
from weightspace.training.averages import swa

laws = settings(max_examples=10, deadline=None)
seeds = st.integers(0, 10**6)
times = st.floats(0, 1)


class Point(nn.Module):
    """A network that is its weights: f(w, x) = w."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x):
        return self.w


def point(*w):
    return Net.of(Point(w))


def where(net):
    return net.weights["w"].detach().numpy()


def normed(seed):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    module[1].running_var.uniform_(0.5, 2)
    module[1].running_mean.normal_()
    module[1].num_batches_tracked.fill_(seed)
    return Net.of(module).double()


def equal(a, b, tolerance=1e-12):
    a.check(b)
    for name, tensor in a.tensors.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, b.tensors[name], rtol=tolerance, atol=tolerance)


def circle(radius=1.0):
    return Path(lambda t: point(radius * math.cos(math.pi * t), radius * math.sin(math.pi * t)))


def weight(net):
    return net.weights["w"][0]


@laws
@given(seeds, times)
def test_a_line_is_affine(seed, t):
    a, b = normed(seed), normed(seed + 1)
    seen = line(a, b)(t)
    for name in ("0.weight", "3.bias"):
        torch.testing.assert_close(seen.weights[name], (1 - t) * a.weights[name] + t * b.weights[name])
    mixed = (1 - t) * a.state["1.running_var"] + t * b.state["1.running_var"]
    torch.testing.assert_close(seen.state["1.running_var"], mixed)


def test_marked_points_are_the_networks_themselves():
    nets = [normed(seed) for seed in range(4)]
    path = Path.through(nets)
    assert [path[k] for k in range(4)] == nets == list(path)
    assert (path[-1], path(0), path(1), len(path)) == (nets[3], nets[0], nets[3], 4)
    with pytest.raises(IndexError):
        path[4]


def test_times_are_brought_to_the_unit_interval():
    nets = [point(0.0), point(1.0), point(5.0)]
    path = Path.through(nets, times=[100, 150, 300])
    assert path.times == (0, 0.25, 1)
    assert where(path(0.125))[0] == pytest.approx(0.5)
    assert where(path(0.625))[0] == pytest.approx(3)
    assert where(Path.through(nets)(0.25))[0] == pytest.approx(0.5)


@laws
@given(times)
def test_bezier_is_the_bernstein_sum(t):
    control = [point(0.0, 1.0), point(3.0, -1.0), point(2.0, 2.0), point(5.0, 0.0)]
    expected = sum(math.comb(3, k) * t**k * (1 - t) ** (3 - k) * where(w) for k, w in enumerate(control))
    np.testing.assert_allclose(where(Path.bezier(control)(t)), expected, atol=1e-12)
    assert Path.bezier(control)[0] is control[0]
    assert Path.bezier(control)[-1] is control[-1]


@laws
@given(seeds, times)
def test_reversing_twice_changes_nothing(seed, t):
    path = Path.through([normed(seed), normed(seed + 1), normed(seed + 2)], times=[0, 1, 4])
    back = path.reversed()
    equal(back.reversed()(t), path(t))
    equal(back(t), path(1 - t))
    assert (back[0], back[1], back[-1]) == (path[-1], path[1], path[0])


def test_map_is_lazy_and_reaches_every_point():
    calls = []

    def double(net):
        calls.append(net)
        return net + net.weights

    path = line(point(1.0), point(3.0)).map(double)
    assert not calls
    assert [where(net)[0] for net in (path[0], path(0.5), path[-1])] == [2, 4, 6]
    assert len(calls) == 3


@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan])
def test_outside_of_the_path_there_is_nothing(t):
    with pytest.raises(WeightspaceError, match="from 0 to 1"):
        line(point(0.0), point(1.0))(t)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Path.through([point(0.0)]), "at least two networks, got 1"),
        (lambda: Path.through([point(0.0)] * 3, [0, 1]), "3 networks but 2 times"),
        (lambda: Path.through([point(0.0)] * 3, [0, 2, 1]), "must rise"),
        (lambda: Path.through([point(0.0)] * 2, [1, 1]), "must rise"),
        (lambda: Path(lambda t: point(t), [0, 0.5]), "must rise from 0 to 1"),
        (lambda: line(point(0.0), point(1.0)).along(weight, 1), "n >= 2"),
        (lambda: line(point(0.0), point(1.0)).barrier(weight, 2), "n >= 3"),
        (
            lambda: line(point(0.0), point(1.0)).along(lambda net: torch.ones(2)),
            r"observable returned shape \(2,\)",
        ),
        (lambda: line(point(0.0), point(1.0)).along({"name": lambda net: None}), "name returned NoneType"),
        (lambda: swa([]), "no networks to average"),
        (
            lambda: curve(point(0.0), point(1.0), weight, kind="spline"),
            "kind takes 'bezier' or 'polychain', got",
        ),
        (lambda: curve(point(0.0), point(1.0), weight, bends=0), "bends >= 1"),
        (lambda: curve(point(0.0), point(1.0), lambda net: weight(net).item()), "differentiable 0-d tensor"),
        (lambda: curve(point(0.0), point(1.0), lambda net: weight(net) * math.nan), "lower lr"),
        (lambda: plane(point(0.0, 0.0), point(1.0, 1.0), point(3.0, 3.0)), "lie on one line"),
        (lambda: plane(point(0.0, 0.0), point(0.0, 0.0), point(3.0, 1.0)), "lie on one line"),
    ],
)
def test_mistakes_get_one_clear_line(build, message):
    with pytest.raises(WeightspaceError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_networks_must_be_of_one_architecture():
    a, b, other = point(0.0), point(1.0), point(1.0, 2.0)
    for build in (
        lambda: line(a, other),
        lambda: Path.bezier([a, b, other]),
        lambda: swa([a, other]),
        lambda: plane(a, b, other),
        lambda: curve(a, other, weight),
    ):
        with pytest.raises(ArchitectureMismatch):
            build()


def test_along_takes_one_observable_or_many():
    path = line(point(1.0), point(3.0))
    seen = path.along({"w": weight, "square": lambda net: weight(net).item() ** 2}, n=3)
    assert {name: values.tolist() for name, values in seen.items()} == {"w": [1, 2, 3], "square": [1, 4, 9]}
    assert path.along(weight, n=3).tolist() == [1, 2, 3]
    assert len(path.along(weight)) == 11
    leaf = path[0].at(path[0].weights.map(lambda flat: flat.clone().requires_grad_()))
    assert line(leaf, leaf).along(weight, n=2).tolist() == [1, 1]


def test_barrier_is_the_rise_above_the_chord():
    path = line(point(-1.0), point(1.0))
    assert path.barrier(lambda net: 1 - weight(net) ** 2) == pytest.approx(1)
    assert path.barrier(lambda net: weight(net) ** 2) == 0
    assert path.barrier(lambda net: 5 * weight(net)) == pytest.approx(0, abs=1e-12)
    assert path.barrier(lambda net: 5 * weight(net) + 1 - weight(net) ** 2) == pytest.approx(1)
    assert math.isnan(path.barrier(lambda net: weight(net) * math.nan))


@laws
@given(seeds)
def test_the_euclidean_length_of_a_line_is_the_distance(seed):
    a, b, c = normed(seed), normed(seed + 1), normed(seed + 2)
    assert line(a, b).length() == pytest.approx(float((b - a).norm()), rel=1e-12)
    both = float((b - a).norm()) + float((c - b).norm())
    assert Path.through([a, b, c], times=[0, 1, 9]).length(Euclidean()) == pytest.approx(both, rel=1e-12)


def reparametrised(path, law):
    return Path(lambda t: path(law(t)))


@pytest.mark.parametrize("law", [lambda t: t, lambda t: t * t, math.sqrt, lambda t: math.sin(math.pi * t / 2)])
def test_length_does_not_depend_on_the_parametrisation(law):
    assert reparametrised(circle(2.0), law).length() == pytest.approx(2 * math.pi, rel=1e-4)


def test_length_is_not_blind_to_what_lies_between():
    with pytest.raises(AssertionError):
        assert reparametrised(circle(2.0), lambda t: t / 2).length() == pytest.approx(2 * math.pi, rel=1e-4)
    there_and_back = Path(lambda t: circle()(1 - abs(1 - 2 * t)))
    assert there_and_back.length() == pytest.approx(2 * math.pi, rel=1e-4)
    assert circle().reversed().length() == pytest.approx(math.pi, rel=1e-4)


class Hyperbolic:
    """|v|_w = |v| / w in one dimension, so that the length from w_0 to w_1 is log(w_1 / w_0)."""

    def norm(self, net, vector):
        return vector.norm() / weight(net)

    def steepest(self, net, covector):
        return covector


def test_length_in_a_metric_that_changes_along_the_path():
    path = line(point(1.0), point(5.0))
    assert path.length(Hyperbolic()) == pytest.approx(math.log(5), rel=1e-4)
    assert path.length(Hyperbolic(), tolerance=1e-2) != pytest.approx(math.log(5), rel=1e-6)
    bent = reparametrised(path, lambda t: t**3)
    assert bent.length(Hyperbolic()) == pytest.approx(math.log(5), rel=1e-4)


def test_a_length_that_never_settles_is_refused():
    rough = Path(lambda t: point(t, sum(0.9**k * math.cos(7**k * math.pi * t) for k in range(20))))
    with pytest.raises(WeightspaceError, match="did not settle"):
        rough.length(n=2)


def ring(net):
    """Zero on the unit circle, one at its centre."""
    return (net.weights["w"].square().sum() - 1).square()


@pytest.mark.parametrize(("kind", "bends"), [("bezier", 1), ("bezier", 3), ("polychain", 3)])
def test_a_curve_goes_round_what_a_line_runs_into(kind, bends):
    a, b = point(-1.0, 0.0), point(math.cos(0.3), math.sin(0.3))
    path = curve(a, b, ring, kind=kind, bends=bends, steps=120, lr=0.1)
    assert (path[0], path[-1]) == (a, b)
    assert line(a, b).barrier(ring) > 0.9
    assert path.barrier(ring, 41) < 0.1
    assert not any(tensor.requires_grad for tensor in path(0.5).tensors.values())


def clusters(n=120):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 4
    centres = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    return Task(centres[labels] + 0.4 * torch.randn(n, 2, generator=generator), labels % 2, batch=64)


def trained(task, seed, norm=False):
    torch.manual_seed(seed)
    layers = [nn.Linear(2, 12), nn.BatchNorm1d(12)] if norm else [nn.Linear(2, 12)]
    module = nn.Sequential(*layers, nn.Tanh(), nn.Linear(12, 2))
    x, y = next(iter(task.batches()))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    return Net.of(module)


@pytest.mark.parametrize("norm", [False, True])
def test_a_curve_of_low_loss_joins_trained_networks(norm):
    task = clusters()
    a, b = trained(task, 0, norm), trained(task, 1, norm)
    done = []
    path = curve(a, b, task, steps=150, lr=0.02, batch=60, progress=lambda *step: done.append(step))
    assert path.barrier(task) < 0.25 * line(a, b).barrier(task)
    assert done == [(k, 150) for k in range(1, 151)]
    if norm:
        middle = (a.state["1.running_var"] + b.state["1.running_var"]) / 2
        torch.testing.assert_close(path(0.5).state["1.running_var"], middle)


def test_a_curve_depends_on_its_seed_alone():
    task = clusters()
    a, b = trained(task, 0), trained(task, 1)
    before = torch.random.get_rng_state()
    first, again, other = (curve(a, b, task, steps=5, batch=30, seed=seed)(0.5) for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert float((first - again).norm()) == 0
    assert float((first - other).norm()) > 0


def test_a_curve_may_end_in_another_dtype():
    a, b = point(-1.0, 0.1), point(1.0, 0.2)
    path = curve(a, b.to(torch.float32), ring, steps=20)
    assert (path[0].dtype, path(0.5).dtype, path[-1].dtype) == (torch.float64, torch.float64, torch.float32)


@laws
@given(seeds, st.integers(1, 5))
def test_swa_is_the_mean(seed, n):
    nets = [normed(seed + k) for k in range(n)]
    mean = swa(net for net in nets)
    for name, tensor in mean.tensors.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, torch.stack([net.tensors[name] for net in nets]).mean(0))
    assert mean.state["1.num_batches_tracked"] == nets[0].state["1.num_batches_tracked"]
    assert float((nets[0].weights - normed(seed).weights).norm()) == 0
    if n > 1:
        equal(swa(Path.through(nets)), mean)


def test_swa_of_half_precision_is_summed_in_float32():
    nets = [Net.of(Point([1.0, 3.0])).to(torch.bfloat16)] * 150 + [Net.of(Point([3.0, 1.0])).to(torch.bfloat16)] * 150
    mean = swa(nets)
    assert mean.dtype == torch.bfloat16
    assert where(mean.double()).tolist() == [2, 2]
    naive = nets[0].weights
    for k, net in enumerate(nets[1:], start=2):
        naive = naive.lerp(net.weights, 1 / k)
    assert naive["w"].tolist() != [2, 2]


def isometric(flat, uv):
    one, two = flat.net(*uv[:2]), flat.net(*uv[2:])
    assert float((two - one).norm()) == pytest.approx(math.dist(uv[:2], uv[2:]), abs=1e-9)
    return one


@laws
@given(seeds, st.tuples(*[st.floats(-3, 3)] * 4))
def test_a_plane_is_an_isometry(seed, uv):
    nets = [normed(seed + k) for k in range(3)]
    flat = plane(*nets)
    one = isometric(flat, uv)
    assert flat.coordinates(one) == pytest.approx(uv[:2], abs=1e-9)
    assert (one.state["1.running_var"] > 0).all()
    for net, corner in zip(nets, flat.corners, strict=True):
        equal(flat.net(*corner), net)


def test_the_isometry_catches_a_skewed_plane():
    flat = plane(*(normed(seed) for seed in range(3)))
    isometric(flat, (0, 0, 1, 2))
    with pytest.raises(AssertionError):
        isometric(replace(flat, corners=flat.corners + [[0, 0], [0, 0], [0.1, 0]]), (0, 0, 1, 2))


def test_the_nearest_point_of_a_plane():
    flat = plane(point(0.0, 0.0, 0.0), point(0.0, 2.0, 0.0), point(0.0, 1.0, -3.0))
    assert flat.corners.tolist() == [[0, 0], [2, 0], [1, 3]]
    assert flat.coordinates(point(7.0, 5.0, -4.0)) == (5, 4)


def test_a_plane_of_float32_networks():
    nets = [normed(seed).to(torch.float32) for seed in range(3)]
    flat = plane(*nets)
    for net, corner in zip(nets, flat.corners, strict=True):
        equal(flat.net(*corner), net, 1e-5)
    with pytest.raises(WeightspaceError, match="one line"):
        plane(nets[0], nets[1], nets[0].lerp(nets[1], 0.3))


def test_a_grid_sees_every_observable_everywhere():
    flat = plane(point(0.0, 0.0), point(4.0, 0.0), point(0.0, 2.0))
    done = []
    seen = flat.grid(
        {"x": weight, "y": lambda net: net.weights["w"][1]},
        n=5,
        margin=0.5,
        progress=lambda *k: done.append(k),
    )
    assert seen.u.tolist() == [-2, 0, 2, 4, 6]
    assert seen.v.tolist() == [-1, 0, 1, 2, 3]
    np.testing.assert_allclose(seen.values["x"], np.tile(seen.u, (5, 1)), atol=1e-12)
    np.testing.assert_allclose(seen.values["y"], np.tile(seen.v, (5, 1)).T, atol=1e-12)
    assert done[-1] == (25, 25)
    with pytest.raises(WeightspaceError, match="n >= 2"):
        flat.grid({}, n=1)


@laws
@given(seeds)
def test_steepest_is_the_best_of_unit_vectors(seed):
    net = normed(seed)
    covector = net.weights.randn(seed)
    metric = Euclidean()
    best = metric.steepest(net, covector)
    assert float(metric.norm(net, best)) == pytest.approx(1)
    assert float(covector.dot(best)) == pytest.approx(-float(covector.norm()))
    for k in range(1, 4):
        other = best + 0.3 * net.weights.randn(seed + k)
        assert covector.dot(other / float(other.norm())) >= covector.dot(best)
    assert float(metric.inner(net, covector, best)) == pytest.approx(float(covector.dot(best)))


def test_steepest_of_no_or_a_broken_gradient():
    net, metric = point(1.0, 2.0), Euclidean()
    assert where(net.at(metric.steepest(net, net.weights.zeros()))).tolist() == [0, 0]
    with pytest.raises(WeightspaceError, match="NaN or infinity in w"):
        metric.steepest(net, net.weights * math.nan)
    with pytest.raises(ArchitectureMismatch):
        metric.norm(net, Weights({"w": torch.ones(3)}))


@pytest.mark.parametrize("times", [None, [0, 1, 3.5, 7, 10], [0, 0.1, 0.3, 0.35, 1], [0, 1e-9, 1 / 3, 2 / 3, 1]])
def test_a_path_read_backwards_meets_its_points_to_the_last_bit(times):
    nets = [Net.of(nn.Linear(3, 2)) for _ in range(5)]
    path = Path.through(nets, times)
    for met, net in zip(path.reversed(), reversed(nets), strict=True):
        assert torch.equal(met.weights.flat(), net.weights.flat())
    for met, net in zip(path.reversed().reversed(), nets, strict=True):
        torch.testing.assert_close(met.weights.flat(), net.weights.flat(), rtol=1e-6, atol=1e-6)
