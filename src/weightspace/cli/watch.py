"""The command `weightspace watch`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.options import Shared, free, shared
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, printable

if TYPE_CHECKING:
    from weightspace.commands.watch import Watched

__all__ = ["watch", "say_watch"]


def say_watch(done: Watched) -> None:
    """Print the answer of `watch`."""
    out = console()
    right = f", {done.accuracy:.1%} right on test examples" if done.accuracy is not None else ""
    out.print(
        f"{done.steps} steps{right}; {done.records} records, which took {done.overhead:.1%} of the training time."
    )
    out.print(f"Recording: {printable(done.out)}; draw it with weightspace paths.", soft_wrap=True)


@shared("arch weights trust_code report seed")
def watch(
    out: Annotated[Path, typer.Option("-o", "--out", help="The recording to write (.rec).")],
    data: Annotated[str, typer.Option(help="Data to train on: a file or a data set.")] = "digits",
    epochs: Annotated[int, typer.Option(min=2, help="Number of epochs.")] = 16,
    rate: Annotated[
        float, typer.Option(help="Learning rate; it falls to a tenth at 1/2 and again at 3/4 of the epochs.")
    ] = 0.05,
    batch: Annotated[int, typer.Option(min=2, help="Batch size.")] = 64,
    every: Annotated[int | None, typer.Option(min=1, help="Steps between records (an epoch).")] = None,
    probe: Annotated[int, typer.Option(min=2, help="Number of examples whose gates are recorded.")] = 128,
    limit: Annotated[int, typer.Option(min=2, help="Use at most this many training examples.")] = 10_000,
    *,
    common: Shared,
) -> None:
    """Train a network and record which units are on for each example. In your own training loop, use `Recorder`."""
    free(out, (".rec",), common.force)
    from weightspace.checkpoint.files import beside
    from weightspace.commands.watch import Schedule
    from weightspace.commands.watch import watch as run

    schedule = Schedule(epochs, rate, batch)
    with beside(out) as growing, progress() as step:
        done = run(
            growing, data, schedule, every=every, probe=probe, limit=limit, settings=common.settings(step)
        )  # fmt: skip
    from weightspace.pages.watch import watch_page

    answer("watch", replace(done, out=str(out)), say_watch, common, watch_page)
