"""What a merging method is told about one tensor, and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor

from weightspace.merging.part import Part, Piece
from weightspace.net.errors import WeightspaceError

__all__ = ["Combine", "Method", "Settings", "Within"]

Combine: TypeAlias = Callable[[Piece], Tensor]


@dataclass(frozen=True)
class Settings:
    """The weights of the parents and the numbers of the method, for one tensor; `seed` is of this tensor alone.

    `own`: options that differ by parent, one number for each.
    """

    weights: tuple[float, ...]
    options: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    own: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def of(self, name: str, k: int) -> float:
        """An option as it is for parent k."""
        return self.own[name][k] if name in self.own else self.options[name]

    def each(self, name: str) -> list[float]:
        """An option of every parent."""
        return [self.of(name, k) for k in range(len(self.weights))]


class Within(NamedTuple):
    """The numbers that an option may be: from `least` to `most`, without `least` itself where `above`; or a `flag`."""

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    flag: bool = False

    def __contains__(self, value: object) -> bool:
        number = float(value)  # type: ignore[arg-type]
        if self.flag:
            return number in (0, 1)
        return math.isfinite(number) and self.least <= number <= self.most and not (self.above and number == self.least)

    def __str__(self) -> str:
        if self.flag:
            return "of 0 (no) or 1 (yes)"
        low = f"above {self.least:g}" if self.above else f"from {self.least:g}"
        known = [low] * (self.least > -math.inf) + [f"up to {self.most:g}"] * (self.most < math.inf)
        return " ".join(known) or "that is finite"


@dataclass(frozen=True)
class Method:
    """A merging method: how one tensor is made of those of the parents.

    `make(part, settings)` gives a function of pieces, after passes over the part if it needs statistics of the whole
    tensor, or the merged tensor itself where a method needs the whole matrix. `base`: whether a base is needed,
    used where there is one, or not used. `options`: names and default values. `limits`: what they may be, by name.
    `own`: options that may differ by parent. `beside`: what `Part.beside` has to hold. `most`: the most parents it
    takes. `weighs`: whether the weights of the parents count. `say`: a line for a table of methods.
    """

    name: str
    make: Callable[[Part, Settings], Combine | Tensor]
    say: str
    base: Literal["needed", "used", "unused"] = "unused"
    options: Mapping[str, float] = field(default_factory=dict)
    least: int = 1
    most: int | None = None
    limits: Mapping[str, Within] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    beside: Literal["", "importances", "inner products"] = ""
    weighs: bool = True

    def check(self, settings: Settings) -> None:
        """Raise `WeightspaceError` where a weight is not finite, or an option is not what it may be."""
        for weight in settings.weights:
            if not math.isfinite(weight):
                raise WeightspaceError(f"a weight of {weight} for a network; give finite weights")
        for name, value in settings.options.items():
            allowed = self.limits.get(name, Within())
            for number in settings.own.get(name, (value,)):
                if number not in allowed:
                    raise WeightspaceError(f"{self.name} takes a {name} {allowed}, not {number:g}")
