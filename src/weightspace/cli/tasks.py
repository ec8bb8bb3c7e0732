"""The command `weightspace tasks`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightspace.cli.options import Arch, Debug, Force, Json, Report, Seed, Trust, Weights, vacant
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, make_table, printable

if TYPE_CHECKING:
    from weightspace.commands.tasks import Apart

__all__ = ["say_tasks", "tasks"]


def say_tasks(done: Apart) -> None:
    """`tasks`."""
    out, found = console(), done.found
    table = make_table("known \\ to be learnt", "examples", "C, nats", *(printable(name) for name in found.names))
    for k, source in enumerate(found.names):
        row = [f"{found.distance(source, target).value:,.0f}" for target in found.names]
        table.add_row(printable(source), f"{found.examples[k]:,}", f"{found.lengths[source]:,.0f}", *row)
    out.print(table)
    for target in found.names:
        source = found.nearest(target)
        d = found.distance(source, target)
        out.print(
            f"{printable(target)}: nearest is {printable(source)}, {d.value:,.0f} nats are left ({d.relative:.0%})."
        )
    for line in done.remarks():
        out.print(printable(line))


def tasks(
    data: Annotated[
        list[str],
        typer.Argument(help="Two or more data sets or files, or parts: mnist:0-4, digits:rotated, x.npz:random."),
    ],
    arch: Arch = None,
    limit: Annotated[int, typer.Option(min=2, help="Use at most this many examples of each.")] = 500,
    seeds: Annotated[int, typer.Option(min=1, help="Codes of every task; the shortest counts.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Steps for each code.")] = 1000,
    task_id: Annotated[
        bool, typer.Option("--task-id", help="A head for each task: telling tasks apart then costs nothing.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Keep codes here (.json): a run that was cut off goes on.")
    ] = None,
    report: Report = None,
    force: Force = False,
    as_json: Json = False,
    seed: Seed = 0,
    trust_code: Trust = False,
    weights: Weights = None,
    debug: Debug = False,
) -> None:
    """How far apart are tasks? What is left to learn of each, in nats, when another is known; a map; the nearest.

    What it will cost is said before it begins.
    """
    vacant(report, (".html", ".htm"), force)
    vacant(out, (".json",), True)
    from weightspace.commands.tasks import told_apart

    options: dict[str, Any] = {"limit": limit, "seeds": seeds, "steps": steps, "task_id": task_id, "file": out}
    with progress() as step:
        done = told_apart(data, arch=arch, trust_code=trust_code, seed=seed, progress=step, **options)
    from weightspace.pages.tasks import tasks_page

    answer(done, say_tasks, as_json, report, tasks_page)
