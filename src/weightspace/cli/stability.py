"""The command `weightspace stability`."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightspace.cli.options import (
    Arch,
    Debug,
    Force,
    Json,
    Limit,
    Report,
    Seed,
    Trust,
    Weights,
    numbers,
    vacant,
)
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, make_table, printable

if TYPE_CHECKING:
    from weightspace.commands.stability import Trial

__all__ = ["say_trial", "stability"]


def say_trial(done: Trial) -> None:
    """`stability`."""
    out, found = console(), done.found
    proven = any(step.with_data is not None for step in found.steps)
    columns = ["noise", "outputs moved: measured", "expected", "model"]
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


def stability(
    checkpoint: Annotated[Path, typer.Argument(help="The network to shake.")],
    data: Annotated[
        str, typer.Option(help="Data to look at it on: a file or a data set; y is scored, and may be missing.")
    ],
    arch: Arch = None,
    sizes: Annotated[str, typer.Option(help="Sizes of the noise.")] = "0.01,0.02,0.05,0.1,0.2,0.5,1",
    draws: Annotated[int, typer.Option(min=1, help="How often each size is drawn.")] = 10,
    tolerance: Annotated[float, typer.Option(help="What noise may cost, for the width: of accuracy, or loss.")] = 0.01,
    proof: Annotated[bool, typer.Option(help="Compute certificates (a Cholesky factor a tensor and size).")] = True,
    limit: Limit = 512,
    report: Report = None,
    force: Force = False,
    as_json: Json = False,
    seed: Seed = 0,
    trust_code: Trust = False,
    weights: Weights = None,
    debug: Debug = False,
) -> None:
    """How much noise do the weights take? Measured, expected, modelled and proven, and which layer breaks first."""
    vacant(report, (".html", ".htm"), force)
    from weightspace.commands.stability import trial

    options: dict[str, Any] = {"draws": draws, "tolerance": tolerance, "proven": proof, "limit": limit, "seed": seed}
    with progress() as step:
        done = trial(
            checkpoint, data, arch=arch, sizes=numbers(sizes), trust_code=trust_code, progress=step, **options
        )  # fmt: skip
    from weightspace.pages.stability import trial_page

    answer(done, say_trial, as_json, report, trial_page)
