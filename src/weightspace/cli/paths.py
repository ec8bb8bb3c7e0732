"""The command `weightspace paths`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.options import Shared, numbers, shared
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, make_table, printable

if TYPE_CHECKING:
    from weightspace.commands.paths import PathHistory

__all__ = ["paths", "say_paths"]


def say_paths(found: PathHistory) -> None:
    """Print the answer of `paths`."""
    out = console()
    table = make_table(
        "layer", "units", "self-path: first", "middle", "last", "cross-path: first", "middle", "last", "dead"
    )
    middle = len(found.steps) // 2
    for layer in (*found.layers, "all"):
        told = [f"{series[layer][k]:.3f}" for series in (found.own, found.cross) for k in (0, middle, -1)]
        units = found.layers.get(layer, sum(found.layers.values()))
        dead = found.dead.get(layer)
        table.add_row(printable(layer), f"{units:,}", *told, "" if dead is None else f"{dead:.1%}")
    out.print(table)
    given = [t for t in found.turnover if t is not None]
    if given:
        out.print(f"Path turnover per unit of log relative trust: {given[0]:.3g} at first, {given[-1]:.3g} at the end.")
    if found.ratio is not None:
        out.print(
            f"Early to mid cross-path ratio: {found.ratio:.3f}. In our experiments it did not predict the test error."
        )
    for line in found.remarks():
        out.print(printable(line))


@shared("report")
def paths(
    recording: Annotated[Path, typer.Argument(help="A .rec file, written by `watch` or by a Recorder.")],
    gates: Annotated[str | None, typer.Option(help="Which gates, if several were recorded.")] = None,
    layer: Annotated[str | None, typer.Option(help="The layer for ranks and distances (the second).")] = None,
    stages: Annotated[
        str | None,
        typer.Option(help="The two steps at which the learning rate fell, as 100,150: adds the early-to-mid ratio."),
    ] = None,
    *,
    common: Shared,
) -> None:
    """Which units are on for each example of a recorded run, and when does that stop changing?"""
    from weightspace.commands.paths import paths as run

    ends = numbers(stages, "--stages") if stages else []
    if stages and len(ends) != 2:
        raise typer.BadParameter(f"{stages!r}; give two steps, as 100,150", param_hint="--stages")
    with progress() as step:
        both = (int(ends[0]), int(ends[1])) if ends else None
        found = run(recording, name=gates, layer=layer, stages=both, progress=step)
    from weightspace.pages.paths import paths_page

    answer("paths", found, say_paths, common, paths_page)
