"""Networks with units numbered differently brought to the numbering of their relatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from weightspace.atlas.gram import Distances, against
from weightspace.atlas.independence import renumbering
from weightspace.atlas.side_by_side import Member, dtypes_of, shapes_of
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.symmetry.axis import MATRICES
from weightspace.symmetry.element import Element
from weightspace.symmetry.symmetry import Symmetry
from weightspace.symmetry.verdict import RELATED, relative_distance

__all__ = ["Moved", "matched"]


_UNITS, _AGREE = 8, 0.01  # so few units agree by chance; the probability of as much agreement by chance


class Moved(Mapping[str, Tensor]):
    """A network moved by an element of the group, tensor by tensor, when it is read."""

    def __init__(self, member: Member, element: Element, net: Net) -> None:
        self.member, self.element = member, element
        self.shapes, self.dtypes = shapes_of(member), dtypes_of(member)
        folds = any(element.is_matrix(k) for k in element.factors)
        self._net = net if folds else None

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.member[name]
        if name not in self.element.group.shapes or not tensor.is_floating_point():
            return tensor
        wide = tensor if tensor.dtype == torch.float64 or not self.element.factors else tensor.float()
        if self._net is not None:
            return self.element.on(self._net.load(self.member))(name, wide)
        return self.element.move(name, wide, self.member.__getitem__)

    def __iter__(self) -> Iterator[str]:
        return iter(self.member)

    def __len__(self) -> int:
        return len(self.member)


def matched(
    members: Sequence[Member],
    sets: Sequence[int],
    stored: Distances,
    net: Net,
    group: Symmetry,
    seed: int,
    progress: Callable[[str], None],
) -> tuple[list[int], dict[int, Element]]:
    """Sets of relatives once they are matched, and the element that brings each network to the numbering of its set.

    `sets[i]`: the number of the set of relatives, as stored, of network i. The middle of each set is matched to that of
    those before it, then to the nearest member there: scales that bring it to one member are not those of another.
    Pairs whose units agree in no way (see `renumbering`) are not matched, where that can be seen.
    """
    own = [[i for i, s in enumerate(sets) if s == k] for k in range(max(sets) + 1)]
    middles = [some[int(stored.squared[some][:, some].sum(1).argmin())] for some in own]
    nets = {k: _opened(net, members[middle]) for k, middle in enumerate(middles)}
    joined, elements = list(range(len(own))), dict[int, Element]()
    for k in range(1, len(own)):
        progress(f"matching set {k + 1} of {len(own)}")
        for j in [first for first in range(k) if joined[first] == first]:
            if not _may_be_renumbered(nets[k], nets[j], group):
                continue
            element = group.match(nets[k], to=nets[j], method="weights", seed=seed).element
            if relative_distance(element(nets[k]), nets[j]) <= RELATED:
                joined[k] = j
                elements[k] = _to_nearest(members, own[j], net, nets[k], element, group, seed)
                break
    names = {r: n for n, r in enumerate(dict.fromkeys(joined))}
    return [names[joined[s]] for s in sets], {i: elements[s] for i, s in enumerate(sets) if s in elements}


def _may_be_renumbered(a: Net, b: Net, group: Symmetry) -> bool:
    """Whether the units of two networks agree more than by chance; always where rotations or few units hide it."""
    enough = any(axis.size >= _UNITS and not axis.over for axis in group.permutable())
    if not enough or group.exchanges or any(g.kind in MATRICES for g in group.generators):
        return True
    try:
        return renumbering(a.tensors, b.tensors, group).p < _AGREE
    except WeightspaceError:
        return True


def _opened(net: Net, member: Member) -> Net:
    return net.load(dict(member)).to(torch.float32)


def _to_nearest(
    members: Sequence[Member],
    others: Sequence[int],
    net: Net,
    moving: Net,
    element: Element,
    group: Symmetry,
    seed: int,
) -> Element:
    """The element that brings a network to the member of a set that it is nearest to, once it is roughly in place."""
    row = against(element(moving).tensors, [members[i] for i in others])
    nearest = _opened(net, members[others[row.nearest()[0]]])
    found = group.match(moving, to=nearest, method="weights", seed=seed).element
    return min(element, found, key=lambda g: relative_distance(g(moving), nearest))
