"""Laws of distances; the bounds modulo symmetry against the enumeration of every permutation and sign."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from architectures import CASES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from weightspace.metric.distance import euclidean, functional, layerwise
from weightspace.net.errors import ArchitectureMismatch, WeightspaceError
from weightspace.net.net import Net
from weightspace.symmetry.axis import Axis, Block, Generator, Place
from weightspace.symmetry.quotient import Interval, lower_bound, modulo
from weightspace.symmetry.symmetry import Symmetry
from weightspace.task.task import Task

laws = settings(max_examples=8, deadline=None)
seeds = st.integers(0, 10**6)


class Enumeration(Symmetry):
    """Every permutation (and sign) of the hidden units of a tanh MLP, one by one: the slow oracle.

    What the bound is told may be falsified: dimensions kept `still`, signs that it does not `tell`.
    """

    def __init__(self, sizes, signs=False, *, still=(), tell=True):
        self.hidden, self.signs = sizes[1:-1], signs
        kinds = ("permutation", "sign") if signs else ("permutation",)
        axes = [Axis(f"h{k}", size, (), kinds) for k, size in enumerate(self.hidden, start=1)]
        names = {axis.name for axis in axes}
        blocks, shapes, places = [], {}, {name: [] for name in names}
        for layer, (m, n) in enumerate(itertools.pairwise(sizes)):
            for kind, shape in (("weight", (n, m)), ("bias", (n,))):
                leaves = [f"h{layer + 1}", f"h{layer}"][: len(shape)]
                leaves = [leaf if leaf in names and d not in still else shape[d] for d, leaf in enumerate(leaves)]
                for d, leaf in enumerate(leaves):
                    places.get(leaf, []).append((Place(len(blocks), d), 1.0))
                name, strides = f"{2 * layer}.{kind}", (m, 1) if len(shape) == 2 else (1,)
                blocks.append(Block(name, 0, strides, tuple(leaves), tuple(range(len(shape)))))
                shapes[name] = shape
        generators = [Generator(name, "sign", tuple(found)) for name, found in places.items()]
        super().__init__(axes, blocks, generators if signs and tell else (), shapes)

    def balance(self, net):
        return net

    def moves(self, size):
        for order in itertools.permutations(range(size)):
            for signs in itertools.product((1, -1), repeat=size) if self.signs else ((1,) * size,):
                yield list(order), torch.tensor(signs, dtype=torch.float64)

    def orbit(self, net):
        for moves in itertools.product(*(self.moves(size) for size in self.hidden)):
            tensors = dict(net.weights)
            for layer, (order, signs) in enumerate(moves):
                here, there = 2 * layer, 2 * layer + 2
                tensors[f"{here}.weight"] = tensors[f"{here}.weight"][order] * signs[:, None]
                tensors[f"{here}.bias"] = tensors[f"{here}.bias"][order] * signs
                tensors[f"{there}.weight"] = tensors[f"{there}.weight"][:, order] * signs
            yield net.at(net.weights.replace(tensors))

    def least(self, a, b):
        return min(euclidean(a, moved) for moved in self.orbit(b))

    def align(self, net, *, to):
        return min(self.orbit(net), key=lambda moved: euclidean(moved, to))


class Lazy(Enumeration):
    """Aligns nothing: still an upper bound."""

    def align(self, net, *, to):
        return net


def mlp(sizes, seed, scale=1.0):
    torch.manual_seed(seed)
    layers = [nn.Linear(m, n) for m, n in itertools.pairwise(sizes)]
    for layer in layers[:-1]:
        nn.init.normal_(layer.bias)
    module = nn.Sequential(*[part for layer in layers for part in (layer, nn.Tanh())][:-1])
    net = Net.of(module).double()
    return net.at(net.weights * scale)


class Bare(nn.Module):
    """One tensor and nothing else."""

    def __init__(self, tensor):
        super().__init__()
        self.w = nn.Parameter(tensor)


class Dims(Symmetry):
    """The group that permutes (and flips) every one of the given dimensions of one tensor, freely."""

    def __init__(self, shape, dims, signs):
        self.dims, self.signs = dims, signs
        axes = [Axis(f"d{d}", shape[d], (), ("permutation",)) for d in dims]
        leaves = tuple(f"d{d}" if d in dims else size for d, size in enumerate(shape))
        strides = tuple(math.prod(shape[d + 1 :]) for d in range(len(shape)))
        places = [(d, ((Place(0, d), 1.0),)) for d in dims]
        generators = [Generator(f"d{d}", "sign", found) for d, found in places if signs]
        super().__init__(axes, [Block("w", 0, strides, leaves, tuple(range(len(shape))))], generators, {"w": shape})

    def least(self, x, y):
        """min_g |x - g y|, by enumeration."""
        candidates = [y]
        for dim in self.dims:
            candidates = [move for z in candidates for move in self.moves(z, dim)]
        return min(float((x - z).norm()) for z in candidates)

    def moves(self, y, dim):
        n = y.shape[dim]
        for order in itertools.permutations(range(n)):
            for signs in itertools.product((1, -1), repeat=n) if self.signs else ((1,) * n,):
                moved = y.movedim(dim, -1)[..., list(order)] * torch.tensor(signs)
                yield moved.movedim(-1, dim)


def test_the_oracle_leaves_the_function_alone():
    net, x = mlp([2, 3, 2, 2], 0), torch.randn(5, 2, dtype=torch.float64)
    orbit = list(Enumeration([2, 3, 2, 2], signs=True).orbit(net))
    assert len(orbit) == 6 * 8 * 2 * 4
    for moved in orbit:
        torch.testing.assert_close(moved(x), net(x))
    assert len({tuple(moved.weights.buffers[0].tolist()) for moved in orbit}) == len(orbit)


@laws
@given(seeds, st.booleans(), st.floats(0.3, 3))
def test_the_least_distance_lies_in_the_interval(seed, signs, scale):
    sizes = [2, 3, 2, 2] if signs else [2, 4, 3, 2]
    a, b = mlp(sizes, seed), mlp(sizes, seed + 1, scale)
    oracle = Enumeration(sizes, signs)
    least = oracle.least(a, b)
    exact, lazy = modulo(oracle)(a, b), modulo(Lazy(sizes, signs))(a, b)
    assert 0 < exact.lower <= least + 1e-12
    assert exact.upper == pytest.approx(least)
    assert lazy.lower == pytest.approx(exact.lower)
    assert lazy.upper == euclidean(a, b) >= least - 1e-12


@laws
@given(seeds, st.booleans())
def test_members_of_one_orbit_are_at_distance_zero(seed, signs):
    sizes = [2, 3, 2, 2]
    a, oracle = mlp(sizes, seed), Enumeration(sizes, signs)
    orbit = list(oracle.orbit(a))
    b = orbit[seed % len(orbit)]
    interval = modulo(oracle)(a, b)
    assert interval.lower <= interval.upper < 1e-12
    assert lower_bound(oracle, a, b) < 1e-6


@pytest.mark.parametrize("lie", [{"still": {0}}, {"still": {1}}, {"tell": False}])
def test_the_oracle_catches_a_bound_that_forgets_a_move(lie):
    sizes = [2, 3, 2, 2]
    oracle = Enumeration(sizes, signs=True)
    for seed in range(2):
        a = mlp(sizes, seed)
        b = list(oracle.orbit(a))[277] + 0.01 * a.weights.randn(seed)
        least = oracle.least(a, b)
        assert lower_bound(oracle, a, b) <= least
        assert lower_bound(Enumeration(sizes, signs=True, **lie), a, b) > least


TENSORS = [
    ((4,), {0}),
    ((4, 3), {0}),
    ((4, 3), {1}),
    ((3, 2, 2), {1}),
    ((3, 3), {0, 1}),
    ((4, 1), {0, 1}),
    ((3, 2, 2), {0, 1}),
    ((3, 2, 3), {0, 2}),
    ((2, 3, 2), {0, 1, 2}),
    ((3, 2), set()),
]


@settings(laws, max_examples=25)
@given(seeds, st.sampled_from(TENSORS), st.booleans(), st.booleans())
def test_the_bound_of_one_tensor(seed, case, signs, near):
    shape, dims = case
    torch.manual_seed(seed)
    x, y = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    group = Dims(shape, dims, signs)
    if near and dims:
        moves = list(group.moves(x, min(dims)))
        y = moves[seed % len(moves)] + 0.1 * y
    least = group.least(x, y)
    bound = lower_bound(group, Net.of(Bare(x)), Net.of(Bare(y)))
    assert bound <= least + 1e-9
    assert bound >= abs(float(x.norm() - y.norm())) - 1e-9
    if len(dims) <= 1:
        assert bound == pytest.approx(least)


def coupled(*over):
    """Heads (0) and channels (1), whose order may differ from head to head."""
    axes = [Axis("head", 2, (), ("permutation",)), Axis("channel", 3, over, ("permutation",))]
    return Symmetry(axes, [Block("w", 0, (6, 2, 1), ("head", "channel", 2), (0, 1, 2))], (), {"w": (2, 3, 2)})


@laws
@given(seeds)
def test_units_that_move_differently_under_each_outer_unit(seed):
    group = coupled("head")
    torch.manual_seed(seed)
    a = Net.of(Bare(torch.randn(2, 3, 2, dtype=torch.float64)))
    b = Net.of(Bare(torch.randn(2, 3, 2, dtype=torch.float64)))
    least = min(
        euclidean(a, b.load({"w": torch.stack([b.weights["w"][heads[k], list(orders[k])] for k in (0, 1)])}))
        for heads in ((0, 1), (1, 0))
        for orders in itertools.product(itertools.permutations(range(3)), repeat=2)
    )
    assert 0 < lower_bound(group, a, b) <= least + 1e-9
    assert lower_bound(group, a, group.sample(seed)(a)) < 1e-9


def test_a_bound_that_forgets_the_outer_unit_is_caught():
    a = torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = torch.stack([a[0], a[1, [1, 2, 0]]])
    assert lower_bound(coupled("head"), Net.of(Bare(a)), Net.of(Bare(moved))) < 1e-9
    assert lower_bound(coupled(), Net.of(Bare(a)), Net.of(Bare(moved))) > 0.1


ARCHITECTURES = ["cnn_flatten", "grouped_conv", "densenet", "lstm", "mha_cross", "vit", "experts_einsum"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_bound_is_constant_on_the_orbits_of_real_architectures(name):
    case = CASES[name]
    a = Net.of(case.make(0))
    group = Symmetry.of(a, case.example(0), verify=False)
    a, b = (a.at(a.weights.randn(seed)) for seed in (1, 2))
    bound = lower_bound(group, a, b)
    assert bound >= abs(float(a.weights.norm() - b.weights.norm())) / 2
    for seed in range(3):
        g = group.sample(seed, kinds=("permutation", "sign"))
        assert bound <= euclidean(a, g(b))
        assert lower_bound(group, a, g(b)) == pytest.approx(bound)
        assert lower_bound(group, g(a), b) == pytest.approx(bound)
        assert lower_bound(group, b, g(b)) < 1e-6 < euclidean(b, g(b))


def test_a_large_dimension_is_compared_by_its_norms(monkeypatch):
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    for dims in ({0}, {0, 1}):
        group = Dims((5, 4), dims, signs=False)
        full = lower_bound(group, Net.of(Bare(x)), Net.of(Bare(y)))
        monkeypatch.setattr("weightspace.symmetry.quotient._LARGEST", 2)
        cheap = lower_bound(group, Net.of(Bare(x)), Net.of(Bare(y)))
        monkeypatch.undo()
        assert 0 < cheap < full <= group.least(x, y) + 1e-9


def test_another_distance_has_no_lower_bound():
    a, b = mlp([2, 3, 2], 0), mlp([2, 3, 2], 1)
    assert modulo(Enumeration([2, 3, 2]), lambda p, q: 5.0)(a, b) == Interval(0.0, 5.0)


def test_scales_go_to_their_slice_first():
    class Halving(Enumeration):
        """A stub of balancing: the slice is that of norm one."""

        def balance(self, net):
            return net.at(net.weights / float(net.weights.norm()))

    a = mlp([2, 3, 2], 0)
    assert modulo(Halving([2, 3, 2]))(a, a.at(a.weights * 7)).upper < 1e-12
    assert modulo(Enumeration([2, 3, 2]))(a, a.at(a.weights * 7)).upper > 1


def test_an_interval_is_read_at_a_glance():
    assert str(Interval(31.234, 34.5)) == "[31.2, 34.5]"
    assert 33 in Interval(31, 34.5)
    assert 30 not in Interval(31, 34.5)


def test_euclidean_is_a_metric_on_weights_alone():
    a, b, c = (mlp([2, 3, 2], seed) for seed in range(3))
    assert euclidean(a, a) == 0
    assert euclidean(a, b) == euclidean(b, a) > 0
    assert euclidean(a, c) <= euclidean(a, b) + euclidean(b, c)
    norm = Net.of(nn.BatchNorm1d(3))
    assert euclidean(norm, norm.at(norm.weights, norm.state.map(torch.zeros_like))) == 0


def test_layerwise_adds_up_to_the_euclidean_distance():
    a, b = mlp([2, 3, 2], 0), mlp([2, 3, 2], 1)
    table = layerwise(a, b)
    assert [row.name for row in table] == list(a.weights)
    assert math.sqrt(sum(row.distance**2 for row in table)) == pytest.approx(euclidean(a, b))
    for row in table:
        x, y = a.weights[row.name], b.weights[row.name]
        assert row.shape == tuple(x.shape)
        assert (row.norm_a, row.norm_b) == pytest.approx((float(x.norm()), float(y.norm())))
        assert row.relative == pytest.approx(float((x - y).norm() / x.norm()))
        assert row.cosine == pytest.approx(float(torch.cosine_similarity(x.flatten(), y.flatten(), dim=0)))


def test_layerwise_of_zero_and_half_precision_tensors():
    zero, one = Net.of(Bare(torch.zeros(3))), Net.of(Bare(torch.ones(3)))
    (row,) = layerwise(zero, one)
    assert (row.relative, row.distance) == (math.inf, pytest.approx(3**0.5))
    assert math.isnan(row.cosine)
    (row,) = layerwise(zero, zero)
    assert row.relative == 0
    big = Net.of(Bare(torch.full((1 << 21,), 0.1, dtype=torch.bfloat16)))
    (row,) = layerwise(big, big.at(big.weights * 2))
    assert row.cosine == pytest.approx(1)
    assert row.relative == pytest.approx(1)


@pytest.fixture
def task():
    torch.manual_seed(0)
    return Task(torch.randn(30, 2, dtype=torch.float64), torch.arange(30) % 3, batch=7)


def test_functional_distances_are_what_their_formulas_say(task):
    a, b = mlp([2, 5, 3], 0), mlp([2, 8, 8, 3], 1)
    x = task.example(30)
    p, q = a(x), b(x)
    assert functional(a, b, task) == pytest.approx(float((p - q).square().sum(1).mean().sqrt()))
    assert functional(a, b, task, "disagreement") == pytest.approx(float((p.argmax(1) != q.argmax(1)).double().mean()))
    kl = nn.functional.kl_div(q.log_softmax(1), p.log_softmax(1), log_target=True, reduction="batchmean")
    assert functional(a, b, task, "kl") == pytest.approx(float(kl))
    assert functional(a, b, task, "kl") != pytest.approx(functional(b, a, task, "kl"))


@pytest.mark.parametrize("kind", ["l2", "disagreement", "kl"])
def test_functional_distance_sees_the_function_alone(task, kind):
    a = mlp([2, 3, 3], 0)
    moved = list(Enumeration([2, 3, 3], signs=True).orbit(a))[17]
    assert functional(a, moved, task, kind) == pytest.approx(0, abs=1e-12)
    assert euclidean(a, moved) > 1
    assert functional(a, mlp([2, 3, 3], 5), task, kind) > 0.01


def test_functional_distance_of_networks_of_two_dtypes(task):
    a = mlp([2, 3, 3], 0)
    assert functional(a, a.to(torch.float32), task) < 1e-6


def test_mistakes_get_one_clear_line(task):
    a = mlp([2, 3, 3], 0)
    broken = a.at(a.weights.replace({"0.bias": torch.full((3,), math.nan)}))
    for call, message in (
        (lambda: functional(a, a, task, "l3"), "kind takes 'l2' or 'disagreement' or 'kl', got str 'l3'"),
        (lambda: functional(a, mlp([2, 3, 4], 0), task), r"outputs of shape \(3,\) and \(4,\)"),
        (lambda: functional(a, mlp([5, 3, 3], 0), task), "inputs of shape"),
        (lambda: modulo(Enumeration([2, 3, 3]))(a, broken), r"NaN or infinity in 0\.bias"),
    ):
        with pytest.raises(WeightspaceError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    for distance in (euclidean, layerwise, modulo(Enumeration([2, 3, 3]))):
        with pytest.raises(ArchitectureMismatch):
            distance(a, mlp([2, 4, 3], 0))


def scaled(net, seed):
    """The same function: every hidden unit of a ReLU MLP scaled and the layer permuted."""
    torch.manual_seed(seed)
    factor, order = torch.empty(4, dtype=torch.float64).uniform_(0.2, 5), torch.randperm(4)
    return net.load(
        {
            "0.weight": (net.weights["0.weight"] * factor[:, None])[order],
            "0.bias": (net.weights["0.bias"] * factor)[order],
            "2.weight": (net.weights["2.weight"] / factor)[:, order],
            "2.bias": net.weights["2.bias"],
        }
    )


def test_modulo_the_symmetry_that_is_read_off_the_network():
    torch.manual_seed(0)
    a, b = (Net.of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))).double() for _ in range(2))
    group = Symmetry.of(a, torch.randn(2, 3, dtype=torch.float64))
    distance = modulo(group)
    assert distance(a, scaled(a, 1)).upper < 1e-6 * float(a.weights.norm())
    assert euclidean(a, scaled(a, 1)) > 1
    interval, oracle = distance(a, b), Enumeration([3, 4, 2])
    least = oracle.least(group.balance(a), group.balance(b))
    assert interval.lower - 1e-9 <= least <= interval.upper + 1e-9
    assert interval.upper <= euclidean(group.balance(a), group.balance(b)) + 1e-9
    moved = distance(a, scaled(b, 2))
    assert (moved.lower, moved.upper) == pytest.approx((interval.lower, interval.upper), abs=1e-6)
