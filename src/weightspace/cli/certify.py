"""The command `weightspace certify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.options import Shared, free, shared
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, make_table, printable

if TYPE_CHECKING:
    from weightspace.commands.certify import Certified

__all__ = ["certify", "say_certify"]


def say_certify(done: Certified) -> None:
    """Print the answer of `certify`."""
    out, found = console(), done.found
    table = make_table("inequality", "bound on the error on new data", "", "note")
    for row in found.families:
        chosen = "  <- chosen in advance" if row.name == found.family else ""
        table.add_row(row.name, f"{row.bound:.2%}", "certificate" if row.certificate else "estimate", row.note + chosen)
    out.print(table)
    tested = "" if found.test_error is None else f", {found.test_error:.2%} on test examples"
    out.print(
        f"Mean error of networks drawn from Q: {found.error:.2%} on the {found.examples:,} examples{tested}. "
        f"KL(Q | P) = {found.nats:,.4g} nats."
    )
    if done.own_error is not None:
        own = "" if done.own_test_error is None else f", {done.own_test_error:.2%} on test examples"
        out.print(f"Error of {printable(done.name)} itself: {done.own_error:.2%}{own}.")
    for line in done.remarks():
        out.print(printable(line))
    if done.out:
        out.print(f"Written: {printable(done.out)}", soft_wrap=True)


@shared("arch weights trust_code report seed")
def certify(
    checkpoint: Annotated[Path, typer.Argument(help="The network, trained on these data, or with --unseen on others.")],
    data: Annotated[str, typer.Option(help="The examples that the bound is computed from: a file or a data set.")],
    prior: Annotated[
        Path | None,
        typer.Option(help="A checkpoint from before training on these data. Without it, a fresh initialisation."),
    ] = None,
    seen: Annotated[
        str | None, typer.Option(help="The data that the prior was trained on; it must share no example with --data.")
    ] = None,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="The checkpoint was trained on none of these examples: it is the prior.")
    ] = False,
    delta: Annotated[float, typer.Option(help="Probability with which the bound may fail.")] = 0.05,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps on the bound.")] = None,
    draws: Annotated[
        int | None, typer.Option(min=1, help="Networks drawn to estimate the error, each on one example (500,000).")
    ] = None,
    limit: Annotated[int, typer.Option(min=2, help="Use at most this many examples.")] = 60_000,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write the mean of the certified networks (.safetensors).")
    ] = None,
    *,
    common: Shared,
) -> None:
    """An upper bound on the error on new data: a PAC-Bayes certificate, next to other bounds.

    The expected cost is printed before the run begins.
    """
    free(out, (".safetensors",), common.force)
    from weightspace.commands.certify import Prior
    from weightspace.commands.certify import certify as run

    with progress() as step:
        done = run(
            checkpoint, data, Prior(prior, seen, unseen), delta=delta, steps=steps, draws=draws, limit=limit, out=out,
            settings=common.settings(step),
        )  # fmt: skip
    from weightspace.pages.certify import certify_page

    answer("certify", done, say_certify, common, certify_page)
