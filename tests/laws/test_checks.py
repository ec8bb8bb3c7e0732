"""The tests themselves check types: wrong values are refused by functions, methods and dataclasses, shapes too."""

from __future__ import annotations

import os
import types

import jaxtyping
import pytest
import torch
from public_calls import A

from weightspace.linear import estimate
from weightspace.linear.assignment import duals
from weightspace.linear.estimate import Estimate
from weightspace.net.weights import finite
from weightspace.symmetry.axis import Axis, Place, place_axes
from weightspace.web.playground.points import Points

pytestmark = pytest.mark.skipif(bool(os.environ.get("WEIGHTSPACE_UNCHECKED")), reason="the checks are off")
X, Y = torch.zeros(3, 2), torch.zeros(3)
WRONG = {
    "a function": lambda: finite("a text"),
    "a function, by a list": lambda: place_axes(Y, "a text", 1),
    "a method that names its class": lambda: A.weights.check("a text"),
    "a dataclass": lambda: Estimate("a text", 0.0, 1),
    "a public dataclass": lambda: Place("a text", 0),
    "a shape": lambda: duals(torch.zeros(2, 3)),
    "a shape in a dataclass": lambda: Points(X, torch.zeros(4)),
}


@pytest.mark.parametrize("where", WRONG)
def test_a_wrong_type_is_refused(where):
    with pytest.raises(jaxtyping.TypeCheckError):
        WRONG[where]()


def test_a_class_that_a_test_replaces_is_not_the_one_that_is_checked(monkeypatch, pytestconfig):
    """A signature is read at its first call; whatever stands in the module then, it means what was imported."""
    (checks,) = (plugin for plugin in pytestconfig.pluginmanager.get_plugins() if hasattr(plugin, "checked_late"))

    class Nothing:
        pass

    def takes(value):
        return value

    here = types.FunctionType(takes.__code__, vars(estimate), "takes")
    here.__annotations__ = {"value": "Estimate"}
    late, one = checks.checked_late(here), Estimate(0.0, 0.0, 1)
    monkeypatch.setattr(estimate, "Estimate", Nothing)
    assert late(one) is one and estimate.Estimate is Nothing
    with pytest.raises(jaxtyping.TypeCheckError):
        late(Nothing())


def test_right_types_pass():
    assert finite(Y) and Axis("a", 2).size == 2 and len(Points(X, Y).x) == 3
