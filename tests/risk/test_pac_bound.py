"""Certificates: what is drawn is drawn right, what is paid is all paid, and nothing is promised that does not hold."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.codes.posterior import Gaussian, Noisy
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.weights import Weights
from weightspace.risk import fit as fitting
from weightspace.risk import inequalities, pac_bound
from weightspace.task.task import Task

QUICK = {"steps": 150, "batch": 100, "draws": 4000}


def net(classes: int = 2, seed: int = 0, width: int = 6) -> Net:
    torch.manual_seed(seed)
    return Net.of(nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, classes)))


def conv() -> Net:
    torch.manual_seed(0)
    parts = [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)]
    return Net.of(nn.Sequential(*parts))


def blobs(n: int = 300, seed: int = 0, apart: float = 3.0, classes: int = 2) -> Task:
    """Gaussians in four dimensions, their means `apart` from zero along an axis of their own."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (n,), generator=generator)
    return Task(torch.randn(n, 4, generator=generator) + apart * torch.eye(4)[y], y)


def taught(a: Net, task: Task, steps: int = 40, size: float = 0.02) -> Net:
    return ws.flow(a, ws.learn(task, 100, 0), ws.Adam(), steps=steps, size=size, save=10**6)[-1]


def spread(a: Net, deviation: float) -> Gaussian:
    return Gaussian(a, a.weights.map(lambda w: torch.full_like(w, 2 * math.log(deviation))))


@pytest.fixture(scope="module")
def found() -> pac_bound.RiskBound:
    return ws.pac_bayes(net(), blobs(), test=blobs(500, seed=9), **QUICK)


# ------------------------------------------------------------------ what is drawn, what is paid


def test_the_bound_is_made_of_what_is_said(found):
    assert found.nats == pytest.approx(found.posterior.kl(found.prior)) and found.grid > 0
    bound = inequalities.maurer(
        inequalities.monte_carlo(found.error, found.draws, 0.01), found.nats + found.grid, 300, 0.04
    )
    assert found.bound == pytest.approx(bound, rel=1e-12) and found.family == "kl"
    assert found.error < found.error_bound < found.bound < 0.25
    assert found.test_error is not None and found.test_error < found.bound
    assert found.draws >= QUICK["draws"] and found.kind == "random"
    assert "err on at most" in found.verdict and not found.is_hold_out


def test_families_stand_side_by_side(found):
    bounds = {row.name: row.bound for row in found.families}
    assert bounds["kl"] == found.bound and bounds["kl"] < min(bounds["pinsker"], bounds["f_quad"], bounds["mcallester"])
    refused = [row for row in found.families if not row.certificate]
    assert [row.name for row in refused] == ["catoni, best constant", "kl, mean of the draws"]
    assert all(row.note and row.bound < found.bound for row in refused)
    assert bounds["hold-out"] == found.hold_out == inequalities.hold_out(round(300 * found.centre_error), 300, 0.05)


def test_it_is_data(found):
    assert json.loads(json.dumps(found.data()))["bound"] == found.bound
    assert len(found.data()["families"]) == len(found.families)


def test_the_prior_stands_at_the_initialisation_with_variances_on_the_grid(found):
    centre = ws.fresh(net(), 0)
    assert torch.equal(found.prior.net.weights.flat(), centre.weights.flat())
    assert set(found.deviations) == {"0", "2"}
    for layer, size in (("0", 30), ("2", 14)):
        place = (2 * math.log(found.deviations[layer]) - math.log(1e-8)) / (
            -math.log(1e-8) / (fitting.places(size) - 1)
        )
        assert place == pytest.approx(round(place), abs=1e-6) and 0 <= round(place) < fitting.places(size)
    assert found.grid == pytest.approx(math.log(fitting.places(30)) + math.log(fitting.places(14)))


@pytest.mark.parametrize("classes", [2, 3])
def test_the_error_of_the_last_layer_is_integrated(classes):
    """In closed form for two classes, with the other outputs drawn for more: the same mean as counting."""
    a, t = net(classes), blobs(200, apart=1.0, classes=classes)
    noisy, q = Noisy(a, t), spread(a, 0.5)
    generator = torch.Generator().manual_seed(0)
    counted, m = pac_bound._drawn(noisy, t, q, 200, 1, generator)
    pair = a.weights, q.log_variance.map(torch.exp)
    (x, y), *_ = t.batches(a)
    smooth = sum(float(fitting.expected_error(noisy, x, y, pair, generator)) for _ in range(200)) / 200
    assert m == 40_000 and counted == pytest.approx(smooth, abs=4 * math.sqrt(0.25 / m))


@pytest.mark.parametrize("make", [net, conv])
def test_draws_are_those_of_networks_from_the_posterior(make):
    t = blobs(60) if make is net else blobs(60).mapped(lambda x: torch.cat([x] * 4, 1).view(-1, 1, 4, 4))
    a = taught(make(), t)
    noisy, group = Noisy(a, t), 1 if make is net else 16
    sampled = torch.tensor([1 - ws.accuracy(t)(spread(a, 0.2).sample(seed)) for seed in range(150)])
    found, m = pac_bound._drawn(noisy, t, spread(a, 0.2), 100, group, torch.Generator().manual_seed(0))
    assert noisy.exact == (make is net) and m == (6000 if make is net else 375)
    assert abs(found - float(sampled.mean())) < 0.02
    wider = pac_bound._drawn(noisy, t, spread(a, 0.8), 100, group, torch.Generator().manual_seed(0))[0]
    assert wider > float(sampled.mean()) + 0.04, "draws of another deviation are seen"


def test_units_of_the_deviation_leave_the_divergence_alone():
    fit = fitting.Fit(net(), ws.fresh(net(), 5), 0.2)
    with torch.no_grad():
        fit.r += torch.randn_like(fit.r)
    q, p, deviations = fit.rounded()
    assert q.kl(p) == pytest.approx(float(fit.kl().detach()), rel=1e-5) and deviations == pytest.approx(
        {"0": 0.2, "2": 0.2}
    )
    torch.testing.assert_close(q.net.weights.flat(), net().weights.flat())


def test_rounding_takes_the_cheaper_variance():
    size, spread = 50, 50 * 0.031**2
    taken = fitting.on_grid(-5.0, spread, size)
    nats = lambda v: (spread * math.exp(-v) + size * v) / 2  # noqa: E731
    step = -math.log(1e-8) / (fitting.places(size) - 1)
    assert nats(taken) <= min(nats(taken + step), nats(taken - step))
    assert nats(taken) - nats(math.log(spread / size)) < 1


def test_slopes_are_those_of_the_inverse():
    for q, c in ((0.03, 0.05), (0.4, 0.2), (1e-4, 1e-3)):
        a, b = fitting.slopes(q, c)
        h = 1e-6
        assert a == pytest.approx(
            (inequalities.kl_inverse(q + h, c) - inequalities.kl_inverse(q - h, c)) / (2 * h), rel=1e-3
        )
        assert b == pytest.approx(
            (inequalities.kl_inverse(q, c + h) - inequalities.kl_inverse(q, c - h)) / (2 * h), rel=1e-3
        )
    assert all(map(math.isfinite, [*fitting.slopes(0.0, 1e-3), *fitting.slopes(1.0, 1e-3), *fitting.slopes(0.5, 1e3)]))


# ------------------------------------------------------------------ what is promised


def test_random_labels_are_never_certified():
    """Their true error is one half. Without the nats the same networks would be promised less."""
    promised, unpaid = [], []
    for seed in range(4):
        task = blobs(60, seed=seed)
        coins = torch.randint(0, 2, (60,), generator=torch.Generator().manual_seed(100 + seed))
        task = task.relabelled(coins)
        a = taught(net(width=40), task, 80, 0.05)
        found = ws.pac_bayes(a, task, prior=ws.fresh(a, 1), deviation=0.05, **{**QUICK, "steps": 2})
        promised.append(found.bound)
        unpaid.append(inequalities.maurer(found.error, 0.0, 60, 0.05))
    assert min(promised) >= 0.5 and min(unpaid) < 0.5


def test_certificates_hold_on_new_data():
    new, bounds = blobs(4000, seed=1234, apart=1.5), []
    for seed in range(4):
        found = ws.pac_bayes(net(), blobs(120, seed=seed, apart=1.5), test=new, seed=seed, **{**QUICK, "steps": 100})
        bounds.append(found.bound)
        assert found.test_error is not None and found.test_error <= found.bound
    assert min(bounds) < 0.5


def test_no_error_and_a_single_batch():
    t = blobs(80, apart=9.0)
    a = taught(net(), t)
    found = ws.pac_bayes(a, t, prior=a, deviation=1e-3, **{**QUICK, "batch": 500})
    assert found.error == 0 and 0 < found.error_bound < found.bound < 0.3
    alone = ws.pac_bayes(net(), blobs(1), steps=3, draws=10)
    assert alone.bound <= 1 and "nothing is certified" in alone.verdict


def test_a_taught_prior_is_a_hold_out_bound_and_says_so():
    first, second = blobs(600).split(0.5, 0)
    a = taught(net(), first)
    found = ws.pac_bayes(a, second, prior=a, seen=first, deviation=0.01, family="catoni", **QUICK)
    assert found.kind == "data" and found.grid == 0 and found.is_hold_out
    alone = ws.pac_bayes(
        a,
        second,
        prior=a,
        seen=first,
        deviation=0.01,
        family="catoni",
        constants=(inequalities.constant(0.02, 1.0, 300, 0.05),),
        **QUICK,
    )
    assert {r.name: r.note for r in alone.families}["catoni"] == "one constant" and alone.bound < found.bound
    assert "hold-out bound" in found.verdict and f"{100 * found.hold_out:.2f}" in found.verdict
    assert found.bound < ws.pac_bayes(net(), second, **QUICK).bound


def test_groups_of_a_convolution():
    t = blobs(50, apart=8.0).mapped(lambda x: torch.cat([x] * 4, 1).view(-1, 1, 4, 4))
    found = ws.pac_bayes(conv(), t, steps=100, draws=1000)
    assert found.draws == 1000 // 16 and found.error < found.bound < 0.7


def test_outputs_that_are_no_linear_map_are_taught_by_cross_entropy():
    torch.manual_seed(0)
    a = Net.of(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2), nn.LogSoftmax(1)))
    assert ws.pac_bayes(a, blobs(), **QUICK).bound < 0.4


def test_statistics_of_layers_are_the_priors():
    """Those of the network were taught by the certified examples, and no nat is paid for them."""
    torch.manual_seed(0)
    prior = Net.of(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)))
    moved = Net(prior.architecture, prior.weights, prior.state.map(lambda s: s + 100))
    same, other = (ws.pac_bayes(a, blobs(), prior=prior, **QUICK) for a in (prior, moved))
    assert same.data() == other.data() and torch.equal(other.posterior.net.state.flat(), prior.state.flat())


def test_cost_and_progress():
    said: list[tuple[int, int]] = []
    ws.pac_bayes(net(), blobs(), **QUICK, progress=lambda done, total: said.append((done, total)))
    assert said == [(k + 1, 164) for k in range(164)]
    cost = pac_bound.cost(net(), blobs(), **QUICK)
    assert (cost.steps, cost.batch, cost.draws) == (150, 100, 4200) and cost.bytes > 16 * 44 * 4
    assert str(cost).startswith("150 steps of 100 examples and 4,200 draws, 0 MiB")


# ------------------------------------------------------------------ bad input


class Free(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(4, 2))

    def forward(self, x):
        return x @ self.w


def broken(a: Net) -> Net:
    return a.at(Weights({k: torch.full_like(w, math.nan) for k, w in a.weights.items()}))


T = blobs(40)
BAD = {
    "delta is 0.0; give a probability": lambda: ws.pac_bayes(net(), T, 0.0),
    "delta is 1.0; give a probability": lambda: ws.pac_bayes(net(), T, 1.0),
    "delta is nan": lambda: ws.pac_bayes(net(), T, math.nan),
    "40 of the prior's examples are among the certified": lambda: ws.pac_bayes(net(), T, prior=net(), seen=T),
    "10 of the test examples are among the certified": lambda: ws.pac_bayes(net(), T, test=T.take(10) | blobs(9, 5)),
    "40 of the test examples are among the prior's": lambda: ws.pac_bayes(
        net(), blobs(9, 5), prior=net(), seen=T.relabelled(torch.zeros(40, dtype=torch.long)), test=T
    ),
    "NaN or infinity in 0.weight": lambda: ws.pac_bayes(broken(net()), T, prior=net()),
    "the outputs hold NaN": lambda: ws.pac_bayes(net(), T.mapped(lambda x: x / 0), prior=net()),
    "labels 0..3 outside the 2 outputs": lambda: ws.pac_bayes(net(), blobs(40, classes=4)),
    "an example has the label -100": lambda: ws.pac_bayes(net(), T.relabelled(torch.full((40,), -100))),
    "one class label an example": lambda: ws.pac_bayes(net(), Task(torch.randn(5, 4), torch.randn(5, 2))),
    "labels are none": lambda: ws.pac_bayes(net(), Task(torch.randn(5, 4))),
    "outputs .example, class >= 2.": lambda: ws.pac_bayes(net(1), T),
    "no examples": lambda: ws.pac_bayes(net(), Task(torch.zeros(0, 4), torch.zeros(0))),
    "not the same architecture": lambda: ws.pac_bayes(net(), T, prior=net(width=3)),
    "no part of the module draws w anew": lambda: ws.pac_bayes(Net.of(Free()), T),
    "family takes 'kl' or 'catoni', got str 'best'": lambda: ws.pac_bayes(net(), T, family="best"),
    "a prior deviation of -1": lambda: ws.pac_bayes(net(), T, deviation=-1.0),
    "steps is 0; give a positive number": lambda: ws.pac_bayes(net(), T, steps=0),
}


@pytest.mark.parametrize("message", BAD)
def test_mistakes_get_one_line(message):
    with warnings.catch_warnings(), pytest.raises(WeightspaceError, match=message) as caught:
        warnings.simplefilter("ignore")
        BAD[message]()
    assert "\n" not in str(caught.value)


def test_a_prior_of_other_examples_is_taken():
    with pytest.raises(WeightspaceError):
        pac_bound._check_apart({"certified": T, "prior's": T.take(1)})
    pac_bound._check_apart({"certified": T, "prior's": blobs(40, seed=1), "test": None})
