"""Linear algebra modulo two: rows of bits, each one integer."""

from __future__ import annotations

__all__ = ["null_space", "reduce_bits"]


def reduce_bits(rows: list[int]) -> list[int]:
    """A basis in echelon form of the span of bit rows."""
    basis: list[int] = []
    for row in rows:
        for other in basis:
            row = min(row, row ^ other)
        if row:
            basis = [min(other, other ^ row) for other in basis]
            basis.append(row)
            basis.sort(reverse=True)
    return basis


def null_space(rows: list[int], n: int) -> list[int]:
    """Bit rows x of length n with <r, x> = 0 modulo two for every given row r."""
    pivots: dict[int, int] = {}
    for row in rows:
        while row and (top := row.bit_length() - 1) in pivots:
            row ^= pivots[top]
        if row:
            pivots[top] = row
    free = [k for k in range(n) if k not in pivots]
    space, order = [], sorted(pivots)
    for k in free:
        x = 1 << k
        for top in order:
            if (pivots[top] & x).bit_count() % 2:
                x |= 1 << top
        space.append(x)
    return space
