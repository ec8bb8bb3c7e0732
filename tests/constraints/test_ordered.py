"""Ordered weights: keys that increase, the nearest of them, and the representative that the group finds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.constraints.kinds import ORDERED, SIDE, drawn, feasible
from weightspace.constraints.constraining import constrain, project
from weightspace.constraints.ordered import Ordered, increasing
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.symmetry.symmetry import Symmetry

KEYS = {
    "first": lambda rows: rows[:, 0],
    "mean": lambda rows: rows.mean(1),
    "norm": lambda rows: rows.norm(dim=1),
    "given": lambda rows: rows @ (torch.arange(SIDE) - 2.5).double(),
}


@pytest.mark.parametrize("key", KEYS)
def test_keys_increase_whatever_the_parameters_are(key):
    kind = ORDERED[f"ordered {key}"]
    for seed in range(10):
        assert bool((KEYS[key](feasible(kind, seed, 3.0)).diff() > 0).all())
        assert bool((KEYS[key](kind.nearest(drawn(seed), "w")).diff() > 0).all())


@pytest.mark.parametrize("key", ["first", "mean", "norm"])
def test_weights_in_order_are_their_own_nearest_and_sort_puts_them_in_order(key):
    weight = drawn(0)
    sorted_rows = weight[KEYS[key](weight).argsort()]
    assert torch.allclose(Ordered(key).nearest(sorted_rows), sorted_rows, atol=1e-9)
    assert torch.allclose(Ordered(key, sort=True).nearest(weight), sorted_rows, atol=1e-9)
    assert Ordered(key).sorted(sorted_rows, "w") and not Ordered(key).sorted(weight, "w")
    assert Ordered(key, sort=True).sorted(weight, "w")


def test_what_is_not_the_key_stays():
    weight = drawn(0)
    assert torch.allclose(Ordered("first").nearest(weight)[:, 1:], weight[:, 1:])
    moved = Ordered("mean").nearest(weight)
    centred = weight - weight.mean(1, keepdim=True)
    assert torch.allclose(moved - moved.mean(1, keepdim=True), centred, atol=1e-12)


def test_neighbours_out_of_order_are_pooled():
    found = increasing(torch.tensor([3.0, 1.0, 2.0, 5.0], dtype=torch.float64))
    assert torch.allclose(found, torch.tensor([2.0, 2.0, 2.0, 5.0], dtype=torch.float64), atol=1e-5)
    assert bool((found.diff() > 5e-7).all())


def test_rows_of_zeros_are_in_order_by_norm():
    weight = Ordered("norm").nearest(torch.zeros(3, 2, dtype=torch.float64))
    assert bool((weight.norm(dim=1).diff() > 0).all()) and float(weight.norm()) < 1e-5


@pytest.mark.parametrize("key", ["first", "mean", "norm"])
def test_a_network_that_the_group_has_sorted_is_the_same_when_it_is_constrained(key):
    torch.manual_seed(0)
    net = Net.of(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double())
    x = drawn(0, 9, 4)
    group = Symmetry.of(net, x)
    ready = group.canonical(net, key=lambda rows: KEYS[key](rows[:, :4]))
    found = constrain(ready, {"0.weight": Ordered(key)})
    assert torch.allclose(found(x), net(x), atol=1e-9)
    with pytest.raises(WeightspaceError, match="rows of 0.weight are not in the order of their key ordered"):
        constrain(net, {"0.weight": Ordered(key)})
    assert not torch.allclose(project(net, {"0.weight": Ordered(key)})(x), net(x), atol=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Ordered("largest"),
        lambda: Ordered(torch.zeros(3)),
        lambda: Ordered(torch.ones(2, 2)),
        lambda: Ordered(torch.tensor([1.0, float("nan")])),
    ],
)
def test_keys_that_do_not_exist_are_refused(make):
    with pytest.raises(WeightspaceError, match="a key"):
        make()


@pytest.mark.parametrize(
    ("kind", "shape", "match"),
    [
        (Ordered(), (1, 4), "needs two rows"),
        (Ordered(), (), "needs two rows"),
        (Ordered(torch.ones(3)), (4, 5), "the key has 3 entries, and a row of w 5"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(kind, shape, match):
    with pytest.raises(WeightspaceError, match=match):
        kind.check(shape, "w")
