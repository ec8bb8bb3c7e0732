"""Laws of a symmetry group, over a registry of architectures whose groups are written down by hand.

Each law is a function that returns an error, so that the same oracle can be shown to catch a planted fault.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache, lru_cache

import architectures
import pytest
import torch
from architectures import CASES, Case, identity, keep, turn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weightspace.net.errors import SymmetryError, WeightspaceError
from weightspace.net.net import Net
from weightspace.net.weights import Weights
from weightspace.symmetry.symmetry import Symmetry

LETTERS = {"permutation": "P", "scale": "R", "sign": "S", "orthogonal": "O", "linear": "L"}
WIDE, STUCK = "has more units", "may not be rotated: the gain"
NOTED = {"mlp_linear": [WIDE, WIDE], "mha_cross": [WIDE], "mha_memory": [WIDE], "encoder_layer": [STUCK]}
EXACT, FAULT = 1e-9, 1e-3
# one of every kind of structure: plain, families, groups, statistics, recurrence, ties, signs, positions
SOME = [
    "mlp",
    "resnet_bn",
    "resnet_gn4",
    "grouped_conv",
    "lstm",
    "tied_residual",
    "mha",
    "llama_rope",
    "experts_index",
]


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@cache
def read(case: Case) -> Symmetry:
    return Symmetry.of(case.make(0), case.example(0))


@lru_cache(maxsize=64)
def noisy(case: Case, seed: int) -> Net:
    return architectures.noisy(case, seed)


@pytest.fixture
def group(case) -> Symmetry:
    return read(case)


# oracles


def leaves(tree) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return [t for item in (tree.values() if isinstance(tree, dict) else tree) for t in leaves(item)]


def change(net: Net, other: Net, case: Case, seed: int = 7) -> float:
    """max |f(w, x) - f(w', x)| / max |f(w, x)|, over the outputs."""
    x = case.example(seed)
    with torch.no_grad():
        pairs = list(zip(leaves(net(x)), leaves(other(x)), strict=True))
    return max(float((a - b).abs().max()) for a, b in pairs) / max(float(a.abs().max()) for a, _ in pairs)


def gap(u: Weights, v: Weights) -> float:
    """|u - v| / |u|."""
    return float((u - v).norm()) / max(float(u.norm()), 1e-300)


def apart(net: Net, other: Net) -> float:
    """How far two networks are apart, parameters and persistent buffers, in units of their size."""
    return max(gap(net.weights, other.weights), gap(net.state, other.state) if net.state else 0.0)


def moved_tensors(net: Net, other: Net) -> list[str]:
    return [name for name, tensor in net.tensors.items() if not torch.equal(tensor, other.tensors[name])]


def described(group: Symmetry) -> Counter:
    """(size, sizes of the outer axes, kinds) -> how many axes."""
    return Counter(
        (axis.size, tuple(group[name].size for name in axis.over), "".join(LETTERS[k] for k in axis.kinds))
        for axis in group.axes
    )


def written(expected) -> Counter:
    return Counter((e.size, e.over, e.kinds) for e in expected)


# the reading


def test_the_reading_is_the_group_written_by_hand(case, group):
    wanted = [written(case.expected)] + ([written(case.also)] if case.also else [])
    assert described(group) in wanted
    noted = NOTED.get(case.name, [])
    assert len(group.notes) == len(noted) and all(n in note for n, note in zip(noted, group.notes, strict=True))


def test_names_are_unique_and_lead_to_their_axis(group):
    assert len({axis.name for axis in group.axes}) == len(group.axes) > 0
    for axis in group.axes:
        assert group[axis.name] == axis
        assert axis.name not in axis.over
    with pytest.raises(SymmetryError):
        group["no such axis"]


def test_the_comparison_with_the_list_tells_groups_apart(case):
    for i, e in enumerate(case.expected):
        others = case.expected[:i] + case.expected[i + 1 :]
        assert written(others) != written(case.expected), "an axis is missing"
        assert written([*others, type(e)(e.size, e.over, e.kinds + "X")]) != written(case.expected), "a kind too many"
        assert written([*others, type(e)(e.size, (*e.over, 2), e.kinds)]) != written(case.expected), "a family too wide"


@pytest.mark.parametrize("name", SOME)
def test_reading_depends_neither_on_the_point_nor_on_the_input(name):
    case, group = CASES[name], read(CASES[name])
    again = Symmetry.of(noisy(case, 3), case.example(5))
    assert described(again) == described(group)
    assert again.axes == group.axes


# invariance


@pytest.mark.parametrize("seed", [1, 2])
def test_the_function_is_invariant(case, group, seed):
    net = noisy(case, seed)
    g = group.sample(seed=seed)
    assert change(net, g(net), case, seed) < EXACT
    assert apart(net, g(net)) > 0.01


def test_every_kind_of_every_axis_moves_the_weights_and_leaves_the_function_alone(case, group):
    net = noisy(case, 1)
    for axis in group.axes:
        for kind in axis.kinds:
            moved = group.sample(seed=4, kinds=(kind,), axes=(axis.name,))(net)
            assert change(net, moved, case) < EXACT, (axis, kind)
            assert apart(net, moved) > FAULT, (axis, kind)


def test_no_tensor_that_moves_may_stay(case, group):
    net = noisy(case, 1)
    moved = group.sample(seed=1)(net)
    names = [name for name in moved_tensors(net, moved) if name not in case.inert]
    assert names
    for name in names:
        assert change(net, keep(net, moved, name), case) > FAULT, name


def test_units_in_another_order_in_one_tensor_alone_change_the_function(case, group):
    net = noisy(case, 1)
    moved = group.sample(seed=1, kinds=("permutation",))(net)
    for name in moved_tensors(net, moved):
        if name not in case.inert and len(net.tensors[name]) > 1:
            assert change(net, turn(net, name), case) > FAULT, name


def test_doing_nothing_is_not_taken_for_a_move(case):
    net = noisy(case, 1)
    assert change(net, identity(net), case) == 0
    assert apart(net, identity(net)) == 0


# the laws of a group


def test_identity(case, group):
    net = noisy(case, 2)
    assert apart(net, group.identity()(net)) == 0
    g = group.sample(seed=5)
    assert apart(g(net), (g @ group.identity())(net)) < EXACT
    assert apart(g(net), (group.identity() @ g)(net)) < EXACT


def test_inverse(case, group):
    net = noisy(case, 2)
    g = group.sample(seed=6)
    assert apart(net, g.inverse()(g(net))) < EXACT
    assert apart(net, g(g.inverse()(net))) < EXACT
    assert apart(net, (g @ g.inverse())(net)) < EXACT
    h = group.sample(seed=7)
    assert apart(net, h.inverse()(g(net))) > FAULT


def test_product(case, group):
    net = noisy(case, 2)
    g, h, k = (group.sample(seed=s) for s in (8, 9, 10))
    assert apart(g(h(net)), (g @ h)(net)) < EXACT
    assert apart(((g @ h) @ k)(net), (g @ (h @ k))(net)) < EXACT
    assert apart((g @ h).inverse()(net), (h.inverse() @ g.inverse())(net)) < EXACT
    assert change(net, (g @ h)(net), case) < EXACT


def test_order_matters_and_the_oracle_sees_it(case, group):
    net = noisy(case, 2)
    abelian = all(axis.size < 3 or "permutation" not in axis.kinds for axis in group.axes)
    pairs = [(group.sample(seed=s), group.sample(seed=s + 50)) for s in (8, 9, 10)]
    assert abelian or max(apart((g @ h)(net), (h @ g)(net)) for g, h in pairs) > FAULT


def test_the_action_is_linear(case, group):
    """On networks whose norms are folded, among which the gains of norms do not vary."""
    net = group.fold(noisy(case, 3))
    g = group.sample(seed=11)
    u, v = net.weights.randn(1), net.weights.randn(2)
    for place in (place for q in group.generators for place in q.uniform):
        v[group.blocks[place.block].tensor].zero_()
    assert gap(g(u) + 2 * g(v), g(u + 2 * v)) < EXACT
    assert gap(g(net.weights), g(net).weights) == 0
    assert gap(g(net + v) - g(net), g(v)) < EXACT
    assert gap(g(u) + 3 * g(v), g(u + 2 * v)) > FAULT


def test_permutations_and_signs_are_isometries_and_scales_are_not(case, group):
    u = noisy(case, 3).weights.randn(3)
    g = group.sample(seed=12, kinds=("permutation", "sign"))
    assert float(g(u).norm()) == pytest.approx(float(u.norm()), rel=1e-12)
    if any("scale" in axis.kinds for axis in group.axes):
        assert abs(float(group.sample(seed=12, kinds=("scale",))(u).norm()) / float(u.norm()) - 1) > FAULT


@pytest.mark.parametrize("name", SOME)
@settings(max_examples=12, deadline=None)
@given(seeds=st.tuples(*[st.integers(0, 2**31)] * 3), t=st.floats(-3, 3))
def test_laws_hold_for_any_seed(name, seeds, t):
    case, group = CASES[name], read(CASES[name])
    g, h = (group.sample(seed=s) for s in seeds[:2])
    net = noisy(case, seeds[2])
    v = net.weights.randn(seeds[2])
    assert change(net, g(net), case) < EXACT
    assert apart(net, g.inverse()(g(net))) < EXACT
    assert apart(g(h(net)), (g @ h)(net)) < EXACT
    assert gap(g(net.weights) + t * g(v), g(net.weights + t * v)) < EXACT


@pytest.mark.parametrize("name", SOME)
def test_samples_come_from_their_seed(name):
    net, group = noisy(CASES[name], 0), read(CASES[name])
    assert apart(group.sample(seed=1)(net), group.sample(seed=1)(net)) == 0
    assert apart(group.sample(seed=1)(net), group.sample(seed=2)(net)) > FAULT


# the group as JSON


def test_saved_and_loaded_it_acts_alike(case, group, tmp_path):
    group.save(tmp_path / "group.json")
    loaded = Symmetry.load(tmp_path / "group.json")
    net = noisy(case, 4)
    assert loaded.axes == group.axes
    assert str(loaded) == str(group)
    for seed in (1, 2):
        assert apart(group.sample(seed=seed)(net), loaded.sample(seed=seed)(net)) == 0


def test_the_old_name_of_as_json_warns():
    group = read(CASES["mlp"])
    with pytest.warns(DeprecationWarning, match="as_json"):
        assert group.certificate() == group.as_json()


@pytest.mark.parametrize("name", SOME)
def test_a_file_that_was_tampered_with_acts_differently_or_is_refused(name, tmp_path):
    case, group = CASES[name], read(CASES[name])
    group.save(tmp_path / "group.json")
    data = json.loads((tmp_path / "group.json").read_text())
    assert data["blocks"]
    net = noisy(case, 4)
    moving = {axis.name for axis in group.axes}
    number = next(i for i, block in enumerate(data["blocks"]) if moving & set(map(str, block["leaves"])))
    data["blocks"][number]["leaves"] = [group[n].size if n in moving else n for n in data["blocks"][number]["leaves"]]
    (tmp_path / "tampered.json").write_text(json.dumps(data))
    try:
        moved = Symmetry.load(tmp_path / "tampered.json").sample(seed=1)(net)
    except SymmetryError:
        return
    assert apart(group.sample(seed=1)(net), moved) > FAULT


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", '{"format": "another"}', '{"format": '])
def test_a_file_without_a_group_is_refused_in_one_line(text, tmp_path):
    (tmp_path / "group.json").write_text(text)
    with pytest.raises(SymmetryError) as error:
        Symmetry.load(tmp_path / "group.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("other", ["mlp", "mlp_eights", "mlp_batchnorm"])
def test_another_architecture_is_refused(other):
    group, net = read(CASES["mlp_tanh"]), noisy(CASES[other], 0)
    for act in (group.sample(seed=0), group.balance, group.canonical, lambda n: group.align(n, to=n)):
        with pytest.raises(WeightspaceError) as error:
            act(net)
        assert "\n" not in str(error.value)


# one representative, balance, nearest member


def check_canonical(case: Case, group: Symmetry, key: str) -> None:
    net = noisy(case, 5)
    normal = group.canonical(net, key=key)
    assert change(net, normal, case) < EXACT
    assert apart(normal, group.canonical(normal, key=key)) < 1e-7
    moved = group.sample(seed=1)(net)
    assert apart(normal, group.canonical(moved, key=key)) < 1e-7


def test_canonical_is_idempotent_and_constant_on_orbits(case, group):
    check_canonical(case, group, "norm")


@pytest.mark.parametrize("name", SOME)
def test_canonical_by_the_mean(name):
    check_canonical(CASES[name], read(CASES[name]), "mean")


def test_canonical_forms_tell_networks_apart(case, group):
    net = noisy(case, 5)
    moved = group.sample(seed=1)(net)
    name = next(name for name in moved_tensors(net, moved) if name not in case.inert and name in net.weights)
    assert apart(group.canonical(net, key="norm"), group.canonical(keep(net, moved, name), key="norm")) > FAULT


@pytest.mark.parametrize("key", ["first", "linear"])
@pytest.mark.parametrize("name", ["mlp", "mlp_tanh", "cnn_flatten", "cnn_bn", "glu"])
def test_keys_that_read_coordinates_are_well_defined_from_the_input_on(name, key):
    check_canonical(CASES[name], read(CASES[name]), key)


@pytest.mark.parametrize("key", ["first", "linear"])
@pytest.mark.parametrize("name", ["shared_layer", "lstm", "gru"])
def test_keys_that_read_coordinates_are_refused_where_coordinates_move(name, key):
    with pytest.raises(SymmetryError, match="not well defined"):
        read(CASES[name]).canonical(noisy(CASES[name], 5), key=key)


def test_balance(case, group):
    net = noisy(case, 6)
    balanced = group.balance(net)
    assert change(net, balanced, case) < EXACT
    assert float(balanced.weights.norm()) <= float(net.weights.norm()) * (1 + 1e-12)
    assert apart(balanced, group.balance(balanced)) < 1e-6
    for seed in (1, 2):
        moved = group.sample(seed=seed, kinds=("scale",))(net)
        assert apart(balanced, group.balance(moved)) < 1e-6


def test_align_recovers_a_planted_element(case, group):
    net = noisy(case, 7)
    moved = group.sample(seed=3)(net)
    assert apart(net, moved) > 0.01
    assert apart(net, group.align(moved, to=net)) < 1e-6


@pytest.mark.parametrize("name", SOME)
def test_what_is_not_in_the_orbit_is_not_recovered(name):
    case, group = CASES[name], read(CASES[name])
    net = noisy(case, 7)
    moved = group.sample(seed=3)(net)
    tensor = next(name for name in moved_tensors(net, moved) if name in net.weights)
    assert apart(net, group.align(keep(net, moved, tensor), to=net, method="weights")) > FAULT


def aligned_distance(case: Case, group: Symmetry, method: str) -> tuple[float, float]:
    """Distance on the balanced slice before and after; the function must stay."""
    a, b = noisy(case, 8), noisy(case, 9)
    aligned = group.align(b, to=a, method=method)
    assert change(b, aligned, case) < EXACT
    before, after = (float((group.balance(net) - group.balance(a)).norm()) for net in (b, aligned))
    return before, after


@pytest.mark.parametrize("name", [*SOME, "mlp_tanh", "cnn_flatten", "glu", "maxout", "pools", "gru", "vit"])
def test_align_never_increases_the_distance_and_keeps_the_function(name):
    case, group = CASES[name], read(CASES[name])
    before, by_weights = aligned_distance(case, group, "weights")
    assert by_weights <= before * (1 + 1e-9)
    assert aligned_distance(case, group, "auto")[1] <= by_weights * (1 + 1e-6), "the default keeps the best"


@pytest.mark.parametrize("name", ["mlp", "mlp_tanh", "cnn_flatten", "cnn_bn", "lora"])
def test_align_recovers_under_noise(name):
    case, group = CASES[name], read(CASES[name])
    net = noisy(case, 7)
    g = group.sample(seed=3)
    noise = net.weights.randn(1)
    noisier = net + (0.1 * float(net.weights.norm()) / float(noise.norm())) * noise
    assert apart(noisier, group.align(g(noisier), to=net)) < 0.3 * apart(noisier, g(noisier))
    element = group.match(g(noisier), to=net).element
    units = [axis.name for axis in group.axes if axis.kinds[0] == "permutation" and "linear" not in axis.kinds]
    assert units
    back = (element @ g).permutations
    assert all(torch.equal(back[name], group.identity().permutations[name]) for name in units)
