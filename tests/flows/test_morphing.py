"""Morphs: the bound holds where the task moves on, the budget is the number of gradients, ends and refusals."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import weightspace as ws
from weightspace.net.errors import WeightspaceError


def net(seed: int = 0) -> ws.Net:
    torch.manual_seed(seed)
    return ws.Net.of(nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double())


def half(angle: float, n: int = 60, seed: int = 0) -> ws.Task:
    """Two classes on both sides of a line through 0, turned."""
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    side = x @ torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    return ws.Task(x, (side > 0).long())


def trained(task: ws.Task, steps: int = 150) -> ws.Net:
    return ws.flow(net(), ws.learn(task), ws.Adam(), steps=steps, size=0.03)[-1]


def test_the_task_moves_on_only_where_the_loss_is_within_the_bound():
    start = trained(half(0))
    found = ws.morph(start, lambda t: half(math.pi * t), bound=0.5, budget=200, size=0.03, batch=100)
    before = 0.0
    for stage in found.stages:
        assert stage.t == (stage.tried if stage.excess <= 0.5 else before)
        before = stage.t
    assert found.t == 1 and found.arrived is not None and 5 < found.arrived < 200
    assert any(stage.excess > 0.5 for stage in found.stages), "never tried too much: the test would show nothing"
    assert ws.accuracy(half(math.pi))(found.net) > 0.95 > 0.2 > ws.accuracy(half(math.pi))(start)


def test_a_lower_bound_moves_on_later_and_a_bound_too_low_never():
    start = trained(half(0))
    times = [
        ws.morph(start, lambda t: half(math.pi * t), bound=bound, budget=150, size=0.03, batch=100).arrived
        for bound in (2.0, 0.4)
    ]
    assert times[0] is not None and times[1] is not None and times[0] < times[1]
    stuck = ws.morph(start, lambda t: half(math.pi * t), bound=1e-6, budget=30, batch=100)
    assert stuck.t < 0.1 and stuck.arrived is None and "t = " in repr(stuck)


def test_the_budget_is_the_number_of_gradients(monkeypatch):
    from weightspace.flows import morphing

    asked = []
    right = morphing.differentiated
    monkeypatch.setattr(morphing, "differentiated", lambda goal, w: asked.append(len(goal)) or right(goal, w))
    found = ws.morph(net(), ws.homotopy(half(0), half(1)), bound=1.0, budget=17, batch=20)
    assert asked == [20] * 17 and len(found.stages) == len(found.path.log) == 17


def test_a_homotopy_from_a_task_to_itself_is_training():
    task = half(0)
    one = ws.morph(net(), lambda t: task, bound=9.0, budget=12, size=0.01, batch=20, seed=3).net
    other = ws.flow(net(), ws.learn(task, 20, 3), ws.Adam(), steps=12, size=0.01)[-1]
    assert float((one - other).norm()) < 1e-12


def test_the_same_arguments_give_the_same_path_and_the_seed_decides():
    def end(seed):
        path = ws.homotopy(half(0), half(1))
        return ws.morph(net(), path, bound=1.0, budget=9, batch=10, seed=seed).net

    assert float((end(0) - end(0)).norm()) == 0 < float((end(0) - end(1)).norm())


def test_a_metric_keeps_the_old_task_on_the_way():
    old, new = half(0, 20), half(1.0, 20, seed=5)
    start = trained(old)
    free, kept = (
        ws.morph(start, lambda t: new, metric, bound=9.0, budget=15, size=0.1)
        for metric in (ws.Euclidean(), ws.Pullback(old))
    )
    measure = ws.Pullback(old)
    assert measure.drift(kept.net, start) < 0.5 * measure.drift(free.net, start)


def test_the_least_loss_is_what_the_labels_allow():
    y = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]], dtype=torch.float64)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    entropy = float(-(torch.xlogy(y, y)).sum(1).mean())
    for how in ({"metric": "cross-entropy"}, {"loss": F.cross_entropy}, {"loss": nn.CrossEntropyLoss()}):
        task = ws.Task(x, y, **how)
        assert ws.flows.least_loss(task) == pytest.approx(entropy)
        perfect = ws.Net.of(nn.Linear(2, 2).double())
        assert float(task(perfect)) > ws.flows.least_loss(task)
        assert float(task.loss(y.clamp_min(1e-12).log(), y)) == pytest.approx(entropy, abs=1e-6)
    assert ws.flows.least_loss(ws.Task(x, y, metric="cross-entropy", aggregate="sum")) == pytest.approx(3 * entropy)
    others = (ws.Task(x, y), half(0), ws.Task(x, y, loss=nn.CrossEntropyLoss(label_smoothing=0.1)))
    assert [ws.flows.least_loss(task) for task in others] == [0.0] * 3


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"bound": 0.0}, "a positive bound and at least one gradient, got 0.0"),
        ({"bound": 1.0, "budget": 0}, "at least one gradient"),
        ({"bound": 1.0, "batch": 0}, "at least one example"),
        ({"bound": 1.0, "homotopy": lambda t: 3}, "gives a Task for every t, not a int"),
        ({"bound": 1.0, "homotopy": lambda t: ws.Task(torch.zeros(4, 3), torch.zeros(4).long())}, "does not take"),
    ],
)
def test_what_does_not_fit_is_refused(how, said):
    with pytest.raises(WeightspaceError, match=said):
        ws.morph(net(), **{"homotopy": lambda t: half(t), **how})


def test_a_task_with_more_classes_than_outputs_is_refused():
    wide = half(0).relabelled(torch.arange(60) % 5)
    with pytest.raises(WeightspaceError, match="outside the 2 outputs"):
        ws.morph(net(), ws.homotopy(half(0), wide, "batches"), bound=9.0, budget=5, batch=60)
