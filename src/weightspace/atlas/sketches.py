"""Short descriptions of networks that keep distances: random projections of every tensor, and the nearest by them.

Every entry of a tensor gets a random sign and a random one of 256 sums: a count sketch, whose squared distances are
those of the tensors in the mean, with a relative standard deviation of sqrt(2 / 256) = 9 % (so 4 % of the distance).
Signs and places are drawn from the tensor's name and shape, so that sketches made at different times can be compared.

Source: Charikar, Chen and Farach-Colton, Finding frequent items in data streams, 2002.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightspace.atlas.side_by_side import Member, SideBySide
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["WIDTH", "Sketch", "nearest", "sketch"]


WIDTH = 256  # numbers for each tensor
_EACH = WIDTH * WIDTH  # entries that are drawn together


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
        if (self.tensors, self.shapes) != (other.tensors, other.shapes):
            raise WeightspaceError("sketches of networks of other names or shapes have no distance")


@public
def sketch(member: Member, *, tensors: Iterable[str] | None = None) -> Sketch:
    """The sketch of a network, read once and piece by piece.

    `tensors`: those that count, by default all of floating-point numbers. The same names and shapes give the same
    projection. Raises `WeightspaceError` for NaN or infinity.

    >>> import weightspace as ws
    >>> from weightspace.atlas.sketches import sketch
    >>> nets = [ws.demo.example(seed)[0] for seed in range(2)]
    >>> a, b = (sketch(net.tensors) for net in nets)
    >>> 0.8 < a.distance(b) / ws.euclidean(*nets) < 1.2, a.distance(a)
    (True, 0.0)
    """
    alone = SideBySide([member], tensors=tensors)
    numbers = torch.zeros(len(alone.names), WIDTH, dtype=torch.float64)
    norms = torch.zeros(len(alone.names), dtype=torch.float64)
    for t, name in enumerate(alone.names):
        seed = int(hashlib.sha256(f"{name} {alone.shapes[name]}".encode()).hexdigest()[:15], 16)
        generator = torch.Generator().manual_seed(seed)
        for piece in alone.pieces(name):
            alone.refuse(piece)
            row = piece.rows[0]
            for part in row.split(_EACH):
                numbers[t] += _projected(part, generator)
                norms[t] += part.double().square().sum()
    shapes = tuple(alone.shapes[name] for name in alone.names)
    return Sketch(tuple(alone.names), shapes, numbers.float(), norms.sqrt())


def _projected(part: Tensor, generator: torch.Generator) -> Tensor:
    """The sums of entries with random signs, each in a random place."""
    places = torch.randint(WIDTH, (len(part),), generator=generator)
    signs = torch.randint(2, (len(part),), generator=generator, dtype=torch.int8).mul_(2).sub_(1)
    return torch.zeros(WIDTH, dtype=torch.float64).index_add_(0, places, part.double() * signs)


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
