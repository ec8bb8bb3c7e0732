"""The command `weightspace inform`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightspace.cli.options import Arch, Debug, Force, Json, Report, Seed, Trust, Weights, vacant
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, make_table, printable

if TYPE_CHECKING:
    from weightspace.commands.inform import Informed

__all__ = ["inform", "say_informed"]


def say_informed(done: Informed) -> None:
    """`inform`."""
    out = console()
    table = make_table(
        "method", "information, nats", "bits an example", "weights known", "code length, nats", "products"
    )
    for found in done.found:
        length = "-" if found.method == "sgld" else f"{found.length:,.0f}"
        bits = f"{found.value / found.examples / math.log(2):.3g}"
        told = f"{found.value:,.1f} +- {found.error:.2g}"
        table.add_row(found.method, told, bits, f"{found.dimension:,.0f}", length, f"{found.products:,}")
    out.print(table)
    for found in done.found:
        if found.bracket is not None:
            b = found.bracket
            blocks = "" if b.block is None else f" <= {b.block:,.0f} (tensors apart)"
            out.print(
                f"The network's part of the code: {b.lower:,.0f} (low rank) <= {b.value:,.0f} +- {b.error:.2g}{blocks} "
                f"<= {b.diagonal:,.0f} (weights apart)."
            )
        if found.layers:
            most = sorted(found.layers.items(), key=lambda item: -item[1])[:4]
            shares = ", ".join(f"{printable(n)} {v:,.0f}" for n, v in most)
            out.print(f"Most of it ({found.method}): {shares}.")
    right = "" if done.right is None else f", {done.right:.1%} right"
    out.print(f"The network's own loss on the {done.examples:,} examples: {done.loss:,.4g} nats{right}.")
    if done.structure is not None:
        s = done.structure
        out.print(
            f"Structure of the task: {s.complexity:,.0f} nats of network; C(D) = {s.length():,.0f}; nothing is learnt "
            f"above beta {s.collapse:.3g}."
        )
    for line in done.remarks():
        out.print(printable(line))


def inform(
    checkpoint: Annotated[Path, typer.Argument(help="The network whose weights are asked.")],
    data: Annotated[str, typer.Option(help="What it was trained on: a file with x and y, or a data set.")],
    arch: Arch = None,
    method: Annotated[
        str,
        typer.Option(help="local (curvature), variational (noise that the weights bear), sgld (loss around), or all."),
    ] = "local",
    beta: Annotated[float, typer.Option(help="The price of a nat of network, in nats of loss.")] = 1.0,
    anchor: Annotated[
        Path | None, typer.Option(help="The checkpoint from before training; weights are told from there, not zero.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Of local: directions looked at one by one (256); fewer is quicker.")
    ] = None,
    structure: Annotated[
        bool, typer.Option("--structure", help="The structure function of the task too: 26 more codes.")
    ] = False,
    limit: Annotated[int, typer.Option(min=2, help="Use at most this many training examples.")] = 1000,
    report: Report = None,
    force: Force = False,
    as_json: Json = False,
    seed: Seed = 0,
    trust_code: Trust = False,
    weights: Weights = None,
    debug: Debug = False,
) -> None:
    """How many nats do the weights hold about the data, in which layers, and is it less than the labels take?

    What it will cost, in passes over the data and memory, is said before it begins.
    """
    vacant(report, (".html", ".htm"), force)
    from weightspace.commands.inform import informed

    options: dict[str, Any] = {"method": method, "beta": beta, "anchor": anchor, "curve": structure, "rank": rank}
    with progress() as step:
        done = informed(
            checkpoint, data, arch=arch, limit=limit, trust_code=trust_code, seed=seed, progress=step, **options
        )
    from weightspace.pages.inform import informed_page

    answer(done, say_informed, as_json, report, informed_page)
