"""A start for the matching of copies: rotations of streams, read off the eigenvectors of their second moments."""

from __future__ import annotations

import torch
from torch import Tensor

from weightspace.symmetry.align.ascent import Matching
from weightspace.symmetry.align.terms import Terms
from weightspace.symmetry.axis import MATRICES
from weightspace.symmetry.element import Element
from weightspace.symmetry.group import Group
from weightspace.symmetry.matrix import complement, on_all

__all__ = ["spectral_start"]


def spectral_start(group: Group, terms: Terms) -> Element | None:
    """The rotations R = U_a D U_b^T of all axes that matrices move as a whole, or None where there are none.

    M_a = sum_p A_p A_p^T over the places p of an axis is the same however everything else is permuted or rotated, so
    that M_b = R^T M_a R for a copy b, and the eigenvectors U give R up to signs D. Those are taken from the places
    where nothing else moves (embeddings, biases, heads): D_i = sign of entry (i, i) of sum_p (U_a^T A_p) (U_b^T B_p)^T.
    """
    matching, factors = Matching(group, terms), {}
    for k, generator in enumerate(group.generators):
        if generator.kind not in MATRICES or group[generator.axis].over or generator.axis not in matching.of_axis:
            continue
        first, second, anchor = _moments(matching, generator.axis)
        h = complement(len(first)) if generator.ones else None
        if h is not None:
            first, second, anchor = (h.T @ m @ h for m in (first, second, anchor))
        u, v = (torch.linalg.eigh(m).eigenvectors for m in (first, second))
        signs = torch.where((u.T @ anchor @ v).diagonal() < 0, -1.0, 1.0).double()
        rotation = (u * signs) @ v.T
        factors[k] = rotation if h is None else on_all(rotation, h)
    return Element(group, group.identity().permutations, factors) if factors else None


def _moments(matching: Matching, axis: str) -> tuple[Tensor, Tensor, Tensor]:
    """sum A A^T, sum B B^T, and sum A B^T over the places where no other axis moves, in float64."""
    n, moving = matching.group[axis].size, {a.name for a in matching.group.axes}
    first, second, anchor = (torch.zeros(n, n, dtype=torch.float64) for _ in range(3))
    for number, leaf in matching.of_axis[axis]:
        block = matching.terms.blocks[number]
        a, b = (
            matching._rows(t, number, leaf)[0].double()
            for t in (matching.fixed[block.tensor], matching.moving(block.tensor))
        )
        first += a @ a.T
        second += b @ b.T
        if not moving & set(block.leaves[:leaf] + block.leaves[leaf + 1 :]):
            anchor += a @ b.T
    return first, second, anchor
