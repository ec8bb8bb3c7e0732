"""The merging methods by name."""

from __future__ import annotations

from collections.abc import Mapping

from weightspace.merging import elementwise
from weightspace.merging.settings import Method
from weightspace.net.errors import WeightspaceError

__all__ = ["METHODS", "method"]

_ALL = (
    Method("linear", elementwise.linear, "weighted mean of the weights", options={"normalize": 1.0}),
    Method(
        "task_arithmetic", elementwise.task_arithmetic, "base plus a weighted sum of task vectors", "needed",
        {"scale": 1.0},
    ),
)  # fmt: skip
METHODS: Mapping[str, Method] = {entry.name: entry for entry in _ALL}


def method(name: str) -> Method:
    """The method of that name. Raises `WeightspaceError` that lists all names."""
    found = METHODS.get(name.replace("-", "_").lower())
    if found is None:
        raise WeightspaceError(f"no merging method {name!r}; choose one of {', '.join(METHODS)}")
    return found
