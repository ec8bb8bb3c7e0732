"""Running many independent jobs here, in processes, or on a cluster: one meaning of `engine=` everywhere.

A job is a pure function of its arguments, known by a key that says all that its result depends on. Results come back in
any order and are written to a store as they do; a run that is begun again takes from there what was done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias, runtime_checkable

from weightspace.jobs.calls import Failed, Finished, Key, Pool, named
from weightspace.jobs.cluster import Cluster
from weightspace.jobs.processes import Processes
from weightspace.jobs.progress import Tick
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public

__all__ = ["Engine", "Results", "completed", "opened", "run", "serial"]

Engine: TypeAlias = int | str | Pool


@runtime_checkable
class Results(Protocol):
    """Where results are kept: a dict, or any mapping that writes them somewhere."""

    def __contains__(self, key: Any, /) -> bool: ...
    def __getitem__(self, key: Any, /) -> Any: ...
    def __setitem__(self, key: Any, value: Any, /) -> None: ...


class _Here:
    """This process, one job after the other."""

    def finished(self, function: Callable[..., Any], jobs: dict[Key, tuple[Any, ...]]) -> Finished:
        """(key, result or `Failed`) of each job, in order."""
        for key, arguments in jobs.items():
            try:
                value = function(*arguments)
            except Exception as error:
                value = Failed(error)
            yield key, value

    def close(self, now: bool = False) -> None:
        """Nothing is to be ended."""


def serial(engine: Engine) -> bool:
    """Whether an engine is this process."""
    return isinstance(engine, _Here) or (isinstance(engine, int) and engine == 1)


@public
@contextmanager
def opened(engine: Engine = 1) -> Iterator[Pool]:
    """The workers of an engine, started once for several calls of `run`, and ended with the context.

    1: this process; n: so many processes of this machine, with one thread each; an address such as
    "tcp://10.0.0.1:8786": the workers of that Dask scheduler (the extra `dask`). Raises `WeightspaceError` for anything
    else, and `JobError` where a scheduler does not answer.

    >>> from weightspace.jobs import opened, run
    >>> with opened(1) as pool:
    ...     run(pow, {"a": (2, 3)}, engine=pool), run(pow, {"b": (3, 2)}, engine=pool)
    ({'a': 8}, {'b': 9})
    """
    if not isinstance(engine, int | str):
        yield engine
        return
    pool = _made(engine)
    try:
        yield pool
    except BaseException:
        pool.close(now=True)
        raise
    pool.close()


def _made(engine: int | str) -> Pool:
    if isinstance(engine, bool) or (isinstance(engine, int) and engine < 1):
        raise WeightspaceError(f"engine is {engine}; give 1 (this process), a number of processes, or an address")
    if isinstance(engine, int):
        return Processes(engine) if engine > 1 else _Here()
    if "://" not in engine:
        raise WeightspaceError(f"engine is {engine!r}; give the address of a Dask scheduler, such as tcp://host:8786")
    return Cluster(engine)


@public
def completed(
    function: Callable[..., Any],
    jobs: Mapping[Any, tuple[Any, ...]],
    *,
    engine: Engine = 1,
    done: Results | None = None,
    progress: Tick | None = None,
) -> Iterator[tuple[Any, Any]]:
    """(key, function(*arguments)) of each job as it ends: those in `done` first, all others in any order. See `run`.

    >>> from weightspace.jobs import completed
    >>> sorted(completed(pow, {"a": (2, 3), "b": (3, 2)}))
    [('a', 8), ('b', 9)]
    """
    return _completed(function, dict(jobs), engine, done, progress)


def _completed(
    function: Callable[..., Any],
    jobs: dict[Key, tuple[Any, ...]],
    engine: Engine,
    done: Results | None,
    progress: Tick | None,
) -> Iterator[tuple[Key, Any]]:
    count = 0
    for key in [key for key in jobs if done is not None and key in done]:
        del jobs[key]
        count += 1
        assert done is not None
        yield key, done[key]
    whole = count + len(jobs)
    if progress is not None and count:
        progress(count, whole)
    if not jobs:
        return
    with opened(engine) as pool:
        for key, value in pool.finished(function, jobs):
            if isinstance(value, Failed):
                raise named(key, value.error)
            if done is not None:
                done[key] = value
            count += 1
            if progress is not None:
                progress(count, whole)
            yield key, value


@public
def run(
    function: Callable[..., Any],
    jobs: Mapping[Any, tuple[Any, ...]],
    *,
    engine: Engine = 1,
    done: Results | None = None,
    progress: Tick | None = None,
) -> dict[Any, Any]:
    """The results function(*arguments) of independent jobs, by key, in the order of `jobs`.

    `function` must be pure, and a key must say all that a result depends on. `engine`: 1 is this process, n so many
    processes with one thread each, "tcp://host:port" the workers of a Dask scheduler; or what `opened` gives. `done`: a
    mapping; what it holds is not run again, and every result is written there when it is there, so that a run which was
    interrupted goes on where it ended. A process that is killed loses its one job, which runs again; a job that ends
    its process twice is an error that names it. `progress(done, jobs)`. Results are equal for all engines where torch
    computes with one thread. Raises the error of the first job that has one, with its key.

    >>> from weightspace.jobs import run
    >>> kept = {"a": 8}
    >>> run(pow, {"b": (3, 2), "a": (2, 3)}, done=kept), kept
    ({'b': 9, 'a': 8}, {'a': 8, 'b': 9})
    """
    found = dict(_completed(function, dict(jobs), engine, done, progress))
    return {key: found[key] for key in jobs}
