"""The members of an atlas as rows of its catalogue: entered, listed, tagged, removed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Table, bindparam, delete, insert, or_, select, update

from weightspace.atlas.content import Content
from weightspace.atlas.tables import architectures, contents, networks, parents, tags
from weightspace.checkpoint import files
from weightspace.net.errors import WeightspaceError

__all__ = [
    "Architecture",
    "Entry",
    "Member",
    "Origin",
    "checked_name",
    "enter",
    "found",
    "listed",
    "remove",
    "stamped",
    "tag",
    "untag",
]

_LONGEST, _TAG = 500, 200
_MANY = 500
_STATED, _FOUND = "stated", "found"  # sources of parents


@dataclass(frozen=True)
class Origin:
    """A parent that a map found: its name, the kind of relatives, its share in an average, and how sure that is."""

    parent: str
    kind: str
    share: float | None = None
    sure: float | None = None


@dataclass(frozen=True)
class Member:
    """A network of an atlas: its name, the key of its content, and what is known without opening it.

    `numbers`: the hash of its values whatever the dtypes; `fingerprint`: that of names and shapes; `made`: how its
    architecture is made ("" where not known); `location`: its file, or for the atlas's own copy ("object") its key;
    `orbit`: the key of the first member that is the same up to symmetry, once that was asked. `parents`: those that
    were stated, or come before it on a path; `origins`: those that a map found from weights.
    """

    name: str
    key: str
    numbers: str
    fingerprint: str
    made: str
    dtype: str
    nbytes: int
    kind: str
    location: str
    chosen: str | None
    orbit: str | None
    added: float
    stamp: Mapping[str, list[int]] = field(repr=False)
    facts: Mapping[str, Any]
    tags: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    origins: tuple[Origin, ...] = ()

    @property
    def came_from(self) -> tuple[str, ...]:
        """The parents that were stated; where none were, those that a map found."""
        return self.parents or tuple(origin.parent for origin in self.origins)

    def data(self) -> dict[str, Any]:
        """As plain data."""
        known = {name: value for name, value in vars(self).items() if name != "stamp"}
        origins = [dict(vars(origin)) for origin in self.origins]
        own = {"facts": dict(self.facts), "tags": [*self.tags], "parents": [*self.parents], "origins": origins}
        return {**known, **own}


@dataclass(frozen=True)
class Architecture:
    """Members that share names and shapes, and how they are made ("" where that is not known)."""

    fingerprint: str
    made: str
    example: str
    printed: str
    shapes: Mapping[str, tuple[int, ...]]
    numbers: int


@dataclass(frozen=True)
class Entry:
    """A network before it is entered: where it is, its content, its architecture, and what is said of it."""

    name: str
    content: Content | None = None
    kind: str = ""
    location: str = ""
    chosen: str | None = None
    stamp: Mapping[str, list[int]] = field(default_factory=dict)
    made: str = ""
    example: str = ""
    printed: str = ""
    tags: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    relation: str = "stated"
    facts: Mapping[str, Any] = field(default_factory=dict)


def checked_name(name: str, longest: int = _LONGEST) -> str:
    """The name, which may hold any characters but NUL. Raises `WeightspaceError` for one that cannot be stored.

    >>> from weightspace.atlas.members import checked_name
    >>> checked_name("run 7/<b>")
    'run 7/<b>'
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise WeightspaceError(f"the name {name!r:.80} is no valid Unicode; give another") from error
    if not name.strip() or "\0" in name or len(name) > longest:
        raise WeightspaceError(f"the name {name!r:.80} is empty, longer than {longest} or holds NUL; give another")
    return name


# ------------------------------------------------------------------ reading


def _asked() -> Select[Any]:
    n, c, a = networks.c, contents.c, architectures.c
    columns = (n.id, n.name, c.key, c.numbers, c.fingerprint, a.made, c.dtype, c.nbytes, n.kind, n.location, n.chosen,
               n.orbit, n.added, n.stamp, n.facts)  # fmt: skip
    joined = networks.join(contents, n.content == c.id).join(architectures, n.architecture == a.id)
    return select(*columns).select_from(joined).order_by(n.id)


def listed(connection: Connection, *where: ColumnElement[bool]) -> list[Member]:
    """The members that fulfil all conditions on `networks`, `contents` and `architectures`, in the order of adding."""
    rows = connection.execute(_asked().where(*where)).all()
    if not rows:
        return []
    ids = [row[0] for row in rows] if where else None
    marks = _grouped(connection, select(tags.c.network, tags.c.tag).order_by(tags.c.tag), tags.c.network, ids)
    other, p = networks.alias("other"), parents.c
    named = select(p.network, other.c.name).join_from(parents, other, p.parent == other.c.id).order_by(other.c.id)
    above = _grouped(connection, named.where(p.source == _STATED), p.network, ids)
    told = named.add_columns(p.relation, p.share, p.sure).where(p.source == _FOUND)
    origins = _grouped(connection, told, p.network, ids, Origin)
    return [
        Member(
            *row[1:-2], *map(files.parse, row[-2:]), *(tuple(some.get(row[0], ())) for some in (marks, above, origins))
        )
        for row in rows
    ]


def _grouped(
    connection: Connection,
    asked: Select[Any],
    column: ColumnElement[int],
    ids: Sequence[int] | None,
    made: Callable[..., Any] = str,
) -> dict[int, list[Any]]:
    """What was asked of every network: `made` of the columns after its number, each once."""
    found: dict[int, list[Any]] = {}
    parts = [ids[k : k + _MANY] for k in range(0, len(ids), _MANY)] if ids is not None else [None]
    for some in parts:
        for number, *columns in connection.execute(asked if some is None else asked.where(column.in_(some))):
            one = made(*columns)
            if one not in found.setdefault(number, []):
                found[number].append(one)
    return found


# ------------------------------------------------------------------ writing


def enter(connection: Connection, entry: Entry, force: bool = False) -> bool:
    """Write a network with its content, architecture, tags and parents; with `force` in place of one of its name.

    Returns whether it is new. Raises `WeightspaceError` for a name of another network, and a parent that is not there
    or is the network itself.
    """
    content = entry.content
    assert content is not None
    known = connection.execute(select(contents.c.id).where(contents.c.key == content.key)).scalar()
    if known is None:
        row = {"key": content.key, "numbers": content.numbers, "fingerprint": content.fingerprint,
               "dtype": content.dtype, "nbytes": content.nbytes}  # fmt: skip
        known = _inserted(connection, contents, row)
    values = {
        "name": entry.name, "content": known, "architecture": _architecture(connection, entry), "kind": entry.kind,
        "location": entry.location, "chosen": entry.chosen, "stamp": json.dumps(entry.stamp),
        "facts": json.dumps(entry.facts), "orbit": None, "added": time.time(),
    }  # fmt: skip
    before = connection.execute(select(networks.c.id, networks.c.content).where(networks.c.name == entry.name)).first()
    if before is None:
        number = _inserted(connection, networks, values)
    else:
        number, other = before.id, before.content != known
        if other and not force:
            raise WeightspaceError(f"{entry.name}: is the name of another network by now; give another name")
        values = values if other else {k: v for k, v in values.items() if k not in ("added", "orbit")}
        connection.execute(update(networks).where(networks.c.id == number).values(values))
        _forget(connection, [before.content])
        if other:
            ends = or_(parents.c.network == number, parents.c.parent == number)
            connection.execute(delete(parents).where(parents.c.source == _FOUND, ends))
    if entry.tags:
        _tagged(connection, [number], entry.tags)
    for parent in entry.parents:
        _born(connection, number, entry, parent)
    return before is None


def _born(connection: Connection, number: int, entry: Entry, parent: str) -> None:
    above = connection.execute(select(networks.c.id).where(networks.c.name == parent)).scalar()
    if above is None or above == number:
        raise WeightspaceError(f"{entry.name}: the atlas holds no parent called {parent!r:.80}; add it first")
    row = {"network": number, "parent": above, "relation": entry.relation}
    p = parents.c
    same = p.network == number, p.parent == above, p.relation == entry.relation
    if connection.execute(select(p.network).where(*same)).first() is None:
        connection.execute(insert(parents).values(row))


def found(connection: Connection, names: Sequence[str], origins: Mapping[str, Sequence[Origin]]) -> None:
    """Write the parents that a map of these networks found, in place of those that earlier maps found among them.

    What was stated is left alone; an origin by which a network would come from a stated child of its own is left out.
    Raises `WeightspaceError` for a name that is not there.
    """
    ids = {name: _row(connection, name).id for name in dict.fromkeys(names)}
    p, numbers = parents.c, [*ids.values()]
    stated: dict[int, set[int]] = {}
    for child, parent in connection.execute(select(p.network, p.parent).where(p.source == _STATED)):
        stated.setdefault(child, set()).add(parent)
    for some in (numbers[k : k + _MANY] for k in range(0, len(numbers), _MANY)):
        there = connection.execute(select(p.network, p.parent).where(p.source == _FOUND, p.network.in_(some))).all()
        gone = [{"child": c, "above": a} for c, a in there if a in {*numbers}]
        if gone:
            same = p.network == bindparam("child"), p.parent == bindparam("above"), p.source == _FOUND
            connection.execute(delete(parents).where(*same), gone)
    taken = {(row.network, row.parent, row.relation) for row in connection.execute(select(parents))}
    rows = {}
    for name, own in origins.items():
        for one in own:
            key = ids[name], ids[one.parent], one.kind
            if key not in taken and key[0] != key[1] and key[0] not in _ancestors(stated, key[1]):
                values = {"share": one.share, "sure": one.sure, "source": _FOUND}
                rows[key] = {"network": key[0], "parent": key[1], "relation": key[2], **values}
    if rows:
        connection.execute(insert(parents), [*rows.values()])


def _ancestors(above: Mapping[int, Iterable[int]], number: int) -> set[int]:
    """All that a network came from, parents of parents among them."""
    seen, left = set[int](), [number]
    while left:
        new = {*above.get(left.pop(), ())} - seen
        seen |= new
        left += new
    return seen


def _architecture(connection: Connection, entry: Entry) -> int:
    assert entry.content is not None
    a, found = architectures.c, entry.content.fingerprint
    row = connection.execute(
        select(a.id, a.example, a.printed).where(a.fingerprint == found, a.made == entry.made)
    ).first()
    if row is None:
        shapes = entry.content.shapes
        values = {
            "fingerprint": found, "made": entry.made, "example": entry.example, "printed": entry.printed,
            "shapes": json.dumps({name: [*shape] for name, shape in shapes.items()}), "numbers": _numbers(shapes),
        }  # fmt: skip
        return _inserted(connection, architectures, values)
    if row.printed and entry.printed and row.printed != entry.printed:
        raise WeightspaceError(
            f"{entry.name}: {entry.made} makes another module now than for the networks that are there; "
            "name the new architecture differently, or remove those networks first"
        )
    told = {key: new for key, new in (("example", entry.example), ("printed", entry.printed)) if new}
    if told:
        connection.execute(update(architectures).where(a.id == row.id).values(told))
    return int(row.id)


def _inserted(connection: Connection, table: Table, values: Mapping[str, Any]) -> int:
    made = connection.execute(insert(table).values(values)).inserted_primary_key
    assert made is not None
    return int(made[0])


def _numbers(shapes: Mapping[str, Sequence[int]]) -> int:
    total = 0
    for shape in shapes.values():
        size = 1
        for length in shape:
            size *= length
        total += size
    return total


def remove(connection: Connection, names: Sequence[str]) -> list[str]:
    """Remove networks, and what was measured of contents that no network has any more; returns these contents' keys."""
    rows = [_row(connection, name) for name in names]
    connection.execute(delete(networks).where(networks.c.id.in_([row.id for row in rows])))
    return _forget(connection, [row.content for row in rows])


def _forget(connection: Connection, numbers: Sequence[int]) -> list[str]:
    gone = []
    for number in {*numbers}:
        if connection.execute(select(networks.c.id).where(networks.c.content == number)).first() is None:
            gone.append(str(connection.execute(select(contents.c.key).where(contents.c.id == number)).scalar()))
            connection.execute(delete(contents).where(contents.c.id == number))
    used = select(networks.c.architecture)
    connection.execute(delete(architectures).where(architectures.c.id.not_in(used)))
    return gone


def tag(connection: Connection, names: Sequence[str], labels: Iterable[str]) -> None:
    """Add tags to networks."""
    _tagged(connection, [_row(connection, name).id for name in names], labels)


def untag(connection: Connection, names: Sequence[str], labels: Iterable[str]) -> None:
    """Take tags away from networks."""
    ids, wanted = [_row(connection, name).id for name in names], [*labels]
    connection.execute(delete(tags).where(tags.c.network.in_(ids), tags.c.tag.in_(wanted)))


def _tagged(connection: Connection, ids: Sequence[int], labels: Iterable[str]) -> None:
    for label in {checked_name(label, _TAG) for label in labels}:
        there = {*connection.execute(select(tags.c.network).where(tags.c.tag == label)).scalars()}
        rows = [{"network": number, "tag": label} for number in dict.fromkeys(ids) if number not in there]
        if rows:
            connection.execute(insert(tags), rows)


def stamped(connection: Connection, name: str, before: Mapping[str, list[int]], now: Mapping[str, list[int]]) -> None:
    """Write the stamp of a network's file, unless it was written since `before`."""
    same = networks.c.name == name, networks.c.stamp == json.dumps(before)
    connection.execute(update(networks).where(*same).values(stamp=json.dumps(now)))


def _row(connection: Connection, name: str) -> Any:
    row = connection.execute(select(networks.c.id, networks.c.content).where(networks.c.name == name)).first()
    if row is None:
        raise WeightspaceError(f"the atlas holds no network called {name!r:.80}; list those that it holds")
    return row
