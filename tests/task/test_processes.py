"""A task shared out among the processes of torchrun has the loss, gradient and products of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import weightspace as ws
from weightspace.task import TaskError, sharded

ROOT = Path(__file__).parents[2]


def cases():
    """Tasks by name: uneven parts, ignored labels, class weights, other sums, and examples read one by one."""
    net, task = ws.demo.example()
    x, y = task.example(37), task.labels(37)
    some = torch.where(torch.arange(37) < 15, -100, y)  # one process has almost none
    weight, targets = torch.linspace(0.2, 3, 10), torch.randn(37, 10, generator=torch.Generator().manual_seed(0))
    tasks = {
        "uneven": ws.Task(x, y, batch=5),
        "ignored": ws.Task(x, some),
        "weights": ws.Task(x, y, loss=nn.CrossEntropyLoss(weight)),
        "sum": ws.Task(x, y, aggregate="sum"),
        "root": ws.Task(x, targets, metric="l2", aggregate="l2"),
        "items": ws.Task(torch.utils.data.TensorDataset(x, y)),
        "joined": ws.Task(x[:5], y[:5]) | ws.Task(x[5:], y[5:]),
    }
    return net, tasks


def measured(net, task, shared):
    v = net.weights.randn(0).flat()
    both = torch.stack([v, v.flip(0)], 1)
    found = [shared(net), *(ws.gradient(shared, net).flat())]
    for make in (ws.gauss_newton, ws.hessian):
        if task.aggregate != "l2":
            a = shared.operator(make, net) if isinstance(shared, ws.task.Sharded) else make(net, task)
            found += [*(a @ v), *(a @ both).flatten()]
            if make is ws.gauss_newton:
                found += [*a.exact_diagonal()]
    path = ws.flow(net, shared, ws.Euclidean(), steps=3, size=0.1)
    found += [*path[-1].weights.flat()]
    return torch.stack([torch.as_tensor(value).double() for value in found])


def main(out):
    dist.init_process_group("gloo")
    net, tasks = cases()
    rank = dist.get_rank()
    told = {}
    for name, task in tasks.items():
        shared = sharded(task)
        assert shared.size == 2 and len(shared.part) in (18, 19)
        told[name] = measured(net, task, shared).tolist()
    Path(out, f"{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


@pytest.mark.slow  # two processes load torch
def test_two_processes_of_torchrun_give_what_one_does(tmp_path):
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    words = ["--standalone", "--nproc-per-node", "2", __file__, str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", *words], env=env, capture_output=True)
    assert not done.returncode, done.stderr.decode()[-3000:]
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one == two  # both processes know all
    net, tasks = cases()
    for name, task in tasks.items():
        alone, found = measured(net, task, task), torch.tensor(one[name])
        assert float((alone - found).norm() / alone.norm()) < 1e-6, name
        half = ws.Task(task.example(18), task.labels(18), loss=task.metric, aggregate=task.aggregate) if (
            callable(task.metric)
        ) else task.take(18)  # fmt: skip
        assert abs(float(half(net)) - float(alone[0])) > 1e-4 * abs(float(alone[0])), "a part alone would have passed"


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_one_process_holds_all(one_process):
    net, tasks = cases()
    for name, task in tasks.items():
        torch.testing.assert_close(measured(net, task, sharded(task)), measured(net, task, task), msg=name)


def test_what_cannot_be_shared_out_is_refused(one_process):
    net, task = ws.demo.example()
    with pytest.raises(TaskError, match="not a sum over examples"):
        sharded(ws.Task(task.example(9), task.labels(9), aggregate="linf"))
    with pytest.raises(TaskError, match="not symmetric"):
        sharded(task).operator(ws.jacobian, net)
    with pytest.raises(ws.WeightspaceError, match="takes a Task"):
        ws.gauss_newton(net, sharded(task))  # a part of the sum would be wrong in silence


def test_processes_that_were_not_started_are_asked_for():
    with pytest.raises(TaskError, match="start them with torchrun"):
        sharded(ws.demo.example()[1])


def test_a_plain_task_takes_no_notice_of_processes(one_process):
    net, task = ws.demo.example()
    before = float(task(net))
    assert float(task(net)) == before and type(task) is ws.Task


if __name__ == "__main__":
    main(sys.argv[1])
