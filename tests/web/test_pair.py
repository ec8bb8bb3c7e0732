"""Two networks: shuffled without changing an output, aligned, and the line between them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import weightspace as ws
from weightspace.web.playground.session import Session


def begun(activation="relu", other=0, steps=3, **given):
    made = Session()
    state = {"depth": 2, "width": 5, "points": 80, "data": "xor", "activation": activation, "other": other}
    made.answer({"do": "set", **state, **given})
    for _ in range(steps):
        made.answer({"do": "step", "steps": 50, "maps": "none"})
    return made


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "sigmoid"])
def test_a_shuffle_moves_the_pictures_and_leaves_the_outputs(activation):
    session = begun(activation)
    before = session.answer({"do": "show"})
    net = session.networks.net(1)
    after = session.answer({"do": "shuffle"})
    x = 2 * torch.rand(50, 2, dtype=torch.float64) - 1
    moved = session.networks.net(1)
    assert float((moved(x) - net(x)).abs().max()) < 1e-6 and after.header["changed"] < 1e-6
    assert after.header["moved"] == pytest.approx(float((moved - net).norm())) and after.header["moved"] > 0.1
    old, new = before.section("maps")[1].astype(int), after.section("maps")[1].astype(int)
    assert np.abs(new[-1] - old[-1]).max() <= 1 and np.array_equal(before.section("maps")[0], after.section("maps")[0])
    for layer in (slice(0, 5), slice(5, 10)):
        flat = old[layer].reshape(5, -1) - 128
        apart = [
            min(np.abs(sign * flat - picture.ravel() + 128).max(1).min() for sign in (1, -1)) for picture in new[layer]
        ]
        assert max(apart) <= 1  # each picture is one of the old ones, up to its sign
        assert any(np.abs(a - b).max() > 1 for a, b in zip(old[layer], new[layer], strict=True))


def test_twenty_layers_are_shuffled_again_and_again():
    session = begun("relu", depth=20, width=16, steps=1, rate=3e-4)
    for _ in range(5):
        assert session.answer({"do": "shuffle", "maps": "none"}).header["changed"] < 1e-6


def test_a_network_of_one_neuron_has_nothing_to_shuffle():
    session = begun("tanh", width=1, other=-1)
    told = session.answer({"do": "shuffle"}).header
    assert told["changed"] == 0


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_a_shuffled_copy_is_brought_back(activation):
    session = begun(activation)
    first = session.networks.net(0)
    session.answer({"do": "shuffle", "network": 2})
    line = session.answer({"do": "line", "points": 11}).header
    assert line["plain"]["barrier"] > 1e-3 and line["aligned"]["barrier"] < 1e-6
    told = session.answer({"do": "align"}).header
    assert told["after"] < 1e-3 * told["before"] and told["changed"] < 1e-6
    assert float((session.networks.net(1) - first).norm()) < 1e-3 * float(first.weights.norm())
    session.answer({"do": "undo"})
    assert float((session.networks.net(1) - first).norm()) == pytest.approx(told["before"])


def test_the_line_is_that_of_the_library():
    session = begun(other=4)
    line = session.answer({"do": "line", "points": 7}).header
    a, b, task = session.networks.net(0), session.networks.net(1), session.networks.train.task()
    assert line["t"] == pytest.approx(np.linspace(0, 1, 7))
    assert line["plain"]["train"] == pytest.approx(ws.line(a, b).along(task, 7))
    assert line["plain"]["barrier"] == pytest.approx(ws.line(a, b).barrier(task, 7))
    ends = line["aligned"]["train"]
    assert (ends[0], ends[-1]) == (pytest.approx(float(task(a))), pytest.approx(float(task(b))))


def test_the_slider_shows_the_network_on_the_line():
    session = begun(other=4)
    first, second = (learner.flat.clone() for learner in session.networks.learners)
    frame = session.answer({"do": "between", "t": 0.25, "weights": True, "side": 8})
    assert np.allclose(frame.section("weights")[0], (0.75 * first + 0.25 * second).float(), atol=1e-6)
    assert frame.section("maps").shape == (1, 11, 8, 8) and len(frame.header["networks"]) == 1
    assert all(torch.equal(a, b.flat) for a, b in zip((first, second), session.networks.learners, strict=True))
    for t, k in ((0, 0), (1, 1)):
        end = session.answer({"do": "between", "t": t}).section("maps")[0]
        assert np.array_equal(end, session.answer({"do": "show"}).section("maps")[k])


def test_an_alignment_is_of_these_weights():
    """It is kept for the slider, and found anew where a network has changed."""
    session = begun(other=4)
    session.answer({"do": "line"})
    kept = session.aligned
    session.answer({"do": "between", "aligned": True})
    assert session.aligned is kept
    session.answer({"do": "edit", "layer": 1, "neuron": 1, "input": 1, "value": 3})
    session.answer({"do": "between", "aligned": True, "t": 1})
    assert session.aligned is not kept and float(session.aligned.first[0]) == 3


def test_a_group_is_of_this_architecture():
    session = begun(other=4)
    assert session.answer({"do": "group"}).header["group"] == "[S5 x R+5]^2"
    session.answer({"do": "set", "width": 3})
    assert session.answer({"do": "group"}).header["group"] == "[S3 x R+3]^2"
    session.answer({"do": "set", "activation": "tanh"})
    assert session.answer({"do": "group"}).header["group"] == "[S3 x Z2^3]^2"
    session.answer({"do": "set", "depth": 1, "seed": 5})
    found = session.answer({"do": "group"}).header
    assert found["group"] == "S3 x Z2^3" and found["log10"] == pytest.approx(np.log10(6))
