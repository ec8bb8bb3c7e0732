"""The command `weightspace project`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.options import Out, Shared, free, shared
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, make_table, printable

if TYPE_CHECKING:
    from weightspace.commands.project import Brought

__all__ = ["project", "say_project"]


def say_project(done: Brought) -> None:
    """Print the answer of `project`."""
    out = console()
    table = make_table("weight", "form", "entries", "free", "distance", "after the flow")
    for name, kind, entries, loose, first, last in done.weights:
        flowed = f"{last:.1%}" if done.steps else "-"
        table.add_row(printable(name), kind, f"{entries:,}", f"{loose:,}", f"{first:.1%}", flowed)
    out.print(table)
    if done.drift is not None:
        at_once, written = done.drift
        beside = f"; at once {at_once:.3g}" if done.steps else ""
        out.print(f"Drift of the outputs: {written:.3g}{beside}.")
    if done.scores:
        before, near, after = done.scores
        beside = f" (at once {near.loss:.4f})" if done.steps else ""
        out.print(f"Loss {before.loss:.4f} before, {after.loss:.4f} after{beside}.")
        if before.accuracy is not None and near.accuracy is not None and after.accuracy is not None:
            beside = f" (at once {near.accuracy:.1%})" if done.steps else ""
            out.print(f"Accuracy {before.accuracy:.1%} before, {after.accuracy:.1%} after{beside}.")
    out.print(f"Written: {printable(done.out)}", soft_wrap=True)


@shared("arch weights trust_code data limit report seed")
def project(
    checkpoint: Annotated[Path, typer.Argument(help="The network to bring to a form.")],
    to: Annotated[
        list[str],
        typer.Option(
            help="NAME=KIND, once or more; a name may be a pattern: fc.weight=low-rank:8, '*.weight=symmetric'. Kinds: "
            "circulant, block-circulant:4, doubly-block-circulant:8x8, toeplitz, low-rank:4, shared-blocks:2x4, "
            "shared-entries:2x4, symmetric, antisymmetric, orthogonal, ordered:first, sorted:first, asymmetric:0.25."
        ),
    ],
    out: Out,
    steps: Annotated[
        int, typer.Option(min=0, help="Steps of a flow toward the form that keeps the outputs on --data, before.")
    ] = 0,
    budget: Annotated[float | None, typer.Option(help="Largest drift of the outputs along the flow.")] = None,
    size: Annotated[float | None, typer.Option(help="Length of a step (a tenth of the distance to the form).")] = None,
    memory: Annotated[int, typer.Option(min=1, help="Number of examples on which outputs are kept.")] = 200,
    *,
    common: Shared,
) -> None:
    """Write the nearest network whose weights have a form (circulant, low rank, ..); with --data, what it costs."""
    free(out, (".safetensors",), common.force)
    from weightspace.commands.project import Way, project_to

    with progress() as step:
        step("projecting", 0, 0)
        done = project_to(
            checkpoint, out, to, Way(steps, budget, size, memory), data=common.data, limit=common.limit,
            settings=common.settings(step),
        )  # fmt: skip
    from weightspace.pages.project import project_page

    answer("project", done, say_project, common, project_page)
