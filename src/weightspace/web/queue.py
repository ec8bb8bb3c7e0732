"""`Queue`: jobs that wait, run in processes of their own, and have ended; within limits of number, memory and time."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from weightspace.checkpoint import files
from weightspace.net.errors import WeightspaceError
from weightspace.web.spawn import COMMAND, Process

__all__ = ["ENDED", "BusyError", "Job", "Limits", "Queue"]

ENDED = ("done", "failed", "cancelled", "lost")
_FILE, _HELD = ".weightspace-jobs.json", ".weightspace-jobs.lock"
_SAVED = ("id", "kind", "title", "arguments", "state", "asked", "started", "ended", "error", "report")


class BusyError(WeightspaceError):
    """Too many jobs wait, or were started."""


@dataclass(frozen=True)
class Limits:
    """What jobs may take.

    `running` at a time; `waiting`; `minute`: started within a minute; `memory`: bytes beside what a process holds when
    it begins; `seconds` of each; `kept` on the list; `result`: bytes of one; `results`: bytes of all.
    """

    running: int = 1
    waiting: int = 20
    minute: int = 30
    memory: int = 8 << 30
    seconds: float = 6 * 3600.0
    kept: int = 100
    result: int = 1 << 20
    results: int = 16 << 20


@dataclass
class Job:
    """A job: what was asked, how far it is, how it ended. `writes`: the file that it makes, as a path and as an id."""

    id: str
    kind: str
    title: str
    arguments: dict[str, Any]
    asked: float
    order: dict[str, Any] = field(default_factory=dict, repr=False)
    report: str | None = None
    state: str = "waiting"
    what: str = ""
    done: int = 0
    total: int = 0
    started: float | None = None
    ended: float | None = None
    error: str | None = None
    result: str | None = field(default=None, repr=False)
    version: int = 0
    process: Process | None = field(default=None, repr=False)

    def data(self, place: int | None = None) -> dict[str, Any]:
        """The job as the list shows it."""
        known = {name: getattr(self, name) for name in (*_SAVED, "what", "done", "total")}
        return {**known, "report": self.report if self.state == "done" else None, "place": place}


class Queue:
    """Jobs in the order of asking. All calls may come from any thread.

    `folder`: where the list is kept, so that the next server can tell which jobs were lost.
    """

    def __init__(self, folder: Path, limits: Limits | None = None, command: Sequence[str] = COMMAND) -> None:
        self.limits = limits or Limits()
        self._command, self._file = tuple(command), folder / _FILE
        self._lock, self._saving = threading.RLock(), threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._recent: deque[float] = deque()
        self._watchers: set[Callable[[], None]] = set()
        self._version, self._closed = 0, False
        self._lock_file: IO[bytes] | None = None
        self._kept = True  # until it is closed
        self._load()

    # ------------------------------------------------------------------ asking

    def add(self, kind: str, title: str, arguments: dict[str, Any], order: dict[str, Any], report: str | None) -> Job:
        """Put a job into the list, and start it if none runs. `report`: the id of the page that it writes.

        Raises `BusyError` beyond the limits.
        """
        now = time.time()
        with self._lock:
            while self._recent and self._recent[0] < now - 60:
                self._recent.popleft()
            if self._closed:
                raise BusyError("the server is stopping")
            if len(self._recent) >= self.limits.minute:
                raise BusyError(f"{self.limits.minute} jobs were started within a minute; wait a moment")
            if len(self._waiting()) >= self.limits.waiting:
                raise BusyError(f"{self.limits.waiting} jobs wait already; cancel some, or wait for them")
            self._recent.append(now)
            job = Job(secrets.token_hex(16), kind, title, arguments, now, order, report)
            self._jobs[job.id] = job
            self._changed(job)
            self._next()
            self._trim()
        self._save()
        return job

    def __getitem__(self, id: str) -> Job:
        """Raises `KeyError` for a job that is not on the list."""
        with self._lock:
            return self._jobs[id]

    def end(self, id: str) -> Job:
        """Cancel a job that waits or runs; take one that has ended off the list. Raises `KeyError`."""
        with self._lock:
            job = self._jobs[id]
            if job.state in ENDED:
                del self._jobs[id]
                self._changed(job)
            else:
                self._cancel(job)
        self._save()
        return job

    def _cancel(self, job: Job) -> None:
        process = job.process
        job.state, job.ended, job.order = "cancelled", time.time(), {}
        self._changed(job)
        if process is not None:
            process.stop("cancelled")
        else:
            self._next()

    # ------------------------------------------------------------------ telling

    def rows(self) -> list[dict[str, Any]]:
        """All jobs, the newest first."""
        with self._lock:
            places = {job.id: place for place, job in enumerate(self._waiting(), 1)}
            return [job.data(places.get(job.id)) for job in reversed(self._jobs.values())]

    def told(self, id: str) -> dict[str, Any]:
        """One job, with its result. Raises `KeyError`."""
        with self._lock:
            job = self._jobs[id]
            place = next((n for n, other in enumerate(self._waiting(), 1) if other is job), None)
            return {**job.data(place), "result": None if job.result is None else files.parse(job.result)}

    def since(self, version: int, known: set[str]) -> tuple[int, list[dict[str, Any]], list[str]]:
        """The version of now, the jobs that changed since a version, and of the `known` ids those that are gone."""
        with self._lock:
            places = {job.id: place for place, job in enumerate(self._waiting(), 1)}
            changed = [job.data(places.get(job.id)) for job in reversed(self._jobs.values()) if job.version > version]
            return self._version, changed, [id for id in known if id not in self._jobs]

    def watch(self, told: Callable[[], None]) -> Callable[[], None]:
        """Have `told` called after every change, from any thread; returns the function that ends this."""
        with self._lock:
            self._watchers.add(told)
        return lambda: self._watchers.discard(told)

    def _changed(self, job: Job) -> None:
        self._version += 1
        job.version = self._version
        for told in [*self._watchers]:
            told()

    # ------------------------------------------------------------------ running

    def _waiting(self) -> list[Job]:
        return [job for job in self._jobs.values() if job.state == "waiting"]

    def _next(self) -> None:
        """Start jobs that wait, as long as there is room; those behind them move up."""
        while not self._closed and (waiting := self._waiting()):
            if sum(job.process is not None for job in self._jobs.values()) >= self.limits.running:
                break
            self._start(waiting[0])
        for job in self._waiting():
            self._changed(job)

    def _start(self, job: Job) -> None:
        job.started = time.time()
        more = {"memory": self.limits.memory, "longest": self.limits.result}
        try:
            job.process = Process({**job.order, **more}, self._command)
        except OSError as error:
            job.state, job.ended, job.error = "failed", job.started, f"no process can be started ({error.strerror})"
        else:
            job.state, job.what = "running", "starting"
            threading.Thread(target=self._run, args=(job, job.process), daemon=True).start()
        self._changed(job)

    def _run(self, job: Job, process: Process) -> None:
        def told(what: str, done: int, total: int) -> None:
            with self._lock:
                if job.state == "running":
                    job.what, job.done, job.total = what[:300], done, total
                    self._changed(job)

        self._save()
        outcome = process.run(told, self.limits.seconds)
        with self._lock:
            job.process = None
            if job.state == "running":
                job.state, job.ended, job.error = "failed" if outcome.error else "done", time.time(), outcome.error
                job.result = None if outcome.result is None else json.dumps(outcome.result)
            job.order = {}
            self._changed(job)
            self._next()
            self._trim()
        self._save()

    def _trim(self) -> None:
        """Forget the oldest jobs that have ended, and the oldest results."""
        ended = [job for job in self._jobs.values() if job.state in ENDED and job.process is None]
        for job in ended[: max(0, len(self._jobs) - self.limits.kept)]:
            del self._jobs[job.id]
            self._changed(job)
        left = self.limits.results
        for job in reversed(self._jobs.values()):
            left -= len(job.result or "")
            if left < 0:
                job.result = None

    def close(self) -> None:
        """Stop all jobs, and wait a moment for their processes."""
        with self._lock:
            self._closed = True
            running = [job for job in self._jobs.values() if job.process is not None]
            for job in running:
                assert job.process is not None
                job.process.stop("the server was stopped")
        until = time.monotonic() + 4
        while any(job.process is not None for job in running) and time.monotonic() < until:
            time.sleep(0.02)
        self._save()
        with self._saving:
            if self._lock_file is not None:
                self._lock_file.close()
            self._lock_file = None
            self._kept = False

    # ------------------------------------------------------------------ the list on disk

    def _save(self) -> None:
        """Keep the list for the next server; where the folder cannot be written, it is not kept."""
        with self._saving:
            with self._lock:
                rows = [{name: getattr(job, name) for name in _SAVED} for job in self._jobs.values()]
            with suppress(OSError):
                if self._kept and (rows or self._file.exists()):
                    self._file.parent.mkdir(parents=True, exist_ok=True)
                    if self._mine():
                        files.write(self._file, json.dumps({"jobs": rows}))

    def _load(self) -> None:
        try:
            if not self._file.exists() or not self._mine():
                return
            found = files.read_json(self._file, 4 << 20)
            for row in [dict(row) for row in found["jobs"]][-self.limits.kept :]:
                job = Job(**{name: row[name] for name in _SAVED if name in row})
                if job.state not in ENDED:
                    job.state, job.error = "lost", "the server was stopped before it ended; start it again"
                self._jobs[str(job.id)] = job
        except (OSError, ValueError, TypeError, KeyError):
            self._jobs.clear()

    def _mine(self) -> bool:
        """Whether no other server keeps a list in this folder. Raises `OSError`."""
        if self._lock_file is None:
            held = self._file.with_name(_HELD).open("ab")
            try:
                import fcntl

                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:
                pass
            except OSError:
                held.close()
                return False
            self._lock_file = held
        return True
