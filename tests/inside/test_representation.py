"""Laws of similarities of representations, each measure against a dense or enumerated oracle."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightspace.inside import representation
from weightspace.inside.representation import cka, matched, procrustes, pwcca, similarity, svcca
from weightspace.net.errors import WeightspaceError

laws = settings(max_examples=12, deadline=None)
seeds = st.integers(0, 10**6)
sizes = st.integers(2, 9)


def drawn(seed, n, *widths):
    """Representations that share some of their examples' factors, with an offset."""
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 3, dtype=torch.float64, generator=g)
    for p in widths:
        mix, own = (torch.randn(m, p, dtype=torch.float64, generator=g) for m in (3, n))
        yield shared @ mix + own.T.reshape(n, p) + torch.arange(p)


def orthogonal(p, seed):
    return torch.linalg.qr(torch.randn(p, p, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]


def centred(x):
    h = torch.eye(len(x), dtype=torch.float64) - 1 / len(x)
    return h @ x.double()


def oracle_cka(x, y):
    k, m = (centred(z) @ centred(z).T for z in (x, y))
    return float((k @ m).trace() / ((k @ k).trace() * (m @ m).trace()).sqrt())


def hsic(k, m):
    """The mean over ordered quadruples of distinct examples of k_ij (m_ij + m_rs - 2 m_ir): by enumeration."""
    found = [k[i, j] * (m[i, j] + m[r, s] - 2 * m[i, r]) for i, j, r, s in itertools.permutations(range(len(k)), 4)]
    return float(torch.stack(found).mean())


def oracle_unbiased(x, y):
    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def correlations(x, y):
    """Canonical correlations and directions of x from the eigenproblem of the covariances."""
    x, y = centred(x).numpy(), centred(y).numpy()
    cross = x.T @ y @ np.linalg.solve(y.T @ y, y.T @ x)
    squares, vectors = scipy.linalg.eigh(cross, x.T @ x)
    k = min(x.shape[1], y.shape[1])
    return np.sqrt(squares[::-1][:k].clip(0)), (x @ vectors)[:, ::-1][:, :k]


def oracle_svcca(x, y, keep=0.99):
    cut = []
    for z in (centred(x).numpy(), centred(y).numpy()):
        u, s, _ = np.linalg.svd(z, full_matrices=False)
        k = next(k for k in range(1, len(s) + 1) if k == len(s) or (s[:k] ** 2).sum() >= keep * (s**2).sum())
        cut.append(torch.tensor(u[:, :k] * s[:k]))
    return float(correlations(*cut)[0].mean())


def oracle_pwcca(x, y):
    found, directions = correlations(x, y)
    weights = np.abs(directions.T @ centred(x).numpy()).sum(1) / np.linalg.norm(directions, axis=0)
    return float((weights * found).sum() / weights.sum())


def oracle_procrustes(x, y):
    x, y = (torch.nn.functional.pad(centred(z), (0, 20 - z.shape[1])).numpy() for z in (x, y))
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    q = scipy.linalg.orthogonal_procrustes(y, x)[0]
    return float(np.linalg.norm(x - y @ q))


def oracle_matched(x, y, signed=True):
    """The best of all ways to match, one by one."""
    table = np.corrcoef(x.numpy().T, y.numpy().T)[: x.shape[1], x.shape[1] :]
    table = table if signed else np.abs(table)
    table = table if x.shape[1] <= y.shape[1] else table.T
    p, q = table.shape
    return max(table[range(p), list(order)].mean() for order in itertools.permutations(range(q), p))


MEASURES = {
    "cka": (cka, oracle_cka, 30),
    "unbiased cka": (lambda x, y: cka(x, y, unbiased=True), oracle_unbiased, 7),
    "svcca": (svcca, oracle_svcca, 30),
    "pwcca": (pwcca, oracle_pwcca, 30),
    "procrustes": (procrustes, oracle_procrustes, 30),
    "matched": (lambda x, y: matched(x, y)[0], oracle_matched, 30),
}
each = pytest.mark.parametrize("name", MEASURES)


@each
@laws
@given(seeds, st.integers(2, 6), st.integers(2, 6))
def test_a_measure_is_its_oracle(name, seed, p, q):
    measure, oracle, n = MEASURES[name]
    x, y = drawn(seed, n, p, q)
    assert measure(x, y) == pytest.approx(oracle(x, y), abs=1e-9)


@pytest.mark.parametrize("name", ["cka", "unbiased cka", "procrustes"])
@laws
@given(seeds, st.integers(8, 19), st.integers(2, 19))
def test_and_with_more_features_than_examples(name, seed, p, q):
    measure, oracle, _ = MEASURES[name]
    x, y = drawn(seed, 7, p, q)
    assert measure(x, y) == pytest.approx(oracle(x, y), abs=1e-9)


@each
def test_every_oracle_catches_a_mean_that_is_left(name, monkeypatch):
    measure, oracle, n = MEASURES[name]
    x, y = drawn(3, n, 5, 4)
    assert measure(x, y) == pytest.approx(oracle(x, y), abs=1e-9)
    monkeypatch.setattr(representation, "_centred", lambda x, room=None: x)
    assert measure(x, y) != pytest.approx(oracle(x, y), abs=1e-4)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("part", [0, 1])
def test_a_block_of_the_gram_matrix_that_is_left_out_is_caught(unbiased, part, monkeypatch):
    x, y = drawn(3, 150, 400, 100)
    value, blocks = cka(x, y, unbiased), list(representation._blocks(0, 150))
    assert len(blocks) > 3 and value == pytest.approx(textbook(x, y, unbiased), abs=1e-9)
    blocks.pop(part)
    monkeypatch.setattr(representation, "_blocks", lambda low, high: iter(blocks))
    assert cka(x, y, unbiased) != pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 129, 300])
def test_the_blocks_hold_the_lower_triangle_once(n):
    seen = torch.zeros(n, n)
    for a, b, c, d in representation._blocks(0, n):
        seen[a:b, c:d] += 1
    assert bool((seen.tril() == torch.ones(n, n).tril()).all()) and int(seen.max()) == 1


@pytest.mark.parametrize(("n", "p"), [(2, 1), (65, 3), (70, 130), (200, 257)])
def test_the_product_of_onednn_is_that_of_torch(n, p):
    times = representation._onednn()
    if times is None:
        pytest.skip("this build of torch has no such product")
    x, y = (z.float() for z in drawn(n, n, p, p))
    exact = x.double() @ y[: n // 2].double().T
    size = x.double().abs() @ y[: n // 2].double().abs().T
    assert bool(((times(x, y[: n // 2].contiguous()) - exact).abs() <= 1e-6 * size).all())


@pytest.mark.parametrize("turned", [False, True])
def test_half_a_gram_matrix_is_half_of_all_sums(turned, monkeypatch):
    """With the product of oneDNN, without it, and of a matrix that is not contiguous."""
    x, y = ((z.float().T.contiguous().T if turned else z.float()) - z.float().mean(0) for z in drawn(5, 150, 90, 90))
    assert x.is_contiguous() != turned
    k, m = (z.double() @ z.double().T for z in (x, y))
    wanted = float((k * m).sum() - (k.diagonal() * m.diagonal()).sum())
    for without in (False, True):
        if without:
            monkeypatch.setattr(representation, "_onednn", lambda: None)
        halves, own = zip(*(representation._halved(z) for z in (x, y)), strict=True)
        assert 2 * float(representation._inner(halves)[0, 1]) == pytest.approx(wanted, rel=1e-5)
        torch.testing.assert_close(own[0], k.diagonal(), rtol=1e-5, atol=1e-5)


def textbook(x, y, unbiased):
    """Both forms of CKA by n x n matrices in float64; the statistic of Song et al. as it is printed."""
    if not unbiased:
        return oracle_cka(x, y)
    k, m = ((centred(z) @ centred(z).T).fill_diagonal_(0) for z in (x, y))
    n, one = len(k), torch.ones(len(k), dtype=torch.float64)

    def statistic(k, m):
        middle = one @ k @ one * (one @ m @ one) / ((n - 1) * (n - 2))
        return float((k @ m).trace() + middle - 2 / (n - 2) * (one @ k @ m @ one))

    return statistic(k, m) / math.sqrt(statistic(k, k) * statistic(m, m))


@pytest.mark.parametrize("widths", [(700, 600), (100, 700), (40, 90)])
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("offset", [0.0, 3.0, 1e3])
def test_float32_is_exact_to_a_millionth(widths, unbiased, offset):
    x, y = ((z - z.mean(0)).relu().float() + offset for z in drawn(0, 300, *widths))
    assert cka(x, y, unbiased) == pytest.approx(textbook(x, y, unbiased), abs=1e-6)
    doubled = cka(x.double(), y, unbiased)
    assert doubled == pytest.approx(textbook(x, y, unbiased), abs=1e-10)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_very_small_and_very_large_numbers(scale):
    x, y = (z.float() for z in drawn(0, 40, 12, 50))
    for measure in (cka, procrustes, lambda x, y: matched(x, y)[0]):
        assert measure(x * scale, y) == pytest.approx(measure(x, y), abs=1e-6)
    assert cka((x * 8).bfloat16(), y) == pytest.approx(cka(x.bfloat16().float(), y), abs=1e-6)


@laws
@given(seeds, sizes, sizes, st.floats(0.01, 100), st.sampled_from([12, 40]))
def test_rotations_and_one_scale_change_nothing(seed, p, q, scale, n):
    x, y = drawn(seed, n, p, q)
    moved = scale * x @ orthogonal(p, seed) + 7
    for name in ("cka", "procrustes", "svcca"):
        measure = MEASURES[name][0]
        assert measure(moved, y) == pytest.approx(measure(x, y), abs=1e-6)
    assert cka(moved, y, True) == pytest.approx(cka(x, y, True), abs=1e-8)


@laws
@given(seeds, sizes, sizes)
def test_linear_maps_change_no_canonical_correlation(seed, p, q):
    x, y = drawn(seed, 40, p, q)
    map_ = orthogonal(q, seed) @ torch.diag(torch.linspace(1, 20, q, dtype=torch.float64)) @ orthogonal(q, seed + 1)
    assert svcca(x, y @ map_, keep=1) == pytest.approx(svcca(x, y, keep=1), abs=1e-8)
    assert pwcca(x, y @ map_) == pytest.approx(pwcca(x, y), abs=1e-8)
    assert pwcca(x, x[:, :1] @ map_[:1]) == pytest.approx(1, abs=1e-8)
    assert abs(cka(x, y @ map_) - cka(x, y)) > 1e-4


@laws
@given(seeds, sizes, sizes)
def test_an_order_and_scales_of_neurons_do_not_matter_to_a_match(seed, p, q):
    x, y = drawn(seed, 30, p, q)
    g = torch.Generator().manual_seed(seed)
    order, scales = torch.randperm(q, generator=g), torch.rand(q, dtype=torch.float64, generator=g) + 0.1
    value, found = matched(x, y)
    again, moved = matched(x, (y * scales)[:, order])
    assert again == pytest.approx(value, abs=1e-9)
    assert [int(order[k]) if k >= 0 else -1 for k in moved.tolist()] == found.tolist()
    flipped = y * (2 * (scales > 0.6) - 1)
    assert matched(x, flipped, signed=False)[0] == pytest.approx(matched(x, y, signed=False)[0], abs=1e-9)
    own, itself = matched(x, x[:, torch.arange(p - 1, -1, -1)])
    assert own == pytest.approx(1) and itself.tolist() == list(range(p - 1, -1, -1))


def test_a_match_of_two_widths_leaves_the_rest_alone():
    x, y = drawn(0, 30, 5, 3)
    value, found = matched(x, y)
    assert sorted(found.tolist()) == [-1, -1, 0, 1, 2] and value == pytest.approx(oracle_matched(x, y))
    assert matched(y, x)[0] == pytest.approx(value)
    assert matched(x, y, signed=False)[0] == pytest.approx(oracle_matched(x, y, signed=False))
    dead = torch.cat([x, torch.full((30, 2), 0.1)], 1)
    assert matched(dead, dead)[0] == pytest.approx(5 / 7)


@each
@laws
@given(seeds, st.integers(2, 6), st.integers(2, 6))
def test_symmetry_and_what_is_like_itself(name, seed, p, q):
    measure, _, n = MEASURES[name]
    x, y = drawn(seed, n, p, q)
    assert measure(x, x.clone()) == pytest.approx(float(name != "procrustes"), abs=1e-7)
    if name != "pwcca":
        assert measure(x, y) == pytest.approx(measure(y, x), abs=1e-7)


def test_pwcca_is_not_symmetric():
    x, y = drawn(0, 30, 5, 4)
    assert abs(pwcca(x, y) - pwcca(y, x)) > 1e-3


@settings(laws, max_examples=40)
@given(seeds, sizes, sizes, sizes, st.sampled_from([5, 30]), st.floats(0, 1))
def test_procrustes_is_a_metric(seed, p, q, r, n, near):
    x, y, z = drawn(seed, n, p, q, r)
    y = near * torch.nn.functional.pad(x, (0, max(0, q - p)))[:, :q] + (1 - near) * y
    assert procrustes(x, z) <= procrustes(x, y) + procrustes(y, z) + 1e-7
    assert 0 <= procrustes(x, y) <= math.sqrt(2)


def test_unbiased_cka_of_independent_features_is_near_zero():
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(100, 2000, generator=g) for _ in range(2))
    assert cka(x, y) > 0.9
    assert abs(cka(x, y, unbiased=True)) < 0.03
    many = [cka(torch.randn(20, 50, generator=g), torch.randn(20, 50, generator=g), True) for _ in range(100)]
    assert abs(sum(many) / 100) < 0.04 and min(many) < 0


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("widths", [(3, 5), (60, 5)])
def test_all_layers_at_once_are_all_pairs(name, widths):
    if name in ("svcca", "pwcca") and widths[0] > 40:
        widths = (30, 5)
    first = dict(zip("ab", drawn(0, 40, *widths), strict=True))
    second = {"c": first["b"], **dict(zip("de", drawn(1, 40, 4, 7), strict=True))}
    table = similarity(first, second, name)
    assert table.shape == (2, 3) and table.dtype == torch.float64
    for i, x in enumerate(first.values()):
        for j, y in enumerate(second.values()):
            assert float(table[i, j]) == pytest.approx(MEASURES[name][0](x, y), abs=1e-7)
    assert similarity({}, second, name).shape == (0, 3)


def test_a_layer_is_centred_once(monkeypatch):
    seen, centre = [], representation._centred
    monkeypatch.setattr(representation, "_centred", lambda x, room=None: seen.append(x) or centre(x, room))
    first = dict(zip("abc", drawn(0, 20, 5, 6, 30), strict=True))
    similarity(first, first)
    assert len(seen) == 3


def test_maps_are_flattened():
    x, y = drawn(0, 20, 24, 10)
    assert cka(x.reshape(20, 6, 2, 2), y) == cka(x, y)
    assert cka(x[:, 0], y) == cka(x[:, :1], y)
    assert cka(x.T.contiguous().T.requires_grad_(), y) == pytest.approx(cka(x, y), abs=1e-12)


def broken(x, value):
    x = x.clone()
    x[3, 1] = value
    return x


def test_mistakes_get_one_clear_line():
    x, y = drawn(0, 20, 5, 40)
    for call, message in (
        (lambda: cka(x, y[:19]), "x has 20 examples and y has 19"),
        (lambda: cka(x[:3], y[:3], unbiased=True), r"at least 4 examples with a feature are needed, x is \(3, 5\)"),
        (lambda: procrustes(x[:1], y[:1]), "at least 2 examples"),
        (lambda: cka(x[:, :0], y), r"with a feature are needed, x is \(20, 0\)"),
        (lambda: svcca(x, broken(y, math.nan)), "NaN or infinity in y"),
        (lambda: matched(broken(x, math.inf), y), "NaN or infinity in x"),
        (lambda: cka(x, y - y + 0.1), "y is the same for every example"),
        (lambda: pwcca(x, y), "all one, whatever the data, where 20 examples have 19 directions"),
        (lambda: svcca(x, y, keep=1), "all one, whatever the data"),
        (lambda: svcca(x, y, keep=0), r"a share of the variance in \(0, 1\], got 0"),
        (lambda: similarity({"a": x}, {"b": y}, "rsa"), "measure takes 'cka' or .*, got str 'rsa'"),
        (lambda: similarity({"a": x}, {"b": y[:7]}), "a has 20 examples and b has 7"),
        (lambda: cka(torch.eye(6), torch.randn(6, 3), unbiased=True), "0/0: all examples"),
    ):
        with pytest.raises(WeightspaceError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("level", [1.0, 0.1, 1 / 3, -7.7, 1e-3, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_neuron_that_says_nothing_is_like_none(level, dtype):
    """Whatever it says all the time, and whatever rounding leaves of that: beside another such neuron too."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(37, 4, generator=generator).to(dtype) for _ in range(2))

    def beside(level):
        still = torch.full((37, 1), level, dtype=dtype)
        return matched(torch.cat([x, still], 1), torch.cat([y, still], 1))

    (found, order), (silent, same) = beside(level), beside(0.0)
    assert found == pytest.approx(silent, abs=1e-6) and torch.equal(order, same)
