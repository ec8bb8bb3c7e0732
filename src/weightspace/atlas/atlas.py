"""`Atlas`: many networks kept together, each known by its content, with what is measured of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace as renamed
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, select

from weightspace.atlas import members as rows
from weightspace.atlas.catalogue import Catalogue, is_url
from weightspace.atlas.comparisons import Comparisons
from weightspace.atlas.folders import Added, add_all
from weightspace.atlas.holdings import Holdings, Opening
from weightspace.atlas.members import Architecture, Entry, Member, Origin, checked_name
from weightspace.atlas.objects import Objects
from weightspace.atlas.orbits import Orbits, group_of, orbit_of
from weightspace.atlas.records import Jobs, Measures, Pairs, Sketches, Tasks
from weightspace.atlas.sources import Made, fits, opened
from weightspace.atlas.tables import architectures, contents, networks, tags
from weightspace.atlas.ways import Way, points
from weightspace.checkpoint import files, reader
from weightspace.jobs.progress import Progress, silent
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.symmetry.symmetry import Symmetry

__all__ = ["Atlas"]


@public
class Atlas:
    """Networks in a catalogue: `len`, iteration over `Member`s, `atlas[name]`, `name in atlas`.

    `where`: a folder, which is made, or the URL of a PostgreSQL database. A network's file stays where it is; networks
    in memory, and files with `copy`, are kept as safetensors under the hash of their content, below the folder or
    `objects` (a folder or URL such as s3://bucket/nets). `measures`, `pairs`, `comparisons`, `sketches`, `tasks` and
    `jobs` hold what is known of them, by content key: exact copies share it. Close it after use, or use it in a `with`
    statement.

    >>> import tempfile
    >>> import weightspace as ws
    >>> net, _ = ws.demo.example()
    >>> with tempfile.TemporaryDirectory() as folder, ws.Atlas(folder) as atlas:
    ...     first = atlas.add(net, name="first", tags=["mlp"])
    ...     other = atlas.add(net + 0.1 * net.weights.randn(0), name="other", parents=["first"])
    ...     [member.name for member in atlas], other.parents, float(atlas.tensors("first")["1.bias"].norm()) > 0
    (['first', 'other'], ('first',), True)
    """

    def __init__(
        self,
        where: str | os.PathLike[str],
        *,
        objects: str | os.PathLike[str] | None = None,
        create: bool = True,
        timeout: float = 30.0,
    ) -> None:
        """Open the atlas in a folder or at a `postgresql://` URL.

        `timeout`: seconds to wait for another program that writes. Raises `WeightspaceError` for a database of a newer
        version or of something else, one that cannot be reached, and without `create` for one that is not there.
        """
        self.where = os.fspath(where)
        self.catalogue = Catalogue.open(where, create=create, timeout=timeout)
        root = objects if objects is not None or is_url(where) else Path(where).expanduser() / "objects"
        self.objects = None if root is None else Objects(root)
        self._held = Holdings(self.catalogue, self.objects)
        self.measures, self.pairs = Measures(self.catalogue), Pairs(self.catalogue)
        self.sketches, self.tasks = Sketches(self.catalogue), Tasks(self.catalogue)
        self.jobs, self.comparisons = Jobs(self.catalogue), Comparisons(self.catalogue)

    def __enter__(self) -> Atlas:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the catalogue."""
        self.catalogue.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """An atlas that is sent to another process is opened there."""
        return _again, (self.where, None if self.objects is None else self.objects.root)

    # ------------------------------------------------------------------ members

    def members(
        self,
        *,
        tag: str | None = None,
        fingerprint: str | None = None,
        made: str | None = None,
        key: str | None = None,
        location: str | None = None,
    ) -> list[Member]:
        """The members in the order of adding: all, or those with a tag, of an architecture, a content, a file."""
        asked: list[ColumnElement[bool]] = []
        pairs = ((contents.c.fingerprint, fingerprint), (architectures.c.made, made), (contents.c.key, key),
                 (networks.c.location, location))  # fmt: skip
        asked += [column == value for column, value in pairs if value is not None]
        if tag is not None:
            asked.append(networks.c.id.in_(select(tags.c.network).where(tags.c.tag == tag)))
        return self._held.listed(*asked)

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members())

    def __len__(self) -> int:
        with self.catalogue.reading() as connection:
            return len(connection.execute(select(networks.c.id)).all())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._held.find(name) is not None

    def __getitem__(self, name: str) -> Member:
        return self._held.named(name)

    def architectures(self) -> list[Architecture]:
        """The architectures of the members: those that share a fingerprint are points of one space."""
        a = architectures.c
        asked = select(a.fingerprint, a.made, a.example, a.printed, a.shapes, a.numbers).order_by(a.id)
        with self.catalogue.reading() as connection:
            found = connection.execute(asked).all()
        return [
            Architecture(*row[:4], {name: tuple(shape) for name, shape in files.parse(row[4]).items()}, row[5])
            for row in found
        ]

    def copies(self) -> list[list[str]]:
        """The names of members with exactly the same tensors, for every content that several have."""
        return _several((member.key, member.name) for member in self)

    def group(self, name: str) -> Symmetry:
        """The symmetry group of a member's architecture: read and verified once, then kept.

        Raises `WeightspaceError` where the architecture is not known, or has no group that can be read.
        """
        return group_of(self._held, self[name])

    def orbits(self, progress: Progress = silent) -> Orbits:
        """The members that are copies up to symmetry: renumbered, rescaled, or rotated where that changes nothing.

        Each member's canonical form is computed once. Members whose architecture is not known, or has no canonical
        form, are in `left` with the reason.

        >>> import tempfile
        >>> import weightspace as ws
        >>> net = ws.Net.of(ws.demo.digits_cnn(width=4))
        >>> copy = ws.Symmetry.of(net, ws.digits("test").example(2)).sample(seed=0)(net)
        >>> how = {"arch": "weightspace.demo:digits_cnn(width=4)", "example": "2x1x8x8"}
        >>> with tempfile.TemporaryDirectory() as folder, ws.Atlas(folder) as atlas:
        ...     a, b = atlas.add(net, name="a", **how), atlas.add(copy, name="b", **how)
        ...     a.key == b.key, atlas.orbits().groups
        (False, [['a', 'b']])
        """
        found, labels, every = Orbits(), list[tuple[str, str]](), self.members()
        for number, member in enumerate(every):
            progress(f"canonical forms of {len(every)} networks", number, len(every))
            try:
                labels.append((orbit_of(self._held, self.sketches, member), member.name))
            except WeightspaceError as error:
                found.left[member.name] = str(error).removeprefix(f"{member.name}: ")
        found.groups = _several(labels)
        return found

    # ------------------------------------------------------------------ adding

    def add(
        self,
        what: Any,
        name: str | None = None,
        *,
        parents: Sequence[str] = (),
        tags: Sequence[str] = (),
        arch: str | None = None,
        example: str | None = None,
        weights: str | None = None,
        copy: bool = False,
        replace: bool = False,
        facts: Mapping[str, Any] | None = None,
    ) -> Member:
        """Add one network: a `Net`, a module, named tensors, or a checkpoint on disk; returns its member.

        `arch`, `example`: how it is made, and the shape of its inputs, as the commands take them; `weights`: which
        network of a file. `facts`: what else is told of it by name; "learnt", a task as `weightspace tasks` names them
        (mnist:0-4), is what it has learnt, for queries by task. A name that is there is refused, unless it is the same
        network, or with `replace`. Raises `WeightspaceError` for what cannot be read, NaN, a file that changed since it
        was added, an unknown parent.

        >>> import tempfile
        >>> import weightspace as ws
        >>> net, _ = ws.demo.example()
        >>> with tempfile.TemporaryDirectory() as folder, ws.Atlas(folder + "/atlas") as atlas:
        ...     path = ws.checkpoint.save(net.tensors, folder)
        ...     member = atlas.add(path, name="a")
        ...     member.kind, member.dtype, member.nbytes
        ('file', 'float32', 4840)
        """
        said = Entry("", tags=tuple(tags), parents=tuple(parents), facts=facts or {})
        return self.entered(what, name, said, Made.of(arch, example), weights=weights, copy=copy, replace=replace)[0]

    def entered(
        self,
        what: Any,
        name: str | None,
        said: Entry,
        made: Made,
        *,
        weights: str | None = None,
        copy: bool = False,
        replace: bool = False,
    ) -> tuple[Member, bool]:
        """The member of one network, as `add` returns it, and whether it is new. `said`: its tags, parents, facts."""
        source = opened(what, weights)
        if made.template is not None and not fits(made, source):
            raise WeightspaceError(f"{name or what}: its tensors are not those of {made.made}; give another --arch")
        if name is None and source.path is None:
            raise WeightspaceError("a network in memory has no name of its own; give name=")
        own = checked_name(name if name is not None else _file_name(source.path))  # type: ignore[arg-type]
        return self._held.enter(source, made, renamed(said, name=own), copy=copy, force=replace)

    def add_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        tags: Sequence[str] = (),
        arch: str | None = None,
        example: str | None = None,
        weights: str | None = None,
        copy: bool = False,
        replace: bool = False,
        facts: Mapping[str, Any] | None = None,
        progress: Progress = silent,
    ) -> Added:
        """Add every checkpoint in a folder and below; what cannot be read is listed with the reason.

        Names are the places below the folder. Files that are there already are known by their content. Files whose
        tensors are not those of `arch` are added without it. `facts`: told of all of them. Raises `WeightspaceError`
        where no network was found.

        >>> import tempfile
        >>> import weightspace as ws
        >>> net, _ = ws.demo.example()
        >>> with tempfile.TemporaryDirectory() as folder, ws.Atlas(folder + "/atlas") as atlas:
        ...     path = ws.checkpoint.save(net.tensors, folder + "/a.safetensors")
        ...     done = atlas.add_folder(folder)
        ...     [member.name for member in done.new], len(atlas.add_folder(folder).known)
        (['a'], 1)
        """
        made, root = Made.of(arch, example), Path(os.path.abspath(Path(folder).expanduser()))
        said = Entry("", tags=tuple(tags), facts=facts or {})
        return add_all(self._held, root, made, said, weights=weights, copy=copy, force=replace, progress=progress)

    def add_path(
        self,
        path: Way,
        name: str,
        *,
        every: int = 1,
        parents: Sequence[str] = (),
        tags: Sequence[str] = (),
        arch: str | None = None,
        example: str | None = None,
    ) -> list[Member]:
        """Add the networks of a path, each with the one before it as parent: a flow, a `Recorder`, a `Trail`.

        Every `every`-th marked point is added, and the last; they are called NAME/0, NAME/1, .., or by the steps of a
        trail, whose folder will do where `arch` is given. `parents`: those of the first. A run that goes on can be
        added again: what is there is known.

        >>> import tempfile
        >>> import weightspace as ws
        >>> nets = [ws.demo.example(seed)[0] for seed in range(3)]
        >>> with tempfile.TemporaryDirectory() as folder, ws.Atlas(folder) as atlas:
        ...     way = atlas.add_path(ws.Path.through(nets), "run")
        ...     [(member.name, member.parents) for member in way]
        [('run/0', ()), ('run/1', ('run/0',)), ('run/2', ('run/1',))]
        """
        said = Entry("", tags=tuple(tags), parents=tuple(parents))
        return [member for member, _ in self.entered_path(path, name, said, Made.of(arch, example), every)]

    def entered_path(
        self, path: Way, name: str, said: Entry, made: Made, every: int = 1
    ) -> Iterator[tuple[Member, bool]]:
        """The members of a path, as `add_path` returns them, and whether each is new."""
        for label, net, facts in points(path, every, made):
            member, new = self.entered(net, f"{name}/{label}", renamed(said, facts=facts), made, copy=True)
            said = renamed(said, parents=(member.name,), relation="path")
            yield member, new

    # ------------------------------------------------------------------ opening

    def tensors(self, name: str) -> reader.Checkpoint:
        """The named tensors of a member, each read when it is asked for, as its file holds them.

        Raises `WeightspaceError` where the file is gone, or is no longer what was added.
        """
        return self._held.open(self[name])[0]

    def net(self, name: str, like: Net | None = None) -> Net:
        """A member as a network. `like`: any network of its architecture, for members whose architecture is not known.

        Raises `WeightspaceError` where the architecture is not known, or makes another module now than it did then.

        >>> import tempfile
        >>> import weightspace as ws
        >>> net = ws.Net.of(ws.demo.digits_cnn(width=4))
        >>> with tempfile.TemporaryDirectory() as folder, ws.Atlas(folder) as atlas:
        ...     member = atlas.add(net, name="cnn", arch="weightspace.demo:digits_cnn(width=4)", example="2x1x8x8")
        ...     float((atlas.net("cnn") - net).norm())
        0.0
        """
        return self._held.net(self[name], like)

    def openings(self, members: Iterable[Member] | None = None, like: Net | None = None) -> dict[str, Opening]:
        """Functions that open members as networks, by name, for `rank`, `neighbours` and others; here or in a process.

        Of a member that cannot be opened it raises the reason when it is called. `like`: as in `net`.

        >>> import tempfile
        >>> import weightspace as ws
        >>> net, task = ws.demo.example()
        >>> with tempfile.TemporaryDirectory() as folder, ws.Atlas(folder) as atlas:
        ...     _ = atlas.add(net, name="a"), atlas.add(ws.perturb(net, 1.0), name="b")
        ...     ws.atlas.rank(atlas.openings(like=net), task).best
        'a'
        """
        return self._held.openings(self.members() if members is None else members, like)

    # ------------------------------------------------------------------ changing

    def tag(self, names: str | Sequence[str], *labels: str) -> None:
        """Add tags to networks. Raises `WeightspaceError` for an unknown network."""
        with self.catalogue.writing() as connection:
            rows.tag(connection, [names] if isinstance(names, str) else names, labels)

    def untag(self, names: str | Sequence[str], *labels: str) -> None:
        """Take tags away from networks. Raises `WeightspaceError` for an unknown network."""
        with self.catalogue.writing() as connection:
            rows.untag(connection, [names] if isinstance(names, str) else names, labels)

    def found(self, names: Sequence[str], origins: Mapping[str, Sequence[Origin]]) -> None:
        """Write the parents that a map of these networks found, in place of those that the last one found among them.

        Parents that were stated stay, and win: `Member.came_from` names them, and an origin by which a network came
        from a stated child of its own is left out. Raises `WeightspaceError` for an unknown network.
        """
        with self.catalogue.writing() as connection:
            rows.found(connection, names, origins)

    def remove(self, *names: str) -> None:
        """Remove networks, their copies in the atlas, and what is known of contents that are then left by all.

        Files that were added stay where they are. Raises `WeightspaceError` for an unknown network.
        """
        with self.catalogue.writing() as connection:
            gone = rows.remove(connection, names)
        if self.objects is not None:
            for key in gone:
                self.objects.remove(key)

    def check(self, progress: Progress = silent) -> dict[str, str]:
        """The members whose files are gone or changed, with the reason; every content is read and compared."""
        found, every = dict[str, str](), self.members()
        for number, member in enumerate(every):
            progress(f"checking {len(every)} networks", number, len(every))
            try:
                tensors, path = self._held.open(member)
                self._held.compare(member, tensors, path)
            except WeightspaceError as error:
                found[member.name] = str(error).removeprefix(f"{member.name}: ")
        return found


def _again(where: str, objects: str | None) -> Atlas:
    return Atlas(where, objects=objects, create=False)


def _file_name(path: Path) -> str:
    """What to call a checkpoint: the name of its file without the ending, or of its folder."""
    return path.name if path.is_dir() else Path(path.name.partition(".index.")[0]).stem


def _several(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """The names of every key that has several."""
    found: dict[str, list[str]] = {}
    for key, name in pairs:
        found.setdefault(key, []).append(name)
    return [names for names in found.values() if len(names) > 1]
