"""The callback that long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "silent"]

Progress = Callable[[str, int, int], None]  # what is being done, steps done, steps in all (0: not known)


def silent(what: str, done: int, total: int) -> None:
    """Tell nothing."""
