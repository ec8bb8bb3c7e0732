"""What each kind of job does, in the process that was started for it: a command is called, its page written."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from weightspace.atlas.atlas import Atlas
from weightspace.atlas.records import TaskRow
from weightspace.atlas.sources import Made, opened
from weightspace.checkpoint.files import FileNote
from weightspace.commands import atlas_asked, atlas_map, last_map
from weightspace.commands.atlas import known_group
from weightspace.commands.compare import Comparison
from weightspace.commands.compare import compare as compare_nets
from weightspace.commands.data import splits, train_and_test
from weightspace.commands.settings import Settings
from weightspace.jobs.progress import Progress
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.pages.atlas import map_page, query_page
from weightspace.pages.compare import compare_page
from weightspace.pages.page import Page, save
from weightspace.symmetry.symmetry import Symmetry
from weightspace.task.task import Task
from weightspace.web.members import id_of

__all__ = ["DONE", "Work"]

_EXAMPLES = 2048  # that two networks are compared on
_LISTED = 500  # rows of a result


@dataclass(frozen=True)
class Work:
    """One job: its arguments with names and paths, the atlas, where its page or file goes, whom it tells how far it is.

    `out`: the page, or the file of a merged network.
    """

    arguments: dict[str, Any]
    atlas: str | None
    objects: str | None
    arch: str | None
    out: Path | None
    progress: Progress

    @property
    def settings(self) -> Settings:
        """As the commands take them."""
        return Settings(arch=self.arch, progress=self.progress)

    def open(self) -> Atlas:
        """The atlas. Raises `WeightspaceError`."""
        if self.atlas is None:
            raise WeightspaceError("no atlas is open; start with weightspace serve FOLDER")
        return Atlas(self.atlas, objects=self.objects, create=False)

    def write(self, page: Page) -> None:
        """Write the page of this job."""
        assert self.out is not None
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.progress("writing the page", 0, 0)
        save([page], self.out, title=page.name)

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]


def make_map(work: Work) -> dict[str, Any]:
    """The map of the atlas: kept in it, and its page."""
    with work.open() as atlas:
        found = atlas_map.mapped(atlas, work["tag"], not work["stored"], settings=work.settings)
        last_map.keep(atlas, found)
    work.write(map_page(found))
    spaces = found.spaces
    return {"networks": sum(len(s.members) for s in spaces), "families": sum(len(s.families.middles) for s in spaces),
            "edges": sum(len(s.lineage.edges) for s in spaces), "left": len(found.left)}  # fmt: skip


def compare(work: Work) -> dict[str, Any]:
    """Two members compared, as `weightspace compare` compares two files."""
    a, b = work["a"], work["b"]
    data = work["data"]
    align_on, measure_on = splits(data, _EXAMPLES, 0) if data is not None else (None, None)
    with work.open() as atlas:
        members = [atlas[a], atlas[b]]
        if members[0].fingerprint != members[1].fingerprint:
            raise WeightspaceError(f"{a} and {b} are of two architectures; choose two of one")
        _, group, why = known_group(atlas, members, work.settings)
        work.progress("opening two networks", 0, 0)
        openings = atlas.openings(members, Made.of(work.arch, None).template)
        nets = [openings[name]() for name in (a, b)]
    if group is None and align_on is None:
        raise WeightspaceError(f"the symmetry of {a} cannot be read: {why}")
    group = group if group is not None else _read(nets[0], align_on)
    found: Comparison = compare_nets(
        *nets, group, align_on=align_on, measure_on=measure_on, names=(a, b), progress=work.progress
    )
    work.write(compare_page(found))
    return found.data()


def _read(net: Net, task: Task | None) -> Symmetry:
    """The group of a network whose catalogue has no example of its inputs."""
    assert task is not None
    return Symmetry.of(net, task.example(2))


def query(work: Work) -> dict[str, Any]:
    """Members ranked for data, and the page of the ranking."""
    with work.open() as atlas:
        found = atlas_asked.query(
            atlas, work["data"], work["by"], steps=work["steps"], tag=work["tag"], budget=work["budget"],
            settings=work.settings,
        )  # fmt: skip
        sent = [row for row in atlas.tasks if row.opened == work["data"] and work["upload"] is not None]
        atlas.tasks.put(TaskRow(row.key, f"{work['shown']} (sent)", "", row.examples) for row in sent)
    answer = found.answer
    work.write(query_page(atlas_asked.Queried(found.atlas, work["shown"], answer)))
    rows = [
        {"id": id_of(row.name), "name": row.name, "value": answer.value(row)[0], "error": answer.value(row)[1],
         "behind": row.behind, "behind_error": row.behind_error, "examples": row.examples, "tied": bool(row.tied)}
        for row in answer.found.ranking
    ]  # fmt: skip
    return {
        "data": work["shown"], "by": answer.by, "best": rows[0]["id"], "tied": [r["id"] for r in rows if r["tied"]],
        "ranking": rows[:_LISTED], "share": answer.found.share, "remarks": [*answer.remarks()],
    }  # fmt: skip


def nearest(work: Work) -> dict[str, Any]:
    """The members nearest to a network that was sent."""
    with work.open() as atlas:
        found = atlas_asked.nearest_to(atlas, Path(work["data"]), work["count"], settings=work.settings)
    plain = found.data()
    left = [{"name": name, "why": why} for name, why in plain["left_out"].items()][:_LISTED]
    near = [{"id": id_of(row["name"]), **row} for row in plain["neighbours"]]
    return {"neighbours": near, "aligned": found.aligned, "members": found.members, "left_out": left}


def merge(work: Work) -> dict[str, Any]:
    """Members averaged greedily: a file in the atlas' folder, and a member with its parents."""
    assert work.out is not None
    work.out.parent.mkdir(parents=True, exist_ok=True)
    with work.open() as atlas:
        name = _free(atlas, work["name"] or f"average of {len(work['networks'])}")
        done = atlas_asked.merge(atlas, work["networks"], work["data"], work.out, settings=work.settings)
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
    with work.open() as atlas:
        found = atlas_asked.between_members(
            atlas, work["a"], work["b"], work["data"], work["tag"], settings=work.settings
        )
    names = [work["a"], *found.way.names, work["b"]]
    return {"names": names, "ids": [id_of(name) for name in names], "barriers": [*found.way.barriers],
            "highest": found.way.highest, "direct": found.way.direct, "notes": found.notes}  # fmt: skip


# ------------------------------------------------------------------ files that were sent


def look_at_data(work: Work) -> dict[str, Any]:
    """What an .npz file holds, read as data are. Raises `WeightspaceError` for what cannot be used."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", FileNote)
        task, test = train_and_test(work["path"])
    batch, example = next(iter(task.batches())), task.example(1)
    for inputs, labels in task.batches():
        _refuse_nan(inputs)
        _refuse_nan(labels)
    labels = batch[1]
    kind = None if labels is None else "whole numbers" if not labels.is_floating_point() else "numbers"
    shape = [*example.shape[1:]] if isinstance(example, torch.Tensor) else None
    notes = [str(note.message).removeprefix(f"{work['path']}: ") for note in said]
    count = len(task) + (len(test) if test is not None else 0)
    return {"examples": count, "inputs": shape, "labels": kind, "tensors": None, "numbers": None,
            "fingerprint": None, "notes": notes}  # fmt: skip


def _refuse_nan(value: Any) -> None:
    parts = value.values() if isinstance(value, dict) else [value]
    for part in parts:
        if isinstance(part, torch.Tensor) and part.is_floating_point() and not bool(torch.isfinite(part).all()):
            raise WeightspaceError("it holds NaN or infinity; replace these, or leave the examples out")


def look_at_network(work: Work) -> dict[str, Any]:
    """What a .safetensors file holds. Raises `WeightspaceError` for what cannot be used, and NaN."""
    content = opened(Path(work["path"])).content
    numbers = sum(torch.Size(shape).numel() for shape in content.shapes.values())
    return {"examples": None, "inputs": None, "labels": None, "tensors": len(content.shapes), "numbers": numbers,
            "fingerprint": content.fingerprint, "notes": []}  # fmt: skip


DONE: dict[str, Callable[[Work], dict[str, Any]]] = {
    "map": make_map,
    "compare": compare,
    "query": query,
    "nearest": nearest,
    "merge": merge,
    "between": between,
    "data": look_at_data,
    "network": look_at_network,
}
