"""Attacks: inside the ball, never below the loss, never better than smaller balls, the closed form of a linear map."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.net.errors import WeightspaceError

NORMS = ("linf", "l2")


def net(seed: int = 0) -> ws.Net:
    torch.manual_seed(seed)
    return ws.Net.of(nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3)).double())


def task(n: int = 40, **how) -> ws.Task:
    g = torch.Generator().manual_seed(1)
    x = torch.rand(n, 5, generator=g, dtype=torch.float64)
    return ws.Task(x, (3 * x[:, 0]).long(), batch=7, **how)


TRAINED = ws.flow(net(), ws.learn(task()), ws.Adam(), steps=200, size=0.03)[-1]


def away(moved: ws.Task, norm: str) -> torch.Tensor:
    return torch.linalg.vector_norm(moved.example(40) - task().example(40), math.inf if norm == "linf" else 2, dim=1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("restarts", [1, 3])
def test_an_attack_stays_in_the_ball_and_the_span_and_lowers_no_loss(norm, restarts):
    for radius in (0.0, 0.01, 0.3, 5.0):
        moved = ws.attack(TRAINED, task(), radius, 5, norm=norm, restarts=restarts, span=(0, 1))
        assert float(away(moved, norm).max()) <= radius * (1 + 1e-9)
        assert 0 <= float(moved.example(40).min()) and float(moved.example(40).max()) <= 1
        assert bool((moved.distances(TRAINED) >= task().distances(TRAINED)).all())
        assert torch.equal(moved.labels(), task().labels())
    assert bool(ws.attack(TRAINED, task(), 0.1, norm=norm)(TRAINED) > 1.5 * task()(TRAINED))


@pytest.mark.parametrize("norm", NORMS)
def test_on_a_linear_map_the_attack_is_the_worst_point(norm):
    """f = (0, w . x + b) is wrong within a ball exactly where the margin is at most radius |w| of the dual norm."""
    w = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0], dtype=torch.float64)
    module = nn.Linear(5, 2).double()
    with torch.no_grad():
        module.weight.copy_(torch.stack([0 * w, w]))
        module.bias.copy_(torch.tensor([0.0, -1.0]))
    x = task().example(40)
    margin = x @ w - 1
    labelled, dual = ws.Task(x, (margin > 0).long()), w.abs().sum() if norm == "linf" else w.norm()
    for radius in (0.05, 0.1, 0.2):
        found = ws.robust_accuracy(labelled, radius, norm=norm)(ws.Net.of(module))
        assert found == pytest.approx(float((margin.abs() > radius * dual).double().mean()))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("restarts", [1, 3])
def test_radius_zero_is_accuracy_and_no_larger_ball_is_better(norm, restarts):
    radii = [0.3, 0.0, 0.05, 0.1, 0.2, 1.0]
    found = ws.robust_accuracy(task(), radii, 4, norm=norm, restarts=restarts)(TRAINED)
    told = dict(zip(radii, found, strict=True))
    assert told[0.0] == ws.accuracy(task())(TRAINED) == ws.robust_accuracy(task(), 0)(TRAINED) > 0.9
    rising = [told[r] for r in sorted(told)]
    assert rising == sorted(rising, reverse=True) and rising[-1] < 0.5 < rising[1]


def test_more_restarts_find_no_less():
    found = [ws.robust_accuracy(task(), 0.1, 1, restarts=k)(TRAINED) for k in (1, 2, 8)]
    assert found == sorted(found, reverse=True)
    losses = [float(ws.attack(TRAINED, task(), 0.1, 1, restarts=k)(TRAINED)) for k in (1, 2, 8)]
    assert losses == sorted(losses) and losses[0] < losses[2]


def test_one_radius_alone_is_what_the_attacked_task_says():
    moved = ws.attack(TRAINED, task(), 0.1, 5)
    assert ws.robust_accuracy(task(), 0.1, 5)(TRAINED) <= ws.accuracy(moved)(TRAINED) < ws.accuracy(task())(TRAINED)


def test_a_transferred_attack_is_weaker_than_an_own_one():
    other = ws.flow(net(3), ws.learn(task()), ws.Adam(), steps=200, size=0.03)[-1]
    moved = ws.attack(other, task(), 0.15)
    assert ws.robust_accuracy(task(), 0.15)(TRAINED) <= ws.accuracy(moved)(TRAINED) <= ws.accuracy(task())(TRAINED)
    both = ws.ensemble([TRAINED, other])
    assert 0 <= ws.robust_accuracy(task(), 0.05)(both) <= ws.accuracy(task())(both)


def test_hardened_networks_stand_more():
    hard = ws.flow(net(), ws.harden(task(), 0.1, 2), ws.Adam(), steps=60, size=0.05)[-1]
    seen = ws.robust_accuracy(task(), 0.1)
    assert seen(hard) > seen(TRAINED)


def test_the_surroundings_change_nothing():
    asked = ws.robust_accuracy(task(), [0.05, 0.1], 3, restarts=2)
    plain = asked(TRAINED)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(99)
        assert asked(TRAINED) == plain
        moved = ws.attack(TRAINED, task(), 0.1, 3, restarts=2)
    assert torch.equal(moved.example(40), ws.attack(TRAINED, task(), 0.1, 3, restarts=2).example(40))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"radius": -0.1}, "a radius from 0"),
        ({"radius": math.nan}, "a radius from 0"),
        ({"radius": 0.1, "steps": 0}, "at least one step"),
        ({"radius": 0.1, "restarts": 0}, "one start"),
        ({"radius": 0.1, "span": (0.5, 1)}, "outside of the span"),
        ({"radius": 0.1, "span": (1, 0)}, "a span is the least and the largest"),
    ],
)
def test_what_is_no_attack_is_refused(how, said):
    with pytest.raises(WeightspaceError, match=said):
        ws.attack(TRAINED, task(), **how)
    with pytest.raises(WeightspaceError, match=said):
        ws.robust_accuracy(task(), **how)(TRAINED)


def test_tasks_that_cannot_be_attacked_are_refused():
    x, y = task().example(40), task().labels()
    with pytest.raises(WeightspaceError, match="no labels"):
        ws.attack(TRAINED, ws.Task(x), 0.1)
    with pytest.raises(WeightspaceError, match="tokens"):
        ws.attack(ws.Net.of(nn.Embedding(9, 3)), ws.Task(y, y), 0.1)
    with pytest.raises(WeightspaceError, match="one tensor of inputs"):
        ws.attack(ws.Net.of(nn.Bilinear(5, 5, 3).double()), ws.Task((x, x), y), 0.1)
    with pytest.raises(WeightspaceError, match="no radius"):
        ws.robust_accuracy(task(), [])
    with pytest.raises(WeightspaceError, match="one label and one loss for each example"):
        torch.manual_seed(0)
        ws.attack(ws.Net.of(nn.Linear(5, 3).double()), ws.Task(x[:, None].repeat(1, 4, 1), y[:, None].repeat(1, 4)), 1)
