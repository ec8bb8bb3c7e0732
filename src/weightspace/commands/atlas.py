"""`weightspace atlas`: networks added to an atlas, listed, shown, tagged, removed and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightspace.atlas.atlas import Atlas
from weightspace.atlas.folders import Added
from weightspace.atlas.holdings import ChangedError
from weightspace.atlas.members import Entry, Member
from weightspace.atlas.orbits import Orbits
from weightspace.atlas.records import Measure
from weightspace.atlas.scan import Left, is_path
from weightspace.atlas.sources import Made
from weightspace.checkpoint.architecture import ExampleError
from weightspace.commands.settings import Settings
from weightspace.net.errors import WeightspaceError
from weightspace.symmetry.symmetry import Symmetry

__all__ = ["Checked", "Listed", "Shown", "add", "check", "known_group", "listed", "remove", "show", "tag"]


@dataclass(frozen=True)
class Listed:
    """Members of an atlas, the names of exact copies, and of copies up to symmetry where these were asked for."""

    where: str
    members: list[Member]
    copies: list[list[str]]
    orbits: Orbits | None = None

    def data(self) -> dict[str, Any]:
        """As plain data."""
        found = [member.data() for member in self.members]
        asked = {} if self.orbits is None else {"orbits": self.orbits.groups, "left": self.orbits.left}
        return {"atlas": self.where, "members": found, "copies": self.copies, **asked}


@dataclass(frozen=True)
class Shown:
    """One member: its exact copies, those with the same values in other dtypes, its children, what was measured.

    `tasks`: the key of a task in `measures` -> its name.
    """

    member: Member
    copies: list[str]
    casts: list[str]
    children: list[str]
    measures: list[Measure]
    tasks: dict[str, str]

    def data(self) -> dict[str, Any]:
        """As plain data."""
        measured = [{**vars(row), "data": self.tasks.get(row.task, "")} for row in self.measures]
        return {
            **self.member.data(), "copies": self.copies, "casts": self.casts, "children": self.children,
            "measures": measured,
        }  # fmt: skip


@dataclass(frozen=True)
class Checked:
    """How many members were read, and the reason for each that is gone or changed."""

    members: int
    wrong: dict[str, str]

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return {"members": self.members, "wrong": self.wrong}


def add(
    atlas: Atlas,
    paths: Sequence[Path],
    *,
    name: str | None = None,
    parents: Sequence[str] = (),
    tags: Sequence[str] = (),
    learnt: str | None = None,
    example: str | None = None,
    copy: bool = False,
    settings: Settings,
) -> Added:
    """Add files and folders. A folder that is one checkpoint itself is one network, under `name` if that is given.

    `learnt`: the task that they have learnt, as `named_task` takes it; kept as a fact of each.

    Raises `WeightspaceError` where nothing could be added.
    """
    if name is not None and len(paths) > 1:
        raise WeightspaceError("--name is for one network; leave it out to name each by its file")
    done = Added()
    facts = {} if learnt is None else {"learnt": learnt}
    how = {"tags": tags, "arch": settings.arch, "example": example, "copy": copy, "replace": settings.force}
    said = Entry("", tags=tuple(tags), parents=tuple(parents), facts=facts)
    made = Made.of(settings.arch, example)
    for path in paths:
        if not path.exists():
            raise WeightspaceError(f"{path}: no such file or folder; check the path")
        whole = path.is_dir() and name is None and not parents and not _is_trail(path)
        if whole:
            some = atlas.add_folder(path, progress=settings.progress, facts=facts, **how)  # type: ignore[arg-type]
            done.new += some.new
            done.known += some.known
            done.left += some.left
            done.notes += some.notes
            continue
        settings.progress(f"adding {path.name}", 0, 0)
        if path.is_dir() and _is_trail(path):
            for member, new in atlas.entered_path(path, name or path.name, said, made):
                (done.new if new else done.known).append(member)
            continue
        try:
            member, new = atlas.entered(path, name, said, made, copy=copy, replace=settings.force)
            (done.new if new else done.known).append(member)
        except WeightspaceError as error:
            if len(paths) == 1:
                raise
            done.left.append(Left(path, str(error).removeprefix(f"{path}: ")))
    if not done.new and not done.known:
        raise WeightspaceError(f"nothing was added; {done.left[0].path}: {done.left[0].reason}")
    return done


def _is_trail(folder: Path) -> bool:
    return is_path(folder, [item.name for item in folder.iterdir()])


def listed(atlas: Atlas, tag: str | None = None, symmetry: bool = False, *, settings: Settings) -> Listed:
    """The members of an atlas, or those with a tag; with `symmetry`, all copies up to symmetry too."""
    orbits = atlas.orbits(settings.progress) if symmetry else None
    return Listed(atlas.where, atlas.members(tag=tag), atlas.copies(), orbits)


def show(atlas: Atlas, name: str) -> Shown:
    """One member. Raises `WeightspaceError` where there is none of that name."""
    member, every = atlas[name], atlas.members()
    others = [other for other in every if other.name != name]
    same = [other.name for other in others if other.key == member.key]
    casts = [other.name for other in others if other.numbers == member.numbers and other.key != member.key]
    children = [other.name for other in others if name in other.came_from]
    measured = [row for row in atlas.measures.of() if row.network == member.key]
    tasks = {task.key: task.name for task in atlas.tasks}
    return Shown(member, same, casts, children, measured, tasks)


def tag(atlas: Atlas, names: Sequence[str], add: Sequence[str], remove: Sequence[str]) -> Listed:
    """The members with their tags, after some were added and some removed."""
    if not add and not remove:
        raise WeightspaceError("which tag? give --add or --remove")
    if remove:
        atlas.untag(names, *remove)
    if add:
        atlas.tag(names, *add)
    return Listed(atlas.where, [atlas[name] for name in names], [])


def remove(atlas: Atlas, names: Sequence[str]) -> Listed:
    """The members that were removed."""
    gone = Listed(atlas.where, [atlas[name] for name in dict.fromkeys(names)], [])
    atlas.remove(*dict.fromkeys(names))
    return gone


def check(atlas: Atlas, settings: Settings) -> Checked:
    """Every member read and compared with what was added."""
    return Checked(len(atlas), atlas.check(settings.progress))


def known_group(
    atlas: Atlas, members: Sequence[Member], settings: Settings
) -> tuple[Member | None, Symmetry | None, str]:
    """The first member whose architecture is known, with the group; or None, and why there is none."""
    known = [member for member in members if member.made]
    if not known:
        return None, None, "the architecture is not known; add the networks with --arch and --example"
    settings.progress(f"reading the symmetry of {known[0].made}", 0, 0)
    why = ""
    for member in known:
        try:
            group, _ = atlas.group(member.name), atlas.tensors(member.name)
            return member, group, ""
        except ChangedError as error:  # its file is gone; others of the architecture will do
            why = why or str(error)
        except ExampleError:
            asked = f"add {member.name} again with --arch and --example, with a shape such as 2x3x32x32"
            return None, None, f"what does an input look like? {asked}"
        except WeightspaceError as error:
            return None, None, str(error)
    return None, None, why
