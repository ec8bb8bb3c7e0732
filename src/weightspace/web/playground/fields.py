"""The fields of a message: their types, ranges and defaults, and how they are checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weightspace.net.errors import WeightspaceError

__all__ = ["Choice", "Field", "Flag", "Number", "Whole", "checked_fields", "shown"]

_LONGEST = 40


@dataclass(frozen=True)
class Field:
    """A field of a message; `default` None: it must be given."""

    default: Any = None

    def check(self, name: str, value: object) -> Any:
        """The value, or a `WeightspaceError` that says what was seen and what is taken."""
        raise NotImplementedError

    def data(self) -> dict[str, Any]:
        """The field as plain data."""
        raise NotImplementedError


@dataclass(frozen=True)
class Whole(Field):
    """A whole number from `low` to `high`."""

    low: int = 0
    high: int = 1

    def check(self, name: str, value: object) -> int:
        """The number."""
        if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
            raise WeightspaceError(f"{name} is {shown(value)}; give a whole number from {self.low} to {self.high}")
        return int(value)

    def data(self) -> dict[str, Any]:
        """The range."""
        return {"type": "whole", "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Number(Field):
    """A finite number from `low` to `high`."""

    low: float = 0.0
    high: float = 1.0

    def check(self, name: str, value: object) -> float:
        """The number as a float."""
        fine = isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high
        if not fine:  # NaN is in no range
            raise WeightspaceError(f"{name} is {shown(value)}; give a number from {self.low:g} to {self.high:g}")
        return float(value)  # type: ignore[arg-type]

    def data(self) -> dict[str, Any]:
        """The range."""
        return {"type": "number", "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Choice(Field):
    """One of a few words."""

    values: tuple[str, ...] = ()

    def check(self, name: str, value: object) -> str:
        """The word."""
        if not isinstance(value, str) or value not in self.values:
            raise WeightspaceError(f"{name} is {shown(value)}; choose one of {', '.join(self.values)}")
        return str(value)

    def data(self) -> dict[str, Any]:
        """The words."""
        return {"type": "choice", "values": list(self.values)}


@dataclass(frozen=True)
class Flag(Field):
    """True or false."""

    def check(self, name: str, value: object) -> bool:
        """The flag."""
        if not isinstance(value, bool):
            raise WeightspaceError(f"{name} is {shown(value)}; give true or false")
        return value

    def data(self) -> dict[str, Any]:
        """That it is a flag."""
        return {"type": "flag"}


def checked_fields(fields: Mapping[str, Field], given: Mapping[Any, object], where: str) -> dict[str, Any]:
    """Every field with its value or default. Raises `WeightspaceError` for an unknown, wrong or missing one."""
    for name in given:
        if not isinstance(name, str) or name not in fields:
            known = f"its fields are {', '.join(fields)}" if fields else "it has no fields"
            raise WeightspaceError(f"{where} has no field {shown(name)}; {known}")
    found = {}
    for name, field in fields.items():
        if name in given:
            found[name] = field.check(name, given[name])
        elif field.default is None:
            raise WeightspaceError(f"{where} needs the field {name}")
        else:
            found[name] = field.default
    return found


def shown(value: object) -> str:
    """A value as a message quotes it: short, whatever it is."""
    if isinstance(value, str):
        return repr(value if len(value) <= _LONGEST else value[:_LONGEST] + "...")
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int):
        return str(value) if value.bit_length() < 128 else "a number of many digits"
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else str(value)
    return f"a {type(value).__name__}"
