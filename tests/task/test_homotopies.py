"""Homotopies: exact ends, pairs of least distance, what lies between, and what is refused."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import weightspace as ws
from weightspace.task.examples import TaskError


def task(n: int = 12, seed: int = 0, classes: int = 3, width: int = 4) -> ws.Task:
    g = torch.Generator().manual_seed(seed)
    return ws.Task(torch.randn(n, width, generator=g, dtype=torch.float64), torch.arange(n) % classes, batch=5)


def net(seed: int = 0) -> ws.Net:
    torch.manual_seed(seed)
    return ws.Net.of(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double())


WAYS = [("inputs", "transport"), ("inputs", "class"), ("inputs", "order"), ("batches", "transport")]


@pytest.mark.parametrize(("kind", "pairs"), WAYS)
@pytest.mark.parametrize("sizes", [(12, 12), (12, 5), (4, 12)])
def test_the_ends_are_the_two_tasks(kind, pairs, sizes):
    a, b = task(sizes[0]), task(sizes[1], seed=1)
    path = ws.homotopy(a, b, kind, pairs=pairs)
    assert path(0) is a and path(1) is b and path(0.0)(net()) == a(net())
    assert len(path(0.4)) == path.pairs == (min(sizes) if pairs == "order" else max(sizes))


@pytest.mark.parametrize("pairs", ["transport", "class", "order"])
def test_the_loss_does_not_jump_at_the_ends(pairs):
    a, b, w = task(), task(seed=1), net()
    path = ws.homotopy(a, b, pairs=pairs)
    assert float(path(1e-9)(w)) == pytest.approx(float(a(w)), abs=1e-6)
    assert float(path(1 - 1e-9)(w)) == pytest.approx(float(b(w)), abs=1e-6)


def test_transport_is_the_best_of_all_pairings():
    a, b = task(5), task(5, seed=1)
    x, y = a.example(5), b.example(5)
    best = min(float((x - y[[*order]]).square().sum(1).mean().sqrt()) for order in permutations(range(5)))
    assert ws.homotopy(a, b).distance == pytest.approx(best)
    assert ws.homotopy(a, b, pairs="order").distance > best + 1e-3
    middle = ws.homotopy(a, b)(0.5).example(5)
    assert all(((x[:, None] + y) / 2 - row).norm(dim=-1).min() < 1e-9 for row in middle)


def test_a_task_and_its_examples_in_another_order_are_transported_onto_each_other():
    a = task()
    b = a.pick(torch.randperm(12, generator=torch.Generator().manual_seed(3)).tolist())
    path = ws.homotopy(a, b)
    assert path.distance < 1e-9
    assert float(path(0.5)(net())) == pytest.approx(float(a(net())))


def test_within_classes_the_labels_stay():
    a, b = task(), task(9, seed=1)
    labels = ws.homotopy(a, b, pairs="class")(0.3).labels()
    assert torch.equal(labels.amax(1), torch.ones(12, dtype=torch.float64))
    assert ws.homotopy(a, b)(0.3).labels().amax(1).min() < 0.9999  # planted: transport mixes them


def test_mixed_labels_are_those_of_toward():
    a = task()
    b = a.relabelled((a.labels() + 1) % 3)
    path, w = ws.homotopy(a, b, "labels"), net()
    assert float(path(0.3)(w)) == pytest.approx(0.7 * float(a(w)) + 0.3 * float(b(w)))
    assert float(path(0.3)(w)) == float(a.toward(b, 0.3)(w))


def test_mixed_batches_have_the_share_of_both_and_change_one_by_one():
    a, b, w = task(10), task(5, seed=1), net()
    path = ws.homotopy(a, b, "batches", seed=4)
    xs = [path(k / 10).example(10) for k in range(1, 10)]
    known = {float(v) for v in b.example(5)[:, 0]}
    assert [sum(float(v) in known for v in x[:, 0]) for x in xs] == [*range(1, 10)]
    mean = torch.stack([ws.homotopy(a, b, "batches", seed=s)(0.4)(w) for s in range(300)]).mean()
    assert float(mean) == pytest.approx(0.6 * float(a(w)) + 0.4 * float(b(w)), rel=0.02)


def test_seeds_decide_and_repeat():
    a, b = task(10), task(5, seed=1)
    one, same, other = (ws.homotopy(a, b, "batches", seed=s)(0.5).example(10) for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one.sort(0)[0], other.sort(0)[0])


def test_many_examples_are_assigned_in_blocks(monkeypatch):
    from weightspace.task import homotopies

    a, b = task(30), task(30, seed=1)
    whole = ws.homotopy(a, b).distance
    monkeypatch.setattr(homotopies, "_BLOCK", 7)
    cut = ws.homotopy(a, b)
    assert whole < cut.distance < ws.homotopy(a, b, pairs="order").distance
    rows = cut(0.999999999).example(30)
    assert torch.cdist(b.example(30), rows).min(1)[0].max() < 1e-6  # all of b is used


@pytest.mark.parametrize(
    ("a", "b", "how", "said"),
    [
        (task(), task(width=5), {}, r"different shape an example: \(4,\) and \(5,\)"),
        (task(), ws.Task(task().example(12)), {}, "the second task has no labels"),
        (ws.Task(task().example(12)), ws.Task(task().example(12)), {}, "first and second task has no labels"),
        (task(), task(classes=2), {"pairs": "class"}, r"same classes in both tasks, and only one has \[2\]"),
        (task(), task(seed=1), {"kind": "labels"}, "two tasks with the same inputs"),
        (task(), task(seed=1), {"kind": "batches", "pairs": "order"}, "leave it out for batches"),
        (task(), ws.Task(task().example(12), task().labels(), metric="zero-one"), {}, "two tasks of different metric"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(a, b, how, said):
    with pytest.raises(TaskError, match=said) as refused:
        ws.homotopy(a, b, **how)
    assert "\n" not in str(refused.value)


def test_other_numbers_of_classes_and_tokens_are_refused():
    x = task().example(12)
    soft = [ws.Task(x, F.one_hot(task().labels(), k).double(), metric="cross-entropy") for k in (3, 4)]
    with pytest.raises(TaskError, match="other numbers of classes"):
        ws.homotopy(*soft)
    tokens = ws.Task(torch.arange(12)[:, None] % 5, task().labels())
    with pytest.raises(TaskError, match="tokens"):
        ws.homotopy(tokens, tokens.pick([*range(11, -1, -1)]))
    assert len(ws.homotopy(tokens, tokens, "batches")(0.5)) == 12
    with pytest.raises(TaskError, match="give a number in"):
        ws.homotopy(task(), task(seed=1))(1.5)
