"""Flows: what a budget, a mask and a probe promise; pruning; the limits where a flow is something known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from weightspace.flows.goals import drift, learn, toward
from weightspace.flows.pruning import prune
from weightspace.flows.stepper import flow
from weightspace.metric.metric import Euclidean
from weightspace.metric.pullback import Pullback
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.path.path import Path
from weightspace.task.classification import accuracy
from weightspace.task.goal import gradient
from weightspace.task.task import Task


def net(seed: int = 0, width: int = 24) -> Net:
    torch.manual_seed(seed)
    return Net.of(
        nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3))
    )


def task(seed: int = 0, n: int = 30) -> Task:
    """Labels that a linear map of the inputs gives: there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    x, turn = torch.randn(n, 6, generator=generator), torch.randn(6, 3, generator=torch.Generator().manual_seed(9))
    return Task(x, (x @ turn.roll(seed, 1)).argmax(1))


def zeros(weights) -> float:
    matrices = [w for w in weights.values() if w.dim() > 1]
    return sum(int((w == 0).sum()) for w in matrices) / sum(w.numel() for w in matrices)


# descending


def test_under_euclid_it_is_gradient_descent_of_constant_length():
    a, goal = net(), task()
    path = flow(a, goal, Euclidean(), steps=3, size=0.05)
    by_hand = a
    for _ in range(3):
        g = gradient(goal, by_hand)
        by_hand = by_hand + (-0.05 / float(g.norm())) * g
    assert float((path[-1] - by_hand).norm()) < 1e-5
    assert isinstance(path, Path) and path.length(Euclidean()) == pytest.approx(0.15, rel=1e-3)
    assert path.why == "steps" and len(path.log) == 3
    assert [record.goal for record in path.log] == sorted((r.goal for r in path.log), reverse=True)


def test_old_outputs_stay_within_the_budget_at_every_step_and_the_new_task_is_learnt():
    start, old, new = net(), task(0), task(1, 60)
    old_metric = Pullback(old)
    free = flow(start, new, Euclidean(), steps=40, size=0.15)
    kept = flow(start, new, old_metric, steps=40, size=0.15, budget=0.1, save=1)
    assert all(record.drift <= 0.1 for record in kept.log)
    assert all(old_metric.drift(each, start) <= 0.1 * (1 + 1e-5) for each in kept)
    assert old_metric.drift(free[-1], start) > 1, "without the metric the old outputs must move"
    assert float(new(kept[-1])) < 0.8 * float(new(start))


def test_the_anchor_is_where_the_flow_began():
    """A budget that is kept from step to step only would let the outputs wander."""
    start, old, new = net(), task(0), task(1, 60)
    path = flow(start, new, Pullback(old), steps=30, size=0.2, budget=0.05, corrections=0)
    assert Pullback(old).drift(path[-1], start) <= 0.05 * (1 + 1e-5)


def test_corrections_lower_the_drift():
    start, old, new = net(), task(0), task(1, 60)
    none, one = (
        flow(start, new, Pullback(old, damping=1e-6), steps=10, size=0.2, corrections=k).log[-1].drift for k in (0, 1)
    )
    assert one < 0.2 * none


def test_held_out_examples_end_the_flow():
    start, old, probe, new = net(), task(0), task(5, 40), task(1, 60)
    path = flow(start, new, Pullback(old), steps=60, size=0.2, budget=0.5, probe=probe, max_drift=0.3)
    assert path.why == "heldout" and len(path.log) < 60
    assert all(record.heldout <= 0.3 for record in path.log)
    assert Pullback(probe).drift(path[-1], start) <= 0.3


def test_exploring_keeps_the_function_and_goes_far():
    start, old = net(), task(0)
    path = flow(start, drift(seed=3), Pullback(old), steps=20, size=0.3, budget=0.05)
    assert float((path[-1] - start).norm()) > 3
    assert Pullback(old).drift(path[-1], start) <= 0.05 * (1 + 1e-5)
    other = flow(start, drift(seed=4), Pullback(old), steps=20, size=0.3, budget=0.05)
    assert float((path[-1] - other[-1]).norm()) > 3


def test_toward_another_network():
    a, b = net(0), net(1)
    path = flow(a, toward(b), Euclidean(), steps=10, size=0.1)
    assert float((path[-1] - b).norm()) == pytest.approx(float((a - b).norm()) - 1.0, rel=1e-3)


def test_batches_come_from_the_seed():
    a, goal = net(), task(1, 60)
    same = [flow(a, learn(goal, 8, seed=1), Euclidean(), steps=4, size=0.1)[-1] for _ in range(2)]
    other = flow(a, learn(goal, 8, seed=2), Euclidean(), steps=4, size=0.1)[-1]
    assert float((same[0] - same[1]).norm()) == 0 < float((same[0] - other).norm())


def test_a_size_may_change_on_the_way():
    path = flow(net(), task(), Euclidean(), steps=4, size=lambda done: 0.1 * (1 - done))
    assert [record.length for record in path.log] == pytest.approx([0.1, 0.075, 0.05, 0.025])


@pytest.mark.parametrize("solver", ["auto", "dual"])
def test_a_step_of_no_length_stays_and_the_flow_goes_on(solver):
    path = flow(net(), task(1), Pullback(task(), solver=solver), steps=4, size=lambda done: 0.1 * done, budget=0.1)
    assert [record.length for record in path.log] == pytest.approx([0, 0.025, 0.05, 0.075])
    assert path.log[0].drift < 1e-6 and path.why == "steps"


def test_the_same_flow_is_the_same_to_the_last_bit():
    """Solutions of nearly singular systems are not, by every driver."""
    torch.manual_seed(0)
    start = Net.of(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))
    x, y = torch.randn(24, 5, 4), torch.randint(3, (24, 5))
    old, new = Task(x[:12], y[:12]), Task(x[12:], y[12:])
    ends = [flow(start, new, Pullback(old, "fisher"), steps=5, size=0.4, budget=0.02)[-1] for _ in range(4)]
    assert Pullback(old).near(start) is not None and float((ends[0] - start).norm()) > 0.1
    assert all(torch.equal(end.weights.flat(), ends[0].weights.flat()) for end in ends)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_budget(dtype):
    start = net().to(dtype)
    old, new = (Task(t.example(30).to(dtype), t.labels()) for t in (task(), task(1)))
    path = flow(start, new, Pullback(old), steps=3, size=0.2, budget=0.5)
    assert len(path.log) == 3 and all(record.drift <= 0.5 for record in path.log)


# masks and pruning


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_pruned_weights_are_zero_and_the_function_is_kept(share):
    start, old = net(width=32), task(0, 60)
    path = flow(start, prune(share), Pullback(old), steps=6)
    assert zeros(path[-1].weights) == pytest.approx(share, abs=1e-3)
    cut = start.at(start.weights.shaped(start.weights.flat() * path.mask.flat()))
    metric = Pullback(old)
    assert metric.drift(path[-1], start) < 0.3 * metric.drift(cut, start), "the repair must matter"
    assert float(path[-1].weights["0.bias"].abs().min()) > 0


def test_sparse_then_learn_stays_sparse_to_the_last_weight():
    start, old, new = net(width=32), task(0, 40), task(1, 40)
    sparse = flow(start, prune(0.7), Pullback(old), steps=4)
    learnt = flow(sparse[-1], new, Pullback(old), steps=8, size=0.1, budget=0.5, mask=sparse.mask)
    dead = sparse.mask.flat() == 0
    assert int(dead.sum()) > 100
    assert float(learnt[-1].weights.flat()[dead].abs().max()) == 0
    assert float(new(learnt[-1])) < float(new(sparse[-1]))
    again = flow(learnt[-1], prune(0.8), Pullback(old), steps=3, mask=learnt.mask)
    assert float(again[-1].weights.flat()[dead].abs().max()) == 0


def test_two_of_four():
    torch.manual_seed(0)
    start = Net.of(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)))
    old = Task(torch.randn(30, 8), torch.arange(30) % 3)
    path = flow(start, prune(0.5, "2:4"), Pullback(old), steps=4)
    for name in ("0.weight", "2.weight"):
        assert int((path[-1].weights[name].reshape(-1, 4) == 0).sum(1).min()) >= 2


# what goes wrong


def test_nan_ends_the_flow_and_the_last_good_network_is_kept():
    def cliff(at: Net) -> torch.Tensor:
        w = at.weights["0.weight"]
        return torch.where(w.sum() > -100, w.sum(), w.sum() * math.nan)

    path = flow(net(), cliff, Euclidean(), steps=200, size=5.0)
    assert path.why == "nan in 0.weight" and len(path.log) < 200
    assert not path[-1].weights.unusable()


def test_a_goal_that_is_reached_ends_the_flow():
    a = net()
    path = flow(a, toward(a), Euclidean(), steps=5)
    assert path.why == "goal" and not path.log and float((path[-1] - a).norm()) == 0


def test_no_room_left_ends_the_flow():
    """More rows than weights: every move is seen."""
    start, old = net(width=2), task(0, 60)
    path = flow(start, task(1, 60), Pullback(old, damping=10.0), steps=5, size=0.5, budget=1e-9, corrections=0)
    assert path.why in ("budget", "steps")
    assert Pullback(old).drift(path[-1], start) <= 1e-9 * (1 + 1e-5)
    assert float((path[-1] - start).norm()) < 1e-5


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda a, t: flow(a, t, Pullback(t), budget=0.0), "budget must be positive"),
        (lambda a, t: flow(a, t, Pullback(t), size=0.0), "size must be positive"),
        (lambda a, t: flow(a, t, Pullback(t), steps=0), "steps must be at least 1"),
        (lambda a, t: flow(a, t, Euclidean(), budget=1.0), "Pullback"),
        (lambda a, t: flow(a, prune(0.5), Euclidean()), "Pullback"),
        (lambda a, t: prune(1.0), "between 0 and 1"),
        (lambda a, t: flow(a, t, Euclidean(), max_drift=1.0), "probe"),
        (lambda a, t: flow(a, t, Euclidean(), size=lambda done: -0.1), "lengths from 0"),
        (lambda a, t: flow(a, prune(0.5, repair="descent"), Pullback(t), budget=1.0), "no budget"),
        (lambda a, t: Pullback(t, solver="gltr", steps=0), "at least one step"),
        (lambda a, t: Pullback(Task(torch.randn(5, 9))).outputs(a), "does not take inputs"),
        (lambda a, t: prune(0.5, "4:2"), "n:m"),
        (lambda a, t: flow(a, prune(0.9999), Pullback(t), steps=1), "would empty"),
        (lambda a, t: flow(a, t, Euclidean(), mask=a.weights.zeros()), "nothing could move"),
        (lambda a, t: flow(a, t, Euclidean(), mask=net(0, 5).weights), "architecture"),
        (lambda a, t: learn(t, 0), "at least one"),
        (lambda a, t: flow(a, Task(torch.randn(5, 4), torch.zeros(5).long()), Euclidean()), "shape"),
        (lambda a, t: flow(a, Task(t.example(5), torch.full((5,), 7)), Euclidean()), "outside"),
        (lambda a, t: flow(a, lambda n: torch.zeros(()), Euclidean()), ""),
    ],
)
def test_bad_use_is_refused_in_one_line(act, words):
    with pytest.raises((WeightspaceError, WeightspaceError)) as error:
        act(net(), task())
    assert words in str(error.value) and "\n" not in str(error.value)


def test_accuracy_of_the_old_task_survives_learning_the_new_one():
    """On a trained network: plain descent forgets, the invariant path does not."""
    start = flow(net(), task(0, 60), Euclidean(), steps=150, size=lambda done: 0.3 * (1 - done))[-1]
    old, new = task(0, 60), task(1, 60)
    right = accuracy(old)
    assert right(start) > 0.95
    forgot = flow(start, new, Euclidean(), steps=60, size=0.2)[-1]
    kept = flow(start, new, Pullback(old), steps=60, size=0.2, budget=1.0)[-1]
    assert right(forgot) < 0.7 and right(kept) > 0.9
