"""How task vectors meet, against dense formulas; limits that are known; and the advice that follows."""

import math

import pytest
import torch
from lora_folders import normal

from weightspace.merging import advice, part
from weightspace.merging.advice import advise, interference, of_products
from weightspace.net.errors import WeightspaceError

SHAPES = {"a.weight": (12, 9), "a.bias": (12,), "b.weight": (5, 12)}


def network(seed, size=1.0):
    return {name: size * normal(seed + k, *shape) for k, (name, shape) in enumerate(SHAPES.items())}


def moved(base, seed, size=0.1):
    return {name: base[name] + size * change for name, change in network(seed).items()}


BASE = network(0)
SET = [moved(BASE, 10 * k) for k in (1, 2, 3)]


def vectors(name):
    return torch.stack([(one[name] - BASE[name]).flatten() for one in SET])


def test_every_number_is_that_of_its_formula():
    found = interference(SET, BASE)
    everything = torch.cat([vectors(name) for name in SHAPES], 1)
    torch.testing.assert_close(found.cosines, torch.corrcoef(everything) * 0 + _cosines(everything))
    torch.testing.assert_close(found.norms, everything.norm(dim=1))
    torch.testing.assert_close(
        found.relative, everything.norm(dim=1) / torch.cat([b.flatten() for b in BASE.values()]).norm()
    )
    for t, name in enumerate(SHAPES):
        torch.testing.assert_close(found.by_tensor[t], _cosines(vectors(name)))
        torch.testing.assert_close(found.ranks[t].isfinite().all(), torch.tensor(len(SHAPES[name]) > 1))
    x, y = everything[0], everything[1]
    weight = x.abs() * y.abs()
    assert float(found.conflicts[0, 1]) == pytest.approx(float(weight[x * y < 0].sum() / weight.sum()))
    share = 1 - everything.sum(0).abs().sum() / everything.abs().sum()
    assert found.cancelled == pytest.approx(float(share))
    matrices = torch.cat([vectors(name) for name in ("a.weight", "b.weight")], 1)
    apart = (matrices - matrices.mean(0)).square().sum(1).mean()
    size = sum(BASE[name].square().sum() for name in ("a.weight", "b.weight"))
    assert found.spread == pytest.approx(float((apart / size).sqrt()))
    spreads = [float(((vectors(n) - vectors(n).mean(0)).square().sum(1).mean() / BASE[n].square().sum()).sqrt())
               for n in ("a.weight", "b.weight")]  # fmt: skip
    assert found.trust == pytest.approx(math.prod(1 + s for s in spreads) - 1)


def _cosines(rows):
    unit = torch.nn.functional.normalize(rows, dim=1)
    return unit @ unit.mT


def test_the_singular_vectors_and_the_effective_rank_are_those_of_the_dense_matrices():
    found = interference(SET, BASE)
    u, s, v = (torch.cat(x, d) for x, d in zip(zip(*(
        (u[:, :3], s[:3], v[:3]) for u, s, v in (
            torch.linalg.svd(one["a.weight"] - BASE["a.weight"], full_matrices=False) for one in SET)
    ), strict=True), (1, 0, 0), strict=True))  # fmt: skip
    one = torch.eye(9, dtype=torch.float64)
    wanted = ((u.mT @ u - one) @ torch.diag(s) @ (v @ v.mT - one)).abs().sum() / s.sum()
    assert float(found.singular[0]) == pytest.approx(float(wanted))
    low = {**BASE, "a.weight": BASE["a.weight"] + torch.outer(normal(1, 12), normal(2, 9))}
    assert float(interference([low, low], BASE).ranks[0, 0]) == pytest.approx(1.0)


def test_the_largest_entries_of_equal_changes_are_the_same_and_of_others_by_chance():
    base = {"w": torch.zeros(200, 500)}
    same = {"w": normal(1, 200, 500).float()}
    found = interference([same, {"w": 3 * same["w"]}, {"w": normal(2, 200, 500).float()}], base, singular=False)
    assert float(found.overlaps[0, 1]) == pytest.approx(1.0)
    assert float(found.overlaps[0, 2]) == pytest.approx(0.1, abs=0.01)
    assert float(found.conflicts[0, 2]) == pytest.approx(0.5, abs=0.01)
    assert float(found.conflicts[0, 1]) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("room", [40, 100, 1 << 24])
def test_pieces_do_not_matter(monkeypatch, room):
    wanted = interference(SET, BASE)
    monkeypatch.setattr(part, "ROOM", room)
    monkeypatch.setattr(advice, "Part", lambda *a, **more: part.Part(*a, **more, room=room))
    found = interference(SET, BASE)
    for name in ("inner", "absolute", "opposed", "sizes", "singular", "ranks", "weights"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), equal_nan=True)


def test_laws_of_order_scale_and_opposites():
    found, back = interference(SET, BASE), interference(SET[::-1], BASE)
    torch.testing.assert_close(found.cosines, back.cosines.flip(0, 1))
    assert found.spread == pytest.approx(back.spread) and found.interfering == pytest.approx(back.interfering)
    twice = interference([{n: 2 * t for n, t in one.items()} for one in SET], {n: 2 * t for n, t in BASE.items()})
    torch.testing.assert_close(twice.cosines, found.cosines)
    assert twice.spread == pytest.approx(found.spread) and twice.trust == pytest.approx(found.trust)
    opposite = {n: 2 * BASE[n] - t for n, t in SET[0].items()}
    against = interference([SET[0], opposite], BASE)
    assert against.cancelled == pytest.approx(1.0) and float(against.conflicts[0, 1]) == pytest.approx(1.0)
    same = interference([SET[0], SET[0]], BASE)
    assert same.cancelled == pytest.approx(0.0, abs=1e-12) and same.spread == 0 and advise(same).kind == "same"


def test_without_a_base_distances_are_those_from_the_mean():
    with_base, without = interference(SET, BASE), interference(SET)
    assert not without.based
    mean = {n: sum(one[n] for one in SET) / 3 for n in BASE}
    size = math.sqrt(sum(float(mean[n].square().sum()) for n in ("a.weight", "b.weight")))
    old = math.sqrt(sum(float(BASE[n].square().sum()) for n in ("a.weight", "b.weight")))
    assert without.spread * size == pytest.approx(with_base.spread * old)
    torch.testing.assert_close(without.interfering, interference(SET, mean).interfering)


def test_heads_that_differ_and_integers_do_not_count():
    one = {**SET[0], "head.weight": normal(1, 3, 5), "steps": torch.tensor(1)}
    two = {**SET[1], "head.weight": normal(1, 4, 5), "steps": torch.tensor(2), "more": normal(2, 3)}
    found = interference([one, two], {**BASE, "steps": torch.tensor(0)})
    assert found.tensors == tuple(SHAPES) and found.matrices == ("a.weight", "b.weight")
    assert found.left_out == ("head.weight: 'the base' lack it", "more: 'network 0', 'the base' lack it")
    assert "of several shapes, (3, 5), (4, 5)" in interference([one, two]).left_out[0]


def refused(words, *given, **more):
    with pytest.raises(WeightspaceError, match=words) as told:
        interference(*given, **more)
    assert "\n" not in str(told.value)


def test_bad_inputs():
    refused("1 networks to compare; give 2 to 50", SET[:1])
    refused("51 networks to compare", [SET[0]] * 51)
    refused("1 names for 3 networks", SET, BASE, ["a"])
    refused("no tensor in common", [{"a": normal(0, 2)}, {"b": normal(0, 2)}])
    bad = {**SET[1], "b.weight": SET[1]["b.weight"] / 0}
    refused("NaN or infinity in 'b.weight' of two", [SET[0], bad], BASE, ["one", "two"])
    refused("NaN or infinity in 'b.weight' of the base", SET, bad)
    with pytest.raises(WeightspaceError, match="2 families for 3 networks"):
        advise(interference(SET, BASE), [0, 1])


def test_advice_follows_the_numbers():
    near = interference([moved(BASE, 10 * k, 0.001) for k in (1, 2)], BASE)
    far = interference([moved(BASE, 10 * k, 1.0) for k in (1, 2)], BASE)
    shared = moved(BASE, 40, 1.0)
    alike = interference([moved(shared, 10 * k, 0.1) for k in (1, 2)], BASE)
    assert near.spread < advice._NEAR < alike.spread < far.spread
    assert alike.mean(alike.conflicts) < advice.LOW < far.mean(far.conflicts)
    assert [advise(one).kind for one in (near, alike, far)] == ["average", "average", "search"]
    assert "lost 41% of the accuracy" in advise(far).why and "one" in advise(alike).words
    some = interference([moved(BASE, 10 * k, 0.05) for k in (1, 2)], BASE)
    assert some.spread < 0.1 and "lost 15% of" in advise(some).why, "what is lost grows with the spread"
    assert advise(interference([moved(BASE, 10 * k, 1.0) for k in (1, 2)])).kind == "unknown"
    strange = advise(far, [0, 1])
    assert strange.kind == "apart" and "network 0 | network 1" in strange.why and "no --arch was given" in strange.why
    assert "--arch" not in advise(far, [0, 1], matched=True).why
    assert advise(near, [0, 0], renumbered=True).kind == "align"
    assert advise(far, rise=-0.01).kind == "average", "a measurement goes before a prediction"
    assert advise(near, rise=2.0).kind == "search" and "+2" in advise(near, rise=2.0).why


def test_updates_alone_are_not_enough_for_advice():
    found = of_products(["a", "b"], ["q"], torch.tensor([[[4.0, 1.0], [1.0, 1.0]]]).double())
    assert float(found.cosines[0, 1]) == pytest.approx(0.5) and math.isnan(found.spread)
    assert advise(found).kind == "unknown" and "mean cosine of 0.5" in advise(found).why
