"""Numbers that depend on the tensor: one for all, one by name pattern, or a gradient over the layers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from weightspace.net.errors import WeightspaceError

__all__ = ["Schedule", "depth_of", "depths", "schedule_of", "value_at"]

Schedule: TypeAlias = float | Sequence[float] | Mapping[str, float | Sequence[float]]

_NUMBER = re.compile(r"(?:^|[._])(\d+)(?=[._]|$)")


def value_at(schedule: Schedule, name: str, depth: float = 0.0) -> float:
    """The number of a schedule for the tensor `name` at `depth` (0 the first layer, 1 the last).

    A number holds for every tensor. A sequence c_0 .. c_m is a gradient over the layers: linear interpolation at
    depth * m. A mapping has patterns as keys: the name itself, else the first whose text is part of the name, or that
    matches the name as a whole as a regular expression; "*" matches every name and is tried last. Raises
    `WeightspaceError` where no pattern matches.

    >>> from weightspace.merging.schedule import value_at
    >>> value_at([0.0, 1.0], "h.3.mlp.weight", 0.25), value_at({"mlp": 0.3, "*": 0.5}, "h.3.attn.weight")
    (0.25, 0.5)
    """
    if isinstance(schedule, Mapping):
        if name in schedule:
            return value_at(schedule[name], name, depth)
        keys = sorted(schedule, key=lambda key: key == "*")
        for key in keys:
            if key == "*" or key in name or _whole(key, name):
                return value_at(schedule[key], name, depth)
        raise WeightspaceError(f"no value for {name!r}: none of {', '.join(map(repr, keys))} matches; add '*'")
    if isinstance(schedule, Sequence):
        if not schedule:
            raise WeightspaceError("a gradient over the layers without values; give one or more numbers")
        at = min(max(depth, 0.0), 1.0) * (len(schedule) - 1)
        low = min(int(at), len(schedule) - 1)
        high = min(low + 1, len(schedule) - 1)
        return float(schedule[low] + (at - low) * (schedule[high] - schedule[low]))
    return float(schedule)


def _whole(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error:
        return False


def schedule_of(text: str) -> Schedule:
    """The schedule that a text describes: "0.3"; "0.1:0.9", a gradient; "mlp=0.3,*=0.5", by pattern of the name.

    Raises `WeightspaceError` for any other text.

    >>> from weightspace.merging.schedule import schedule_of
    >>> schedule_of("0.3"), schedule_of("0:1"), schedule_of("mlp=0.3,*=0:1")
    (0.3, [0.0, 1.0], {'mlp': 0.3, '*': [0.0, 1.0]})
    """
    if "=" not in text:
        return _plain(text, text)
    found: dict[str, float | Sequence[float]] = {}
    for item in text.split(","):
        pattern, equals, value = item.rpartition("=")
        if not equals or not pattern.strip() or pattern.strip() in found:
            raise WeightspaceError(f"{text!r}: {item!r} is not pattern=number, each pattern once; as mlp=0.3,*=0.5")
        found[pattern.strip()] = _plain(value, text)
    return found


def _plain(text: str, whole: str) -> float | list[float]:
    try:
        numbers = [float(part) for part in text.split(":")]
    except ValueError as error:
        raise WeightspaceError(f"{whole!r} is not a number, 0.1:0.9 (over the layers) or mlp=0.3,*=0.5") from error
    if not all(map(math.isfinite, numbers)):
        raise WeightspaceError(f"{whole!r} is not finite; give finite numbers")
    return numbers if len(numbers) > 1 else numbers[0]


def depth_of(name: str) -> int | None:
    """The number of the layer in a tensor's name, the first number in it; None where it has none.

    >>> from weightspace.merging.schedule import depth_of
    >>> depth_of("model.layers.12.mlp.up_proj.weight"), depth_of("lm_head.weight")
    (12, None)
    """
    found = _NUMBER.search(name)
    return None if found is None else int(found[1])


def depths(names: Iterable[str]) -> dict[str, float]:
    """The depth of every tensor from 0 to 1: of the first layer to the last; what has no number goes with the first."""
    numbers = {name: depth_of(name) for name in names}
    last = max((number for number in numbers.values() if number is not None), default=0)
    return {name: 0.0 if number is None else number / max(1, last) for name, number in numbers.items()}
