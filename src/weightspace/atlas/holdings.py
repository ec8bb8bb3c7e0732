"""The networks that an atlas holds: found by name, entered once, opened only while they are what was entered."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import ColumnElement, select
from torch import Tensor

from weightspace.atlas import members as rows
from weightspace.atlas.catalogue import Catalogue
from weightspace.atlas.content import chosen_as, content, stamp
from weightspace.atlas.members import Entry, Member
from weightspace.atlas.objects import Objects
from weightspace.atlas.sources import Made, Source
from weightspace.atlas.tables import architectures, networks
from weightspace.checkpoint import reader, stored
from weightspace.checkpoint.files import CHOSEN, FileNote
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net

__all__ = ["ChangedError", "Holdings", "Opening"]


class ChangedError(WeightspaceError):
    """A file that is gone, or no longer holds the network that was added."""


@dataclass(frozen=True)
class Opening:
    """A function that opens one member as a network, here or in another process.

    Raises `ChangedError` where the file is not as it was when this was made, `WeightspaceError` with `why` where the
    member cannot be opened.
    """

    name: str
    path: Path = Path()
    chosen: str | None = None
    stamp: Mapping[str, list[int]] | None = None
    template: Net | None = None
    why: str = ""

    def __call__(self) -> Net:
        """The network."""
        if self.template is None:
            raise WeightspaceError(self.why)
        if stamp(self.path, self.chosen, settled=False) != self.stamp:
            raise ChangedError(f"{self.name}: {self.path} has changed meanwhile; ask again")
        return _loaded(self.template, self.path, self.chosen)


def _loaded(template: Net, path: Path, chosen: str | None) -> Net:
    with chosen_as(chosen), warnings.catch_warnings():
        warnings.simplefilter("ignore", FileNote)  # what was left out of the file was said when it was added
        return stored.load(template, path)[0]


@dataclass(frozen=True)
class Holdings:
    """A catalogue, and the store of copies (None: a database without one)."""

    catalogue: Catalogue
    objects: Objects | None

    def listed(self, *where: ColumnElement[bool]) -> list[Member]:
        """The members that fulfil all conditions on the tables of the catalogue."""
        with self.catalogue.reading() as connection:
            return rows.listed(connection, *where)

    def named(self, name: str) -> Member:
        """The member of a name. Raises `WeightspaceError` where there is none."""
        found = self.find(name)
        if found is None:
            raise WeightspaceError(f"the atlas holds no network called {name!r:.80}; list those that it holds")
        return found

    def find(self, name: str) -> Member | None:
        """The member of a name, or None."""
        found = self.listed(networks.c.name == name)
        return found[0] if found else None

    # ------------------------------------------------------------------ entering

    def enter(self, source: Source, made: Made, said: Entry, *, copy: bool, force: bool) -> tuple[Member, bool]:
        """The member of a source, and whether it is new. `said`: its name, tags, parents and facts.

        Raises `WeightspaceError` for a name of another network, unless `force`.
        """
        before = self.find(said.name)
        same = before is not None and before.key == source.content.key
        if before is not None and not same and not force:
            own = source.path is not None and before.location == str(source.path)
            what = "has changed since it was added" if own else "is the name of another network in the atlas"
            do = "give another name, or replace the network (--force)"
            raise WeightspaceError(f"{source.path if own else said.name}: {what}; {do}")
        entry = replace(
            said,
            content=source.content,
            made=made.made or (before.made if before is not None and same else "") or source.made,
            example=made.example,
            printed=made.printed,
            facts={**(before.facts if before is not None and same else {}), **said.facts},
        )
        entry = self._placed(entry, source, before if same else None, copy)
        with self.catalogue.writing() as connection:
            new = rows.enter(connection, entry, force)
        return self.named(entry.name), new

    def _placed(self, entry: Entry, source: Source, before: Member | None, copy: bool) -> Entry:
        """The entry with its place: a copy where one is wanted or there, the old file where it still stands."""
        if source.path is None or copy or (before is not None and before.kind == "object"):
            key = source.content.key
            path = self.store().put(key, source.tensors)
            if source.made and entry.made == source.made and copy:
                folder = self.store().put_beside(key, Path(source.made))
                entry = entry if folder is None else replace(entry, made=str(folder.absolute()))
            return replace(entry, kind="object", location=key, stamp=stamp(path, settled=False))
        if before is not None and before.location != str(source.path) and Path(before.location).exists():
            return replace(entry, kind="file", location=before.location, chosen=before.chosen, stamp=before.stamp)
        place = str(source.path)
        return replace(entry, kind="file", location=place, chosen=source.chosen, stamp=source.stamp or {})

    def store(self) -> Objects:
        """The store of copies. Raises `WeightspaceError` where there is none."""
        if self.objects is None:
            raise WeightspaceError("an atlas in a database keeps copies elsewhere; give objects=, a folder or a URL")
        return self.objects

    def free(self, name: str, source: Source) -> str:
        """The name under which this file stands already; else the given one, with a number where others have it."""
        there = self.listed(networks.c.location == str(source.path))
        if there:
            return there[0].name
        free, number = name, 1
        while (other := self.find(free)) is not None and other.key != source.content.key:
            number += 1
            free = f"{name} ({number})"
        return free

    def unchanged(self, path: Path, weights: str | None) -> Member | None:
        """The member of a file whose stamp is that of then, or None."""
        chosen = weights if weights is not None else CHOSEN.get()
        there = [member for member in self.listed(networks.c.location == str(path)) if member.chosen == chosen]
        return there[0] if there and there[0].stamp == stamp(path, chosen, settled=False) else None

    # ------------------------------------------------------------------ opening

    def open(self, member: Member) -> tuple[reader.Checkpoint, Path]:
        """The tensors of a member, and the file that holds them.

        Where the stamp of the file is another, its content is compared. Raises `ChangedError` for a file that is gone
        or holds something else.
        """
        try:
            path = Path(member.location) if member.kind == "file" else self.store().file(member.location)
            with chosen_as(member.chosen):
                tensors = reader.read(path)
            now = stamp(path, member.chosen, settled=False)
            if now != member.stamp and not (member.kind == "object" and self.store().remote):
                self.compare(member, tensors, path)
                self._stamp(member, now)
        except ChangedError:
            raise
        except WeightspaceError as error:
            raise ChangedError(f"{member.name}: {error}") from error
        return tensors, path

    def compare(self, member: Member, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Raise `ChangedError` unless the tensors are those of the member."""
        if content(tensors).key != member.key:
            do = "bring it back, or add it again (--force)"
            raise ChangedError(f"{member.name}: {path} has changed since it was added; {do}")

    def _stamp(self, member: Member, now: Mapping[str, list[int]]) -> None:
        """Remember the stamp, where the atlas can be written: the content is then not compared again."""
        with suppress(WeightspaceError), self.catalogue.writing() as connection:
            rows.stamped(connection, member.name, member.stamp, now)

    def net(self, member: Member, like: Net | None = None) -> Net:
        """A member as a network of its architecture, or of that of `like`. Raises as `open` and `template` do."""
        _, path = self.open(member)
        return _loaded(self.template(member) if like is None else like, path, member.chosen)

    def template(self, member: Member) -> Net:
        """The architecture of a member, as a network on the meta device.

        Raises `WeightspaceError` where it is not known, or makes another module now than it did then.
        """
        if not member.made:
            do = "add it again with --arch, or give like=, a network of its architecture"
            raise WeightspaceError(f"{member.name}: its architecture is not known; {do}")
        made, a = Made.of(member.made, None), architectures.c
        asked = select(a.printed).where(a.fingerprint == member.fingerprint, a.made == member.made)
        with self.catalogue.reading() as connection:
            printed = connection.execute(asked).scalar()
        if made.template is None or (printed and printed != made.printed):
            what = f"{member.made} makes another module now than when it was added"
            raise WeightspaceError(f"{member.name}: {what}; bring back the code of then, or add it again with --arch")
        return made.template

    def openings(self, members: Iterable[Member], like: Net | None = None) -> dict[str, Opening]:
        """Functions that open members, by name; the files are looked at now, and read when they are called."""
        templates: dict[tuple[str, str], Net | str] = {}
        found = {}
        for member in members:
            key = member.made, member.fingerprint
            try:
                if key not in templates:
                    templates[key] = self._fitting(member, like)
                template = templates[key]
                if isinstance(template, str):
                    raise WeightspaceError(template)
                path = self.open(member)[1]
                seen = stamp(path, member.chosen, settled=False)
                found[member.name] = Opening(member.name, path, member.chosen, seen, template)
            except WeightspaceError as error:
                found[member.name] = Opening(member.name, why=str(error).removeprefix(f"{member.name}: "))
        return found

    def _fitting(self, member: Member, like: Net | None) -> Net | str:
        """The architecture of a member, or why there is none."""
        try:
            return self.template(member) if like is None else like
        except WeightspaceError as error:
            return str(error).removeprefix(f"{member.name}: ")
