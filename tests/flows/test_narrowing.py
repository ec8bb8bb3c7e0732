"""Networks brought to narrower architectures: exact for widened ones, near the outputs of any other."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from architectures import CASES, noisy
from torch import nn

import weightspace as ws
from weightspace.net.net import Net
from weightspace.path.divergence import Divergence
from weightspace.symmetry.widths import widening

HELD = ("maxout", "zero_padded_shortcut", "mha_cross", "mha_memory", "tied_autoencoder_tanh")
WIDE = [name for name in CASES if name not in HELD]
FEW = ("mlp", "resnet_bn", "grouped_conv", "tied_residual", "mha", "llama", "lstm")


@pytest.mark.parametrize("name", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in WIDE])
def test_merging_units_undoes_widening(name):
    case = CASES[name]
    net = noisy(case, 0)
    drawn = widening(net, 2, case.example(0)).drawn("copies", 3).checked(net, case.example(0))
    back = drawn.narrowed(drawn.of(net), net)
    assert float((back - net).norm() / net.weights.norm()) < 1e-10
    assert all(torch.allclose(back.state[n].double(), t.double()) for n, t in net.state.items())


@cache
def digits():
    found = ws.digits().take(120, seed=0)
    return ws.Task(found.example(120).double(), found.labels())


def net_of(width, norm=False, seed=0):
    torch.manual_seed(seed)
    layers = nn.Flatten(), nn.Linear(64, width), *([nn.BatchNorm1d(width)] if norm else []), nn.ReLU()
    return Net.of(nn.Sequential(*layers, nn.Linear(width, 10))).double()


@pytest.mark.parametrize("norm", [False, True])
def test_a_widened_permuted_network_comes_back_by_a_network_near_it(norm):
    task = digits()
    net = ws.reset_statistics(net_of(8, norm), task)
    wide = ws.widen(net, 2, task.example(2), seed=1)
    copy = ws.Symmetry.of(wide, task.example(2)).sample(seed=2, kinds="permutation")(wide)
    guide = net + 0.05 * net.weights.randn(4)
    back = ws.narrow(copy, guide, task, steps=0)
    torch.testing.assert_close(back(task.example(9)), net(task.example(9)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("labelled", [True, False])
def test_steps_bring_the_outputs_nearer_and_the_result_is_never_further_than_either_start(labelled):
    task = digits() if labelled else ws.Task(digits().example(120))
    wide, to = net_of(16), net_of(8, seed=1)
    away, found = Divergence(task, [wide]), []
    for steps in (0, 60):
        found.append(ws.narrow(wide, to, task, steps=steps, size=1e-2))
    merged = ws.symmetry.narrow_toward(wide, to, task.example(2))
    far, near = (float(away(net)) for net in found)
    assert found[1].weights["1.weight"].shape == (8, 64) and near < 0.7 * far
    assert far == pytest.approx(min(float(away(net)) for net in (merged, to)))


def test_what_is_no_widening_and_numbers_out_of_range_are_refused():
    task = digits()
    for wrong, words in (
        ({"to": net_of(20)}, "narrower|fewer|wider"),
        ({"steps": -1}, "steps"),
        ({"size": 0.0}, "size"),
    ):
        with pytest.raises(ws.WeightspaceError, match=words) as said:
            ws.narrow(**{"net": net_of(16), "to": net_of(8), "task": task, **wrong})
        assert "\n" not in str(said.value)


def test_the_mean_of_two_widths_without_data_asks_for_data():
    task = digits()
    wide, to = net_of(16), net_of(8)
    group = ws.Symmetry.of(wide, task.example(2))
    for nets in ([wide, to], [to, wide]):
        with pytest.raises(ws.SymmetryError, match="give data= too"):
            ws.mean(nets, group)
