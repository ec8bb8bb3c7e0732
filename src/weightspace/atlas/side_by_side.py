"""Several networks of one architecture read side by side: the same piece of a tensor of all of them, one after another.

No more of the weights is in memory than one piece of each network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from weightspace.checkpoint.reader import Checkpoint
from weightspace.net.errors import ArchitectureMismatch, WeightspaceError

if TYPE_CHECKING:
    from jaxtyping import Float
from weightspace.net.weights import dtypes_of, shapes_of

__all__ = ["Member", "Piece", "SideBySide", "flat_part"]


Member: TypeAlias = Mapping[str, Tensor]
MOST, LEAST, LARGEST = 1 << 23, 1 << 15, 1 << 17  # numbers in one piece of all networks; of one network


@dataclass(frozen=True)
class Piece:
    """Entries `start` to `stop` of one tensor, of every network: `rows` has one row for each of them."""

    name: str
    start: int
    stop: int
    rows: Float[Tensor, "members entries"]


class SideBySide:
    """Networks of one architecture: `names` are the tensors of floating-point numbers, `left_out` all others.

    `labels` are what errors call the networks. Raises `ArchitectureMismatch` where the names or shapes differ, and
    `WeightspaceError` where there is no network, or nothing to compare.
    """

    def __init__(
        self, members: Sequence[Member], labels: Sequence[str] | None = None, tensors: Iterable[str] | None = None
    ) -> None:
        if not members:
            raise WeightspaceError("no networks to compare; give at least one")
        self.members = list(members)
        self.labels = [f"network {k}" for k in range(len(members))] if labels is None else list(labels)
        if len(self.labels) != len(members):
            raise WeightspaceError(f"{len(self.labels)} names for {len(members)} networks; give one for each")
        self.shapes, kinds = shapes_of(members[0]), dtypes_of(members[0])
        self.dtypes = [kinds, *(self._checked(k) for k in range(1, len(members)))]
        wanted = list(self.shapes) if tensors is None else list(tensors)
        if unknown := [name for name in wanted if name not in self.shapes]:
            raise WeightspaceError(f"{self.labels[0]} has no tensor {unknown[0]!r}; give names that it has")
        self.names = [name for name in wanted if _has_numbers(kinds[name])]
        self.left_out = tuple(name for name in self.shapes if name not in set(self.names))
        if not self.names:
            raise WeightspaceError("no tensor of floating-point numbers to compare; give networks with weights")

    def _checked(self, k: int) -> Mapping[str, torch.dtype]:
        """The dtypes of member k. Raises `ArchitectureMismatch` unless it has the tensors of the first."""
        seen, label, first = shapes_of(self.members[k]), self.labels[k], self.labels[0]
        for name in self.shapes.keys() ^ seen.keys():
            has, lacks = (first, label) if name in self.shapes else (label, first)
            raise ArchitectureMismatch(f"{has} has {name!r} and {lacks} has not; compare networks of one architecture")
        for name, shape in self.shapes.items():
            if seen[name] != shape:
                raise ArchitectureMismatch(
                    f"{name!r} has shape {tuple(shape)} in {first} and {tuple(seen[name])} in {label}; "
                    "compare networks of one architecture"
                )
        kinds, ours = dtypes_of(self.members[k]), dtypes_of(self.members[0])
        for name, dtype in kinds.items():
            if _has_numbers(dtype) != _has_numbers(ours[name]) or dtype.is_complex != ours[name].is_complex:
                raise ArchitectureMismatch(
                    f"{name!r} is {ours[name]} in {first} and {dtype} in {label}; convert one of them first"
                )
        return kinds

    def __len__(self) -> int:
        return len(self.members)

    def numbers(self, name: str) -> int:
        """How many real numbers a tensor holds; two for each complex one."""
        shape = torch.Size(self.shapes[name])
        return shape.numel() * (2 if self.dtypes[0][name].is_complex else 1)

    def wide(self, name: str) -> torch.dtype:
        """float64 where a network holds this tensor in that precision, else float32, which holds all others."""
        double = (torch.float64, torch.complex128)
        return torch.float64 if any(kinds[name] in double for kinds in self.dtypes) else torch.float32

    def pieces(self, name: str) -> Iterator[Piece]:
        """The tensor of all networks, piece by piece; the rows are overwritten by the next piece."""
        size = torch.Size(self.shapes[name]).numel()
        each = max(LEAST, min(LARGEST, MOST // len(self)))
        twice = self.numbers(name) // size if size else 1
        rows = torch.empty(len(self), min(each, size) * twice, dtype=self.wide(name))
        held = [None if isinstance(m, Checkpoint) else m[name].detach() for m in self.members]
        for start in range(0, size, each):
            stop = min(start + each, size)
            part = rows[:, : (stop - start) * twice]
            for k, (member, tensor) in enumerate(zip(self.members, held, strict=True)):
                if isinstance(member, Checkpoint) and self.dtypes[k][name] == part.dtype:
                    member.flat(name, start, stop, out=part[k])
                else:
                    part[k] = flat_part(member if tensor is None else tensor, name, start, stop)
            yield Piece(name, start, stop, part)

    def refuse(self, piece: Piece) -> None:
        """Raise `WeightspaceError` naming the first network with NaN or infinity in a piece, if there is one."""
        bad = (~piece.rows.isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise WeightspaceError(
                f"NaN or infinity in {piece.name!r} of {self.labels[bad[0]]}; leave this network out"
            )


def flat_part(source: Member | Tensor, name: str, start: int, stop: int) -> Float[Tensor, " entries"]:
    """Entries `start` to `stop` of a tensor as real numbers: of a checkpoint no more is read than these."""
    if isinstance(source, Checkpoint):
        part = source.flat(name, start, stop)
    else:
        tensor = source if isinstance(source, Tensor) else source[name].detach()
        part = tensor.reshape(-1)[start:stop].cpu()
    if part.is_complex():
        return torch.view_as_real(part.resolve_conj()).reshape(-1)
    return part.float() if part.dtype.itemsize < 4 else part


def _has_numbers(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex
