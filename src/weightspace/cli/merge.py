"""The command `weightspace merge`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.options import (
    Arch,
    Data,
    Debug,
    Example,
    Force,
    Json,
    Limit,
    Out,
    Report,
    Seed,
    Trust,
    Weights,
    vacant,
)
from weightspace.cli.show import answer, opened
from weightspace.cli.words import console, make_table, printable, say_notes

if TYPE_CHECKING:
    from weightspace.commands.merge import Merged

__all__ = ["merge", "say_merged"]


def say_merged(done: Merged) -> None:
    """`merge`."""
    out = console()
    if done.scores():
        table = make_table(f"on {done.examples} held-out examples", "loss", "accuracy")
        for score in done.scores():
            share = "-" if score.accuracy is None else f"{score.accuracy:.1%}"
            table.add_row(printable(score.name), f"{score.loss:.4f}", share)
        out.print(table)
    say_notes(out, done.notes)
    out.print(f"Written: {printable(done.out)}", soft_wrap=True)


def merge(
    checkpoints: Annotated[list[Path], typer.Argument(help="Two or more networks of one architecture.")],
    out: Out,
    arch: Arch = None,
    data: Data = None,
    example: Example = None,
    limit: Limit = 2048,
    report: Report = None,
    force: Force = False,
    as_json: Json = False,
    seed: Seed = 0,
    trust_code: Trust = False,
    weights: Weights = None,
    debug: Debug = False,
) -> None:
    """Average networks after aligning them, so that the average works: one network, no larger than each."""
    if len(checkpoints) < 2:
        raise typer.BadParameter("give two or more networks to merge.", param_hint="CHECKPOINTS")
    vacant(out, (".safetensors",), force)
    vacant(report, (".html", ".htm"), force)
    with opened(arch, checkpoints, data, example, trust_code, seed, limit) as bench:
        from weightspace.commands.merge import merge as go

        done = go(bench, checkpoints, out, force=force)
    from weightspace.pages.merge import merge_page

    answer(done, say_merged, as_json, report, merge_page)
