"""Progress while a command works, and its answer as a page, as JSON or as text."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from weightspace.cli.answers import stamped
from weightspace.cli.next_step import next_step
from weightspace.cli.words import console, printable

if TYPE_CHECKING:
    from rich.console import Console

    from weightspace.cli.options import Shared
    from weightspace.commands.workspace import Workspace
    from weightspace.jobs.progress import Progress
    from weightspace.pages.page import Page

__all__ = ["answer", "answers_alone", "note", "noted", "opened", "print_json", "print_text", "progress"]


_NOTES: ContextVar[list[str] | None] = ContextVar("notes", default=None)
_ANSWERS: ContextVar[TextIO | None] = ContextVar("answers", default=None)  # where JSON goes; None: stdout


@contextmanager
def answers_alone() -> Iterator[None]:
    """Send everything printed meanwhile, also by the user's own code, to stderr: stdout gets the JSON alone."""
    token = _ANSWERS.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _ANSWERS.reset(token)


@contextmanager
def noted() -> Iterator[None]:
    """Keep notes on files for the answer, which shows them; without an answer they are printed on stderr."""
    token = _NOTES.set([])
    try:
        yield
    finally:
        for text in _NOTES.get() or []:
            print(f"weightspace: note: {printable(text)}", file=sys.stderr)
        _NOTES.reset(token)


def note(text: str) -> None:
    """Keep a note for the answer; the same text is kept once."""
    kept = _NOTES.get()
    if kept is not None and text not in kept:
        kept.append(text)


def _told() -> list[str]:
    """The notes kept so far; they are then forgotten."""
    kept = _NOTES.get() or []
    told = list(kept)
    kept.clear()
    return told


@contextmanager
def opened(paths: list[Path], common: Shared) -> Iterator[Workspace]:
    """The workspace of some checkpoints; progress is shown while it is used."""
    from weightspace.commands.workspace import Workspace

    with progress() as step:
        given = common.data, common.example
        yield Workspace.open(paths, common.settings(step), *given, limit=common.limit, method=common.method)


@contextmanager
def progress(beside: Console | None = None) -> Iterator[Progress]:
    """A callback that shows progress on stderr: a bar on a terminal, else one line for each new thing that is done.

    `beside`: a console on which the command itself prints meanwhile; the bar then stays below what it prints.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = beside if beside and beside.is_terminal else Console(stderr=True)
    if not console.is_terminal:
        said: set[str] = set()

        def tell(what: str, done: int, total: int) -> None:
            if what not in said:
                said.add(what)
                print(f"{printable(what)} ...", file=sys.stderr, flush=True)

        yield tell
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("starting", total=None)

        def show(what: str, done: int, total: int) -> None:
            bars.update(bar, description=printable(what), completed=done, total=total or None)

        yield show


def answer(
    name: str,
    done: Any,
    say: Callable[..., None],
    common: Shared,
    page: Callable[[Any], Page] | None = None,
) -> None:
    """Write the page if a report is wanted, then print `done`: as JSON, or as text by `say`.

    `name`: of the JSON object, one of `answers.VERSIONS`.
    """
    if common.report and page:
        from weightspace.pages.page import save

        save([page(done)], common.report)
    told = _told()
    if common.as_json:
        found = stamped(name, done.data())
        print_json({**found, "notes": [*found.get("notes", []), *told]} if told else found)
        return
    say(done)
    for text in told:
        console().print(f"Note: {printable(text)}", style="yellow", soft_wrap=True)
    if (line := next_step()) is not None:
        console().print(f"Next: {printable(line)}", style="dim", soft_wrap=True)
    if common.report:
        console().print(f"Report: {printable(str(common.report))}", soft_wrap=True)


def print_json(value: Any) -> None:
    """Print a value as JSON; NaN and infinity, which JSON does not have, become null."""
    from weightspace.net.plain import plain

    print_text(json.dumps(plain(value), indent=1, allow_nan=False))


def print_text(text: str) -> None:
    """Print a line where answers go, with --json too."""
    print(text, file=_ANSWERS.get() or sys.stdout)
