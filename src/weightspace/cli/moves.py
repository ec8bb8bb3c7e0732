"""Commands that move a network: on purpose, by chance, and how far it may."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from weightspace.cli.options import (
    Arch,
    Data,
    Debug,
    Force,
    Json,
    Limit,
    Out,
    Report,
    Seed,
    Trust,
    Weights,
    missing,
    numbers,
    vacant,
)
from weightspace.cli.shown import answer, progress
from weightspace.text import say_perturbed, say_room, say_trial, say_walked

__all__ = ["walk", "capacity", "perturb", "stability"]  # in the order of --help


def walk(
    checkpoint: Annotated[Path, typer.Argument(help="The network to move.")],
    keep: Annotated[
        str,
        typer.Option(help="Data on which the outputs must stay: a file with x and y (y only scores), or a data set."),
    ],
    toward: Annotated[
        str,
        typer.Option(
            help="learn:DATA, prune:0.9 (or prune:0.99,descent; prune:0.5,2:4; prune:0.3,neuron), drift:SEED, spread, "
            "harden:RADIUS, or another checkpoint."
        ),
    ],
    out: Out,
    arch: Arch = None,
    budget: Annotated[
        float | None, typer.Option(help="Drift of the outputs that is allowed, in their units (a tenth of their size).")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="How many steps (40; 2,000 of a descent).")] = None,
    size: Annotated[float | None, typer.Option(help="Length of a step (1 % of the weights' norm).")] = None,
    memory: Annotated[
        int | None, typer.Option(min=1, help="On how many examples outputs are held (200; of a descent, all).")
    ] = None,
    limit: Limit = 2048,
    report: Report = None,
    force: Force = False,
    as_json: Json = False,
    seed: Seed = 0,
    trust_code: Trust = False,
    weights: Weights = None,
    debug: Debug = False,
) -> None:
    """Move a network without changing what it does: learn something new, prune, explore, or go to another network.

    An output that ends in .safetensors is the network at the end; any other is a folder for the path, from which a walk
    that was cut off goes on (--force begins anew).
    """
    if out.suffix:
        vacant(out, (".safetensors",), force)
    elif not out.parent.is_dir():
        raise missing(out)
    vacant(report, (".html", ".htm"), force)
    from weightspace.walk import walk as go

    options: dict[str, Any] = {"budget": budget, "steps": steps, "size": size, "memory": memory, "limit": limit}
    with progress() as step:
        done = go(
            checkpoint, keep, toward, out, arch=arch, force=force, trust_code=trust_code, seed=seed, progress=step,
            picture=report is not None, **options,
        )  # fmt: skip
    answer(done, say_walked, as_json, report, "wayside:walk_page")


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
    from weightspace.walk import capacity as measure

    with progress() as step:
        step("measuring", 0, 1)
        found = measure(
            checkpoint, keep, learn, arch=arch, memory=memory, limit=limit, trust_code=trust_code, seed=seed
        )  # fmt: skip
    answer(found, say_room, as_json, report, "wayside:room_page")


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
    from weightspace.trial import perturbed

    options: dict[str, Any] = {"relative": relative, "kind": kind, "bits": bits, "share": share, "data": data}
    with progress() as step:
        step("perturbing", 0, 0)
        done = perturbed(
            checkpoint, out, arch=arch, limit=limit, force=force, trust_code=trust_code, seed=seed, **options
        )  # fmt: skip
    answer(done, say_perturbed, as_json)


def stability(
    checkpoint: Annotated[Path, typer.Argument(help="The network to shake.")],
    data: Annotated[
        str, typer.Option(help="Data to look at it on: a file or a data set; y is scored, and may be missing.")
    ],
    arch: Arch = None,
    sizes: Annotated[str, typer.Option(help="Sizes of the noise.")] = "0.01,0.02,0.05,0.1,0.2,0.5,1",
    draws: Annotated[int, typer.Option(min=1, help="How often each size is drawn.")] = 10,
    tolerance: Annotated[float, typer.Option(help="What noise may cost, for the width: of accuracy, or loss.")] = 0.01,
    proof: Annotated[bool, typer.Option(help="Compute certificates (a Cholesky factor a tensor and size).")] = True,
    limit: Limit = 512,
    report: Report = None,
    force: Force = False,
    as_json: Json = False,
    seed: Seed = 0,
    trust_code: Trust = False,
    weights: Weights = None,
    debug: Debug = False,
) -> None:
    """How much noise do the weights take? Measured, expected, modelled and proven, and which layer breaks first."""
    vacant(report, (".html", ".htm"), force)
    from weightspace.trial import trial

    options: dict[str, Any] = {"draws": draws, "tolerance": tolerance, "proven": proof, "limit": limit, "seed": seed}
    with progress() as step:
        done = trial(
            checkpoint, data, arch=arch, sizes=numbers(sizes), trust_code=trust_code, progress=step, **options
        )  # fmt: skip
    answer(done, say_trial, as_json, report, "trial:trial_page")
