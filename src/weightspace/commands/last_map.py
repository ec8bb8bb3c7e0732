"""The last map of an atlas, kept in the atlas: points, families and edges, without the distances of all pairs."""

from __future__ import annotations

import time
from typing import Any

from weightspace.atlas.atlas import Atlas
from weightspace.commands.atlas_map import Mapped, Space
from weightspace.net.plain import plain

__all__ = ["keep", "last"]

_KEY = "map: last"
_SIBLINGS = 5000  # of one space


def keep(atlas: Atlas, found: Mapped) -> None:
    """Keep a map in the place of the one before; an atlas that can only be read keeps none."""
    if not atlas.catalogue.writable:
        return
    spaces, free = [], dict[str, int]()
    for space in found.spaces:
        own = space.members[0].fingerprint
        spaces.append(_space(space, free.get(own, 0)))
        free[own] = free.get(own, 0) + len(space.families.middles)
    atlas.jobs.put({_KEY: plain({"made": time.time(), "spaces": spaces, "left": found.left})}, kind="map")


def last(atlas: Atlas) -> dict[str, Any] | None:
    """The last map as `keep` wrote it: `made`, `spaces`, `left`; None where there is none.

    A space has `fingerprint`, `stress`, `notes`, `middles`, `siblings` and `edges` (which count its members), and
    `members`: rows of name, content key, x, y and family. `first` is the number of its first family: where an
    architecture has several spaces, of other dtypes, families are numbered through.
    """
    found: dict[str, Any] | None = atlas.jobs.found([_KEY]).get(_KEY)
    return found


def _space(space: Space, first: int) -> dict[str, Any]:
    points = [[float(x) for x in point] + [0.0, 0.0] for point in space.map.points]
    rows = [
        [member.name, member.key, points[k][0], points[k][1], first + space.families.family[k]]
        for k, member in enumerate(space.members)
    ]
    edges = [
        {"parent": e.parent, "child": e.child, "kind": e.kind, "share": e.share, "renumbered": e.renumbered,
         "confidence": e.relation.confidence, "distance": e.relation.distance, "why": e.relation.why}
        for e in space.lineage.edges
    ]  # fmt: skip
    return {
        "fingerprint": space.members[0].fingerprint, "stress": space.map.stress, "notes": [*space.lineage.notes],
        "first": first, "middles": [*space.families.middles], "members": rows, "edges": edges,
        "siblings": [[*pair] for pair in space.lineage.siblings][:_SIBLINGS],
    }  # fmt: skip
