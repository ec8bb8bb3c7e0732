import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.net.errors import WeightspaceError


def build():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("model", [build, build(), ws.Net.of(build())], ids=["function", "module", "net"])
def test_a_seed_draws_one_network_and_leaves_torchs_generator_alone(model):
    before = torch.get_rng_state()
    a, b, c = (ws.fresh(model, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert (a - b).norm() == 0 < (a - c).norm()
    torch.manual_seed(3)
    assert (a - ws.Net.of(build())).norm() == 0


def test_statistics_begin_anew():
    module = build().train()
    module(torch.randn(32, 4))
    assert ws.fresh(module, 0).state["1.running_mean"].norm() == 0 < module[1].running_mean.norm()


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.w * x


def test_what_cannot_be_drawn():
    with pytest.raises(WeightspaceError, match="no part of the module draws w anew; give a function"):
        ws.fresh(Bare(), 0)
    assert float(ws.fresh(Bare, 0).weights["w"].sum()) == 2
