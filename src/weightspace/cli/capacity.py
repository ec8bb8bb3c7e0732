"""The command `weightspace capacity`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.options import Arch, Debug, Force, Json, Limit, Report, Seed, Trust, Weights, vacant
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, make_table

if TYPE_CHECKING:
    from weightspace.commands.capacity import Room

__all__ = ["capacity", "say_room"]


def say_room(found: Room) -> None:
    """`capacity`."""
    out = console()
    out.print(f"{found.free:.1%} of the new gradient leaves the kept outputs alone, to first order.", style="bold")
    if found.layers is not None:
        out.print(
            f"{found.layers:.1%} of it leaves them alone for steps of any length (what every layer is given stays)."
        )
    out.print(f"Held: {found.rows} outputs of {found.examples} examples; the network has {found.weights:,} weights.")
    cost = found.cost
    passes = f"{cost.passes} passes over the examples and {cost.bytes / 1e6:.0f} MB"
    out.print(f"A step by the solver {cost.solver} costs {passes}.")
    table = make_table(f"a step of length {found.length:.3g}", "progress", "of the gradient's")
    whole = found.tradeoff[-1][1]
    for share in (0.0, 0.25, 0.5, 0.75, 0.9, 1.0):
        aim = found.tradeoff[0][1] + share * (whole - found.tradeoff[0][1])
        drift, progress = next(pair for pair in found.tradeoff if pair[1] >= aim - 1e-9 * whole)
        table.add_row(f"drift {drift:.3g}", f"{progress:.3g}", f"{progress / whole:.0%}")
    out.print(table)


def capacity(
    checkpoint: Annotated[Path, typer.Argument(help="The network that would move.")],
    keep: Annotated[str, typer.Option(help="Data on which the outputs must stay: a file or a data set.")],
    learn: Annotated[str, typer.Option(help="Data with labels that it would learn.")],
    arch: Arch = None,
    memory: Annotated[int, typer.Option(min=1, help="On how many examples outputs are held.")] = 100,
    limit: Limit = 2048,
    report: Report = None,
    force: Force = False,
    as_json: Json = False,
    seed: Seed = 0,
    trust_code: Trust = False,
    weights: Weights = None,
    debug: Debug = False,
) -> None:
    """How much room there is to learn something new without changing the outputs on what is to be kept."""
    vacant(report, (".html", ".htm"), force)
    from weightspace.commands.capacity import capacity as measure

    with progress() as step:
        step("measuring", 0, 1)
        found = measure(
            checkpoint, keep, learn, arch=arch, memory=memory, limit=limit, trust_code=trust_code, seed=seed
        )  # fmt: skip
    from weightspace.pages.capacity import room_page

    answer(found, say_room, as_json, report, room_page)
