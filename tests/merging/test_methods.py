"""Laws of all merging methods: dense formulas, one network, order, scale, cuts into pieces, global state, refusals."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from ambient import default_dtype
from merged_densely import FORMULAS

from weightspace.merging import directions, elementwise, methods, sparse, spectral, thresholds
from weightspace.merging.methods import METHODS, method
from weightspace.merging.part import Part
from weightspace.merging.recipe import Recipe, merged
from weightspace.net.errors import WeightspaceError
from weightspace.net.seeds import derived

SHAPES = [(), (1,), (37,), (6, 5), (5, 8), (4, 3, 2, 2), (0, 4), (4, 0)]
MORE = {
    "linear": [{"normalize": 0}],
    "nuslerp": [{"nuslerp_flatten": 0}],
    "task_arithmetic": [{"scale": 0.3, "normalize": 1}],
    "ties": [{"density": 1}, {"density": 0.5, "normalize": 0, "scale": 0.4}, {"density": 0.3, "rescale": 1}],
    "dare_linear": [{"density": 0.3, "rescale": 0, "normalize": 1}],
    "dare_ties": [{"density": 0.9, "normalize": 1, "scale": 2}],
    "della_linear": [{"density": 0.4, "epsilon": 0.0, "rescale": 0}, {"density": 1}],
    "della": [{"density": 0.7, "epsilon": 0.3, "normalize": 0}],
    "breadcrumbs": [{"density": 0.5, "gamma": 0.2, "rescale": 1}, {"density": 1}],
    "breadcrumbs_ties": [{"density": 0.3, "gamma": 0.9, "normalize": 1}],
    "sce": [{"select_topk": 0.5}, {"select_topk": 0.0}],
    "nearswap": [{"t": 0.1}, {"t": 0}],
    "passthrough": [{"scale": -2}],
    "consensus": [{"mask": 1.5, "agreement": 1}, {"mask": 0, "agreement": 3, "scale": 0.3}],
    "orthogonal": [{"scale": 0.3}],
    "iso_c": [{"scale": 1.3}],
    "iso_cts": [{"common_share": 0.3}, {"common_share": 1}, {"common_share": 0, "scale": 0.5}],
    "knots_ties": [{"density": 1}, {"density": 0.6, "normalize": 0, "scale": 0.5}],
    "regmean": [{"alpha": 0.0}, {"alpha": 0.5}],
}
CASES = [(name, options) for name in METHODS for options in ({}, *MORE.get(name, ()))]
RANDOM = {"dare_linear", "dare_ties", "della_linear", "della"}
NEEDS_BASE = {name for name, found in METHODS.items() if found.base == "needed"}


def shown(case):
    name, options = case
    return "-".join([name, *(f"{key}={value:g}" for key, value in options.items())])


every = pytest.mark.parametrize("case", CASES, ids=shown)
each = pytest.mark.parametrize("name", list(METHODS))


def number_of(name, most=3):
    return METHODS[name].most or most


def networks(name, shape, seed=0, grid=False, dtype=torch.float64, n=None):
    """Parents, a base and what is beside them; on a `grid` many entries are equal, and many are not changed."""
    draw = functools.partial(torch.randn, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    base, count = draw(), n or number_of(name)
    taus = [0.3 * draw() + 0.1 for _ in range(count)]
    if grid:
        base, taus = (base * 4).round() / 4, [(tau * 8).round() / 8 for tau in taus]
    parents = [base + tau for tau in taus]
    beside = []
    if METHODS[name].beside == "importances":
        beside = [draw().relu() for _ in parents]
    if METHODS[name].beside == "inner products":
        columns, generator = math.prod(shape[1:]), torch.Generator().manual_seed(seed + 1)
        rows = [torch.randn(3 * columns, columns, generator=generator, dtype=torch.float64) for _ in parents]
        beside = [x.mT @ x for x in rows] if len(shape) > 1 else []
    return [p.to(dtype) for p in parents], base.to(dtype), beside


def part_of(name, parents, base, beside, room=1 << 24):
    dtype = torch.float64 if parents[0].dtype == torch.float64 else torch.float32
    near = [({"w": extra}, "w") for extra in beside] or [({}, "w")] * len(parents) * bool(METHODS[name].beside)
    origin = None if METHODS[name].base == "unused" or base is None else ({"w": base}, "w")
    return Part("w", parents[0].shape, [({"w": p}, "w") for p in parents], origin, dtype, room, beside=near)


WEIGHTS = [1.0, 0.5, 2.0]


def run(name, options, networks, weights=None, room=1 << 24, seed=3):
    parents, base, beside = networks
    weights = WEIGHTS[: len(parents)] if weights is None else weights
    return merged(part_of(name, parents, base, beside, room), Recipe(name, weights, options, seed))


def dense(name, options, networks, weights=None, seed=3):
    parents, base, beside = networks
    weights = WEIGHTS[: len(parents)] if weights is None else weights
    extra = [b.numpy() for b in beside] or None
    if name in RANDOM:
        own, n = derived(seed, "merge", "w"), parents[0].numel()
        drawn = [sparse.uniform(derived(own, "mask", k), 0, n) for k in range(len(parents))]
        extra = [u.reshape(parents[0].shape).double().numpy() for u in drawn]
    thetas = [p.double().numpy() for p in parents]
    origin = None if base is None else base.double().numpy()
    return FORMULAS[name](thetas, origin, weights, {**METHODS[name].options, **options}, extra)


def near(found, wanted, most=1e-9):
    return found.shape == wanted.shape and bool(np.allclose(found.double().numpy(), wanted, rtol=most, atol=most))


def test_every_method_has_a_formula():
    assert FORMULAS.keys() == METHODS.keys()


@every
@pytest.mark.parametrize("grid", [False, True], ids=["smooth", "grid"])
def test_formula(case, grid):
    name, options = case
    for shape, seed in itertools.product(SHAPES, (0, 7)):
        given = networks(
            name, shape, seed, grid and options != {"select_topk": 0.5}
        )  # variances equal but for rounding
        found, wanted = run(name, options, given), dense(name, options, given)
        assert found.dtype == torch.float64
        assert near(found, wanted), (shape, seed, found, wanted)


@each
def test_single_precision(name):
    given = networks(name, (23, 17), dtype=torch.float32)
    found = run(name, {}, given)
    assert found.dtype == torch.float32
    assert near(found, dense(name, {}, given), 1e-4)


@each
def test_half_precision_is_computed_in_single(name):
    parents, base, beside = networks(name, (13, 7), dtype=torch.bfloat16)
    found = run(name, {}, (parents, base, beside))
    wide = [p.float() for p in parents], base.float(), beside
    assert found.dtype == torch.float32
    assert torch.equal(found, run(name, {}, wide))


# what is needed beside the defaults for one network to come out as it went in; the others select, or need two
ALONE = {name: {} for name in METHODS} | {
    **{name: {"density": 1} for name in METHODS if "density" in METHODS[name].options},
    "nearswap": {"t": 9},
    "consensus": {"agreement": 1},
}
NOT_ALONE = {"slerp", "nuslerp", "model_stock", "iso_c", "iso_cts", "arcee_fusion"}


@pytest.mark.parametrize("name", sorted(METHODS.keys() - NOT_ALONE))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_network_comes_out_as_it_went_in(name, shape):
    given = networks(name, shape, n=1)
    assert near(run(name, ALONE[name], given, [1.0]), given[0][0].numpy())


@pytest.mark.parametrize("name", sorted(NOT_ALONE))
def test_those_that_change_one_network_do(name):
    """The exceptions above are needed: two at least are asked for, or one network is changed."""
    if METHODS[name].least > 1:
        with pytest.raises(WeightspaceError, match="merges 2"):
            Recipe(name).check(1, base=True)
    elif METHODS[name].most == 1:
        with pytest.raises(WeightspaceError, match="merges 1 network beside the base, not 2"):
            Recipe(name).check(2, base=True)
    else:
        given = networks(name, (6, 5), n=1)
        assert not near(run(name, {}, given, [1.0]), given[0][0].numpy(), 1e-3)


@every
def test_the_order_of_the_networks(case):
    name, options = case
    parents, base, beside = networks(name, (6, 5), grid=True)
    there = run(name, options, (parents, base, beside))
    back = run(name, options, (parents[::-1], base, beside[::-1]), WEIGHTS[: len(parents)][::-1])
    matters = name == "orthogonal" or (name in RANDOM and options.get("density") != 1)
    assert near(there, back.numpy()) != matters


@every
@pytest.mark.parametrize("shape", [(), (9,), (6, 5), (4, 3, 2, 2)], ids=str)
def test_the_base_merged_with_itself(case, shape):
    name, options = case
    parents, base, beside = networks(name, shape)
    if name == "passthrough" or options == {"normalize": 0}:
        options = {}
    found = run(name, options, ([base] * len(parents), base, beside))
    assert near(found, base.numpy(), 1e-12)


@every
def test_scaled_networks_give_the_scaled_network(case):
    name, options = case
    if name == "arcee_fusion":
        pytest.skip("a softmax of the weights")
    parents, base, beside = networks(name, (6, 5))
    larger = [8 * p for p in parents], 8 * base, beside
    found = run(name, {**options, "t": 8 * options.get("t", 1e-4)} if name == "nearswap" else options, larger)
    assert near(found, 8 * run(name, options, (parents, base, beside)).numpy())


@pytest.mark.parametrize("name", sorted(n for n in NEEDS_BASE if "scale" in METHODS[n].options))
def test_scale_multiplies_the_merged_task_vector(name):
    given = networks(name, (6, 5))
    one, three = run(name, {}, given), run(name, {"scale": 3.0}, given)
    assert near(three - given[1], 3 * (one - given[1]).numpy())


@each
def test_weights_that_are_divided_by_their_sum(name):
    given = networks(name, (6, 5))
    options = {"normalize": 1.0} if "normalize" in METHODS[name].options else {}
    same = near(run(name, options, given), run(name, options, given, [2 * w for w in WEIGHTS[: len(given[0])]]).numpy())
    assert same == (name not in {"consensus", "orthogonal", "iso_c", "iso_cts", "tsv_m"})


@every
@pytest.mark.parametrize("shape", [(37,), (6, 5), (4, 3, 2, 2)], ids=str)
def test_no_result_depends_on_the_cut(case, shape):
    name, options = case
    given = networks(name, shape, grid=True, dtype=torch.float32)
    whole = run(name, options, given)
    for room in (1, 40, 101):
        cut = run(name, options, given, room=room)
        assert near(cut, whole.double().numpy(), 1e-6), room
        if name in RANDOM or name in {"ties", "breadcrumbs", "breadcrumbs_ties", "consensus", "nearswap"}:
            assert torch.equal(cut, whole), room


AMBIENT = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@each
@pytest.mark.parametrize("state", list(AMBIENT))
def test_no_result_depends_on_the_global_state(name, state):
    given = networks(name, (6, 5), dtype=torch.float32)
    plain = run(name, {}, given)
    with AMBIENT[state]():
        found = run(name, {}, given)
    assert torch.equal(found, plain)


@each
def test_networks_are_not_written_into(name):
    parents, base, beside = networks(name, (6, 5))
    before = [t.clone() for t in (*parents, base, *beside)]
    run(name, {}, (parents, base, beside))
    assert all(torch.equal(a, b) for a, b in zip(before, (*parents, base, *beside), strict=True))


# ------------------------------------------------------------- planted errors


def unmasked(seed, start, stop):
    return torch.rand(stop - start, generator=torch.Generator().manual_seed(5))


def too_many(part, numbers, counts):
    return thresholds.largest(part, numbers, [[count + 1 for count in some] for some in counts])


def without_mass(deltas, weights):
    return sum(delta * weight for delta, weight in zip(deltas, weights, strict=True)), torch.ones_like(deltas[0])


def nearer(gram, right=directions._directions):
    return right(gram)[0], 0.9 * right(gram)[1]


def shorter(self, rank, right=spectral._Singular.cut):
    return right(self, max(0, rank - 1))


PLANTED = {
    "no vote": ("ties", sparse, "elect", without_mass),
    "one entry too many": ("ties", sparse, "largest", too_many),
    "masks of another seed": ("dare_linear", sparse, "uniform", unmasked),
    "ranks upside down": ("della", sparse, "_ranks", lambda rows, right=sparse._ranks: 1 - right(rows)),
    "no mean length": ("karcher", directions, "_over", lambda x, n: x),
    "other cosines": ("model_stock", directions, "_directions", nearer),
    "no task vectors": ("orthogonal", directions, "_deltas", directions._parents),
    "linear always": ("slerp", directions, "_PARALLEL", 0.0),
    "not whitened": ("tsv_m", spectral, "_orthonormal", lambda x: x),
    "one direction lost": ("iso_cts", spectral._Singular, "cut", shorter),
    "a sum of values": ("iso_c", spectral, "_flat", lambda u, s, v: u @ v.mT * s.sum()),
    "not trimmed": ("knots_ties", spectral, "_largest", lambda m, density: m.clone()),
    "equal importances": ("fisher", elementwise, "entries", lambda s, n, a, b: torch.ones(b - a)),
    "a mean": ("regmean", torch.linalg, "pinv", lambda m, **k: 0 * m),
    "another selection": ("sce", elementwise, "_variance", lambda p: p.deltas[0].abs()),
    "another base": ("consensus", elementwise, "_base", lambda p: 1.01 * p.base),
}


@pytest.mark.parametrize("what", list(PLANTED))
def test_the_formulas_catch_a_planted_error(what, monkeypatch):
    name, place, attribute, wrong = PLANTED[what]
    options = {"select_topk": 0.5} if name == "sce" else {}
    given = networks(name, (6, 5))
    wanted = dense(name, options, given)
    assert near(run(name, options, given), wanted)
    monkeypatch.setattr(place, attribute, wrong)
    assert not near(run(name, options, given), wanted, 1e-6)


# ------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("ties", {"density": 0}, "density above 0 up to 1, not 0"),
        ("dare_linear", {"density": 1.2}, "density above 0 up to 1, not 1.2"),
        ("dare_ties", {"density": math.nan}, "not nan"),
        ("della", {"epsilon": -0.1}, "epsilon from 0 up to 1, not -0.1"),
        ("della", {"density": 0.9, "epsilon": 0.2}, "smaller epsilon"),
        ("della_linear", {"density": 0.1, "epsilon": 0.1}, "smaller epsilon"),
        ("breadcrumbs", {"gamma": 2}, "gamma from 0 up to 1, not 2"),
        ("sce", {"select_topk": -1}, "select_topk"),
        ("nearswap", {"t": -1}, "t from 0, not -1"),
        ("iso_cts", {"common_share": 1.5}, "common_share"),
        ("regmean", {"alpha": 2}, "alpha"),
        ("task_arithmetic", {"scale": math.inf}, "finite"),
        ("ties", {"gamma": 1}, "no option 'gamma'"),
    ],
)
def test_options_out_of_range_are_refused(name, options, says):
    with pytest.raises(WeightspaceError, match=says) as error:
        run(name, options, networks(name, (6, 5)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["linear", "slerp", "nuslerp", "multislerp", "karcher", "fisher", "regmean"])
def test_weights_that_sum_to_zero_are_refused(name):
    with pytest.raises(WeightspaceError, match="sum to zero"):
        run(name, {}, networks(name, (6, 5), n=2), [1.0, -1.0])


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(WeightspaceError, match="finite"):
        run("ties", {}, networks("ties", (6, 5)), [1.0, math.inf, 1.0])


def test_what_is_not_beside_is_refused():
    parents, base, _ = networks("linear", (6, 5))
    part = part_of("linear", parents, base, [])
    for name in ("fisher", "regmean"):
        with pytest.raises(WeightspaceError, match="of every network"):
            merged(part, Recipe(name))
    some = Part(part.name, part.shape, part.sources, None, part.dtype, beside=[({"w": torch.eye(4)}, "w")] * 3)
    with pytest.raises(WeightspaceError, match="5 inputs"):
        merged(some, Recipe("regmean"))
    mixed = Part(
        part.name, part.shape, part.sources, None, part.dtype, beside=[({"w": torch.eye(5)}, "w"), ({}, "w"), ({}, "w")]
    )
    with pytest.raises(WeightspaceError, match="of every network"):
        merged(mixed, Recipe("regmean"))


def test_the_table_of_methods_is_that_of_the_registry():
    rows = [line.split("|")[1:-1] for line in (methods.__doc__ or "").splitlines() if line.startswith("| `")]
    told = [tuple(cell.strip() for cell in row) for row in rows]
    assert told == [(f"`{m.name}`", m.say, m.base, ", ".join(m.options)) for m in METHODS.values()]
    assert all(entry.make.__doc__ for entry in METHODS.values())


def test_an_unknown_method_is_refused():
    assert method("Iso-C").name == "iso_c"
    with pytest.raises(WeightspaceError, match="no merging method 'tie'"):
        method("tie")


def test_a_plain_sum_takes_weights_of_any_size():
    part = Part("w", torch.Size([2]), [({"w": torch.tensor([1.0, 2.0])}, "w")] * 2)
    found = merged(part, Recipe("linear", weights=[1e13, -1e13], options={"normalize": 0}))
    assert found.tolist() == [0.0, 0.0]
    with pytest.raises(WeightspaceError, match="sum to zero"):
        merged(part, Recipe("linear", weights=[1e13, -1e13]))
