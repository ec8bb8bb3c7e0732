"""Continuous moves: their derivatives, where one tensor holds several blocks that move."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from weightspace.net.net import Net
from weightspace.symmetry.align.moves import moves_of
from weightspace.symmetry.symmetry import Symmetry


@pytest.mark.parametrize("linear", [True, False])
def test_derivatives_are_right_where_blocks_share_a_tensor(linear):
    """Queries, keys and values lie in one tensor; what is put into one block leaves the gradient of the others."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 6, 0.0, "gelu", batch_first=True, norm_first=True)
    net = Net.of(nn.Sequential(nn.Linear(3, 4), layer, nn.LayerNorm(4), nn.Linear(4, 2)).eval())
    group = Symmetry.of(net, torch.randn(2, 5, 3), linear=linear)
    base = group.fold(net).double()
    weight = {name: torch.randn_like(tensor) for name, tensor in base.tensors.items()}
    found = moves_of(group, torch.empty((), dtype=torch.float64))
    assert found
    for moves in found:
        parameters = list(moves.parameters.values())
        with torch.no_grad():
            for p in parameters:
                p.normal_(0, 0.1)

        def value(*_, moves=moves):
            return sum((weight[name] * tensor).sum() for name, tensor in moves.moved(base.tensors).items())

        assert torch.autograd.gradcheck(value, parameters)
