"""Distances between networks of any architectures: what they must not see, what they must, and what they say."""

import itertools
import math

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.metric.across_architectures import BLIND, in_order
from weightspace.net.errors import WeightspaceError


def mlp(*sizes, act=nn.ReLU):
    layers = [part for i, o in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(i, o), act())]
    return nn.Sequential(*layers[:-1])


def net(*sizes, seed=0):
    return ws.fresh(lambda: mlp(*sizes), seed)


@pytest.fixture(scope="module")
def task():
    x = torch.randn(150, 6, generator=torch.Generator().manual_seed(0))
    return ws.Task(x, (x @ torch.ones(6) > 0).long(), batch=32)


def test_a_network_is_at_distance_zero_from_itself_renumbered_and_rescaled(task):
    a = net(6, 12, 10, 3)
    group = ws.Symmetry.of(a, task.example(2))
    moved, rescaled = group.sample(1, "permutation")(a), group.sample(1, "scale")(a)
    assert min(ws.euclidean(a, moved), ws.euclidean(a, rescaled)) > 1
    found, other = (ws.distances(a, b, task) for b in (moved, rescaled))
    assert found.apart < 1e-5 and found.alike > 1 - 1e-5
    assert max(found.outputs["l2"], other.outputs["l2"]) < 1e-5 and other.outputs["disagreement"] == 0
    assert other.apart > 0.1  # a scale for every unit is a change of the layer, which only what reads it undoes


def test_the_numbers_are_those_of_the_functions(task):
    a, b = net(6, 12, 3), net(6, 9, 7, 3, seed=1)
    found = ws.distances(a, b, task)
    one, other = (ws.features(task)(n) for n in (a, b))
    assert found.first == tuple(one) and found.second == tuple(other) and found.examples == 150
    for (i, x), (j, y) in itertools.product(enumerate(one.values()), enumerate(other.values())):
        assert float(found.cka[i, j]) == pytest.approx(ws.cka(x, y, unbiased=True), abs=1e-6)
        assert float(found.procrustes[i, j]) == pytest.approx(ws.procrustes(x, y), abs=1e-6)
    assert found.outputs["l2"] == pytest.approx(ws.functional(a, b, task))
    assert found.outputs["kl"] == pytest.approx(ws.functional(a, b, task, "kl"))
    back = ws.distances(b, a, task)
    assert torch.allclose(back.cka.T, found.cka) and torch.allclose(back.procrustes.T, found.procrustes)
    assert [(p.second, p.first) for p in back.pairs] == [(p.first, p.second) for p in found.pairs]
    assert back.outputs["l2"] == pytest.approx(found.outputs["l2"])


def test_the_best_pairs_are_the_best_of_all_in_order():
    draw = torch.Generator().manual_seed(0)
    for m, n in ((1, 1), (1, 4), (2, 5), (3, 3), (4, 6), (5, 3)):
        gain = torch.randn(m, n, generator=draw).tolist()
        pairs = in_order(gain)
        few, many = min(m, n), max(m, n)
        every = [list(zip(range(few), c, strict=True)) for c in itertools.combinations(range(many), few)]
        every = every if m <= n else [[(j, i) for i, j in pairing] for pairing in every]
        assert sum(gain[i][j] for i, j in pairs) == pytest.approx(max(sum(gain[i][j] for i, j in p) for p in every))
        assert pairs == sorted(pairs) and len({i for i, _ in pairs}) == len({j for _, j in pairs}) == few


def test_a_layer_put_in_between_is_passed_over(task):
    a = net(6, 12, 10, 3)
    deep = nn.Sequential(
        nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3)
    )
    inner = ws.fresh(deep, 1).module()
    with torch.no_grad():
        for place, source in ((0, "0"), (4, "2"), (6, "4")):
            inner[place].weight.copy_(a.weights[f"{source}.weight"])
            inner[place].bias.copy_(a.weights[f"{source}.bias"])
        inner[2].weight.copy_(torch.eye(12))
        inner[2].bias.zero_()
    found = ws.distances(a, ws.Net.of(inner), task)
    assert [p.first for p in found.pairs] == ["1", "3"] and found.pairs[1].second == "5"
    assert found.apart < 1e-5 and found.outputs["l2"] < 1e-5


def test_each_is_blind_to_what_is_said(task):
    """Planted: the inside differs and the outputs do not; the inside is the same and what reads it is not."""
    a = net(6, 12, 3)
    none = {"2.weight": torch.zeros(3, 12), "2.bias": torch.zeros(3)}
    other = net(6, 12, 3, seed=5)
    deaf, mute = (one.at(one.weights.replace(none)) for one in (a, other))
    found = ws.distances(deaf, mute, task)
    assert found.outputs["l2"] == 0 < 0.3 < found.apart and math.isnan(found.outputs["relative"])
    read = ws.distances(a, deaf, task)
    assert read.apart < 1e-6 < read.outputs["l2"]
    assert all(any(text[1:] in note for note in found.notes) for text in BLIND.values())


def test_few_examples_are_told(task):
    a, b = net(6, 40, 3), net(6, 40, 3, seed=1)
    few = ws.distances(a, b, task.take(30))
    assert any("30 examples are few for layers of 40 units" in note for note in few.notes)
    assert not any("are few" in note for note in ws.distances(net(6, 8, 3), net(6, 9, 3), task).notes)
    assert few.apart < ws.distances(a, b, task).apart  # of any two layers they are small then
    assert "| 1 | 1 | 40, 40 |" in few.table() and few.data()["pairs"][0]["widths"] == [40, 40]


def test_outputs_of_two_shapes_have_no_distance(task):
    found = ws.distances(net(6, 12, 3), net(6, 12, 5), task)
    assert found.outputs == {} and "have no distance" in found.notes[0] and len(found.pairs) == 1
    real = ws.Task(task.example(50), torch.randn(50, 3), loss=nn.MSELoss())
    assert {*ws.distances(net(6, 12, 3), net(6, 9, 3), real).outputs} == {"l2", "relative"}
    bare = ws.Task(task.example(50))
    assert "kl" in ws.distances(net(6, 12, 3), net(6, 9, 3), bare).outputs


def test_what_cannot_be_compared_is_said(task):
    a = net(6, 12, 3)
    cases = [
        (a, net(7, 12, 3), task, "7"),
        (a, a, task.take(3), "3 examples; give 4 or more"),
        (a, ws.Net.of(nn.Linear(6, 3)), task, "no layers of this kind"),
        (a, a.at(a.weights * math.nan), task, "NaN"),
        (a, a.at(a.weights.map(torch.zeros_like)), task, "every layer of the second network is the same"),
    ]
    for one, other, given, said in cases:
        with pytest.raises(WeightspaceError, match=said) as caught:
            ws.distances(one, other, given)
        assert "\n" not in str(caught.value)
    assert ws.distances(a, ws.Net.of(nn.Linear(6, 3)), task, "maps").pairs
