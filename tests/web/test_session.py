"""A session: frames that are right, depend on the messages alone, and stay finite and bounded."""

from __future__ import annotations

import gc
import json
import math

import numpy as np
import pytest
import torch
from ambient import default_dtype

from weightspace.net.errors import WeightspaceError
from weightspace.web.playground import session as module
from weightspace.web.playground.exercises import EXERCISES
from weightspace.web.playground.messages import read
from weightspace.web.playground.reply import reply
from weightspace.web.playground.session import Session
from weightspace.web.playground.state import Limits

SMALL = {"do": "set", "depth": 2, "width": 4, "points": 60, "activation": "relu"}


def begun(**given):
    session = Session()
    session.answer({**SMALL, **given, "side": 8})
    return session


# ------------------------------------------------------------------ frames


def test_the_bytes_of_a_reply_come_back():
    maps, weights = np.arange(6, dtype=np.uint8).reshape(2, 3), np.array([[1.5, -2.0]])
    made = reply("show", {"loss": math.nan, "name": "é"}, {"maps": maps, "weights": weights})
    raw = made.to_bytes()
    size = int.from_bytes(raw[:4], "little")
    header = json.loads(raw[4 : 4 + size])
    assert size % 4 == 0 and header["loss"] is None and header["name"] == "é" and header["reply"] == "show"
    assert [s["offset"] % 4 for s in header["sections"]] == [0, 0] and raw[4 + size :] == made.payload
    first, second = header["sections"]
    body = raw[4 + size :]
    assert np.array_equal(np.frombuffer(body, "u1", 6, first["offset"]).reshape(first["shape"]), maps)
    assert np.array_equal(np.frombuffer(body, "<f4", 2, second["offset"]).reshape(second["shape"]), weights)
    assert np.array_equal(made.section("maps"), maps)


@pytest.mark.parametrize("networks", [1, 2])
def test_a_pixel_is_the_response_at_its_centre(networks):
    session = begun(activation="tanh", other=5 if networks == 2 else -1)
    frame = session.answer({"do": "step", "side": 10})
    maps = frame.section("maps")
    assert maps.shape == (networks, 9, 10, 10)
    for k, learner in enumerate(session.networks.learners):
        scales = frame.header["networks"][k]["scales"]
        for row, column in ((0, 0), (0, 9), (3, 7), (9, 4)):
            x = torch.tensor([[(2 * column + 1) / 10 - 1, 1 - (2 * row + 1) / 10]], dtype=torch.float64)
            *hidden, logit = learner.responses(x)
            values = [*torch.cat(hidden, 1)[0].tolist(), float(torch.tanh(logit / 2))]
            seen = [(int(b) - 128) / 127 * s for b, s in zip(maps[k, :, row, column], scales, strict=True)]
            assert all(abs(a - b) <= 0.51 / 127 * s + 1e-6 for a, b, s in zip(values, seen, scales, strict=True))
    assert maps[:, :-1].astype(int).min() >= 1
    assert all(np.abs(maps[k, m].astype(int) - 128).max() == 127 for k in range(networks) for m in range(8))


def test_a_frame_shows_what_is_asked():
    session = begun(other=1)
    frame = session.answer({"do": "show", "maps": "output", "side": 8, "weights": True})
    assert frame.section("maps").shape == (2, 1, 8, 8)
    stored = torch.stack([learner.flat for learner in session.networks.learners]).float().numpy()
    assert np.array_equal(frame.section("weights"), stored)
    assert "sections" not in session.answer({"do": "show", "maps": "none"}).header


def test_a_silent_neuron_is_grey():
    session = begun()
    for entry in (0, 1, 2):
        session.answer({"do": "edit", "layer": 1, "neuron": 2, "input": entry, "value": -0.0 if entry else -1})
    frame = session.answer({"do": "show"})
    assert (frame.section("maps")[0, 1] == 128).all() and frame.header["networks"][0]["scales"][1] == 0


def test_norms_and_relative_gradients_are_of_the_layers():
    session = begun(batch=500)
    first = session.answer({"do": "show"}).header["networks"][0]
    assert first["gradients"] is None
    session.answer({"do": "step", "steps": 1})
    (learner,) = session.networks.learners
    seen = session.answer({"do": "show"}).header["networks"][0]
    matrices, slopes = learner.views(learner.flat)[::2], learner.views(learner.gradient)[::2]
    assert seen["norms"] == pytest.approx([float(w.norm()) for w in matrices])
    assert seen["gradients"] == pytest.approx(
        [float(g.norm() / w.norm()) for g, w in zip(slopes, matrices, strict=True)]
    )


# ------------------------------------------------------------------ what answers depend on

TALK = [
    {"do": "step"},
    {"do": "noise"},
    {"do": "shuffle"},
    {"do": "step", "steps": 3},
    {"do": "line"},
    {"do": "curve", "draws": 1},
    {"do": "keep", "learn": "xor"},
    {"do": "walk"},
    {"do": "information"},
    {"do": "paths", "example": 2},
    {"do": "digits", "percent": 5},
]


def spoken(talk=TALK, **given):
    session = begun(other=3, **given)
    return [session.answer(message).to_bytes() for message in talk]


@pytest.fixture(scope="module")
def said():
    return spoken()


@pytest.mark.parametrize("setting", ["no_grad", "inference", "autocast", "float64", "meta"])
def test_answers_do_not_depend_on_the_settings_of_torch(said, setting):
    context = {
        "no_grad": torch.no_grad,
        "inference": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "float64": lambda: default_dtype(torch.float64),
        "meta": lambda: torch.device("meta"),
    }[setting]
    with context():
        assert spoken() == said


def test_two_sessions_do_not_meet(said):
    first, second = begun(other=3), begun(seed=7, activation="tanh")
    mixed = []
    for message in TALK:
        mixed.append(first.answer(message).to_bytes())
        second.answer({"do": "step", "steps": 2})
    assert mixed == said


def test_steps_may_be_cut_in_any_way():
    whole, parts = begun(), begun()
    a = whole.answer({"do": "step", "steps": 30})
    for n in (1, 7, 22):
        b = parts.answer({"do": "step", "steps": n})
    assert a.to_bytes() == b.to_bytes() and a.header["epoch"] == pytest.approx(30 * 15 / 30, abs=0.5)


def test_every_example_is_met_once_an_epoch():
    networks = begun(batch=7).networks
    met = torch.cat([networks._batch() for _ in range(5)])
    assert sorted(met.tolist()) == list(range(30))


# ------------------------------------------------------------------ changes


def test_the_rule_and_the_data_go_on_with_the_same_weights():
    session = begun()
    session.answer({"do": "step", "steps": 20})
    flat = session.networks.learners[0].flat.clone()
    for given in ({"rate": 0.1}, {"algorithm": "sgd"}, {"batch": 3}, {"data": "xor"}, {"noise": 0.3}, {"points": 80}):
        frame = session.answer({"do": "set", **given})
        assert torch.equal(session.networks.learners[0].flat, flat) and frame.header["step"] == 20
    assert len(session.networks.train) == 40
    frame = session.answer({"do": "set", "width": 5})
    assert frame.header["step"] == 0 and frame.section("maps").shape[1] == 11
    assert session.answer({"do": "state"}).header["state"]["noise"] == 0.3


def test_reset_draws_the_same_networks_again():
    session = begun()
    first = session.answer({"do": "show"}).section("maps")
    after = [session.answer({"do": "step"}).section("maps") for _ in range(2)][-1]
    again = session.answer({"do": "reset"})
    assert np.array_equal(again.section("maps"), first) and again.header["step"] == 0
    session.answer({"do": "step"})
    assert np.array_equal(session.answer({"do": "step"}).section("maps"), after)


def test_an_edit_changes_one_number_and_is_undone():
    session = begun(other=1)
    before = [learner.flat.clone() for learner in session.networks.learners]
    frame = session.answer(
        {"do": "edit", "network": 2, "layer": 2, "neuron": 3, "input": 1, "value": 0.2, "weights": True}
    )
    moved = session.networks.learners[1].flat
    assert torch.equal(session.networks.learners[0].flat, before[0]) and frame.header["undo"] == 1
    assert int((moved != before[1]).sum()) == 1
    assert float(moved[12 + 2 * 4]) == 0.2  # after 4 x 2 + 4 numbers of the first layer, row 3
    session.answer({"do": "edit", "network": 2, "layer": 3, "neuron": 1, "input": 0, "value": -7})
    assert float(moved[-1]) == -7
    for _ in range(2):
        session.answer({"do": "undo"})
    assert torch.equal(session.networks.learners[1].flat, before[1])


def test_without_the_second_network_the_first_goes_on_as_it_would_have():
    """Steps, weights, optimiser, what there is to undo: all as in a session that keeps both networks."""
    both, one = begun(other=1), begun(other=1)
    for session in (both, one):
        session.answer({"do": "step", "steps": 7})
        session.answer({"do": "noise", "percent": 10, "network": 1})
        session.answer({"do": "noise", "percent": 10, "network": 2})
    frame = one.answer({"do": "set", "other": -1})
    assert frame.header["step"] == 7 and frame.header["undo"] == 2 and len(frame.header["networks"]) == 1
    for message in ({"do": "step", "steps": 3}, {"do": "undo"}, {"do": "undo"}, {"do": "step", "steps": 3}):
        ours, theirs = one.answer({**message, "weights": True}), both.answer({**message, "weights": True})
        assert np.array_equal(ours.section("weights")[0], theirs.section("weights")[0])
    with pytest.raises(WeightspaceError, match="there is one network"):
        one.answer({"do": "align"})
    assert one.answer({"do": "set", "other": 1}).header["step"] == 0


def test_history_and_memory_are_bounded():
    session = Session(Limits(history=5))
    session.answer({**SMALL, "other": 1, "side": 8})

    def tensors():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    def talk(n):
        for _ in range(n):
            session.answer({"do": "noise", "percent": 1, "side": 8, "network": 1})
            session.answer({"do": "step", "steps": 1, "side": 8})
            session.answer({"do": "edit", "layer": 1, "neuron": 1, "input": 1, "value": 0.5, "side": 8})

    talk(4)
    before = tensors()
    talk(40)
    assert len(session.networks.history) == 5 and tensors() <= before + 5


# ------------------------------------------------------------------ divergence


def test_training_that_diverges_is_told_and_stays_finite():
    session = begun(depth=4, algorithm="sgd", rate=10.0)
    for _ in range(30):
        session.answer({"do": "edit", "layer": 1, "neuron": 1, "input": 1, "value": 100, "side": 8})
        session.answer({"do": "noise", "percent": 300, "side": 8})
        frame = session.answer({"do": "step", "steps": 50, "side": 8})
        if frame.header["diverged"]:
            break
    assert "training diverged at step" in frame.header["diverged"]
    flat = session.networks.learners[0].flat.clone()
    assert bool(flat.isfinite().all()) and frame.section("maps").min() >= 1
    again = session.answer({"do": "step", "side": 8})
    assert again.header["diverged"] and torch.equal(session.networks.learners[0].flat, flat)
    assert again.header["step"] == frame.header["step"]
    calm = session.answer({"do": "set", "rate": 1e-6, "algorithm": "adam"})
    assert calm.header["diverged"] is None
    assert session.answer({"do": "step", "steps": 1}).header["step"] == frame.header["step"] + 1


@pytest.mark.parametrize("algorithm", ["spectral", "natural"])
def test_a_metric_that_refuses_is_divergence(algorithm, monkeypatch):
    session = begun(algorithm=algorithm)
    flat = session.networks.learners[0].flat.clone()
    session.networks.train.x[3] = math.nan
    frame = session.answer({"do": "step", "steps": 5, "side": 8})
    assert "weights of step 0" in frame.header["diverged"] and frame.header["epoch"] == 0
    assert torch.equal(session.networks.learners[0].flat, flat)


def test_defaults_are_within_the_limits():
    state = Session(Limits(depth=2, width=3, points=30, side=8, steps=3)).answer({"do": "state"}).header["state"]
    assert (state["depth"], state["width"], state["points"]) == (2, 3, 30)


def test_pictures_of_enormous_weights_have_no_nan():
    session = Session()
    session.answer({"do": "set", "depth": 20, "width": 3, "points": 20, "activation": "relu"})
    (learner,) = session.networks.learners
    learner.put(torch.full_like(learner.flat, 1e6))
    frame = session.answer({"do": "show"})
    assert all(math.isfinite(s) for s in frame.header["networks"][0]["scales"])
    assert frame.section("maps").max() == 255 and frame.section("maps").min() >= 1
    json.loads(frame.to_bytes()[4 : 4 + int.from_bytes(frame.to_bytes()[:4], "little")])


def test_noise_that_would_overflow_is_refused():
    session = begun()
    flat = session.networks.learners[0].flat
    with pytest.raises(WeightspaceError, match=r"the weights would grow beyond 1e\+06; undo, or reset"):
        for _ in range(50):
            session.answer({"do": "noise", "percent": 500, "side": 8})
    assert float(flat.abs().max()) <= 1e6


def test_what_torch_raises_is_one_sentence(monkeypatch):
    def broken(self, fields):
        raise RuntimeError("the algorithm failed\nto converge")

    monkeypatch.setattr(module, "_ANSWERS", {**module._ANSWERS, "show": broken})
    with pytest.raises(WeightspaceError, match=r"^show has no answer for these weights \(the algorithm failed\); undo"):
        Session().answer({"do": "show"})


# ------------------------------------------------------------------ exercises


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_an_exercise_is_made_of_messages_that_fit(exercise):
    session = Session()
    for state in exercise.states:
        session.answer({"do": "set", **state, "maps": "none"})
        for message in exercise.messages:
            read(message, session.limits)
    told = session.answer({"do": "examples"}).header["examples"]
    assert exercise.name in [one["name"] for one in told] and told[0]["states"]


def test_the_essays_exercise_is_there():
    (depth,) = [e for e in EXERCISES if e.name == "depth"]
    assert [s["depth"] for s in depth.states] == [1, 20] and depth.messages[-1] == {"do": "noise", "percent": 20.0}
    assert all(s["data"] == "checkerboard" for s in depth.states)
