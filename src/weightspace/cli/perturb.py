"""The command `weightspace perturb`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightspace.cli.options import Arch, Data, Debug, Force, Json, Limit, Out, Seed, Trust, Weights, vacant
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, printable

if TYPE_CHECKING:
    from weightspace.commands.perturb import Perturbed

__all__ = ["perturb", "say_perturbed"]


def say_perturbed(done: Perturbed) -> None:
    """`perturb`."""
    out = console()
    out.print(f"{done.kind}: {done.tensors} tensors changed, by up to {done.largest:.1%} of their norm.", style="bold")
    out.print(f"Relative trust, a model of what the outputs do: {done.model:.3g}")
    if done.measured is not None and done.expected is not None:
        out.print(f"Outputs moved by {done.measured:.3g} of their size; {done.expected:.3g} was expected of noise.")
    if done.scores:
        before, after = done.scores
        out.print(f"Loss {before.loss:.4f} before, {after.loss:.4f} after.")
        if before.accuracy is not None and after.accuracy is not None:
            out.print(f"Accuracy {before.accuracy:.1%} before, {after.accuracy:.1%} after.")
    out.print(f"Written: {printable(done.out)}", soft_wrap=True)


def perturb(
    checkpoint: Annotated[Path, typer.Argument(help="The network to change.")],
    out: Out,
    relative: Annotated[
        float | None, typer.Option(help="Size of the change of every tensor, as a share of its norm (0.2).")
    ] = None,
    kind: Annotated[str, typer.Option(help="noise, quantise (to an even grid), prune (smallest to zero).")] = "noise",
    bits: Annotated[int | None, typer.Option(help="Of --kind quantise, in place of --relative.")] = None,
    share: Annotated[float | None, typer.Option(help="Of --kind prune: zeros, in place of --relative.")] = None,
    data: Data = None,
    arch: Arch = None,
    limit: Limit = 2048,
    force: Force = False,
    as_json: Json = False,
    seed: Seed = 0,
    trust_code: Trust = False,
    weights: Weights = None,
    debug: Debug = False,
) -> None:
    """Change every layer by a share of its norm: noise, rounding or zeros; with --data, predicted against measured."""
    vacant(out, (".safetensors",), force)
    from weightspace.commands.perturb import perturbed

    options: dict[str, Any] = {"relative": relative, "kind": kind, "bits": bits, "share": share, "data": data}
    with progress() as step:
        step("perturbing", 0, 0)
        done = perturbed(
            checkpoint, out, arch=arch, limit=limit, force=force, trust_code=trust_code, seed=seed, **options
        )  # fmt: skip
    answer(done, say_perturbed, as_json)
