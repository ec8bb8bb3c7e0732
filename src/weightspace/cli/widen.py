"""The commands `weightspace widen`, `weightspace deepen` and `weightspace grow`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.options import Out, Shared, free, shared
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, make_table, printable

if TYPE_CHECKING:
    from weightspace.commands.widen import Resized

__all__ = ["deepen", "grow", "say_resized", "widen"]


def say_resized(done: Resized) -> None:
    """Print the answer of `widen`, `deepen` or `grow`."""
    out = console()
    table = make_table("axis of units" if done.axes else "layers" if done.layers else "tensor", "before", "after")
    counts = [(name, str(a), str(b)) for name, a, b in done.axes or done.layers]
    for name, before, after in counts or [(name, _text(a), _text(b)) for name, a, b in done.shapes]:
        table.add_row(printable(name), before, after)
    out.print(table)
    count, larger = done.weights
    out.print(f"{count:,} weights became {larger:,}; the outputs changed by {done.function:.1g} of their size.")
    out.print(f"Open it with an --arch of {'this depth' if done.layers else 'these sizes'}.")
    out.print(f"Written: {printable(done.out)}", soft_wrap=True)


@shared("arch weights trust_code data example seed")
def widen(
    checkpoint: Annotated[Path, typer.Argument(help="The network to widen.")],
    out: Out,
    to: Annotated[
        str | None,
        typer.Option(help="A factor for all axes of hidden units (2), or a wider architecture, as --arch takes it."),
    ] = None,
    axis: Annotated[
        list[str] | None, typer.Option(help="NAME=SIZE: the new size of one axis; may be given several times.")
    ] = None,
    new: Annotated[
        str, typer.Option(help="copies (of units, read with random shares) or zeros (random units, read with zero).")
    ] = "copies",
    *,
    common: Shared,
) -> None:
    """Write the same function in a wider architecture: units are copied, and what reads them is shared out."""
    free(out, (".safetensors",), common.force)
    if new not in ("copies", "zeros"):
        raise typer.BadParameter(f"{new!r}; choose copies or zeros", param_hint="--new")
    sizes = dict(map(_size, axis or []))
    from weightspace.commands.widen import widen as run

    with progress() as step:
        done = run(
            checkpoint, out, to=to, axes=sizes, new="zeros" if new == "zeros" else "copies", example=common.example,
            data=common.data, settings=common.settings(step),
        )  # fmt: skip
    answer("widen", done, say_resized, common)


@shared("arch weights trust_code data example seed")
def deepen(
    checkpoint: Annotated[Path, typer.Argument(help="The network to deepen.")],
    out: Out,
    to: Annotated[str, typer.Option(help="The deeper architecture, as --arch takes it.")],
    *,
    common: Shared,
) -> None:
    """Write the same function in a deeper architecture: new branches end in zero, new layers are the identity."""
    free(out, (".safetensors",), common.force)
    from weightspace.commands.widen import deepen as run

    with progress() as step:
        done = run(
            checkpoint, out, to=to, example=common.example, data=common.data, settings=common.settings(step)
        )  # fmt: skip
    answer("deepen", done, say_resized, common)


@shared("arch weights trust_code data example seed")
def grow(
    checkpoint: Annotated[Path, typer.Argument(help="The network to give more outputs.")],
    out: Out,
    outputs: Annotated[int, typer.Option(min=1, help="How many outputs to add.")],
    layer: Annotated[str | None, typer.Option(help="The linear layer to add rows to, by name; the last one.")] = None,
    *,
    common: Shared,
) -> None:
    """Write a network with more outputs: the old ones stay, the new rows are random."""
    free(out, (".safetensors",), common.force)
    from weightspace.commands.widen import grow as run

    with progress() as step:
        done = run(
            checkpoint, out, outputs=outputs, layer=layer, example=common.example, data=common.data,
            settings=common.settings(step),
        )  # fmt: skip
    answer("grow", done, say_resized, common)


def _size(text: str) -> tuple[str, int]:
    name, _, size = text.rpartition("=")
    if not name or not size.isdigit():
        raise typer.BadParameter(f"{text!r}; give NAME=SIZE, such as 1.weight[0]=64", param_hint="--axis")
    return name, int(size)


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
