"""Text on a terminal: the console, tables, notes, names made safe to print."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from weightspace.commands.align import Aligned
    from weightspace.commands.compare import Comparison
    from weightspace.commands.scores import Score

__all__ = ["console", "printable"]


_PIPED = 120


def printable(text: str) -> str:
    """Text without control characters: names come from files, and a terminal obeys control characters."""
    return "".join(c if c.isprintable() else "?" for c in text)


def console() -> Console:
    """Standard output without markup (`[red]` is text); as wide as the terminal; in a pipe COLUMNS, else 120."""
    out = Console(markup=False, highlight=False, emoji=False)
    if not (out.is_terminal or os.environ.get("COLUMNS", "").isdigit()):
        out.width = _PIPED
    return out


def make_table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def score_table(scores: Iterable[Score], examples: int) -> Table:
    """The table of losses and accuracies of networks."""
    table = make_table(f"on {examples} held-out examples", "loss", "accuracy")
    for score in scores:
        share = "-" if score.accuracy is None else f"{score.accuracy:.1%}"
        table.add_row(printable(score.name), f"{score.loss:.4f}", share)
    return table


def say_notes(out: Console, notes: list[str]) -> None:
    for note in notes:
        out.print(f"Note: {printable(note)}", style="yellow")


def say_change(out: Console, done: Comparison | Aligned) -> None:
    """Print a table of what alignment changed, and the remarks."""
    table = make_table("", "as stored", "aligned")
    for row in done.rows():
        table.add_row(*row)
    out.print(table)
    for line in done.remarks():
        out.print(printable(line))
