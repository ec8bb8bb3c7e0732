"""The command `weightspace certify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightspace.cli.options import Arch, Debug, Force, Json, Report, Seed, Trust, Weights, vacant
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, make_table, printable

if TYPE_CHECKING:
    from weightspace.commands.certify import Certified

__all__ = ["certify", "say_certified"]


def say_certified(done: Certified) -> None:
    """`certify`."""
    out, found = console(), done.found
    table = make_table("inequality", "error on new data, at most", "", "note")
    for row in found.families:
        chosen = "  <- chosen before" if row.name == found.family else ""
        table.add_row(row.name, f"{row.bound:.2%}", "certificate" if row.certificate else "estimate", row.note + chosen)
    out.print(table)
    tested = "" if found.test_error is None else f"; {found.test_error:.2%} on test examples"
    out.print(
        f"Networks drawn from Q err on {found.error:.2%} of the {found.examples:,} examples{tested}. "
        f"KL(Q | P) = {found.nats:,.4g} nats."
    )
    if done.own_error is not None:
        own = "" if done.own_test_error is None else f", {done.own_test_error:.2%} on test examples"
        out.print(f"{printable(done.name)} itself: {done.own_error:.2%}{own}.")
    for line in done.remarks():
        out.print(printable(line))
    if done.out:
        out.print(f"Written: {printable(done.out)}", soft_wrap=True)


def certify(
    checkpoint: Annotated[Path, typer.Argument(help="The network, trained on these data (or not: --unseen).")],
    data: Annotated[str, typer.Option(help="The examples that the promise rests on: a file or a data set.")],
    arch: Arch = None,
    prior: Annotated[
        Path | None, typer.Option(help="The checkpoint from before training on these data. A fresh one without it.")
    ] = None,
    seen: Annotated[str | None, typer.Option(help="What the prior was trained on; no example may be shared.")] = None,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="The checkpoint has seen none of these examples: it is the prior itself.")
    ] = False,
    delta: Annotated[float, typer.Option(help="Probability that the promise may fail.")] = 0.05,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of training on the bound.")] = None,
    draws: Annotated[
        int | None, typer.Option(min=1, help="Networks drawn for the error, each with an example (500,000).")
    ] = None,
    limit: Annotated[int, typer.Option(min=2, help="Use at most this many examples.")] = 60_000,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write the mean of the certified networks (.safetensors).")
    ] = None,
    report: Report = None,
    force: Force = False,
    as_json: Json = False,
    seed: Seed = 0,
    trust_code: Trust = False,
    weights: Weights = None,
    debug: Debug = False,
) -> None:
    """How often will it err on new data, at most? A PAC-Bayes certificate, and what other bounds would say.

    What it will cost is said before it begins.
    """
    vacant(out, (".safetensors",), force)
    vacant(report, (".html", ".htm"), force)
    from weightspace.commands.certify import certified

    options: dict[str, Any] = {"prior": prior, "seen": seen, "unseen": unseen, "delta": delta}
    with progress() as step:
        done = certified(
            checkpoint, data, arch=arch, steps=steps, draws=draws, limit=limit, out=out, force=force,
            trust_code=trust_code, seed=seed, progress=step, **options,
        )  # fmt: skip
    from weightspace.pages.certify import certified_page

    answer(done, say_certified, as_json, report, certified_page)
