"""An average mended layer by layer: fixed points, recovery, moments, what is left alone."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor, nn

from weightspace.net.average import average
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.symmetry.align.refit import refit, rescale
from weightspace.symmetry.align.repair import repair, reset_statistics
from weightspace.symmetry.symmetry import Symmetry, mean
from weightspace.task.task import Task


class Residual(nn.Module):
    """A stem, a block with a norm, a skip, a head."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(2, 6, 3, stride=2, padding=1), nn.Conv2d(6, 6, 3, padding=2, dilation=2)
        self.norm, self.head = norm, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        return self.head((h + self.norm(self.conv(h)).relu()).mean((2, 3)))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3))


KINDS = {
    "mlp": (mlp, (5,)),
    "mlp without bias": (lambda: nn.Sequential(nn.Linear(5, 9, bias=False), nn.ReLU(), nn.Linear(9, 3)), (5,)),
    "tokens": (lambda: nn.Sequential(nn.Linear(5, 9), nn.LayerNorm(9), nn.ReLU(), nn.Linear(9, 3)), (4, 5)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)), (3, 6)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)), (1, 3, 3, 3)),
    "residual, group norm": (lambda: Residual(nn.GroupNorm(2, 6)), (2, 6, 6)),
    "residual, batch norm": (lambda: Residual(nn.BatchNorm2d(6)), (2, 6, 6)),
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=3), nn.Flatten()),
        (2, 6, 6),
    ),
}


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def task(kind: str, n: int = 200) -> Task:
    x = torch.randn(n, *KINDS[kind][1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Task(x, torch.zeros(n, dtype=torch.long), batch=256)


def net(kind: str, seed: int) -> Net:
    torch.manual_seed(seed)
    found = Net.of(KINDS[kind][0]()).double()
    found = found + 0.2 * found.weights.randn(seed)
    return reset_statistics(found, task(kind))


def gap(a: Net, b: Net, data: Task) -> float:
    """How far outputs on the data are apart, of their size."""
    with torch.no_grad():
        one, two = data.outputs(a), data.outputs(b)
    return float((one - two).norm() / one.norm())


def test_copies_of_one_network_are_left_as_they_are(kind):
    a, data = net(kind, 1), task(kind)
    for mend in (rescale, refit):
        try:
            mended = mend(a, [a, a, a], data)
        except WeightspaceError:
            assert mend is rescale  # nothing with a bias before the output
            continue
        assert gap(a, reset_statistics(mended, data), data) < 1e-9
        assert mended.dtype == a.dtype


def test_a_layer_that_was_lost_is_found_again(kind):
    a, data = net(kind, 1), task(kind)
    weights = [name for name, tensor in a.weights.items() if tensor.dim() > 1]
    if kind == "grouped":
        weights = weights[:1]  # of a grouped convolution only the moments are mended
    for name in weights:
        lost = a.at(a.weights.replace({name: 0.5 * a.weights[name].roll(1, 0)}))
        before = gap(a, reset_statistics(lost, data), data)
        after = gap(a, reset_statistics(refit(lost, [a, a], data), data), data)
        assert before > 0.05
        assert after < 0.1 * before


def test_units_have_the_moments_of_the_ends():
    a, b, data = net("mlp", 1), net("mlp", 2), task("mlp")
    mended = rescale(average([a, b]), [a, b], data)
    x = data.example(200)

    def moments(each: Net) -> tuple[Tensor, Tensor]:
        h = torch.nn.functional.linear(x, each.weights["0.weight"], each.weights["0.bias"])
        return h.mean(0), h.std(0, correction=0)

    wanted = [(p + q) / 2 for p, q in zip(moments(a), moments(b), strict=True)]
    assert all(torch.allclose(p, q, atol=1e-9) for p, q in zip(moments(mended), wanted, strict=True))
    assert not torch.allclose(moments(average([a, b]))[1], wanted[1], atol=1e-3), "an average must lose deviation"


def test_the_least_squares_are_least():
    """The first layer against a dense solver: the normal equations with the ridge."""
    a, b, data = net("mlp", 1), net("mlp", 2), task("mlp")
    middle = average([a, b])
    x = torch.cat([data.example(200), torch.ones(200, 1, dtype=torch.float64)], 1)
    ends = [torch.cat([each.weights["0.weight"], each.weights["0.bias"][:, None]], 1) for each in (a, b)]
    wanted, start = x @ (sum(ends) / 2).T, (ends[0] + ends[1]) / 2
    ridge = 1e-4 * float((x * x).sum(0).mean())
    rows = torch.cat([x, ridge**0.5 * torch.eye(6, dtype=torch.float64)])
    dense = torch.linalg.lstsq(rows, torch.cat([wanted, ridge**0.5 * start.T])).solution.T
    mended = refit(middle, [a, b], data).weights
    assert torch.allclose(mended["0.weight"], dense[:, :-1], atol=1e-9)
    assert torch.allclose(mended["0.bias"], dense[:, -1], atol=1e-9)
    assert not torch.allclose(mended["2.weight"], middle.weights["2.weight"], atol=1e-3)


def test_too_few_examples_for_a_layer_leave_least_squares_out():
    a, b = net("mlp", 1), net("mlp", 2)
    few = task("mlp", 4)
    assert torch.equal(
        refit(average([a, b]), [a, b], few).weights["0.weight"],
        rescale(average([a, b]), [a, b], few).weights["0.weight"],
    )


def test_half_precision_stays_half():
    a, b = (net("mlp", seed).to(torch.bfloat16) for seed in (1, 2))
    mended = refit(average([a, b]), [a, b], task("mlp"))
    assert mended.dtype == torch.bfloat16 and not mended.weights.unusable()


def test_a_network_without_layers_is_refused():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(5))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    only = Net.of(Scale()).double()
    for mend in (rescale, refit):
        with pytest.raises(WeightspaceError, match="mended"):
            mend(only, [only], task("mlp"))
    assert gap(repair(only, [only], task("mlp")), only, task("mlp")) == 0


def test_what_does_not_lower_the_loss_is_not_kept():
    """Labels that the plain average gets right and the ends do not."""
    a, b, data = net("mlp", 1), net("mlp", 2), task("mlp")
    middle = average([a, b])
    with torch.no_grad():
        labels = data.outputs(middle).argmax(1)
    sharp = middle.at(middle.weights.replace({"4.weight": 30 * middle.weights["4.weight"],
                                              "4.bias": 30 * middle.weights["4.bias"]}))  # fmt: skip
    right = Task(data.example(200), labels)
    assert gap(repair(sharp, [a, b], right), sharp, right) == 0
    with torch.no_grad():
        wrong = Task(data.example(200), data.outputs(a).argmax(1))
    assert gap(repair(middle, [a, a], wrong), middle, wrong) > 0.01


def test_the_mean_with_data_is_repaired():
    a, data = net("mlp", 1), task("mlp")
    group = Symmetry.of(a, data.example(2))
    copies = [a, *(group.sample(seed=seed)(a) for seed in (1, 2))]
    assert gap(mean(copies, group, data=data), a, data) < 1e-6


# running statistics


class Deep(nn.Module):
    """Norms behind norms, one of them met twice, and one of each example."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4)
        self.b, self.m, self.i = nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4), nn.InstanceNorm1d(4, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.n(self.a(x)).relu()
        return self.i(self.m(self.b(self.m(self.b(h)).relu()).relu())).mean(2)


def statistics(net: Net, x: Tensor, batch: int) -> dict[str, Tensor]:
    return dict(reset_statistics(net, Task(x, torch.zeros(len(x)).long(), batch=batch)).state)


@pytest.mark.parametrize("batch", [1, 5, 12, 13])
@pytest.mark.parametrize("room", [0, 1 << 26])
def test_statistics_are_those_of_training_on_all_examples_at_once(batch, room, monkeypatch):
    """However the examples are cut, a last batch of one included, and where they do not fit into one batch."""
    monkeypatch.setattr(importlib.import_module("weightspace.symmetry.align.repair"), "_ROOM", room)
    torch.manual_seed(0)
    module = Deep().double()
    x = torch.randn(13, 2, 7, dtype=torch.float64) * torch.arange(1, 14)[:, None, None] / 5
    found = statistics(Net.of(module), x, batch)
    for norm in (module.n, module.m, module.i):
        norm.momentum = 1.0
    module.train()(x)
    for name, value in module.named_buffers():
        if "running" in name:
            assert torch.allclose(found[name], value, rtol=1e-9, atol=1e-12), name
        else:
            assert int(found[name]) == 0, "nothing but the statistics changes"


def test_statistics_keep_their_digits_where_the_mean_is_large():
    torch.manual_seed(0)
    net = Net.of(nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16)))
    x = torch.randn(40, 8) + 3000
    h = torch.nn.functional.linear(x, net.weights["0.weight"], net.weights["0.bias"]).double()
    for batch in (7, 40):
        assert torch.allclose(statistics(net, x, batch)["1.running_var"].double(), h.var(0), rtol=1e-3)


def test_statistics_of_one_number_are_refused():
    net = Net.of(nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)))
    with pytest.raises(WeightspaceError, match="two numbers for each channel"):
        statistics(net, torch.ones(1, 8), 4)
