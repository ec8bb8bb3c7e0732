"""The p-value of independence: uniform for independent networks, small for relatives, and what is left out."""

import math

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.atlas.independence import independence, renumbering


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def trained(seed, steps=30, net=None):
    """A tiny network that learns one task, of a start of its own."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=generator)
    y = (x @ torch.randn(6, 3, generator=generator)).argmax(1)
    torch.manual_seed(seed)
    module = mlp() if net is None else net.module()
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x + 0.1 * torch.randn_like(x)), y).backward()
        optimizer.step()
    return ws.Net.of(module)


@pytest.fixture(scope="module")
def zoo():
    nets = [trained(seed) for seed in range(20)]
    return nets, ws.Symmetry.of(nets[0], torch.randn(2, 6), linear=False)


def test_independent_networks_have_uniform_p_values(zoo):
    """Ranks of all pairs among 19 draws fall into 20 equal parts, within binomial error."""
    nets, group = zoo
    p = [independence(nets[i].tensors, nets[j].tensors, group, draws=19).p for i in range(20) for j in range(i)]
    for level in (0.05, 0.1, 0.25, 0.5, 0.75):
        share = sum(value <= level + 1e-9 for value in p) / len(p)
        assert abs(share - level) < 4 * math.sqrt(level * (1 - level) / len(p)), (level, share)


def test_a_statistic_that_looks_at_the_answer_would_not_be_uniform(zoo):
    """The planted error: matching b to a before the test makes every pair dependent."""
    nets, group = zoo
    found = [
        independence(a.tensors, group.align(b, to=a).tensors, group, draws=19).p
        for a, b in zip(nets[:5], nets[5:10], strict=True)
    ]
    assert max(found) <= 0.1


def test_relatives_are_found(zoo):
    nets, group = zoo
    tuned = trained(100, 20, nets[0])
    found = independence(nets[0].tensors, tuned.tensors, group)
    assert found.p == 0.01 and found.sigmas > 4 and found.exact and "p <= 0.01" in str(found)
    assert found.lowest >= min(found.tensors.values()) and found.correlation > 0.8


def test_a_start_that_both_share_is_dependence(zoo):
    nets, group = zoo
    a, b = (trained(seed, 30, nets[3]) for seed in (200, 201))
    assert independence(a.tensors, b.tensors, group).p == 0.01


def test_constants_are_left_out_and_gains_near_one_are_no_evidence():
    nets = [ws.Net.of(mlp()) for _ in range(2)]
    group = ws.Symmetry.of(nets[0], torch.randn(2, 6), linear=False)
    found = independence(nets[0].tensors, nets[1].tensors, group)
    assert {"1.weight", "1.bias"} <= set(found.left_out)
    near = [{**net.tensors, "1.weight": 1 + 0.01 * torch.randn(8)} for net in nets]
    assert abs(independence(*near, group).correlations["1.weight"]) < 0.95


def test_without_a_group_it_is_evidence_and_not_a_test():
    a, b = (trained(seed).tensors for seed in (0, 1))
    found = independence(a, b, None)
    assert not found.exact and found.p == 1.0 and "evidence" in str(found)
    assert independence(a, a, None).correlation == pytest.approx(1.0)


def test_heads_whose_channels_move_within_them():
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True)

    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x, x, x, need_weights=False)[0]

    net = ws.Net.of(Attend())
    group = ws.Symmetry.of(net, torch.randn(2, 3, 8), linear=False)
    assert any(axis.over for axis in group.permutable())
    tuned = net + 0.05 * net.weights.randn(0)
    assert independence(net.tensors, tuned.tensors, group).p == 0.01
    assert independence(net.tensors, group.sample(5, "permutation")(net).tensors, group).p > 0.01


def test_renumbered_relatives_are_seen_by_two_matchings(zoo):
    nets, group = zoo
    tuned = trained(100, 20, nets[0])
    moved = group.sample(3)(tuned)
    assert independence(nets[0].tensors, moved.tensors, group).p > 0.01, "as stored they are not"
    assert renumbering(nets[0].tensors, moved.tensors, group).p < 1e-6
    strangers = [renumbering(nets[0].tensors, net.tensors, group).p for net in nets[1:12]]
    assert min(strangers) > 1e-6


def test_bad_input(zoo):
    nets, group = zoo
    a, b = (net.tensors for net in nets[:2])
    with pytest.raises(ws.WeightspaceError, match="at least one"):
        independence(a, b, group, draws=0)
    with pytest.raises(ws.WeightspaceError, match="NaN"):
        independence(a, {n: w * math.nan for n, w in b.items()}, group)
    with pytest.raises(ws.WeightspaceError, match="nothing to test"):
        independence(a, b, group.without(a))
    with pytest.raises(ws.WeightspaceError, match="two matrices"):
        renumbering(a, b, group.without(a))
