"""The balanced slice: one point per orbit, reached in a few sweeps however deep the network."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor, nn

from weightspace.net.net import Net
from weightspace.net.weights import Weights
from weightspace.symmetry.symmetry import Symmetry

balancing = importlib.import_module("weightspace.symmetry.balance")
_common, _Slice, balance = balancing._common, balancing._Slice, balancing.balance


def deep(layers: int, width: int = 6) -> Net:
    torch.manual_seed(layers)
    hidden = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())]
    return Net.of(nn.Sequential(nn.Linear(4, width), nn.ReLU(), *hidden, nn.Linear(width, 3))).double()


def unbalanced(net: Net, group: Symmetry) -> float:
    """The largest derivative of log |g w|^2 with respect to a scale, at g = 1."""
    at = _Slice(group, net.weights)
    slopes = [sum(2 * e * n for e, n in at.norms(g).items()) for g in at.chosen.values()]
    return max(float(s.abs().max()) for s in slopes) / float(net.weights.dot(net.weights))


def uneven(net: Net) -> Net:
    """Layers of very different sizes: what sweeps alone carry slowly from one end to the other."""
    factors = {name: 10.0 ** (2 - k % 5) for k, name in enumerate(n for n in net.weights if n.endswith("weight"))}
    return net.at(Weights({n: t * factors.get(n, 1.0) for n, t in net.weights.items()}))


@pytest.mark.parametrize("layers", [1, 4, 16])
def test_a_few_sweeps_are_enough(layers):
    net = uneven(deep(layers))
    group = Symmetry.of(net, torch.zeros(2, 4))
    assert unbalanced(net, group) > 1e-3
    at = _Slice(group, net.weights)
    steps = []
    while not steps or steps[-1] > 1e-8:
        at.level()
        steps.append(at.sweep())
    assert len(steps) < 25
    done = balance(group, net, 1e-10)
    assert unbalanced(done, group) < 1e-9
    assert float(done.weights.norm()) < float(net.weights.norm())


def test_the_network_that_is_balanced_stays_as_it_is():
    net = deep(2)
    before = net.weights.clone()
    balance(Symmetry.of(net, torch.zeros(2, 4)), net)
    assert all(torch.equal(before[n], net.weights[n]) for n in before)


@pytest.mark.parametrize("room", [0, 1 << 20])
def test_squares_that_are_made_again_lead_to_the_same_point(room, monkeypatch):
    import sys

    net = uneven(deep(3))
    group = Symmetry.of(net, torch.zeros(2, 4))
    expected = balance(group, net, 1e-12)
    monkeypatch.setattr(sys.modules["weightspace.symmetry.balance"], "_ROOM", room)
    assert float((balance(group, net, 1e-12) - expected).norm()) < 1e-10


def test_common_factors_minimise():
    """Against the closed form of a chain of two: n exp(2t) + m exp(-2t) is least at t = log(m / n) / 4."""
    n, m = 3.0, 48.0
    found = _common(torch.tensor([n, m]).double(), torch.tensor([[1.0], [-1.0]]).double())
    assert float(found) == pytest.approx(torch.tensor(m / n).log().item() / 4)


@pytest.mark.parametrize("norms", [(0.0, 2.0), (2.0, 0.0), (0.0, 0.0)])
def test_a_direction_without_a_minimum_stays(norms):
    found = _common(torch.tensor(norms).double(), torch.tensor([[1.0], [-1.0]]).double())
    assert float(found) == 0


def test_dead_units_are_left_alone():
    net = deep(1)
    name = next(iter(net.weights))
    rows: Tensor = net.weights[name].clone()
    rows[0] = 0
    bias = net.weights["0.bias"].clone()
    bias[0] = 0
    dead = net.at(net.weights.replace({name: rows, "0.bias": bias}))
    group = Symmetry.of(net, torch.zeros(2, 4))
    done = balance(group, dead)
    x = torch.randn(5, 4, dtype=torch.float64)
    assert not done.weights.unusable()
    assert torch.allclose(done(x), dead(x), rtol=1e-9)


def linear_chain(layers: int, width: int = 5) -> Net:
    """A deep linear network: every matrix is shared by two general linear groups."""
    torch.manual_seed(layers)
    inner = [nn.Linear(width, width, bias=False) for _ in range(layers)]
    return Net.of(nn.Sequential(nn.Linear(7, width, bias=False), *inner, nn.Linear(width, 6, bias=False))).double()


@pytest.mark.parametrize("layers", [1, 4, 6])
def test_a_deep_linear_network_is_balanced_in_few_turns(layers, monkeypatch):
    """At the least norm W_i W_i^T = W_{i+1}^T W_{i+1}; plain turns take several times as many at six layers."""
    turns, plain = [], balancing._unit_products
    monkeypatch.setattr(balancing, "_unit_products", lambda *args: turns.append(1) or plain(*args))
    net = linear_chain(layers)
    group = Symmetry.of(net, torch.zeros(2, 7))
    g = group.sample(1, ("linear",))
    least = [balance(group, each, 1e-11) for each in (net, g(net))]
    accelerated = len(turns)
    for each in least:
        found = list(each.weights.values())
        for one, two in zip(found, found[1:], strict=False):
            torch.testing.assert_close(one @ one.T, two.T @ two, rtol=0, atol=1e-8)
    assert float(least[0].weights.norm()) == pytest.approx(float(least[1].weights.norm()), rel=1e-12)
    turns.clear()
    monkeypatch.setattr(balancing._Anderson, "next", lambda self, point, image: image)
    balance(group, net, 1e-11)
    assert accelerated / 2 < 25 + 9 * layers
    assert layers == 1 or accelerated / 2 < len(turns) / 2


def lacking(which: str) -> Net:
    """A low-rank pair, B A of rank 4, one or both of whose factors have less."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 4), nn.Linear(4, 6)).double()
    with torch.no_grad():
        if which == "zero weight, bias kept":
            net[0].weight.zero_()
        if which in ("first", "both"):
            net[0].weight.copy_(net[0].weight[:, :1] @ net[0].weight[:1])
            net[0].bias.zero_()
        if which in ("second", "both"):
            net[1].weight.copy_(net[1].weight[:, :2] @ net[1].weight[:2, :])
    return Net.of(net)


@pytest.mark.parametrize("which", ["zero weight, bias kept", "first", "second", "both"])
def test_factors_of_less_than_full_rank_are_balanced_to_the_same_function(which):
    """There is no least norm, the factors would run away; with one whole factor copies still come to one form."""
    net, x = lacking(which), torch.randn(9, 7, dtype=torch.float64)
    group = Symmetry.of(net, x)
    assert str(group) == "GL4"
    for each in (net, net.to(torch.float32)):
        level = balance(group, each, 1e-8)
        torch.testing.assert_close(level(x.to(each.dtype)), each(x.to(each.dtype)))
        assert float(level.weights.norm()) < 3 * float(each.weights.norm())
    if which != "both":
        copy = group.sample(2)(net)
        torch.testing.assert_close(group.align(copy, to=net)(x), net(x))
        assert float((group.align(copy, to=net) - net).norm()) < 1e-5 * float(net.weights.norm())
