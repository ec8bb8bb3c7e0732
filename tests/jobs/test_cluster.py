"""Jobs on a real Dask scheduler with two worker processes on loopback, one of them killed in the middle."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from weightspace.jobs import JobError, run

distributed = pytest.importorskip("distributed")
ROOT = Path(__file__).parents[2]
ENV = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}


def slow(x):
    time.sleep(0.3)
    return x, os.getpid()


def always(x):
    if x == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def failing(x):
    raise ValueError(f"{x} is refused")


def started(*words):
    return subprocess.Popen(
        [sys.executable, "-m", *words], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def scheduler(number):
    return started("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(number), "--no-dashboard")


def worker(address, threads=1):
    return started(
        "distributed.cli.dask_worker", address, "--nthreads", str(threads), "--nworkers", "1", "--no-dashboard",
        "--host", "127.0.0.1",
    )  # fmt: skip


def ended(processes):
    for process in processes:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait(20)


pytestmark = pytest.mark.slow  # every worker loads torch


@pytest.fixture(scope="module")
def address():
    number = port()
    at = f"tcp://127.0.0.1:{number}"
    processes = [scheduler(number)]
    try:
        with distributed.Client(at, timeout=60, set_as_default=False) as client:
            processes += [worker(at), worker(at)]
            client.wait_for_workers(2, timeout=60)
        yield at
    finally:
        ended(processes)


def test_results_are_those_of_one_process_and_both_workers_are_used(address):
    found = run(slow, {k: (k,) for k in range(12)}, engine=address)
    assert {key: value for key, (value, _) in found.items()} == {k: k for k in range(12)}
    assert len({pid for _, pid in found.values()}) == 2


def test_a_worker_that_is_killed_loses_its_one_job(address):
    kept, killed = {}, []

    def kill(done, whole):
        if done == 2:
            os.kill(kept[next(iter(kept))][1], signal.SIGKILL)
            killed.append(done)

    found = run(slow, {k: (k,) for k in range(10)}, engine=address, done=kept, progress=kill)
    assert killed and {key: value for key, (value, _) in found.items()} == {k: k for k in range(10)}


def test_a_job_that_kills_its_workers_is_named(address):
    with pytest.raises(JobError, match="job two: ended its worker again and again"):
        run(always, {"two": (2,)}, engine=address)


def test_errors_have_the_key_of_their_job(address):
    with pytest.raises(ValueError, match="3 is refused") as found:
        run(failing, {"three": (3,)}, engine=address)
    assert found.value.__notes__ == ["in the job three"]


def test_a_scheduler_that_goes_away_is_told_and_the_next_run_goes_on(address):
    number = port()
    at, kept = f"tcp://127.0.0.1:{number}", {}
    processes = [scheduler(number)]
    try:
        with distributed.Client(at, timeout=60, set_as_default=False) as client:
            processes.append(worker(at))
            client.wait_for_workers(1, timeout=60)

        def kill(done, whole):
            if done == 2:
                ended(processes[:1])

        with pytest.raises(JobError, match="went away; what was done is kept"):
            run(slow, {k: (k,) for k in range(8)}, engine=at, done=kept, progress=kill)
    finally:
        ended(processes)
    before = dict(kept)
    assert 2 <= len(before) < 8
    found = run(slow, {k: (k,) for k in range(8)}, engine=address, done=kept)
    assert len(found) == 8 and before.items() <= found.items()


def test_workers_of_several_threads_and_schedulers_without_workers_are_refused(monkeypatch):
    monkeypatch.setattr("weightspace.jobs.cluster._PATIENCE", 3)
    number = port()
    at = f"tcp://127.0.0.1:{number}"
    with pytest.raises(JobError, match="no Dask scheduler answers"):
        run(slow, {0: (0,)}, engine=at)
    processes = [scheduler(number)]
    try:
        with distributed.Client(at, timeout=60, set_as_default=False) as client:
            with pytest.raises(JobError, match="has no workers"):
                run(slow, {0: (0,)}, engine=at)
            processes.append(worker(at, threads=2))
            client.wait_for_workers(1, timeout=60)
            with pytest.raises(JobError, match="2 threads; start workers with --nthreads 1"):
                run(slow, {0: (0,)}, engine=at)
    finally:
        ended(processes)


def test_without_dask_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(JobError, match=r"install weightspace\[dask\]"):
        run(slow, {0: (0,)}, engine="tcp://127.0.0.1:1")
