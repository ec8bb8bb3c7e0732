"""Low rank and orthogonal weights against the decompositions of linear algebra."""

from __future__ import annotations

import math

import pytest
import torch

import weightspace as ws
from tests.constraints.kinds import drawn
from weightspace.constraints.matrices import LowRank, Orthogonal, logarithm
from weightspace.net.errors import WeightspaceError

SHAPES = [(4, 4), (7, 3), (3, 7), (5, 1), (4, 3, 2, 2), (3, 2, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_nearest_of_low_rank_has_the_other_singular_values_as_its_distance(shape):
    weight = drawn(0, *shape)
    s = torch.linalg.svdvals(weight.flatten(1))
    for rank in range(1, len(s) + 1):
        near = LowRank(rank).nearest(weight)
        assert near.shape == weight.shape and int(torch.linalg.matrix_rank(near.flatten(1))) == rank
        assert math.isclose(float((near - weight).norm()), float(s[rank:].norm()), abs_tol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_the_nearest_orthogonal_weight_is_the_polar_factor(shape, seed):
    weight = drawn(seed, *shape)
    near = Orthogonal().nearest(weight).flatten(1)
    u, _, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    assert torch.allclose(near, u @ v, atol=1e-9)
    assert torch.allclose(
        near.T @ near if len(near) >= len(near[0]) else near @ near.T, torch.eye(min(near.shape)).double()
    )


@pytest.mark.parametrize(
    "rotation",
    [
        torch.eye(5).double(),
        -torch.eye(4).double(),
        torch.diag(torch.tensor([-1.0, 1, -1, 1, 1])).double(),
        torch.eye(6).double()[[1, 2, 0, 4, 5, 3]],
        torch.block_diag(torch.tensor([[0.0, -1.0], [1.0, 0.0]]), torch.tensor([[0.0, -1.0], [1.0, 0.0]])).double(),
    ],
)
def test_rotations_have_logarithms_also_by_half_turns(rotation):
    angles = logarithm(rotation)
    assert torch.allclose(angles, -angles.T) and torch.allclose(torch.matrix_exp(angles), rotation, atol=1e-12)


def test_reflections_are_kept_apart_from_rotations():
    for sign in (1.0, -1.0):
        weight = torch.diag(torch.tensor([1.0, 1.0, sign], dtype=torch.float64))
        assert torch.allclose(Orthogonal().nearest(weight), weight, atol=1e-12)
        assert float(Orthogonal().state(weight)["orientation"]) == sign


@pytest.mark.parametrize(
    ("kind", "shape", "match"),
    [
        (LowRank(4), (3, 5), "its rank is at most 3, not 4; give a smaller rank"),
        (LowRank(1), (3,), "needs rows and columns"),
        (Orthogonal(), (3,), "needs rows and columns"),
        (Orthogonal(), (1, 1), "1 or -1"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(kind, shape, match):
    with pytest.raises(WeightspaceError, match=match):
        kind.check(shape, "layer.weight")


@pytest.mark.parametrize("rank", [0, -1, True])
def test_ranks_are_whole_numbers(rank):
    with pytest.raises(WeightspaceError, match="a rank is a whole number from 1"):
        LowRank(rank)


def test_the_line_between_orthogonal_weights_of_opposite_signs_has_no_jump():
    g = torch.Generator().manual_seed(0)
    one = torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=torch.float64))[0]
    other = one @ torch.diag(torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=torch.float64))
    nets = []
    for weight in (one, other):
        module = torch.nn.Linear(4, 4, bias=False, dtype=torch.float64)
        with torch.no_grad():
            module.weight.copy_(weight)
        nets.append(ws.constrain(ws.Net.of(module), {"weight": "orthogonal"}))
    x = torch.eye(4, dtype=torch.float64)
    line = [nets[0].lerp(nets[1], t)(x) for t in (0.0, 0.499, 0.501, 1.0)]
    assert float((line[1] - line[2]).norm()) < 0.1
    assert float((line[0] - one.T).norm()) < 1e-9 and float((line[3] - other.T).norm()) < 1e-9
