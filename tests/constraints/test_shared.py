"""Shared and held entries: what each form looks like, convolutions, and shapes that do not fit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.constraints.kinds import SIDE, drawn
from weightspace.constraints.shared import (
    Antisymmetric,
    Asymmetric,
    Circulant,
    Masked,
    SharedBlocks,
    Symmetric,
    Toeplitz,
)
from weightspace.net.errors import WeightspaceError


def dense(kind, free, *shape):
    return kind.weight((free,), shape, kind.constants(shape, "w"))


def convolved(coefficients, x, grid):
    """The circular convolution by torch's own: y_o[i] = sum_cj c[o, c, i - j] x[c, j]."""
    flipped = coefficients.flip(list(range(2, 2 + len(grid))))
    image = x.view(len(x), -1, *grid)
    for dim, side in enumerate(grid):  # side - 1 of what comes round before the first
        image = torch.cat([image.narrow(dim + 2, 1, side - 1), image], dim + 2)
    return (F.conv1d if len(grid) == 1 else F.conv2d)(image, flipped).flatten(1)


@pytest.mark.parametrize("grid", [(6,), (3,), (2, 3), (4, 4)])
@pytest.mark.parametrize("channels", [(1, 1), (2, 1), (2, 3)])
def test_a_layer_of_circulant_blocks_is_a_circular_convolution(grid, channels):
    kind, size = Circulant(grid), int(torch.tensor(grid).prod())
    free = drawn(0, *channels, *grid)
    shaped = free if channels != (1, 1) else free[0, 0]
    weight = dense(kind, shaped, channels[0] * size, channels[1] * size)
    x = drawn(1, 5, channels[1] * size)
    assert torch.allclose(x @ weight.T, convolved(free, x, grid), atol=1e-12)
    mirrored = dense(kind, shaped.flip(-1), channels[0] * size, channels[1] * size)
    assert not torch.allclose(x @ mirrored.T, convolved(free, x, grid), atol=1e-3)  # a correlation is seen


def test_a_circulant_matrix_commutes_with_shifts_and_a_doubly_circulant_one_with_both():
    shift, weight = torch.eye(6).roll(1, 0).double(), Circulant().nearest(drawn(0))
    assert torch.allclose(shift @ weight, weight @ shift)
    weight, units = Circulant((2, 3)).nearest(drawn(0)), torch.arange(6).view(2, 3)
    for dim in (0, 1):
        order = units.roll(1, dim).reshape(-1)
        assert torch.allclose(weight[order][:, order], weight)
    assert not torch.allclose(shift @ weight, weight @ shift, atol=1e-3)


def test_toeplitz_matrices_are_constant_along_diagonals():
    weight = Toeplitz().nearest(drawn(0, 4, 7))
    assert all(float(weight.diagonal(k).var(unbiased=False)) < 1e-20 for k in range(-3, 7))
    assert Toeplitz().size((4, 7)) == 10


def test_blocks_are_equal_and_entries_of_blocks_are():
    blocks = SharedBlocks(2, 3).nearest(drawn(0)).view(3, 2, 2, 3).transpose(1, 2)
    assert torch.equal(blocks, blocks[:1, :1].expand_as(blocks))
    blocks = SharedBlocks(2, 3, "entries").nearest(drawn(0)).view(3, 2, 2, 3).transpose(1, 2)
    assert torch.equal(blocks, blocks[..., :1, :1].expand_as(blocks)) and blocks.unique().numel() == 6


def test_symmetric_and_antisymmetric_parts_add_up():
    weight = drawn(0)
    one, other = Symmetric().nearest(weight), Antisymmetric().nearest(weight)
    assert torch.equal(one, one.T) and torch.equal(other, -other.T)
    assert torch.allclose(one + other, weight)


@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 3, 2, 2)])
def test_masks_and_held_entries_are_for_any_shape(shape):
    weight = drawn(0, *shape)
    mask = weight > -0.5
    assert torch.equal(Masked(mask.int()).nearest(weight), weight * mask)
    kind = Asymmetric(0.4, scale=2.0, seed=3)
    one, other = kind.nearest(weight, "w"), kind.nearest(-weight, "w")
    held = one == other
    assert int(held.sum()) == round(0.4 * weight.numel()) and torch.equal(one[~held], weight[~held])
    assert not torch.equal(kind.nearest(weight, "v"), one)  # another weight holds other entries
    assert not torch.equal(Asymmetric(0.4, scale=2.0, seed=4).nearest(weight, "w"), one)


def test_held_entries_have_the_scale_that_was_asked_for():
    drawn_at = Asymmetric(0.5, scale=3.0).nearest(torch.zeros(200, 200), "w")
    assert abs(float(drawn_at[drawn_at != 0].std()) - 3.0) < 0.1


@pytest.mark.parametrize(
    ("kind", "shape", "match"),
    [
        (Circulant(), (4, 6), "4 x 6, and a circulant matrix is square; give .block-circulant"),
        (Circulant(), (4, 4, 3, 3), "a circulant matrix is a matrix"),
        (Circulant((4,)), (4, 6), "blocks of 4 x 4 do not divide; give a size that divides 2"),
        (Circulant((2, 3)), (6, 4), "blocks of 6 x 6 do not divide"),
        (Toeplitz(), (4,), "a Toeplitz weight is a matrix"),
        (SharedBlocks(2, 4), (4, 6), "blocks of 2 x 4 do not divide"),
        (Symmetric(), (2, 3), "2 x 3, and a symmetric matrix is square; constrain a square one"),
        (Antisymmetric(), (2, 3), "square"),
        (Antisymmetric(), (1, 1), "the only antisymmetric matrix of that size is 0"),
        (Masked(torch.ones(2, 2)), (2, 3), r"shape \(2, 3\), and the mask \(2, 2\)"),
        (Masked(torch.zeros(2, 2)), (2, 2), "leaves nothing free"),
        (Asymmetric(0.01), (2, 2), "holds none or all"),
        (Circulant(), (0, 0), "constrain a matrix"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(kind, shape, match):
    with pytest.raises(WeightspaceError, match=match):
        kind.check(shape, "layer.weight")
    with pytest.raises(WeightspaceError, match="layer.weight"):
        kind.check(shape, "layer.weight")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Circulant((0,)),
        lambda: Circulant((2, 3, 4)),
        lambda: SharedBlocks(0, 2),
        lambda: Masked(torch.ones(2, dtype=torch.complex64)),
        lambda: Asymmetric(0.0),
        lambda: Asymmetric(1.0),
        lambda: Asymmetric(float("nan")),
        lambda: Asymmetric(0.2, scale=-1.0),
        lambda: Asymmetric(0.2, seed=-1),
    ],
)
def test_kinds_that_do_not_exist_are_refused(make):
    with pytest.raises(WeightspaceError, match="got|between|positive"):
        make()


def test_the_same_numbers_on_every_row_of_the_index():
    for kind in (Circulant(), Symmetric(), Toeplitz(), SharedBlocks(2, 3)):
        index = kind.index((SIDE, SIDE))
        assert index.shape == (SIDE, SIDE) and index.unique().numel() == kind.size((SIDE, SIDE))
