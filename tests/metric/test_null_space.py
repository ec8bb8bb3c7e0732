"""Steps projected onto the null spaces of layers' inputs: outputs that stay, the nearest step, and what is refused."""

from functools import partial

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.curvature.tangent_kernel import KernelError
from weightspace.metric.per_layer import moments
from weightspace.net.errors import WeightspaceError

DOUBLE = torch.float64


def dense(wide=16):
    return nn.Sequential(nn.Linear(12, wide), nn.ReLU(), nn.Linear(wide, 14, bias=False), nn.Tanh(), nn.Linear(14, 3))


def image():
    body = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2), nn.ReLU()
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(24, 3))


NETS = {"dense": (dense, (12,)), "image": (image, (2, 6, 6))}


def made(kind, n=3, seed=0):
    build, shape = NETS[kind]
    g = torch.Generator().manual_seed(seed)
    net = ws.fresh(build, seed).to(DOUBLE)
    return net, ws.Task(torch.randn(n, *shape, generator=g, dtype=DOUBLE), torch.randint(3, (n,), generator=g))


def learnt(net, task, metric, steps=10, size=0.1):
    return ws.flow(net, ws.learn(task), metric, steps=steps, size=size, save=steps)[-1]


@pytest.mark.parametrize("inner", [ws.Adam, ws.Euclidean, ws.Spectral])
@pytest.mark.parametrize("kind", NETS)
def test_outputs_stay_however_far_the_way(kind, inner):
    net, old = made(kind, n=1 if kind == "image" else 3)
    _, new = made(kind, 20, seed=1)
    far = learnt(net, new, ws.NullSpace.of(inner(), net, old))
    assert float((far - net).norm()) > 0.05 * float(net.weights.norm())
    assert float(ws.functional(net, far, old)) < 1e-9 < 1e-2 < float(ws.functional(net, far, new))
    assert new(far) < new(net)
    assert float(ws.functional(net, learnt(net, new, inner()), old)) > 1e-2, "the oracle sees an unprotected step"


@pytest.mark.parametrize("kind", NETS)
def test_a_soft_projection_is_the_cheapest_step_near_the_wanted_one(kind):
    """D P is the minimum of |X - D|^2 + tr(X C X^T) / (damping m) in every layer: its derivative there is zero."""
    net, task = made(kind)
    damping, wanted = 0.3, net.weights.randn(0)
    kept = ws.NullSpace.of(ws.Euclidean(), net, task, damping).project(net, wanted)
    for layer, c in moments(net, task):
        d, x = (
            torch.cat([v[layer.weight].flatten(1), *([v[layer.bias][:, None]] if layer.bias else [])], 1)
            for v in (wanted, kept)
        )
        slope = x - d + x @ c / (damping * c.diagonal().mean())
        assert float(slope.abs().max()) < 1e-10 * float(d.abs().max() / min(damping, 1))


def test_null_spaces_of_other_inputs_do_not_keep_the_outputs():
    """The oracle sees a planted error: the inputs of other examples."""
    net, old = made("dense")
    step = net.weights.randn(0)
    right, wrong = (ws.NullSpace.of(ws.Euclidean(), net, made("dense", seed=k)[1]).project(net, step) for k in (0, 1))
    assert float(ws.functional(net, net + right, old)) < 1e-9
    assert float(ws.functional(net, net + wrong, old)) > 1e-3


def test_projecting_twice_is_projecting_once():
    net, task = made("dense")
    kept = ws.NullSpace.of(ws.Euclidean(), net, task)
    v = net.weights.randn(0)
    once = kept.project(net, v)
    assert float((kept.project(net, once) - once).norm()) < 1e-12 * float(v.norm())
    assert float((v - once).dot(once)) == pytest.approx(0, abs=1e-10)
    assert set(kept.free) == {"0.weight", "2.weight", "4.weight"}
    assert kept.free["0.weight"] == pytest.approx(10 / 13)  # 12 inputs and the bias, 3 examples


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_tasks_added_are_tasks_together(damping):
    net, one = made("dense", 2)
    _, two = made("dense", 4, seed=1)
    x = torch.cat([one.example(2), two.example(4)])
    both = ws.NullSpace.of(ws.Euclidean(), net, ws.Task(x, torch.zeros(6, dtype=torch.int64)), damping)
    added = ws.NullSpace.of(ws.Euclidean(), net, one, damping).add(net, two)
    v = net.weights.randn(0)
    assert added.count == both.count == 6
    assert float((added.project(net, v) - both.project(net, v)).norm()) < 1e-9


def test_infinite_damping_leaves_steps_as_they_are():
    net, task = made("dense")
    v = net.weights.randn(0)
    assert float((ws.NullSpace.of(ws.Adam(), net, task, float("inf")).project(net, v) - v).norm()) < 1e-12


def test_frozen_layers_and_norms_stay():
    net, task = made("image")
    module = net.live()
    module[0].bias.requires_grad_(False)
    part = ws.Net.of(module)
    moved = ws.NullSpace.of(ws.Euclidean(), part, task, 1.0).project(part, part.weights.randn(0))
    still = {name for name, w in moved.items() if not bool(w.any())}
    assert still == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_an_interrupted_flow_goes_on_with_its_history(tmp_path):
    net, old = made("dense")
    _, new = made("dense", 12, seed=1)

    def walked(steps, trail):
        kept = ws.NullSpace.of(ws.Adam(), net, old)
        return ws.flow(net, ws.learn(new), kept, steps=steps, size=0.05, save=2, trail=trail)[-1]

    walked(4, tmp_path / "a")
    assert float((walked(8, tmp_path / "a") - walked(8, tmp_path / "b")).norm()) < 1e-12
    other = ws.NullSpace.of(ws.Adam(), net, new)
    with pytest.raises(WeightspaceError, match="another goal or metric"):
        ws.flow(net, ws.learn(new), other, steps=8, size=0.05, save=2, trail=tmp_path / "a")


def test_two_flows_do_not_share_a_history():
    net, old = made("dense")
    _, new = made("dense", 12, seed=1)
    kept = ws.NullSpace.of(ws.Adam(), net, old)
    first = learnt(net, new, kept)
    assert float((learnt(net, new, kept) - first).norm()) == 0.0
    assert kept.state() == {}


def test_bad_arguments_are_refused():
    net, task = made("dense")
    for damping in (-1.0, float("nan")):
        with pytest.raises(WeightspaceError, match="a damping from 0"):
            ws.NullSpace.of(ws.Adam(), net, task, damping)
    other, images = made("image")
    with pytest.raises(WeightspaceError, match="another network"):
        ws.NullSpace.of(ws.Adam(), net, task).add(other, images)
    narrow = ws.fresh(partial(dense, 9), 0).to(DOUBLE)
    with pytest.raises(WeightspaceError, match="another shape"):
        ws.NullSpace.of(ws.Adam(), net, task).add(narrow, task)
    table = ws.fresh(nn.Sequential(nn.Embedding(5, 3), nn.Flatten()), 0)
    with pytest.raises(KernelError, match="no null space"):
        ws.NullSpace.of(ws.Adam(), table, ws.Task(torch.zeros(2, 1, dtype=torch.int64)))


def test_new_outputs_learn_freely_while_the_old_ones_stay():
    """A metric of the network before it grew holds the old outputs alone; one of the grown network holds all."""
    net, old = made("dense")
    _, new = made("dense", 20, seed=1)
    grown = ws.grow(net, outputs=2)
    later = ws.Task(*((x, y % 2 + 3) for x, y in new.batches()).__next__())
    before, all_held = (ws.NullSpace.of(ws.Adam(), n, old) for n in (net, grown))
    free, held = (learnt(grown, later, metric) for metric in (before, all_held))
    x = old.example(3)
    torch.testing.assert_close(free(x)[:, :3], net(x), atol=1e-9, rtol=0)
    torch.testing.assert_close(held(x), grown(x), atol=1e-9, rtol=0)
    assert float((free(x)[:, 3:] - grown(x)[:, 3:]).abs().max()) > 1e-2
    after = before.add(grown, old)
    torch.testing.assert_close(learnt(grown, later, after)(x), grown(x), atol=1e-9, rtol=0)
