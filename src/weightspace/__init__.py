"""The geometry of neural-network weight space.

A network is a point; a task is what we look at it through; a metric turns a gradient into a step; a path is a curve
of networks; a group moves the weights and leaves the function alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_CONTENTS = {
    "net": ["Net", "Weights", "WeightspaceError", "ArchitectureMismatch"],
}
_HOME = {name: room for room, names in _CONTENTS.items() for name in names}

__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"weightspace.{_HOME[name]}"), name)
    raise AttributeError(f"module 'weightspace' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
