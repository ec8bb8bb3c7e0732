"""Distances modulo the group: lower bounds by parts, against all at once."""

import pytest
import torch

import weightspace as ws
from weightspace.symmetry import quotient


@pytest.mark.parametrize("shape", [(500, 6), (6, 500), (64, 64), (40, 7)])
def test_singular_values_by_parts_are_those_of_the_whole(shape, monkeypatch):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    whole = torch.linalg.svdvals(x.double())
    monkeypatch.setattr(quotient, "_AT_ONCE", 32)
    assert (quotient._singular_values(x) - whole).abs().max() < 1e-12 * whole[0]
    assert (quotient._singular_values(x[1:]) - whole[: min(x[1:].shape)]).abs().max() > 1e-4


def test_a_bound_by_parts_holds_for_a_turned_table(monkeypatch):
    torch.manual_seed(0)
    table = torch.nn.Sequential(torch.nn.Embedding(400, 8), torch.nn.RMSNorm(8), torch.nn.Linear(8, 3))
    net = ws.Net.of(table)
    group = ws.Symmetry.of(net, torch.arange(5)[None])
    assert "O8" in str(group)
    far = net + 0.3 * net.weights.randn(1)
    wanted = ws.modulo(group)(net, far)
    monkeypatch.setattr(quotient, "_AT_ONCE", 32)
    found = ws.modulo(group)(net, group.sample(2)(far))
    assert 0 < found.lower <= found.upper
    assert found.lower == pytest.approx(wanted.lower, rel=1e-5) and found.upper == pytest.approx(wanted.upper, rel=1e-4)
