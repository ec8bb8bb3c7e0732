"""The command `weightspace read`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.answers import stamped
from weightspace.cli.options import Shared, free, shared
from weightspace.cli.show import opened, print_json
from weightspace.cli.words import console, make_table, printable, say_notes

if TYPE_CHECKING:
    from weightspace.symmetry.symmetry import Symmetry

__all__ = ["read", "say_read"]


def say_read(group: Symmetry, name: str, certificate: Path | None) -> None:
    """Print the answer of `read`."""
    out = console()
    order = f"10^{group.log10_order:.0f}" if group.log10_order > 4 else f"{10**group.log10_order:.0f}"
    out.print(f"{name}: {group}", style="bold")
    out.print(f"{len(group)} axes (sets of units that move together); {order} equivalent ways to renumber them.")
    table = make_table("axis", "units", "moves", "depends on", "places", "tensors")
    for axis in group.axes:
        places = group.places[axis.name]
        tensors = list(dict.fromkeys(group.blocks[p.block].tensor for p in places))
        more = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
        over = ", ".join(axis.over) or "-"
        row = [axis.name, str(axis.size), ", ".join(axis.kinds), over, str(len(places)), ", ".join(tensors[:3]) + more]
        table.add_row(*map(printable, row))
    out.print(table)
    for exchange in group.exchanges:
        out.print(printable(f"{exchange.name}: {exchange.size} parts may be exchanged, {', '.join(exchange.members)}."))
    say_notes(out, list(group.notes))
    if group.verified:
        out.print("Verified: " + group.verified["how"] + f", in {group.verified['dtype']}.")
    if certificate:
        out.print(f"Written: {certificate}", soft_wrap=True)


@shared("arch weights trust_code data example seed")
def read(
    checkpoint: Annotated[Path | None, typer.Argument(help="A Hugging Face folder, in place of --arch.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the group to this file (.json).")] = None,
    *,
    common: Shared,
) -> None:
    """The symmetry group of an architecture: which changes of the weights leave the function the same?"""
    free(out, (".json",), common.force)
    with opened([checkpoint] if checkpoint else [], common) as space:
        if out:
            space.group.save(out)
    if common.as_json:
        print_json(stamped("read", space.group.as_json()))
    else:
        say_read(space.group, type(space.template.architecture).__name__, out)
