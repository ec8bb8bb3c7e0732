"""Every kind of constraint on a square matrix, for the laws that all of them obey."""

from __future__ import annotations

import torch

from weightspace.constraints.form import Kind
from weightspace.constraints.matrices import LowRank, Orthogonal
from weightspace.constraints.ordered import Ordered
from weightspace.constraints.shared import (
    Antisymmetric,
    Asymmetric,
    Circulant,
    Masked,
    SharedBlocks,
    Symmetric,
    Toeplitz,
)

SIDE = 6
MASK = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(0)) < 0.6
AFFINE: dict[str, Kind] = {
    "circulant": Circulant(),
    "block circulant": Circulant((3,)),
    "doubly block circulant": Circulant((2, 3)),
    "toeplitz": Toeplitz(),
    "shared blocks": SharedBlocks(2, 3),
    "shared entries": SharedBlocks(3, 2, "entries"),
    "masked": Masked(MASK),
    "symmetric": Symmetric(),
    "antisymmetric": Antisymmetric(),
    "asymmetric": Asymmetric(0.3, seed=1),
}
ORDERED: dict[str, Kind] = {
    **{f"ordered {key}": Ordered(key) for key in ("first", "mean", "linear", "norm")},
    "ordered given": Ordered(torch.arange(SIDE) - 2.5),
}
CURVED: dict[str, Kind] = {"low rank": LowRank(2), "orthogonal": Orthogonal()}
KINDS = {**AFFINE, **CURVED, **ORDERED}


def drawn(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*(shape or (SIDE, SIDE)), generator=generator, dtype=torch.float64)


def feasible(kind: Kind, seed: int, scale: float = 1.0) -> torch.Tensor:
    """A random weight of the form: that of random free parameters."""
    constants = kind.constants((SIDE, SIDE), "w") | kind.state(drawn(seed))
    free = kind.solved(drawn(seed + 1), constants)
    moved = tuple(f + scale * drawn(seed + k, *f.shape) for k, f in enumerate(free))
    return kind.weight(moved, (SIDE, SIDE), constants)
