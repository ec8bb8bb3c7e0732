"""What commands show: progress while they work, and the answer as a page, as JSON or in words."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from weightspace.cli.words import console, printable

if TYPE_CHECKING:
    from rich.console import Console

    from weightspace.commands.progress import Progress
    from weightspace.commands.workspace import Workspace
    from weightspace.pages.page import Page

__all__ = ["answer", "answers_alone", "note", "noted", "opened", "print_json", "progress"]


_NOTES: ContextVar[list[str] | None] = ContextVar("notes", default=None)
_ANSWERS: ContextVar[TextIO | None] = ContextVar("answers", default=None)  # where JSON goes; None: stdout


@contextmanager
def answers_alone() -> Iterator[None]:
    """What else is printed meanwhile, by the user's own code too, goes to stderr: on stdout there is JSON alone."""
    token = _ANSWERS.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _ANSWERS.reset(token)


@contextmanager
def noted() -> Iterator[None]:
    """Keep the notes on files for the answer, which tells them; where no answer comes, they are told on stderr."""
    token = _NOTES.set([])
    try:
        yield
    finally:
        for text in _NOTES.get() or []:
            print(f"weightspace: note: {printable(text)}", file=sys.stderr)
        _NOTES.reset(token)


def note(text: str) -> None:
    """Keep a note for the answer, once."""
    kept = _NOTES.get()
    if kept is not None and text not in kept:
        kept.append(text)


def _told() -> list[str]:
    """The notes kept so far, which are then told."""
    kept = _NOTES.get() or []
    told = list(kept)
    kept.clear()
    return told


@contextmanager
def opened(
    arch: str | None,
    paths: list[Path],
    data: str | None,
    example: str | None,
    trust_code: bool,
    seed: int,
    limit: int = 2048,
    method: str = "auto",
) -> Iterator[Workspace]:
    """What the options name, opened, with the progress shown while it is used."""
    from weightspace.commands.workspace import Workspace as Bench

    with progress() as step:
        options: dict[str, Any] = {"limit": limit, "method": method, "trust_code": trust_code, "seed": seed}
        yield Bench.open(arch, paths, data, example, progress=step, **options)


@contextmanager
def progress(beside: Console | None = None) -> Iterator[Progress]:
    """On a terminal a bar or a spinner; else one plain line for every new thing that is done. On stderr.

    Where the command itself prints to a terminal meanwhile, the bar keeps out of the way of that console, `beside`.
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
    done: Any,
    say: Callable[..., None],
    as_json: bool,
    report: Path | None = None,
    page: Callable[[Any], Page] | None = None,
) -> None:
    """The page that `page` draws, if a report is wanted; then `done` as JSON, or in words."""
    if report and page:
        from weightspace.pages.page import save

        save([page(done)], report)
    told = _told()
    if as_json:
        found = done.data()
        print_json({**found, "notes": [*found.get("notes", []), *told]} if told else found)
        return
    say(done)
    for text in told:
        console().print(f"Note: {printable(text)}", style="yellow", soft_wrap=True)
    if report:
        console().print(f"Report: {printable(str(report))}", soft_wrap=True)


def print_json(value: Any) -> None:
    """JSON has no NaN and no infinity: null."""
    from weightspace.net.plain import plain

    print(json.dumps(plain(value), indent=1, allow_nan=False), file=_ANSWERS.get() or sys.stdout)
