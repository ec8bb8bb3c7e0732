"""One job as a worker runs it: a function that is sent once to every worker, its arguments, and how it ended.

What is unpickled here comes from the process that started the worker, or from a cluster that the user named: never from
a file.
"""

from __future__ import annotations

import hashlib
import pickle
import signal
import threading
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from joblib.externals.loky.backend.reduction import dumps

from weightspace.net.errors import WeightspaceError

__all__ = ["Failed", "Finished", "Form", "JobError", "Key", "Pool", "begun", "called", "named", "packed", "told"]

Key: TypeAlias = Hashable
Finished: TypeAlias = Iterator[tuple[Key, Any]]

_HELD: dict[str, Callable[..., Any]] = {}  # in a worker: the last function that it was sent, by its digest
_LOCK = threading.Lock()


class JobError(WeightspaceError):
    """A job that ended its worker, or cannot be sent to one."""


@runtime_checkable
class Pool(Protocol):
    """A place where jobs run."""

    def finished(self, function: Callable[..., Any], jobs: dict[Key, tuple[Any, ...]]) -> Finished:
        """(key, result or `Failed`) of each job as it ends."""

    def close(self, now: bool = False) -> None:
        """End the workers; `now` without waiting for what they do."""


@dataclass(frozen=True)
class Failed:
    """The error that ended a job."""

    error: BaseException


@dataclass(frozen=True)
class Form:
    """A function as it is sent: its bytes, and their digest."""

    digest: str
    data: bytes | None

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Form:
        """The form of a function. Raises `JobError` for one that cannot be sent."""
        data = packed(function, getattr(function, "__qualname__", type(function).__name__))
        return cls(hashlib.sha256(data).hexdigest(), data)


def packed(value: Any, what: str) -> bytes:
    """A value as bytes that another process can read. Raises `JobError` for what cannot be sent."""
    try:
        return bytes(dumps(value))
    except Exception as error:
        raise JobError(f"{what} cannot be sent to another process ({error}); run with engine=1") from error


def called(form: Form, data: bytes) -> tuple[str, Any]:
    """The result of a job in a worker: ("done", value), ("failed", error), or ("unknown", None): function not sent.

    `data` holds the arguments. Jobs of one process run one after the other: torch's settings are global.
    """
    with _LOCK:
        try:
            if form.data is not None and form.digest not in _HELD:
                function = pickle.loads(form.data)
                _HELD.clear()
                _HELD[form.digest] = function
            if form.digest not in _HELD:
                return "unknown", None
            return "done", _HELD[form.digest](*pickle.loads(data))
        except Exception as error:
            return "failed", _sendable(error)


def _sendable(error: Exception) -> Exception:
    error.__traceback__ = error.__cause__ = error.__context__ = None
    try:
        pickle.loads(dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def begun() -> None:
    """A worker's start: Ctrl-C is for the process that it works for, and one thread for each."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def named(key: Key, error: BaseException) -> BaseException:
    """The error of a job with the key in its message, or, where it is no error of the user, in a note."""
    if isinstance(error, WeightspaceError):
        error.args = (f"job {told(key)}: {error}", *error.args[1:])
    else:
        error.add_note(f"in the job {told(key)}")
    return error


def told(key: Key) -> str:
    """A key for a reader."""
    return " ".join(map(told, key)) if isinstance(key, tuple) else str(key)
