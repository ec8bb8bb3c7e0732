"""What constraints leave of the permutations: found where it is known, and every move leaves the function alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from weightspace.constraints.constraining import constrain
from weightspace.constraints.shared import Masked
from weightspace.net.net import Net
from weightspace.symmetry.constrained import remaining
from weightspace.symmetry.symmetry import Symmetry

SIDE = 6
X = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
FOUND = {
    "circulant": ["C6 on 0.weight[0]", "C6 on 2.weight[0]", "S2 on 0.weight[0] and 2.weight[0]"],
    "block-circulant:3": [
        "S2 on 0.weight[0]", "C3 on 0.weight[0]", "S2 on 2.weight[0]", "C3 on 2.weight[0]",
        "S2 on 0.weight[0] and 2.weight[0]",
    ],
    "doubly-block-circulant:2x3": [
        "C2 on 0.weight[0]", "C3 on 0.weight[0]", "C2 on 2.weight[0]", "C3 on 2.weight[0]",
        "S2 on 0.weight[0] and 2.weight[0]",
    ],
    "toeplitz": ["S2 on 0.weight[0] and 2.weight[0]"],
    "shared-blocks:2x3": ["S2 on 0.weight[0]", "S3 on 0.weight[0]", "S3 on 2.weight[0]", "S2 on 2.weight[0]"],
    "symmetric": ["S6 on 0.weight[0] and 2.weight[0]"],
    "antisymmetric": ["S6 on 0.weight[0] and 2.weight[0]"],
    "orthogonal": ["S6 on 0.weight[0]", "S6 on 2.weight[0]"],
    "low-rank:2": [],
    "sorted:first": [],
    "sorted:mean": ["S6 on 0.weight[0]"],
    "asymmetric:0.3": [],
}  # fmt: skip


def network(form) -> Net:
    torch.manual_seed(0)
    layers = nn.Linear(4, SIDE), nn.Tanh(), nn.Linear(SIDE, SIDE), nn.Tanh(), nn.Linear(SIDE, 3)
    return constrain(Net.of(nn.Sequential(*layers).double()), {"2.weight": form})


@pytest.mark.parametrize("form", FOUND)
def test_the_moves_that_are_known_are_found_and_leave_the_function_alone(form):
    net = network(form)
    moves = remaining(net, X[:2])
    assert sorted(move.name for move in moves) == sorted(FOUND[form])
    for move in moves:
        moved = move(net)
        assert torch.allclose(moved(X), net(X), atol=1e-9) and float((moved - net).norm()) > 1e-3
        back = net
        for _ in range(move.order):
            back = move(back)
        assert torch.allclose(back(X), net(X), atol=1e-8)
        assert all(torch.allclose(back.weights[n], w, atol=1e-6) for n, w in net.weights.items())


@pytest.mark.parametrize("form", ["circulant", "sorted:first", "asymmetric:0.3"])
def test_the_group_says_what_is_left(form):
    group = Symmetry.of(network(form), X[:2])
    said = " ".join(group.notes)
    assert {
        "circulant": "is kept by C6 on 0.weight[0], C6 on 2.weight[0]",
        "sorted:first": "no permutation of its rows is left, up to ties",
        "asymmetric:0.3": "no permutation of its rows or columns was found",
    }[form] in said


def test_low_rank_leaves_the_general_linear_group_of_its_factors():
    assert "GL2" in str(Symmetry.of(network("low-rank:2"), X[:2]))


def test_a_move_that_breaks_the_form_is_not_taken():
    mask = torch.ones(SIDE, SIDE)
    mask[0, 0] = 0
    assert remaining(network(Masked(mask)), X[:2]) == []  # all but one order of units is lost for the candidates
    equal = torch.ones(SIDE, SIDE)
    equal[:, 0] = 0  # the units of the second layer may still trade places
    assert [m.name for m in remaining(network(Masked(equal)), X[:2])] == ["S6 on 2.weight[0]"]


def test_a_network_without_values_is_read_and_not_judged():
    group = Symmetry.of(network("circulant").to("meta"), X[:2].to("meta"))
    assert not any("circulant" in note for note in group.notes)


def test_networks_without_constraints_have_none():
    assert remaining(Net.of(nn.Linear(4, 3).double()), X[:2]) == []
