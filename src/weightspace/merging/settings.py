"""What a merging method is told about one tensor, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import Tensor

from weightspace.merging.part import Part, Piece

__all__ = ["Combine", "Method", "Settings"]

Combine: TypeAlias = Callable[[Piece], Tensor]


@dataclass(frozen=True)
class Settings:
    """The weights of the parents and the numbers of the method, for one tensor; `seed` is of this tensor alone."""

    weights: tuple[float, ...]
    options: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Method:
    """A merging method: how one tensor is made of those of the parents.

    `make(part, settings)` gives a function of pieces, after passes over the part if it needs statistics of the whole
    tensor, or the merged tensor itself where a method needs the whole matrix. `base`: whether a base is needed,
    used where there is one, or not used. `options`: names and default values. `most`: the most parents it takes.
    `say`: one line for a table of methods.
    """

    name: str
    make: Callable[[Part, Settings], Combine | Tensor]
    say: str
    base: Literal["needed", "used", "unused"] = "unused"
    options: Mapping[str, float] = field(default_factory=dict)
    least: int = 1
    most: int | None = None
