"""A law: what the library sets for the whole process (default dtype, generator, kernels) is right in every thread."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ambient
import pytest
import torch

import weightspace as ws
from weightspace.inside.units import gates
from weightspace.net.state import exclusive, math_attention, seeded, settled

SOURCE = Path(ws.__file__).parent
DTYPES = (torch.float32, torch.float64)
OWN = {  # what sets the state of the process, and the files that may
    r"set_default_dtype|sdpa_kernel|set_fastpath_enabled": {"net/state.py"},
    r"torch\.manual_seed": {"net/state.py", "training/critical_periods.py"},
    r"torch\.random\.fork_rng": {"net/state.py", "training/critical_periods.py", "training/recorder.py"},
}


def nested(context, depth, seed):
    """Contexts of random dtypes inside one another: every default dtype seen is the one asked for."""
    order, wrong = random.Random(seed), []

    def inside(left):
        dtype = order.choice(DTYPES)
        with context(dtype):
            time.sleep(order.random() * 1e-3)
            wrong.extend([dtype] if torch.zeros(()).dtype is not dtype else [])
            if left:
                inside(left - 1)
                wrong.extend([dtype] if torch.zeros(()).dtype is not dtype else [])

    for _ in range(10):
        inside(depth)
    return wrong


def in_threads(call, number=8):
    with ThreadPoolExecutor(number) as threads:
        return list(threads.map(call, range(number)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_see_the_dtype_that_they_ask_for(dtype):
    with ambient.default_dtype(dtype):
        assert not any(in_threads(lambda seed: nested(settled, 3, seed)))
        assert torch.get_default_dtype() is dtype


def test_contexts_that_restore_what_they_found_are_caught():
    """The oracle sees the fault that it is for."""
    with ambient.default_dtype(torch.float32):
        assert any(in_threads(lambda seed: nested(ambient.default_dtype, 3, seed)))


def test_networks_answer_alike_in_any_thread():
    narrow = ws.demo.example()[0]
    nets = [narrow, narrow.to(torch.float64)]
    x = torch.linspace(-1, 1, 2 * 64).view(2, 1, 8, 8)
    expected = [net(x.to(net.dtype)) for net in nets]

    def answers(thread):
        k = thread % 2
        return all(torch.equal(nets[k](x.to(nets[k].dtype)), expected[k]) for _ in range(200))

    assert in_threads(answers) == [True] * 8
    assert torch.get_default_dtype() is torch.float32


def test_units_are_watched_alike_in_any_thread():
    net, task = ws.demo.example()
    tasks = [task.take(k + 1, seed=0) for k in range(8)]
    expected = [str(gates(t)(net)) for t in tasks]
    assert len(set(expected)) == 8
    assert in_threads(lambda k: [str(gates(tasks[k])(net)) for _ in range(20)]) == [[e] * 20 for e in expected]


def test_groups_are_read_alike_in_any_thread():
    net, task = ws.demo.example()
    expected = str(ws.Symmetry.of(net, task.example(2)))
    stderr = sys.stderr
    assert in_threads(lambda _: str(ws.Symmetry.of(net, task.example(2))), 4) == [expected] * 4
    assert (torch.get_default_dtype(), sys.stderr) == (torch.float32, stderr)


def test_networks_are_drawn_alike_in_any_thread():
    net, _ = ws.demo.example()
    expected = [ws.fresh(net, seed) for seed in range(8)]
    state = torch.get_rng_state()

    def drawn(seed):
        return max(float((ws.fresh(net, seed) - expected[seed]).norm()) for _ in range(50))

    assert in_threads(drawn) == [0.0] * 8
    assert torch.equal(torch.get_rng_state(), state)


def test_one_thread_at_a_time_is_alone():
    inside, worst = [0], [0]

    def enter(thread):
        for _ in range(20):
            with settled(DTYPES[thread % 2]), exclusive(), exclusive():
                inside[0] += 1
                worst[0] = max(worst[0], inside[0])
                with settled(DTYPES[(thread + 1) % 2]):
                    time.sleep(1e-4)
                inside[0] -= 1

    in_threads(enter)
    assert worst == [1]


def test_kernels_are_plain_until_the_last_thread_has_left():
    def flash():
        return torch.backends.cuda.flash_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()

    before, seen = flash(), []

    def attend(thread):
        for _ in range(30):
            with math_attention():
                time.sleep(1e-4 * (thread % 3))
                seen.append(flash())

    in_threads(attend)
    assert set(seen) == {(False, False)}
    assert flash() == before != (False, False)


def test_an_interrupt_while_waiting_leaves_the_state_as_it_was():
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with settled(torch.float64):
            entered.set()
            leave.wait()

    def interrupted(*_):
        raise KeyboardInterrupt

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait()
    timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), 2))
    with pytest.raises(KeyboardInterrupt), _handler(interrupted):
        timer.start()
        with settled(torch.float32):
            pytest.fail("two dtypes at once")
    leave.set()
    holder.join()
    assert torch.get_default_dtype() is torch.float32
    assert not any(in_threads(lambda seed: nested(settled, 2, seed), 4))


@contextlib.contextmanager
def _handler(call):
    before = signal.signal(signal.SIGINT, call)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_starts_anew():
    """The threads of the parent, which hold a dtype and are alone, are not in the child: it does not wait for them."""
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with settled(torch.float64), exclusive():
            entered.set()
            leave.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait()
    child = multiprocessing.get_context("fork").Process(target=_in_child)
    child.start()
    child.join(20)
    leave.set()
    holder.join()
    late = child.exitcode is None
    if late:
        child.kill()
    assert (late, child.exitcode) == (False, 0)


def _in_child():
    with settled(torch.float32), seeded(3):
        right = torch.zeros(()).dtype is torch.float32
    os._exit(0 if right and torch.get_default_dtype() is torch.float32 else 1)


def test_the_state_of_the_process_is_set_in_one_place():
    found = {
        pattern: {str(f.relative_to(SOURCE)) for f in SOURCE.rglob("*.py") if re.search(pattern + r"\b", f.read_text())}
        for pattern in OWN
    }
    assert found == OWN
