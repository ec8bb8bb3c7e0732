"""Larger architectures of one function: widened, deepened, and aligned across widths, on every tiny architecture."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from architectures import CASES, noisy
from torch import nn

import weightspace as ws
from weightspace.graph.proportional import Factors
from weightspace.graph.trace import op_name
from weightspace.net.net import Net
from weightspace.symmetry.align.widths import _semi_permutation, widen_toward
from weightspace.symmetry.probe import floating
from weightspace.symmetry.read import label
from weightspace.symmetry.widths import widening

HELD = {  # modules whose own code holds a size, or whose width is that of their inputs
    "maxout": "cannot be made",
    "zero_padded_shortcut": "cannot be made",
    "mha_cross": "cannot be made",
    "mha_memory": "cannot be made",
    "tied_autoencoder_tanh": "untie",
}
WIDE = [name for name in CASES if name not in HELD]
FEW = ("mlp", "mlp_tanh", "resnet_bn", "grouped_conv", "densenet", "lstm", "tied_residual", "siamese", "mha", "llama")


@cache
def pair(name, new="copies"):
    case = CASES[name]
    net = noisy(case, 0)
    return net, ws.widen(net, 2, case.example(0), new=new, seed=3)


def far(a, b, x):
    pairs = zip(floating(a(x)), floating(b(x)), strict=True)
    return max(float((p - q).abs().max() / p.abs().max()) for p, q in pairs)


@pytest.mark.parametrize(
    ("name", "new"),
    [
        *((name, "copies") for name in WIDE),
        *((name, "zeros") if name in FEW else pytest.param(name, "zeros", marks=pytest.mark.slow) for name in WIDE),
    ],
)
def test_a_widened_network_is_the_same_function(name, new):
    net, wide = pair(name, new)
    assert wide.weights.numel > net.weights.numel and wide.dtype == torch.float64
    for seed in (1, 2):
        assert far(net, wide, CASES[name].example(seed)) < 1e-12


@pytest.mark.parametrize("name", HELD)
def test_what_cannot_be_widened_is_refused_in_one_sentence(name):
    case = CASES[name]
    with pytest.raises(ws.WeightspaceError, match=HELD[name]) as said:
        ws.widen(noisy(case, 0), 2, case.example(0))
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("name", ["mlp", "cnn_flatten", "fused_qkv_chunk"])
def test_the_group_of_a_widened_network_permutes_the_copies(name):
    """Of a unit and its copy: with equal shares an exchange changes nothing, with drawn ones it does."""
    case = CASES[name]
    net = noisy(case, 0)
    start = widening(net, 2, case.example(0)).drawn("copies", 0)
    wide = start.checked(net, case.example(0)).of(net)
    group = ws.Symmetry.of(wide, case.example(0), scales=False)
    moving = {axis.name for axis in group.axes if "permutation" in axis.kinds}
    assert {axis.name for axis in start.grown if axis.kinds} <= moving
    axis = next(axis for axis in start.grown if not axis.over and axis.size > start.small[axis.name].size)
    table = start.tables[axis.name]
    first, copy = 0, int((table == table[0]).nonzero()[1])
    order = torch.arange(axis.size)
    order[[first, copy]] = order[[copy, first]]
    g = group.identity()
    moved = type(g)(group, {**g.permutations, axis.name: order})(wide)
    assert far(wide, moved, case.example(1)) < 1e-12
    assert float((moved - wide).norm()) > 1e-3, "shares that are drawn tell the copies apart"


@pytest.mark.parametrize("name", FEW)
def test_a_widened_permuted_copy_is_found_again(name):
    case, (net, wide) = CASES[name], pair(name)
    copy = ws.Symmetry.of(wide, case.example(0), scales=False).sample(seed=1, kinds="permutation")(wide)
    assert float((wide - copy).norm() / copy.weights.norm()) > 0.5
    found = widen_toward(net, copy, case.example(0))
    assert float((found - copy).norm() / copy.weights.norm()) < 1e-8
    assert far(net, found, case.example(2)) < 1e-12


def digits_net(width, seed=0):
    torch.manual_seed(seed)
    parts = nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 10)
    return Net.of(nn.Sequential(nn.Flatten(), *parts)).double()


@pytest.fixture(scope="module")
def across():
    """A network of digits, its wide copy with units permuted, that one's group, and examples."""
    digits = ws.digits().take(80, seed=0)
    task = ws.Task(digits.example(80).double(), digits.labels())
    net = digits_net(12)
    wide = ws.widen(net, {"1.weight[0]": 30}, task.example(2), seed=1)
    group = ws.Symmetry.of(wide, task.example(2))
    return net, group.sample(seed=2, kinds="permutation")(wide), group, task


def test_alignment_across_widths_finds_distance_and_barrier_zero(across):
    net, copy, group, task = across
    found = group.align(net, to=copy, data=task)
    assert float((found - copy).norm() / copy.weights.norm()) < 1e-4
    assert ws.line(copy, found).barrier(task) < 1e-6
    scaled = group.sample(seed=3, kinds="scale")(copy)
    near = group.align(net, to=scaled, data=task)
    assert float((near - scaled).norm() / scaled.weights.norm()) < 0.1 and ws.line(scaled, near).barrier(task) < 0.01
    with pytest.raises(ws.SymmetryError, match="give data= too"):
        group.align(net, to=copy)


def test_the_mean_with_its_own_widening_is_the_function_itself(across):
    net, copy, group, task = across
    x = task.example(50)
    for nets in ([copy, net], [net, copy], [copy, net, copy]):
        middle = ws.mean(nets, group, data=task)
        torch.testing.assert_close(middle(x), net(x), atol=1e-4, rtol=1e-4)
        assert middle.weights["1.weight"].shape == (30, 64)


def test_a_stranger_keeps_its_function_and_comes_nearer(across):
    _, copy, _, task = across
    other = digits_net(12, seed=5)
    x = task.example(20)
    found, drawn = widen_toward(other, copy, task.example(2)), ws.widen(other, copy, task.example(2))
    torch.testing.assert_close(found(x), other(x), atol=1e-10, rtol=1e-10)
    assert float((found - copy).norm()) < float((drawn - copy).norm())


def test_a_semi_permutation_is_the_best_of_all_tables_onto_the_columns():
    gain = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tables = torch.cartesian_prod(*[torch.arange(3)] * 5)
    onto = tables[[len(set(row.tolist())) == 3 for row in tables]]
    best = max(float(gain.gather(1, row[:, None]).sum()) for row in onto)
    table, value = _semi_permutation(gain)
    assert float(value) == pytest.approx(best) and set(table.tolist()) == {0, 1, 2}
    even, _ = _semi_permutation(torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), even=True)
    assert sorted(even.tolist()) == [0, 0, 1, 1, 2, 2]


def test_shares_break_the_symmetry_of_copies_and_depend_on_the_seed():
    net, x = digits_net(12), torch.randn(2, 64, dtype=torch.float64)
    a, b, c = (ws.widen(net, 2, x, seed=seed) for seed in (0, 0, 1))
    assert (a - b).norm() == 0 and (a - c).norm() > 0
    target = torch.randint(10, (2,))
    slopes = ws.gradient(ws.Task(x, target), a)["1.weight"]
    apart = torch.pdist(slopes[slopes.norm(dim=1) > 0])
    assert float(apart.min()) > 1e-9, "copies whose gradients are equal stay copies"


def test_new_units_of_zeros_are_random_and_read_with_weight_zero():
    net, x = digits_net(12), torch.randn(2, 64, dtype=torch.float64)
    wide = ws.widen(net, {"1.weight[0]": 20}, x, new="zeros")
    assert torch.equal(wide.weights["3.weight"][:, :12], net.weights["3.weight"])
    assert not wide.weights["3.weight"][:, 12:].any() and float(wide.weights["1.weight"][12:].std()) > 0
    assert torch.cdist(wide.weights["1.weight"][12:], net.weights["1.weight"]).min() > 1e-3


def test_frozen_and_half_precision_weights_stay_so():
    module = digits_net(12).to(torch.float32).module()
    module[1].weight.requires_grad_(False)
    net = Net.of(module)
    wide = ws.widen(net, 2, torch.randn(2, 64))
    assert wide.frozen == {"1.weight"} and wide.dtype == torch.float32
    assert ws.widen(net.to(torch.bfloat16), 2, torch.randn(2, 64)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("to", "words"),
    [
        (0.5, "narrower"),
        (float("nan"), "narrower"),
        ({"7.weight[0]": 9}, "no axis '7.weight"),
        ({"1.weight[0]": 11}, "has 12 units, 11 are fewer"),
        (lambda: digits_net(9), "12 units, 9 in the other"),
        (lambda: nn.Linear(64, 10), "only one of them has"),
        (lambda: nn.Sequential(nn.Flatten(), *[nn.Linear(64, 10)] * 3), "only one of them has"),
    ],
)
def test_widths_that_do_not_fit_are_refused_in_one_sentence(to, words):
    with pytest.raises(ws.WeightspaceError, match=words) as said:
        ws.widen(digits_net(12), to() if callable(to) else to, torch.randn(2, 64, dtype=torch.float64))
    assert "\n" not in str(said.value)


def test_a_planted_wrong_share_is_caught():
    """The check of the function is what stands between a wrong reading and a wrong network."""
    case = CASES["mlp"]
    net = noisy(case, 0)
    found = widening(net, 2, case.example(0))
    found.readers.places[found.grown[0].name].clear()
    with pytest.raises(ws.WeightspaceError, match="not be the same function"):
        found.drawn("copies", 0).checked(net, case.example(0))


def test_parameters_that_a_value_is_proportional_to():
    net = Net.of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.Tanh())).double()
    graph, _ = label(net, torch.randn(2, 3, dtype=torch.float64))
    factors = Factors(graph)
    found = {}
    for node in graph.nodes:
        if op_name(node) in ("relu", "tanh"):
            met: dict = {}
            whole = torch.ones(node.meta["val"].shape, dtype=torch.long)
            found[op_name(node)] = set(met) if factors.of(node, whole, met) else None
    assert found == {"relu": {"0.weight", "0.bias"}, "tanh": None}


def test_constrained_networks_and_flags_are_refused():
    net = ws.Net.of(torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)))
    x = torch.randn(3, 4)
    with pytest.raises(ws.WeightspaceError, match="0.weight is constrained .*released"):
        ws.widen(ws.constrain(net, {"0.weight": "low-rank:2"}), 2, x)
    with pytest.raises(ws.WeightspaceError, match="a width of True"):
        ws.widen(net, True, x)
