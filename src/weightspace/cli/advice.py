"""What `weightspace compare` prints about a set of networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from weightspace.cli.options import Shared
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, make_table, printable, say_notes, score_table

if TYPE_CHECKING:
    from weightspace.commands.advice import Set

__all__ = ["compare_many", "say_set"]

_TENSORS = 60  # lines of the table of tensors


def compare_many(paths: list[Path], base: Path | None, common: Shared) -> None:
    """Compare a set, print whether to merge it, and write the page."""
    if common.method != "auto":
        raise typer.BadParameter("of a set units are matched by one method; leave it out", param_hint="--method")
    with progress() as step:
        from weightspace.commands.advice import compare_set

        found = compare_set(
            paths, base, settings=common.settings(step), data=common.data, example=common.example, limit=common.limit
        )
    from weightspace.pages.advice import advice_page

    answer("compare.set", found, say_set, common, advice_page)


def say_set(found: Set) -> None:
    """Print the answer about a set."""
    out, words, why = console(), found.advice.words, found.advice.why
    out.print(printable(f"{words[0].upper()}{words[1:]}"), style="bold", soft_wrap=True)
    out.print(printable(f"{why[0].upper()}{why[1:]}."), soft_wrap=True)
    table = make_table("network", "|change|", "relative", "cosine", "signs disagree", "largest shared", "came from")
    for row in found.rows():
        table.add_row(*map(printable, row))
    out.print(table)
    whole = make_table("in all", "")
    for row in found.summary():
        if row[1]:
            whole.add_row(*row)
    out.print(whole)
    tensors = make_table("tensor", "cosine", "cancels", "spread", "interference", "rank")
    rows = list(found.tensors())
    for row in rows[:_TENSORS]:
        tensors.add_row(*map(printable, row))
    out.print(tensors)
    if len(rows) > _TENSORS:
        out.print(f"{len(rows) - _TENSORS} tensors more; --json has all of them")
    if (told := found.measured) is not None:
        out.print(score_table((*told.singles, told.stored, told.aligned), told.examples))
    for text in found.met.left_out[:10]:
        out.print(printable(f"Left out: {text}"), soft_wrap=True)
    say_notes(out, found.notes)
