"""Products by the Fourier transform equal those with the matrix: values, gradients, and where they are not taken."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.constraints.kinds import drawn
from weightspace.constraints import fourier
from weightspace.constraints.constraining import constrain, released
from weightspace.constraints.fourier import FOURIER_SIZE, FourierLinear, circular
from weightspace.constraints.shared import Circulant
from weightspace.curvature.linearised import jacobian
from weightspace.net.net import Net
from weightspace.task.task import Task


def layers(size: int = FOURIER_SIZE, *, grid: tuple[int, ...] | None = None, rows: int = 1) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(size, rows * size), nn.Tanh(), nn.Linear(rows * size, 2)).double()
    return constrain(module, {"0.weight": Circulant(grid)})


@pytest.mark.parametrize("grid", [(5,), (6,), (3, 4), (4, 5)])
@pytest.mark.parametrize("channels", [(1, 1), (3, 2)])
def test_the_product_is_that_with_the_matrix(grid, channels):
    kind, size = Circulant(grid), int(torch.tensor(grid).prod())
    shape = (channels[0] * size, channels[1] * size)
    free, x = drawn(0, *kind.form(shape)), drawn(1, 2, 3, shape[1])
    assert torch.allclose(circular(free, x, grid), x @ kind.weight((free,), shape, {}).T, atol=1e-12)
    for f in (free, x):
        f.requires_grad_()
    assert torch.autograd.gradcheck(lambda f, v: circular(f, v, grid), (free, x))


@pytest.mark.parametrize(("grid", "rows"), [(None, 1), ((FOURIER_SIZE,), 2), ((16, 16), 1)])
def test_a_large_layer_gives_what_its_matrix_gives(grid, rows):
    module = layers(grid=grid, rows=rows)
    assert isinstance(module[0], FourierLinear)
    plain, x = released(copy.deepcopy(module)), drawn(0, 4, FOURIER_SIZE)
    assert type(plain[0]) is nn.Linear and torch.allclose(module(x), plain(x), atol=1e-10)
    module(x).square().sum().backward()
    free, weight = module[0].parametrizations.weight.original.grad, plain[0].weight
    plain(x).square().sum().backward()
    kind = module[0].parametrizations.weight[0].kind
    count = torch.bincount(kind.index(tuple(weight.shape)).reshape(-1)).view(free.shape)
    assert torch.allclose(free, kind.solved(weight.grad, {})[0] * count, atol=1e-9)


def test_it_is_the_transform_that_is_taken_and_only_where_it_can_be(monkeypatch):
    module, taken = layers(), []
    monkeypatch.setattr(fourier, "circular", lambda c, x, grid: taken.append(1) or circular(c, x, grid))
    x = drawn(0, 4, FOURIER_SIZE)
    module(x)
    assert len(taken) == 1
    export = torch.export.export(module, (x,))
    assert len(taken) == 1 and not any("fft" in str(node.target) for node in export.graph.nodes)
    half = copy.deepcopy(module).to(torch.bfloat16)
    assert half(x.to(torch.bfloat16)).dtype == torch.bfloat16 and len(taken) == 1
    assert module(x[:0]).shape == (0, 2) and len(taken) == 1


def test_small_layers_and_other_classes_multiply_with_the_matrix():
    class Own(nn.Linear):
        pass

    assert type(layers(8)[0]).__name__ == "ParametrizedLinear"
    own = constrain(Own(FOURIER_SIZE, FOURIER_SIZE), {"weight": "circulant"})
    assert isinstance(own, Own) and not isinstance(own, FourierLinear)


def test_a_network_of_a_large_layer_has_its_derivatives():
    net, x = Net.of(layers()), drawn(0, 3, FOURIER_SIZE)
    direction = net.weights.randn(0)
    ends = [net + t * direction for t in (1e-6, -1e-6)]
    slope, plain = ((f(x) - g(x)) / 2e-6 for f, g in (ends, [released(end) for end in ends]))
    assert torch.allclose(slope, plain, atol=1e-6)
    assert torch.allclose(jacobian(net, Task(x)).matvec(direction.flat()), slope.reshape(-1), atol=1e-6)
