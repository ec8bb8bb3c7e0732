"""The command `weightspace perturb`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.options import Out, Shared, free, shared
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, printable

if TYPE_CHECKING:
    from weightspace.commands.perturb import Perturbed

__all__ = ["perturb", "say_perturb"]


def say_perturb(done: Perturbed) -> None:
    """Print the answer of `perturb`."""
    out = console()
    out.print(f"{done.kind}: {done.tensors} tensors changed, by up to {done.largest:.1%} of their norm.", style="bold")
    out.print(f"Deep relative trust, a model of the change of the outputs: {done.model:.3g}")
    if done.measured is not None and done.expected is not None:
        out.print(f"Change of the outputs: {done.measured:.3g} of their size; expected of noise: {done.expected:.3g}.")
    if done.scores:
        before, after = done.scores
        out.print(f"Loss {before.loss:.4f} before, {after.loss:.4f} after.")
        if before.accuracy is not None and after.accuracy is not None:
            out.print(f"Accuracy {before.accuracy:.1%} before, {after.accuracy:.1%} after.")
    out.print(f"Written: {printable(done.out)}", soft_wrap=True)


@shared("arch weights trust_code data limit seed")
def perturb(
    checkpoint: Annotated[Path, typer.Argument(help="The network to change.")],
    out: Out,
    relative: Annotated[
        float | None, typer.Option(help="Size of the change of every tensor, as a share of its norm (0.2).")
    ] = None,
    kind: Annotated[
        str, typer.Option(help="noise, quantise (round to an even grid) or prune (smallest weights to zero).")
    ] = "noise",
    bits: Annotated[int | None, typer.Option(help="For quantise: bits a weight, in place of --relative.")] = None,
    share: Annotated[float | None, typer.Option(help="For prune: share of zeros, in place of --relative.")] = None,
    *,
    common: Shared,
) -> None:
    """Write a network with noise, rounding or zeros in every layer; with --data, its predicted and measured effect."""
    free(out, (".safetensors",), common.force)
    from weightspace.commands.perturb import perturb as run

    with progress() as step:
        step("perturbing", 0, 0)
        done = run(
            checkpoint, out, data=common.data, relative=relative, kind=kind, bits=bits, share=share, limit=common.limit,
            settings=common.settings(step),
        )  # fmt: skip
    answer("perturb", done, say_perturb, common)
