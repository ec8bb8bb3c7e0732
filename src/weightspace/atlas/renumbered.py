"""Networks with units numbered differently brought to the numbering of their relatives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from safetensors.torch import load, save
from torch import Tensor

from weightspace.atlas.compared import Compared
from weightspace.atlas.gram import Distances, against
from weightspace.atlas.independence import renumbering
from weightspace.atlas.relations import group_digest
from weightspace.atlas.side_by_side import Member
from weightspace.jobs.progress import Progress
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.weights import dtypes_of, shapes_of
from weightspace.symmetry.axis import MATRICES
from weightspace.symmetry.element import Element
from weightspace.symmetry.symmetry import Symmetry
from weightspace.symmetry.verdict import RELATED, relative_distance

__all__ = ["Matching", "Moved", "digest_of", "packed", "unpacked"]


_UNITS, _AGREE = 8, 0.01  # so few units agree by chance; the probability of as much agreement by chance
_ROOM = 1 << 32  # bytes of networks that are kept open


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


class Matching:
    """Sets of relatives, as they are stored, matched to one another: which are one set, and how they are moved there.

    What was found of two networks is looked up in `compared`, and kept there.
    """

    def __init__(
        self, members: Sequence[Member], compared: Compared, net: Net, group: Symmetry, seed: int, progress: Progress
    ) -> None:
        self.members, self.compared, self.net, self.group = list(members), compared, net, group
        self.seed, self.progress = seed, progress
        self._settings = [group_digest(group), seed]
        self._opened: dict[int, Net] = {}
        self._room = _ROOM

    def sets(self, sets: Sequence[int], stored: Distances) -> tuple[list[int], dict[int, Element]]:
        """Sets once they are matched, and the element that brings each network to the numbering of its set.

        `sets[i]`: the number of the set of relatives, as stored, of network i. The middle of each set is matched to
        that of those before it, then to the nearest member there: scales that bring it to one member are not those of
        another. Pairs whose units agree in no way (see `renumbering`) are not matched, where that can be seen.
        """
        own = [[i for i, s in enumerate(sets) if s == k] for k in range(max(sets) + 1)]
        middles = [some[int(stored.squared[some][:, some].sum(1).argmin())] for some in own]
        joined, elements = list(range(len(own))), dict[int, Element]()
        for k in range(1, len(own)):
            self.progress(f"matching {len(own)} sets of relatives", k, len(own))
            for j in [first for first in range(k) if joined[first] == first]:
                element = self._alike(middles[k], middles[j])
                if element is not None:
                    joined[k] = j
                    elements[k] = self._to_nearest(middles[k], own[j], element)
                    break
        names = {r: n for n, r in enumerate(dict.fromkeys(joined))}
        return [names[joined[s]] for s in sets], {i: elements[s] for i, s in enumerate(sets) if s in elements}

    def _alike(self, k: int, j: int) -> Element | None:
        """The element that brings network k to network j, where they are relatives then."""

        def look() -> bytes:
            a, b = self._net(k), self._net(j)
            if not _may_be_renumbered(a, b, self.group):
                return b""
            element = self.group.match(a, to=b, method="weights", seed=self.seed).element
            return packed(element) if relative_distance(element(a), b) <= RELATED else b""

        return self._recalled("renumbered", [(k, ""), (j, "")], look)

    def _to_nearest(self, k: int, others: Sequence[int], element: Element) -> Element:
        """The element that brings a network to the nearest member of a set, once it is roughly in place."""
        place, move = Moved(self.members[k], element, self.net), digest_of(element)
        members = [self.members[i] for i in others]
        if self.compared.store is None:
            nearest = others[against(place, members).nearest()[0]]
        else:
            some = Compared([self.compared.keys[i] for i in (k, *others)], self.compared.store)
            found = some.distances([place, *members], None, [move, *[""] * len(others)])
            nearest = others[int(found.squared[0, 1:].argmin())]

        def look() -> bytes:
            a, b = self._net(k), self._net(nearest)
            found = self.group.match(a, to=b, method="weights", seed=self.seed).element
            return packed(min(element, found, key=lambda g: relative_distance(g(a), b)))

        return self._recalled("matched", [(k, move), (nearest, "")], look) or element

    def _recalled(self, kind: str, ends: Sequence[tuple[int, str]], look: Callable[[], bytes]) -> Element | None:
        who = [(self.compared.keys[k], move) for k, move in ends]
        found = self.compared.recalled(kind, who, self._settings, look)
        return unpacked(found, self.group) if found else None

    def _net(self, k: int) -> Net:
        """A member as a network in float32; kept open while there is room for it."""
        if k in self._opened:
            return self._opened[k]
        net = self.net.load(dict(self.members[k])).to(torch.float32)
        size = sum(tensor.nbytes for tensor in net.tensors.values())
        if size <= self._room:
            self._opened[k], self._room = net, self._room - size
        return net


def packed(element: Element) -> bytes:
    """An element of a group as bytes, for `unpacked` with the same group."""
    parts = {"p": element.permutations, "f": element.factors, "e": element.exchanges}
    tensors = {f"{part}:{name}": x.contiguous() for part, found in parts.items() for name, x in found.items()}  # type: ignore[attr-defined]
    return save(tensors)


def unpacked(data: bytes, group: Symmetry) -> Element:
    """The element of a group that `packed` gave."""
    parts: dict[str, dict[str, Tensor]] = {"p": {}, "f": {}, "e": {}}
    for name, tensor in load(data).items():
        part, _, rest = name.partition(":")
        parts[part][rest] = tensor
    return Element(group, parts["p"], {int(k): x for k, x in parts["f"].items()}, parts["e"])


def digest_of(element: Element) -> str:
    """A digest of an element: of networks moved by it, beside the digest of the network."""
    return hashlib.sha256(packed(element)).hexdigest()


def _may_be_renumbered(a: Net, b: Net, group: Symmetry) -> bool:
    """Whether the units of two networks agree more than by chance; always where rotations or few units hide it."""
    enough = any(axis.size >= _UNITS and not axis.over for axis in group.permutable())
    if not enough or group.exchanges or any(g.kind in MATRICES for g in group.generators):
        return True
    try:
        return renumbering(a.tensors, b.tensors, group).p < _AGREE
    except WeightspaceError:
        return True
