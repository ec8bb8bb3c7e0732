"""The structure of a task: the laws of the envelope, planted violations, and sweeps that stop and go on."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from weightspace.codes.structure_functions import Run, StructureFunction
from weightspace.codes.sweep import cost, random_labels, structure_function
from weightspace.net.errors import WeightspaceError
from weightspace.task.task import Task

LOG = 500 * math.log(10)
# loss and KL of codes of 500 digits: with their labels, half of them random, all random
TABLE = {
    "true": {0.01: (3, 2139), 0.1: (17, 1053), 0.3: (47, 777), 0.7: (113, 551), 1.0: (161, 466), 2.0: (358, 317),
             3.0: (627, 202), 5.0: (1159, 0)},
    "half": {0.01: (17, 6684), 0.1: (58, 4800), 0.3: (188, 3557), 0.7: (788, 1115), 1.0: (983, 302), 2.0: (1152, 0.2)},
    "random": {0.01: (20, 7086), 0.1: (55, 5204), 0.3: (184, 4287), 0.7: (727, 2533), 1.0: (1185, 328), 2.0: (1174, 7)},
}  # fmt: skip


def told(name: str) -> StructureFunction:
    runs = tuple(Run(0, "up", beta, float(loss), 1.0, float(kl), 0.5) for beta, (loss, kl) in TABLE[name].items())
    return StructureFunction(runs, ((0.0, LOG),), 500)


@pytest.mark.parametrize("name", TABLE)
def test_the_envelope_is_concave_and_its_slope_is_the_information(name):
    s = told(name)
    betas = np.geomspace(0.005, 8, 300)
    c, k = np.array([s.length(b) for b in betas]), np.array([s.information(b) for b in betas])
    for run in s.runs:
        assert (c <= run.loss + betas * run.kl + 1e-9).all()
    assert c.max() <= LOG + 1e-9
    slopes = np.diff(c) / np.diff(betas)
    assert (np.diff(slopes) <= 1e-9).all() and (slopes >= -1e-9).all()
    assert (slopes <= k[:-1] + 1e-6).all() and (slopes >= k[1:] - 1e-6).all()
    assert s.length() + 1e-9 >= s.loss(s.complexity) + s.complexity


@pytest.mark.parametrize("name", TABLE)
def test_the_structure_function_is_the_legendre_transform(name):
    s = told(name)
    betas = np.array([0.0, *(-np.diff([v[1] for v in s.vertices]) / np.diff([v[0] for v in s.vertices]))])
    c = np.array([s.length(b) for b in betas])
    for t in (0.0, 100.0, 466.0, 1000.0, 5000.0, 9000.0):
        assert s.loss(t) == pytest.approx((c - betas * t).max(), abs=1e-6)
    assert s.loss(0.0) == pytest.approx(LOG) and s.loss(1e9) == min(run.loss for run in s.runs)


def test_random_labels_collapse_early_and_true_ones_late():
    found = {name: told(name).collapse for name in TABLE}
    assert found["random"] == pytest.approx(0.226, abs=0.001)
    assert found["true"] == pytest.approx(2.596, abs=0.001)
    assert found["random"] < 1 < found["true"]
    assert told("random").complexity == 0 and told("true").complexity == 466
    assert told("true").length() == 627 and told("random").length() == pytest.approx(LOG)


def test_transitions_are_where_the_information_jumps():
    learnt, last = told("half").transitions
    assert (learnt.before, learnt.after) == (4800, 302) or (learnt.before, learnt.after) == (3557, 302)
    assert "memorised" in learnt.name and not learnt.last
    assert last.beta == pytest.approx((LOG - 983) / 302) and last.after == 0 and "constant" in last.name
    assert [t.last for t in told("true").transitions] == [True]
    peak = max(told("random").susceptibility(), key=lambda pair: pair[1])
    assert 0.17 < peak[0] < 0.6


def test_the_tail_is_a_nat_for_a_nat_where_codes_are_perfect():
    perfect = tuple(Run(0, "up", b, 1000.0 - t, 0.0, float(t), 0.5) for b, t in ((0.5, 900.0), (0.9, 500.0)))
    assert StructureFunction(perfect, ((0.0, 1000.0),), 9).tail == pytest.approx(-1)
    assert told("random").tail == pytest.approx(-0.22, abs=0.02)
    assert math.isnan(StructureFunction((), ((0.0, 1000.0),), 9).tail)


def passed(runs: list[Run]) -> dict[str, bool]:
    return {check.name: check.passed for check in StructureFunction(tuple(runs), ((0.0, 1000.0),), 9).checks}


def ideal(beta: float, seed: int = 0, way: str = "up", more: float = 0.0) -> Run:
    """C = 400 sqrt(beta), K = 200 / sqrt(beta), up to beta = 6.25."""
    loss, kl = (200 * beta**0.5, 200 / beta**0.5) if beta <= 6.25 else (1000.0, 0.0)
    return Run(seed, way, beta, loss + more, 0.5, kl, 0.5)


def test_the_chance_is_that_of_random_labels():
    """told("true"): 627 nats where a constant takes 1151."""
    s = replace(told("true"), prior=20.0)
    assert s.gain == pytest.approx(LOG - 627 - 3) and s.chance == pytest.approx(math.exp(20 + 630 - LOG))
    assert not any("too few" in note for note in s.notes)
    assert replace(told("random"), prior=20.0).chance == 1.0 and told("true").chance is None
    assert any("500 examples are too few" in note for note in replace(told("random"), prior=20.0).notes)
    assert replace(s, prior=600.0).chance == 1.0, "what the prior's variances cost is not counted as structure"


def labelled(n: int, share: float) -> Task:
    """Two classes on both sides of a line; a share of the labels is random."""
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    return random_labels(Task(x, (x.sum(1) > 0).long()), share, seed=1)


def test_examples_too_few_to_tell_labels_from_random_ones_are_said():
    model = nn.Linear(4, 2)
    few, random, many = (
        structure_function(model, labelled(n, share), (1.0,), seeds=(0,), steps=100, draws=4)
        for n, share in ((12, 0.0), (300, 1.0), (300, 0.0))
    )
    for found in (few, random):
        assert found.chance is not None and found.chance > 0.05
        assert any("too few to tell these labels from random ones" in note for note in found.notes)
        assert found.data()["chance"] == found.chance
    assert many.chance is not None and many.chance < 1e-6 and not any("too few" in note for note in many.notes)


def test_numbers_as_labels_have_no_chance():
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    found = structure_function(nn.Linear(4, 1), Task(x, x[:, :1]), (1.0,), seeds=(0,), steps=3)
    assert found.prior is None and found.chance is None and found.data()["chance"] is None


def test_few_random_labels_of_many_draws_have_a_low_chance():
    """The bound itself, on the mixture code of a coin: P(saving k nats) <= e^-k."""
    generator = torch.Generator().manual_seed(0)
    n, saved = 30, []
    weights = torch.linspace(-4, 4, 41, dtype=torch.float64)  # the prior of one weight, uniform on a grid
    x = torch.randn(n, generator=generator, dtype=torch.float64)
    for _ in range(2000):
        y = torch.randint(0, 2, (n,), generator=generator).double()
        log = -torch.nn.functional.softplus(-(2 * y - 1) * weights[:, None] * x).sum(1)
        saved.append(float(torch.logsumexp(log, 0) - math.log(41)) + n * math.log(2))
    for k in (1.0, 2.0, 3.0):
        assert sum(s >= k for s in saved) / 2000 <= math.exp(-k)


GRID = [0.01 * 1.4**k for k in range(22)]


def test_laws_hold_where_they_do_and_planted_violations_are_found():
    good = [ideal(beta, seed, way) for beta in GRID for seed in (0, 1) for way in ("up", "down")]
    assert all(passed(good).values())
    assert not StructureFunction(tuple(good), ((0.0, 1000.0),), 9).notes
    stuck = [ideal(beta, more=60.0 * (k == 9)) for k, beta in enumerate(GRID)]
    found = passed(stuck)
    assert not found["envelope"] and not found["concave"] and not found["Legendre"] and found["constant"]
    high = [ideal(beta) if beta < 6 else Run(0, "up", beta, 20.0, 0.5, 600.0, 0.5) for beta in GRID]
    found = passed(high)
    assert not found["constant"] and not found["falling"] and not found["envelope"]
    apart = [ideal(beta, way=way, more=40.0 * (way == "up")) for beta in GRID for way in ("up", "down")]
    assert not passed(apart)["ways"] and passed(apart)["seeds"]
    seeds = [ideal(beta, seed, more=40.0 * seed) for beta in GRID for seed in (0, 1)]
    assert not passed(seeds)["seeds"] and passed(seeds)["ways"]
    raw = {check.name: check for check in told("random").checks}
    assert raw["constant"].violated == pytest.approx(727 + 0.7 * 2533 - LOG) and raw["constant"].beta == 0.7


# ------------------------------------------------------------------ sweeps


def small() -> Task:
    torch.manual_seed(0)
    x = torch.randn(60, 6)
    return Task(x, (x[:, 0] > 0).long() + (x[:, 1] > 0))


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def swept(**options: object) -> StructureFunction:
    return structure_function(model(), small(), [0.3, 0.03], seeds=(3,), steps=40, **options)


def test_a_sweep_goes_on_where_it_was_cut_off(tmp_path):
    whole, seen = swept(), []
    assert [(run.way, run.beta) for run in whole.runs] == [("up", 0.03), ("up", 0.3), ("down", 0.3), ("down", 0.03)]
    assert whole.examples == 60 and whole.constants[0] == (0.0, pytest.approx(60 * math.log(3), rel=1e-6))

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 130:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        swept(folder=tmp_path, progress=stop)
    assert seen[0] == (1, 160) and len(seen) == 130
    seen.clear()
    again = swept(folder=tmp_path, progress=lambda *k: seen.append(k))
    assert again.runs == whole.runs and len(seen) == 40 and seen[-1] == (160, 160)
    with pytest.raises(WeightspaceError, match="holds sweeps of"):
        structure_function(model(), small(), [0.3], seeds=(3,), steps=41, folder=tmp_path)
    json.dumps(whole.data(), allow_nan=False)


def test_random_labels_tell_how_good_the_codes_are():
    found = structure_function(model(), small(), [0.03], seeds=(0,), steps=30, calibrate=True)
    assert found.efficiency is not None and found.efficiency >= 0
    told = cost(model(), small(), [0.03], seeds=(0,), steps=30, calibrate=True)
    assert (told.codes, told.steps, told.batch) == (4, 30, 60) and "120 passes" in str(told)
    assert told.bytes == 8 * 4 * sum(p.numel() for p in model().parameters())


def test_labels_drawn_at_random_keep_the_rest():
    task = small()
    y = task.labels()
    half, whole, none = (random_labels(task, share, seed=1) for share in (0.5, 1.0, 0.0))
    assert torch.equal(none.pick(range(60)).example(60), task.example(60))
    labels = [t.labels() for t in (half, whole, none)]
    assert torch.equal(labels[2], y) and 10 <= int((labels[0] != y).sum()) <= 30 < int((labels[1] != y).sum())
    assert not torch.equal(random_labels(task, seed=2).labels(), labels[1])


def test_the_best_constant_is_found():
    x = torch.zeros(30, 2)
    y = torch.tensor([0] * 20 + [1] * 10)
    found = structure_function(nn.Linear(2, 2), Task(x, y), [1.0], seeds=(0,), steps=5)
    (_, silent), (t, best) = found.constants
    assert silent == pytest.approx(30 * math.log(2)) and t == pytest.approx(math.log(30) / 2)
    assert best == pytest.approx(20 * math.log(1.5) + 10 * math.log(3), rel=1e-5)
    numbers = Task(x, torch.arange(30.0)[:, None])
    found = structure_function(nn.Linear(2, 1), numbers, [1.0], seeds=(0,), steps=5)
    assert found.constants[0][1] == pytest.approx(float((torch.arange(30.0) ** 2).sum()))
    assert found.constants[1][1] == pytest.approx(30 * 29 * 31 / 12, rel=1e-5)


def test_mistakes_are_told_in_one_line():
    task, x = small(), torch.randn(9, 6)
    for words, wrong in (
        ("betas", lambda: structure_function(model(), task, [])),
        ("betas", lambda: structure_function(model(), task, [0.1, -1.0])),
        ("no seeds", lambda: structure_function(model(), task, [0.1], seeds=())),
        ("steps", lambda: structure_function(model(), task, [0.1], steps=0)),
        ("outside the 3 outputs", lambda: structure_function(model(), Task(x, torch.arange(9)), [0.1], steps=2)),
        ("NaN", lambda: structure_function(model(), Task(x * torch.nan, torch.arange(9) % 3), [0.1], steps=2)),
        ("classes", lambda: random_labels(Task(x, torch.randn(9, 1)))),
        ("share", lambda: random_labels(task, 2.0)),
        ("from 0", lambda: told("true").loss(-1.0)),
    ):
        with pytest.raises(WeightspaceError, match=words) as seen:
            wrong()
        assert "\n" not in str(seen.value)
