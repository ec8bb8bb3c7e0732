"""Jobs in processes of this machine: one executor for every process, so that a process that dies loses its one job."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from typing import Any

from joblib.externals.loky import ProcessPoolExecutor

from weightspace.jobs.calls import Failed, Finished, Form, JobError, Key, begun, called, packed

__all__ = ["Processes"]

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Processes:
    """A pool of `count` processes with one thread each; started when first needed, and kept until `close`.

    A job whose process is killed runs again in a new one; a second time it has failed, since it may be the job that
    kills them.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._slots: dict[int, ProcessPoolExecutor] = {}
        self._sent: dict[int, str] = {}  # slot -> digest of the function that its process holds

    def finished(self, function: Callable[..., Any], jobs: dict[Key, tuple[Any, ...]]) -> Finished:
        """(key, result or `Failed`) of each job as it ends."""
        form, waiting, lost = Form.of(function), deque(jobs), Counter[Key]()
        free, running = [*range(self.count)], dict[Future[Any], tuple[int, Key]]()
        try:
            while waiting or running:
                while waiting and free:
                    key, slot = waiting.popleft(), free.pop()
                    running[self._begin(slot, form, packed(jobs[key], "the arguments of a job"))] = slot, key
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    slot, key = running.pop(future)
                    free.append(slot)
                    how, value = self._ended(future, slot)
                    if how == "done":
                        yield key, value
                    elif how == "failed":
                        yield key, Failed(value)
                    elif how == "lost" and lost[key]:
                        yield key, Failed(JobError("ended its process twice: killed, or out of memory"))
                    else:
                        lost[key] += how == "lost"
                        waiting.appendleft(key)
        finally:
            if running:
                self.close(now=True)

    def _begin(self, slot: int, form: Form, data: bytes) -> Future[Any]:
        """Start a job in a process, which is sent the function unless it holds it."""
        for _ in range(2):
            known = self._sent.get(slot) == form.digest
            executor = self._slots.get(slot)
            if executor is None:
                env = dict.fromkeys(_THREADS, "1")
                executor = self._slots[slot] = ProcessPoolExecutor(1, initializer=begun, env=env)
            try:
                future: Future[Any] = executor.submit(called, Form(form.digest, None) if known else form, data)
            except BrokenExecutor:  # it died while it had nothing to do
                self._forget(slot)
                continue
            self._sent[slot] = form.digest
            return future
        raise JobError("a process ends as soon as it is started; run with engine=1 to see why")

    def _ended(self, future: Future[Any], slot: int) -> tuple[str, Any]:
        try:
            how, value = future.result()
        except BrokenExecutor:
            self._forget(slot)
            return "lost", None
        if how == "unknown":  # the process was replaced, and the new one holds no function
            self._sent.pop(slot, None)
        return how, value

    def _forget(self, slot: int) -> None:
        self._sent.pop(slot, None)
        if (executor := self._slots.pop(slot, None)) is not None:
            executor.shutdown(wait=False, kill_workers=True)

    def close(self, now: bool = False) -> None:
        """End the processes; `now` without waiting for what they do."""
        for executor in self._slots.values():
            executor.shutdown(wait=True, kill_workers=now)
        self._slots.clear()
        self._sent.clear()
