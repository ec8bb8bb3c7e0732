"""Two networks that say the same on every example were not trained apart, whatever the group reaches."""

import copy
import json
import math

import pytest
import torch
from architectures import CASES, noisy
from torch import nn

import weightspace as ws
from weightspace.commands.compare import compare
from weightspace.symmetry.verdict import judge

ORDER = [2, 0, 3, 1]


class Head(nn.Module):
    """One attention head in a module of its own."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 2, bias=False) for _ in range(3))

    def forward(self, x):
        return (self.q(x) @ self.k(x).mT).softmax(-1) @ self.v(x)


class Heads(nn.Module):
    """Heads in a ModuleList, joined by cat."""

    def __init__(self):
        super().__init__()
        self.e, self.o, self.h = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.hs = nn.ModuleList(Head() for _ in range(4))

    def forward(self, x):
        x = self.e(x)
        return self.h((x + self.o(torch.cat([h(x) for h in self.hs], -1))).mean(1))


class Experts(nn.Module):
    """A mixture of experts in a ModuleList."""

    def __init__(self):
        super().__init__()
        self.g = nn.Linear(6, 4)
        self.es = nn.ModuleList(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)) for _ in range(4))

    def forward(self, x):
        w = self.g(x).softmax(-1)
        return sum(w[:, i : i + 1] * e(x) for i, e in enumerate(self.es))


class Low(nn.Module):
    """A product of two matrices, which any invertible matrix between them leaves alone."""

    def __init__(self):
        super().__init__()
        self.b, self.a = nn.Linear(6, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x):
        return self.a(self.b(x))


def heads():
    a = Heads()
    b = copy.deepcopy(a)
    b.hs = nn.ModuleList(b.hs[i] for i in ORDER)
    b.o.weight.data = a.o.weight.data.view(8, 4, 2)[:, ORDER].reshape(8, 8).clone()
    return a, b, torch.randn(40, 5, 4)


def experts():
    a = Experts()
    b = copy.deepcopy(a)
    b.es = nn.ModuleList(b.es[i] for i in ORDER)
    b.g.weight.data, b.g.bias.data = a.g.weight.data[ORDER], a.g.bias.data[ORDER]
    return a, b, torch.randn(40, 6)


def low_rank():
    a = Low()
    b, turn = copy.deepcopy(a), torch.linalg.qr(torch.randn(8, 8))[0]
    b.b.weight.data, b.a.weight.data = turn @ a.b.weight.data, a.a.weight.data @ turn.T
    return a, b, torch.randn(40, 6)


def dead():
    """Units that never fire, drawn anew: the weights differ, the function does not."""
    a = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3))
    a[0].bias.data[8:] = -100.0
    b = copy.deepcopy(a)
    b[0].weight.data[8:], b[2].weight.data[:, 8:] = torch.randn(56, 6), torch.randn(3, 56)
    return a, b, torch.randn(40, 6)


@pytest.mark.parametrize("pair", [heads, experts, low_rank, dead])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_outputs_are_not_trained_apart(pair, dtype):
    """The verdict names the function, or finds the copy; it and the numbers are plain data."""
    torch.manual_seed(0)
    first, second, x = pair()
    a, b, x = ws.Net.of(first).to(dtype), ws.Net.of(second).to(dtype), x.to(dtype)
    with torch.no_grad():
        task = ws.Task(x, a(x), loss=nn.functional.mse_loss)
    found = compare(a, b, ws.Symmetry.of(a, x[:2]), align_on=task, measure_on=task)
    assert found.verdict.kind in ("same", "function"), found.verdict.why
    if found.verdict.kind == "function":
        assert found.verdict.words == "the same function, but no symmetry that was found maps one to the other"
        assert "which is rounding" in found.verdict.why
    assert json.loads(json.dumps(found.data()["verdict"]))["kind"] == found.verdict.kind
    blind = compare(a, b, ws.Symmetry.of(a, x[:2]))
    assert blind.verdict.kind != "function", "without data nothing is known of the outputs"


def test_outputs_that_do_not_vary_tell_nothing():
    """Networks that say the same constant to every example may well be strangers."""
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
        module[2].bias.data.fill_(1e7)
        nets.append(ws.Net.of(module))
    task = ws.Task(torch.randn(40, 6), torch.zeros(40, 3))
    found = compare(*nets, ws.Symmetry.of(nets[0], task.example(2)), align_on=task, measure_on=task)
    assert found.outputs["relative"] < 1e-5 < found.outputs["of_spread"]
    assert found.verdict.kind == "independent"


@pytest.mark.parametrize("relative", [2e-4, 0.3, 0.71, 1.41, math.sqrt(2)])
@pytest.mark.parametrize(("precision", "outputs"), [(0.0, 1e-9), (1.2e-7, 9e-6), (7.8e-3, 0.05), (9.8e-4, 5e-3)])
def test_no_distance_makes_strangers_of_one_function(relative, precision, outputs):
    assert judge(relative, precision, outputs).kind in ("same", "function")
    assert judge(relative, precision, max(1e-4, 20 * precision)).kind in ("same", "related", "independent")


@pytest.mark.parametrize("name", ["llama", "encoder_layer", "lora", "cnn_bn"])
def test_kin_stay_kin_and_strangers_strangers_under_the_whole_group(name):
    """Rotations bring strangers nearer too, but not as near as a fine-tuned network that was turned."""
    case = CASES[name]
    a, stranger = noisy(case, 1), noisy(case, 2)
    group = ws.Symmetry.of(a, case.example(0))
    moved = group.sample(3)
    noise = a.weights.shaped(torch.randn(a.weights.numel, generator=torch.Generator().manual_seed(0)).double())
    near = moved(a + (0.3 * float(a.weights.norm() / noise.norm())) * noise)
    assert compare(a, near, group).verdict.kind == "related"
    assert compare(a, moved(stranger), group).verdict.kind == "independent"
    assert compare(a, moved(a), group).verdict.kind == "same"


@pytest.mark.parametrize("what", ["bias", "running mean"])
def test_networks_that_differ_in_no_matrix_are_not_the_same_for_that(what):
    torch.manual_seed(0)
    net = ws.Net.of(nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3)).eval())
    noisy = net.at(net.weights, net.state.replace({"1.running_mean": torch.randn(9)}))
    if what == "bias":
        noisy = net.at(net.weights.replace({"3.bias": net.weights["3.bias"] + 0.1}))
    group = ws.Symmetry.of(net, torch.randn(3, 4))
    assert compare(net, noisy, group).verdict.kind == "related"
    assert compare(net, group.sample(1)(net), group).verdict.kind == "same"
