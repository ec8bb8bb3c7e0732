"""The command `weightspace read`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.options import Arch, Data, Debug, Example, Force, Json, Seed, Trust, Weights, vacant
from weightspace.cli.show import opened, print_json
from weightspace.cli.words import console, make_table, printable, say_notes

if TYPE_CHECKING:
    from weightspace.symmetry.symmetry import Symmetry

__all__ = ["read", "say_group"]


def say_group(group: Symmetry, name: str, certificate: Path | None) -> None:
    """`read`."""
    out = console()
    order = f"10^{group.log10_order:.0f}" if group.log10_order > 4 else f"{10**group.log10_order:.0f}"
    out.print(f"{name}: {group}", style="bold")
    out.print(f"{len(group)} axes of units that move together; {order} ways to renumber them, all the same function.")
    table = make_table("axis", "units", "moves", "depends on", "places", "tensors")
    for axis in group.axes:
        places = group.places[axis.name]
        tensors = list(dict.fromkeys(group.blocks[p.block].tensor for p in places))
        more = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
        over = ", ".join(axis.over) or "-"
        row = [axis.name, str(axis.size), ", ".join(axis.kinds), over, str(len(places)), ", ".join(tensors[:3]) + more]
        table.add_row(*map(printable, row))
    out.print(table)
    say_notes(out, list(group.notes))
    if group.verified:
        out.print("Verified: " + group.verified["how"] + f", in {group.verified['dtype']}.")
    if certificate:
        out.print(f"Certificate: {certificate}", soft_wrap=True)


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
        print_json(bench.group.as_json())
    else:
        say_group(bench.group, type(bench.template.architecture).__name__, out)
