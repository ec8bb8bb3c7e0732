"""Distances of thousands of networks: exact among near ones, and estimates from sketches elsewhere.

Every network is read once for its sketch. The nearest of each are chosen by it, and the distances of all pairs within
each neighbourhood (a network and its nearest) are computed exactly, tensor by tensor, in another pass over all weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from weightspace.atlas.gram import Distances, Estimated
from weightspace.atlas.side_by_side import Member, SideBySide
from weightspace.atlas.sketches import sketch
from weightspace.jobs.progress import Progress, silent
from weightspace.net.errors import WeightspaceError

__all__ = ["MATRICES", "NEAREST", "OTHERS", "Pairs", "WIDTH", "among", "exactly", "put_together", "summary"]

MATRICES, OTHERS = "matrices", "all else"  # the parts of a network whose distances are estimated apart
NEAREST, WIDTH = 12, 1024
_BLOCK = 1 << 14

Pairs = Mapping[tuple[int, int], Tensor]  # i < j -> squared distances and inner products, of shape (2, tensors)


def summary(member: Member, label: str) -> np.ndarray:
    """The sketch of the matrices of a network and of all else, with the exact squared norms: (2, WIDTH + 1) numbers.

    Each is the sum of the sketches of its tensors, which is a sketch of them together.
    """
    try:
        found = sketch(member, width=WIDTH)
    except WeightspaceError as error:
        raise WeightspaceError(str(error).replace("network 0", label)) from error
    whole = torch.cat([found.numbers, found.norms.square()[:, None]], 1)
    flat = torch.tensor([len(shape) < 2 for shape in found.shapes])
    return torch.stack([whole[~flat].sum(0), whole[flat].sum(0)]).numpy()


def among(summaries: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """Estimates of squared distances and of inner products, (2, n, n), and the pairs i < j within neighbourhoods.

    A neighbourhood is a network and the `NEAREST` that are nearest to it by its matrices.
    """
    rows, norms = summaries[..., :-1], summaries[..., -1].T
    squares = np.stack([_apart(rows[:, part]) for part in range(2)])
    for part, size in enumerate(norms):
        squares[part] = np.minimum(squares[part], (np.sqrt(size)[:, None] + np.sqrt(size)) ** 2)
    products = (norms[:, :, None] + norms[:, None, :] - squares) / 2
    by = squares[0] if squares[0].any() else squares[1]
    pairs: set[tuple[int, int]] = set()
    for i, row in enumerate(by):
        near = sorted({i, *map(int, np.argsort(row, kind="stable")[: NEAREST + 1])})
        pairs |= {(a, b) for a in near for b in near if a < b}
    return squares, products, sorted(pairs)


def _apart(rows: np.ndarray) -> np.ndarray:
    """Squared distances of rows in float64, where inner products keep eight digits of distances of 1e-4."""
    gram = rows @ rows.T
    size = gram.diagonal()
    found = np.maximum(size[:, None] + size - 2 * gram, 0.0)
    np.fill_diagonal(found, 0.0)
    return found


def exactly(
    members: Sequence[Member],
    labels: Sequence[str] | None,
    pairs: Sequence[tuple[int, int]],
    progress: Progress = silent,
) -> dict[tuple[int, int], Tensor]:
    """The squared distances and inner products (2, tensors) of these pairs; each weight is read once.

    Tensors are in the order of `SideBySide.names`. Raises as `pairwise` does.
    """
    together = SideBySide(members, labels)
    first, second = torch.tensor([*pairs], dtype=torch.long).reshape(-1, 2).T
    found = torch.zeros(len(pairs), 2, len(together.names), dtype=torch.float64)
    groups = [(int(i), (first == i).nonzero()[:, 0]) for i in first.unique()]
    for t, name in enumerate(together.names):
        progress(f"distances within neighbourhoods of {len(members)} networks", t, len(together.names))
        for piece in together.pieces(name):
            for part in piece.rows.split(_BLOCK, 1):
                for i, own in groups:
                    others = part[second[own]]
                    found[own, 1, t] += (others @ part[i]).double()
                    found[own, 0, t] += (others - part[i]).square_().sum(1).double()
        if not bool(found[:, :, t].isfinite().all()):
            for piece in together.pieces(name):
                together.refuse(piece)
    return {pair: found[k] for k, pair in enumerate(pairs)}


def put_together(
    together: SideBySide,
    squares: np.ndarray,
    products: np.ndarray,
    pairs: Pairs,
    copies: Sequence[tuple[int, int]] = (),
) -> Distances:
    """Estimates (2, n, n) with the exact pairs in their places; the rows of pairs are in the order of the names.

    `copies`: pairs i < j of networks with the same weights, whose estimates are exact.
    """
    names, n = tuple(together.names), len(together)
    wide = torch.tensor([len(together.shapes[name]) > 1 for name in names])
    parts = {what: tuple(name for name, is_one in zip(names, mask.tolist(), strict=True) if is_one)
             for what, mask in ((MATRICES, wide), (OTHERS, ~wide))}  # fmt: skip
    exact = torch.eye(n, dtype=torch.bool)
    tables = torch.from_numpy(np.stack([squares, products]))
    if pairs:
        i, j = torch.tensor([*pairs]).T
        rows = torch.stack([*pairs.values()])
        for part, mask in enumerate((wide, ~wide)):
            values = rows[:, :, mask].sum(2).T
            tables[:, part, i, j] = tables[:, part, j, i] = values
        exact[i, j] = exact[j, i] = True
    kept = {pair: row[0] for pair, row in pairs.items()} | {pair: torch.zeros(len(names)) for pair in copies}
    for i, j in copies:
        exact[i, j] = exact[j, i] = True
    told = Estimated(exact, names, kept, parts, math.sqrt(2 / WIDTH) / 2)
    some = [part for part in parts if parts[part]]
    at = [[*parts].index(part) for part in some]
    squared, inner = tables[:, at]
    matrices = (MATRICES,) if parts[MATRICES] else ()
    whole = squared.sum(0), inner.sum(0), squared, inner, matrices, told
    return Distances(tuple(together.labels), tuple(some), together.left_out, sum(map(together.numbers, names)), *whole)
