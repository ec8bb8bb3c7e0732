"""Commands about checkpoints as they are: their group, how far apart they are, aligned, averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
from weightspace.cli.shown import answer, opened, print_json
from weightspace.text import say_aligned, say_comparison, say_group, say_merged

__all__ = ["read", "compare", "align", "merge"]  # in the order of --help


def read(
    checkpoint: Annotated[Path | None, typer.Argument(help="A Hugging Face folder, instead of --arch.")] = None,
    arch: Arch = None,
    data: Data = None,
    example: Example = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the group as a JSON certificate.")] = None,
    force: Force = False,
    as_json: Json = False,
    seed: Seed = 0,
    trust_code: Trust = False,
    weights: Weights = None,
    debug: Debug = False,
) -> None:
    """Which moves of the weights leave the function alone? Print the symmetry group of an architecture."""
    vacant(out, (".json",), force)
    with opened(arch, [checkpoint] if checkpoint else [], data, example, trust_code, seed) as bench:
        if out:
            bench.group.save(out)
    if as_json:
        print_json(bench.group.certificate())
    else:
        say_group(bench.group, type(bench.template.architecture).__name__, out)


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
        found = bench.compare(a, b)
    answer(found, say_comparison, as_json, report, "report:comparison_page")
    if expect and found.verdict.kind not in ((expect,) if expect == kinds[-1] else kinds[: kinds.index(expect) + 1]):
        raise typer.Exit(1)


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
        done = bench.align(checkpoint, to, out, force=force)
    answer(done, say_aligned, as_json, report, "report:align_page")


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
        done = bench.merge(checkpoints, out, force=force)
    answer(done, say_merged, as_json, report, "report:merge_page")
