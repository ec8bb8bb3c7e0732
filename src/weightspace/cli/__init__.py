"""The command line: each command parses its options, calls `commands`, and prints. `--help` does not load torch."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from weightspace.checkpoint.files import CHOSEN, FileNote
from weightspace.cli import (
    align,
    atlas_sets,
    capacity,
    certify,
    compare,
    doctor,
    extract,
    inform,
    merge,
    nearest,
    paths,
    perturb,
    project,
    read,
    schema,
    serve,
    stability,
    tasks,
    walk,
    watch,
    widen,
)  # fmt: skip
from weightspace.cli.answers import stamped
from weightspace.cli.options import Shared, shared
from weightspace.cli.show import answers_alone, note, noted, print_json, progress
from weightspace.cli.words import console, printable

__all__ = ["app", "main"]


_ABOUT = (
    "Compare, align, merge, change and measure trained networks (checkpoints of one architecture).\n\n"
    "Two networks that compute the same function can have very different weights, because hidden units can be "
    "renumbered and rescaled. These commands find the changes that leave the function the same, and undo them before "
    "they measure or average.\n\n"
    "New here? Run `weightspace demo`.\n\n"
    "Exit codes: 0 done; 1 not the verdict that --expect names, or something is missing (doctor); 2 an error, "
    "explained in one line."
)
_STOPPED = 130  # exit code for Ctrl-C, in typer and in the shell
_SIGNALS = ("SIGTERM", "SIGHUP")


class _Stopped(BaseException):
    """A signal that ends the process, raised so that what is half written is removed first."""


app = typer.Typer(help=_ABOUT, no_args_is_help=True, pretty_exceptions_enable=False)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code. An error is one line on stderr; --debug shows the traceback."""
    given = sys.argv[1:] if arguments is None else arguments
    chosen = CHOSEN.set(None)
    try:
        with _signals(), _notes("--debug" in given):
            with answers_alone() if "--json" in given else nullcontext():
                code = int(_program()(given, prog_name="weightspace", standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        code = _STOPPED
    except _Stopped as stop:
        return _fail("stopped; nothing was left half-written", 128 + int(stop.args[0]))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if "--debug" in given:
            raise
        return _fail(_line(error), 2)
    finally:
        CHOSEN.reset(chosen)
    return _fail("stopped; nothing was left half-written", code) if code == _STOPPED else code


@functools.cache
def _program() -> Any:
    """All commands as one parser, made when the first command line is read."""
    return get_command(app)


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as Ctrl-C does; a signal that is ignored (nohup) stays ignored."""

    def stop(number: int, frame: object) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)  # no second one while what was half written is removed
        raise _Stopped(number)

    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    own = threading.current_thread() is threading.main_thread()
    before = {n: signal.getsignal(n) for n in numbers if own and signal.getsignal(n) is signal.SIG_DFL}
    try:
        for number in before:
            signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _notes(debug: bool) -> Iterator[None]:
    """Keep notes on files for the answer; show other warnings only with --debug."""
    with warnings.catch_warnings(), noted():
        if not debug:
            warnings.simplefilter("ignore")
        warnings.simplefilter("always", FileNote)
        show = warnings.showwarning

        def keep(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
            if not issubclass(category, FileNote):
                return show(message, category, *place, **options)
            note(str(message))

        warnings.showwarning = keep
        yield


def _line(error: Exception) -> str:
    """One line for an error: its message, and for one that is not the user's mistake its type as well."""
    from weightspace.net.errors import WeightspaceError

    if hasattr(error, "format_message"):  # typer's own: an unknown option, a missing argument
        context = getattr(error, "ctx", None)
        said = str(error.format_message()).rstrip(".")
        return f"{said}. See {getattr(context, 'command_path', 'weightspace')} --help."
    text = " ".join(str(error).split())
    if isinstance(error, WeightspaceError):
        return text
    if isinstance(error, MemoryError):
        return "out of memory; give fewer examples (--limit) or use a larger machine"
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or text}; check the path"
    return f"unexpected {type(error).__name__}: {text[:300]}; add --debug to see where, and please report it"


def _fail(message: str, code: int) -> int:
    print(f"weightspace: {printable(message)}", file=sys.stderr)
    return code


def _version(wanted: bool | None) -> None:
    if wanted:
        from weightspace import __version__

        typer.echo(f"weightspace {__version__}")
        raise typer.Exit


@app.callback(help=_ABOUT)
def weightspace(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = None,
) -> None:
    """All commands. The only option of its own is the version."""


@shared("seed")
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write to.")] = Path("weightspace-demo"),
    *,
    common: Shared,
) -> None:
    """A tour of all commands on a small built-in data set, in two minutes; writes a page with figures."""
    from weightspace import demo as show

    stdout = None if common.as_json else console()
    with progress(stdout) as step:
        done = show.run(out, common.settings(step), console=stdout)
    if common.as_json:
        print_json(stamped("demo", done))


_PANELS: dict[str, list[Callable[..., None]]] = {  # of --help, in its order
    "Look": [demo, read.read, doctor.doctor, schema.schema],
    "Compare and merge": [compare.compare, align.align, merge.merge, extract.extract],
    "Move": [walk.walk, perturb.perturb, widen.widen, widen.deepen, widen.grow, project.project],
    "Measure": [capacity.capacity, stability.stability, inform.inform, certify.certify],
    "Sets of data and networks": [tasks.tasks, nearest.nearest],
    "Training runs": [watch.watch, paths.paths],
    "In the browser": [serve.serve],
}
app.add_typer(atlas_sets.app, name="atlas", rich_help_panel="Sets of data and networks")
for panel, commands in _PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
