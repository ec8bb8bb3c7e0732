"""The set-up of the playground: data, network and learning as one small flat record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from weightspace.web.playground.fields import Choice, Field, Number, Whole, checked_fields
from weightspace.web.playground.points import SETS

__all__ = ["ACTIVATIONS", "ALGORITHMS", "LARGEST_SEED", "Limits", "State"]

ACTIVATIONS = ("tanh", "relu", "leaky_relu", "sigmoid")
ALGORITHMS = ("sgd", "momentum", "adam", "fromage", "lamb", "spectral", "natural")
LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Limits:
    """The largest networks, data, pictures and messages that a session takes, and how many changes it can undo."""

    depth: int = 20
    width: int = 16
    points: int = 1000
    side: int = 64
    steps: int = 50
    history: int = 50

    def fields(self) -> dict[str, Field]:
        """The fields of a state, within these limits."""
        return {
            "data": Choice("circle", tuple(SETS)),
            "noise": Number(0.05, 0.0, 0.5),
            "points": Whole(min(400, self.points), 20, self.points),
            "test": Number(0.5, 0.1, 0.9),
            "depth": Whole(min(3, self.depth), 1, self.depth),
            "width": Whole(min(8, self.width), 1, self.width),
            "activation": Choice("tanh", ACTIVATIONS),
            "batch": Whole(16, 1, 500),
            "algorithm": Choice("adam", ALGORITHMS),
            "rate": Number(0.01, 1e-6, 10.0),
            "seed": Whole(0, 0, LARGEST_SEED),
            "other": Whole(-1, -1, LARGEST_SEED),
        }


@dataclass(frozen=True)
class State:
    """The set-up: what is learnt, by what, and how. `other`: the seed of a second network, -1 for none.

    >>> from weightspace.web.playground.state import Limits, State
    >>> State.of({"depth": 20}, Limits()).depth
    20
    >>> State.of({"depth": 21}, Limits())
    Traceback (most recent call last):
    weightspace.net.errors.WeightspaceError: depth is 21; give a whole number from 1 to 20
    """

    data: str
    noise: float
    points: int
    test: float
    depth: int
    width: int
    activation: str
    batch: int
    algorithm: str
    rate: float
    seed: int
    other: int

    @classmethod
    def of(cls, given: Mapping[Any, object], limits: Limits) -> State:
        """The state with these fields, and defaults for the others. Raises `WeightspaceError`."""
        return cls(**checked_fields(limits.fields(), given, "the state"))

    def with_fields(self, given: Mapping[str, Any]) -> State:
        """The same state with other values of some fields, which were checked."""
        return replace(self, **given)

    def changed(self, other: State) -> set[str]:
        """The names of the fields in which the two differ."""
        return {f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)}

    def as_fields(self) -> dict[str, Any]:
        """The state as plain data."""
        return asdict(self)

    @property
    def networks(self) -> int:
        """How many networks there are."""
        return 1 if self.other < 0 else 2
