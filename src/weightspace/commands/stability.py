"""What `weightspace stability` measures: noise of growing size, and how long the function holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightspace.commands.progress import Progress
from weightspace.commands.workspace import opened, splits
from weightspace.net.errors import WeightspaceError
from weightspace.trust.perturbation import Stability, stability, width

__all__ = ["Trial", "trial"]

_SIZES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_WIDTH_DRAWS = 10


@dataclass(frozen=True)
class Trial:
    """What `stability` found for a checkpoint, and the width of its minimum for a `tolerance`."""

    name: str
    examples: int
    draws: int
    width: float
    tolerance: float
    found: Stability

    @property
    def measure(self) -> str:
        """What the tolerance is a tolerance of."""
        if self.found.accuracy is not None:
            return "of accuracy"
        return "of loss, in bits" if self.found.loss is not None else "of the outputs' size"

    def remarks(self) -> list[str]:
        """The sentences below the table."""
        share = max(self.found.displacement.shares.items(), key=lambda item: item[1], default=("", 0.0))
        said = [
            f"Noise of {self.width:.1%} of every layer's norm costs {self.tolerance:g} {self.measure}.",
            f"Most fragile: {share[0]}, {share[1]:.0%} of what small noise does to the outputs.",
            "measured: median of the draws. expected: first derivative. model: relative trust, no bound. "
            "proven: certificates, with the activations on these examples and without.",
        ]
        if self.found.refused:
            said.append(f"No certificate: {self.found.refused}.")
        return said

    def data(self) -> dict[str, Any]:
        """As plain data; what overflowed is null."""
        told = asdict(self)
        for step in told["found"]["steps"]:
            step.update({k: None for k, v in step.items() if isinstance(v, float) and not math.isfinite(v)})
        return told


def trial(
    path: Path,
    data: str,
    *,
    arch: str | None = None,
    sizes: Sequence[float] = _SIZES,
    draws: int = 10,
    tolerance: float = 0.01,
    proven: bool = True,
    limit: int = 512,
    trust_code: bool = False,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Trial:
    """How much noise a checkpoint takes, on held-out examples of `data`. Raises `WeightspaceError`."""
    if not 0 < tolerance < math.inf:
        raise WeightspaceError(f"tolerance must be positive, got {tolerance}")
    _, net, _, _ = opened(path, arch, trust_code)
    task = splits(data, limit, seed)[1]

    def tell(done: int, total: int) -> None:
        progress("shaking the weights", done, total)

    found = stability(net, task, sizes, draws, seed=seed, proven=proven, progress=tell)
    progress("measuring the width of the minimum", 0, 0)
    wide = width(net, task, tolerance, draws=_WIDTH_DRAWS, seed=seed)
    return Trial(path.name, len(task), draws, wide, tolerance, found)
