"""Successive halving against a race of known means: how often it is right, what it costs, and what it says of ties."""

import math

import pytest
import torch
from scipy import stats

from weightspace.atlas import Losses, halve, paired
from weightspace.net.errors import WeightspaceError

N, ARMS = 1200, 48


def race(means, seed=0, own=0.5, size=N, broken=()):
    """Losses of members with these means: an example's difficulty, shared, and a part of their own."""
    g = torch.Generator().manual_seed(seed)
    table = (
        torch.tensor(means)[:, None] + torch.randn(size, generator=g) + own * torch.randn(len(means), size, generator=g)
    )
    asked = []

    def ask(names, start, stop):
        asked.append((tuple(names), start, stop))
        return {
            n: "cannot read it" if n in broken else Losses(table[int(n), start:stop], torch.ones(stop - start))
            for n in names
        }

    return ask, [str(k) for k in range(len(means))], table, asked


def test_the_best_is_found_at_a_fifth_of_the_cost_and_the_tied_hold_it():
    right = inside = 0
    for seed in range(40):
        means = torch.rand(ARMS, generator=torch.Generator().manual_seed(100 + seed)).tolist()
        ask, names, table, _ = race(means, seed)
        found = halve(ask, names, N)
        best = str(int(table.mean(1).argmin()))
        right += found.best == best
        inside += str(means.index(min(means))) in found.tied
        assert found.share <= 0.21
    assert right >= 36 and inside >= 38


def test_members_see_the_same_examples_and_the_halves_are_dropped():
    ask, names, _, asked = race([float(k) / 50 for k in range(16)])
    found = halve(ask, names, N, first=20)
    assert asked[0] == (tuple(names), 0, 20)
    for (before, _, stop), (after, begin, end) in zip(asked, asked[1:], strict=False):
        assert begin == stop and end >= min(N, 2 * stop)
        assert {*after} < {*before} or len(after) == len(before) == 2
        assert len(after) <= max(2, math.ceil(len(before) / 2))
    assert found.passes == sum(len(some) * (stop - start) for some, start, stop in asked)
    assert found.whole == 16 * N


def test_a_difference_of_pairs_is_told_where_means_apart_are_not():
    """The same gap with the shared difficulty of an example drawn anew for every member is lost in the noise."""
    ask, names, table, _ = race([0.0, 0.06], own=0.1)
    found = halve(ask, names, N)
    assert found.tied == ("0",) and found.ranking[1].behind_error < 0.02
    apart, _, _, _ = race([0.0, 0.06], own=0.1, seed=5)
    mixed = halve(lambda names, a, b: ask(["0"], a, b) | apart(["1"], a, b) if len(names) > 1 else ask(names, a, b),
                  names, N)  # fmt: skip
    assert len(mixed.tied) == 2
    assert float(table[0].std()) / math.sqrt(N) > 0.02  # the error of a mean alone


def test_equals_are_told_apart_by_nothing():
    ask, names, _, _ = race([0.3] * 6, own=0.4)
    wrong = sum(len(halve(race([0.3] * 6, seed=s, own=0.4)[0], names, N).tied) < 6 for s in range(20))
    assert wrong <= 2
    same = halve(lambda names, a, b: {n: Losses(torch.ones(b - a), torch.ones(b - a)) for n in names}, names, N)
    assert {*same.tied} == {*names} and same.ranking[0].error == 0


def test_the_paired_error_is_that_of_scipy():
    a, b = torch.randn(2, 40, generator=torch.Generator().manual_seed(0)).double()
    found, oracle = paired(a, b), stats.ttest_rel(a, b)
    assert found.p == pytest.approx(float(oracle.pvalue)) and found.difference == pytest.approx(float((a - b).mean()))
    zero, one = (torch.rand(2, 40, generator=torch.Generator().manual_seed(1)) < 0.4).double()
    worse, better = int((zero > one).sum()), int((zero < one).sum())
    assert paired(zero, one).p == pytest.approx(float(stats.binomtest(worse, worse + better).pvalue))


def test_texts_weigh_by_their_positions():
    """The mean over positions, and its error by a bootstrap over texts."""
    g = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 30, (400,), generator=g).double()
    a, b = (counts + torch.randn(400, generator=g) * counts.sqrt() for _ in range(2))
    found = paired(a, b, counts)
    assert found.difference == pytest.approx(float((a - b).sum() / counts.sum()))
    draws = torch.randint(400, (2000, 400), generator=g)
    spread = ((a - b)[draws].sum(1) / counts[draws].sum(1)).std()
    assert found.error == pytest.approx(float(spread), rel=0.1)


def test_a_group_is_asked_by_its_first_and_then_from_inside():
    means = [0.5, 0.1, 0.12, 0.0, 0.9, 0.91]
    ask, names, _, asked = race(means, own=0.05)
    found = halve(ask, names, N, groups=[["1", "2", "3"], ["4", "5"]])
    assert found.best == "3" and found.instead == {"5": "4"}
    assert all("5" not in some for some, _, _ in asked)
    assert not any(start == 0 and {"2", "3"} & {*some} for some, start, _ in asked[:1])
    assert {row.name for row in found.ranking} == {"0", "1", "2", "3", "4"}


def test_where_the_first_of_a_group_cannot_answer_the_next_does():
    ask, names, _, _ = race([0.5, 0.1, 0.0], broken={"1"}, own=0.05)
    found = halve(ask, names, N, groups=[["1", "2"]])
    assert found.best == "2" and found.left_out == {"1": "cannot read it"} and not found.instead


def test_nan_is_left_out_with_the_reason_wherever_it_comes():
    ask, names, _, _ = race([0.2, 0.1, 0.0, 0.3], own=0.3)

    def late(names, start, stop):
        found = ask(names, start, stop)
        if "2" in found and stop > 100:
            found["2"].sums[-1] = math.nan
        return found

    found = halve(late, names, N, first=16)
    assert found.best == "1" and "NaN or infinite on 1 of" in found.left_out["2"]
    with pytest.raises(WeightspaceError, match="no member can answer: 0: its loss is NaN"):
        halve(lambda names, a, b: {n: Losses(torch.full((b - a,), math.nan), torch.ones(b - a)) for n in names},
              names, N)  # fmt: skip


def test_one_member_is_the_best():
    ask, names, _, _ = race([0.2])
    found = halve(ask, names, N)
    assert found.best == "0" and found.tied == ("0",) and found.ranking[0].error > 0


def test_few_examples_are_used_up():
    ask, names, _, _ = race([0.0, 0.01, 0.02], size=5, own=1.0)
    found = halve(ask, names, 5)
    assert found.ranking[0].examples == 5 and found.share == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"names": []}, "give one or more"),
        ({"names": ["0", "0"]}, "each once"),
        ({"size": 0}, "give 1 or more"),
        ({"budget": 1.5}, "budget is 1.5"),
        ({"confidence": 0.0}, "confidence is 0"),
        ({"first": 0}, "give 1 or more"),
        ({"groups": [["0", "9"]]}, "'9' of groups="),
        ({"groups": [["0", "1"], ["1"]]}, "'1' of groups="),
    ],
)
def test_wrong_arguments_are_refused(given, said):
    ask, names, _, _ = race([0.0, 0.1])
    with pytest.raises(WeightspaceError, match=said):
        halve(ask, **({"names": names, "size": N} | given))
