"""The goal of a form: its gradient is that of half the squared distance, and a flow keeps the outputs on the way."""

from __future__ import annotations

import pytest
import torch

import weightspace as ws
from weightspace.flows.forms import conform
from weightspace.net.errors import WeightspaceError


@pytest.mark.parametrize("form", ["toeplitz", "low-rank:4", "orthogonal", "shared-entries:2x2"])
def test_the_gradient_is_that_of_the_squared_distance(form):
    net = ws.demo.example()[0].to(torch.float64)
    goal = conform({"1.weight": form})
    value, gradient = goal.value_and_gradient(net, 0)
    away = net - ws.project(net, {"1.weight": form})
    assert abs(value - float(away.norm()) ** 2 / 2) < 1e-9
    direction = net.weights.randn(0)
    ahead, behind = (goal.value_and_gradient(net + t * direction, 0)[0] for t in (1e-5, -1e-5))
    assert abs((ahead - behind) / 2e-5 - float(gradient.dot(direction))) < 1e-4


def test_a_flow_comes_nearer_within_the_budget_and_its_end_loses_less():
    net, task = ws.demo.example()
    few, kinds = task.take(10), {"1.weight": "orthogonal"}
    metric = ws.Pullback(few)
    path = ws.flow(net, conform(kinds), metric, steps=12, size=0.3, budget=0.05)
    assert max(r.drift for r in path.log) <= 0.05
    ends = [ws.project(n, kinds) for n in (net, path[-1])]
    far, close = (float((end - n).norm()) for end, n in zip(ends, (net, path[-1]), strict=True))
    assert close < 0.5 * far
    at_once, along = (metric.drift(end, metric.outputs(net)) for end in ends)
    assert along < 0.5 * at_once


def test_a_form_that_does_not_fit_is_refused():
    net, _ = ws.demo.example()
    with pytest.raises(WeightspaceError, match="unknown kind"):
        conform({"1.weight": "round"})
    with pytest.raises(WeightspaceError, match="1.weight is 16 x 64, and a circulant"):
        ws.flow(net, conform({"1.weight": "circulant"}), ws.Euclidean(), steps=1)
