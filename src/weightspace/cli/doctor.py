"""The command `weightspace doctor`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.options import Shared, shared
from weightspace.cli.show import answer
from weightspace.cli.words import console, make_table, printable

if TYPE_CHECKING:
    from weightspace.commands.doctor import Health

__all__ = ["doctor", "say_health"]


def say_health(done: Health, licences: bool = False) -> None:
    """Print the answer of `doctor`."""
    out = console()
    table = make_table("", "found", "licence" if licences else "to do")
    group = ""
    for finding in done.findings:
        if finding.group != group:
            group = finding.group
            table.add_row(group, "", "", style="bold")
        last = finding.licence if licences else finding.do
        mark = "" if finding.well else "! "
        table.add_row(f"  {mark}{printable(finding.name)}", printable(finding.found), printable(last))
    out.print(table)
    if done.well:
        out.print("All that is needed is there. Try: weightspace demo")
    else:
        out.print("Something that is needed is missing; lines with ! say what to do.")


@shared("")
def doctor(
    licences: Annotated[bool, typer.Option("--licences", help="Show the licences of the packages.")] = False,
    *,
    common: Shared,
) -> None:
    """Say what is installed, which devices and data are found, what is missing and how to get it."""
    from weightspace.commands.doctor import doctor as run

    done = run()
    answer("doctor", done, partial(say_health, licences=licences), common)
    if not done.well:
        raise typer.Exit(1)
