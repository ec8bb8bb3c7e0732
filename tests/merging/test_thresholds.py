"""The largest numbers of a tensor read in pieces: against sorting, for equal numbers, any cut, both precisions."""

import pytest
import torch

from weightspace.merging import thresholds
from weightspace.merging.part import Part
from weightspace.merging.thresholds import largest

KINDS = {
    "smooth": lambda g, n: torch.randn(n, generator=g, dtype=torch.float64).abs(),
    "few values": lambda g, n: torch.randint(0, 4, (n,), generator=g).double() / 8,
    "all equal": lambda g, n: torch.full((n,), 0.3, dtype=torch.float64),
    "zeros": lambda g, n: torch.zeros(n, dtype=torch.float64),
    "wide": lambda g, n: 10.0 ** torch.randint(-44, 38, (n,), generator=g).double(),
}


def numbers(kind, n, dtype, seed=0):
    return KINDS[kind](torch.Generator().manual_seed(seed), n).to(dtype)


def masks(values, counts, room):
    part = Part("w", values.shape, [({"w": values}, "w")], None, values.dtype, room)
    [cuts] = largest(part, lambda piece: piece.parents, [counts])
    found = torch.zeros(len(cuts), len(values), dtype=torch.bool)
    for piece in part.pieces():
        for row, cut in zip(found, cuts, strict=True):
            span = slice(piece.start, piece.start + len(piece.parents[0]))
            row[span] = cut.mask(piece.parents[0], piece.start)
    return cuts, found


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_are_those_that_sorting_puts_first(kind, dtype):
    for n, room in ((1, 100), (50, 1000), (50, 9)):
        values = numbers(kind, n, dtype)
        counts = sorted({0, 1, n // 3, n - 1, n, n + 5})
        cuts, found = masks(values, counts, room)
        order = values.argsort(descending=True, stable=True)
        for count, cut, mask in zip(counts, cuts, found, strict=True):
            wanted = torch.zeros(n, dtype=torch.bool).index_fill(0, order[:count], True)
            assert torch.equal(mask, wanted), (n, room, count)
            if 0 < count <= n:
                assert cut.value == float(values[order[count - 1]])


def test_a_planted_error_is_caught(monkeypatch):
    """One digit too few: numbers that differ in their last bits count as equal."""
    values = 1 + numbers("smooth", 50, torch.float32) / 1e4
    right = masks(values, [17], 1000)[1]
    monkeypatch.setattr(thresholds._Search, "counted", lambda self, bits, shift, first: torch.bincount(
        (bits >> shift) & 0xFF00, minlength=1 << 16))  # fmt: skip
    assert not torch.equal(masks(values, [17], 1000)[1], right)


def test_rows_are_told_apart_and_empty_tensors_have_cuts():
    values = torch.arange(6.0)
    part = Part("w", values.shape, [({"w": values}, "w"), ({"w": 10 - values}, "w")])
    up, down = largest(part, lambda piece: piece.parents, [[2], [1, 3]])
    assert [cut.value for cut in (*up, *down)] == [4.0, 10.0, 8.0]
    none = Part("w", torch.Size([0, 3]), [({"w": torch.zeros(0, 3)}, "w")])
    assert len(largest(none, lambda piece: piece.parents, [[0, 1]])[0]) == 2
