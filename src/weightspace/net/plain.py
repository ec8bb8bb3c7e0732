"""Results as plain data: numbers, strings, lists and dictionaries that JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from weightspace.net.public import public

__all__ = ["plain"]


@public
def plain(value: Any) -> Any:
    """A value as JSON can hold it: lists for tuples and tensors, text for keys, None for NaN and infinity.

    >>> from weightspace.net.plain import plain
    >>> plain({1: (0.5, float("nan"))})
    {'1': [0.5, None]}
    """
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
