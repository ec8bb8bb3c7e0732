"""The command `weightspace align`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.options import Out, Shared, free, shared
from weightspace.cli.show import answer, opened
from weightspace.cli.words import console, printable, say_change, say_notes

if TYPE_CHECKING:
    from weightspace.commands.align import Aligned

__all__ = ["align", "say_align"]


def say_align(done: Aligned) -> None:
    """Print the answer of `align`."""
    out = console()
    say_change(out, done)
    say_notes(out, done.notes)
    out.print(f"Written: {printable(done.out)}", soft_wrap=True)


@shared("arch weights trust_code data example method limit report seed")
def align(
    checkpoint: Annotated[Path, typer.Argument(help="The network to align.")],
    to: Annotated[Path, typer.Option(help="The network to align it to.")],
    out: Out,
    common: Shared,
) -> None:
    """Renumber and rescale the units of a network to match another one; its function stays the same."""
    free(out, (".safetensors",), common.force)
    with opened([checkpoint, to], common) as space:
        from weightspace.commands.align import align as run

        done = run(space, checkpoint, to, out)
    from weightspace.pages.align import align_page

    answer("align", done, say_align, common, align_page)
