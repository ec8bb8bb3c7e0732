"""The group that moves the weights and leaves the function alone: read, apply, match, average."""

from __future__ import annotations

from typing import Any

from torch import nn

from weightspace.net import Net
from weightspace.symmetry.group import Axis, Element, Generator, Group, SymmetryError
from weightspace.symmetry.read import read

__all__ = ["Axis", "Element", "Generator", "Group", "Symmetry", "SymmetryError"]


class Symmetry(Group):
    """The symmetry group of an architecture, read off its graph and verified, with everything one does with it."""

    @classmethod
    def of(cls, net: Net | nn.Module, example: Any, *, verify: bool = True, scales: bool = True,
           outputs_move: bool = False) -> Symmetry:
        """Read the group."""
        return read(net, example, into=cls, check=verify, scales=scales, outputs_move=outputs_move)
