"""Random masks of sparse task vectors: of position and parent alone, unbiased; the vote; what density one is."""

import pytest
import torch

from weightspace.merging.part import Part
from weightspace.merging.recipe import Recipe, merged
from weightspace.merging.sparse import elect, uniform

RANDOM = ["dare_linear", "dare_ties", "della_linear", "della"]


def part(*parents, base=None, name="w", room=1 << 24):
    origin = torch.zeros_like(parents[0]) if base is None else base
    return Part(name, parents[0].shape, [({name: p}, name) for p in parents], ({name: origin}, name), room=room)


def test_uniform_numbers_depend_on_the_position_alone():
    whole = uniform(5, 0, 50_000)
    assert torch.equal(whole[16_000:33_000], uniform(5, 16_000, 33_000))
    assert torch.equal(whole[16_383:16_385], uniform(5, 16_383, 16_385))
    assert uniform(5, 3, 3).numel() == 0
    assert not torch.equal(whole[:100], uniform(6, 0, 100))
    assert abs(float(whole.mean()) - 0.5) < 0.01
    assert abs(float(whole.std()) - 12**-0.5) < 0.01
    assert abs(float(torch.corrcoef(torch.stack([whole[:-1], whole[1:]]))[0, 1])) < 0.02


@pytest.mark.parametrize("name", RANDOM)
def test_masks_differ_between_seeds_names_and_networks(name):
    one = torch.ones(500)

    def found(seed=0, tensor="w", count=1):
        return merged(part(*[one] * count, name=tensor), Recipe(name, seed=seed))

    assert torch.equal(found(), found())
    assert not torch.equal(found(), found(seed=1))
    assert not torch.equal(found(), found(tensor="v"))
    if name == "dare_linear":
        levels = {round(float(v)) for v in found(count=2).unique()}
        assert levels == {0, 2, 4}, "two networks have masks of their own"


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_a_random_merge_is_task_arithmetic_on_average(name):
    taus = [torch.randn(6, 8, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    base = torch.ones(6, 8)
    given = part(*[base + tau for tau in taus], base=base)
    mean = sum(merged(given, Recipe(name, [1.0, 2.0, 0.5], seed=seed)) for seed in range(600)) / 600
    wanted = merged(given, Recipe("task_arithmetic", [1.0, 2.0, 0.5]))
    assert float((mean - wanted).norm() / wanted.norm()) < 0.06
    biased = sum(merged(given, Recipe(name, [1.0, 2.0, 0.5], {"rescale": 0}, seed)) for seed in range(100)) / 100
    assert float((biased - wanted).norm() / wanted.norm()) > 0.2


@pytest.mark.parametrize("name", ["ties", "breadcrumbs", *RANDOM])
def test_networks_may_have_densities_of_their_own(name):
    """One of two has density 1: the other's part of the sum is that of its density alone."""
    taus = [torch.rand(6, 8, generator=torch.Generator().manual_seed(k)) + 0.1 for k in range(2)]
    options = {"normalize": 0.0}
    both = merged(part(*taus), Recipe(name, options=options, own={"density": [0.4, 1.0]}))
    first = merged(part(taus[0]), Recipe(name, options={**options, "density": 0.4}))
    assert torch.allclose(both, first + taus[1], atol=1e-6)
    same = merged(part(*taus), Recipe(name, options=options, own={"density": [0.4, 0.4]}))
    assert torch.equal(same, merged(part(*taus), Recipe(name, options={**options, "density": 0.4})))


def test_della_keeps_large_entries_more_often():
    tau = torch.arange(1.0, 101.0).expand(300, 100).contiguous()
    kept = (merged(part(tau), Recipe("della_linear", options={"density": 0.5, "epsilon": 0.3})) != 0).float().mean(0)
    assert float(kept[:10].mean()) == pytest.approx(0.23, abs=0.04)
    assert float(kept[-10:].mean()) == pytest.approx(0.77, abs=0.04)
    assert float(kept.mean()) == pytest.approx(0.5, abs=0.01)


def test_ties_of_equal_signs_is_the_mean_of_task_arithmetic():
    base = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    taus = [torch.rand(6, 5, generator=torch.Generator().manual_seed(k)) + 0.1 for k in (1, 2)]
    sign = torch.where(base > 0, 1.0, -1.0)
    given = part(*[base + sign * tau for tau in taus], base=base)
    ties = merged(given, Recipe("ties", [1.0, 3.0], {"density": 1.0}))
    assert torch.allclose(ties, merged(given, Recipe("task_arithmetic", [1.0, 3.0], {"normalize": 1.0})), atol=1e-6)


def test_a_vote_follows_the_larger_side_and_a_draw_is_positive():
    first, second = torch.tensor([1.0, -1.0, 1.0, 0.0]), torch.tensor([-3.0, 0.5, -1.0, 0.0])
    total, mass = elect([first, second], (1.0, 1.0))
    assert total.tolist() == [-3.0, -1.0, 1.0, 0.0]
    assert mass.tolist() == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("name", ["ties", "breadcrumbs", "breadcrumbs_ties"])
def test_rescaled_task_vectors_have_their_l1_norm_back(name):
    tau = torch.randn(9, 11, generator=torch.Generator().manual_seed(0))
    found = merged(part(tau), Recipe(name, options={"density": 0.3, "rescale": 1.0}))
    assert float(found.abs().sum()) == pytest.approx(float(tau.abs().sum()), rel=1e-5)
    assert int(found.count_nonzero()) == int(0.3 * 99)
