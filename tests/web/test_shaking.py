"""The red button: noise of the right size, what was foreseen and proven about it, and undo."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import weightspace as ws
from weightspace.web.playground.session import Session


@pytest.fixture
def session():
    made = Session()
    made.answer({"do": "set", "depth": 2, "width": 5, "points": 80, "data": "xor", "other": 3})
    for _ in range(4):
        made.answer({"do": "step", "steps": 50, "maps": "none"})
    return made


def shares(session, before, k=0):
    learner = session.networks.learners[k]
    pairs = zip(learner.views(before), learner.views(learner.flat), strict=True)
    return [float((new - old).norm() / old.norm()) for old, new in pairs]


def test_every_press_moves_every_tensor_by_its_share_and_draws_anew(session):
    flats = [session.networks.learners[0].flat.clone()]
    for press in (1, 2, 3):
        told = session.answer({"do": "noise", "percent": 20, "network": 1}).header["noise"]
        assert told[1] is None and told[0]["presses"] == press
        assert shares(session, flats[-1]) == pytest.approx([0.2] * 6)
        flats.append(session.networks.learners[0].flat.clone())
    moves = [b - a for a, b in zip(flats, flats[1:], strict=False)]
    assert abs(float(torch.nn.functional.cosine_similarity(moves[0], moves[1], dim=0))) < 0.7
    for flat in flats[-2::-1]:
        session.answer({"do": "undo"})
        assert torch.equal(session.networks.learners[0].flat, flat)


def test_what_happened_is_measured(session):
    x, test = session.networks.test.x, session.networks.test.task()
    first = session.networks.net(0)
    session.answer({"do": "noise", "percent": 5})
    middle = session.networks.net(0)
    told = session.answer({"do": "noise", "percent": 10}).header
    last = session.networks.net(0)
    noise = told["noise"][0]
    away = lambda a, b: float((b(x) - a(x)).norm() / a(x).norm())  # noqa: E731
    assert noise["moved"] == pytest.approx(away(middle, last))
    assert noise["since"]["moved"] == pytest.approx(away(first, last))
    assert noise["since"]["model"] == pytest.approx(ws.relative_trust(first, last))
    assert noise["model"] == pytest.approx(1.1**3 - 1)
    assert noise["before"]["test"]["loss"] == pytest.approx(float(test(middle)))
    assert told["networks"][0]["test"]["loss"] == pytest.approx(float(test(last)))


def test_what_is_expected_is_the_root_mean_square_of_small_noise(session):
    seen = []
    for _ in range(60):
        told = session.answer({"do": "noise", "percent": 0.5, "network": 1, "maps": "none"}).header["noise"][0]
        seen.append(told["moved"])
        session.answer({"do": "undo", "maps": "none"})
    assert told["expected"] == pytest.approx(float(np.square(seen).mean() ** 0.5), rel=0.3)


def test_the_certificate_is_above_what_happened(session):
    session.answer({"do": "noise", "percent": 3, "network": 1})
    told = session.answer({"do": "noise", "percent": 1, "network": 1}).header["noise"][0]
    found = session.answer({"do": "certificate"}).header
    assert found["percent"] == 1 and found["moved"] == told["moved"] and found["refused"] is None
    assert found["moved"] <= found["with_data"] <= found["proven"]
    with pytest.raises(ws.WeightspaceError, match="no noise since"):
        session.answer({"do": "certificate", "network": 2})
    session.answer({"do": "undo"})
    assert session.answer({"do": "certificate"}).header["percent"] == 3
    session.answer({"do": "step", "steps": 1})
    with pytest.raises(ws.WeightspaceError, match="no noise since"):
        session.answer({"do": "certificate"})


def test_no_noise_changes_nothing(session):
    flat = session.networks.learners[0].flat.clone()
    told = session.answer({"do": "noise", "percent": 0}).header["noise"][0]
    assert torch.equal(session.networks.learners[0].flat, flat)
    assert (told["moved"], told["expected"], told["model"]) == (0, 0, 0)


def test_a_network_of_zeros_has_no_relative_displacement(session):
    learner = session.networks.learners[0]
    flat = torch.zeros_like(learner.flat)
    flat[0] = 1.0  # a neuron that nothing reads
    learner.put(flat)
    told = session.answer({"do": "noise", "network": 1}).header["noise"][0]
    assert told["expected"] is None and told["moved"] is None


def test_the_curve_is_that_of_the_library(session):
    told = session.answer({"do": "curve", "draws": 2, "most": 64}).header
    net, task = session.networks.net(0), session.networks.test.task()
    sizes = [step["percent"] / 100 for step in told["steps"]]
    assert sizes[-1] == pytest.approx(0.64) and sizes == sorted(sizes)
    found = ws.stability(net, task, sizes, 2, seed=0, proven=False)
    for step, row in zip(found.steps, told["steps"], strict=True):
        assert row["loss"]["mean"] == pytest.approx(np.mean(step.loss))
        assert row["moved"]["low"] <= row["moved"]["mean"] <= row["moved"]["high"]
    assert told["accuracy"] == pytest.approx(ws.accuracy(task)(net))


def test_the_breakdown_is_that_of_the_library(session):
    told = session.answer({"do": "breakdown", "percent": 5, "network": 2}).header
    (found,) = ws.breakdown(session.networks.net(1), session.networks.train.task(), (0.05,))
    assert (told["largest"], told["model"]) == (pytest.approx(found.gradient), pytest.approx(found.model))
