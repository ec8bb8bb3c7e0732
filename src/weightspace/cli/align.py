"""The command `weightspace align`."""

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
    Method,
    Out,
    Report,
    Seed,
    Trust,
    Weights,
    vacant,
)
from weightspace.cli.show import answer, opened
from weightspace.cli.words import console, printable, say_change, say_notes

if TYPE_CHECKING:
    from weightspace.commands.align import Aligned

__all__ = ["align", "say_aligned"]


def say_aligned(done: Aligned) -> None:
    """`align`."""
    out = console()
    say_change(out, done)
    say_notes(out, done.notes)
    out.print(f"Written: {printable(done.out)}", soft_wrap=True)


def align(
    checkpoint: Annotated[Path, typer.Argument(help="The network to move.")],
    to: Annotated[Path, typer.Option(help="The network to bring it near.")],
    out: Out,
    arch: Arch = None,
    data: Data = None,
    example: Example = None,
    method: Method = "auto",
    limit: Limit = 2048,
    report: Report = None,
    force: Force = False,
    as_json: Json = False,
    seed: Seed = 0,
    trust_code: Trust = False,
    weights: Weights = None,
    debug: Debug = False,
) -> None:
    """Write a checkpoint with its units renumbered and rescaled to match another one: the same function, nearer."""
    vacant(out, (".safetensors",), force)
    vacant(report, (".html", ".htm"), force)
    with opened(arch, [checkpoint, to], data, example, trust_code, seed, limit, method) as bench:
        from weightspace.commands.align import align as go

        done = go(bench, checkpoint, to, out, force=force)
    from weightspace.pages.align import align_page

    answer(done, say_aligned, as_json, report, align_page)
