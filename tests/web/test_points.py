"""Data sets in the plane: labels by the rule of each, a split without a common point, drawn from a seed."""

from __future__ import annotations

import pytest
import torch

from weightspace.web.playground.points import SETS, drawn, half

RULES = {
    "circle": lambda x: x.norm(dim=1) < 0.55,
    "xor": lambda x: x.prod(1) > 0,
    "gauss": lambda x: x.sum(1) > 0,
    "checkerboard": lambda x: ((x + 1) * 1.5).floor().sum(1) % 2 == 1,
}


@pytest.mark.parametrize("kind", SETS)
def test_a_set_is_drawn_from_its_seed_and_split(kind):
    train, test = drawn(kind, 101, 0.0, 3, 0.3)
    assert (len(train), len(test)) == (71, 30) and train.x.dtype == torch.float64
    again, other = drawn(kind, 101, 0.0, 3, 0.3)[0], drawn(kind, 101, 0.0, 4, 0.3)[0]
    assert torch.equal(train.x, again.x) and not torch.equal(train.x, other.x)
    every = torch.cat([train.x, test.x])
    assert len(every.unique(dim=0)) == 101 and 0.2 < float(train.y.mean()) < 0.8
    if kind in RULES:
        right = (RULES[kind](train.x) == (train.y > 0)).double().mean()
        assert float(right) > (0.95 if kind == "gauss" else 0.999)
    if kind != "gauss":
        assert float(every.abs().max()) <= 1


def test_a_spiral_is_two_arms_opposite_each_other():
    train, test = drawn("spiral", 400, 0.0, 0, 0.5)
    ones, others = train.x[train.y > 0], test.x[test.y == 0]
    near = torch.cdist(-ones, others).min(1).values
    assert float(near.max()) < 0.15 < float(torch.cdist(ones, others).min(1).values.median())


def test_noise_moves_points_and_keeps_labels():
    still, moved = drawn("circle", 200, 0.0, 0, 0.5)[0], drawn("circle", 200, 0.2, 0, 0.5)[0]
    assert torch.equal(still.y, moved.y) and float((moved.x - still.x).std()) == pytest.approx(0.2, rel=0.15)


def test_halves():
    train, _ = drawn("xor", 100, 0.0, 0, 0.2)
    left, right = half(train, False), half(train, True)
    assert len(left) + len(right) == len(train) and bool((left.x[:, 0] < 0).all()) and bool((right.x[:, 0] >= 0).all())
    assert half(right, False) is right  # nothing there: all of them
