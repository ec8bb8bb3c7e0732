"""Products with a Jacobian layer by layer against the explicit one, in float64, and where there are none."""

from __future__ import annotations

import pytest
import torch
from dense import NETS, case, explicit
from torch import nn

from weightspace.curvature.layered import Layered, Setting
from weightspace.net.net import Net
from weightspace.task.task import Task


class Tokens(nn.Module):
    """A linear map at every position, then one without."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(20, 2)

    def forward(self, x):
        return self.b(self.a(x).tanh().flatten(1))


WHOLE = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)), (4,)),
    "wide": (lambda: nn.Sequential(nn.Linear(2, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)), (2,)),
    "convolutions": (
        lambda: nn.Sequential(
            *(
                nn.Conv2d(1, 3, 3, padding=1, stride=2),
                nn.ReLU(),
                nn.Conv2d(3, 4, 2, bias=False, dilation=2),
                nn.Tanh(),
            ),
            *(nn.Flatten(), nn.Linear(4, 3)),
        ),
        (1, 6, 6),
    ),
    "one dimension": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2)), (2, 5)),
    "tokens": (Tokens, (5, 3)),
}


def whole(name: str, n: int = 7) -> tuple[Net, Task]:
    torch.manual_seed(1)
    build, shape = WHOLE[name]
    return Net.of(build()).double(), Task(torch.randn(n, *shape, dtype=torch.float64), torch.arange(n) % 2, batch=3)


@pytest.mark.parametrize("name", WHOLE)
def test_products_are_those_of_the_explicit_jacobian(name):
    net, task = whole(name)
    setting = Setting.of(net, task)
    assert setting is not None
    at, j = Layered(net, setting), explicit(net, task)
    u, v = torch.randn(len(j), dtype=torch.float64), net.weights.randn(0).flat()
    for found, true in ((at.push(v), j @ v), (at.pull(u), j.T @ u), (at.kernel(u), j @ (j.T @ u))):
        assert torch.allclose(found, true, atol=1e-10 * float(true.abs().max()))
    wrong = j[:, 1:] @ (j[:, 1:].T @ u)
    assert not torch.allclose(at.kernel(u), wrong, atol=1e-6), "a weight left out must be seen"


@pytest.mark.parametrize("name", WHOLE)
def test_the_parts_of_the_kernel_are_those_of_their_weights(name):
    net, task = whole(name)
    at, j = Layered(net, Setting.of(net, task)), explicit(net, task)
    columns = net.weights.shaped(torch.arange(j.shape[1], dtype=torch.float64))
    blocks = {key: j[:, column.flatten().long()] for key, column in columns.items()}
    without = {"convolutions": "02", "one dimension": "0", "tokens": "a"}.get(name, "")
    part = sum(b @ b.T for key, b in blocks.items() if key[0] not in without)
    assert torch.allclose(at.part(), part, atol=1e-10 * float(part.abs().max()))


def test_another_network_of_the_setting_has_its_own_jacobian():
    net, task = whole("mlp")
    setting, other = Setting.of(net, task), net + 0.3 * net.weights.randn(2)
    v = net.weights.randn(0).flat()
    true = explicit(other, task) @ v
    assert torch.allclose(Layered(other, setting).push(v), true, atol=1e-10)
    assert not torch.allclose(Layered(net, setting).push(v), true, atol=1e-4), "the old one must be seen"


@pytest.mark.parametrize("name", [name for name in NETS if name != "mlp"])
def test_weights_without_a_rule_take_another_way(name):
    assert Setting.of(*case(name)) is None


def test_frozen_weights_and_large_tasks_take_another_way():
    net, task = whole("mlp")
    module = net.module()
    module[0].weight.requires_grad_(False)
    assert Setting.of(Net.of(module), task) is None
    assert Setting.of(net, Task(torch.randn(3000, 4, dtype=torch.float64), torch.zeros(3000).long())) is None
