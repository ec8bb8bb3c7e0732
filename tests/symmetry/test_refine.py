"""Scales refined by descent: in the group, never higher, repeatable, without labels, and where it must be let alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from itertools import count

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.state import settled
from weightspace.symmetry.align.moves import Scales, movable
from weightspace.symmetry.align.refine import refine
from weightspace.symmetry.align.repair import repair, reset_statistics
from weightspace.symmetry.align.score import Score
from weightspace.symmetry.element import Element
from weightspace.symmetry.symmetry import Symmetry, mean
from weightspace.task.task import Task

descent = sys.modules["weightspace.symmetry.align.refine"]


class Residual(nn.Module):
    """A stem, a block with a norm, a skip, a head."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(2, 6, 3, stride=2, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.drop, self.out = norm, nn.Dropout(0.5), nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        return self.head((h + self.out(self.drop(self.norm(self.conv(h)).relu()))).mean((2, 3)))


class Packed(nn.Module):
    """Both inputs by name, two layers in one tensor: scales move parts of it."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.last = nn.Parameter(torch.randn(2, 8, 5)), nn.Linear(8, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        gate, up = self.both
        return self.last((left @ gate.T).tanh() * (right @ up.T))


KINDS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)), (5,)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)
        ),
        (2, 6, 6),
    ),
    "group norm": (lambda: Residual(nn.GroupNorm(2, 6)), (2, 6, 6)),
    "batch norm": (lambda: Residual(nn.BatchNorm2d(6)), (2, 6, 6)),
    "packed": (Packed, (5,)),
}


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def inputs(kind: str, n: int = 200, seed: int = 0):
    x = torch.randn(n, *KINDS[kind][1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {"left": x, "right": x.flip(0)} if kind == "packed" else x


def case(kind: str, dtype=torch.float64) -> tuple[Symmetry, Net, Net, Task]:
    """A group, two networks of which the second is a rescaled and slightly moved copy, and inputs alone."""
    task = Task(inputs(kind))
    torch.manual_seed(1)
    a = Net.of(KINDS[kind][0]()).double()
    a = reset_statistics(a + 0.4 * a.weights.randn(1), task)
    group = Symmetry.of(a, task.example(2))
    b = group.sample(seed=3, kinds="scale")(a + 0.05 * a.weights.randn(2))
    return group, reset_statistics(b, task).to(dtype), a.to(dtype), task


def falling() -> Callable[[Net], float]:
    """A score that keeps whatever is refined."""
    values = count()
    return lambda net: -float(next(values))


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_the_function_stays_whatever_the_steps_did(kind, dtype, most):
    group, b, a, task = case(kind, dtype)
    start = group.sample(seed=5, kinds=("permutation", "sign"))
    found = refine(group, b, a, start, task, steps=30, lr=0.2, score=falling())
    assert found.kept and found.losses and float((found.element(b) - start(b)).norm()) > 1e-2
    assert found.element.difference(start) == 0 and all(bool((f != 0).all()) for f in found.element.factors.values())
    before, after = task.outputs(b), task.outputs(found.element(b))
    assert float((before - after).abs().max()) <= most * max(1, float(before.abs().max()))
    for factor in (f for k, f in found.element.factors.items() if group.generators[k].kind == "scale"):
        assert bool((factor > 0).all())


def test_what_is_descended_in_is_the_action_of_the_group(kind):
    group, b, _, _ = case(kind)
    scales = Scales(group, torch.empty((), dtype=torch.float64))
    with torch.no_grad():
        for k, log in enumerate(scales.parameters.values()):
            log.copy_(0.5 * torch.randn(log.shape, generator=torch.Generator().manual_seed(k), dtype=torch.float64))
    moved, right = scales.moved({n: t.clone() for n, t in b.tensors.items()}), scales.element()(b).tensors
    assert all(torch.allclose(moved[name], right[name], rtol=1e-12, atol=1e-14) for name in right)
    total = sum(t.square().sum() for n, t in moved.items() if n in b.weights)
    slopes = torch.autograd.grad(total, list(scales.parameters.values()), allow_unused=True)
    assert all(slope is not None and bool(slope.isfinite().all()) for slope in slopes)


def test_the_measured_height_never_rises(kind):
    group, b, a, task = case(kind)
    score = Score(a, task, seed=0)
    for lr, steps in ((0.05, 40), (30.0, 3)):  # the second is far too much
        found = refine(group, b, a, group.identity(), task, steps=steps, lr=lr)
        assert score(found.element(b)) <= score(b) + 1e-9 and score(b) == pytest.approx(found.before)
        assert score(found.element(b)) == pytest.approx(found.after if found.kept else found.before)


def test_planted_scales_are_found_again(kind):
    """A copy with other scales, of which the matchers are told nothing."""
    group, _, a, task = case(kind)
    b = Element(group, {}, {k: f for k, f in group.sample(2, "scale").factors.items() if k in movable(group)})(a)
    found = refine(group, b, a, group.identity(), task, steps=200, lr=0.1)
    assert found.before > 1e-4 and found.after < 0.03 * found.before, (found.before, found.after)


def test_one_seed_gives_one_result_and_nothing_else_moves(kind):
    group, b, a, task = case(kind)
    ask = partial(refine, group, b, a, group.identity(), task, steps=8)
    state, tensors = torch.get_rng_state(), {n: t.clone() for n, t in {**a.tensors, **b.tensors}.items()}
    first = ask(seed=4)
    assert torch.equal(state, torch.get_rng_state()) and torch.is_grad_enabled()
    torch.manual_seed(99)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        second = ask(seed=4)
        assert not torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
    with settled(torch.float64), torch.inference_mode():
        third = ask(seed=4)
    assert first.losses == second.losses == third.losses != ask(seed=5).losses
    assert all(torch.equal(first.element.factors[k], second.element.factors[k]) for k in first.element.factors)
    assert all(torch.equal(t, {**a.tensors, **b.tensors}[n]) for n, t in tensors.items())
    assert not a.architecture.training and not any(m.training for m in a.architecture.modules())


def test_an_interrupt_leaves_nothing_behind(monkeypatch):
    group, b, a, task = case("batch norm")
    monkeypatch.setattr(descent._Descent, "loss", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        refine(group, b, a, group.identity(), task)
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
    assert all(getattr(m, "track_running_stats", True) for m in a.architecture.modules())


def test_labels_are_not_looked_at_unless_they_are_asked_for():
    group, b, a, _ = case("mlp")
    x, y = inputs("mlp"), torch.arange(200) % 3
    ask = partial(refine, group, b, a, group.identity(), steps=10)
    bare, one, two = (ask(task) for task in (Task(x), Task(x, y), Task(x, y.flip(0))))
    assert bare.losses == one.losses == two.losses and bare.after == one.after == two.after
    told = [ask(Task(x, labels), labels=True).losses for labels in (y, y.flip(0))]
    assert told[0] != told[1] != one.losses
    with pytest.raises(WeightspaceError, match="no labels"):
        ask(Task(x), labels=True)


def test_regression_descends_squares():
    group, b, a, task = case("mlp")
    x = task.example(200)
    found = refine(group, b, a, group.identity(), Task(x, task.outputs(a), loss=F.mse_loss), steps=100, lr=0.1)
    assert found.kept and found.after < 0.5 * found.before
    shares = refine(group, b, a, group.identity(), task, steps=100, lr=0.1)
    assert found.losses[0] != pytest.approx(shares.losses[0], rel=0.1)


def test_datasets_and_loaders_are_read_like_tensors():
    group, b, a, task = case("convolutions")
    x = task.example(200)
    items = torch.utils.data.TensorDataset(x, torch.zeros(200, dtype=torch.long))
    ask = partial(refine, group, b, a, group.identity(), steps=6)
    right = ask(Task(x)).losses
    for data in (Task(items), Task(torch.utils.data.DataLoader(items, 17))):
        assert ask(data).losses == pytest.approx(right, rel=1e-9)


def test_running_statistics_are_held_and_a_group_without_scales_is_left():
    group, b, a, task = case("batch norm")
    assert any(g.evaluation for g in group.generators) and movable(group)
    found = refine(group, b, a, group.identity(), task, steps=5, lr=0.3, score=falling())
    held = {n: t for n, t in b.state.items() if "running" in n}
    assert held and all(torch.equal(found.element(b).state[n], t) for n, t in held.items())
    smooth = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3))
    still = Symmetry.of(smooth, torch.zeros(2, 5))
    start, other = still.identity(), Net.of(smooth)
    assert refine(still, other, other + 0.1 * other.weights, start, Task(inputs("mlp").float())).element is start


def test_frozen_weights_do_not_move():
    group, b, a, task = case("mlp")
    some = group.without(["2.weight"])
    assert not movable(some)
    assert refine(some, b, a, some.identity(), task, steps=3).losses == ()


def test_auto_refines_last_and_says_so():
    group, b, a, task = case("mlp")
    far = a + 0.6 * a.weights.randn(9)
    found = group.match(far, to=a, data=task)
    plain = min(c.barrier for c in found.candidates if c.method != "refine")
    last = found.candidates[-1]
    assert last.method == "refine" and last.steps == 300 and last.seconds > 0
    assert "300 steps" in found.why and "without labels" in found.why
    if found.method == "refine":
        assert Score(a, task, 0)(found.element(far)) == pytest.approx(last.barrier) and last.barrier < plain + 1e-6
    copy = group.sample(seed=1)(a)
    assert "refine" not in [c.method for c in group.match(copy, to=a, data=task).candidates]
    assert "refine" in [c.method for c in group.match(copy, to=a, data=task, method="refine").candidates]
    with pytest.raises(WeightspaceError, match="needs data"):
        group.match(b, to=a, method="refine")


def test_inputs_alone_align_average_and_repair(kind):
    group, b, a, task = case(kind)
    found = group.match(b, to=a, data=task)
    assert "divergence without labels" in found.why and found.candidates[0].barrier is not None
    middle = mean([a, b], group, data=task)
    assert float((middle - mean([a, b], group, data=task)).norm()) == 0
    score = Score(a, task, seed=0)
    assert score(found.element(b)) <= max(score(b), score.near(b)) + 1e-9
    assert repair(a.lerp(b, 0.5), [a, b], task).weights.shapes == a.weights.shapes


def test_bad_numbers_are_refused_in_one_sentence():
    group, b, a, task = case("mlp")
    ask = partial(refine, group, b, a, group.identity(), task)
    for call in (partial(ask, steps=0), partial(ask, batch=1), partial(ask, lr=0.0)):
        with pytest.raises(WeightspaceError, match="a descent takes") as raised:
            call()
        assert "\n" not in str(raised.value)
    with pytest.raises(WeightspaceError, match="does not take inputs"):
        refine(group, b, a, group.identity(), Task(torch.zeros(9, 4)))
