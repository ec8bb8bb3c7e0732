"""Kinds of relatives, averages and lineage: planted relatives are named, and their reverse too."""

import math

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.atlas.averages import averages
from weightspace.atlas.gram import pairwise
from weightspace.atlas.lineage import lineage, plain
from weightspace.atlas.relatives import relation
from weightspace.atlas.renumbered import Moved

SHAPES = {"0.weight": (40, 30), "0.bias": (40,), "2.weight": (20, 40), "2.bias": (20,)}


def drawn(seed, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {n: size * torch.randn(s, generator=generator) for n, s in SHAPES.items()}


def changed(member, change):
    return {n: change(w) if w.dim() > 1 else w.clone() for n, w in member.items()}


def on_grid(w, bits=8, each=None):
    rows = w.reshape(-1, each or w.numel())
    step = rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return ((rows / step).round() * step).reshape(w.shape)


def low_rank(w):
    g = torch.Generator().manual_seed(5)
    return w + 0.1 * torch.randn(w.shape[0], 2, generator=g) @ torch.randn(2, w.shape[1], generator=g)


def sparse(w):
    return torch.where(w.abs() > 0.7, w, 0.0)


DERIVED = {
    "float16": ("cast", lambda w: w.half()),
    "bfloat16 in float32": ("cast", lambda w: w.bfloat16().float()),
    "8 bits": ("quantised", on_grid),
    "8 bits by row": ("quantised", lambda w: on_grid(w, 8, w.shape[1])),
    "4 bits": ("quantised", lambda w: on_grid(w, 4)),
    "pruned": ("pruned", sparse),
    "pruned and tuned": ("pruned", lambda w: sparse(w) * (1 + 0.01 * torch.randn(w.shape))),
}


@pytest.mark.parametrize("case", DERIVED)
def test_what_a_rule_makes_has_a_kind_and_a_direction(case):
    kind, change = DERIVED[case]
    a = drawn(0)
    b = changed(a, change) if kind != "cast" else {n: change(w) for n, w in a.items()}
    found, back = relation(a, b), relation(b, a)
    assert (found.kind, found.direction) == (kind, 1) and (back.kind, back.direction) == (kind, -1)
    assert found.confidence > 0.99 and found.forward() == pytest.approx(1 - back.forward())


def test_copies_strangers_and_low_ranks():
    a = drawn(0)
    assert relation(a, {n: w.clone() for n, w in a.items()}).kind == "copy"
    assert relation(a, {n: w * (1 + 1e-7) for n, w in a.items()}).kind == "copy"
    assert relation(a, drawn(1)).kind == "independent"
    found = relation(a, changed(a, low_rank))
    assert found.kind == "low-rank" and found.evidence["rank"] == 2.0
    noisy = changed(a, lambda w: low_rank(w) + 1e-3 * torch.randn(w.shape))
    assert relation(a, noisy).kind != "low-rank", "the planted error: full rank below a low one"


def test_weights_that_only_decay_tell_the_direction():
    a = drawn(0)
    generator = torch.Generator().manual_seed(1)
    b = {n: w + 0.1 * torch.randn(w.shape, generator=generator) for n, w in a.items()}
    b["0.weight"][:, :4] = 0.999 * a["0.weight"][:, :4]
    assert relation(a, b).direction == 1 and relation(b, a).direction == -1
    assert "weight decay" in relation(a, b).why


def test_differences_with_heavy_tails_on_even_terms_are_siblings():
    a, g = drawn(0, 1.0), torch.Generator().manual_seed(2)
    heavy = lambda w: w + 0.05 * torch.randn(w.shape, generator=g) / torch.rand(w.shape, generator=g).clamp(min=0.02)  # noqa: E731
    x, y = changed(a, heavy), changed(a, heavy)
    assert relation(x, y).kind == "siblings" and relation(x, y).direction == 0


def test_bad_pairs_are_refused():
    a = drawn(0)
    with pytest.raises(ws.WeightspaceError, match="only one"):
        relation(a, {n: w for n, w in a.items() if n != "0.bias"})
    with pytest.raises(ws.WeightspaceError, match="shapes"):
        relation(a, {**a, "0.bias": torch.zeros(3)})
    with pytest.raises(ws.WeightspaceError, match="NaN"):
        relation(a, {**a, "0.bias": torch.full((40,), math.nan)})


def mixed(members, shares):
    return {n: sum((c * members[k][n] for k, c in shares.items()), torch.zeros(())) for n in SHAPES}


def near(root, seed, size=0.1):
    noise = drawn(seed)
    return {n: w + size * noise[n] for n, w in root.items()}


@pytest.mark.parametrize("shares", [{1: 0.3, 2: 0.7}, {1: 0.5, 2: 0.3, 3: 0.2}, {0: -1.0, 1: 1.0, 2: 1.0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_averages_are_found_with_their_weights(shares, dtype):
    members = [drawn(0)]
    members += [near(members[0], seed) for seed in (1, 2, 3)]
    if min(shares.values()) < 0:
        members[1:] = [near(members[0], seed, 0.5) for seed in (1, 2, 3)]
    members.append({n: w.to(dtype) for n, w in mixed(members, shares).items()})
    members.append(drawn(9))
    [found] = averages(members, pairwise(members))
    got = dict(zip(found.parents, found.weights, strict=True))
    assert found.child == 4 and got.keys() == shares.keys()
    assert max(abs(got[k] - c) for k, c in shares.items()) < 1e-3
    assert found.convex == (min(shares.values()) > 0)


def test_what_is_near_an_average_is_none():
    members = [drawn(0), drawn(1)]
    middle = mixed(members, {0: 0.5, 1: 0.5})
    assert averages([*members, near(middle, 3, 1e-3)], pairwise([*members, near(middle, 3, 1e-3)])) == []
    assert averages(members, pairwise(members)) == []
    assert averages([*members, members[0]], pairwise([*members, members[0]])) == [], "a copy is no average"


@pytest.fixture(scope="module")
def architecture():
    net = ws.Net.of(nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 20)))
    return net, ws.Symmetry.of(net, torch.randn(2, 30))


def test_a_lineage_of_planted_relatives(architecture):
    net, group = architecture
    a, b = drawn(0, 0.2), drawn(1, 0.2)
    tuned = [near(a, seed, 0.03) for seed in (2, 3)]
    members = [a, {n: w.half() for n, w in a.items()}, group.sample(1)(net.load(a)).tensors]
    members += [changed(a, lambda w: torch.where(w.abs() > 0.1, w, 0.0)), b]
    members += [*tuned, {n: 0.25 * tuned[0][n] + 0.75 * tuned[1][n] for n in a}]
    found = lineage(members, net=net, group=group)
    kinds = {(e.parent, e.child): e.kind for e in found.edges}
    assert kinds[0, 1] == "cast" and found.renumbered[2] and found.group[4] not in {found.group[k] for k in (0, 1, 2)}
    assert {e.parent for e in found.edges if e.kind == "average"} == {5, 6} == set(found.parents(7))
    assert "pruned" in kinds.values() and 4 in found.roots and not found.parents(4)
    assert sorted(e.share for e in found.edges if e.kind == "average") == pytest.approx([0.25, 0.75], abs=1e-3)
    assert {e["kind"] for e in plain(found)["edges"]} == set(kinds.values()) and not found.notes


def test_without_a_group_renumbered_networks_are_strangers_and_it_is_said(architecture):
    net, group = architecture
    a = drawn(0, 0.2)
    found = lineage([a, group.sample(1)(net.load(a)).tensors, {n: w.half() for n, w in a.items()}])
    assert found.group == (0, 1, 0) and "no group" in found.notes[0]
    with pytest.raises(ws.WeightspaceError, match="both"):
        lineage([a], net=net)


def test_an_average_is_no_ancestor_of_its_parents(architecture):
    """Its parents' own parent is nearer to it than to them."""
    a = drawn(0, 0.2)
    tuned = [near(a, seed, 0.03) for seed in (2, 3, 4)]
    middle = {n: sum(t[n] for t in tuned) / 3 for n in a}
    found = lineage([a, *tuned, middle, {n: w.half() for n, w in middle.items()}])
    assert sorted(found.parents(4)) == [1, 2, 3] and found.parents(5) == [4]
    for start in range(6):
        seen, todo = set(), found.parents(start)
        while todo:
            node = todo.pop()
            assert node != start, "a cycle"
            if node not in seen:
                seen.add(node)
                todo += found.parents(node)


def test_a_network_that_is_moved_as_it_is_read(architecture):
    net, group = architecture
    a, g = net.load(drawn(0)), group.sample(4)
    moved = Moved(a.tensors, g, net)
    for name, tensor in g(a).tensors.items():
        torch.testing.assert_close(moved[name], tensor)
    assert len(moved) == 4 and moved.shapes["0.weight"] == (40, 30)


def test_a_mask_that_all_networks_have_makes_no_relatives():
    mask = torch.full((64, 64), -1e9).triu(1)
    strangers = [{**drawn(seed), "mask": mask} for seed in range(3)]
    pruned = {**changed(drawn(4), lambda w: w * (torch.rand(w.shape) > 0.5)), "mask": mask}
    assert relation(strangers[0], strangers[1]).kind == "independent"
    assert relation(strangers[0], pruned).kind == "independent"
    found = lineage([*strangers, pruned])
    assert not found.edges and len({*found.group}) == 4
    tuned = {n: w + 1e-2 if n == "0.weight" else w for n, w in strangers[0].items()}
    assert relation(strangers[0], tuned).kind != "copy"


def test_a_layer_that_starts_at_zero_is_not_pruned():
    trained = changed(drawn(0), lambda w: 0.3 * w)
    start = {n: torch.zeros_like(w) if n == "2.weight" else w + 0.02 for n, w in trained.items()}
    assert relation(start, trained).kind == "fine-tune" and relation(trained, start).kind == "fine-tune"


def test_two_casts_of_a_network_that_is_missing_are_told_as_such():
    generator = torch.Generator().manual_seed(3)
    root = {f"{k}.weight": torch.randn(90, 80, generator=generator) for k in range(2)}
    half, brain = ({n: w.to(d) for n, w in root.items()} for d in (torch.float16, torch.bfloat16))
    other = {n: torch.randn(90, 80, generator=generator) for n in root}
    found = lineage([half, other, brain], ["half", "other", "brain"])
    assert found.siblings == ((0, 2),) and not found.edges
    assert "half and brain are casts of one network that is not among these" in found.notes
    whole = lineage([half, root, brain], ["half", "root", "brain"])
    assert {(e.parent, e.child, e.kind) for e in whole.edges} == {(1, 0, "cast"), (1, 2, "cast")}
    assert not [note for note in whole.notes if "casts" in note]
    near = {n: (w.float() * (1 + 0.02 * torch.randn(w.shape, generator=generator))).bfloat16() for n, w in half.items()}
    assert "rounded" in relation(half, brain).evidence and "rounded" not in relation(half, near).evidence
