"""Spectral merges: equal singular values, tasks that do not meet, low rank, turned bases; KnOTS on updates."""

import pytest
import torch

from weightspace.merging import knots, spectral
from weightspace.merging.part import Part
from weightspace.merging.recipe import Recipe, merged
from weightspace.net.errors import WeightspaceError

DOUBLE = torch.float64
SPECTRAL = ["iso_c", "iso_cts", "tsv_m", "knots_ties"]


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def run(name, taus, weights=None, **options):
    base = drawn(*taus[0].shape, seed=99)
    part = Part("w", base.shape, [({"w": base + tau}, "w") for tau in taus], ({"w": base}, "w"), DOUBLE)
    return merged(part, Recipe(name, weights, options)) - base


def turn(n, seed):
    return torch.linalg.qr(drawn(n, n, seed=seed))[0]


def low(rank, rows=8, columns=6, seed=0):
    return drawn(rows, rank, seed=seed) @ drawn(rank, columns, seed=seed + 1)


@pytest.mark.parametrize("name", ["iso_c", "iso_cts"])
@pytest.mark.parametrize("shape", [(6, 6), (8, 5), (5, 8)], ids=str)
def test_all_singular_values_are_equal(name, shape):
    taus = [drawn(*shape, seed=k) for k in range(2)]
    values = torch.linalg.svdvals(run(name, taus, common_share=0.5) if name == "iso_cts" else run(name, taus))
    assert torch.allclose(values, values.mean().expand_as(values), rtol=1e-9)
    if name == "iso_c":
        assert float(values[0]) == pytest.approx(float(torch.linalg.svdvals(sum(taus)).mean()))


def test_tasks_whose_singular_vectors_do_not_meet_add_up():
    rows, columns = turn(8, 1), turn(8, 2)
    taus = [
        rows[:, k : k + 4] @ torch.diag(torch.arange(1.0, 5, dtype=DOUBLE)) @ columns[:, k : k + 4].mT for k in (0, 4)
    ]
    assert torch.allclose(run("tsv_m", taus), sum(taus), atol=1e-10)


@pytest.mark.parametrize("name", SPECTRAL)
def test_a_merge_has_no_more_directions_than_its_tasks(name):
    taus = [low(1, seed=0), low(1, seed=5)]
    assert int(torch.linalg.matrix_rank(run(name, taus))) <= 2
    nothing = run(name, [torch.zeros(8, 6, dtype=DOUBLE)] * 2)
    assert float(nothing.abs().max()) < 1e-12


def test_a_planted_error_of_rank_is_caught(monkeypatch):
    monkeypatch.setattr(spectral._Singular, "cut", lambda self, rank: self)
    assert int(torch.linalg.matrix_rank(run("iso_c", [low(1)]))) > 1


@pytest.mark.parametrize("name", SPECTRAL)
def test_outputs_turned_before_or_after_are_the_same(name):
    """A rotation of the rows of all task vectors is one of the merge; of the columns too where no entry is trimmed."""
    taus, rows, columns = [drawn(8, 6, seed=k) for k in range(3)], turn(8, 7), turn(6, 8)
    found = run(name, taus, [1.0, 0.5, 2.0])
    assert torch.allclose(run(name, [rows @ tau for tau in taus], [1.0, 0.5, 2.0]), rows @ found, atol=1e-9)
    both = torch.allclose(run(name, [tau @ columns for tau in taus], [1.0, 0.5, 2.0]), found @ columns, atol=1e-9)
    assert both == (name != "knots_ties")


def test_tensors_that_are_no_matrices_are_the_mean():
    for shape in ((5,), (3, 2, 2, 2), ()):
        taus = [drawn(*shape, seed=k) for k in range(2)]
        for name in SPECTRAL:
            assert torch.allclose(run(name, taus, [1.0, 3.0], scale=0.5), 0.5 * (taus[0] + 3 * taus[1]) / 2)


def test_knots_of_one_update_is_the_update():
    delta = low(3)
    assert torch.allclose(knots([delta], density=1.0), delta, atol=1e-12)
    assert knots([delta.float()]).dtype == torch.float32


def test_knots_without_conflicts_is_the_sum():
    """Updates with left vectors of their own: nothing votes against them."""
    rows = turn(8, 1)
    deltas = [rows[:, :2] @ drawn(2, 6, seed=1), rows[:, 2:4] @ drawn(2, 6, seed=2)]
    assert torch.allclose(knots(deltas, density=1.0, normalize=0.0), sum(deltas), atol=1e-10)


def test_knots_trims_and_votes():
    deltas = [low(2, seed=0), low(2, seed=5)]
    dense, thin = knots(deltas, density=1.0), knots(deltas, density=0.3)
    assert not torch.allclose(dense, thin)
    assert int(torch.linalg.matrix_rank(dense)) <= 4
    assert torch.allclose(knots(deltas, [2.0, 2.0]), knots(deltas))
    assert torch.allclose(knots(deltas[::-1], [1.0, 2.0]), knots(deltas, [2.0, 1.0]), atol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([],), "matrices of one shape"),
        (([drawn(2, 3), drawn(3, 2)],), "matrices of one shape"),
        (([drawn(2, 3)], [1.0, 2.0]), "2 weights for 1 matrices"),
    ],
)
def test_updates_that_do_not_fit_are_refused(arguments, says):
    with pytest.raises(WeightspaceError, match=says):
        knots(*arguments)
    with pytest.raises(WeightspaceError, match="density above 0 up to 1"):
        knots([drawn(2, 3)], density=0.0)
