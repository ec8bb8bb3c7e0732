"""What a layer tells of a nuisance, against closed forms, dense Jacobians and nested Monte Carlo."""

from __future__ import annotations

import math

import pytest
import torch
from architectures import Apply
from torch import nn
from torch.func import functional_call, jacrev

from weightspace import digits
from weightspace.codes.nuisance import (
    Nuisance,
    brightness,
    contrast,
    effective_information,
    information_cost,
    rotation,
    translation,
)
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.task.task import Task


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(inputs: int = 4, outputs: int = 5) -> Net:
    torch.manual_seed(0)
    module = nn.Linear(inputs, outputs, bias=False).double()
    nn.init.normal_(module.weight)
    return Net.of(module)


def mlp() -> Net:
    torch.manual_seed(0)
    return Net.of(nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 3)).double())


def everywhere(net: Net, size: float):
    return net.weights.map(lambda w: torch.full_like(w, size))


# ------------------------------------------------------------------ closed forms and oracles


@pytest.mark.parametrize("size", [0.03, 0.3])
def test_a_linear_layer_has_a_formula(size):
    """z | x ~ N(W x, s^2 |x|^2 I)."""
    net, x = linear(), noise(30, 4)
    w, sigma = net.weights["weight"], x.T.cov()
    each = [torch.logdet(torch.eye(4) + sigma @ w.T @ w / (size * one.norm()) ** 2) / 2 for one in x]
    found = effective_information(net, Task(x), noise=everywhere(net, size)).layers["outputs"]
    assert found.value == pytest.approx(float(torch.stack(each).mean()), rel=1e-9)
    assert found.error == pytest.approx(float(torch.stack(each).std()) / math.sqrt(30), rel=1e-9)
    relative = size * math.sqrt(w.numel()) / float(w.norm())
    assert effective_information(net, Task(x), noise=relative).layers["outputs"].value == pytest.approx(found.value)


@pytest.mark.parametrize("inputs, size", [(3, 0.1), (8, 0.3)])
def test_a_linear_layer_by_nested_monte_carlo(inputs, size):
    """I(x; z) = E log p(z|x) - log E_x' p(z|x'): within 5 % of the formula, which sees no information in variances."""
    net, n, many = linear(inputs, 4), 1000, 5000
    w, x, other = net.weights["weight"], noise(n, inputs, seed=1), noise(many, inputs, seed=2)
    z = x @ w.T + size * x.norm(dim=1, keepdim=True) * noise(n, 4, seed=3)

    def log_p(z, x):
        deviation = size * x.norm(dim=-1)
        return -((z - x @ w.T) / deviation[..., None]).square().sum(-1) / 2 - 4 * deviation.log()

    mixture = torch.stack([log_p(one, other).logsumexp(0) - math.log(many) for one in z])
    seen = float((log_p(z, x) - mixture).mean())
    found = effective_information(net, Task(noise(300, inputs, seed=4)), noise=everywhere(net, size))
    assert found.layers["outputs"].value == pytest.approx(seen, rel=0.05)
    wrong = effective_information(net, Task(noise(300, inputs, seed=4)), noise=everywhere(net, 1.3 * size))
    assert wrong.layers["outputs"].value != pytest.approx(seen, rel=0.05)


@pytest.mark.parametrize("layer", ["1", "outputs"])
@pytest.mark.parametrize("about", [None, contrast(0.2)])
def test_layers_against_dense_jacobians(layer, about):
    net, x = mlp(), noise(8, 4)
    sizes = everywhere(net, 0.1).replace({"0.weight": torch.full((6, 4), 0.3)})
    parts = {"1": lambda m: m[:2], "outputs": lambda m: m}[layer]

    def f(weights, x):
        chosen = {name: w for name, w in weights.items() if layer == "outputs" or name.startswith("0")}
        return functional_call(parts(net.module()), chosen, (x[None],))[0]

    covariance = x.T.cov() if about is None else torch.full((1, 1), 0.04)
    each = []
    for one in x:
        by_weight = jacrev(f)(dict(net.weights), one)
        felt = sum((j.flatten(1) * sizes[name].flatten()) @ (j.flatten(1) * sizes[name].flatten()).T
                   for name, j in by_weight.items())  # fmt: skip
        moved = jacrev(lambda v: f(dict(net.weights), v))(one)
        moved = moved if about is None else moved @ one[:, None]
        inner = moved.T @ torch.linalg.pinv(felt, hermitian=True, rtol=1e-6) @ moved
        each.append(torch.logdet(torch.eye(len(inner)) + covariance.double() @ inner) / 2)
    found = effective_information(net, Task(x), about, layer=layer, noise=sizes)
    assert list(found.layers) == [layer]
    assert found.layers[layer].value == pytest.approx(float(torch.stack(each).mean()), rel=1e-7)


def test_a_later_layer_cannot_tell_more_than_the_noise_before_it_lets_through():
    """Noise on the first layer alone: the hidden units are a channel, and what comes after knows no more."""
    net, x = mlp(), Task(noise(20, 4))
    first = everywhere(net, 0.0).replace({"0.weight": torch.full((6, 4), 0.2), "0.bias": torch.full((6,), 0.2)})
    layers = effective_information(net, x, contrast(), noise=first).layers
    assert 0 < layers["outputs"].value < layers["1"].value


def test_copies_of_a_unit_tell_nothing_more():
    """J S J^T is singular: the pseudo-inverse, and no infinity."""
    torch.manual_seed(0)
    twice = Net.of(Apply(lambda m, x: torch.cat([m.a(x), m.a(x)], 1), a=nn.Linear(4, 3)).double())
    once = Net.of(Apply(lambda m, x: m.a(x), a=nn.Linear(4, 3)).double()).at(twice.weights)
    found = [effective_information(net, Task(noise(9, 4))).layers["outputs"].value for net in (once, twice)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    flat = Net.of(Apply(lambda m, x: m.a(x) * 0, a=nn.Linear(4, 3)).double())
    assert effective_information(flat, Task(noise(9, 4))).layers["outputs"].value == 0


def test_what_a_layer_is_blind_to_it_tells_nothing_of():
    torch.manual_seed(0)
    centred = Net.of(Apply(lambda m, x: m.a(x - x.mean(1, keepdim=True)), a=nn.Linear(4, 3)).double())
    plain = Net.of(Apply(lambda m, x: m.a(x), a=nn.Linear(4, 3)).double()).at(centred.weights)
    x = Task(noise(9, 4))
    blind, seen = (effective_information(net, x, brightness()).layers["outputs"].value for net in (centred, plain))
    assert blind == pytest.approx(0, abs=1e-12) and seen > 0.01
    assert effective_information(plain, x, brightness(1.0)).layers["outputs"].value > seen


def test_a_projection_tells_less_and_costs_less():
    net, x = mlp(), Task(noise(6, 4))
    layers = [effective_information(net, x, units=k).layers["1"] for k in (2, 4, 6)]
    assert layers[0].value < layers[1].value < layers[2].value
    assert layers[0].products == 12 and information_cost(net, x, units=2) == 6 * 4
    assert information_cost(net, x, layer="1") == 36


def test_a_posterior_is_a_noise():
    class Posterior:
        log_variance = everywhere(mlp(), math.log(0.01))

    net, x = mlp(), Task(noise(6, 4))
    found = effective_information(net, x, noise=Posterior()).data()
    plain = effective_information(net, x, noise=everywhere(net, 0.1)).data()
    assert found["layers"]["1"] == pytest.approx(plain["layers"]["1"])
    assert found["nuisance"] == "inputs" and found["units"] == {"1": 6, "outputs": 3}


# ------------------------------------------------------------------ nuisances


def test_images_move_as_they_are_told():
    x = noise(2, 1, 7, 7)
    shifted = translation().act(x, torch.tensor([[1.0, 0.0], [0.0, -1.0]]).double())
    torch.testing.assert_close(shifted[0, :, :, 1:], x[0, :, :, :-1])
    torch.testing.assert_close(shifted[1, :, :-1], x[1, :, 1:])
    turned = rotation().act(x, torch.full((2, 1), 90.0).double())
    torch.testing.assert_close(turned, x.rot90(1, (-2, -1)))
    zero = torch.zeros(2, 1).double()
    for nuisance in (rotation(), brightness(), contrast()):
        torch.testing.assert_close(nuisance.act(x, zero), x)
    assert torch.equal(brightness().act(x, zero + 1), x + 1) and torch.equal(contrast().act(x, zero + 1), 2 * x)


def test_digits_by_layer():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    test, seen = digits("test").take(3), list[tuple[int, int]]()
    for nuisance in (translation(), rotation()):
        found = effective_information(
            Net.of(module), test, nuisance, units=8, progress=lambda k, n: seen.append((k, n))
        )  # fmt: skip
        assert list(found.layers) == ["1", "outputs"] and found.units == {"1": 8, "outputs": 8}
        assert all(0 < layer.value < 10 for layer in found.layers.values())
    assert seen == [(1, 3), (2, 3), (3, 3)] * 2


JUMP = Nuisance("jump", lambda x, t: x + 1 + t, (1.0,))
CUT = Nuisance("cut", lambda x, t: (x * (1 + t))[:, :2], (1.0,))
ONES = everywhere(mlp(), 1.0)
DEAF = Nuisance("deaf", lambda x, t: x, (1.0,))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda net, x: effective_information(net, x, noise=0.0), "noise must be positive and finite, got 0"),
        (lambda net, x: effective_information(net, x, noise=math.nan), "got nan"),
        (lambda net, x: effective_information(net, x, noise="much"), "got much"),
        (lambda net, x: effective_information(net, x, noise=net.weights), "must be finite and not negative"),
        (lambda net, x: effective_information(net, x, noise=linear().weights), "not the same architecture"),
        (lambda net, x: effective_information(net, x, layer="relu"), "no layer 'relu'; there are 1, outputs"),
        (lambda net, x: effective_information(net, x, units=0), "1 unit or more"),
        (lambda net, x: effective_information(net, x, brightness(0.0)), "spread of brightness must be positive"),
        (lambda net, x: effective_information(net, x, JUMP), "jump changes the inputs at t = 0"),
        (lambda net, x: effective_information(net, x, CUT), "keeps the shape"),
        (lambda net, x: effective_information(net, x, DEAF), "is differentiable"),
        (lambda net, x: effective_information(net, x, rotation()), r"expected images .* got shape \(1, 4\)"),
        (lambda net, x: effective_information(net, Task(noise(3, 4) / 0)), "inputs hold NaN"),
        (lambda net, x: effective_information(net, Task({"a": noise(3, 4)})), "got dict"),
        (lambda net, x: effective_information(net, Task(noise(1, 4))), "two examples or more"),
        (lambda net, x: effective_information(net, Task(noise(0, 4))), "no examples"),
        (lambda net, x: effective_information(net + math.nan * net.weights, x, noise=ONES), "layer 1 holds NaN"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_said_in_one_line(call, message):
    with pytest.raises(WeightspaceError, match=message) as caught:
        call(mlp(), Task(noise(3, 4)))
    assert "\n" not in str(caught.value)
    assert issubclass(WeightspaceError, WeightspaceError)
