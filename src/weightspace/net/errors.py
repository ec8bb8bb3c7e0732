"""Errors that a user can cause and fix; their messages say what was wrong, what was seen and what to do."""

from __future__ import annotations

__all__ = ["ArchitectureMismatch", "CallError", "InputError", "SymmetryError", "WeightspaceError", "first_line"]


class WeightspaceError(ValueError):
    """An error that a user can fix: the message says what was wrong, what was seen and what to do."""


class CallError(WeightspaceError, TypeError):
    """A call with arguments of a type, number or name that the function does not take."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut to 200 characters."""
    text = next((text for text in str(error).splitlines() if text.strip()), type(error).__name__)
    return text.strip()[:200]


class ArchitectureMismatch(WeightspaceError):
    """Two networks, or a network and a checkpoint, that do not have the same tensors."""


class InputError(WeightspaceError, RuntimeError):
    """Inputs of a shape, type or number that a network does not take."""


class SymmetryError(WeightspaceError):
    """A module whose symmetry group cannot be determined, or a transformation that would change its function."""
