"""The command `weightspace compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.advice import compare_many
from weightspace.cli.options import Checkpoint, Shared, shared
from weightspace.cli.show import answer, opened, progress
from weightspace.cli.words import console, make_table, printable, say_change, say_notes

if TYPE_CHECKING:
    from weightspace.commands.across_architectures import Across
    from weightspace.commands.compare import Comparison

__all__ = ["compare", "say_compare"]


def say_compare(found: Comparison) -> None:
    """Print the answer of `compare`."""
    out = console()
    out.print(f"{found.verdict.words[0].upper()}{found.verdict.words[1:]}", style="bold")
    out.print(f"{found.verdict.why[0].upper()}{found.verdict.why[1:]}.")
    say_change(out, found)
    layers = make_table("tensor", "shape", "|a|", "|b|", "|a-b|/|a| as stored", "aligned", "cosine")
    for x in found.layers:
        shape = "x".join(map(str, x.shape)) or "-"
        numbers = [f"{n:.3g}" for n in (x.norm_a, x.norm_b, x.before, x.after, x.cosine)]
        layers.add_row(printable(x.name), shape, *numbers)
    out.print(layers)
    say_notes(out, found.notes)


@shared("arch weights trust_code data example method limit report seed")
def compare(
    a: Checkpoint,
    b: Annotated[Path, typer.Argument(help="Another one, of the same architecture.")],
    more: Annotated[
        list[Path] | None,
        typer.Argument(help="Up to 48 more: then the answer is whether to merge them, by their weights alone."),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="What they were all trained from; then the answer is whether to merge them."),
    ] = None,
    expect: Annotated[
        str | None,
        typer.Option(
            help="Exit with code 1 unless the verdict is this one or a nearer one: same, function, related; or exactly "
            "independent."
        ),
    ] = None,
    arch_b: Annotated[
        str | None,
        typer.Option(
            "--arch-b",
            help="How the second is made, where its architecture is another one; then outputs and layers are compared, "
            "on --data, and no weights.",
        ),
    ] = None,
    *,
    common: Shared,
) -> None:
    """How different are two networks really? Distance and loss, and a verdict; of a set, whether to merge it."""
    kinds = ("same", "function", "related", "independent")
    if expect not in (None, *kinds):
        raise typer.BadParameter(f"{expect!r}; choose same, function, related or independent.", param_hint="--expect")
    if more or base is not None:
        if expect is not None or arch_b is not None:
            given = "--arch-b" if expect is None else "--expect"
            raise typer.BadParameter("of two networks alone; leave it out for a set", param_hint=given)
        return compare_many([a, b, *(more or [])], base, common)
    if arch_b is not None:
        return _across(a, b, arch_b, expect, common)
    with opened([a, b], common) as space:
        from weightspace.commands.compare import compare_files

        found = compare_files(space, a, b)
    from weightspace.pages.compare import compare_page

    answer("compare", found, say_compare, common, compare_page)
    if expect and found.verdict.kind not in ((expect,) if expect == kinds[-1] else kinds[: kinds.index(expect) + 1]):
        raise typer.Exit(1)


def _across(a: Path, b: Path, arch_b: str, expect: str | None, common: Shared) -> None:
    """Compare two architectures; there is no verdict."""
    if expect is not None:
        raise typer.BadParameter("networks of two architectures have no verdict; leave it out", param_hint="--expect")
    from weightspace.commands.across_architectures import compare_across

    with progress() as step:
        found = compare_across(a, b, arch_b, common.data, common.limit, common.settings(step))
    from weightspace.pages.across_architectures import across_page

    answer("compare.across", found, _say_across, common, across_page)


def _say_across(done: Across) -> None:
    out = console()
    out.print(printable(f"{done.names[0]}, a {done.architectures[0]}, and {done.names[1]}, a {done.architectures[1]}"))
    table = make_table("on the same examples", "")
    for row in done.rows():
        table.add_row(*row)
    out.print(table)
    layers = make_table("layer of a", "layer of b", "units", "CKA", "Procrustes")
    for p in done.found.pairs:
        cells = p.first, p.second, f"{p.widths[0]}, {p.widths[1]}", f"{p.cka:.3f}", f"{p.procrustes:.3f}"
        layers.add_row(*map(printable, cells))
    out.print(layers)
    for text in done.found.notes:
        out.print(printable(text), soft_wrap=True)
