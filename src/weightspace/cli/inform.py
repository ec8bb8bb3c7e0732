"""The command `weightspace inform`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.options import Shared, shared
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, make_table, printable

if TYPE_CHECKING:
    from weightspace.commands.inform import Informed

__all__ = ["inform", "say_inform"]


def say_inform(done: Informed) -> None:
    """Print the answer of `inform`."""
    out = console()
    table = make_table(
        "method", "information, nats", "bits per example", "effective weights", "code length, nats", "products"
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
            blocks = "" if b.block is None else f" <= {b.block:,.0f} (independent tensors)"
            out.print(
                f"Code length of the weights: {b.lower:,.0f} (low rank) <= {b.value:,.0f} +- {b.error:.2g}{blocks} "
                f"<= {b.diagonal:,.0f} (independent weights)."
            )
        if found.layers:
            most = sorted(found.layers.items(), key=lambda item: -item[1])[:4]
            shares = ", ".join(f"{printable(n)} {v:,.0f}" for n, v in most)
            out.print(f"Tensors with the most ({found.method}): {shares}.")
    right = "" if done.right is None else f", {done.right:.1%} right"
    out.print(f"Loss of the network, summed over the {done.examples:,} examples: {done.loss:,.4g} nats{right}.")
    if done.structure is not None:
        s = done.structure
        out.print(
            f"Structure of the task: {s.complexity:,.0f} nats in the weights; shortest code C(D) = {s.length():,.0f}; "
            f"above beta = {s.collapse:.3g} nothing is learnt."
        )
    for line in done.remarks():
        out.print(printable(line))


@shared("arch weights trust_code report seed")
def inform(
    checkpoint: Annotated[Path, typer.Argument(help="The network whose weights are measured.")],
    data: Annotated[str, typer.Option(help="The data it was trained on: a file with x and y, or a data set.")],
    method: Annotated[
        str,
        typer.Option(help="local (from the curvature), variational (a trained Gaussian), sgld (sampling), or all."),
    ] = "local",
    beta: Annotated[float, typer.Option(help="Weight of the information in the code length: loss + beta KL.")] = 1.0,
    anchor: Annotated[
        Path | None, typer.Option(help="A checkpoint from before training, as the mean of the prior in place of zero.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="For local: eigenvectors computed (256); fewer are faster.")
    ] = None,
    structure: Annotated[
        bool, typer.Option("--structure", help="Also the structure function of the task, which takes 26 more codes.")
    ] = False,
    limit: Annotated[int, typer.Option(min=2, help="Use at most this many training examples.")] = 1000,
    *,
    common: Shared,
) -> None:
    """How much information do the weights hold about their data, in nats and by layer, compared with the labels?

    The expected cost, in passes over the data and memory, is printed before the run begins.
    """
    from weightspace.commands.inform import inform as run

    with progress() as step:
        done = run(
            checkpoint, data, method=method, beta=beta, anchor=anchor, curve=structure, rank=rank, limit=limit,
            settings=common.settings(step),
        )  # fmt: skip
    from weightspace.pages.inform import inform_page

    answer("inform", done, say_inform, common, inform_page)
