"""The command `weightspace watch`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightspace.cli.options import Arch, Debug, Force, Json, Report, Seed, Trust, Weights, vacant
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, printable

if TYPE_CHECKING:
    from weightspace.commands.watch import Watched

__all__ = ["say_watched", "watch"]


def say_watched(done: Watched) -> None:
    """`watch`."""
    out = console()
    right = f", {done.accuracy:.1%} right on examples not learnt" if done.accuracy is not None else ""
    out.print(f"{done.steps} steps{right}; {done.records} records took {done.overhead:.1%} of the rest of the run.")
    out.print(f"Recording: {printable(done.out)}; weightspace paths draws it.", soft_wrap=True)


def watch(
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write: a .rec file.")],
    data: Annotated[str, typer.Option(help="What to learn: a file or a data set.")] = "digits",
    arch: Arch = None,
    epochs: Annotated[int, typer.Option(min=2, help="How often all examples are seen.")] = 16,
    rate: Annotated[float, typer.Option(help="Learning rate at first; a tenth from half of the epochs on.")] = 0.05,
    batch: Annotated[int, typer.Option(min=2, help="Examples a step.")] = 64,
    every: Annotated[int | None, typer.Option(min=1, help="Steps between records (an epoch).")] = None,
    probe: Annotated[int, typer.Option(min=2, help="Examples whose gates are recorded.")] = 128,
    limit: Annotated[int, typer.Option(min=2, help="Use at most this many examples to learn from.")] = 10_000,
    report: Report = None,
    force: Force = False,
    as_json: Json = False,
    seed: Seed = 0,
    trust_code: Trust = False,
    weights: Weights = None,
    debug: Debug = False,
) -> None:
    """Train a network and record which units each example goes through. For a loop of your own: `Recorder`."""
    vacant(out, (".rec",), force)
    vacant(report, (".html", ".htm"), force)
    from weightspace.checkpoint.files import beside
    from weightspace.commands.watch import watched

    options: dict[str, Any] = {"epochs": epochs, "rate": rate, "batch": batch, "every": every, "probe": probe}
    with beside(out) as growing, progress() as step:
        done = watched(
            growing, data, arch=arch, limit=limit, trust_code=trust_code, seed=seed, progress=step, **options
        )  # fmt: skip
    from weightspace.pages.watch import watch_page

    answer(replace(done, out=str(out)), say_watched, as_json, report, watch_page)
