"""The command `weightspace capacity`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.options import Shared, shared
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, make_table

if TYPE_CHECKING:
    from weightspace.commands.capacity import Capacity

__all__ = ["capacity", "say_capacity"]


def say_capacity(found: Capacity) -> None:
    """Print the answer of `capacity`."""
    out = console()
    out.print(f"{found.free:.1%} of the new gradient leaves the outputs to keep alone, to first order.", style="bold")
    if found.layers is not None:
        out.print(f"{found.layers:.1%} of it leaves them alone for steps of any length (no layer's input changes).")
    out.print(f"To keep: {found.rows} outputs on {found.examples} examples; the network has {found.weights:,} weights.")
    cost = found.cost
    passes = f"{cost.passes} passes over the examples and {cost.bytes / 1e6:.0f} MB"
    out.print(f"A step with the {cost.solver} solver costs {passes}.")
    table = make_table(f"a step of length {found.length:.3g}", "progress", "of the gradient step's")
    whole = found.tradeoff[-1][1]
    for share in (0.0, 0.25, 0.5, 0.75, 0.9, 1.0):
        aim = found.tradeoff[0][1] + share * (whole - found.tradeoff[0][1])
        drift, progress = next(pair for pair in found.tradeoff if pair[1] >= aim - 1e-9 * whole)
        table.add_row(f"drift {drift:.3g}", f"{progress:.3g}", f"{progress / whole:.0%}")
    out.print(table)


@shared("arch weights trust_code limit report seed")
def capacity(
    checkpoint: Annotated[Path, typer.Argument(help="The network that would learn.")],
    keep: Annotated[str, typer.Option(help="Data on which the outputs must stay: a file or a data set.")],
    learn: Annotated[str, typer.Option(help="Data with labels that it would learn.")],
    memory: Annotated[int, typer.Option(min=1, help="Number of examples on which outputs are kept.")] = 100,
    *,
    common: Shared,
) -> None:
    """How much can a network learn from new data without changing its outputs on the data to keep?"""
    from weightspace.commands.capacity import capacity as run

    with progress() as step:
        step("measuring", 0, 1)
        found = run(checkpoint, keep, learn, memory=memory, limit=common.limit, settings=common.settings(step))
    from weightspace.pages.capacity import capacity_page

    answer("capacity", found, say_capacity, common, capacity_page)
