"""The callbacks that long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "Tick", "silent"]

Progress = Callable[[str, int, int], None]  # what is being done, steps done, steps in all (0: not known)
Tick = Callable[[int, int], None]  # the same inside of one task: steps done, steps in all


def silent(what: str, done: int, total: int) -> None:
    """Tell nothing."""
