"""What is known of networks is used again, and equals what is computed anew: in other orders, parts and larger sets."""

import math

import numpy as np
import pytest
import torch

import weightspace as ws
from weightspace.atlas import compared as module
from weightspace.atlas import neighbourhoods
from weightspace.atlas.compared import Compared
from weightspace.atlas.gram import pairwise
from weightspace.atlas.lineage import lineage
from weightspace.atlas.sketches import sketch
from weightspace.net.errors import WeightspaceError

SHAPES = {"b": (30,), "a.weight": (40, 30), "c.weight": (30, 40)}


def drawn(seed, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {n: size * torch.randn(s, generator=generator) for n, s in SHAPES.items()}


def near(root, seed, size):
    return {n: w + size * drawn(seed)[n] for n, w in root.items()}


@pytest.fixture(scope="module")
def nets():
    """Three families of one parent each, a copy, and a stranger."""
    found = {}
    for family in range(3):
        found[f"root{family}"] = drawn(family)
        for k in range(4):
            found[f"child{family}{k}"] = near(found[f"root{family}"], 100 + 10 * family + k, 1e-2 * (k + 1))
    found["copy"] = {n: w.clone() for n, w in found["root1"].items()}
    found["alone"] = drawn(50)
    return found


@pytest.fixture
def atlas(tmp_path, nets):
    with ws.Atlas(tmp_path / "atlas") as opened:
        for name, net in nets.items():
            opened.add(net, name=name)
        yield opened


def keyed(atlas, names):
    return Compared([atlas[name].key for name in names], atlas.comparisons)


def told(atlas, nets, names):
    return keyed(atlas, names).distances([nets[n] for n in names], names, [""] * len(names))


def same(found, wanted):
    assert found.tensors == wanted.tensors and found.labels == wanted.labels and found.matrices == wanted.matrices
    size = float(wanted.inner.diagonal().max())
    torch.testing.assert_close(found.squares, wanted.squares, rtol=1e-5, atol=1e-12 * size)
    torch.testing.assert_close(found.products, wanted.products, rtol=1e-6, atol=1e-6 * size)
    torch.testing.assert_close(found.squared, wanted.squared, rtol=1e-5, atol=1e-12 * size)


def test_known_distances_are_those_of_a_full_computation_in_any_order_part_and_larger_set(atlas, nets, monkeypatch):
    names = [*nets]
    some = names[:9]
    same(told(atlas, nets, some), pairwise([nets[n] for n in some], some))
    for grown in (names[:11], names):  # two rows more, then four, which are computed with all others
        same(told(atlas, nets, grown), pairwise([nets[n] for n in grown], grown))
    monkeypatch.setattr(module, "pairwise", None)
    monkeypatch.setattr(module, "against", None)
    for part in (names, names[::-1], names[3:12:2], ["copy", "root1", "alone"]):
        same(told(atlas, nets, part), pairwise([nets[n] for n in part], part))


def test_another_content_and_another_move_find_nothing(atlas, nets, monkeypatch):
    names = [*nets][:5]
    told(atlas, nets, names)
    changed = {**nets, names[0]: drawn(77)}
    atlas.add(changed[names[0]], name=names[0], replace=True)
    same(told(atlas, changed, names), pairwise([changed[n] for n in names], names))
    doubled = {n: 2 * w for n, w in nets[names[1]].items()}
    members = [doubled if n == names[1] else changed[n] for n in names]
    moves = ["doubled" if n == names[1] else "" for n in names]
    for _ in range(2):
        same(keyed(atlas, names).distances(members, names, moves), pairwise(members, names))
    same(told(atlas, changed, names), pairwise([changed[n] for n in names], names))


def test_damaged_rows_are_computed_again(atlas, nets):
    names = [*nets][:4]
    told(atlas, nets, names)
    a, b = sorted(atlas[n].key for n in names[:2])
    atlas.comparisons.put("distances", {(a, b, ""): b"short"})
    same(told(atlas, nets, names), pairwise([nets[n] for n in names], names))


def test_sets_too_large_to_be_kept_are_computed_and_told(atlas, nets, monkeypatch):
    names = [*nets]
    monkeypatch.setattr(module, "_MOST", 100)
    compared = keyed(atlas, names)
    same(compared.distances([nets[n] for n in names], names, [""] * len(names)), pairwise([*nets.values()], names))
    assert "more than the atlas keeps" in compared.notes[0]
    assert not atlas.comparisons.of("distances", [atlas[n].key for n in names])


def test_a_lineage_does_not_depend_on_what_is_known_or_on_the_order(atlas, nets):
    names = [*nets]

    def edges(order, compared):
        found = lineage([nets[n] for n in order], order, compared=compared)
        return {(order[e.parent], order[e.child], e.kind) for e in found.edges if "copy" not in (order[e.child])}

    wanted = edges(names, keyed(atlas, names))
    assert edges(names, keyed(atlas, names)) == wanted
    roots = {pair[:2] for pair in wanted}
    assert {("root0", "child00"), ("root2", "child23")} <= roots | {pair[::-1] for pair in roots}


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(module, "MANY", 8)
    monkeypatch.setattr(neighbourhoods, "NEAREST", 4)


def test_near_distances_of_many_are_exact_and_others_estimates(atlas, nets, few):
    names = [*nets]
    exact = pairwise([*nets.values()], names)
    for _ in range(2):
        found = told(atlas, nets, names)
        told_of = found.estimated
        share = float(told_of.exact.double().mean())
        assert 0.2 < share < 0.9 and bool((told_of.exact == told_of.exact.T).all())
        at = told_of.exact
        torch.testing.assert_close(found.squared[at], exact.squared[at], rtol=1e-5, atol=1e-9)
        ratio = (found.distances[~at] / exact.distances[~at]).log()
        assert float(ratio.abs().max()) < 5 * told_of.error and float(ratio.std()) < 1.5 * told_of.error
        for i, j in ((0, 1), (5, 8), (names.index("copy"), names.index("root1"))):
            order = [exact.tensors.index(n) for n in found.names]
            torch.testing.assert_close(found.layers(i, j).double(), exact.squares[order, i, j], rtol=1e-5, atol=1e-12)
        with pytest.raises(KeyError):
            i, j = (~at).nonzero()[0].tolist()
            found.layers(i, j)
        near_ = found.only(found.matrices)
        assert near_.names == ("a.weight", "c.weight") and len(near_.layers(0, 1)) == 2


def test_a_lineage_of_many_finds_what_one_of_few_finds_and_says_what_is_estimated(atlas, nets, few):
    names = [*nets]
    large = lineage([*nets.values()], names, compared=keyed(atlas, names))
    small = lineage([*nets.values()], names)  # without a store MANY counts too: these are many as well
    assert {(e.parent, e.child) for e in large.edges} == {(e.parent, e.child) for e in small.edges}
    assert any("estimates from sketches" in note for note in large.notes)
    group = [large.group[names.index(f"root{k}")] for k in range(3)]
    assert len({*group}) == 3
    for family in range(3):
        assert {large.group[names.index(f"child{family}{k}")] for k in range(4)} == {group[family]}
    ws.atlas.scaled(large.distances.distances)


def test_exact_pairs_refuse_nan(nets):
    bad = {**drawn(0), "b": torch.full((30,), math.nan)}
    with pytest.raises(WeightspaceError, match="NaN.*second"):
        neighbourhoods.exactly([drawn(1), bad], ["first", "second"], [(0, 1)])
    with pytest.raises(WeightspaceError, match="NaN"):
        neighbourhoods.summary(bad, "second")


@pytest.mark.parametrize("what", ["normal", "one column", "one entry", "heavy"])
def test_squared_norms_of_sketches_have_the_mean_and_the_variance_that_are_stated(what):
    """2,000 draws, one for each name: |s|^2 has mean |x|^2 and variance 2 (|x|^4 - sum x^4) / width."""
    width, draws = 64, 2000
    x = torch.zeros(20, 64)
    generator = torch.Generator().manual_seed(1)
    if what == "one column":
        x[:, 5] = 1.0
    elif what == "one entry":
        x[3, 4] = 2.0
    else:
        x = torch.randn(20, 64, generator=generator) ** (1 if what == "normal" else 5)
    found = sketch({f"w{k}": x for k in range(draws)}, width=width)
    values = found.numbers.square().sum(1).numpy() / float(x.double().square().sum())
    spread = math.sqrt(2 * (1 - float(x.double().pow(4).sum() / x.double().square().sum() ** 2)) / width)
    assert abs(values.mean() - 1) <= 5 * spread / math.sqrt(draws) + 1e-12
    assert values.std() == pytest.approx(spread, rel=0.15, abs=1e-12)
    assert np.isfinite(values).all()


def test_a_sketch_of_parts_is_that_of_the_whole_and_widths_are_checked():
    big = {"w": torch.randn(700, 500, generator=torch.Generator().manual_seed(0))}
    assert torch.equal(sketch(big).numbers, sketch({"w": big["w"].double().float()}).numbers)
    for width in (0, 100, 1 << 16):
        with pytest.raises(WeightspaceError, match="power of two"):
            sketch(big, width=width)
    with pytest.raises(WeightspaceError, match="width"):
        sketch(big).distance(sketch(big, width=64))
