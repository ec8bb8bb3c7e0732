"""Mistakes that a user can make and mend, each with what was wrong, what was seen and what to do."""

from __future__ import annotations

__all__ = ["ArchitectureMismatch", "CallError", "InputError", "SymmetryError", "WeightspaceError", "first_line"]


class WeightspaceError(ValueError):
    """A mistake that a user can make and mend: says what was wrong, what was seen and what to do."""


class CallError(WeightspaceError, TypeError):
    """A call with arguments of another type, number or name than the function takes."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, in 200 letters."""
    text = next((text for text in str(error).splitlines() if text.strip()), type(error).__name__)
    return text.strip()[:200]


class ArchitectureMismatch(WeightspaceError):
    """Two networks, or a network and a checkpoint, that do not have the same tensors."""


class InputError(WeightspaceError, RuntimeError):
    """Inputs that a network does not take: of another shape, type or number."""


class SymmetryError(WeightspaceError):
    """A module whose symmetry cannot be read, or a move that would change the function."""
