"""The command `weightspace walk`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.options import Shared, free, missing, shared
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, make_table, printable

if TYPE_CHECKING:
    from weightspace.commands.walk import Walked

__all__ = ["walk", "say_walk"]


def say_walk(done: Walked) -> None:
    """Print the answer of `walk`."""
    out = console()
    if done.scores:
        table = make_table("on held-out examples", "loss before", "after", "accuracy before", "after")
        for name, before, after in done.scores:
            shares = ["-" if s.accuracy is None else f"{s.accuracy:.1%}" for s in (before, after)]
            table.add_row(name, f"{before.loss:.4f}", f"{after.loss:.4f}", *shares)
        out.print(table)
    for line in done.remarks():
        out.print(printable(line))
    out.print(f"Written: {printable(done.out)}", soft_wrap=True)


@shared("arch weights trust_code limit report seed")
def walk(
    checkpoint: Annotated[Path, typer.Argument(help="The network to move.")],
    keep: Annotated[
        str,
        typer.Option(help="Data on which the outputs must stay: a file or a data set. Labels only give the accuracy."),
    ],
    toward: Annotated[
        str,
        typer.Option(
            help="The goal: learn:DATA, prune:0.9 (or prune:0.99,descent; prune:0.5,2:4; prune:0.3,neuron), "
            "drift:SEED, spread, harden:RADIUS, or another checkpoint."
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The file to write (.safetensors), or a folder for the whole path.")
    ],
    budget: Annotated[
        float | None,
        typer.Option(
            help="Largest drift of the outputs to keep, in their units (a tenth of their standard deviation)."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Number of steps (40; 2,000 for pruning by descent).")
    ] = None,
    size: Annotated[float | None, typer.Option(help="Length of a step (1 % of the norm of the weights).")] = None,
    memory: Annotated[
        int | None,
        typer.Option(min=1, help="Number of examples on which outputs are kept (200; for pruning by descent, all)."),
    ] = None,
    *,
    common: Shared,
) -> None:
    """Change a network (learn, prune, explore, go to another one) while its outputs on the data to keep stay.


    A walk into a folder that was interrupted resumes from there; --force starts again.
    """
    if out.suffix:
        free(out, (".safetensors",), common.force)
    elif not out.parent.is_dir():
        raise missing(out)
    from weightspace.commands import walk as run

    limits, drawn = run.Limits(budget, steps, size, memory, common.limit), common.report is not None
    with progress() as step:
        done = run.walk(checkpoint, keep, toward, out, limits, picture=drawn, settings=common.settings(step))
    from weightspace.pages.walk import walk_page

    answer("walk", done, say_walk, common, walk_page)
