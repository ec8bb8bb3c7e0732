"""Matrices in factors, against the dense ones."""

import pytest
import torch
from lora_folders import normal

from weightspace.merging.adapters.low_rank import LowRank, stacked, tied
from weightspace.net.errors import WeightspaceError

A, B = LowRank(normal(0, 9, 3), normal(1, 3, 7)), LowRank(normal(2, 9, 2), normal(3, 2, 7))


def test_norms_products_and_sums_are_those_of_the_dense_matrices():
    assert A.shape == (9, 7) and A.rank == 3
    assert A.norm() == pytest.approx(float(A.dense().norm()), rel=1e-12)
    assert A.inner(B) == pytest.approx(float((A.dense() * B.dense()).sum()), rel=1e-12)
    both = stacked([A, B], [2.0, -0.5])
    torch.testing.assert_close(both.dense(), 2 * A.dense() - 0.5 * B.dense())
    assert both.rank == 5
    torch.testing.assert_close(A.values(), torch.linalg.svdvals(A.dense())[:3])


@pytest.mark.parametrize("rank", [1, 2, 4, 9])
def test_a_cut_is_that_of_the_dense_svd(rank):
    both = stacked([A, B], [1.0, 1.0])
    u, s, v = torch.linalg.svd(both.dense(), full_matrices=False)
    found, error = both.cut(rank)
    torch.testing.assert_close(found.dense(), u[:, :rank] * s[:rank] @ v[:rank])
    assert error == pytest.approx(float(s[rank:].norm() / s.norm()), abs=1e-12)
    torch.testing.assert_close(found.left.norm(dim=0), found.right.norm(dim=1))


def test_the_difference_of_equal_products_is_rounding():
    m = normal(5, 3, 3)
    other = LowRank(A.left @ m.inverse(), m @ A.right)
    assert stacked([A, other], [1.0, -1.0]).norm() < 1e-12 * A.norm()


def test_tied_factors_give_every_update_back():
    parts = [A, B, LowRank(0 * A.left, A.right)]
    basis, rights = tied(parts)
    for part, right in zip(parts, rights, strict=True):
        torch.testing.assert_close(basis @ right, part.dense())
    joined = torch.cat(rights, 1)
    torch.testing.assert_close(joined @ joined.mT, torch.eye(5, dtype=torch.float64))
    assert basis.shape == (9, 5), "a direction that no update has is left out"


def test_wide_ranks_and_zero_updates():
    wide = LowRank(normal(0, 4, 9), normal(1, 9, 5))
    found, error = wide.cut(9)
    torch.testing.assert_close(found.dense(), wide.dense())
    assert found.rank == 4 and error < 1e-12
    none = LowRank(torch.zeros(4, 2, dtype=torch.float64), normal(1, 2, 5))
    assert none.cut(1)[1] == 0.0 and not none.cut(1)[0].dense().any() and none.norm() == 0
    assert not (tied([none, none])[0] @ tied([none, none])[1][0]).any()
    with pytest.raises(WeightspaceError, match="a rank of 0; give 1 or more"):
        wide.cut(0)
