"""Merged and compared adapters, against dense sums of s B A; no result depends on the choice of factors."""

import pytest
import torch
from lora_folders import PREFIX, SHAPES, dense, factors, normal, stored, turned

from weightspace.merging.adapters.combined import adapter_distance, inner_products, merge_adapters
from weightspace.merging.adapters.lora_folder import lora
from weightspace.merging.methods import METHODS
from weightspace.net.errors import WeightspaceError

A, B = factors(0, 3), factors(1, 2, ("h.0.q", "h.1.q"))
WEIGHTS = [0.3, 1.7]
STREAMED = [name for name in ("linear", "task_arithmetic", "ties", "dare", "della", "breadcrumbs") if name in METHODS]


@pytest.fixture
def pair(tmp_path):
    return stored(tmp_path / "a", A), stored(tmp_path / "b", B, use_rslora=True, lora_alpha=4)


def reference(pair, weights=WEIGHTS):
    """The dense weighted sum; a layer that one lacks is zero in it."""
    first, second = dense(pair[0], 2.0), dense(pair[1], 4 / 2**0.5)
    zero = torch.zeros(8, 6, dtype=torch.float64)
    return {layer: weights[0] * first[layer] + weights[1] * second.get(layer, zero) for layer in SHAPES}


def back(tmp_path, new, name="out"):
    """The updates of a new adapter, read again from disk."""
    found = lora(new.save(tmp_path / name))
    return {layer: found.update(layer).dense() for layer in found.layers}


def close(found, wanted, tol=1e-10):
    assert found.keys() == wanted.keys()
    for layer, matrix in wanted.items():
        torch.testing.assert_close(found[layer], matrix, rtol=tol, atol=tol)


def test_merged_adapters_are_the_dense_sum(tmp_path, pair):
    new = merge_adapters(pair, WEIGHTS)
    close(back(tmp_path, new), reference(pair))
    assert {*new.errors.values()} == {0.0} and new.config["r"] == 5 and new.config["rank_pattern"] == {r"h\.0\.v": 3}
    assert new.config["target_modules"] == ["h.0.q", "h.0.v", "h.1.q"]
    close(back(tmp_path, merge_adapters(pair), "mean"), reference(pair, [0.5, 0.5]))


@pytest.mark.parametrize("rank", [1, 2, 4, 20])
def test_a_cut_is_the_nearest_of_its_rank_and_tells_what_is_lost(tmp_path, pair, rank):
    new = merge_adapters(pair, WEIGHTS, rank=rank)
    for layer, matrix in reference(pair).items():
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        torch.testing.assert_close(back(tmp_path, new, layer)[layer], u[:, :rank] * s[:rank] @ v[:rank])
        assert new.kept[layer] == pytest.approx(float(s[:rank].square().sum() / s.square().sum()), abs=1e-9)
        assert new.tensors[f"{PREFIX}{layer}.lora_A.weight"].shape[0] <= rank


def test_a_wrong_scale_would_be_seen(tmp_path, pair):
    with pytest.raises(AssertionError):
        close(back(tmp_path, merge_adapters(pair, WEIGHTS)), reference(pair, [0.3, 1.7 / 2**0.5]))


def test_factors_added_one_by_one_are_not_the_sum(tmp_path, pair):
    """Averages of A and of B have cross terms: (B + B')(A + A') / 4 is not (B A + B' A') / 2."""
    other = factors(1, 3)
    averaged = {n: (A[n] + other[n]) / 2 for n in A}
    wrong = dense(stored(tmp_path / "wrong", averaged), 2.0)
    new = merge_adapters([pair[0], stored(tmp_path / "c", other)])
    found = back(tmp_path, new)
    assert all((found[layer] - wrong[layer]).norm() > 0.3 * found[layer].norm() for layer in SHAPES)


@pytest.mark.parametrize("method", STREAMED)
@pytest.mark.parametrize("rank", [None, 2])
def test_the_choice_of_factors_does_not_matter(tmp_path, pair, method, rank):
    moved = stored(tmp_path / "a2", turned(A)), stored(tmp_path / "b2", turned(B), use_rslora=True, lora_alpha=4)
    first, second = (merge_adapters(p, WEIGHTS, rank, method) for p in (pair, moved))
    close(back(tmp_path, first), back(tmp_path, second, "again"), 1e-8)


def test_a_merge_is_linear_in_the_weights(tmp_path, pair):
    one, two, both = (back(tmp_path, merge_adapters(pair, w), str(w)) for w in ([1.0, 0.0], [0.0, 1.0], [-2.0, 3.0]))
    close(both, {layer: -2 * one[layer] + 3 * two[layer] for layer in one})


def test_knots_with_a_sum_is_the_sum(tmp_path, pair):
    close(back(tmp_path, merge_adapters(pair, WEIGHTS, method="task_arithmetic")), reference(pair))


def test_knots_sums_the_columns_that_a_method_keeps(tmp_path, pair):
    """A scale of the right factors is one of the update."""
    found = back(
        tmp_path, merge_adapters(pair, WEIGHTS, method="task-arithmetic", options={"scale": {"q": 0.5, "*": 1}})
    )
    wanted = reference(pair)
    close(found, {layer: wanted[layer] * (0.5 if "q" in layer else 1.0) for layer in wanted})


@pytest.mark.skipif("ties" not in METHODS, reason="the method is not there")
def test_knots_of_one_adapter_and_the_same_again_is_that_adapter(tmp_path, pair):
    new = merge_adapters([pair[0], pair[0]], method="ties", options={"density": 1.0})
    found, wanted = back(tmp_path, new), dense(pair[0], 2.0)
    for layer in wanted:
        ratio = found[layer] / wanted[layer]
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-6, atol=1e-6)


def test_one_adapter_is_itself_and_order_does_not_matter(tmp_path, pair):
    close(back(tmp_path, merge_adapters(pair[:1])), dense(pair[0], 2.0))
    first, second = merge_adapters(pair, WEIGHTS), merge_adapters(pair[::-1], WEIGHTS[::-1])
    close(back(tmp_path, first, "1"), back(tmp_path, second, "2"))


def test_embeddings_and_convolutions(tmp_path):
    def made(seed):
        return {
            f"{PREFIX}wte.lora_embedding_A": normal(seed, 2, 20),
            f"{PREFIX}wte.lora_embedding_B": normal(seed + 1, 6, 2),
            f"{PREFIX}c.lora_A.weight": normal(seed + 2, 2, 3, 3, 3),
            f"{PREFIX}c.lora_B.weight": normal(seed + 3, 5, 2, 1, 1),
        }

    pair = [stored(tmp_path / str(k), made(10 * k)) for k in range(2)]
    new = merge_adapters(pair, [1.0, 2.0])
    close(back(tmp_path, new), {
        layer: lora(pair[0]).update(layer).dense() + 2 * lora(pair[1]).update(layer).dense() for layer in ("wte", "c")
    })  # fmt: skip
    assert new.tensors[f"{PREFIX}c.lora_A.weight"].shape == (4, 3, 3, 3)
    assert new.tensors[f"{PREFIX}wte.lora_embedding_A"].shape == (4, 20)


def test_heads_are_averaged_and_those_of_other_classes_refused(tmp_path):
    heads = [normal(k, 3, 8) for k in range(2)]
    name = f"{PREFIX}score.weight"
    pair = [stored(tmp_path / str(k), A | {name: heads[k]}, modules_to_save=["score"]) for k in range(2)]
    new = merge_adapters(pair, [1.0, 3.0])
    torch.testing.assert_close(new.tensors[name], heads[0] / 4 + 3 * heads[1] / 4)
    assert new.config["modules_to_save"] == ["score"] and not new.notes
    one = merge_adapters([pair[0], stored(tmp_path / "c", B, lora_alpha=4)])
    assert "the average over 1 of 2 adapters" in one.notes[0]
    with pytest.raises(WeightspaceError, match="sum to zero"):
        merge_adapters(pair, [1.0, -1.0])
    other = stored(tmp_path / "d", A | {name: normal(5, 4, 8)})
    with pytest.raises(WeightspaceError, match="heads of other classes cannot be averaged"):
        merge_adapters([pair[0], other])


def test_biases_beside_the_factors_add_up(tmp_path):
    bias = normal(9, 8)
    one = stored(tmp_path / "a", A | {f"{PREFIX}h.0.q.lora_B.bias": bias}, lora_bias=True)
    new = merge_adapters([one, stored(tmp_path / "b", A)], [3.0, 1.0])
    torch.testing.assert_close(new.tensors[f"{PREFIX}h.0.q.lora_B.bias"], 3 * 2.0 * bias)
    assert new.config["lora_bias"] and not new.tensors[f"{PREFIX}h.1.q.lora_B.bias"].any()


def test_what_cannot_be_merged(tmp_path, pair):
    def refused(words, *paths, **more):
        with pytest.raises(WeightspaceError, match=words) as told:
            merge_adapters(list(paths), **more)
        assert "\n" not in str(told.value)

    refused("no adapters")
    refused("3 weights for 2 adapters", *pair, weights=[1.0, 1.0, 1.0])
    refused("a rank of 0", *pair, rank=0)
    refused("no merging method 'mix'", *pair, method="mix")
    refused("no option 'density'", *pair, options={"density": 1.0})
    refused("no such file", tmp_path / "none")
    dora = stored(tmp_path / "dora", A | {f"{PREFIX}h.0.q.lora_magnitude_vector": normal(0, 8)})
    refused("rescales the rows of weights .DoRA.", pair[0], dora)
    turned_over = stored(tmp_path / "conv1d", A, fan_in_fan_out=True)
    refused("fan_in_fan_out is not that of a", pair[0], turned_over)
    wide = {n: torch.cat([t, t], 1) if "_A" in n else t for n, t in A.items()}
    refused(
        r"'h.0.q' is linear of \(8, 6\) in a and linear of \(8, 12\) in wide", pair[0], stored(tmp_path / "wide", wide)
    )
    named = stored(tmp_path / "named", A, base_model_name_or_path="other")
    assert "several bases" in merge_adapters([pair[0], named]).notes[0]


def test_distances_are_the_dense_ones_for_two_ranks(pair):
    found = adapter_distance(*pair)
    first, second = dense(pair[0], 2.0), dense(pair[1], 4 / 2**0.5)
    total = 0.0
    for row in found.layers:
        u, v = first[row.name], second.get(row.name, torch.zeros(8, 6, dtype=torch.float64))
        assert row.distance == pytest.approx(float((u - v).norm()), rel=1e-10)
        assert (row.norm_a, row.norm_b) == (pytest.approx(float(u.norm())), pytest.approx(float(v.norm())))
        if row.name in second:
            assert row.cosine == pytest.approx(float((u * v).sum() / u.norm() / v.norm()), rel=1e-9)
        total += float((u - v).square().sum())
    assert found.layers[1].norm_b == 0 and found.layers[1].cosine != found.layers[1].cosine
    assert found.distance == pytest.approx(total**0.5, rel=1e-10)
    assert found.data()["relative"] == pytest.approx(found.relative)


def test_distances_are_those_of_orbits(tmp_path, pair):
    same = adapter_distance(pair[0], stored(tmp_path / "a2", turned(A)))
    assert same.relative < 1e-9 and same.cosine == pytest.approx(1.0)
    wide = {}
    for name, tensor in A.items():  # the same update in twice the rank
        wide[name] = torch.cat([tensor, tensor], 0 if "_A" in name else 1)
    assert adapter_distance(pair[0], stored(tmp_path / "wide", wide)).relative < 1e-9
    other = adapter_distance(pair[0], stored(tmp_path / "c", factors(7)))
    assert 1.2 < other.relative < 1.6 and abs(other.cosine) < 0.3


def test_what_is_not_compared_is_told(tmp_path, pair):
    whole = stored(tmp_path / "whole", A | {f"{PREFIX}score.weight": normal(0, 2, 8)})
    assert adapter_distance(pair[0], whole).notes == ("whole: not compared: 'score.weight', saved whole",)


def test_inner_products_of_a_set(tmp_path, pair):
    names, found = inner_products([lora(one) for one in pair])
    first, second = dense(pair[0], 2.0), dense(pair[1], 4 / 2**0.5)
    for t, name in enumerate(names):
        both = [first[name], second.get(name, torch.zeros(8, 6, dtype=torch.float64))]
        torch.testing.assert_close(found[t], torch.stack([torch.stack([(u * v).sum() for v in both]) for u in both]))


def test_one_adapter_twice_has_both_weights(tmp_path, pair):
    one = lora(pair[0])
    wanted = reference(pair, [2.0, 0.0])
    close(back(tmp_path, merge_adapters([one, one], [0.3, 1.7])), wanted)


def test_nan_beside_the_factors_is_refused(tmp_path):
    bad = torch.tensor([1.0, float("nan")])
    for k, name in enumerate(("score.weight", "h.0.q.lora_B.bias")):
        beside = {f"{PREFIX}{name}": bad if "score" in name else torch.cat([bad] * 4)}
        folder = stored(tmp_path / f"bad{k}", {**factors(), **beside}, lora_bias=True)
        with pytest.raises(WeightspaceError, match="NaN or infinity"):
            merge_adapters([folder, stored(tmp_path / "good", factors(1))])
