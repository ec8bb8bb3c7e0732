"""What is to be aligned: pairs of tensors of two networks, in memory or made when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from weightspace.net.net import Net
from weightspace.symmetry.axis import Block
from weightspace.symmetry.element import Element
from weightspace.symmetry.group import Group

__all__ = ["Terms", "told", "weight_terms"]


_SMALL = 1 << 23  # numbers
_PART = 1 << 20  # numbers; larger tensors are cut, where a dimension moves with no axis


@dataclass
class Terms:
    """Pairs of tensors to be aligned: `fixed` of a, `moving` of b, and the blocks in which axes occur.

    `parities[k][leaf]` is the set of sign generators that flip that leaf of block k; None where signs have no effect.
    Tensors that are not in a dict are recomputed whenever they are needed: nothing of their size is kept.
    """

    blocks: list[Block]
    parities: list[dict[int, frozenset[int]] | None]
    fixed: Mapping[str, Tensor]
    moving: Mapping[str, Tensor]

    @property
    def kept(self) -> bool:
        """Whether all tensors are held in memory."""
        return isinstance(self.moving, dict)


def weight_terms(group: Group, a: Net, b: Net, onto: Element | None = None, into: Element | None = None) -> Terms:
    """Terms of onto(a) and into(b), whose scales must be balanced: all that tells where they stand.

    Tensors that are not kept in memory are cut along a dimension that no axis indexes; each part is a tensor then.
    """
    names = told(group, a)
    kept = sum(math.prod(group.shapes[name]) for name in names) <= _SMALL
    most = 0 if kept or group.exchanges else _PART
    parts = {name: list(_parts(group, name, most)) for name in names}
    signs: dict[tuple[int, int], set[int]] = {}
    for k, generator in enumerate(group.generators):
        if generator.kind == "sign":
            for place, _ in generator.exponents:
                signs.setdefault((place.block, place.leaf), set()).add(k)
    blocks: list[Block] = []
    parities: list[dict[int, frozenset[int]] | None] = []
    for n, block in enumerate(group.blocks):
        for part in parts.get(block.tensor, ()):
            blocks.append(part.block(block, group.shapes[block.tensor]))
            parities.append({leaf: frozenset(signs.get((n, leaf), ())) for leaf in range(len(block.leaves))})
    every = [part for name in names for part in parts[name]]
    fixed, moving = (_Made(every, net, element) for net, element in ((a, onto), (b, into)))
    return Terms(blocks, parities, *((dict(fixed), dict(moving)) if kept else (fixed, moving)))


def told(group: Group, net: Net) -> list[str]:
    """Names of the tensors in the terms: those that tell where a network stands, but for gains that must be even."""
    still = {group.blocks[place.block].tensor for g in group.generators for place in g.uniform}
    return [name for name in group.telling(net) if name not in still]


@dataclass(frozen=True)
class _Part:
    """A tensor, or `length` indices of its dimension `dim` from `start` on."""

    tensor: str
    dim: int | None = None
    start: int = 0
    length: int = 0

    @property
    def name(self) -> str:
        return self.tensor if self.dim is None else f"{self.tensor}[{self.start}]"

    def block(self, whole: Block, shape: tuple[int, ...]) -> Block:
        return whole if self.dim is None else whole.part(self.dim, shape, self.length, self.name)

    def made(self, whole: Tensor, element: Element | None) -> Tensor:
        """The part of the tensor, or of the tensor that the element makes of it."""
        part = whole.detach() if self.dim is None else whole.detach().narrow(self.dim, self.start, self.length)
        part = part.float()
        return (part if element is None else element.move(self.tensor, part, cut=self.dim)).contiguous()


def _parts(group: Group, name: str, most: int) -> Iterator[_Part]:
    """The tensor in parts of about `most` numbers, cut along the longest dimension that may be; 0: in one."""
    shape = tuple(group.shapes[name])
    count = math.prod(shape) // most if most else 0
    dims = group.whole_dims(name) if count > 1 else []
    if not dims:
        yield _Part(name)
        return
    dim = max(dims, key=lambda d: shape[d])
    length = -(-shape[dim] // count)
    for start in range(0, shape[dim], length):
        yield _Part(name, dim, start, min(length, shape[dim] - start))


class _Made(Mapping[str, Tensor]):
    """Parts of tensors that are made when they are asked for."""

    def __init__(self, parts: list[_Part], net: Net, element: Element | None) -> None:
        self._parts, self._tensors, self._element = {part.name: part for part in parts}, net.tensors, element

    def __getitem__(self, name: str) -> Tensor:
        part = self._parts[name]
        return part.made(self._tensors[part.tensor], self._element)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)
