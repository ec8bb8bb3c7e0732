"""A walk learns new points, and the old outputs stay within the budget."""

from __future__ import annotations

import math

import pytest
import torch

import weightspace as ws
from weightspace.web.playground import walking
from weightspace.web.playground.session import Session


@pytest.fixture
def session():
    made = Session()
    made.answer({"do": "set", "depth": 2, "width": 8, "points": 120, "data": "circle", "rate": 0.02})
    for _ in range(6):
        made.answer({"do": "step", "steps": 50, "maps": "none"})
    return made


def test_the_old_boundary_stands_still_while_the_new_one_is_learnt(session):
    net = session.networks.net(0)
    first = session.answer({"do": "keep", "learn": "xor", "budget": 0.1, "maps": "none"}).header["walk"]
    assert first["step"] == 0 and first["drift"] == 0 and first["budget"] == 0.1
    kept, learnt = session.walk.kept, session.walk.learnt
    assert bool((kept.x[:, 0] < 0).all()) and bool((learnt.x[:, 0] >= 0).all())
    for _ in range(12):
        walk = session.answer({"do": "walk", "maps": "none"}).header["walk"]
        outputs = session.networks.net(0)(session.walk.metric.task.example(100))
        before = net(session.walk.metric.task.example(100))
        assert walk["drift"] <= 0.1
        assert walk["drift"] == pytest.approx(float((outputs - before).square().mean().sqrt()))
    assert walk["step"] > 10 and walk["learnt"]["loss"] < first["learnt"]["loss"] / 2
    assert walk["kept"]["accuracy"] >= first["kept"]["accuracy"] - 0.02
    plain = ws.flow(net, ws.learn(learnt.task(), batch=500), ws.Euclidean(), steps=24, size=session.walk.longest)[-1]
    assert session.walk.metric.drift(plain, net) > 0.5  # plain descent forgets


def test_a_walk_over_the_whole_square_keeps_its_budget(session):
    session.answer({"do": "keep", "learn": "xor", "where": "all", "budget": 0.01})
    assert len(session.walk.kept) == 60
    for _ in range(4):
        assert session.answer({"do": "walk", "maps": "none"}).header["walk"]["drift"] <= 0.01


def test_a_walk_that_cannot_go_on_tries_shorter_steps_and_says_so(session, monkeypatch):
    flat, lengths = session.networks.learners[0].flat.clone(), []

    def never(walk, net, modes, length):
        lengths.append(length)
        return net, math.inf

    monkeypatch.setattr(walking, "_tried", never)
    session.answer({"do": "keep", "learn": "gauss", "where": "all"})
    for _ in range(9):
        walk = session.answer({"do": "walk", "steps": 5, "maps": "none"}).header["walk"]
    assert walk["ended"] == "no further step fits the budget" and walk["step"] == 0
    assert lengths == sorted(lengths, reverse=True) and len(lengths) < 27 and lengths[0] == session.walk.longest
    assert torch.equal(session.networks.learners[0].flat, flat)


@pytest.mark.parametrize(
    "message",
    [
        {"do": "step", "steps": 1}, {"do": "reset"}, {"do": "set", "rate": 0.5}, {"do": "noise"}, {"do": "shuffle"},
        {"do": "edit", "layer": 1, "neuron": 1, "input": 0, "value": 0},
    ],
)  # fmt: skip
def test_another_change_ends_a_walk(session, message):
    session.answer({"do": "keep", "learn": "xor", "maps": "none"})
    assert session.answer({"do": "goal"}).section("learnt").shape[1] == 3
    session.answer(message)
    with pytest.raises(ws.WeightspaceError, match="no walk has begun, or a change has ended it"):
        session.answer({"do": "walk"})


def test_a_network_of_zeros_has_no_relative_step(session):
    learner = session.networks.learners[0]
    learner.put(torch.zeros_like(learner.flat))
    with pytest.raises(ws.WeightspaceError, match="all weights are zero"):
        session.answer({"do": "keep", "learn": "xor"})
