"""`Members`: the atlas that a server shows, its networks by the ids that a browser uses."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException
from sqlalchemy import select

from weightspace.atlas.atlas import Atlas
from weightspace.atlas.members import Member
from weightspace.atlas.tables import networks, parents
from weightspace.commands.last_map import last
from weightspace.web.served import Served, id_of

__all__ = ["Members", "Parent"]


@dataclass(frozen=True)
class Parent:
    """Who a network came from: by what it is said or found, how sure, and its share in an average."""

    child: str
    name: str
    kind: str
    confidence: float | None = None
    share: float | None = None
    why: str = ""
    distance: float | None = None


class Members:
    """An atlas that is opened at the first question, and its members by id. Raises 404 where there is no atlas."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self._lock = threading.Lock()
        self._atlas: Atlas | None = None

    @property
    def atlas(self) -> Atlas:
        """The atlas. Raises `WeightspaceError` where it cannot be opened."""
        if self.served.atlas is None:
            raise HTTPException(404, "no atlas is open; start with weightspace serve FOLDER")
        with self._lock:
            if self._atlas is None:
                self._atlas = Atlas(self.served.atlas, objects=self.served.objects, create=False)
            return self._atlas

    def close(self) -> None:
        """Close the atlas."""
        with self._lock:
            if self._atlas is not None:
                self._atlas.close()
                self._atlas = None

    def names(self) -> dict[str, str]:
        """The name of every network by its id."""
        with self.atlas.catalogue.reading() as connection:
            return {id_of(name): name for name in connection.execute(select(networks.c.name)).scalars()}

    def name(self, id: str) -> str:
        """The name of a network. Raises 404 for an id that is not there."""
        found = self.names().get(id)
        if found is None:
            raise HTTPException(404, "no network of this id; load the list again")
        return found

    def member(self, id: str) -> Member:
        """The member of an id. Raises 404 for one that is not there."""
        return self.atlas[self.name(id)]

    def family(self, architecture: str, family: int) -> list[str]:
        """The names of a family of the last map that are still there. Raises 404 for one that is not on it."""
        there = {member.name: member.key for member in self.atlas.members(fingerprint=architecture)}
        rows = [row for space in self.map()["spaces"] if space["fingerprint"] == architecture
                for row in space["members"] if row[4] == family and there.get(row[0]) == row[1]]  # fmt: skip
        if not rows:
            raise HTTPException(404, "no such family on the last map; load the map again")
        return [row[0] for row in rows]

    def map(self) -> dict[str, Any]:
        """The last map as it is kept (see `commands.last_map`); with `made` None before the first."""
        return last(self.atlas) or {"made": None, "spaces": [], "left": {}}

    def parents(self, mapped: dict[str, Any], name: str | None = None) -> list[Parent]:
        """All parents, or those of and by one network: what was said, then what the last map found."""
        above = networks.alias("above")
        joined = parents.join(networks, parents.c.network == networks.c.id).join(above, parents.c.parent == above.c.id)
        p = parents.c
        asked = select(p.source, networks.c.name, above.c.name, p.relation, p.sure, p.share)
        asked = asked.select_from(joined).order_by(p.network, p.parent)
        if name is not None:
            asked = asked.where((networks.c.name == name) | (above.c.name == name))
        with self.atlas.catalogue.reading() as connection:
            rows = [(source, Parent(*row)) for source, *row in connection.execute(asked)]
        edges = {(e.child, e.name): e for e in _edges(mapped) if name in (None, e.child, e.name)}
        stated = [row for source, row in rows if source == "stated" or (row.child, row.name) not in edges]
        return stated + [*edges.values()]


def _edges(mapped: dict[str, Any]) -> list[Parent]:
    found = []
    for space in mapped["spaces"]:
        names = [row[0] for row in space["members"]]
        for edge in space["edges"]:
            share = edge["share"] if edge["kind"] == "average" else None
            kind = f"{edge['kind']}{', renumbered' * bool(edge['renumbered'])}"
            found.append(Parent(names[edge["child"]], names[edge["parent"]], kind, edge["confidence"], share,
                                edge["why"], edge["distance"]))  # fmt: skip
    return found
