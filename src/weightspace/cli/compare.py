"""The command `weightspace compare`."""

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
    Report,
    Seed,
    Trust,
    Weights,
    vacant,
)
from weightspace.cli.show import answer, opened
from weightspace.cli.words import console, make_table, printable, say_change, say_notes

if TYPE_CHECKING:
    from weightspace.commands.compare import Comparison

__all__ = ["compare", "say_comparison"]


def say_comparison(found: Comparison) -> None:
    """`compare`."""
    out = console()
    out.print(f"{found.verdict.words[0].upper()}{found.verdict.words[1:]}", style="bold")
    out.print(f"{found.verdict.why[0].upper()}{found.verdict.why[1:]}.")
    say_change(out, found)
    layers = make_table("tensor", "shape", "|a|", "|b|", "|a-b|/|a| as stored", "aligned", "cosine")
    for x in found.layers:
        shape = "x".join(map(str, x.shape)) or "-"
        numbers = [f"{n:.3g}" for n in (x.norm_a, x.norm_b, x.before, x.after, x.cosine)]
        layers.add_row(printable(x.name), shape, *numbers)
    out.print(layers)
    say_notes(out, found.notes)


def compare(
    a: Annotated[Path, typer.Argument(help="A checkpoint: .safetensors, a Hugging Face folder, .pt, .bin, .ckpt.")],
    b: Annotated[Path, typer.Argument(help="Another one, of the same architecture.")],
    arch: Arch = None,
    data: Data = None,
    example: Example = None,
    report: Report = None,
    expect: Annotated[
        str | None,
        typer.Option(help="Exit 1 unless the verdict is same, function (or nearer), related (or nearer), independent."),
    ] = None,
    method: Method = "auto",
    limit: Limit = 2048,
    force: Force = False,
    as_json: Json = False,
    seed: Seed = 0,
    trust_code: Trust = False,
    weights: Weights = None,
    debug: Debug = False,
) -> None:
    """How far apart are two networks really? Distances and loss, as stored and after alignment, and a verdict."""
    kinds = ("same", "function", "related", "independent")
    if expect not in (None, *kinds):
        raise typer.BadParameter(f"{expect!r}; choose same, function, related or independent.", param_hint="--expect")
    vacant(report, (".html", ".htm"), force)
    with opened(arch, [a, b], data, example, trust_code, seed, limit, method) as bench:
        from weightspace.commands.compare import compare_files

        found = compare_files(bench, a, b)
    from weightspace.pages.compare import comparison_page

    answer(found, say_comparison, as_json, report, comparison_page)
    if expect and found.verdict.kind not in ((expect,) if expect == kinds[-1] else kinds[: kinds.index(expect) + 1]):
        raise typer.Exit(1)
