"""The relations of the pairs of a set of networks, each looked at once, and the sets of relatives that follow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from weightspace.atlas.averages import Average, averages
from weightspace.atlas.compared import Compared, Who
from weightspace.atlas.gram import Distances
from weightspace.atlas.independence import independence
from weightspace.atlas.relatives import Relation, relation
from weightspace.atlas.side_by_side import Member
from weightspace.checkpoint import files
from weightspace.symmetry.symmetry import Symmetry
from weightspace.symmetry.verdict import SAME

__all__ = ["Relations", "connected", "group_digest"]

_SIGNED = ("kurtosis", "norm")  # evidence that changes its sign with the order of the two networks
_WORTH_A_TEST = 0.05  # a cosine of matrices below which stored networks are not tested
_NEAREST = 12  # relatives of each network that are looked at


class Relations:
    """The relations of networks that stand as they are, or moved by the group: looked up, or found and kept.

    `moves[i]`: a digest of how network i was moved. A pair is looked at in the order of its contents, so that results
    do not depend on that of the set.
    """

    def __init__(
        self,
        members: Sequence[Member],
        compared: Compared,
        moves: Sequence[str],
        group: Symmetry | None,
        draws: int,
        seed: int,
    ) -> None:
        self.members, self.compared, self.group = list(members), compared, group
        self.who: list[Who] = [*zip(compared.keys, moves, strict=True)]
        self.draws, self.seed = draws, seed
        self._settings = [group_digest(group), draws, seed]

    def __call__(self, i: int, j: int) -> Relation:
        """The relation of networks i and j, with i as the first."""
        a, b = sorted((i, j), key=lambda k: (self.who[k], k) if self.compared.store else ("", k))
        moved = bool(self.who[a][1] or self.who[b][1])

        def look() -> bytes:
            test = None
            if self.group is not None and self.group.permutable():
                test = independence(self.members[a], self.members[b], self.group, draws=self.draws, seed=self.seed)
            rounding = {"rounding": SAME} if moved else {}
            found = relation(self.members[a], self.members[b], test, **rounding)
            return json.dumps({**vars(found), "evidence": dict(found.evidence)}).encode()

        found = Relation(
            **files.parse(self.compared.recalled("relation", [self.who[a], self.who[b]], self._settings, look))
        )
        return found if (a, b) == (i, j) else _reversed(found)

    def as_stored(self, near: Distances, progress: Callable[[int], None]) -> list[int]:
        """The number of the set of relatives of every network; pairs are looked at until their sets are one."""
        cosines, estimated = near.cosines.nan_to_num(), near.estimated
        may = cosines > _WORTH_A_TEST
        if estimated is not None:
            may &= estimated.exact
        pairs = may.tril(-1).nonzero()
        order = cosines[pairs[:, 0], pairs[:, 1]].argsort(descending=True, stable=True)
        asked = 0

        def related(i: int, j: int) -> bool:
            nonlocal asked
            progress(asked := asked + 1)
            return self(min(i, j), max(i, j)).kind != "independent"

        return connected(len(near), ((int(i), int(j)) for i, j in pairs[order]), related)

    def nearest(
        self, near: Distances, sets: Sequence[int], progress: Callable[[int], None]
    ) -> dict[tuple[int, int], Relation]:
        """The relation of each network with its nearest ones of its set, whose distances are exact."""
        found = {}
        for i in range(len(self.members)):
            progress(i)
            order = [int(j) for j in near.squared[i].argsort(stable=True)]
            own = [j for j in order if j != i and sets[j] == sets[i] and near.exact(i, j)]
            for j in own[:_NEAREST]:
                pair = min(i, j), max(i, j)
                if pair not in found:
                    found[pair] = self(*pair)
        return found

    def averages(self, near: Distances, allowed: Any) -> list[Average]:
        """The averages of others among the networks (see `averages`)."""
        names = [*near.names]

        def confirm(child: int, parents: tuple[int, ...], make: Callable[[], Average | None]) -> Average | None:
            def look() -> bytes:
                one = make()
                return json.dumps(None if one is None else [one.weights, one.residual]).encode()

            who = [self.who[k] for k in (child, *parents)]
            found = files.parse(self.compared.recalled("average", who, [names], look))
            return None if found is None else Average(child, parents, tuple(found[0]), found[1])

        return averages(self.members, near, allowed, confirm)


def connected(n: int, pairs: Iterable[tuple[int, int]], related: Callable[[int, int], bool]) -> list[int]:
    """The number of the connected set of every node; pairs within one set are not asked.

    >>> from weightspace.atlas.relations import connected
    >>> connected(4, [(0, 2), (0, 1), (2, 1)], lambda i, j: (i, j) != (0, 1))
    [0, 0, 0, 1]
    """
    root = list(range(n))

    def find(k: int) -> int:
        while root[k] != k:
            root[k] = k = root[root[k]]
        return k

    for i, j in pairs:
        a, b = sorted((find(i), find(j)))
        if a != b and related(i, j):
            root[b] = a
    names = {r: k for k, r in enumerate(dict.fromkeys(find(k) for k in range(n)))}
    return [names[find(k)] for k in range(n)]


def group_digest(group: Symmetry | None) -> str:
    """A digest of all that a group is; "" for none."""
    return "" if group is None else hashlib.sha256(json.dumps(group.as_json(), sort_keys=True).encode()).hexdigest()


def _reversed(found: Relation) -> Relation:
    """The relation with its networks in the other order."""
    evidence: Mapping[str, float] = {k: -v if k in _SIGNED else v for k, v in found.evidence.items()}
    return replace(found, direction=-found.direction, evidence=evidence)
