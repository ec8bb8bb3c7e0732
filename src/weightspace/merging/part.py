"""One tensor of several checkpoints, read in pieces of bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from weightspace.net.weights import Weights

__all__ = ["Part", "Piece", "entries"]

ROOM = 1 << 24  # numbers that the pieces of all parents hold together: 64 MB in float32


def entries(source: Mapping[str, Tensor], name: str, start: int, stop: int) -> Tensor:
    """The entries `start` to `stop` of a named tensor in row-major order, in its own dtype.

    Of a mapping with a method `flat(name, start, stop)`, such as a `Checkpoint`, no more than these are read.
    """
    if not isinstance(source, Weights) and (flat := getattr(source, "flat", None)) is not None:
        found = flat(name, start, stop)
        assert isinstance(found, Tensor)
        return found
    return source[name].detach().reshape(-1)[start:stop]


class Piece(NamedTuple):
    """The entries from `start` on of one tensor: of every parent, and of the base where there is one, as vectors."""

    start: int
    parents: list[Tensor]
    base: Tensor | None

    @property
    def deltas(self) -> list[Tensor]:
        """The task vectors tau_i = theta_i - theta_0; the parents themselves where there is no base."""
        return self.parents if self.base is None else [parent - self.base for parent in self.parents]


@dataclass(frozen=True)
class Part:
    """One tensor of the merged network: where each parent has it, its shape, and the dtype to compute in.

    `sources`: for each parent, its tensors and the name there; `base` likewise. `beside`: for each parent, the tensors
    that say how much its entries count (importances, inner products of a layer's inputs) and the name there, for
    methods that need them. Half precision is computed in float32, float64 in float64. All passes over the data are
    `pieces()`: whole rows, never more than `ROOM` numbers together unless one row is larger.
    """

    name: str
    shape: torch.Size
    sources: Sequence[tuple[Mapping[str, Tensor], str]]
    base: tuple[Mapping[str, Tensor], str] | None = None
    dtype: torch.dtype = torch.float32
    room: int = field(default=ROOM, compare=False)
    beside: Sequence[tuple[Mapping[str, Tensor], str]] = ()

    @property
    def row(self) -> int:
        """The entries of one row: of all axes but the first. A vector is one row."""
        return max(1, self.shape[1:].numel() if len(self.shape) > 1 else self.shape.numel())

    def pieces(self) -> Iterator[Piece]:
        """The tensor's entries in order, in pieces of whole rows; a piece may be overwritten by who gets it."""
        total = self.shape.numel()
        count = len(self.sources) + 2
        step = max(1, self.room // count // self.row) * self.row if len(self.shape) > 1 else self.room // count
        for start in range(0, total, max(1, step)):
            stop = min(start + max(1, step), total)
            yield Piece(
                start,
                [self._read(source, start, stop) for source in self.sources],
                None if self.base is None else self._read(self.base, start, stop),
            )

    def _read(self, source: tuple[Mapping[str, Tensor], str], start: int, stop: int) -> Tensor:
        return entries(*source, start, stop).to(self.dtype, copy=True)

    def parent(self, k: int) -> Tensor:
        """The whole tensor of parent k, in the dtype of the computation."""
        return self._read(self.sources[k], 0, math.prod(self.shape)).reshape(self.shape)

    def origin(self) -> Tensor:
        """The whole tensor of the base; zeros where there is none."""
        if self.base is None:
            return torch.zeros(self.shape, dtype=self.dtype)
        return self._read(self.base, 0, math.prod(self.shape)).reshape(self.shape)
