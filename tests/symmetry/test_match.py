"""Which matcher is kept, and that nothing depends on whether tensors are held in memory."""

from __future__ import annotations

import sys

import architectures
import pytest
import torch
from architectures import CASES

from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.symmetry.align.ascent import Matching, coordinate_descent
from weightspace.symmetry.align.terms import weight_terms
from weightspace.symmetry.balance import balancing
from weightspace.symmetry.symmetry import Symmetry
from weightspace.task.task import Task

kept_terms = sys.modules["weightspace.symmetry.align.terms"]
match = sys.modules["weightspace.symmetry.align.match"]
KINDS = ["mlp", "mlp_tanh", "resnet_gn4", "mha", "grouped_conv", "tied_residual"]


def pair(name: str) -> tuple[Symmetry, Net, Net]:
    case = CASES[name]
    group = Symmetry.of(case.make(0), case.example(0))
    return group, architectures.noisy(case, 1), architectures.noisy(case, 2)


def task(name: str = "mlp", n: int = 60) -> Task:
    x = torch.randn(n, *CASES[name].example(0).shape[1:], generator=torch.Generator().manual_seed(3))
    return Task(x, torch.arange(n) % 3)


@pytest.mark.parametrize("name", KINDS)
def test_tensors_that_are_made_again_lead_to_the_same_match(name, monkeypatch):
    group, a, b = pair(name)
    onto, into = (balancing(group, net.weights) for net in (a, b))
    kept = weight_terms(group, a, b, onto, into)
    monkeypatch.setattr(kept_terms, "_SMALL", 0)
    made = weight_terms(group, a, b, onto, into)
    assert kept.kept and not made.kept
    assert all(torch.equal(kept.moving[n], made.moving[n]) for n in kept.moving)
    one, two = (Matching(group, terms) for terms in (kept, made))
    first, second = one.run(seed=0), two.run(seed=0)
    assert first.difference(second) == 0 and first.factors.keys() == second.factors.keys()
    assert one.objective() == pytest.approx(two.objective(), rel=1e-6)
    assert one.objective() >= Matching(group, kept).objective() - 1e-6


@pytest.mark.parametrize("name", KINDS)
def test_tensors_in_parts_lead_to_the_same_match(name, monkeypatch):
    """Cut along a dimension that moves with no axis: the parts together are the tensors, and match alike."""
    group, a, b = pair(name)
    onto, into = (balancing(group, net.weights) for net in (a, b))
    kept = weight_terms(group, a, b, onto, into)
    monkeypatch.setattr(kept_terms, "_SMALL", 0)
    monkeypatch.setattr(kept_terms, "_PART", 6)
    cut = weight_terms(group, a, b, onto, into)
    parts = {n: [p for p in cut.moving if p == n or p.startswith(f"{n}[")] for n in kept.moving}
    assert sum(map(len, parts.values())) == len(cut.moving) and (len(cut.moving) > len(kept.moving)) == any(
        group.whole_dims(n) and kept.moving[n].numel() >= 12 for n in kept.moving
    )
    for n, found in parts.items():
        dims = [d for d in group.whole_dims(n) if len(found) > 1]
        assert any(torch.equal(torch.cat([cut.moving[p] for p in found], d), kept.moving[n]) for d in dims or [0])
    one, two = (Matching(group, terms) for terms in (kept, cut))
    assert one.run(seed=0).difference(two.run(seed=0)) == 0
    assert one.objective() == pytest.approx(two.objective(), rel=1e-6)


def test_large_networks_are_matched_in_parts_by_every_matcher(monkeypatch):
    group, a, b = pair("mlp")
    whole = {method: group.match(a, to=b, method=method) for method in ("weights", "frank-wolfe")}
    monkeypatch.setattr(kept_terms, "_SMALL", 0)
    monkeypatch.setattr(kept_terms, "_PART", 6)
    for method, found in whole.items():
        again = group.match(a, to=b, method=method)
        assert again.element.difference(found.element) == 0
        assert again.candidates[0].objective == pytest.approx(found.candidates[0].objective, rel=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_remembered_is_what_is_there(name):
    """The objective, kept tensor by tensor through the ascent, against the moved network itself."""
    group, a, b = pair(name)
    a, b = group.fold(a), group.fold(b)
    matching = Matching(group, weight_terms(group, a, b))
    element = matching.run(seed=1)
    moved = element(b)
    total = sum(float((a.weights[n].float() * moved.weights[n].float()).sum()) for n in matching.fixed)
    assert matching.objective() == pytest.approx(total, rel=1e-5)
    assert matching.objective() != pytest.approx(float(a.weights.dot(b.weights)), rel=1e-3)


def test_it_starts_where_it_is_told_to():
    group, a, b = pair("mlp")
    start = group.sample(seed=4, kinds=("permutation",))
    terms = weight_terms(group, a, b)
    assert coordinate_descent(group, terms, start).difference(start) < 1
    still = Matching(group, terms, start)
    assert torch.equal(still.moving("a.weight"), start(b).weights["a.weight"].float())


def test_frank_wolfe_is_left_out_where_its_matrices_are_large(monkeypatch):
    group, a, b = pair("mlp")
    assert "frank-wolfe" in [c.method for c in group.match(a, to=b).candidates]
    monkeypatch.setattr(kept_terms, "_SMALL", 0)
    assert "frank-wolfe" not in [c.method for c in group.match(a, to=b).candidates]
    assert group.match(a, to=b, method="frank-wolfe").method == "frank-wolfe"


def test_the_lowest_barrier_is_kept_and_the_reason_told():
    group, a, b = pair("mlp")
    found = group.match(b, to=a, data=task())
    lowest = min(c.barrier for c in found.candidates)
    assert next(c.barrier for c in found.candidates if c.method == found.method) == lowest
    assert f"{lowest:.4f}" in found.why
    blind = group.match(b, to=a)
    assert blind.method == max(blind.candidates, key=lambda c: c.objective).method and "no data" in blind.why


def test_it_stops_where_nothing_is_left_to_gain():
    group, a, _ = pair("mlp")
    copy = group.sample(seed=2)(a)
    assert len(group.match(copy, to=a, data=task()).candidates) == 1


def test_data_in_another_precision_will_do():
    group, a, b = pair("mlp")
    double = Task(task().example(60).double(), torch.arange(60) % 3)
    for nets in ((a, b), (a.to(torch.float32), b.to(torch.float32))):
        assert group.match(nets[1], to=nets[0], data=double).candidates


@pytest.mark.parametrize(
    ("method", "words"), [("sorting", "method takes"), ("activations", "needs data"), ("", "method takes")]
)
def test_bad_methods_are_refused(method, words):
    group, a, b = pair("mlp")
    with pytest.raises(WeightspaceError, match=words):
        group.match(b, to=a, method=method)


def test_networks_with_holes_are_refused():
    group, a, b = pair("mlp")
    hole = b.at(b.weights.replace({"a.bias": torch.full_like(b.weights["a.bias"], float("nan"))}))
    for nets in ((a, hole), (hole, a)):
        with pytest.raises(WeightspaceError, match=r"a\.bias"):
            group.match(nets[0], to=nets[1])
