"""Messages are answered or refused in one sentence, whatever they hold, and the protocol page tells the truth."""

from __future__ import annotations

import math
import re
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from weightspace.net.errors import WeightspaceError
from weightspace.web.playground.fields import Choice, Flag, Number, Whole, checked_fields, shown
from weightspace.web.playground.messages import FRAMES, messages, read
from weightspace.web.playground.session import _ANSWERS, Session
from weightspace.web.playground.state import Limits, State

PAGE = (Path(__file__).parents[2] / "docs" / "playground.md").read_text()
LIMITS = Limits()
SMALL = Limits(depth=2, width=3, points=30, side=8, steps=3, history=3)


def rows(heading):
    """First and further cells of the tables under a heading of the page."""
    text = re.split(rf"^## {heading}$", PAGE, flags=re.MULTILINE)[1].split("\n## ")[0].split("\n### ")[0]
    found = [re.split(r"(?<!\\) ?\| ?", row)[1:-1] for row in text.splitlines() if row.startswith("| `")]
    return [(re.findall(r"`(\w+)`", first), rest) for first, *rest in found]


def test_the_page_lists_the_messages_and_their_fields():
    table = messages(LIMITS)
    listed = {names[0]: rest[0] for names, rest in rows("Messages") if names[0] in table}
    assert [*listed] == [*table] == [*_ANSWERS]
    look = {name for name in table["show"]}
    for name, told in listed.items():
        own = set(table[name]) - (look if name in FRAMES else set())
        if name == "set":
            assert told == "any fields of the state"
            continue
        named = {word for word in re.findall(r"`(\w+)`", told) if word in table[name]}
        assert named == own, name


def test_the_page_lists_the_state_and_its_ranges():
    listed = {names[0]: rest for names, rest in rows("The state") if len(names) == 1 and names[0] in LIMITS.fields()}
    assert [*listed] == [*LIMITS.fields()]
    for name, field in LIMITS.fields().items():
        values, default, _ = listed[name]
        assert default.strip("`") == str(field.default)
        if isinstance(field, Choice):
            assert tuple(re.findall(r"`(\w+)`", values)) == field.values
        else:
            low, high = values.replace("2^31 - 1", str(2**31 - 1)).split(" to ")
            assert (float(low), float(high)) == (field.low, field.high)


def test_the_page_names_what_a_frame_has():
    header = Session(SMALL).answer({"do": "set", "other": 1, "side": 8, "weights": True}).header
    for name in {*header, *header["networks"][0], *(s["name"] for s in header["sections"])}:
        assert f"`{name}`" in PAGE, name


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({}, "no message null; do is one of state, set"),
        ({"do": "dance"}, "no message 'dance'"),
        ({"do": ["step"]}, "no message a list"),
        ({"do": "step", "stpes": 3}, "the message step has no field 'stpes'; its fields are steps, maps"),
        ({"do": "undo", 3: 3}, "has no field 3"),
        ({"do": "step", "steps": 51}, "steps is 51; give a whole number from 1 to 50"),
        ({"do": "step", "steps": 0}, "steps is 0;"),
        ({"do": "step", "steps": True}, "steps is true;"),
        ({"do": "step", "steps": 1.5}, "steps is 1.5;"),
        ({"do": "set", "depth": 21}, "depth is 21; give a whole number from 1 to 20"),
        ({"do": "set", "width": 17}, "width is 17;"),
        ({"do": "set", "points": -5}, "points is -5;"),
        ({"do": "set", "rate": 1e308}, r"rate is 1e\+308; give a number from 1e-06 to 10"),
        ({"do": "set", "rate": math.nan}, "rate is nan;"),
        ({"do": "set", "noise": math.inf}, "noise is inf;"),
        ({"do": "set", "rate": 10**400}, "rate is a number of many digits;"),
        ({"do": "set", "data": "moons"}, "data is 'moons'; choose one of circle, xor"),
        ({"do": "set", "seed": None}, "seed is null;"),
        ({"do": "show", "weights": 1}, "weights is 1; give true or false"),
        ({"do": "edit", "layer": 1}, "the message edit needs the field neuron"),
        ({"do": "edit", "layer": 1, "neuron": 1, "input": 3, "value": 0}, "there is no input 3 there; the last one"),
        ({"do": "edit", "layer": 9, "neuron": 1, "input": 1, "value": 0}, "there is no layer 9 there; the last one"),
        ({"do": "edit", "layer": 4, "neuron": 2, "input": 1, "value": 0}, "there is no neuron 2 there"),
        ({"do": "edit", "layer": 1, "neuron": 1, "input": 1, "value": -math.inf}, "value is -inf"),
        ({"do": "align"}, "there is one network; set other to the seed of a second one"),
        ({"do": "noise", "network": 2}, "there is one network"),
        ({"do": "undo"}, "nothing to undo"),
        ({"do": "walk"}, "no walk has begun"),
        ({"do": "goal"}, "no walk has begun"),
        ({"do": "certificate"}, "no noise since"),
        ({"do": "paths"}, "tanh neurons are not on or off; set activation to relu"),
    ],
)  # fmt: skip
def test_a_wrong_message_is_refused_in_one_sentence_and_changes_nothing(message, said):
    session = Session()
    before = session.answer({"do": "show", "weights": True}).to_bytes()
    with pytest.raises(WeightspaceError, match=said) as caught:
        session.answer(message)
    assert "\n" not in str(caught.value)
    assert session.answer({"do": "show", "weights": True}).to_bytes() == before


@pytest.mark.parametrize("message", [None, 3, "step", [("do", "step")], b"{}"])
def test_what_is_no_object_is_refused(message):
    with pytest.raises(WeightspaceError):
        Session(SMALL).answer(message)


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=3),
    st.lists(st.integers(), max_size=2), st.just(10**400),
)  # fmt: skip


def fitting(field):
    """Values that a field takes, or nearly."""
    if isinstance(field, Whole):
        return st.integers(field.low, min(field.high, field.low + 4))
    if isinstance(field, Number):
        return st.floats(field.low, field.high)
    if isinstance(field, Choice):
        return st.sampled_from(field.values)
    assert isinstance(field, Flag)
    return st.booleans()


@st.composite
def drawn(draw):
    table = messages(SMALL)
    name = draw(st.sampled_from([*table]))
    message = {"do": name}
    for key, field in table[name].items():
        if key in ("side", "points") or (key == "activation" and draw(st.booleans())):
            continue
        if field.default is None or draw(st.integers(0, 3)) == 0:
            message[key] = draw(fitting(field)) if draw(st.integers(0, 9)) else draw(ODD)
    if draw(st.integers(0, 19)) == 0:
        message[draw(st.text(max_size=4))] = draw(ODD)
    if "side" in table[name]:
        message["side"] = 8
    return message


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(drawn(), min_size=1, max_size=8))
def test_whatever_is_sent_is_answered_or_refused(conversation):
    session = Session(SMALL)
    session.answer({"do": "set", "depth": 1, "width": 2, "points": 20, "other": 1, "activation": "relu", "side": 8})
    for message in conversation:
        before = [learner.flat.clone() for learner in session.networks.learners]
        try:
            told = session.answer(message)
        except WeightspaceError as error:
            assert str(error) and "\n" not in str(error)
            assert all((old == new.flat).all() for old, new in zip(before, session.networks.learners, strict=True))
            continue
        raw = told.to_bytes()
        assert int.from_bytes(raw[:4], "little") % 4 == 0
        if any(s["name"] == "maps" for s in told.header.get("sections", ())):
            assert told.section("maps").min() >= 1


def test_values_are_quoted_shortly():
    assert [shown(v) for v in (math.nan, 1e308, "x" * 99, {}, None)] == [
        "nan", "1e+308", repr("x" * 40 + "..."), "a dict", "null",
    ]  # fmt: skip


def test_fields_without_a_default_must_be_given():
    with pytest.raises(WeightspaceError, match="here needs the field t"):
        checked_fields({"t": Number(None)}, {}, "here")
    assert checked_fields({"t": Number(0.5)}, {}, "here") == {"t": 0.5}
    with pytest.raises(WeightspaceError, match="it has no fields"):
        checked_fields({}, {"a": 1}, "here")


def test_set_reads_only_what_is_given():
    name, fields = read({"do": "set", "rate": 1}, LIMITS)
    assert (name, {k: v for k, v in fields.items() if k in LIMITS.fields()}) == ("set", {"rate": 1.0})


def test_a_state_is_flat_and_comes_back():
    state = State.of({"depth": 2, "data": "xor"}, LIMITS)
    assert State.of(state.as_fields(), LIMITS) == state
    assert all(isinstance(v, str | int | float) for v in state.as_fields().values())
