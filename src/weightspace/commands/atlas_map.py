"""`weightspace atlas map`: how the members of an atlas lie to one another, their families, and who came from whom."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import Tensor

from weightspace.atlas.atlas import Atlas
from weightspace.atlas.barriers import Barrier, Lines, barriers, near_pairs
from weightspace.atlas.compared import Compared
from weightspace.atlas.families import Families, Map, families, scaled
from weightspace.atlas.lineage import Lineage, lineage, plain
from weightspace.atlas.members import Member, Origin
from weightspace.atlas.records import Pair, TaskRow
from weightspace.atlas.sources import Made
from weightspace.commands.atlas import known_group
from weightspace.commands.data import examples, labelled
from weightspace.commands.settings import Settings
from weightspace.jobs.engine import Engine
from weightspace.net.errors import WeightspaceError
from weightspace.net.weights import dtypes_of
from weightspace.symmetry.symmetry import Symmetry
from weightspace.task.digest import digest
from weightspace.task.task import Task

__all__ = ["Asked", "Mapped", "Space", "mapped"]

Opened: TypeAlias = tuple[Member, Mapping[str, Tensor]]
Known: TypeAlias = tuple[Member | None, Symmetry | None, str]  # what `known_group` returns
_UNREAD: Known = (None, None, "")


@dataclass(frozen=True)
class Space:
    """The members of one architecture: who came from whom, families, points in the plane, and what was measured.

    `measures`: observable -> a value for each member, NaN where it was not measured. `barriers`: of near pairs, where
    they were asked for.
    """

    architecture: str
    members: list[Member]
    lineage: Lineage
    families: Families
    map: Map
    measures: dict[str, list[float]]
    barriers: list[Barrier] = field(default_factory=list)

    def family(self, k: int) -> list[str]:
        """The names of the members of a family."""
        return [self.members[i].name for i in self.families.members(k)]

    def sure(self, k: int) -> str:
        """How sure the origin of a member is; "" where nothing was found, or where neither came first."""
        found = [edge.relation.confidence for edge in self.lineage.edges if edge.child == k]
        return f"{found[0]:.0%}" if found and found[0] > 0.5 else ""

    def parents(self, k: int) -> str:
        """What a member came from, in words; "" where nothing was found."""
        found = [edge for edge in self.lineage.edges if edge.child == k]
        if not found:
            return ""
        names = [f"{edge.share:.2g} {self.members[edge.parent].name}" if edge.kind == "average"
                 else self.members[edge.parent].name for edge in found]  # fmt: skip
        return f"{found[0].kind}{', renumbered' * found[0].renumbered} of {' + '.join(names)}"

    def data(self) -> dict[str, Any]:
        """As plain data."""
        points = [[float(x) for x in point] for point in self.map.points]
        rows = [
            {"name": m.name, "stated": [*m.parents], "family": self.families.family[k], "point": points[k],
             **{what: values[k] for what, values in self.measures.items()}}
            for k, m in enumerate(self.members)
        ]  # fmt: skip
        found = plain(self.lineage)
        middles = [self.members[k].name for k in self.families.middles]
        raised = [one.data() for one in self.barriers]
        return {"architecture": self.architecture, "members": rows, "stress": self.map.stress, "middles": middles,
                "edges": found["edges"], "siblings": found["siblings"], "barriers": raised,
                "notes": list(self.lineage.notes)}  # fmt: skip


@dataclass(frozen=True)
class Mapped:
    """An atlas mapped: one space for each architecture with two members or more, and why others are left out."""

    where: str
    spaces: list[Space]
    left: dict[str, str]

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return {"atlas": self.where, "spaces": [space.data() for space in self.spaces], "left": self.left}


@dataclass(frozen=True)
class Asked:
    """Barriers that a map is asked for: of each network with its `count` nearest, on the examples that `data` names."""

    count: int
    data: str
    engine: Engine = 1


def mapped(
    atlas: Atlas, tag: str | None = None, matching: bool = True, asked: Asked | None = None, *, settings: Settings
) -> Mapped:
    """The map of an atlas, or of the members with a tag; distances and origins are written into the atlas.

    With `matching`, renumbered relatives are found wherever an architecture is known. `asked`: barriers to measure.
    Raises `WeightspaceError` where there is nothing to compare.
    """
    task = None if asked is None else labelled(examples(asked.data), asked.data)
    left: dict[str, str] = {}
    spaces = []
    for members in _by_architecture(atlas.members(tag=tag)):
        opened: list[Opened] = []
        for member in members:
            try:
                opened.append((member, atlas.tensors(member.name)))
            except WeightspaceError as error:
                left[member.name] = str(error).removeprefix(f"{member.name}: ")
        for kinds, some in _by_kind(opened).items():
            if len(some) > 1 and any(kinds):
                known = known_group(atlas, [m for m, _ in some], settings) if matching or asked else _UNREAD
                space = _space(atlas, some, known if matching else _UNREAD, settings)
                if task is not None and asked is not None:
                    space = _raised(atlas, space, known, (task, asked), settings)
                spaces.append(space)
                continue
            why = "the only one of its architecture" if len(some) == len(opened) else "the only one with such dtypes"
            why = why if any(kinds) else "holds no floating-point numbers"
            left |= {member.name: why for member, _ in some}
    if not spaces:
        why = next((f"; {name}: {reason}" for name, reason in left.items()), "")
        tagged = f" with the tag {tag}" if tag else ""
        raise WeightspaceError(f"{atlas.where}: holds no two networks of one architecture{tagged} to compare{why}")
    return Mapped(atlas.where, spaces, left)


def _space(atlas: Atlas, opened: Sequence[Opened], known: Known, settings: Settings) -> Space:
    """The members of one architecture, mapped."""
    members, tensors = [m for m, _ in opened], [t for _, t in opened]
    member, group, why = known
    net = atlas.openings([member])[member.name].template if member is not None and group is not None else None
    compared = Compared([m.key for m in members], atlas.comparisons)
    try:
        found = lineage(
            tensors, [m.name for m in members], net=net, group=group, seed=settings.seed, compared=compared,
            progress=settings.progress,
        )  # fmt: skip
    finally:
        compared.flush()  # what was computed before an error is not computed again
    if why:
        said = f"renumbered networks are not found and relatives not tested: {why}"
        found = replace(found, notes=(said, *found.notes[1:]))
    if atlas.catalogue.writable:
        _write(atlas, members, found)
    else:
        found = replace(found, notes=(*found.notes, "the atlas is read-only: nothing of the map is kept in it"))
    plane = scaled(found.distances.distances)
    return Space(_named(members), members, found, families(found), plane, _measures(atlas, members))


def _raised(atlas: Atlas, space: Space, known: Known, on: tuple[Task, Asked], settings: Settings) -> Space:
    """A space with the barriers of near pairs, and notes on those that have none."""
    (_, group, why), (task, asked) = known, on
    like = None if any(m.made for m in space.members) else Made.of(settings.arch, None).template
    openings = atlas.openings(space.members, like)
    told, left = barriers(
        [openings[m.name] for m in space.members], [m.key for m in space.members],
        near_pairs(space.lineage.distances, asked.count), Lines(task, group, seed=settings.seed), atlas.pairs,
        engine=asked.engine, progress=settings.progress,
    )  # fmt: skip
    if atlas.catalogue.writable:
        atlas.tasks.put([TaskRow(digest(task), asked.data, asked.data, len(task))])
    notes = [f"barriers are between networks as they are stored: {why}"] if group is None and told else []
    notes += [f"no barrier of {space.members[k].name}: {reason}" for k, reason in left.items()]
    found = replace(space.lineage, notes=(*space.lineage.notes, *notes))
    return replace(space, lineage=found, barriers=told)


def _by_architecture(members: Sequence[Member]) -> Iterator[list[Member]]:
    found: dict[str, list[Member]] = {}
    for member in members:
        found.setdefault(member.fingerprint, []).append(member)
    yield from found.values()


def _by_kind(opened: Sequence[Opened]) -> dict[tuple[bool, ...], list[Opened]]:
    """Members by which of their tensors hold floating-point numbers: integers are not compared with these."""
    found: dict[tuple[bool, ...], list[Opened]] = {}
    for member, tensors in opened:
        kinds = dtypes_of(tensors)
        real = tuple(kinds[name].is_floating_point or kinds[name].is_complex for name in sorted(kinds))
        found.setdefault(real, []).append((member, tensors))
    return found


def _named(members: Sequence[Member]) -> str:
    return next((m.made for m in members if m.made), "") or f"unknown, as {members[0].name}"


def _write(atlas: Atlas, members: Sequence[Member], found: Lineage) -> None:
    """Distances that are exact, and parents with their confidence, as rows of the atlas."""
    keys = [member.key for member in members]
    far = found.distances.distances.tolist()
    pairs = {}
    for i in range(len(keys)):
        for j in range(i):
            if keys[i] != keys[j] and found.distances.exact(i, j):
                how = "matched" if found.renumbered[i] or found.renumbered[j] else "as stored"
                pairs[keys[i], keys[j]] = Pair(keys[i], keys[j], "distance", far[i][j], method=how)
    atlas.pairs.put(pairs.values())
    origins: dict[str, list[Origin]] = {}
    for edge in found.edges:
        one = Origin(members[edge.parent].name, edge.kind, edge.share, edge.relation.confidence)
        origins.setdefault(members[edge.child].name, []).append(one)
    atlas.found([member.name for member in members], origins)


def _measures(atlas: Atlas, members: Sequence[Member]) -> dict[str, list[float]]:
    """What was measured of two members or more."""
    names = {task.key: task.name for task in atlas.tasks}
    at: dict[str, list[int]] = {}
    for k, member in enumerate(members):
        at.setdefault(member.key, []).append(k)
    found: dict[str, list[float]] = {}
    for row in atlas.measures.of():
        what = f"{row.observable} on {names.get(row.task, row.task)}" if row.task else row.observable
        for k in at.get(row.network, []):
            found.setdefault(what, [math.nan] * len(members))[k] = row.value
    return {what: values for what, values in found.items() if sum(v == v for v in values) > 1}
