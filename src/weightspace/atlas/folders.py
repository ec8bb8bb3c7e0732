"""All networks of a folder entered into an atlas, and what was left out, with the reasons."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from weightspace.atlas.holdings import Holdings
from weightspace.atlas.members import Entry, Member, checked_name
from weightspace.atlas.scan import Left, scan
from weightspace.atlas.sources import Made, Source, fits, opened
from weightspace.jobs.progress import Progress
from weightspace.net.errors import WeightspaceError

__all__ = ["Added", "add_all"]

_TRIES = 20  # names that other programs take at the same moment


@dataclass
class Added:
    """What adding did: networks that are new, those that were there already, and what was left out and why."""

    new: list[Member] = field(default_factory=list)
    known: list[Member] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        """As plain data."""
        left = [{"path": str(one.path), "reason": one.reason} for one in self.left]
        found = {name: [member.data() for member in getattr(self, name)] for name in ("new", "known")}
        return {**found, "left": left, "notes": self.notes}


def add_all(
    held: Holdings,
    root: Path,
    made: Made,
    said: Entry,
    *,
    weights: str | None,
    copy: bool,
    force: bool,
    progress: Progress,
) -> Added:
    """Enter every checkpoint in a folder and below, with the tags and facts of `said`; see `Atlas.add_folder`."""
    if not root.is_dir():
        raise WeightspaceError(f"{root}: no such folder; check the path")
    done, found = Added(), [*scan(root)]
    for number, one in enumerate(found):
        progress(f"adding {len(found)} files", number, len(found))
        if isinstance(one, Left):
            done.left.append(one)
            continue
        try:
            if (there := held.unchanged(one.path, weights)) is not None and _nothing_new(there, made, said, copy):
                done.known.append(there)
                continue
            source = opened(one.path, weights)
            how = made if made.template is None or fits(made, source) else Made()
            if how is not made:
                done.notes.append(f"{one.path}: added without --arch, whose tensors are others")
            member, new = _entered(held, source, how, replace(said, name=checked_name(one.name)), copy, force)
            (done.new if new else done.known).append(member)
        except WeightspaceError as error:
            done.left.append(Left(one.path, str(error).removeprefix(f"{one.path}: ")))
    if not done.new and not done.known:
        why = f"; {done.left[0].path.name}: {done.left[0].reason}" if done.left else ""
        raise WeightspaceError(f"{root}: holds no network that can be added{why}")
    return done


def _entered(held: Holdings, source: Source, made: Made, said: Entry, copy: bool, force: bool) -> tuple[Member, bool]:
    """Enter a network under its name, or one with a number where others have it, or take it meanwhile."""
    for left in range(_TRIES, -1, -1):
        name = held.free(said.name, source)
        try:
            return held.enter(source, made, replace(said, name=name), copy=copy, force=force)
        except WeightspaceError:
            if not left or held.free(said.name, source) == name:
                raise
    raise AssertionError


def _nothing_new(there: Member, made: Made, said: Entry, copy: bool) -> bool:
    """Whether a file that has not changed would be entered as it stands, so that it need not be read."""
    return not copy and made.made in ("", there.made) and not made.example and _told(there, said)


def _told(there: Member, said: Entry) -> bool:
    """Whether tags and facts are there already."""
    return {*said.tags} <= {*there.tags} and all(there.facts.get(name) == fact for name, fact in said.facts.items())
