"""The largest numbers of a tensor that is read in pieces: exact thresholds, found by counting digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from weightspace.merging.part import Part, Piece

__all__ = ["Cut", "largest"]

Numbers: TypeAlias = Callable[[Piece], Sequence[Tensor]]
_DIGIT = 16  # bits that one pass over the data settles
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


class Cut(NamedTuple):
    """The largest so many of a tensor's numbers: those above `value`, and those equal to it before a position."""

    value: float
    before: int

    def mask(self, numbers: Tensor, start: int) -> Tensor:
        """Which of the numbers from position `start` on are among the largest."""
        equal = min(max(self.before - start, 0), numbers.numel())
        if equal == numbers.numel():
            return numbers >= self.value
        chosen = numbers > self.value
        chosen[:equal] |= numbers[:equal] == self.value
        return chosen


@dataclass
class _Search:
    """The `left`-th largest number that begins with the bits `known`, in one row of numbers."""

    row: int
    count: int
    left: int
    known: int = 0
    before: int = -1

    def counted(self, bits: Tensor, shift: int, first: bool) -> Tensor:
        """How often each next digit follows the known ones."""
        rest = bits if first else bits[bits >> (shift + _DIGIT) == self.known]
        return torch.bincount((rest >> shift) & ((1 << _DIGIT) - 1), minlength=1 << _DIGIT)

    def narrow(self, table: Tensor, total: int) -> None:
        """Settle the next digit, from how often each occurs."""
        above = table.sum() - table.cumsum(0)  # numbers with a larger digit
        digit = int((above < self.left).nonzero()[0])
        self.left -= int(above[digit])
        self.known = self.known << _DIGIT | digit
        self.before = total if self.left == int(table[digit]) else -1

    def place(self, bits: Tensor, start: int) -> None:
        """Look for the position behind the last of the equal numbers that are taken."""
        if self.before < 0:
            equal = (bits == self.known).nonzero().flatten()
            if self.left <= len(equal):
                self.before = start + int(equal[self.left - 1]) + 1
            self.left -= len(equal)


def largest(part: Part, numbers: Numbers, counts: Sequence[Sequence[int]]) -> list[list[Cut]]:
    """The cuts that leave the largest `counts[r]` of the r-th of the non-negative `numbers` of a part's pieces.

    Exact in two passes over the data (four in float64): each counts how often the next 16 bits occur, since
    non-negative floating-point numbers are ordered as their bits are. Of equal numbers the first are taken, which needs
    one pass more where not all of them are.
    """
    total, kind = part.shape.numel(), _INTEGERS[part.dtype]
    searches = [_Search(r, n, n) for r, some in enumerate(counts) for n in sorted({*some}) if 0 < n <= total]

    def rows(piece: Piece) -> list[Tensor]:
        return [row.contiguous().view(kind) for row in numbers(piece)]

    start = part.dtype.itemsize * 8 - _DIGIT
    for shift in range(start, -1, -_DIGIT) if searches else ():
        tables = [torch.zeros(1 << _DIGIT, dtype=torch.int64, device="cpu") for _ in searches]
        for piece in part.pieces():
            found = rows(piece)
            for search, table in zip(searches, tables, strict=True):
                table += search.counted(found[search.row], shift, shift == start).cpu()
        for search, table in zip(searches, tables, strict=True):
            search.narrow(table, total)
    if any(search.before < 0 for search in searches):
        for piece in part.pieces():
            found = rows(piece)
            for search in searches:
                search.place(found[search.row], piece.start)
    cuts = {(each.row, each.count): Cut(_number(each.known, kind, part.dtype), each.before) for each in searches}
    ends = {True: Cut(-1.0, total), False: Cut(float("inf"), 0)}
    return [[cuts.get((r, n), ends[n > 0]) for n in some] for r, some in enumerate(counts)]


def _number(bits: int, kind: torch.dtype, dtype: torch.dtype) -> float:
    return float(torch.tensor([bits], dtype=kind, device="cpu").view(dtype))
