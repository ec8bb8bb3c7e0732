"""Jobs on a cluster: the workers of a Dask scheduler, by its address."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable
from concurrent.futures import CancelledError
from importlib import import_module
from typing import Any

from weightspace.jobs.calls import Failed, Finished, Form, JobError, Key, called, packed

__all__ = ["Cluster"]

_PATIENCE = 15  # seconds in which a scheduler must answer


class Cluster:
    """The workers of a Dask scheduler, such as "tcp://10.0.0.1:8786"; each must have one thread.

    Dask runs the job of a worker that died on another one, three times by its default settings. Raises `JobError`
    without the package `distributed`, where no scheduler answers, and where it has no worker, or one of several
    threads: torch's settings are those of a process, so that jobs in threads would disturb each other.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        try:
            self._dask: Any = import_module("distributed")
        except ImportError as error:
            raise JobError(f"{address} needs Dask; install weightspace[dask]") from error
        try:
            self._client = self._dask.Client(address, timeout=_PATIENCE, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise JobError(f"no Dask scheduler answers at {address}; start one, or give its address") from error
        try:
            self._check()
        except BaseException:
            self.close(now=True)
            raise

    def _check(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError as error:
            raise JobError(f"the scheduler at {self.address} has no workers; start some") from error
        threads = [worker["nthreads"] for worker in self._client.scheduler_info()["workers"].values()]
        if wrong := [n for n in threads if n != 1]:
            raise JobError(f"a worker of {self.address} has {wrong[0]} threads; start workers with --nthreads 1")

    def finished(self, function: Callable[..., Any], jobs: dict[Key, tuple[Any, ...]]) -> Finished:
        """(key, result or `Failed`) of each job as it ends."""
        form, this = Form.of(function), f"weightspace-{uuid.uuid4().hex}"
        keys = {f"{this}-{number}": key for number, key in enumerate(jobs)}
        futures: list[Any] = []
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Sending large graph")
                # a task of its own, and not data that are lost with the worker that holds them
                held = self._client.submit(Form, form.digest, form.data, key=this, pure=False)
                self._client.replicate([held])  # jobs go first to where it is
                for name, key in keys.items():
                    data = packed(jobs[key], "the arguments of a job")
                    futures.append(self._client.submit(called, held, data, key=name, pure=False))
            for future in self._dask.as_completed(futures, loop=self._client.loop):
                yield keys[future.key], self._value(future)
        finally:
            if any(not future.done() for future in futures) and self._client.status == "running":
                self._client.cancel(futures, force=True)

    def _value(self, future: Any) -> Any:
        """The result of a job, or `Failed`."""
        try:
            how, value = future.result()
        except self._dask.scheduler.KilledWorker:
            return Failed(JobError("ended its worker again and again: killed, or out of memory"))
        except (CancelledError, OSError) as error:
            raise JobError(
                f"the scheduler at {self.address} went away; what was done is kept, so run it again"
            ) from error
        return Failed(value) if how == "failed" else value

    def close(self, now: bool = False) -> None:
        """Leave the scheduler; its workers go on to run."""
        self._client.close(timeout=1 if now else 10)
