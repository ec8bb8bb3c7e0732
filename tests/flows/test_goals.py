"""Goals: what each one is, against the formula written out; what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.flows.anchors import ewc, fisher, hold
from weightspace.flows.attacks import attacked, harden, input_gradient
from weightspace.flows.goals import drift, gem, learn, spread, toward
from weightspace.flows.stepper import flow
from weightspace.metric import metric as steps
from weightspace.metric.metric import Adam, Euclidean
from weightspace.metric.pullback import Pullback
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.task.goal import Goal, gradient, value_and_gradient
from weightspace.task.task import Task


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net.of(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double())


def task(seed: int = 0, n: int = 20) -> Task:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=g, dtype=torch.float64)
    return Task(x, torch.randint(0, 3, (n,), generator=g))


def by_autograd(a: Net, loss) -> Tensor:
    """The gradient of a function of (weights -> outputs on x), without anything of ours but the net's call."""
    flat = a.weights.flat().clone().requires_grad_()
    return torch.autograd.grad(loss(a.at(a.weights.shaped(flat))), flat)[0]


# the algebra


def test_goals_add_up_and_take_factors():
    a, one, two = net(), learn(task(0), 100), learn(task(1), 100)
    value, g = value_and_gradient(one + 0.5 * two, a)
    expected = value_and_gradient(one, a)[1] + 0.5 * value_and_gradient(two, a)[1]
    assert float((g - expected).norm()) < 1e-12
    assert value == pytest.approx(float(task(0)(a)) + 0.5 * float(task(1)(a)), rel=1e-6)


def test_tasks_functions_and_targets_add_up_too():
    a, b, t = net(0), net(1), task()
    for goal in (t, lambda w: t(w), toward(b), learn(t, 100)):
        both = sum([learn(t, 100), goal * 2.0 if isinstance(goal, Goal) else goal])
        expected = gradient(t, a) + value_and_gradient(goal, a)[1] * (2.0 if isinstance(goal, Goal) else 1.0)
        assert float((value_and_gradient(both, a)[1] - expected).norm()) < 1e-9
    assert float((value_and_gradient(t + learn(t, 100), a)[1] - 2.0 * gradient(t, a)).norm()) < 1e-9
    assert value_and_gradient(toward(b), a)[0] == pytest.approx(float((a - b).norm()) ** 2 / 2)
    assert 0 < Pullback(task(n=4)).capacity(a, learn(t, 100)) < 1


def test_uneven_batches_weigh_by_their_examples():
    a, b = net(0), net(1)
    whole, ragged = task(), Task(task().example(20), task().labels(), batch=16)
    x = whole.example(20)
    by_hand = float(((b(x) - a(x)) ** 2).sum() / 20)
    for t in (whole, ragged):
        for more in (0.0, 0.5):
            found = value_and_gradient(hold(t, a, batch=20, labels=more), b)[0] - more * float(whole(b))
            assert found == pytest.approx(by_hand, rel=1e-9)
        same = value_and_gradient(learn(t, 20, augment=lambda x, g: x), b)
        assert same[0] == pytest.approx(float(whole(b))) and float((same[1] - gradient(whole, b)).norm()) < 1e-9


def test_the_fisher_of_a_regression_is_that_of_a_normal_distribution():
    torch.manual_seed(0)
    a = Net.of(nn.Linear(3, 1).double())
    x = torch.randn(500, 3, dtype=torch.float64)
    found = fisher(a, Task(x, torch.zeros(500, 1, dtype=torch.float64)))
    assert torch.allclose(found["weight"][0], x.square().mean(0), rtol=0.3)


def test_gradients_that_are_not_finite_pass_through_gem_and_end_the_flow():
    a, t = net(), task()
    path = flow(a, gem(learn(t), [t]), Euclidean(), steps=3, size=1e200)
    assert path.why.startswith("nan") or len(path.log) == 3


def test_an_epoch_meets_every_example_once_and_the_next_in_another_order():
    x = torch.arange(24.0)[:, None]
    t = Task(x, torch.zeros(24).long())
    seen = [t.minibatch(6, step, seed=3).example(6).flatten().tolist() for step in range(8)]
    first, second = sum(seen[:4], []), sum(seen[4:], [])
    assert sorted(first) == sorted(second) == x.flatten().tolist()
    assert [sorted(b) for b in seen[:4]] != [sorted(b) for b in seen[4:]]
    assert (
        seen[1] == t.minibatch(6, 1, seed=3).example(6).flatten().tolist() != t.minibatch(6, 1, 4).example(6).tolist()
    )


def test_changed_inputs_are_learnt_and_the_change_comes_from_the_seed():
    a, t = net(), task()

    def noisy(x: Tensor, g: torch.Generator) -> Tensor:
        return x + torch.randn(x.shape, generator=g, dtype=x.dtype)

    g = [value_and_gradient(learn(t, 100, seed, noisy), a, step)[1] for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert float((g[0] - g[1]).norm()) == 0
    assert min(float((g[0] - g[k]).norm()) for k in (2, 3)) > 1e-3
    still = value_and_gradient(learn(t, 100, 0, lambda x, g: x), a)[1]
    assert float((still - gradient(t, a)).norm()) < 1e-12


# holding outputs


@pytest.mark.parametrize("distance", ["squared", "kl", "bhattacharyya"])
def test_holding_is_the_formula(distance):
    a, b, t = net(0), net(1), task()
    x, f0 = t.example(20), net(0)(task().example(20))

    def loss(w: Net) -> Tensor:
        f = w(x)
        if distance == "squared":
            return ((f - f0) ** 2).sum(1).mean()
        p, q = (f / 2).softmax(1), (f0 / 2).softmax(1)
        if distance == "kl":
            return 4 * (q * (q.log() - p.log())).sum(1).mean()
        return -(p * q).sqrt().sum(1).log().mean()

    t2 = {} if distance == "squared" else {"temperature": 2.0}
    value, g = value_and_gradient(hold(t, a, distance, batch=100, **t2), b)
    assert value == pytest.approx(float(loss(b)), rel=1e-9)
    assert torch.allclose(g.flat(), by_autograd(b, loss), atol=1e-10)


def test_held_outputs_are_the_drift_of_the_pullback_metric():
    a, t = net(0), task()
    b = a + 0.1 * a.weights.randn(1)
    assert value_and_gradient(hold(t, a, batch=100), b)[0] == pytest.approx(Pullback(t).drift(b, a) ** 2, rel=1e-9)
    far = Pullback(t, "hellinger").drift(a + 1e-4 * a.weights.randn(1), a) ** 2
    near = value_and_gradient(hold(t, a, "bhattacharyya", batch=100), a + 1e-4 * a.weights.randn(1))[0]
    assert near == pytest.approx(far, rel=1e-2), "the published penalty is the Hellinger metric, to second order"


def test_nothing_pulls_at_the_anchor_and_labels_do():
    a, t = net(0), task()
    for distance in ("squared", "kl", "bhattacharyya"):
        assert float(value_and_gradient(hold(t, a, distance, batch=100), a)[1].norm()) < 1e-12
    with_labels = value_and_gradient(hold(t, a, batch=100, labels=0.7), a)[1]
    assert float((with_labels - 0.7 * gradient(t, a)).norm()) < 1e-12


def test_a_teacher_that_is_the_student_is_refused():
    """The published notebook passes one network as both: nothing is then held."""
    a, t = net(0), task()
    teacher = Net(a.architecture, a.weights, a.state)
    student = a.at(a.weights.shaped(a.weights.flat()))
    with pytest.raises(WeightspaceError, match="shares its memory"):
        value_and_gradient(hold(t, teacher), student)
    with pytest.raises(WeightspaceError, match="shares its memory"):
        Pullback(t).drift(student, teacher)
    module = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    safe = Net.of(module)
    goal = hold(t, safe, batch=100)
    with torch.no_grad():
        module[0].weight.add_(1.0)
    assert value_and_gradient(goal, Net.of(module))[0] > 1e-3, "the module moved, the anchor did not"


# importances


def test_the_fisher_diagonal_is_of_examples_not_of_batches():
    a, t = net(), task(n=400)
    x = t.example(400)
    exact = torch.zeros(a.weights.numel, dtype=torch.float64)
    for one in x:
        p = a(one[None]).softmax(1)[0]
        for k in range(3):
            g = by_autograd(a, lambda w, one=one, k=k: w(one[None]).log_softmax(1)[0, k])
            exact += p[k] * g.square() / 400
    sampled = sum(fisher(a, t, seed).flat() for seed in range(8)) / 8
    assert float((sampled - exact).norm() / exact.norm()) < 0.1
    batch = by_autograd(a, lambda w: F.cross_entropy(w(x), t.labels())).square()
    assert float(batch.sum()) < 0.1 * float(exact.sum()), "a squared mean gradient would be seen"


def test_ewc_is_a_quadratic_around_the_anchor():
    a, t = net(), task()
    b = a + 0.1 * a.weights.randn(3)
    value, g = value_and_gradient(ewc(a, t, 2.0, seed=5), b)
    importance = fisher(a, t, 5).flat()
    assert torch.allclose(g.flat(), 2.0 * importance * (b - a).flat())
    assert value == pytest.approx(float((importance * (b - a).flat() ** 2).sum()))
    assert float(value_and_gradient(ewc(a, t), a)[1].norm()) == 0


# bent gradients


def test_gem_hurts_no_memory_and_moves_the_gradient_least():
    a, memories = net(), [task(seed) for seed in (3, 4, 5)]
    goal = -1.0 * learn(memories[0], 100) + -0.5 * learn(memories[1], 100)
    g = goal.value_and_gradient(a, 0)[1]
    v = value_and_gradient(gem(goal, memories, batch=100), a)[1]
    rows = [gradient(m, a) for m in memories]
    assert min(float(v.dot(r)) for r in rows) > -1e-9 and float(g.dot(rows[0])) < 0
    for seed in range(20):  # no feasible vector is nearer
        other = v + 0.01 * v.randn(seed)
        if min(float(other.dot(r)) for r in rows) >= 0:
            assert float((other - g).norm()) >= float((v - g).norm()) - 1e-9
    single = value_and_gradient(gem(goal, memories[:1], batch=100), a)[1]
    by_hand = g + (-float(g.dot(rows[0])) / float(rows[0].dot(rows[0]))) * rows[0]
    assert float((single - by_hand).norm()) < 1e-6 * float(g.norm()), "one memory is A-GEM"


def test_gem_leaves_a_harmless_gradient_alone():
    a, t = net(), task()
    assert float((value_and_gradient(gem(learn(t, 100), [t], 100), a)[1] - gradient(t, a)).norm()) < 1e-12


# inputs


def test_input_gradients_are_those_of_each_example():
    a, t = net(), task()
    x, y = t.example(20), t.labels()
    found = input_gradient(a, t, x, y)
    one = x[3:4].clone().requires_grad_()
    assert torch.allclose(found[3], torch.autograd.grad(F.cross_entropy(a(one), y[3:4]), one)[0][0])


def test_spreading_lowers_the_coherence():
    from weightspace.flows.ensembles import coherence

    a, t = net(), task(n=60)
    start = a + 0.05 * a.weights.randn(1)
    goal = spread([a], t, batch=100)
    value = value_and_gradient(goal, start)[0]
    assert value == pytest.approx(coherence([a, start], t), abs=1e-9) and value > 0.8
    end = flow(start, goal, Euclidean(), steps=15, size=0.1)[-1]
    assert coherence([a, end], t) < value - 0.3


def test_an_attack_stays_in_its_ball_and_raises_the_loss():
    a, t = net(), task()
    x, y = t.example(20), t.labels()
    moved = attacked(a, t, x, y, 0.3, 10, (-1.0, 1.0))
    inside = x.clamp(-1, 1)
    assert float((moved - x).abs().max()) <= max(0.3, float((inside - x).abs().max())) + 1e-12
    assert float(moved.max()) <= 1 and float(moved.min()) >= -1
    free = attacked(a, t, x, y, 0.3, 10, (-math.inf, math.inf))
    assert float((free - x).abs().max()) <= 0.3 + 1e-12
    assert float(F.cross_entropy(a(free), y)) > float(F.cross_entropy(a(x), y)) + 0.1


def test_hardening_lowers_the_loss_under_attack():
    a, t = net(), task(n=60)
    x, y = t.example(60), t.labels()

    def worst(w: Net) -> float:
        return float(F.cross_entropy(w(attacked(w, t, x, y, 0.3, 10, (-math.inf, math.inf))), y))

    end = flow(a, harden(t, 0.3, batch=100), Adam(), steps=60, size=0.02)[-1]
    assert worst(end) < worst(a) - 0.05


# Adam


def test_under_adam_a_flow_is_torchs_optimiser():
    a, t = net(), task()
    module = a.module()
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(7):
        optimiser.zero_grad()
        F.cross_entropy(module(t.example(20)), t.labels()).backward()
        optimiser.step()
    metric = Adam()
    for _ in range(2):  # what one flow has seen is not taken into the next
        end = flow(a, t, metric, steps=7, size=0.01)[-1]
        assert float((end - Net.of(module)).norm()) < 1e-9
    with pytest.raises(WeightspaceError, match="made of past gradients"):
        metric.norm(a, a.weights)


@pytest.mark.parametrize("most", [1, 7, 64])
def test_adam_part_by_part_is_adam_at_once(most, monkeypatch):
    a, t = net(), task()
    whole = flow(a, t, Adam(), steps=4, size=0.01)[-1].weights.flat()
    before = a.weights.flat().clone()
    monkeypatch.setattr(steps, "_CACHED", most)
    parts = flow(a, t, Adam(), steps=4, size=0.01)[-1].weights.flat()
    torch.testing.assert_close(parts, whole, rtol=1e-13, atol=1e-14)
    assert torch.equal(a.weights.flat(), before) and not torch.allclose(parts, before)


def test_the_norm_of_adam_weighs_by_the_gradients_seen():
    a = net()
    metric, g = Adam(), a.weights.randn(0)
    metric.steepest(a, g)
    v = a.weights.randn(1)
    assert float(metric.norm(a, v)) == pytest.approx(float((v.flat() ** 2 * g.flat().abs()).sum().sqrt()))


# refused


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda a, t: hold(t, a, "l7"), "distance takes 'squared' or 'kl'"),
        (lambda a, t: hold(t, a, batch=0), "at least one"),
        (lambda a, t: hold(t, a, temperature=0.0), "temperature"),
        (lambda a, t: ewc(a, t, 0.0), "strength"),
        (lambda a, t: gem(learn(t), []), "at least one task"),
        (lambda a, t: gem(learn(t), [t], batch=0), "at least one"),
        (lambda a, t: learn(t) + 3, "not a int"),
        (lambda a, t: drift(-1), "seed"),
        (lambda a, t: value_and_gradient(hold(t, a, output=lambda f: f[:, :1], distance="kl"), a), "not classes"),
        (lambda a, t: spread([], t), "at least one"),
        (lambda a, t: harden(t, 0.0), "radius"),
        (lambda a, t: value_and_gradient(harden(Task({"x": t.example(5)}, t.labels()[:5]), 0.1), a), "one tensor"),
        (lambda a, t: input_gradient(a, t, torch.zeros(2, 5).long(), t.labels()[:2]), "no gradient"),
        (lambda a, t: value_and_gradient(hold(Task(t.example(5)), a, labels=1.0), a), "no labels"),
        (lambda a, t: value_and_gradient(lambda n: torch.zeros(()), a), "no gradient"),
    ],
)
def test_bad_use_is_refused_in_one_line(act, words):
    with pytest.raises(WeightspaceError) as error:
        act(net(), task())
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_random_heading_has_no_value():
    assert math.isnan(value_and_gradient(drift(3), net())[0])


def test_gradient_takes_what_a_flow_takes():
    start = net()
    goal = 0.5 * learn(task(1), 16) + task(2)
    assert torch.equal(gradient(goal, start).flat(), goal.value_and_gradient(start, 0)[1].flat())
    assert float(gradient(goal, start).norm()) > 0
