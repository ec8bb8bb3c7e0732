"""The command `weightspace stability`."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.options import Limit, Shared, numbers, shared
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, make_table, printable

if TYPE_CHECKING:
    from weightspace.commands.stability import NoiseTest

__all__ = ["stability", "say_stability"]


def say_stability(done: NoiseTest) -> None:
    """Print the answer of `stability`."""
    out, found = console(), done.found
    proven = any(step.with_data is not None for step in found.steps)
    columns = ["noise", "change of the outputs: measured", "expected", "model"]
    columns += ["proven, with activations", "without"] if proven else []
    columns += ["accuracy"] if found.accuracy is not None else ["loss"] if found.loss is not None else []
    table = make_table(*columns)
    for step in found.steps:
        row = [f"{step.relative:.0%}", f"{median(step.moved):.3g}", f"{step.expected:.3g}", f"{step.model:.3g}"]
        if proven:
            row += ["-" if b is None else f"{b:.3g}" for b in (step.with_data, step.certificate)]
        row += [f"{median(step.accuracy):.1%}"] if step.accuracy else [f"{median(step.loss):.4g}"] if step.loss else []
        table.add_row(*row)
    out.print(table)
    for line in done.remarks():
        out.print(printable(line))


@shared("arch weights trust_code report seed")
def stability(
    checkpoint: Annotated[Path, typer.Argument(help="The network to test.")],
    data: Annotated[
        str,
        typer.Option(help="Examples to test it on: a file or a data set. Labels, if there are any, give the accuracy."),
    ],
    sizes: Annotated[
        str, typer.Option(help="Sizes of the noise, as shares of the norm of every tensor.")
    ] = "0.01,0.02,0.05,0.1,0.2,0.5,1",
    draws: Annotated[int, typer.Option(min=1, help="Random draws of each size.")] = 10,
    tolerance: Annotated[
        float, typer.Option(help="Loss of accuracy (or rise of the loss) that defines the width of the minimum.")
    ] = 0.01,
    proof: Annotated[
        bool, typer.Option(help="Also compute certificates (a Cholesky factor for each tensor and size).")
    ] = True,
    attack: Annotated[
        str | None,
        typer.Option(help="Radii of attacks on the inputs, in their units: how much accuracy is left under each."),
    ] = None,
    limit: Limit = 512,
    *,
    common: Shared,
) -> None:
    """How much noise do the weights tolerate? Measured, expected, modelled and proven, and which layer breaks first."""
    from weightspace.commands.stability import stability as run

    with progress() as step:
        done = run(
            checkpoint, data, sizes=numbers(sizes), draws=draws, tolerance=tolerance, proven=proof, limit=limit,
            attack=numbers(attack, "--attack") if attack else (), settings=common.settings(step),
        )  # fmt: skip
    from weightspace.pages.stability import stability_page

    answer("stability", done, say_stability, common, stability_page)
