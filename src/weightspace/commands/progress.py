"""How long a run will take."""

from __future__ import annotations

import time

from weightspace.net.net import Net
from weightspace.task.goal import value_and_gradient
from weightspace.task.task import Task

__all__ = ["duration", "seconds"]


def seconds(net: Net, task: Task) -> float:
    """Seconds that one pass forward and back over the task takes; the second of two passes is timed."""
    value_and_gradient(task, net)
    begun = time.perf_counter()
    value_and_gradient(task, net)
    return time.perf_counter() - begun


def duration(seconds: float) -> str:
    """Seconds for a reader: "40 s", "3 min"."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
