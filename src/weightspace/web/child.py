"""The process of one job: reads its order from stdin, tells on stdout how far it is, and how it ended.

It works with one thread and within a limit of memory, and ends when its stdin is closed: with the server, that is.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from weightspace.checkpoint import files
from weightspace.jobs.progress import Progress
from weightspace.net.errors import WeightspaceError, first_line
from weightspace.net.plain import plain

__all__ = ["Work", "main"]

_PAUSE = 0.05  # seconds between two messages of progress
_LONGEST = 2000  # characters of an error


@dataclass(frozen=True)
class Work:
    """One job: its arguments with names and paths, the atlas, where its page or file goes, whom it tells how far it is.

    `out`: the page, or the file of a merged network.
    """

    arguments: dict[str, Any]
    atlas: str | None
    objects: str | None
    arch: str | None
    out: Path | None
    progress: Progress

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]


def main(done: Mapping[str, Callable[[Work], dict[str, Any]]]) -> int:
    """Do what stdin says, by the function of its kind; answers are lines of JSON, one for each step and one at the end."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the code of an architecture prints is no answer
    line = sys.stdin.buffer.readline()
    if not line:
        return 1  # the server is gone
    order = files.parse(line)
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    torch.set_num_threads(1)
    limit_memory(order["memory"])
    say(answers, _ended(done, order, _Told(answers)))
    return 0


def limit_memory(more: int) -> None:
    """Let this process have so many bytes of memory beside what it holds now; where the system can limit it."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = held + more if hard == resource.RLIM_INFINITY else min(held + more, hard)
        resource.setrlimit(resource.RLIMIT_AS, (wanted, wanted))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def say(answers: TextIO, message: dict[str, Any]) -> None:
    """Write one message as a line."""
    answers.write(json.dumps(message, allow_nan=False) + "\n")
    answers.flush()


class _Told:
    """A progress callback that says not more than can be shown."""

    def __init__(self, answers: TextIO) -> None:
        self.answers = answers
        self._last, self._what = 0.0, ""

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self._what or now - self._last >= _PAUSE:
            self._last, self._what = now, what
            say(self.answers, {"what": what[:300], "done": int(done), "total": int(total)})


def _ended(done: Mapping[str, Callable[[Work], dict[str, Any]]], order: dict[str, Any], told: _Told) -> dict[str, Any]:
    """The last message: a result, or one sentence of what went wrong."""
    out = Path(order["out"]) if order["out"] is not None else None
    work = Work(order["arguments"], order["atlas"], order["objects"], order["arch"], out, told)
    try:
        result = plain(done[order["kind"]](work))
        small = len(json.dumps(result)) <= order["longest"]
        return {"result": result if small else None}
    except WeightspaceError as error:
        return {"error": _said(str(error), order["arguments"])}
    except (MemoryError, RuntimeError, OSError) as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return {"error": f"it needs more memory than the {order['memory'] / 1e9:.3g} GB that a job may have"}
        return _unexpected(error)
    except Exception as error:
        return _unexpected(error)


def _said(text: str, arguments: dict[str, Any]) -> str:
    """A sentence in which a file that was sent has the name that it was sent under."""
    for place in (arguments.get("data"), arguments.get("path")):
        if isinstance(place, str) and os.path.isabs(place):
            text = text.replace(place, arguments["shown"])
    return text[:_LONGEST]


def _unexpected(error: Exception) -> dict[str, Any]:
    traceback.print_exception(error)
    return {"error": f"unexpected {type(error).__name__}: {first_line(error)}; please report it"[:_LONGEST]}


def _end_with_the_server() -> None:
    """Wait until stdin is closed, then end this process and all that it started."""
    with suppress(OSError, ValueError):
        while os.read(0, 4096):
            pass
    if hasattr(os, "killpg") and os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
