"""The command `weightspace merge`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.options import Out, Shared, free, shared
from weightspace.cli.show import answer, opened, progress
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
    checkpoints: Annotated[
        list[Path], typer.Argument(help="Two or more networks of one architecture, or of several widths of it.")
    ],
    out: Out,
    arch_b: Annotated[
        list[str] | None,
        typer.Option(
            "--arch-b",
            help="How the others are made, where their width is not that of the first: once for all of them, or once "
            "for each, in their order. The narrower ones are widened; needs --data.",
        ),
    ] = None,
    width: Annotated[
        str,
        typer.Option(
            help="With --arch-b, the width of the mean: largest, smallest, or one of the CHECKPOINTS, whose width it "
            "gets. A smaller network is fitted to the outputs of the wide mean on --data, and is worse than that."
        ),
    ] = "largest",
    *,
    common: Shared,
) -> None:
    """Align networks and average them into one of the same size; with --data, compared with the plain average."""
    if len(checkpoints) < 2:
        raise typer.BadParameter("give two or more networks to merge.", param_hint="CHECKPOINTS")
    if width != "largest" and not arch_b:
        raise typer.BadParameter("the networks have one width; give --arch-b for several", param_hint="--width")
    free(out, (".safetensors",), common.force)
    if arch_b:
        done = _of_widths(checkpoints, arch_b, out, width, common)
    else:
        done = _of_one_width(checkpoints, out, common)
    from weightspace.pages.merge import merge_page

    answer(done, say_merge, common, merge_page)


def _of_one_width(checkpoints: list[Path], out: Path, common: Shared) -> Merged:
    from weightspace.checkpoint.architecture import ArchitectureError
    from weightspace.net.errors import ArchitectureMismatch

    try:
        with opened(checkpoints, common) as space:
            from weightspace.commands.merge import merge as run

            return run(space, checkpoints, out)
    except ArchitectureError as error:
        if not isinstance(error.__cause__, ArchitectureMismatch):
            raise
        raise ArchitectureError(f"{error} For networks of several widths give --arch-b.") from error


def _of_widths(checkpoints: list[Path], arch_b: list[str], out: Path, width: str, common: Shared) -> Merged:
    from weightspace.commands.merge_widths import merge_widths

    with progress() as step:
        return merge_widths(
            checkpoints, arch_b, out, width=width, data=common.data, limit=common.limit, settings=common.settings(step)
        )  # fmt: skip
