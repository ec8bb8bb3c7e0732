"""The command `weightspace tasks`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.options import Shared, free, shared
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, make_table, printable

if TYPE_CHECKING:
    from weightspace.commands.tasks import TaskDistances

__all__ = ["tasks", "say_tasks"]


def say_tasks(done: TaskDistances) -> None:
    """Print the answer of `tasks`."""
    out, found = console(), done.found
    table = make_table(
        "known \\ to learn", "examples", "code length C, nats", *(printable(name) for name in found.names)
    )
    for k, source in enumerate(found.names):
        row = [f"{found.distance(source, target).value:,.0f}" for target in found.names]
        table.add_row(printable(source), f"{found.examples[k]:,}", f"{found.lengths[source]:,.0f}", *row)
    out.print(table)
    for target in found.names:
        source = found.nearest(target)
        d = found.distance(source, target)
        out.print(
            f"{printable(target)}: nearest is {printable(source)}, which leaves {d.value:,.0f} nats ({d.relative:.0%})."
        )
    for line in done.remarks():
        out.print(printable(line))


@shared("arch weights trust_code report seed")
def tasks(
    data: Annotated[
        list[str],
        typer.Argument(help="Two or more data sets or files, or parts: mnist:0-4, digits:rotated, x.npz:random."),
    ],
    limit: Annotated[int, typer.Option(min=2, help="Use at most this many examples of each.")] = 500,
    seeds: Annotated[int, typer.Option(min=1, help="Codes trained for each task; the shortest counts.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Training steps for each code.")] = 1000,
    task_id: Annotated[
        bool,
        typer.Option("--task-id", help="One head for each task, so that telling the tasks apart costs nothing."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Keep codes in this file (.json); an interrupted run resumes.")
    ] = None,
    *,
    common: Shared,
) -> None:
    """How far apart are tasks? The nats that each costs once another is known, the nearest of each, and a map.

    The expected cost is printed before the run begins.
    """
    free(out, (".json",), True)
    from weightspace.commands.tasks import tasks as run

    with progress() as step:
        done = run(
            data, limit=limit, seeds=seeds, steps=steps, task_id=task_id, file=out, settings=common.settings(step)
        )  # fmt: skip
    from weightspace.pages.tasks import tasks_page

    answer("tasks", done, say_tasks, common, tasks_page)
