"""What a newcomer does wrong, or finds surprising: each was met by one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from weightspace.checkpoint import stored
from weightspace.checkpoint.files import FileNote
from weightspace.commands.compare import compare
from weightspace.metric.distance import euclidean
from weightspace.net.errors import ArchitectureMismatch, SymmetryError, WeightspaceError
from weightspace.net.net import Net
from weightspace.symmetry.align.repair import repair, reset_statistics
from weightspace.symmetry.symmetry import Symmetry
from weightspace.task.task import Task

SOURCE = Path(__file__).parents[2] / "src"


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def data(n: int = 40) -> Task:
    return Task(torch.randn(n, 6, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 3)


def test_a_network_that_writes_into_its_input_leaves_the_data_alone():
    torch.manual_seed(0)
    x = torch.randn(20, 6)
    kept = x.clone()
    net = Net.of(nn.Sequential(nn.ReLU(inplace=True), *mlp()))
    task = Task(x, torch.arange(20) % 3)
    assert float(task(net)) == float(task(net))
    group = Symmetry.of(net, x[:2])
    group.match(group.sample(seed=1)(net), to=net, data=task)
    assert torch.equal(x, kept)
    assert [axis.size for axis in group.axes if "permutation" in axis.kinds] == [8]


def test_align_without_data_never_moves_farther_away():
    for seed in range(5):
        parent = Net.of(nn.Sequential(*mlp(seed), nn.LayerNorm(3), nn.Linear(3, 3)))
        child = parent + 0.05 * parent.weights.randn(seed)
        group = Symmetry.of(parent, torch.zeros(2, 6))
        assert euclidean(parent, group.align(child, to=parent)) <= euclidean(parent, child) * (1 + 1e-6)


class Normed(nn.Module):
    """Small matrices and many gains near one: as unrelated as two networks can be."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 64), nn.Linear(64, 3)
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(12))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for norm in self.norms:
            h = norm(h)
        return self.last(h)


def test_gains_of_norms_do_not_make_strangers_related():
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        nets.append(Net.of(Normed()))
    group = Symmetry.of(nets[0], torch.zeros(2, 6))
    assert compare(*nets, group).verdict.kind == "independent"
    child = nets[0] + 0.01 * nets[0].weights.randn(0)
    assert compare(nets[0], child, group).verdict.kind == "related"


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.bool])
def test_weights_that_are_no_floating_point_numbers_are_refused(dtype):
    net = Net.of(mlp())
    tensors = {name: tensor.to(dtype) for name, tensor in net.tensors.items()}
    with pytest.raises(ArchitectureMismatch, match="floating-point"):
        net.load(tensors)


def test_a_module_that_draws_at_random_is_refused():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + torch.randn(len(x), 3)

    with pytest.raises(SymmetryError, match="random"):
        Symmetry.of(Noisy(), torch.zeros(2, 6))


@pytest.mark.parametrize("kinds", ["rotation", ("permutation", "bogus")])
def test_kinds_that_are_none_are_refused(kinds):
    group = Symmetry.of(mlp(), torch.zeros(2, 6))
    with pytest.raises(SymmetryError, match="unknown kind"):
        group.sample(seed=0, kinds=kinds)


def test_one_kind_may_be_given_by_its_name():
    net = Net.of(mlp())
    group = Symmetry.of(net, torch.zeros(2, 6))
    assert euclidean(net, group.sample(seed=0, kinds="permutation")(net)) > 1


@pytest.mark.parametrize(
    ("ends", "task", "words"),
    [
        (lambda a: [], data, "no networks"),
        (lambda a: [Net.of(nn.Linear(6, 3))], data, "architecture"),
        (lambda a: [a, a], lambda: Task(torch.randn(30, 7), torch.arange(30) % 3), "shape"),
    ],
)
def test_a_repair_that_cannot_be_says_why(ends, task, words):
    a = Net.of(mlp())
    with pytest.raises(WeightspaceError, match=words):
        repair(a, ends(a), task())


def test_statistics_of_data_that_does_not_fit():
    net = Net.of(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)))
    with pytest.raises(WeightspaceError, match="inputs of shape"):
        reset_statistics(net, Task(torch.randn(30, 5)))


@pytest.mark.filterwarnings("ignore::weightspace.checkpoint.files.FileNote")
@pytest.mark.parametrize("prefix", ["model.", "net.body."])
def test_a_prefix_that_all_names_have_is_taken_off(tmp_path, prefix):
    net = Net.of(mlp())
    torch.save({"state_dict": {prefix + n: t.clone() for n, t in net.tensors.items()}}, tmp_path / "x.ckpt")
    stored.check(net, tmp_path / "x.ckpt")
    read, source, _ = stored.load(net, tmp_path / "x.ckpt")
    assert euclidean(read, net) == 0 and [*source] == [*net.tensors]
    other = {prefix + n: t.clone() for n, t in net.tensors.items()} | {"other.weight": torch.zeros(1)}
    torch.save(other, tmp_path / "y.pt")
    with pytest.warns(FileNote, match="other.weight"):  # a loss, say, that was kept beside the network
        assert euclidean(stored.load(net, tmp_path / "y.pt")[0], net) == 0


TAKEN = [
    "ws.line(m, m)",
    "ws.mean([m, m], group)",
    "ws.swa([m, m])",
    "ws.euclidean(m, a)",
    "group.align(m, to=a)",
    "group.align(a, to=m)",
    "group.sample(seed=0)(m)",
    "group.canonical(m)",
    "ws.reset_statistics(m, t)",
    "ws.repair(m, [a, a], t)",
    "ws.repair(a, [m, m], t)",
    "ws.Pullback(loader).drift(m, a)",
]
REFUSED = [
    "a.load('weights.pt')",
    "a - m",
    "ws.line('weights.pt', a)",
    "ws.mean([m, m.state_dict()], group)",
    "group.align(m.state_dict(), to=a)",
    "group.sample(seed=0)(m.state_dict())",
    "ws.euclidean(type(m), a)",
]


def test_a_module_is_taken_where_a_net_is_meant_and_all_else_is_named():
    """As a user meets it: without the checks of signatures that these tests run under."""
    program = f"""
import torch, weightspace as ws
m = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
a = ws.Net.of(m)
group, t = ws.Symmetry.of(a, torch.zeros(2, 6)), ws.Task(torch.randn(30, 6), torch.arange(30) % 3)
data = torch.utils.data.TensorDataset(torch.randn(30, 6), torch.arange(30) % 3)
loader = torch.utils.data.DataLoader(data, batch_size=8)
for call in {TAKEN!r}:
    eval(call)
for call in {REFUSED!r}:
    try:
        eval(call)
        print(call, 'passed')
    except (ws.WeightspaceError, TypeError) as error:
        if 'give' not in str(error) and 'unsupported operand' not in str(error):
            print(call, error)
    except Exception as error:
        print(call, type(error).__name__, error)
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
