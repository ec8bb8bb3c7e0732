"""The plan of a merge: for every tensor of the merged network, what it is made of, or why it is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from weightspace.merging.part import Part
from weightspace.merging.recipe import Recipe

__all__ = ["Plan", "Row"]


@dataclass(frozen=True)
class Row:
    """One tensor of the merged network.

    `sources`: the index of each parent that has it and the name there. `base`: its name in the base, where there is
    one. `action`: "merged" by `recipe`, "copied" from the first source, or "left out", with the reason in `why`.
    """

    name: str
    action: Literal["merged", "copied", "left out"]
    sources: tuple[tuple[int, str], ...]
    shape: torch.Size
    dtype: torch.dtype
    recipe: Recipe
    base: str | None = None
    depth: float = 0.0
    why: str = ""


@dataclass(frozen=True)
class Plan:
    """What a merge does, before anything is computed: the parents, the base, and a row for every tensor."""

    parents: Sequence[Mapping[str, Tensor]]
    base: Mapping[str, Tensor] | None
    rows: Sequence[Row]

    def part(self, row: Row) -> Part:
        """The tensors that a row is made of, to be read in pieces."""
        wide = torch.float64 if row.dtype == torch.float64 else torch.float32
        return Part(
            row.name,
            row.shape,
            [(self.parents[k], name) for k, name in row.sources],
            None if row.base is None or self.base is None else (self.base, row.base),
            wide,
        )
