"""Short descriptions of networks that keep distances: random projections of every tensor, and the nearest by them.

Every entry x_i of a tensor is added, with a random sign, to a random one of 256 sums: a count sketch s. Over the draws
E |s|^2 = |x|^2, and Var |s|^2 = 2 (|x|^4 - sum x_i^4) / 256, whatever the tensor: a relative standard deviation of at
most sqrt(2 / 256) = 9 % (so 4 % of the distance). Sign and place are one random number of 512 sums, half of them
negative. They are drawn from the tensor's name and shape, so that sketches made at different times can be compared.

Source: Charikar, Chen and Farach-Colton, Finding frequent items in data streams, 2002.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from weightspace.atlas.side_by_side import Member, SideBySide
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["WIDTH", "Sketch", "nearest", "sketch"]


WIDTH = 256  # numbers for each tensor
_WIDEST = 1 << 15


@public
@dataclass(frozen=True)
class Sketch:
    """The sketch of one network: `numbers[t]` of shape (256,) and `norms[t]`, the exact norm, for the tensor t.

    `a.distance(b)` estimates |w_a - w_b| over all tensors, or over some; the standard deviation is 4 % of it. Made by
    `sketch`.
    """

    tensors: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    numbers: Float[Tensor, "tensors width"]
    norms: Float[Tensor, " tensors"]

    def distance(self, other: Sketch, tensors: Iterable[str] | None = None) -> float:
        """The estimate of the distance. Raises `WeightspaceError` for a network of other names or shapes."""
        self.check(other)
        chosen = range(len(self.tensors)) if tensors is None else [self.tensors.index(name) for name in tensors]
        return float((self.numbers - other.numbers)[list(chosen)].double().norm())

    def check(self, other: Sketch) -> None:
        """Raise `WeightspaceError` unless the other is that of a network of the same names and shapes."""
        mine, theirs = ((s.tensors, s.shapes, s.numbers.shape) for s in (self, other))
        if mine != theirs:
            raise WeightspaceError(
                "sketches of networks of other names or shapes, or of other widths, have no distance"
            )


@public
def sketch(member: Member, *, tensors: Iterable[str] | None = None, width: int = WIDTH) -> Sketch:
    """The sketch of a network, read once and piece by piece: half a gigabyte a second.

    `tensors`: those that count, by default all of floating-point numbers. `width`: how many numbers for each, a power
    of two up to 32,768; the relative standard deviation of a squared distance is at most sqrt(2 / width). The same
    names, shapes and width give the same projection. Raises `WeightspaceError` for NaN or infinity.

    >>> import weightspace as ws
    >>> from weightspace.atlas.sketches import sketch
    >>> nets = [ws.demo.example(seed)[0] for seed in range(2)]
    >>> a, b = (sketch(net.tensors) for net in nets)
    >>> 0.8 < a.distance(b) / ws.euclidean(*nets) < 1.2, a.distance(a)
    (True, 0.0)
    """
    if not 1 <= width <= _WIDEST or width & (width - 1):
        raise WeightspaceError(f"a sketch of {width} numbers; give a power of two up to {_WIDEST}")
    alone = SideBySide([member], tensors=tensors)
    sums, squares = np.zeros((len(alone.names), 2 * width)), np.zeros(len(alone.names))
    for t, name in enumerate(alone.names):
        draws = _draws(name, alone.shapes[name])
        for piece in alone.pieces(name):
            row = piece.rows[0].numpy().astype(np.float64)
            squares[t] += row @ row
            if not math.isfinite(squares[t]):
                alone.refuse(piece)
            raw = draws.random_raw(-(-len(row) // 4)).astype("<u8").view("<u2")[: len(row)]
            sums[t] += np.bincount((raw & (2 * width - 1)).astype(np.intp), row, 2 * width)
    numbers = torch.from_numpy(sums[:, :width] - sums[:, width:])
    shapes = tuple(alone.shapes[name] for name in alone.names)
    return Sketch(tuple(alone.names), shapes, numbers, torch.from_numpy(squares).sqrt())


def _draws(name: str, shape: Sequence[int]) -> np.random.PCG64:
    """Random bits of a tensor: sixteen for each entry, of which one is its sign, others the sum that it goes into."""
    seed = hashlib.sha256(f"{name} {tuple(shape)}".encode()).hexdigest()
    return np.random.PCG64(int(seed[:15], 16))


@public
def nearest(new: Sketch, others: Sequence[Sketch], count: int = 10) -> list[tuple[int, float]]:
    """The numbers of the `count` nearest of other networks and the estimated distances, the nearest first.

    All are compared, which takes a second for ten thousand networks of a hundred tensors; compare the few that are
    found exactly, by `against`. Raises `WeightspaceError` for networks of other names or shapes.

    >>> import weightspace as ws
    >>> from weightspace.atlas.sketches import nearest, sketch
    >>> net, _ = ws.demo.example()
    >>> others = [sketch((net + size * net.weights.randn(0)).tensors) for size in (0.2, 0.1, 0.4)]
    >>> [k for k, _ in nearest(sketch(net.tensors), others, count=2)]
    [1, 0]
    """
    for other in others:
        new.check(other)
    if count < 1:
        raise WeightspaceError(f"the nearest {count} networks; ask for at least one")
    apart = torch.tensor([float((new.numbers - other.numbers).norm()) for other in others])
    order = apart.argsort(stable=True)[:count]
    return [(int(k), float(apart[k])) for k in order]
