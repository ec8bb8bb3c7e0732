"""Cyclical step sizes: the published schedules, what is kept, interrupted runs, and bad input."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import weightspace as ws
from weightspace.net.errors import ArchitectureMismatch, WeightspaceError


def module(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def sgd(own: nn.Module, **how: object) -> torch.optim.SGD:
    return torch.optim.SGD(
        [{"params": own[0].parameters()}, {"params": own[3].parameters(), "lr": 0.02}], lr=0.1, **how
    )


def step(own: nn.Module, optimiser: torch.optim.Optimizer, k: int) -> None:
    g = torch.Generator().manual_seed(k)
    optimiser.zero_grad()
    F.cross_entropy(own(torch.randn(16, 4, generator=g)), torch.randint(0, 3, (16,), generator=g)).backward()
    optimiser.step()


def huang(k: int, c: int) -> float:
    """Equation 2 of the paper on snapshots, k counted from 1, as a share of the first step size."""
    return (math.cos(math.pi * ((k - 1) % c) / c) + 1) / 2


def garipov(k: int, c: int, low: float) -> float:
    """The schedule of the paper on fast geometric ensembling, k counted from 1."""
    t = ((k - 1) % c + 1) / c
    return (1 - 2 * t) + 2 * t * low if t <= 0.5 else (2 - 2 * t) * low + (2 * t - 1)


@pytest.mark.parametrize("rate", [float, torch.tensor])
@pytest.mark.parametrize("kind", ["snapshots", "fge"])
def test_the_step_sizes_are_those_of_the_papers(kind, rate):
    own = module()
    optimiser = sgd(own)
    for group in optimiser.param_groups:
        group["lr"] = rate(group["lr"])
    cycle = ws.snapshots(optimiser, 6) if kind == "snapshots" else ws.fge(optimiser, 6, low=0.05)
    for k in range(1, 19):
        share = huang(k, 6) if kind == "snapshots" else garipov(k, 6, 0.05)
        assert [float(group["lr"]) for group in optimiser.param_groups] == pytest.approx([0.1 * share, 0.02 * share])
        cycle.update(own)
    assert isinstance(optimiser.param_groups[0]["lr"], torch.Tensor if rate is torch.tensor else float)


@pytest.mark.parametrize(("kind", "at"), [("snapshots", [6, 12, 18]), ("fge", [3, 9, 15])])
def test_networks_are_kept_after_the_smallest_step_of_every_cycle(kind, at):
    own = module()
    optimiser = sgd(own)
    cycle, seen, sizes = getattr(ws, kind)(optimiser, 6), {}, {}
    for k in range(1, 19):
        sizes[k] = optimiser.param_groups[0]["lr"]
        step(own, optimiser, k)
        cycle.update(own)
        seen[k] = ws.Net.of(own)
    assert list(cycle.members) == [f"step {k}" for k in at]
    for k in at:
        assert sizes[k] == min(sizes.values()) or sizes[k] == pytest.approx(min(sizes.values()))
        assert same(cycle.members[f"step {k}"], seen[k])
    assert cycle.path().times == (0.0, 0.5, 1.0)
    x = torch.randn(5, 4)
    mean = torch.stack([seen[k](x).softmax(1) for k in at]).mean(0)
    assert torch.allclose(cycle.net()(x).exp(), mean, atol=1e-6)
    assert same(ws.swa(cycle.members.values()), ws.swa([seen[k] for k in at]))


def test_members_go_into_a_greedy_soup():
    own, task = module(), ws.Task(torch.randn(40, 4), torch.arange(40) % 3)
    optimiser = sgd(own)
    cycle = ws.fge(optimiser, 4)
    for k in range(12):
        step(own, optimiser, k)
        cycle.update(own)
    found = ws.atlas.soup(cycle.members, task)
    assert len(found.kept) + len(found.refused) == 3


def test_only_the_last_are_kept():
    own = module()
    cycle = ws.snapshots(sgd(own), 2, last=2)
    for _ in range(10):
        cycle.update(own)
    assert list(cycle.members) == ["step 8", "step 10"]


@pytest.mark.parametrize("kind", ["snapshots", "fge"])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(kind):
    own = module()
    optimiser = sgd(own, momentum=0.9)
    cycle = getattr(ws, kind)(optimiser, 4)
    for k in range(14):
        step(own, optimiser, k)
        cycle.update(own)
        if k == 8:
            file = io.BytesIO()
            torch.save([own.state_dict(), optimiser.state_dict(), cycle.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = module(1)
    other = sgd(again, momentum=0.9)
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    resumed = getattr(ws, kind)(other, 4)
    resumed.load_state_dict(saved[2], again)
    for k in range(9, 14):
        step(again, other, k)
        resumed.update(again)
    assert [*resumed.members] == [*cycle.members] and repr(resumed) == repr(cycle)
    assert all(same(a, b) for a, b in zip(resumed.members.values(), cycle.members.values(), strict=True))
    assert [g["lr"] for g in other.param_groups] == [g["lr"] for g in optimiser.param_groups]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "fge"}, "the state has kind fge"),
        ({"steps": 5}, "the state has steps 5"),
        ({"low": 0.5}, "the state has low 0.5"),
        ({"rates": [0.1]}, "1 step sizes, the optimiser 2 groups"),
        ({"rates": [0.1, "a"]}, "2 step sizes"),
        ({"calls": 1.5}, "no 'calls' of the kind"),
        ({"points": {4: "net"}}, "the state has no points"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, told):
    own = module()
    cycle = ws.snapshots(sgd(own), 4)
    for _ in range(4):
        cycle.update(own)
    state, fresh = cycle.state_dict(), ws.snapshots(sgd(own), 4)
    with pytest.raises(WeightspaceError, match=told):
        fresh.load_state_dict({**state, **change}, own)
    assert fresh.calls == 0 and not fresh.members
    with pytest.raises(ArchitectureMismatch):
        fresh.load_state_dict(state, nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda o: ws.snapshots(o, 0), "a cycle has 1 or more steps; got 0"),
        (lambda o: ws.fge(o, 5), "an even number"),
        (lambda o: ws.fge(o, 0), "a cycle has 2 or more steps"),
        (lambda o: ws.fge(o, 4, low=1.5), "low is a share"),
        (lambda o: ws.snapshots(o, 4, low=float("nan")), "low is a share"),
        (lambda o: ws.snapshots(o, 4, last=0), "last is 0"),
        (lambda o: ws.snapshots(o.param_groups, 4), "optimiser"),
        (lambda o: ws.snapshots(o, 4).net(), "0 networks were kept after 0 steps, and this needs 1"),
        (lambda o: ws.snapshots(o, 4).path(), "this needs 2"),
    ],
)
def test_bad_input_is_one_sentence(make, told):
    with pytest.raises(WeightspaceError, match=told):
        make(sgd(module()))


def test_nan_is_not_kept_and_the_module_is_only_read():
    own = module()
    before = copy.deepcopy(own.state_dict())
    cycle = ws.snapshots(sgd(own), 1)
    cycle.update(own)
    assert all(torch.equal(t, before[n]) for n, t in own.state_dict().items())
    with torch.no_grad():
        own[0].weight[0, 0] = torch.inf
    with pytest.raises(WeightspaceError, match="0.weight holds NaN or infinity"):
        cycle.update(own)
    assert len(cycle.members) == 1


def same(a: ws.Net, b: ws.Net) -> bool:
    return all(torch.equal(t, b.tensors[name]) for name, t in a.tensors.items())
