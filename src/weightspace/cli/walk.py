"""The command `weightspace walk`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightspace.cli.options import (
    Arch,
    Debug,
    Force,
    Json,
    Limit,
    Out,
    Report,
    Seed,
    Trust,
    Weights,
    missing,
    vacant,
)
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, make_table, printable

if TYPE_CHECKING:
    from weightspace.commands.walk import Walked

__all__ = ["say_walked", "walk"]


def say_walked(done: Walked) -> None:
    """`walk`."""
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


def walk(
    checkpoint: Annotated[Path, typer.Argument(help="The network to move.")],
    keep: Annotated[
        str,
        typer.Option(help="Data on which the outputs must stay: a file with x and y (y only scores), or a data set."),
    ],
    toward: Annotated[
        str,
        typer.Option(
            help="learn:DATA, prune:0.9 (or prune:0.99,descent; prune:0.5,2:4; prune:0.3,neuron), drift:SEED, spread, "
            "harden:RADIUS, or another checkpoint."
        ),
    ],
    out: Out,
    arch: Arch = None,
    budget: Annotated[
        float | None, typer.Option(help="Drift of the outputs that is allowed, in their units (a tenth of their size).")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="How many steps (40; 2,000 of a descent).")] = None,
    size: Annotated[float | None, typer.Option(help="Length of a step (1 % of the weights' norm).")] = None,
    memory: Annotated[
        int | None, typer.Option(min=1, help="On how many examples outputs are held (200; of a descent, all).")
    ] = None,
    limit: Limit = 2048,
    report: Report = None,
    force: Force = False,
    as_json: Json = False,
    seed: Seed = 0,
    trust_code: Trust = False,
    weights: Weights = None,
    debug: Debug = False,
) -> None:
    """Move a network without changing what it does: learn something new, prune, explore, or go to another network.

    An output that ends in .safetensors is the network at the end; any other is a folder for the path, from which a walk
    that was cut off goes on (--force begins anew).
    """
    if out.suffix:
        vacant(out, (".safetensors",), force)
    elif not out.parent.is_dir():
        raise missing(out)
    vacant(report, (".html", ".htm"), force)
    from weightspace.commands.walk import walk as go

    options: dict[str, Any] = {"budget": budget, "steps": steps, "size": size, "memory": memory, "limit": limit}
    with progress() as step:
        done = go(
            checkpoint, keep, toward, out, arch=arch, force=force, trust_code=trust_code, seed=seed, progress=step,
            picture=report is not None, **options,
        )  # fmt: skip
    from weightspace.pages.walk import walk_page

    answer(done, say_walked, as_json, report, walk_page)
