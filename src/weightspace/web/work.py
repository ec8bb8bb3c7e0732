"""What each kind of job does, in the process that was started for it: a command is called, its page written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from weightspace.atlas.atlas import Atlas
from weightspace.atlas.records import TaskRow
from weightspace.atlas.sources import Made
from weightspace.commands import atlas_asked, atlas_map, last_map
from weightspace.commands.atlas import known_group
from weightspace.commands.compare import Comparison
from weightspace.commands.compare import compare as compare_nets
from weightspace.commands.data import splits
from weightspace.commands.settings import Settings
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.pages.atlas import map_page, query_page
from weightspace.pages.compare import compare_page
from weightspace.pages.page import Page, save
from weightspace.symmetry.symmetry import Symmetry
from weightspace.task.task import Task
from weightspace.web.child import Work, main
from weightspace.web.served import id_of

__all__ = ["DONE"]

_EXAMPLES = 2048  # that two networks are compared on
_LISTED = 500  # rows of a result


def make_map(work: Work) -> dict[str, Any]:
    """The map of the atlas: kept in it, and its page."""
    with _atlas(work) as atlas:
        found = atlas_map.mapped(atlas, work["tag"], not work["stored"], settings=_settings(work))
        last_map.keep(atlas, found)
    _write(work, map_page(found))
    spaces = found.spaces
    return {"networks": sum(len(s.members) for s in spaces), "families": sum(len(s.families.middles) for s in spaces),
            "edges": sum(len(s.lineage.edges) for s in spaces), "left": len(found.left)}  # fmt: skip


def compare(work: Work) -> dict[str, Any]:
    """Two members compared, as `weightspace compare` compares two files."""
    a, b = work["a"], work["b"]
    data = work["data"]
    align_on, measure_on = splits(data, _EXAMPLES, 0) if data is not None else (None, None)
    with _atlas(work) as atlas:
        members = [atlas[a], atlas[b]]
        if members[0].fingerprint != members[1].fingerprint:
            raise WeightspaceError(f"{a} and {b} are of two architectures; choose two of one")
        _, group, why = known_group(atlas, members, _settings(work))
        work.progress("opening two networks", 0, 0)
        openings = atlas.openings(members, Made.of(work.arch, None).template)
        nets = [openings[name]() for name in (a, b)]
    if group is None and align_on is None:
        raise WeightspaceError(f"the symmetry of {a} cannot be read: {why}")
    group = group if group is not None else _read(nets[0], align_on)
    found: Comparison = compare_nets(
        nets[0], nets[1], group, align_on=align_on, measure_on=measure_on, names=(a, b), progress=work.progress
    )
    _write(work, compare_page(found))
    return found.data()


def _read(net: Net, task: Task | None) -> Symmetry:
    """The group of a network whose catalogue has no example of its inputs."""
    assert task is not None
    return Symmetry.of(net, task.example(2))


def query(work: Work) -> dict[str, Any]:
    """Members ranked for data, and the page of the ranking."""
    with _atlas(work) as atlas:
        found = atlas_asked.query(
            atlas, work["data"], work["by"], steps=work["steps"], tag=work["tag"], budget=work["budget"],
            settings=_settings(work),
        )  # fmt: skip
        sent = [row for row in atlas.tasks if row.opened == work["data"] and work["upload"] is not None]
        if found.kept:
            atlas.tasks.put(TaskRow(row.key, f"{work['shown']} (sent)", "", row.examples) for row in sent)
    answer = found.answer
    _write(work, query_page(replace(found, asked_with=work["shown"])))
    rows = [
        {"id": id_of(row.name), "name": row.name, "value": answer.value(row)[0], "error": answer.value(row)[1],
         "behind": row.behind, "behind_error": row.behind_error, "examples": row.examples, "tied": bool(row.tied)}
        for row in answer.found.ranking
    ]  # fmt: skip
    return {
        "data": work["shown"], "by": answer.by, "best": rows[0]["id"], "tied": [r["id"] for r in rows if r["tied"]],
        "ranking": rows[:_LISTED], "share": answer.found.share, "remarks": found.remarks(),
    }  # fmt: skip


def nearest(work: Work) -> dict[str, Any]:
    """The members nearest to a network that was sent."""
    with _atlas(work) as atlas:
        found = atlas_asked.nearest_to(atlas, Path(work["data"]), work["count"], settings=_settings(work))
    plain = found.data()
    left = [{"name": name, "why": why} for name, why in plain["left_out"].items()][:_LISTED]
    near = [{"id": id_of(row["name"]), **row} for row in plain["neighbours"]]
    return {"neighbours": near, "aligned": found.aligned, "members": found.members, "left_out": left}


def merge(work: Work) -> dict[str, Any]:
    """Members averaged greedily: a file in the atlas' folder, and a member with its parents."""
    with _atlas(work) as atlas:
        if not atlas.catalogue.writable:
            raise WeightspaceError("the atlas is read-only, so no average can be added to it; copy it first")
        _room(work)
        assert work.out is not None
        done = atlas_asked.merge(atlas, work["networks"], work["data"], work.out, settings=_settings(work))
        name = _free(atlas, work["name"] or f"average of {len(done.found.kept)}")
        first = atlas[done.found.kept[0]]
        try:
            atlas.add(work.out, name, parents=done.found.kept, tags=["merged"], arch=first.made or None)
        except WeightspaceError:
            work.out.unlink(missing_ok=True)
            raise
    found = done.found
    return {"network": id_of(name), "name": name, "kept": [*found.kept], "refused": [*found.refused],
            "loss": done.loss, "best": done.best, "notes": done.notes}  # fmt: skip


def _free(atlas: Atlas, name: str) -> str:
    """The name, with a number where others have it."""
    free, number = name, 1
    while free in atlas:
        number += 1
        free = f"{name} ({number})"
    return free


def between(work: Work) -> dict[str, Any]:
    """A way from one member to another over members, with low barriers."""
    with _atlas(work) as atlas:
        found = atlas_asked.between_members(
            atlas, work["a"], work["b"], work["data"], work["tag"], settings=_settings(work)
        )
    names = [work["a"], *found.way.names, work["b"]]
    return {"names": names, "ids": [id_of(name) for name in names], "barriers": [*found.way.barriers],
            "highest": found.way.highest, "direct": found.way.direct, "notes": found.notes}  # fmt: skip


def _settings(work: Work) -> Settings:
    return Settings(arch=work.arch, progress=work.progress)


def _atlas(work: Work) -> Atlas:
    if work.atlas is None:
        raise WeightspaceError("no atlas is open; start with weightspace serve FOLDER")
    return Atlas(work.atlas, objects=work.objects, create=False)


def _room(work: Work) -> None:
    """Make the folder that is written into. Raises `WeightspaceError`."""
    assert work.out is not None
    try:
        work.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightspaceError(f"the folder {work.out.parent.name} cannot be made ({error.strerror})") from error


def _write(work: Work, page: Page) -> None:
    """Write the page of a job."""
    _room(work)
    assert work.out is not None
    work.progress("writing the page", 0, 0)
    save([page], work.out, title=page.name)


DONE: dict[str, Callable[[Work], dict[str, Any]]] = {
    "map": make_map,
    "compare": compare,
    "query": query,
    "nearest": nearest,
    "merge": merge,
    "between": between,
}

if __name__ == "__main__":
    sys.exit(main(DONE))
