"""The table of messages: their names, and the fields that each takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightspace.net.errors import WeightspaceError
from weightspace.web.playground.fields import Choice, Field, Flag, Number, Whole, checked_fields, shown
from weightspace.web.playground.points import SETS
from weightspace.web.playground.state import LARGEST_SEED, Limits

__all__ = ["FRAMES", "messages", "read"]

FRAMES = ("set", "reset", "show", "step", "edit", "noise", "undo", "shuffle", "align", "between", "keep", "walk")


def messages(limits: Limits) -> dict[str, dict[str, Field]]:
    """Message -> its fields, within these limits; those of `set` have no defaults, since they stay as they are."""
    one, newest = Whole(1, 1, 2), Whole(0, 0, 2)
    found: dict[str, dict[str, Field]] = {
        "state": {},
        "set": limits.fields(),
        "reset": {},
        "data": {},
        "show": {},
        "step": {"steps": Whole(min(10, limits.steps), 1, limits.steps)},
        "edit": {
            "network": one,
            "layer": Whole(None, 1, limits.depth + 1),
            "neuron": Whole(None, 1, limits.width),
            "input": Whole(None, 0, limits.width),
            "value": Number(None, -100.0, 100.0),
        },
        "noise": {"percent": Number(20.0, 0.0, 500.0), "network": newest},
        "undo": {},
        "certificate": {"network": one},
        "curve": {"draws": Whole(5, 1, 10), "most": Number(100.0, 1.0, 500.0), "network": one},
        "breakdown": {"percent": Number(10.0, 0.1, 100.0), "network": one},
        "group": {},
        "shuffle": {"network": newest},
        "align": {},
        "line": {"points": Whole(21, 5, 41)},
        "between": {"t": Number(0.5, 0.0, 1.0), "aligned": Flag(False)},
        "keep": {
            "learn": Choice(None, tuple(SETS)),
            "where": Choice("halves", ("halves", "all")),
            "budget": Number(0.1, 1e-3, 10.0),
            "size": Number(0.05, 1e-3, 1.0),
            "network": one,
        },
        "walk": {"steps": Whole(2, 1, 5)},
        "goal": {},
        "paths": {"example": Whole(0, 0, limits.points - 1), "network": one},
        "information": {"network": one},
        "digits": {
            "percent": Number(0.0, 0.0, 200.0),
            "presses": Whole(1, 1, 20),
            "seed": Whole(0, 0, LARGEST_SEED),
            "rows": Whole(4, 1, 8),
            "tilt": Number(0.0, -3.0, 3.0),
        },
        "examples": {},
    }
    look: dict[str, Field] = {
        "maps": Choice("all", ("all", "output", "none")),
        "side": Whole(min(40, limits.side), 8, limits.side),
        "weights": Flag(False),
    }
    return {name: {**own, **look} if name in FRAMES else own for name, own in found.items()}


def read(message: Mapping[Any, object], limits: Limits) -> tuple[str, dict[str, Any]]:
    """The name of a message and its fields; of the state's fields in `set`, only those that are given.

    Raises `WeightspaceError` for an unknown message, and for unknown, missing and wrong fields.
    """
    table = messages(limits)
    if not isinstance(message, Mapping):
        raise WeightspaceError(f"a message is a JSON object, not {shown(message)}")
    name = message.get("do")
    if not isinstance(name, str) or name not in table:
        raise WeightspaceError(f"no message {shown(name)}; do is one of {', '.join(table)}")
    given = {key: value for key, value in message.items() if key != "do"}
    found = checked_fields(table[name], given, f"the message {name}")
    if name == "set":
        found = {key: value for key, value in found.items() if key in given or key not in limits.fields()}
    return name, found
