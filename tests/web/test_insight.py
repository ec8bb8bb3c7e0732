"""Paths of examples, nats in the weights, and the generator of digits."""

from __future__ import annotations

import pytest
import torch

import weightspace as ws
from weightspace.net.seeds import derived
from weightspace.web.playground import generator
from weightspace.web.playground.session import Session


@pytest.fixture(scope="module")
def session():
    made = Session()
    made.answer({"do": "set", "depth": 2, "width": 6, "points": 60, "data": "xor", "activation": "relu"})
    for _ in range(4):
        made.answer({"do": "step", "steps": 50, "maps": "none"})
    return made


def test_neurons_are_on_where_their_response_is_positive(session):
    told = session.answer({"do": "paths", "example": 4}).header
    networks = session.networks
    *hidden, _ = networks.learners[0].responses(networks.train.x)
    on = torch.cat(hidden, 1) > 0
    assert torch.equal(torch.tensor(told["on"]).bool().flatten(), on[4])
    assert told["shared"] == (on & on[4]).sum(1).tolist() and told["own"] == int(on[4].sum())
    *first, _ = networks.learners[0].responses(networks.train.x, networks.start[0])
    then = torch.cat(first, 1)[4] > 0
    cosine = float((then & on[4]).sum()) / float(then.sum() * on[4].sum()) ** 0.5
    assert told["since"] == pytest.approx(cosine)
    assert told["dead"] == pytest.approx([float((~(h > 0).any(0)).double().mean()) for h in hidden])


def test_an_example_that_is_not_there_is_refused(session):
    with pytest.raises(ws.WeightspaceError, match="there are 30 training examples; example is 30, from 0"):
        session.answer({"do": "paths", "example": 30})


def test_nats_are_within_their_bounds_and_near_those_of_more_products(session):
    told = session.answer({"do": "information"}).header
    assert told["lower"] <= told["cost"] + 3 * told["error"] and told["cost"] <= told["upper"] + 3 * told["error"]
    assert told["cost"] == pytest.approx(told["nats"] + told["dimension"] / 2, abs=6 * told["error"] + 1e-6)
    assert sum(told["layers"].values()) == pytest.approx(told["nats"]) and len(told["layers"]) == 6
    with pytest.warns() if told["notes"] and "minimum" in told["notes"][0] else _quiet():
        best = ws.information(session.networks.net(0), session.networks.train.task(), probes=20)
    assert told["nats"] == pytest.approx(best.value, abs=4 * (told["error"] + best.error) + 0.05 * best.value)


def _quiet():
    import contextlib

    return contextlib.nullcontext()


def test_a_walk_away_from_a_minimum_warns_nobody(session):
    fresh = Session()
    fresh.answer({"do": "set", "points": 20, "depth": 1, "width": 2})
    assert isinstance(fresh.answer({"do": "information"}).header["notes"], list)  # warnings are errors here


# ------------------------------------------------------------------ digits


def digits(**fields):
    return Session().answer({"do": "digits", **fields})


def test_the_generator_draws_the_digits_of_the_library():
    """A nearest-mean rule of the training digits tells what most pictures show."""
    sheet = torch.tensor(digits(rows=8).section("pictures").copy()).double().flatten(2) / 255
    task = ws.digits("train", flat=True)
    x, y = task.example(len(task)).double(), task.labels()
    means = torch.stack([x[y == k].mean(0) for k in range(10)])
    guesses = torch.cdist(sheet.flatten(0, 1), means).argmin(1).view(8, 10)
    assert float((guesses == torch.arange(10)).double().mean()) >= 0.8
    assert float(sheet.std(0).mean()) > 0.02  # rows differ


def test_noise_moves_the_pictures_more_and_more():
    still, little, much = (digits(percent=p) for p in (0, 5, 100))
    assert (still.header["moved"], still.header["expected"]) == (0, 0)
    assert 0 < little.header["moved"] < 0.2 < much.header["moved"]
    assert little.header["expected"] == pytest.approx(little.header["moved"], rel=0.5)
    assert little.header["model"] == pytest.approx(1.05**3 - 1)


def test_more_presses_go_on_from_fewer():
    net = ws.Net.of(generator.decoder()).load(ws.checkpoint.read(generator.FILE))
    x = generator.inputs(4, 7, 0.5)
    for k in range(3):
        net = ws.perturb(net, 0.1, seed=derived(7, "press", k) % 2**31)
    wanted = (255 * net(x).sigmoid()).round().view(4, 10, 8, 8)
    seen = digits(percent=10, presses=3, seed=7, tilt=0.5)
    assert torch.equal(torch.tensor(seen.section("pictures").copy()), wanted.to(torch.uint8))
    assert seen.to_bytes() == digits(percent=10, presses=3, seed=7, tilt=0.5).to_bytes()
    assert seen.section("pictures").tobytes() != digits(percent=10, presses=3, seed=7, tilt=-2).payload


def test_the_generators_noise_is_bounded():
    with pytest.raises(ws.WeightspaceError, match=r"grow beyond 1e\+06; press less often"):
        for presses in (5, 20):
            generator.pictures_of(5000 * 0.19, presses, 0, 1, 0.0)


def test_the_file_of_the_generator_is_small():
    assert generator.FILE.stat().st_size < 300_000
