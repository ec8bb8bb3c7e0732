"""Recipes whose options differ by network: each counts for its own, and what cannot differ is refused."""

import pytest
import torch

import weightspace as ws
from weightspace.merging import Recipe, planned
from weightspace.merging.merging import computed
from weightspace.merging.methods import METHODS


def nets(n=3, size=(6, 5)):
    draw = [torch.Generator().manual_seed(k) for k in range(n + 1)]
    return [{"w": torch.randn(size, generator=generator)} for generator in draw]


def test_each_network_is_trimmed_by_its_own_share():
    """Dense: the largest entries of every task vector, counted apart, then added."""
    *parents, base = nets(2)
    recipe = Recipe("breadcrumbs", own={"density": [0.2, 0.7], "gamma": [0.1, 0.0]})
    expected = base["w"].clone()
    for parent, density, gamma in zip(parents, (0.2, 0.7), (0.1, 0.0), strict=True):
        delta = (parent["w"] - base["w"]).flatten()
        kept = delta.abs().argsort(descending=True)[int(gamma * 30) : int(gamma * 30) + int(density * 30)]
        expected.view(-1)[kept] += delta[kept]
    assert torch.allclose(computed(planned(parents, base, recipe))["w"], expected, atol=1e-6)


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if "density" in entry.own])
def test_one_share_for_all_is_the_same_number_for_each(method):
    *parents, base = nets(3)
    one, each = Recipe(method, options={"density": 0.5}), Recipe(method, own={"density": [0.5] * 3})
    assert torch.equal(*(computed(planned(parents, base, recipe))["w"] for recipe in (one, each)))
    first = Recipe(method, [1.0, 0.0, 0.0], own={"density": [0.5, 1.0, 0.3]})
    other = Recipe(method, [1.0, 0.0, 0.0], own={"density": [0.5, 0.7, 0.4]})
    assert torch.equal(*(computed(planned(parents, base, recipe))["w"] for recipe in (first, other)))


def test_networks_that_lack_a_tensor_take_their_share_along():
    a, b, c, base = nets(3)
    parents = [{}, b, c]
    parents[0] = {"v": a["w"]}
    recipe = Recipe("ties", own={"density": [0.9, 0.2, 0.4]})
    plan = planned(parents, {**base, "v": base["w"]}, recipe, ws.merging.Rules(extra="merge"))
    row = next(row for row in plan.rows if row.name == "w")
    assert row.recipe.own == {"density": [0.2, 0.4]}


@pytest.mark.parametrize(
    "method, own, words",
    [
        ("linear", {"normalize": [1, 0]}, "'normalize' of linear is one for all networks; none may differ"),
        ("ties", {"scale": [1, 0]}, "'scale' of ties is one for all networks; density may differ by network"),
        ("ties", {"density": [0.5]}, "1 numbers of density for 2 networks; give one for each"),
        ("ties", {"density": [0.5, 0]}, "ties takes a density above 0 up to 1, not 0"),
        ("della", {"density": [0.5, 0.1]}, "are probabilities, not -0.05 and 0.25"),
    ],
)
def test_what_cannot_differ_is_refused(method, own, words):
    *parents, base = nets(2)
    with pytest.raises(ws.WeightspaceError) as error:
        computed(planned(parents, base, Recipe(method, own=own)))
    assert words in str(error.value)


@pytest.mark.parametrize("method", METHODS)
def test_a_name_in_another_spelling_is_the_same_recipe(method):
    assert Recipe(method.upper().replace("_", "-")) == Recipe(method)


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if not entry.beside])
def test_weights_count_or_are_refused(method):
    entry, options = METHODS[method], {"density": 1.0} if "density" in METHODS[method].options else {}
    *parents, base = nets(entry.most or 3)
    base, weights = (None if entry.base == "unused" else base), [2.0, *[0.5] * (len(parents) - 1)]
    plain = computed(planned(parents, base, Recipe(method, None, options)))["w"]
    if entry.weighs:
        assert not torch.allclose(computed(planned(parents, base, Recipe(method, weights, options)))["w"], plain)
    else:
        with pytest.raises(ws.WeightspaceError, match=f"{method} takes no weights"):
            planned(parents, base, Recipe(method, weights, options))


def test_what_is_yes_or_no_is_no_number_between():
    *parents, base = nets(2)
    with pytest.raises(ws.WeightspaceError, match=r"ties takes a rescale of 0 \(no\) or 1 \(yes\), not 0.5"):
        computed(planned(parents, base, Recipe("ties", options={"rescale": 0.5})))
