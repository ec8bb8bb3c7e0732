"""Averages along a run: against the formula in float64, alone, interrupted, in other modes, and with statistics."""

from __future__ import annotations

import contextlib
import copy
import io

import pytest
import torch
from ambient import default_dtype
from torch import Tensor, nn

import weightspace as ws
from weightspace.net.errors import ArchitectureMismatch, WeightspaceError
from weightspace.training import averages

MAKE = {
    "ema": lambda: ws.ema(0.7),
    "swa": lambda: ws.swa(),
    "lawa": lambda: ws.lawa(3),
}


class Small(nn.Module):
    """Tied weights, a frozen one, an integer buffer, a mask of minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.still = nn.Parameter(torch.full((3,), 0.1), requires_grad=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("mask", torch.full((2,), -torch.inf))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def run(module: nn.Module, steps: int, seed: int = 0):
    """A run as a random walk: the module after each step."""
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        with torch.no_grad():
            for p in (p for p in module.parameters() if p.requires_grad):
                p.add_(torch.randn(p.shape, generator=g, dtype=torch.float64).to(p))
            if hasattr(module, "seen"):
                module.seen += 1
                module.mean.add_(torch.randn(4, generator=g).to(module.mean))
        yield module


def right(kind: str, points: list[Tensor]) -> Tensor:
    """The average of points by its formula, in float64."""
    rows = torch.stack([p.double() for p in points])
    if kind == "ema":
        weight = 0.7 ** torch.arange(len(rows) - 1, -1, -1).double()
        return (weight.view(-1, *[1] * (rows.dim() - 1)) * rows).sum(0) / weight.sum()
    return (rows[-3:] if kind == "lawa" else rows).mean(0)


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_it_is_the_formula_in_float64_rounded_once(kind, dtype):
    module, average, seen = Small().to(dtype if dtype != torch.complex64 else torch.float32), MAKE[kind](), []
    if dtype == torch.complex64:
        module = nn.ParameterDict({"w": nn.Parameter(torch.zeros(5, dtype=dtype))})
    for now in run(module, 40):
        average.update(now)
        seen.append({n: t.detach().clone() for n, t in [*now.named_parameters(), *now.named_buffers()]})
    net = average.net()
    assert average.calls == average.taken == 40
    for name, tensor in net.tensors.items():
        points = [point[name] for point in seen]
        if tensor.is_complex():
            exact = torch.complex(*(right(kind, [getattr(p, part) for p in points]) for part in ("real", "imag")))
            assert torch.allclose(tensor, exact.to(dtype), rtol=1e-6)
        elif tensor.is_floating_point():
            exact = right(kind, points)
            assert tensor.dtype == points[0].dtype
            near = {torch.float64: 1e-13, torch.float32: 1e-7, torch.bfloat16: 8e-3}[tensor.dtype]
            assert torch.allclose(tensor.double(), exact, rtol=near, atol=near), name
        else:
            assert torch.equal(tensor, points[-1]), name


@pytest.mark.parametrize("planted", ["not divided by the sum of weights", "one point too few"])
def test_a_wrong_average_would_be_seen(planted, monkeypatch):
    wrong = {"not divided by the sum of weights": lambda s, n: 0.3, "one point too few": lambda s, n: 1 / max(n - 1, 1)}
    monkeypatch.setattr(averages.Average, "_rate", wrong[planted])
    for kind in ("ema", "swa"):
        module, average, points = Small(), MAKE[kind](), []
        for now in run(module, 6):
            average.update(now)
            points.append(now.a.weight.detach().clone())
        assert not torch.allclose(average.net().weights["a.weight"].double(), right(kind, points), atol=1e-3)


@pytest.mark.parametrize("kind", MAKE)
def test_what_does_not_move_stays_bit_by_bit_and_masks_stay_infinite(kind):
    module, average = Small(), MAKE[kind]()
    for now in run(module, 17):
        average.update(now)
    net = average.net()
    assert torch.equal(net.weights["still"], torch.full((3,), 0.1)) and net.frozen == {"still"}
    assert torch.equal(net.state["mask"], torch.full((2,), -torch.inf))
    assert int(net.state["seen"]) == 17
    assert "b.weight" not in net.weights and net.module().b.weight is not None


@pytest.mark.parametrize("make", [*MAKE.values(), lambda: ws.ema(0.0), lambda: ws.lawa(1)])
@pytest.mark.parametrize("norm", [False, True])
def test_the_average_of_one_is_itself(make, norm):
    module = normed() if norm else Small()
    average = make()
    average.update(module)
    assert same(average.net(), ws.Net.of(module))


@pytest.mark.parametrize("make", [lambda: ws.ema(0.0), lambda: ws.lawa(1)])
def test_without_a_memory_it_is_the_last(make):
    module, average = normed(), make()
    for now in trained(module, 5):
        average.update(now)
    assert same(average.net(), ws.Net.of(module))


def test_a_long_memory_is_the_equal_mean():
    module, one, other = Small().double(), ws.ema(1 - 1e-9), ws.swa()
    for now in run(module, 20):
        one.update(now)
        other.update(now)
    assert float((one.net() - other.net()).norm()) < 1e-6


def test_swa_along_a_run_is_swa_of_its_networks():
    module, average, nets = Small(), ws.swa(), []
    for now in run(module, 12):
        average.update(now)
        nets.append(ws.Net.of(now))
    assert float((average.net() - ws.swa(nets)).norm()) < 1e-6


def test_every_and_start_choose_the_points():
    module, seen = Small(), []
    average = ws.swa(every=3, start=4)
    for now in run(module, 11):
        average.update(now)
        seen.append(ws.Net.of(now))
    assert (average.calls, average.taken) == (11, 2)
    assert float((average.net() - ws.swa([seen[6], seen[9]])).norm()) < 1e-6


def test_flows_give_networks_which_are_taken_too():
    net, task = ws.demo.example()
    path, average = ws.flow(net, ws.learn(task), ws.Adam(), steps=6, size=0.01, save=1), ws.swa()
    for point in path:
        average.update(point)
    assert float((average.net() - ws.swa(path)).norm()) < 1e-6


# ------------------------------------------------------------------ whatever the mode


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: default_dtype(torch.float64),
    ],
)
def test_modes_of_the_caller_change_nothing(kind, mode):
    module, other = Small(), None
    found = []
    for context in (contextlib.nullcontext, mode):
        other, average = copy.deepcopy(module), MAKE[kind]()
        for now in run(other, 6):
            with context():
                average.update(now)
        with context():
            found.append(average.net())
    assert same(*found) and not any(t.is_inference() for t in found[1].tensors.values())


def test_the_module_is_only_read_and_its_later_steps_are_not_seen():
    module, average = normed().train(), ws.lawa(2)
    average.update(module)
    before, seen = copy.deepcopy(module.state_dict()), average.net()
    assert module.training and all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
    with torch.no_grad():
        module[0].weight.zero_()
    assert seen.weights["0.weight"].any() and same(average.net(), seen)


# ------------------------------------------------------------------ interrupted


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("norm", [False, True])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(kind, norm):
    module = normed() if norm else Small()
    steps = trained if norm else run
    whole, first = MAKE[kind](), MAKE[kind]()
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(3))
    data = ws.Task(x) if norm else None
    for k, now in enumerate(steps(module, 9)):
        whole.update(now)
        if k < 5:
            first.update(now)
        if k == 4:
            file = io.BytesIO()
            torch.save(first.state_dict(), file)
            file.seek(0)
            second = MAKE[kind]()
            second.load_state_dict(torch.load(file, weights_only=True), now)
            assert same(second.net(data), first.net(data))
        if k >= 5:
            second.update(now)
    assert same(second.net(data), whole.net(data)) and repr(second) == repr(whole)


def test_a_saved_state_does_not_move_with_the_average():
    module, average = Small(), ws.ema(0.5)
    average.update(module)
    state = average.state_dict()
    before = state["points"][0]["a.weight"].clone()
    for now in run(module, 2):
        average.update(now)
    assert torch.equal(state["points"][0]["a.weight"], before)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "swa"}, "the state is of swa"),
        ({"settings": {"decay": 0.5, "every": 1, "start": 0}}, "decay=0.5"),
        ({"calls": "many"}, "no 'calls' of the kind"),
        ({"taken": None}, "no 'taken' of the kind"),
        ({"points": []}, "no 'points' of the kind"),
        ({"points": {0: 1}}, "the state has no points"),
        ({"points": {0: {"a.weight": 1.0}}}, "are not tensors"),
        ({"points": {0: {"a.weight": torch.zeros(2)}}}, "not the same architecture"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_is_taken_up(change, told):
    module, average = Small(), ws.ema(0.7)
    average.update(module)
    state, fresh = average.state_dict(), ws.ema(0.7)
    with pytest.raises(WeightspaceError, match=told):
        fresh.load_state_dict({**state, **change}, module)
    assert fresh.calls == fresh.taken == 0
    with pytest.raises(ArchitectureMismatch):
        fresh.load_state_dict(state, nn.Linear(4, 4))


# ------------------------------------------------------------------ running statistics


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def trained(module: nn.Module, steps: int):
    """The module in training mode after each step."""
    g = torch.Generator().manual_seed(1)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    module.train()
    for _ in range(steps):
        optimiser.zero_grad()
        x = 3 + torch.randn(16, 4, generator=g)
        nn.functional.cross_entropy(module(x), torch.randint(0, 3, (16,), generator=g)).backward()
        optimiser.step()
        yield module


@pytest.mark.parametrize("kind", MAKE)
def test_statistics_are_re_estimated_on_data_and_refused_without(kind):
    module, average = normed(), MAKE[kind]()
    for now in trained(module, 6):
        average.update(now)
    x = 3 + torch.randn(64, 4, generator=torch.Generator().manual_seed(2))
    with pytest.raises(WeightspaceError, match="the running statistics of norms do not fit averaged weights"):
        average.net()
    net = average.net(ws.Task(x))
    hidden = x @ net.weights["0.weight"].T + net.weights["0.bias"]
    assert torch.allclose(net.state["1.running_mean"], hidden.mean(0), atol=1e-5)
    assert torch.allclose(net.state["1.running_var"], hidden.var(0), rtol=1e-4)


def test_statistics_that_the_run_left_alone_stay():
    module, average = normed().eval(), ws.swa()
    module[1].running_mean.fill_(2.0)
    for now in run(module, 4):
        average.update(now)
    assert torch.equal(average.net().state["1.running_mean"], torch.full((6,), 2.0))


# ------------------------------------------------------------------ points, soups, bad input


def test_the_points_of_lawa_are_members_of_a_soup_or_of_an_ensemble():
    net, task = ws.demo.example()
    average = ws.lawa(3)
    for seed in range(5):
        average.update(ws.perturb(net, 0.3, seed=seed))
    assert [*average.members] == ["step 3", "step 4", "step 5"]
    assert same(average.members["step 5"], ws.perturb(net, 0.3, seed=4))
    found = ws.atlas.soup(average.members, task)
    assert found.losses[-1] <= float(task(average.members[found.kept[0]])) + 1e-6
    assert ws.swa().members == {}


def test_nan_is_not_taken_in():
    module, average = Small(), ws.ema(0.9)
    average.update(module)
    before = average.net()
    with torch.no_grad():
        module.a.weight[0, 0] = torch.nan
    with pytest.raises(WeightspaceError, match="a.weight holds NaN or infinity"):
        average.update(module)
    assert same(average.net(), before) and average.calls == average.taken == 1


def test_another_module_is_refused():
    average = ws.swa()
    average.update(nn.Linear(3, 2))
    for other in (nn.Linear(3, 4), nn.Linear(3, 2, bias=False), nn.Sequential(nn.Linear(3, 2))):
        with pytest.raises(ArchitectureMismatch):
            average.update(other)
    assert average.taken == 1


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: ws.ema(1.0), "a decay is a number from 0 and below 1, got 1.0"),
        (lambda: ws.ema(-0.1), "a decay"),
        (lambda: ws.ema(float("nan")), "a decay"),
        (lambda: ws.lawa(0), "last is 0"),
        (lambda: ws.swa(every=0), "every is 0"),
        (lambda: ws.swa(start=-1), "start is -1"),
        (lambda: ws.swa(ws.demo.example()[0]), "swa: nets"),
        (lambda: ws.swa([ws.demo.example()[0]], every=2), "`every` and `start` are for a training loop"),
        (lambda: ws.swa().net(), "no point was taken in after 0 calls"),
        (lambda: ws.swa().update("module"), "update"),
    ],
)
def test_bad_input_is_one_sentence(make, told):
    with pytest.raises(WeightspaceError, match=told):
        make()


def same(a: ws.Net, b: ws.Net) -> bool:
    return all(torch.equal(t, b.tensors[name]) and t.dtype == b.tensors[name].dtype for name, t in a.tensors.items())
