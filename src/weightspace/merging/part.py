"""One tensor of several checkpoints, read in pieces of bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from weightspace.checkpoint.reader import Checkpoint
from weightspace.net.errors import WeightspaceError
from weightspace.net.weights import Weights

__all__ = ["BLOCK", "Part", "Piece", "Source", "check_finite", "entries", "reading"]

ROOM = 1 << 24  # numbers that the pieces of all parents hold together, at most: 64 MB in float32
BLOCK = 1 << 18  # numbers of one parent's piece: they stay in the processor's cache from one operation to the next
_CHUNK = 1 << 21  # numbers that are read from a file at once

Source: TypeAlias = tuple[Mapping[str, Tensor], str]  # named tensors, and a name


def entries(source: Mapping[str, Tensor], name: str, start: int, stop: int) -> Tensor:
    """The entries `start` to `stop` of a named tensor in row-major order, in its own dtype.

    Of a mapping with a method `flat(name, start, stop)`, such as a `Checkpoint`, no more than these are read.
    """
    return reading((source, name))(start, stop)


def reading(source: Source) -> Callable[[int, int], Tensor]:
    """A function of (start, stop) that gives these entries of a tensor, in memory that its next call may overwrite.

    A mapping without `flat` is asked for the tensor once.
    """
    tensors, name = source
    if isinstance(tensors, Checkpoint):
        shelf = torch.empty(0, dtype=tensors.dtypes[name])

        def read(start: int, stop: int) -> Tensor:
            nonlocal shelf
            if shelf.numel() < stop - start:
                shelf = torch.empty(stop - start, dtype=shelf.dtype)
            return tensors.flat(name, start, stop, shelf[: stop - start])

        return read
    flat = None if isinstance(tensors, Weights) else getattr(tensors, "flat", None)
    if flat is not None:
        return lambda start, stop: flat(name, start, stop)
    tensor = tensors[name]
    if tensor.layout != torch.strided or tensor.is_meta:
        kind = "without numbers (meta)" if tensor.is_meta else f"{tensor.layout}".removeprefix("torch.")
        raise WeightspaceError(f"{name!r} is {kind}; give dense tensors")
    whole = tensor.detach().reshape(-1)
    return lambda start, stop: whole[start:stop]


def check_finite(numbers: Tensor, name: str, where: str) -> None:
    """Raise `WeightspaceError` where a tensor of floating-point numbers holds NaN or infinity."""
    # a sum is finite only if all its terms are; that is 100 times faster to see than each of them
    wide = torch.float32 if numbers.dtype.itemsize < 4 else numbers.dtype
    if not math.isfinite(float(numbers.sum(dtype=wide))) and not bool(numbers.isfinite().all()):
        raise WeightspaceError(
            f"NaN or infinity in {name!r} of {where}; give weights from before training diverged, or leave it out"
        )


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
    `pieces()`: whole rows, never more than `ROOM` numbers together unless one row is larger. `labels`: what the
    parents, and then the base, are called in messages. Reading raises `WeightspaceError` for NaN and infinity.
    """

    name: str
    shape: torch.Size
    sources: Sequence[Source]
    base: Source | None = None
    dtype: torch.dtype = torch.float32
    room: int = field(default=ROOM, compare=False)
    labels: Sequence[str] = field(default=(), compare=False)
    beside: Sequence[tuple[Mapping[str, Tensor], str]] = ()

    @property
    def row(self) -> int:
        """The entries of one row: of all axes but the first. A vector is one row."""
        return max(1, self.shape[1:].numel() if len(self.shape) > 1 else self.shape.numel())

    def pieces(self, again: bool = False) -> Iterator[Piece]:
        """The tensor's entries in order, in pieces of whole rows (of a vector, any); who gets one may overwrite it.

        With `again`, the next piece is in the memory of the one before, which is faster.
        """
        total, most = self.shape.numel(), 2 * BLOCK if again else BLOCK
        step = max(1, min(most, self.room // (len(self.sources) + 2)))
        if len(self.shape) > 1:
            step = max(1, step // max(1, self.row)) * self.row
        parents = [self._blocks(k, step, again) for k in range(len(self.sources))]
        base = repeat(None) if self.base is None else self._blocks(len(self.sources), step, again)
        for start in range(0, total, max(1, step)):
            yield Piece(start, [next(blocks) for blocks in parents], next(base))

    def _blocks(self, k: int, step: int, again: bool = False) -> Iterator[Tensor]:
        """The entries of parent k, or of the base after the last, in vectors of `step` finite numbers."""
        source, total = self._source(k), self.shape.numel()
        read, where = reading(source), self.labels[k] if k < len(self.labels) else self._called(k)
        chunk = max(1, min(_CHUNK, self.room // (len(self.sources) + 2)) // max(1, step)) * step
        shelf = torch.empty(min(step, total) if again else 0, dtype=self.dtype)
        for start in range(0, total, max(1, chunk)):
            found = read(start, min(start + chunk, total))
            for block in found.split(max(1, step)):
                numbers = shelf[: len(block)].copy_(block) if again else block.to(self.dtype, copy=True)
                check_finite(numbers, source[1], where)
                yield numbers

    def _source(self, k: int) -> Source:
        source = (*self.sources, self.base)[k]
        assert source is not None
        return source

    def _called(self, k: int) -> str:
        return "the base" if k == len(self.sources) else f"parent {k + 1}"

    def parent(self, k: int) -> Tensor:
        """The whole tensor of parent k, in the dtype of the computation."""
        return self._whole(k)

    def origin(self) -> Tensor:
        """The whole tensor of the base; zeros where there is none."""
        if self.base is None:
            return torch.zeros(self.shape, dtype=self.dtype)
        return self._whole(len(self.sources))

    def _whole(self, k: int) -> Tensor:
        found = torch.empty(self.shape.numel(), dtype=self.dtype)
        start = 0
        for block in self._blocks(k, BLOCK):
            found[start : start + block.numel()] = block
            start += block.numel()
        return found.reshape(self.shape)
