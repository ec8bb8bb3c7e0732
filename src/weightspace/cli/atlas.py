"""The commands `weightspace atlas add`, `list`, `show`, `tag`, `remove` and `check`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.options import Shared, shared
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, make_table, printable, say_notes

if TYPE_CHECKING:
    from weightspace.atlas.atlas import Atlas
    from weightspace.atlas.folders import Added
    from weightspace.atlas.members import Member
    from weightspace.commands.atlas import Checked, Listed, Shown

__all__ = ["Name", "Objects", "Where", "app", "opened_atlas"]

app = typer.Typer(
    help="A set of networks kept together: what is in this folder, which are copies, what is known of each?",
    no_args_is_help=True,
)
_SHOWN = 20  # files left out that are listed

Where = Annotated[
    str,
    typer.Option(
        "--atlas",
        envvar="WEIGHTSPACE_ATLAS",
        show_envvar=True,
        help="The atlas: a folder, or postgresql://user@host/database.",
    ),
]
Objects = Annotated[
    str | None,
    typer.Option(
        help="Where copies of networks are kept, for an atlas in a database: a folder, or s3://bucket/folder."
    ),
]
Name = Annotated[str, typer.Argument(help="The name of a network in the atlas.")]
Names = Annotated[list[str], typer.Argument(help="Names of networks in the atlas.")]


@contextmanager
def opened_atlas(where: str, objects: str | None = None, create: bool = False) -> Iterator[Atlas]:
    """The atlas that a command works on; made, if `create`."""
    from weightspace.atlas.atlas import Atlas

    with Atlas(where, objects=objects, create=create) as atlas:
        yield atlas


def _size(nbytes: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            break
        nbytes = nbytes / 1000  # type: ignore[assignment]
    return f"{nbytes:.3g} {unit}"


def _say_members(members: list[Member]) -> None:
    forms = list(dict.fromkeys(member.fingerprint for member in members))
    table = make_table("name", "architecture", "dtype", "size", "tags", "parents", "content")
    for member in members:
        made = member.made or f"unknown {forms.index(member.fingerprint) + 1}"
        row = [member.name, made, member.dtype, _size(member.nbytes), ", ".join(member.tags) or "-",
               _parents(member) or "-", member.key[:8]]  # fmt: skip
        table.add_row(*map(printable, row))
    console().print(table)


def _parents(member: Member) -> str:
    """The parents that were stated; else those that a map found."""
    return ", ".join(member.came_from) + (" (found)" if member.came_from and not member.parents else "")


def _origins(member: Member) -> str:
    """The parents that the last map found, each with what it is and how sure that is."""
    told = []
    for one in member.origins:
        share = f"{one.share:.2g} " if one.kind == "average" and one.share is not None else ""
        sure = f", {one.sure:.0%} sure" if one.sure is not None and one.sure > 0.5 else ""
        told.append(f"{share}{one.parent} ({one.kind}{sure})")
    return ", ".join(told)


def _say_added(done: Added) -> None:
    out = console()
    if done.new:
        _say_members(done.new)
    known = f", {len(done.known)} that were there already" if done.known else ""
    out.print(f"{len(done.new)} added{known}, {len(done.left)} left out.")
    for one in done.left[:_SHOWN]:
        out.print(f"Left out: {printable(str(one.path))}: {printable(one.reason)}", style="yellow", soft_wrap=True)
    if len(done.left) > _SHOWN:
        out.print(f".. and {len(done.left) - _SHOWN} more; see --json.", style="yellow")
    say_notes(out, done.notes)


def _say_listed(found: Listed) -> None:
    if found.members:
        _say_members(found.members)
    console().print(f"{len(found.members)} networks in {printable(found.where)}.", soft_wrap=True)
    for names in found.copies:
        console().print(f"Exact copies: {printable(', '.join(names))}.", soft_wrap=True)
    if found.orbits is not None:
        for names in found.orbits.groups:
            console().print(f"One network up to symmetry: {printable(', '.join(names))}.", soft_wrap=True)
        for name, reason in found.orbits.left.items():
            console().print(
                f"{printable(name)} has no canonical form: {printable(reason)}", style="yellow", soft_wrap=True
            )


def _say_shown(found: Shown) -> None:
    out, member = console(), found.member
    out.print(printable(member.name), style="bold")
    place = member.location if member.kind == "file" else "a copy in the atlas"
    lines = {
        "file": place, "architecture": member.made or "not known", "dtype": member.dtype,
        "size": _size(member.nbytes), "tags": ", ".join(member.tags), "parents": ", ".join(member.parents),
        "found to come from": _origins(member), "children": ", ".join(found.children),
        "exact copies": ", ".join(found.copies), "the same values in another dtype": ", ".join(found.casts),
        "content": member.key,
        **{name: str(value) for name, value in member.facts.items()},
    }  # fmt: skip
    for what, text in lines.items():
        if text:
            out.print(f"{printable(what)}: {printable(text)}", soft_wrap=True)
    for row in found.measures:
        error = f" +- {row.error:.2g}" if row.error == row.error else ""
        on = f" on {printable(found.tasks.get(row.task, row.task[:8]))}" if row.task else ""
        of = f" ({row.examples:,} examples)" if row.examples else ""
        out.print(f"{printable(row.observable)}{on}: {row.value:.6g}{error}{of}", soft_wrap=True)


def _say_tagged(found: Listed) -> None:
    for member in found.members:
        console().print(f"{printable(member.name)}: {printable(', '.join(member.tags) or 'no tags')}", soft_wrap=True)


def _say_removed(found: Listed) -> None:
    for member in found.members:
        console().print(f"Removed: {printable(member.name)}; its file stays where it is.", soft_wrap=True)


def _say_checked(found: Checked) -> None:
    console().print(f"{found.members} networks read, {len(found.wrong)} gone or changed.")
    for name, reason in found.wrong.items():
        console().print(f"{printable(name)}: {printable(reason)}", style="yellow", soft_wrap=True)


@shared("arch weights example")
def add(
    paths: Annotated[list[Path], typer.Argument(help="Checkpoints, Hugging Face folders, and folders of these.")],
    where: Where = "atlas",
    name: Annotated[str | None, typer.Option(help="The name of one network; by default that of its file.")] = None,
    parent: Annotated[list[str] | None, typer.Option(help="A network in the atlas that it came from.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag for all that is added.")] = None,
    learnt: Annotated[
        str | None, typer.Option(help="The data that they have learnt: digits, mnist:0-4, x.npz; for queries by task.")
    ] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Keep copies in the atlas; else files stay where they are.")] = (
        False
    ),
    objects: Objects = None,
    *,
    common: Shared,
) -> None:
    """Add networks: files, and folders with all below. What cannot be read is listed with the reason.

    A file that changed since it was added is left out, unless --force replaces the network of then.
    """
    with progress() as step, opened_atlas(where, objects, create=True) as atlas:
        from weightspace.commands import atlas as commands

        done = commands.add(
            atlas, paths, name=name, parents=parent or (), tags=tag or (), learnt=learnt, example=common.example,
            copy=copy, settings=common.settings(step),
        )  # fmt: skip
    answer("atlas.add", done, _say_added, common)


@shared("")
def list_members(
    where: Where = "atlas",
    tag: Annotated[str | None, typer.Option(help="Only networks with this tag.")] = None,
    symmetry: Annotated[
        bool, typer.Option("--symmetry", help="Find copies up to symmetry too, where architectures are known.")
    ] = False,
    *,
    common: Shared,
) -> None:
    """The networks in the atlas, and which are exact copies of one another."""
    with progress() as step, opened_atlas(where) as atlas:
        from weightspace.commands import atlas as commands

        found = commands.listed(atlas, tag, symmetry, settings=common.settings(step))
    answer("atlas.list", found, _say_listed, common)


@shared("")
def show(name: Name, where: Where = "atlas", *, common: Shared) -> None:
    """One network: its file, copies, relatives, tags and measures."""
    with opened_atlas(where) as atlas:
        from weightspace.commands import atlas as commands

        found = commands.show(atlas, name)
    answer("atlas.show", found, _say_shown, common)


@shared("")
def tag(
    names: Names,
    where: Where = "atlas",
    add: Annotated[list[str] | None, typer.Option(help="A tag to add.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A tag to take away.")] = None,
    *,
    common: Shared,
) -> None:
    """Add tags to networks, or take tags away."""
    with opened_atlas(where) as atlas:
        from weightspace.commands import atlas as commands

        found = commands.tag(atlas, names, add or (), remove or ())
    answer("atlas.tag", found, _say_tagged, common)


@shared("")
def remove(names: Names, where: Where = "atlas", objects: Objects = None, *, common: Shared) -> None:
    """Remove networks and what is known of them; files that were added stay where they are."""
    with opened_atlas(where, objects) as atlas:
        from weightspace.commands import atlas as commands

        found = commands.remove(atlas, names)
    answer("atlas.remove", found, _say_removed, common)


@shared("")
def check(where: Where = "atlas", objects: Objects = None, *, common: Shared) -> None:
    """Read every network and compare it with what was added; exit code 1 where one is gone or changed."""
    with progress() as step, opened_atlas(where, objects) as atlas:
        from weightspace.commands import atlas as commands

        found = commands.check(atlas, common.settings(step))
    answer("atlas.check", found, _say_checked, common)
    if found.wrong:
        raise typer.Exit(1)


for name, command in {
    "add": add,
    "list": list_members,
    "show": show,
    "tag": tag,
    "remove": remove,
    "check": check,
}.items():
    app.command(name)(command)
