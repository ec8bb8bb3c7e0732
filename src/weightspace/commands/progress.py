"""What a long run tells of itself while it works."""

from __future__ import annotations

import time
from collections.abc import Callable

from weightspace.net.net import Net
from weightspace.task.goal import value_and_gradient
from weightspace.task.task import Task

__all__ = ["Progress", "duration", "seconds", "silent"]

Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Tell nothing."""


def seconds(net: Net, task: Task) -> float:
    """What a pass forward and back over the task takes; the second of two."""
    value_and_gradient(task, net)
    begun = time.perf_counter()
    value_and_gradient(task, net)
    return time.perf_counter() - begun


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
