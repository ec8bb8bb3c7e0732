"""What is to be aligned: pairs of tensors of two networks, in memory or made when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from weightspace.net.net import Net
from weightspace.symmetry.axis import Block
from weightspace.symmetry.element import Element
from weightspace.symmetry.group import Group

__all__ = ["Terms", "weight_terms"]


_SMALL = 1 << 23  # numbers


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
    """Terms of onto(a) and into(b), whose scales must be balanced: all that tells where they stand."""
    still = {group.blocks[place.block].tensor for g in group.generators for place in g.uniform}
    names = [name for name in group.telling(a) if name not in still]
    numbers = [k for k, block in enumerate(group.blocks) if block.tensor in set(names)]
    signs: dict[tuple[int, int], set[int]] = {}
    for k, generator in enumerate(group.generators):
        if generator.kind == "sign":
            for place, _ in generator.exponents:
                signs.setdefault((place.block, place.leaf), set()).add(k)
    parities = [
        {leaf: frozenset(signs.get((n, leaf), ())) for leaf in range(len(group.blocks[n].leaves))} for n in numbers
    ]
    fixed, moving = _Made(names, _reader(a, onto)), _Made(names, _reader(b, into))
    small = sum(math.prod(group.shapes[name]) for name in names) <= _SMALL
    pair = (dict(fixed), dict(moving)) if small else (fixed, moving)
    return Terms([group.blocks[n] for n in numbers], list(parities), *pair)


class _Made(Mapping[str, Tensor]):
    """Tensors that are made when they are asked for."""

    def __init__(self, names: list[str], make: Callable[[str], Tensor]) -> None:
        self._names, self._make = names, make

    def __getitem__(self, name: str) -> Tensor:
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _reader(net: Net, element: Element | None) -> Callable[[str], Tensor]:
    tensors = net.tensors

    def make(name: str) -> Tensor:
        tensor = tensors[name].detach().float()
        return (tensor if element is None else element.move(name, tensor)).contiguous()

    return make
