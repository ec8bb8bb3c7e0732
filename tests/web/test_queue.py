"""The queue of jobs: its limits, its order, cancelling, processes that die, and what the next server is told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from weightspace.web.queue import ENDED, BusyError, Limits, Queue
from weightspace.web.spawn import Process

# a process that speaks as `web/child.py` does, and does as its order says
SPEAKS = r"""
import json, os, signal, subprocess, sys, threading, time
order = json.loads(sys.stdin.buffer.readline())
def end():
    while os.read(0, 4096): pass
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=end, daemon=True).start()
def say(message): print(json.dumps(message), flush=True)
what = order["arguments"]["do"]
say({"what": what, "done": 1, "total": 2})
if what == "hang": time.sleep(600)
if what == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say({"what": "deaf", "done": 0, "total": 0})
    time.sleep(600)
if what == "die": os._exit(3)
if what == "killed": os.kill(os.getpid(), signal.SIGKILL)
if what == "nonsense": print("[1, 2", flush=True); time.sleep(600)
if what == "family":
    child = subprocess.Popen(["sleep", "600"])
    say({"what": str(child.pid), "done": 0, "total": 0})
    time.sleep(600)
if what == "spam":
    for k in range(3000): say({"what": "spam", "done": k, "total": 3000})
if what == "fail": say({"error": "no such thing"})
else: say({"result": {"size": "x" * order["arguments"].get("size", 1)}})
"""
COMMAND = (sys.executable, "-S", "-c", SPEAKS)


@pytest.fixture
def queue(tmp_path):
    made = Queue(tmp_path / "reports", command=COMMAND)
    yield made
    made.close()


def put(queue, do, **more):
    return queue.add("map", do, {"do": do}, {"arguments": {"do": do, **more}}, "r" * 32)


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def ended(job):
    until(lambda: job.state in ENDED and job.process is None)
    return job.state


def gone(number):
    try:
        with open(f"/proc/{number}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_job_tells_how_far_it_is_and_what_it_found(queue):
    job = put(queue, "echo")
    assert ended(job) == "done"
    told = queue.told(job.id)
    assert told["result"] == {"size": "x"} and told["report"] == "r" * 32 and told["found"]
    assert (told["done"], told["total"]) == (1, 2) and told["started"] <= told["ended"]


def test_one_runs_at_a_time_in_the_order_of_asking(queue):
    first, second, third = put(queue, "hang"), put(queue, "echo"), put(queue, "echo")
    until(lambda: first.what == "hang")
    assert [row["state"] for row in queue.rows()] == ["waiting", "waiting", "running"]
    assert [row["place"] for row in queue.rows()] == [2, 1, None]
    queue.end(first.id)
    assert ended(second) == ended(third) == "done" and second.started >= first.ended and third.started >= second.ended


def test_several_run_where_that_is_wanted(tmp_path):
    queue = Queue(tmp_path, Limits(running=2), COMMAND)
    jobs = [put(queue, "hang") for _ in range(3)]
    until(lambda: [job.state for job in jobs] == ["running", "running", "waiting"])
    numbers = [job.process.id for job in jobs[:2]]
    queue.close()  # as the server does when it stops
    assert all(job.process is None and job.state == "lost" for job in jobs[:2])
    assert all(gone(number) for number in numbers)


@pytest.mark.parametrize(
    ("do", "said"),
    [
        ("die", "ended without an answer (code 3)"),
        ("killed", "SIGKILL"),
        ("fail", "no such thing"),
        ("nonsense", "something else"),
    ],
)
def test_a_process_that_ends_badly_is_told_and_the_next_one_runs(queue, do, said):
    job, after = put(queue, do), put(queue, "echo")
    assert ended(job) == "failed" and said in queue.told(job.id)["error"]
    assert queue.told(job.id)["report"] is None and ended(after) == "done"


def test_cancelling_ends_the_process_and_what_it_started(queue):
    job = put(queue, "family")
    until(lambda: job.what.isdecimal())
    number, child = job.process.id, int(job.what)
    assert not gone(child)
    assert queue.end(job.id).state == "cancelled"
    assert ended(job) == "cancelled" and job.error is None
    until(lambda: gone(number) and gone(child))


def test_a_process_that_does_not_listen_is_ended_all_the_same(queue):
    job = put(queue, "stubborn")
    until(lambda: job.what == "deaf")
    number = job.process.id
    begun = time.monotonic()
    queue.end(job.id)
    assert ended(job) == "cancelled" and gone(number) and time.monotonic() - begun < 20


def test_one_that_waits_is_cancelled_without_a_process(queue):
    first, second = put(queue, "hang"), put(queue, "hang")
    assert queue.end(second.id).state == "cancelled" and second.process is None and second.started is None
    queue.end(first.id)
    assert ended(first) == "cancelled" and queue.end(first.id) and [row["id"] for row in queue.rows()] == [second.id]


def test_a_job_that_takes_too_long_is_ended(tmp_path):
    queue = Queue(tmp_path, Limits(seconds=0.3), COMMAND)
    job = put(queue, "hang")
    assert ended(job) == "failed" and "longer than" in job.error
    queue.close()


def test_too_many_waiting_and_too_many_in_a_minute_are_refused(tmp_path):
    queue = Queue(tmp_path, Limits(waiting=3, minute=5), COMMAND)
    jobs = [put(queue, "hang") for _ in range(4)]
    with pytest.raises(BusyError, match="3 jobs wait"):
        put(queue, "hang")
    queue.end(jobs[1].id)
    put(queue, "hang")
    queue.end(jobs[2].id)
    with pytest.raises(BusyError, match="within a minute"):
        put(queue, "hang")
    queue._recent = type(queue._recent)(t - 61 for t in queue._recent)
    put(queue, "hang")
    queue.close()
    with pytest.raises(BusyError, match="stopping"):
        put(queue, "echo")


def test_what_is_kept_is_bounded(tmp_path):
    queue = Queue(tmp_path, Limits(kept=5, minute=1000, results=250, running=4), COMMAND)
    jobs = []
    for _ in range(9):
        jobs.append(put(queue, "echo", size=100))
        ended(jobs[-1])
    rows = queue.rows()
    assert [row["id"] for row in rows] == [job.id for job in reversed(jobs[-5:])]
    assert [row["found"] for row in rows] == [True, True, False, False, False]
    assert all(not job.order for job in jobs)
    assert queue.told(rows[-1]["id"])["result"] is None
    queue.close()


def test_changes_are_told_with_what_is_gone(queue):
    told = []
    end = queue.watch(lambda: told.append(1))
    job = put(queue, "spam")
    assert ended(job) == "done" and len(told) > 3
    version, changed, gone = queue.since(-1, set())
    assert [row["id"] for row in changed] == [job.id] and gone == []
    assert queue.since(version, {job.id})[1:] == ([], [])
    queue.end(job.id)
    assert queue.since(version, {job.id})[1:] == ([], [job.id])
    end()
    before = len(told)
    ended(put(queue, "echo"))
    assert len(told) == before


def test_the_next_server_tells_which_jobs_were_lost(tmp_path):
    """The list is that of a server that died: its lock went with it."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom weightspace.web.queue import Queue\n"
        f"queue = Queue(Path({str(tmp_path)!r}), command={COMMAND!r})\n"
        "jobs = [queue.add('map', do, {}, {'arguments': {'do': do}}, None) for do in ('echo', 'hang', 'echo')]\n"
        "import time\n"
        "while jobs[1].what != 'hang': time.sleep(.01)\n"
        "queue._save(); print(jobs[1].process.id, flush=True); time.sleep(600)"
    )
    source = str(Path(__file__).parents[2] / "src")
    server = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": source}
    )
    number = int(server.stdout.readline())
    beside = Queue(tmp_path, command=COMMAND)
    assert beside.rows() == []  # the list is another server's, which runs
    kept = (tmp_path / ".weightspace-jobs.json").read_bytes()
    ended(put(beside, "echo"))
    beside.close()
    assert (tmp_path / ".weightspace-jobs.json").read_bytes() == kept
    server.send_signal(signal.SIGKILL)
    server.wait()
    server.stdout.close()
    until(lambda: gone(number))  # the process of the job ended with its server
    queue = Queue(tmp_path, command=COMMAND)
    assert [row["state"] for row in queue.rows()] == ["lost", "lost", "done"]
    assert "stopped" in queue.rows()[0]["error"]
    queue.close()


@pytest.mark.parametrize("text", ["", "{", '{"jobs": 3}', '{"jobs": [{"id": []}]}', "[]", '{"jobs": [3]}'])
def test_a_damaged_list_is_no_list(tmp_path, text):
    (tmp_path / ".weightspace-jobs.json").write_text(text)
    queue = Queue(tmp_path, command=COMMAND)
    assert queue.rows() == []
    assert ended(put(queue, "echo")) == "done"
    queue.close()
    assert len(json.loads((tmp_path / ".weightspace-jobs.json").read_text())["jobs"]) == 1


def test_a_folder_that_cannot_be_written_does_not_matter(tmp_path):
    (tmp_path / "file").write_text("")
    queue = Queue(tmp_path / "file" / "reports", command=COMMAND)
    assert ended(put(queue, "echo")) == "done"
    queue.close()


def test_a_command_that_cannot_be_started_is_told(tmp_path):
    queue = Queue(tmp_path, command=("/nowhere/python",))
    job = put(queue, "echo")
    assert ended(job) == "failed" and "no process can be started" in job.error
    queue.close()


def test_the_token_is_not_handed_to_the_process(monkeypatch):
    monkeypatch.setenv("WEIGHTSPACE_TOKEN", "a-secret-of-sixteen")
    script = "import os, json, sys; sys.stdin.readline(); print(json.dumps({'result': dict(os.environ)}))"
    outcome = Process({}, (sys.executable, "-S", "-c", script)).run(lambda *_: None, 20)
    assert "WEIGHTSPACE_TOKEN" not in outcome.result and outcome.result["OMP_NUM_THREADS"] == "1"
