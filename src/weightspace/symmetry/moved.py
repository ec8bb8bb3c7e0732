"""What an element of a group changes: the names of tensors, and the tensors, each moved when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from weightspace.symmetry.element import Element

__all__ = ["Moved", "touched"]


class Moved(Mapping[str, Tensor]):
    """Tensors moved by an element, in their own dtype or in `dtype`: no second copy of all of them."""

    def __init__(self, element: Element, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
        self.element, self.tensors, self.dtype, self.names = element, tensors, dtype, {*touched(element)}

    def __getitem__(self, name: str) -> Tensor:
        return self.element.move(name, self._own(name), self._own) if name in self.names else self.tensors[name]

    def _own(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        return tensor.to(self.dtype or tensor.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def touched(element: Element) -> list[str]:
    """The names of the tensors that an element changes."""
    group = element.group
    moving = [n for n, t in element.permutations.items() if not torch.equal(t, torch.arange(t.shape[-1]).expand_as(t))]
    places = [place for axis in moving for place in group.places[axis]]
    places += [place for k in element.factors for place, _ in group.generators[k].exponents]
    numbers = [place.block for place in places]
    traded = [number for name in element.exchanges for number in group.traded[name]]
    numbers += [number for number in traded if element.source(number) != number]
    return list(dict.fromkeys(group.blocks[number].tensor for number in numbers))
