"""`Process`: one job in a process of its own, as the server sees it: started, listened to, stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from json import dumps
from typing import Any

from weightspace.checkpoint import files
from weightspace.jobs.progress import Progress

__all__ = ["COMMAND", "LOOK", "Outcome", "Process"]

COMMAND, LOOK = ((sys.executable, "-m", f"weightspace.web.{name}") for name in ("work", "look"))
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_LINE = 8 << 20  # bytes of one message
_GRACE = 2.0  # seconds from asking a process to end until it is ended


@dataclass(frozen=True)
class Outcome:
    """How a process ended: with a result, or with one sentence of what went wrong."""

    result: dict[str, Any] | None = None
    error: str | None = None


class Process:
    """A process that does one order. Raises `OSError` where it cannot be started."""

    def __init__(self, order: dict[str, Any], command: Sequence[str] = COMMAND) -> None:
        environment = {**os.environ, **dict.fromkeys(_THREADS, "1")}
        environment.pop("WEIGHTSPACE_TOKEN", None)
        self._running = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        self._order = dumps(order).encode() + b"\n"
        self._lock = threading.Lock()
        self._stopped = ""

    @property
    def id(self) -> int:
        """The number of the process."""
        return self._running.pid

    def run(self, told: Progress, seconds: float) -> Outcome:
        """Wait until the process has ended, at most `seconds`; `told` is called with what it says meanwhile."""
        late = threading.Timer(seconds, self.stop, [f"it took longer than {seconds / 3600:.3g} hours"])
        late.daemon = True
        late.start()
        watch = threading.Thread(target=self._watch, daemon=True)
        watch.start()
        outcome: Outcome | None = None
        try:
            assert self._running.stdin is not None and self._running.stdout is not None
            with suppress(BrokenPipeError):
                self._running.stdin.write(self._order)
                self._running.stdin.flush()
            outcome = self._listen(told)
            with suppress(BrokenPipeError):
                self._running.stdin.close()  # it has said its last word, or ends now
            watch.join()
            self._running.stdout.close()
        finally:
            late.cancel()
        if self._stopped:
            return Outcome(error=self._stopped)
        return outcome or Outcome(error=_died(self._running.returncode))

    def _listen(self, told: Progress) -> Outcome | None:
        """The last message; None where there is none."""
        assert self._running.stdout is not None
        while line := self._running.stdout.readline(_LINE):
            try:
                said = files.parse(line)
                if "what" in said:
                    told(str(said["what"]), int(said["done"]), int(said["total"]))
                else:
                    return Outcome(said.get("result"), said.get("error"))
            except (ValueError, TypeError, KeyError):
                self.stop("it answered something else than a job does")
        return None

    def _watch(self) -> None:
        """Wait for the process, then end what it started and left."""
        self._running.wait()
        self._signal(signal.SIGKILL)

    def stop(self, why: str) -> None:
        """Ask the process to end, and end it two seconds later; `why` is told as the outcome."""
        with self._lock:
            self._stopped = self._stopped or why
        self._signal(signal.SIGTERM)
        hard = threading.Timer(_GRACE, self._kill)
        hard.daemon = True
        hard.start()

    def _kill(self) -> None:
        if self._running.poll() is None:
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self._running.pid, number)
            else:
                self._running.terminate()


def _died(code: int | None) -> str:
    how = f"code {code}"
    if code is not None and code < 0:
        with suppress(ValueError):
            how = signal.Signals(-code).name
    memory = "; the machine may be out of memory" if code == -9 else ""
    return f"its process ended without an answer ({how}){memory}; run it again"
