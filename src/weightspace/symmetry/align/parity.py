"""The best signs of units that meet several tensors, each tensor flipped by a set of signs of its own.

Definition. Given terms v_P, one for every set P of signs, find s in {0, 1}^k with the largest sum over P of
(-1)^(sum of s_i, i in P) v_P, for every entry of the v_P at once. The sets are written in a basis of their span modulo
two; unknown are the signs of the basis, eliminated one after the other, those first that stand with the fewest others.
The norms of a stream of residuals make a star around the sign of the stream: however many there are, two unknowns are
held together at most. Where more than eight would be, signs are improved one at a time instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["best_value", "chosen_signs"]


_WIDEST = 8
_ROUNDS = 4


def best_value(terms: Mapping[frozenset[int], Tensor]) -> Tensor:
    """The largest sum that signs can give."""
    return _Elimination(list(terms)).value(list(terms.values()))


def chosen_signs(terms: Mapping[frozenset[int], Tensor]) -> dict[int, Tensor]:
    """For every sign that occurs, where it is to be flipped; signs that make no difference stay."""
    return _Elimination(list(terms)).choice(list(terms.values()))


class _Elimination:
    """Sets in a basis (`masks`), the order in which basis signs are eliminated, and what each is met with then."""

    def __init__(self, sets: list[frozenset[int]]) -> None:
        self.signs = sorted(set().union(*sets))
        self.pivots: dict[int, tuple[int, int]] = {}  # leading bit -> (row, which basis sets it is the sum of)
        self.masks = [self._reduced(sum(1 << self.signs.index(k) for k in each)) for each in sets]
        self.size = len(self.pivots)
        self.order: list[tuple[int, list[int]]] = []
        scopes = [mask for mask in set(self.masks) if mask]
        left = set(range(self.size))
        while left:
            near = {x: _union(s for s in scopes if s >> x & 1) & ~(1 << x) for x in left}
            x = min(left, key=lambda k: (near[k].bit_count(), k))
            self.order.append((x, [k for k in range(self.size) if near[x] >> k & 1]))
            scopes = [s for s in scopes if not s >> x & 1] + [near[x]]
            left.remove(x)
        self.narrow = all(len(scope) <= _WIDEST for _, scope in self.order)

    def _reduced(self, row: int) -> int:
        """The basis sets of which a set is the sum; a new one is added to the basis."""
        mask = 0
        while row and row.bit_length() - 1 in self.pivots:
            other, made = self.pivots[row.bit_length() - 1]
            row, mask = row ^ other, mask ^ made
        if row:
            new = 1 << len(self.pivots)
            self.pivots[row.bit_length() - 1] = (row, mask ^ new)
            mask = new
        return mask

    def value(self, values: list[Tensor]) -> Tensor:
        if not self.narrow:
            return self._sum(values, self._climb(values))
        return self._eliminate(values)[0]

    def choice(self, values: list[Tensor]) -> dict[int, Tensor]:
        basis = self._back(self._eliminate(values)[1], values[0]) if self.narrow else self._climb(values)
        # rows of the pivots: <row, s> = the sum of the basis signs that the row is made of
        found: dict[int, Tensor] = {}
        for top in sorted(self.pivots):
            row, made = self.pivots[top]
            bit = torch.zeros(values[0].shape, dtype=torch.bool, device=values[0].device)
            for k in range(self.size):
                bit = bit ^ basis[k] if made >> k & 1 else bit
            for lower in found:
                bit = bit ^ found[lower] if row >> lower & 1 else bit
            found[top] = bit
        return {self.signs[top]: bit for top, bit in found.items()}

    def _eliminate(self, values: list[Tensor]) -> tuple[Tensor, list[list[Tensor]]]:
        """The maximum, and for every step the best sign at each setting of what it is met with."""
        factors: list[tuple[int, dict[int, Tensor]]] = []  # scope, value at every setting of it
        total = torch.zeros_like(values[0])
        for mask, v in zip(self.masks, values, strict=True):
            if mask:
                factors.append((mask, {c: -v if c.bit_count() % 2 else v for c in _settings(mask)}))
            else:
                total = total + v
        taken: list[list[Tensor]] = []
        for x, scope in self.order:
            met = [f for f in factors if f[0] >> x & 1]
            factors = [f for f in factors if not f[0] >> x & 1]
            near = sum(1 << k for k in scope)
            table, best = {}, []
            for c in _settings(near):
                still, flipped = (_total([f[(c | on << x) & mask] for mask, f in met]) for on in (0, 1))
                table[c] = torch.maximum(still, flipped)
                best.append(flipped > still)
            taken.append(best)
            factors.append((near, table))
        return sum((table[0] for _, table in factors), total), taken

    def _back(self, taken: list[list[Tensor]], like: Tensor) -> list[Tensor]:
        basis: dict[int, Tensor] = {}
        for (x, scope), best in zip(reversed(self.order), reversed(taken), strict=True):
            bit = best[0].clone()
            for at, c in enumerate(_settings(sum(1 << k for k in scope))):
                here = torch.ones(like.shape, dtype=torch.bool, device=like.device)
                for k in scope:
                    here = here & (basis[k] == bool(c >> k & 1))
                bit = torch.where(here, best[at], bit)
            basis[x] = bit
        return [basis[k] for k in range(self.size)]

    def _sum(self, values: list[Tensor], basis: list[Tensor]) -> Tensor:
        total = torch.zeros_like(values[0])
        for mask, v in zip(self.masks, values, strict=True):
            odd = torch.zeros(v.shape, dtype=torch.bool, device=v.device)
            for k in range(self.size):
                odd = odd ^ basis[k] if mask >> k & 1 else odd
            total = total + torch.where(odd, -v, v)
        return total

    def _climb(self, values: list[Tensor]) -> list[Tensor]:
        """One sign after the other, from where every basis set is positive."""
        basis = [values[self.masks.index(1 << k)] < 0 for k in range(self.size)]
        now = self._sum(values, basis)
        for _ in range(_ROUNDS):
            for k in range(self.size):
                other = [~bit if i == k else bit for i, bit in enumerate(basis)]
                value = self._sum(values, other)
                basis[k] = torch.where(value > now, other[k], basis[k])
                now = torch.maximum(value, now)
        return basis


def _union(masks: Iterable[int]) -> int:
    total = 0
    for mask in masks:
        total |= mask
    return total


def _settings(mask: int) -> list[int]:
    """All subsets of a mask, as masks."""
    found = [0]
    for k in range(mask.bit_length()):
        if mask >> k & 1:
            found += [c | 1 << k for c in found]
    return found


def _total(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
