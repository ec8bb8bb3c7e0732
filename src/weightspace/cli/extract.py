"""The command `weightspace extract`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.options import Shared, missing, shared
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, make_table, printable, say_notes

if TYPE_CHECKING:
    from weightspace.commands.extract import Extracted

__all__ = ["extract", "say_extracted"]

_SHOWN = 12


def say_extracted(done: Extracted) -> None:
    """Print the answer of `extract`."""
    out = console()
    worst = sorted(done.errors.items(), key=lambda item: -item[1])
    table = make_table("layer", "lost, of the difference's norm")
    for layer, error in worst[:_SHOWN]:
        table.add_row(printable(layer), f"{error:.1%}")
    out.print(table)
    if len(worst) > _SHOWN:
        out.print(f"and {len(worst) - _SHOWN} layers that lost less.")
    small, whole = done.weights
    out.print(f"Rank {done.rank}{' or as told by layer' if done.ranks else ''}: {small:,} numbers for {whole:,}.")
    say_notes(out, [*done.notes, *(f"not in the adapter: {left}" for left in done.left)])
    out.print(f"Written: {printable(done.out)}", soft_wrap=True)


@shared("weights")
def extract(
    checkpoint: Annotated[Path, typer.Argument(help="The fine-tuned network.")],
    base: Annotated[Path, typer.Option(help="The network that it was tuned from.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder of the adapter.")],
    rank: Annotated[int | None, typer.Option(min=1, help="The rank of every layer, at most.")] = None,
    share: Annotated[
        float | None,
        typer.Option(help="In place of --rank: the share of each difference's squared norm that is kept, 0 to 1."),
    ] = None,
    *,
    common: Shared,
) -> None:
    """Write the low-rank adapter (LoRA, as peft reads it) that makes the fine-tuned network of its base."""
    if (rank is None) == (share is None):
        raise typer.BadParameter("give either --rank or --share.", param_hint="--rank")
    if not out.parent.is_dir():
        raise missing(out)
    from weightspace.commands.extract import extract_adapter

    with progress() as step:
        done = extract_adapter(checkpoint, base, out, rank=rank, share=share, settings=common.settings(step))
    answer("extract", done, say_extracted, common)
