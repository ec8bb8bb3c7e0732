"""The command line: parse, call, print. torch is imported by the commands, not by `--help`."""

from __future__ import annotations

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

from weightspace.checkpoint.files import CHOSEN, FileNote
from weightspace.cli import (
    align,
    capacity,
    certify,
    compare,
    inform,
    merge,
    paths,
    perturb,
    read,
    stability,
    tasks,
    walk,
    watch,
)  # fmt: skip
from weightspace.cli.options import Debug, Force, Json, Seed
from weightspace.cli.show import answers_alone, note, noted, print_json, progress
from weightspace.cli.words import console, printable

__all__ = ["app", "main"]


_ABOUT = (
    "Read a network's symmetry; compare, align, merge, move and shake checkpoints of one architecture.\n\n"
    "Two networks that compute the same thing can have very different weights, because hidden units can be renumbered "
    "and rescaled. These commands read off which moves leave a network's function alone, and undo them before they "
    "measure or average.\n\n"
    "Exit codes: 0 done, 1 another verdict than the one expected, 2 a mistake (one line says which)."
)
_PANELS: dict[str, list[Callable[..., None]]] = {  # of --help, in its order
    "Look": [read.read, compare.compare],
    "Align and merge": [align.align, merge.merge],
    "Move": [walk.walk, perturb.perturb],
    "Measure": [capacity.capacity, stability.stability, inform.inform, tasks.tasks, certify.certify],
    "Watch a run": [watch.watch, paths.paths],
}
_STOPPED = 130  # typer's code, and the shell's, for Ctrl-C
_SIGNALS = ("SIGTERM", "SIGHUP")


class _Stopped(BaseException):
    """A signal that ends the process, raised so that what is half written is removed first."""


app = typer.Typer(help=_ABOUT, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for panel, commands in _PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code. A mistake is one line on stderr, never a traceback without --debug."""
    given = sys.argv[1:] if arguments is None else arguments
    chosen = CHOSEN.set(None)
    try:
        with _signals(), _notes("--debug" in given):
            with answers_alone() if "--json" in given else nullcontext():
                code = int(app(given, prog_name="weightspace", standalone_mode=False) or 0)
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


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as Ctrl-C does; one that is ignored (nohup) stays so."""

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
    """Notes on files are kept for the answer; other warnings are not for a user, but with --debug."""
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
    """What to tell: the message of an error that a user can mend; of any other, its kind as well."""
    from weightspace.net.errors import WeightspaceError

    if hasattr(error, "format_message"):  # typer's own: an unknown option, a missing argument
        context = getattr(error, "ctx", None)
        return f"{error.format_message()} See {getattr(context, 'command_path', 'weightspace')} --help."
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
    """All commands; no options of its own but the version."""


@app.command(rich_help_panel="Look")
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write to.")] = Path("weightspace-demo"),
    force: Force = False,
    as_json: Json = False,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Everything that works so far, on embedded data, in two minutes; ends with a page to look at."""
    from weightspace import demo as show

    stdout = None if as_json else console()
    with progress(stdout) as step:
        done = show.run(out, console=stdout, force=force, seed=seed, progress=step)
    if as_json:
        print_json(done)
