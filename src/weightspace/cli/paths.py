"""The command `weightspace paths`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.options import Debug, Force, Json, Report, numbers, vacant
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, make_table, printable

if TYPE_CHECKING:
    from weightspace.commands.paths import Passages

__all__ = ["paths", "say_paths"]


def say_paths(found: Passages) -> None:
    """`paths`."""
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
        out.print(
            f"Path given up for each unit of log relative trust: {given[0]:.3g} at first, {given[-1]:.3g} at the end."
        )
    if found.ratio is not None:
        out.print(f"Early to mid cross-path ratio: {found.ratio:.3f}. It did not tell the error in our experiments.")
    for line in found.remarks():
        out.print(printable(line))


def paths(
    recording: Annotated[Path, typer.Argument(help="A file that `watch` or a Recorder wrote.")],
    gates: Annotated[str | None, typer.Option(help="Which gates, where several were recorded.")] = None,
    layer: Annotated[str | None, typer.Option(help="The layer of ranks and distances (the second).")] = None,
    stages: Annotated[str | None, typer.Option(help="Steps at which the rate fell, as 100,150: early to mid.")] = None,
    report: Report = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Which way do examples take through the network, and when does it stop changing? For any recorded run."""
    vacant(report, (".html", ".htm"), force)
    from weightspace.commands.paths import passages

    ends = numbers(stages, "--stages") if stages else []
    if stages and len(ends) != 2:
        raise typer.BadParameter(f"{stages!r}; give two steps, as 100,150", param_hint="--stages")
    with progress() as step:
        both = (int(ends[0]), int(ends[1])) if ends else None
        found = passages(recording, name=gates, layer=layer, stages=both, progress=step)
    from weightspace.pages.paths import paths_page

    answer(found, say_paths, as_json, report, paths_page)
