"""The atlas over HTTP: its networks, each of them, their tags, and the last map (see docs/web_api.md)."""

from __future__ import annotations

import gzip
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from weightspace.atlas.members import Architecture, Member
from weightspace.atlas.records import Measure
from weightspace.net.plain import plain
from weightspace.web.answer import Answer
from weightspace.web.layers import Layers
from weightspace.web.members import Members, Parent
from weightspace.web.served import Id, id_of

__all__ = ["Tag", "atlas_routes"]

Tag = Annotated[str, StringConstraints(min_length=1, max_length=200)]
_PACKED = 20_000  # bytes from which an answer is compressed
_NEAR = 10


class Tags(BaseModel):
    """Tags to add and to remove."""

    model_config = ConfigDict(extra="forbid")
    add: list[Tag] = Field([], max_length=20)
    remove: list[Tag] = Field([], max_length=20)


def atlas_routes(members: Members) -> APIRouter:
    """The routes under /api/atlas."""
    layers, router = Layers(members), APIRouter(prefix="/api/atlas")

    @router.get("")
    def atlas() -> dict[str, Any]:
        return _summary(members)

    @router.get("/networks")
    def networks(request: Request) -> Response:
        return _compact(request, _networks(members))

    @router.get("/networks/{id}")
    def network(id: Id) -> dict[str, Any]:
        member = members.member(id)
        return {**_told(members, member), **layers.of(member)}

    @router.post("/networks/{id}/tags")
    def tags(id: Id, given: Tags) -> dict[str, Any]:
        name = members.name(id)
        if given.remove:
            members.atlas.untag([name], *given.remove)
        if given.add:
            members.atlas.tag([name], *given.add)
        return {"id": id, "tags": [*members.atlas[name].tags]}

    @router.get("/map")
    def map(request: Request) -> Response:
        return _compact(request, _map(members))

    return router


def _compact(request: Request, content: Any) -> Response:
    """An answer, compressed where it is long and the browser takes that."""
    answer = Answer(plain(content), headers={"vary": "accept-encoding"})
    if len(answer.body) > _PACKED and "gzip" in request.headers.get("accept-encoding", ""):
        headers = {"vary": "accept-encoding", "content-encoding": "gzip"}
        return Response(gzip.compress(answer.body, 3), media_type=answer.media_type, headers=headers)
    return answer


def _label(made: str) -> str:
    """How an architecture is made: of a folder its name alone."""
    return PurePath(made).name if PurePath(made).is_absolute() else made


def _architectures(members: Members, every: Sequence[Member]) -> dict[str, tuple[Architecture, str, bool]]:
    """By fingerprint, in the order of adding: the architecture, what to call it, and whether it is known."""
    rows: dict[str, Architecture] = {}
    for one in members.atlas.architectures():
        if one.fingerprint not in rows or (one.made and not rows[one.fingerprint].made):
            rows[one.fingerprint] = one
    first: dict[str, str] = {}
    for member in every:
        first.setdefault(member.fingerprint, member.name)
    return {
        found: (rows[found], _label(rows[found].made) or f"unknown, as {name}",
                bool(rows[found].made) or members.served.arch is not None)
        for found, name in first.items() if found in rows
    }  # fmt: skip


def _measured(members: Members) -> list[tuple[str, Measure]]:
    """Measures by a name for a reader, in the order of the names."""
    tasks = {task.key: task.name for task in members.atlas.tasks}
    found = [
        (f"{row.observable} on {tasks.get(row.task, row.task[:8])}" if row.task else row.observable, row)
        for row in members.atlas.measures.of()
    ]
    return sorted(found, key=lambda one: (one[0], one[1].network))


def _summary(members: Members) -> dict[str, Any]:
    every, mapped = [*members.atlas], members.map()
    counts, tags = Counter(m.fingerprint for m in every), Counter(tag for m in every for tag in m.tags)
    families: Counter[str] = Counter()
    for space in mapped["spaces"]:
        families[space["fingerprint"]] += len(space["middles"])
    kinds = [
        {"id": found, "name": label, "known": known, "numbers": row.numbers, "tensors": len(row.shapes),
         "networks": counts[found], "families": families[found]}
        for found, (row, label, known) in _architectures(members, every).items()
    ]  # fmt: skip
    values: dict[str, list[float]] = {}
    for name, row in _measured(members):
        values.setdefault(name, []).append(row.value)
    real = {name: [x for x in some if math.isfinite(x)] for name, some in values.items()}
    measures = [{"name": name, "networks": len(some), "low": min(some, default=None), "high": max(some, default=None)}
                for name, some in real.items()]  # fmt: skip
    sizes = {m.key: m.nbytes for m in every}
    return {
        "atlas": PurePath(members.served.atlas or "").name if "://" not in (members.served.atlas or "") else "database",
        "networks": len(every), "bytes": sum(sizes.values()), "architectures": kinds, "measures": measures,
        "tags": [{"tag": tag, "networks": count} for tag, count in tags.most_common()], "mapped": mapped["made"],
    }  # fmt: skip


def _networks(members: Members) -> dict[str, Any]:
    every, mapped = [*members.atlas], members.map()
    kinds = {found: k for k, found in enumerate(_architectures(members, every))}
    families = {(row[0], row[1]): row[4] for space in mapped["spaces"] for row in space["members"]}
    copies = Counter(m.key for m in every)
    above: dict[str, list[dict[str, Any]]] = {}
    for parent in members.parents(mapped):
        row = {"id": id_of(parent.name), "kind": parent.kind, "confidence": parent.confidence, "share": parent.share}
        above.setdefault(parent.child, []).append(row)
    names: dict[str, int] = {}
    values: dict[str, dict[str, float]] = {}
    for name, measure in _measured(members):
        values.setdefault(measure.network, {})[str(names.setdefault(name, len(names)))] = measure.value
    rows = [
        {"id": id_of(m.name), "name": m.name, "architecture": kinds.get(m.fingerprint), "dtype": m.dtype,
         "bytes": m.nbytes, "added": m.added, "tags": [*m.tags], "family": families.get((m.name, m.key)),
         "copies": copies[m.key] - 1, "parents": above.get(m.name, []), "measures": values.get(m.key, {})}
        for m in every
    ]  # fmt: skip
    return {"architectures": [*kinds], "measures": [*names], "networks": rows}


def _told(members: Members, member: Member) -> dict[str, Any]:
    """What is known of one network without opening it."""
    mapped, every = members.map(), [*members.atlas]
    kin = members.parents(mapped, member.name)
    family = next((row[4] for space in mapped["spaces"] for row in space["members"]
                   if row[:2] == [member.name, member.key]), None)  # fmt: skip
    near = members.atlas.pairs.near(member.key, "distance", _NEAR)
    by_key: dict[str, str] = {}
    for other in every:
        by_key.setdefault(other.key, other.name)
    shapes = next((a for a in members.atlas.architectures() if a.fingerprint == member.fingerprint), None)
    measured = [{"name": name, "value": row.value, "error": row.error}
                for name, row in _measured(members) if row.network == member.key]  # fmt: skip
    told = {
        "id": id_of(member.name), "name": member.name, "key": member.key, "architecture": member.fingerprint,
        "made": _label(member.made), "dtype": member.dtype, "bytes": member.nbytes,
        "numbers": shapes.numbers if shapes else None, "added": member.added,
        "file": PurePath(member.location).name if member.kind == "file" else "a copy in the atlas",
        "tags": [*member.tags], "facts": dict(member.facts), "family": family,
        "parents": [_relative(p, p.name) for p in kin if p.child == member.name],
        "children": [_relative(p, p.child) for p in kin if p.name == member.name],
        "copies": [{"id": id_of(m.name), "name": m.name} for m in every
                   if m.key == member.key and m.name != member.name],
        "near": [{"id": id_of(by_key[pair.second]), "name": by_key[pair.second], "distance": pair.value}
                 for pair in near if pair.second in by_key],
        "measures": measured,
    }  # fmt: skip
    found: dict[str, Any] = plain(told)
    return found


def _relative(parent: Parent, name: str) -> dict[str, Any]:
    return {"id": id_of(name), "name": name, "kind": parent.kind, "confidence": parent.confidence,
            "share": parent.share, "why": parent.why, "distance": parent.distance}  # fmt: skip


def _map(members: Members) -> dict[str, Any]:
    """The last map of the networks that are still what they were."""
    mapped, every = members.map(), [*members.atlas]
    there = {m.name: m.key for m in every}
    labels = {found: label for found, (_, label, _) in _architectures(members, every).items()}
    spaces = [_space(space, labels, there) for space in mapped["spaces"]]
    known = {row[0] for space in mapped["spaces"] for row in space["members"] if there.get(row[0]) == row[1]}
    known |= {*mapped["left"]}
    new = sum(name not in known for name in there)
    total = sum(len(space["members"]) for space in mapped["spaces"])
    gone = total - sum(len(space["points"]) for space in spaces)
    left = [{"id": id_of(name), "why": why} for name, why in mapped["left"].items() if name in there]
    say = ""
    if mapped["made"] is None:
        say = "There is no map yet; make one to see families and who came from whom." if len(every) > 1 else (
            "A map needs two networks of one architecture; add some with weightspace atlas add.")  # fmt: skip
    elif new:
        say = f"{new} network{'s are' if new > 1 else ' is'} not on this map; make it again."
    return {"made": mapped["made"], "new": new, "gone": gone, "say": say,
            "spaces": [space for space in spaces if space["points"]], "left": left}  # fmt: skip


def _space(space: dict[str, Any], labels: dict[str, str], there: dict[str, str]) -> dict[str, Any]:
    rows = space["members"]
    ids = [id_of(row[0]) if there.get(row[0]) == row[1] else None for row in rows]
    points = [{"id": id, "x": row[2], "y": row[3], "family": row[4]} for id, row in zip(ids, rows, strict=True) if id]
    sizes = Counter(point["family"] for point in points)
    families = [{"family": number, "networks": sizes[number], "middle": ids[middle]}
                for number, middle in enumerate(space["middles"], space["first"]) if sizes[number]]  # fmt: skip
    edges = [{**edge, "parent": ids[edge["parent"]], "child": ids[edge["child"]]} for edge in space["edges"]
             if ids[edge["parent"]] and ids[edge["child"]]]  # fmt: skip
    siblings = [[ids[a], ids[b]] for a, b in space["siblings"] if ids[a] and ids[b]]
    name = labels.get(space["fingerprint"], "unknown")
    return {"architecture": space["fingerprint"], "name": name, "stress": space["stress"], "points": points,
            "families": families, "edges": edges, "siblings": siblings, "notes": space["notes"]}  # fmt: skip
