"""Distances of all pairs: a dense float64 oracle for families near to one another and far apart, dtypes, bad inputs."""

import math

import pytest
import torch

import weightspace as ws
from weightspace.atlas import side_by_side
from weightspace.atlas.gram import against, pairwise

SHAPES = {"first.weight": (150, 200), "first.bias": (150,), "second.weight": (40, 150, 3), "scale": (), "none": (0, 4)}


def drawn(seed, size=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {n: size * torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for n, s in SHAPES.items()}


def moved(member, seed, relative):
    noise = drawn(seed)
    return {n: w + relative * noise[n].to(w.dtype) for n, w in member.items()}


def families():
    """Networks 1e-4 apart in families that are far apart, a chain of steps, copies, and one alone."""
    found = [drawn(0), drawn(1)]
    for root in (found[0], found[1]):
        found += [moved(root, seed, 1e-4) for seed in (10, 11)]
        found += [moved(found[-1], 12, 1e-2), {n: w.clone() for n, w in root.items()}]
    for seed in range(20, 24):
        found.append(moved(found[-1], seed, 3e-4))
    return found


def dense(members):
    flat = torch.stack([torch.cat([w.double().flatten() for w in m.values()]) for m in members])
    return torch.stack([(flat - row).norm(dim=1) for row in flat]), flat @ flat.T


def error(found, members):
    """The largest relative error of a distance; that of a distance of zero counts as it is."""
    exact = dense(members)[0]
    return float(((found - exact).abs() / torch.where(exact > 0, exact, torch.ones(()))).max())


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(side_by_side, "MOST", 1 << 12)
    monkeypatch.setattr(side_by_side, "LEAST", 700)


def test_every_pair_is_right_however_near(small_pieces):
    members = families()
    found = pairwise(members)
    assert error(found.distances, members) < 1e-5
    torch.testing.assert_close(found.inner, dense(members)[1], rtol=1e-6, atol=1e-3)
    assert bool((found.distances == found.distances.T).all())
    assert float(found.distances[0, 5]) == 0.0, "an exact copy"


def test_a_plain_gram_matrix_would_fail_the_same_test():
    """The planted error: inner products in float32, centred on one network or on none, lose the near pairs."""
    members = families()
    flat = torch.stack([torch.cat([w.flatten() for w in m.values()]) for m in members])
    for centred in (flat, flat - flat[0]):
        gram = (centred @ centred.T).double()
        size = gram.diagonal()
        assert error((size[:, None] + size - 2 * gram).clamp(min=0).sqrt(), members) > 1e-2


def test_tensor_by_tensor_sums_to_all():
    members = families()[:5]
    found = pairwise(members)
    torch.testing.assert_close(found.squares.sum(0), found.squared)
    nets = [{n: m[n]} for n in ("second.weight",) for m in members]
    alone = found.only(["second.weight"])
    assert error(alone.distances, nets) < 1e-5 and alone.left_out[0] == "first.weight"
    assert math.isclose(float(alone.norms[1]), float(members[1]["second.weight"].double().norm()), rel_tol=1e-6)
    with pytest.raises(ws.WeightspaceError, match="third"):
        found.only(["third"])


def test_cosines_and_relative_distances():
    a = {"w": torch.tensor([3.0, 4.0])}
    found = pairwise([a, {"w": torch.tensor([4.0, -3.0])}, {"w": torch.zeros(2)}, {"w": torch.zeros(2)}])
    assert float(found.cosines[0, 1]) == pytest.approx(0.0, abs=1e-12)
    assert float(found.relative[0, 1]) == pytest.approx(math.sqrt(2))
    assert math.isnan(float(found.cosines[0, 2])) and float(found.relative[2, 3]) == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_dtypes_are_mixed(dtype):
    other = {n: w.to(dtype) for n, w in drawn(1).items()}
    if dtype.is_complex:
        a, b = ({n: torch.complex(w, 2 * w) for n, w in drawn(seed).items()} for seed in (0, 1))
        exact = math.sqrt(sum(float((a[n] - b[n]).abs().double().square().sum()) for n in a))
        assert float(pairwise([a, b]).distances[0, 1]) == pytest.approx(exact, rel=1e-5)
        return
    members = [drawn(0), other, drawn(1)]
    assert error(pairwise(members).distances, members) < 1e-5


def test_float64_members_are_not_rounded():
    a = drawn(0, dtype=torch.float64)
    members = [a, moved(a, 1, 1e-10), moved(a, 2, 1e-10)]
    assert error(pairwise(members).distances, members) < 1e-5
    exact = dense(members)[0][1]
    torch.testing.assert_close(against(members[1], members).distances, exact, rtol=1e-5, atol=0)


def test_numbers_whose_squares_are_too_large_for_float32():
    members = [drawn(0, 1e25), drawn(1, 1e25)]
    assert error(pairwise(members).distances, members) < 1e-5
    torch.testing.assert_close(against(members[0], members).distances, dense(members)[0][0], rtol=1e-5, atol=0)


def test_one_row_more_is_a_row_of_all():
    members = families()
    row = against(members[3], members[:3], "new", ["a", "b", "c"])
    torch.testing.assert_close(row.distances, dense(members)[0][3, :3], rtol=1e-5, atol=0)
    grown = pairwise(members[:3], ["a", "b", "c"]).joined(row)
    assert grown.labels == ("a", "b", "c", "new") and error(grown.distances, members[:4]) < 1e-5
    assert row.nearest()[0] == 0
    with pytest.raises(ws.WeightspaceError, match="other networks"):
        pairwise(members[:2]).joined(row)


def test_files_are_read_piece_by_piece(tmp_path, monkeypatch, small_pieces):
    members = families()[:6]
    files = [ws.checkpoint.read(ws.checkpoint.save(m, tmp_path / f"{k}.safetensors")) for k, m in enumerate(members)]
    torch.save(members[5], tmp_path / "5.pt")
    files[5] = ws.checkpoint.read(tmp_path / "5.pt")
    largest, whole, flat, read = [], set(), ws.Checkpoint.flat, ws.Checkpoint.__getitem__

    def watched(self, name, start, stop, out=None):
        largest.append(stop - start)
        return flat(self, name, start, stop, out)

    monkeypatch.setattr(ws.Checkpoint, "flat", watched)
    monkeypatch.setattr(ws.Checkpoint, "__getitem__", lambda self, name: whole.add(name) or read(self, name))
    found, row = pairwise(files), against(files[0], files)
    assert whole <= {"first.weight"}, "the checks of types in tests look at the first tensor, nothing else does"
    assert max(largest) <= side_by_side.MOST and error(found.distances, members) < 1e-5
    torch.testing.assert_close(row.distances, found.distances[0], rtol=1e-5, atol=1e-12)


def test_integers_are_left_out_and_named():
    members = [{**drawn(seed), "steps": torch.tensor(seed)} for seed in (0, 1)]
    found = pairwise(members)
    assert found.left_out == ("steps",) and found.numbers == 150 * 200 + 150 + 40 * 450 + 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_is_refused_by_name(value):
    bad = drawn(1)
    bad["second.weight"][39, 149, 2] = value  # not in the sample from which trees are found
    for call in (lambda: pairwise([drawn(0), bad], ["good", "spoilt"]), lambda: against(bad, [drawn(0)], "spoilt")):
        with pytest.raises(ws.WeightspaceError, match=r"'second.weight' of spoilt"):
            call()
    with pytest.raises(ws.WeightspaceError, match=r"'second.weight' of spoilt"):
        against(drawn(0), [drawn(2), bad], labels=["good", "spoilt"])


def test_other_networks_are_refused():
    a = drawn(0)
    short = {n: w for n, w in a.items() if n != "scale"}
    wide = {**a, "first.bias": torch.zeros(151)}
    whole = {**a, "first.bias": torch.zeros(150, dtype=torch.int8)}
    for other, words in ((short, "'scale'"), (wide, r"\(151,\)"), (whole, "int8")):
        with pytest.raises(ws.ArchitectureMismatch, match=words):
            pairwise([a, other])
    with pytest.raises(ws.WeightspaceError, match="no networks"):
        pairwise([])
    with pytest.raises(ws.WeightspaceError, match="one for each"):
        pairwise([a], ["a", "b"])
    with pytest.raises(ws.WeightspaceError, match="no tensor"):
        pairwise([a], tensors=["third"])
    with pytest.raises(ws.WeightspaceError, match="no tensor of floating-point"):
        pairwise([{"steps": torch.tensor(1)}])


def test_memory_does_not_grow_with_the_number_of_networks():
    """The pieces of all networks together have a bounded number of entries, whatever n is."""
    w = torch.zeros(1 << 18)
    for n in (1, 40, 300):
        together = side_by_side.SideBySide([{"w": w}] * n)
        sizes = [piece.rows.numel() for piece in together.pieces("w")]
        assert max(sizes) <= max(side_by_side.MOST, n * side_by_side.LEAST)
