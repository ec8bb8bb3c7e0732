"""The command `weightspace merge`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.options import Out, Shared, free, shared
from weightspace.cli.show import answer, opened
from weightspace.cli.words import console, make_table, printable, say_notes

if TYPE_CHECKING:
    from weightspace.commands.merge import Merged

__all__ = ["merge", "say_merge"]


def say_merge(done: Merged) -> None:
    """Print the answer of `merge`."""
    out = console()
    if done.scores():
        table = make_table(f"on {done.examples} held-out examples", "loss", "accuracy")
        for score in done.scores():
            share = "-" if score.accuracy is None else f"{score.accuracy:.1%}"
            table.add_row(printable(score.name), f"{score.loss:.4f}", share)
        out.print(table)
    say_notes(out, done.notes)
    out.print(f"Written: {printable(done.out)}", soft_wrap=True)


@shared("arch weights trust_code data example limit report seed")
def merge(
    checkpoints: Annotated[list[Path], typer.Argument(help="Two or more networks of one architecture.")],
    out: Out,
    common: Shared,
) -> None:
    """Align networks and average them into one of the same size; with --data, compared with the plain average."""
    if len(checkpoints) < 2:
        raise typer.BadParameter("give two or more networks to merge.", param_hint="CHECKPOINTS")
    free(out, (".safetensors",), common.force)
    with opened(checkpoints, common) as space:
        from weightspace.commands.merge import merge as run

        done = run(space, checkpoints, out)
    from weightspace.pages.merge import merge_page

    answer(done, say_merge, common, merge_page)
