"""Families and maps, against points whose distances are known; sketches, against exact distances."""

import math

import pytest
import torch

import weightspace as ws
from weightspace.atlas.families import families, scaled
from weightspace.atlas.gram import pairwise
from weightspace.atlas.sketches import nearest, sketch


def drawn(seed, shape=(60, 50)):
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(shape, generator=generator), "b": torch.randn(7, generator=generator)}


def near(member, seed, size):
    return {n: w + size * drawn(seed)[n] for n, w in member.items()}


def test_families_of_planted_clusters():
    roots = [drawn(seed) for seed in range(3)]
    members = [near(roots[k % 3], 10 + k, 0.2) for k in range(7)]
    found = families(pairwise(members))
    assert found.family == (0, 1, 2, 0, 1, 2, 0) and sorted(found.order) == list(range(7))
    assert [found.family[k] for k in found.order] == sorted(found.family) and found.members(0) == [0, 3, 6]
    assert [found.family[k] for k in found.middles] == [0, 1, 2]
    assert len(set(families(pairwise(members), within=1e-3).family)) == 7
    assert families(pairwise(members[:1])).family == (0,)
    with pytest.raises(ws.WeightspaceError, match="positive"):
        families(pairwise(members), within=0.0)


def test_a_map_shows_points_of_a_plane_exactly_and_says_when_it_cannot():
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    d = torch.cdist(flat, flat)
    found = scaled(d)
    torch.testing.assert_close(torch.cdist(found.points, found.points), d)
    assert found.stress < 1e-9 and sum(found.share) == pytest.approx(1.0)
    simplex = math.sqrt(2) * (1 - torch.eye(6, dtype=torch.float64))
    assert scaled(simplex).stress > 0.3 and scaled(simplex, 5).stress < 1e-9
    assert scaled(torch.zeros(3, 3)).stress == 0.0 and scaled(torch.zeros(1, 1)).points.shape == (1, 2)


@pytest.mark.parametrize(
    "bad",
    [
        [[1.0, 1.0], [1.0, 1.0]],
        [[0.0, -1.0], [-1.0, 0.0]],
        [[0.0, math.nan], [math.nan, 0.0]],
        [[0.0, 1.0], [2.0, 0.0]],
    ],
)
def test_what_is_no_matrix_of_distances_is_refused(bad):
    with pytest.raises(ws.WeightspaceError, match="symmetric"):
        scaled(torch.tensor(bad))


def test_sketches_keep_distances():
    """Over twenty pairs the ratio of estimate to distance has a mean of 1 and a deviation of about 4 %."""
    members = [drawn(seed) for seed in range(21)]
    sketches, exact = [sketch(m) for m in members], pairwise(members).distances
    ratios = torch.tensor([sketches[0].distance(s) / float(exact[0, k]) for k, s in enumerate(sketches) if k])
    assert abs(float(ratios.mean()) - 1) < 0.03 and 0.02 < float(ratios.std()) < 0.08
    torch.testing.assert_close(sketches[3].norms[0].float(), members[3]["w"].norm())


def test_structured_differences_keep_their_size():
    """One column of a matrix of 256 columns: sums that took columns by turns would put all of it into one of them."""
    a = {"w": torch.zeros(400, 256)}
    b = {"w": torch.zeros(400, 256)}
    b["w"][:, 7] = torch.randn(400, generator=torch.Generator().manual_seed(0))
    assert sketch(a).distance(sketch(b)) == pytest.approx(float(b["w"].norm()), rel=0.25)


def test_the_nearest_and_what_has_no_distance():
    root = drawn(0)
    others = [sketch(near(root, 30 + k, size)) for k, size in enumerate((0.5, 0.01, 0.1))]
    assert [k for k, _ in nearest(sketch(root), others)] == [1, 2, 0]
    with pytest.raises(ws.WeightspaceError, match="no distance"):
        nearest(sketch(root), [sketch(drawn(1, (50, 60)))])
    with pytest.raises(ws.WeightspaceError, match="at least one"):
        nearest(sketch(root), others, count=0)
    with pytest.raises(ws.WeightspaceError, match="NaN"):
        sketch({"w": torch.full((3, 3), math.nan)})
    assert sketch(root).distance(others[0], ["b"]) < sketch(root).distance(others[0])
