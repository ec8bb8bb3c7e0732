"""Jobs here and in processes give the same; what is killed, fails or was done before costs only itself."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.jobs import JobError, completed, opened, run
from weightspace.net.errors import WeightspaceError

ROOT = Path(__file__).parents[2]


def square(x):
    return x * x


def where(x):
    return os.getpid(), torch.get_num_threads(), x


def once(x, file):
    """Killed the first time that it runs."""
    if x == 2 and not Path(file).exists():
        Path(file).write_text("was here")
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def always(x):
    if x == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def failing(x):
    if x == 3:
        raise ws.WeightspaceError("three is refused; give another")
    if x == 4:
        raise KeyError("four")
    return x


class Hidden(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")
        self.file = open(os.devnull)


def unsendable(x):
    raise Hidden(x, x)


JOBS = {f"job {k}": (k,) for k in range(6)}


@pytest.fixture(scope="module")
def two():
    """Two processes, for all tests that do not kill them."""
    with opened(2) as pool:
        yield pool


@pytest.fixture(params=["here", "processes"])
def engine(request, two):
    return 1 if request.param == "here" else two


def test_results_are_those_of_the_function_in_the_order_of_the_jobs(engine):
    assert run(square, JOBS, engine=engine) == {f"job {k}": k * k for k in range(6)}
    assert [*run(square, JOBS, engine=engine)] == [*JOBS]
    assert run(square, {}, engine=engine) == {}


def test_closures_and_networks_are_sent(two):
    net, task = ws.demo.example()
    factor = 3.0
    found = run(lambda size: float(task(ws.perturb(net, size))) * factor, {s: (s,) for s in (0.1, 0.2)}, engine=two)
    assert found == {s: float(task(ws.perturb(net, s))) * factor for s in (0.1, 0.2)}


def test_processes_have_one_thread_and_are_kept_between_calls(two):
    first = run(where, {k: (k,) for k in range(8)}, engine=two)
    again = run(where, {k: (k,) for k in range(8)}, engine=two)
    pids = {pid for pid, _, _ in first.values()}
    assert pids == {pid for pid, _, _ in again.values()} and len(pids) == 2 and os.getpid() not in pids
    assert {threads for _, threads, _ in first.values()} == {1}


def test_what_is_done_is_not_run_again(engine, tmp_path):
    kept = {"job 1": "was there", "job 4": "too"}
    told = []
    found = run(square, JOBS, engine=engine, done=kept, progress=lambda done, whole: told.append((done, whole)))
    assert found["job 1"] == "was there" and found["job 5"] == 25 and kept == found
    assert told == [(k, 6) for k in range(2, 7)]
    assert run(failing, {"job 3": (3,)}, engine=engine, done={"job 3": 9}) == {"job 3": 9}


def test_results_are_written_as_they_come(engine):
    kept = {}
    for key, value in completed(square, JOBS, engine=engine, done=kept):
        assert kept[key] == value
    with pytest.raises(WeightspaceError):
        run(failing, {k: (k,) for k in (0, 1, 2, 3)}, engine=engine, done=kept)
    assert {0, 1} & {*kept}


def test_an_error_has_the_key_of_its_job(engine):
    with pytest.raises(ws.WeightspaceError, match="job some 3: three is refused; give another"):
        run(failing, {("some", 3): (3,)}, engine=engine)
    with pytest.raises(KeyError, match="four") as found:
        run(failing, {"job 4": (4,)}, engine=engine)
    assert found.value.__notes__ == ["in the job job 4"]
    assert run(square, JOBS, engine=engine)["job 2"] == 4  # the processes go on


def test_errors_and_functions_that_cannot_be_sent_are_told(two):
    with pytest.raises(RuntimeError, match="Hidden: 1 and 1"):
        run(unsendable, {"a": (1,)}, engine=two)
    lock = threading.Lock()
    with pytest.raises(JobError, match="cannot be sent to another process.*engine=1"):
        run(lambda x: lock, {"a": (1,)}, engine=two)
    with pytest.raises(JobError, match="arguments of a job cannot be sent"):
        run(square, {"a": (lock,)}, engine=two)


def test_a_process_that_is_killed_loses_its_one_job(two, tmp_path):
    file, told = tmp_path / "marker", []
    found = run(once, {k: (k, str(file)) for k in range(6)}, engine=two, progress=lambda done, whole: told.append(done))
    assert found == {k: k for k in range(6)} and file.exists() and told == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow  # every process that is killed is started again
def test_a_job_that_ends_its_process_twice_is_named(two):
    kept = {}
    with pytest.raises(JobError, match="job two: ended its process twice"):
        run(always, {"one": (1,), "two": (2,)}, engine=two, done=kept)
    assert kept in ({}, {"one": 1})


def test_a_pool_that_was_left_in_the_middle_works_again(two):
    for _ in completed(time.sleep, {k: (0.2,) for k in range(4)}, engine=two):
        break
    assert run(square, JOBS, engine=two)["job 3"] == 9


@pytest.mark.parametrize("engine", [0, -1, True, "four", "localhost"])
def test_engines_that_are_none_are_refused(engine):
    with pytest.raises(WeightspaceError, match="engine is"):
        run(square, JOBS, engine=engine)


SCRIPT = """
import sys, time, json
from pathlib import Path
from weightspace.jobs import run
class Store(dict):
    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        Path(sys.argv[1]).write_text(json.dumps(self))
def slow(x):
    time.sleep(0.2 if x < 4 else 600)
    return x
run(slow, {str(k): (k,) for k in range(6)}, engine=2, done=Store())
"""


@pytest.mark.slow
def test_ctrl_c_ends_the_processes_and_keeps_what_was_done(tmp_path):
    file = tmp_path / "kept.json"
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    at = subprocess.Popen([sys.executable, "-c", SCRIPT, str(file)], env=env, start_new_session=True)
    try:
        wait_for(lambda: file.exists() and len(json.loads(file.read_text() or "{}")) == 4)
        os.killpg(at.pid, signal.SIGINT)
        assert at.wait(20) != 0
        assert json.loads(file.read_text()) == {str(k): k for k in range(4)}
        wait_for(lambda: not running(at.pid))
    finally:
        if running(at.pid):
            os.killpg(at.pid, signal.SIGKILL)


def running(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(seen, seconds=90):
    end = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_pickled_weights_hold_their_numbers_once_and_stay_one_vector():
    import copy
    import pickle

    net = ws.Net.of(torch.nn.Sequential(*[torch.nn.Linear(30, 30) for _ in range(12)]))
    data = pickle.dumps(net.weights)
    assert len(data) < 1.2 * 4 * net.weights.numel + 5000
    for other in (pickle.loads(data), copy.deepcopy(net.weights)):
        assert torch.equal(other.flat(), net.weights.flat())
        other["3.weight"].zero_()
        assert not torch.equal(other.flat(), net.weights.flat())  # names are views of the flat buffer
    part = net.weights.shaped(torch.arange(3.0 * net.weights.numel)[: net.weights.numel])
    assert len(pickle.dumps(part)) < len(data) + 100
