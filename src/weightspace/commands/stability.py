"""`weightspace stability`: what noise in the weights, or an attack on the inputs, does to the outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightspace.commands.data import splits
from weightspace.commands.settings import Settings
from weightspace.flows.attacks import robust_accuracy
from weightspace.net.errors import WeightspaceError
from weightspace.net.inputs import leaves
from weightspace.task.task import Task
from weightspace.trust import perturbation
from weightspace.trust.perturbation import Stability

__all__ = ["NoiseTest", "stability"]

_SIZES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_WIDTH_DRAWS = 10
_STEPS, _STARTS = 20, 2  # of attacks


@dataclass(frozen=True)
class NoiseTest:
    """`trust.stability` of a checkpoint, and the width of its minimum: the noise that costs `tolerance`.

    `attacked`: (radius, accuracy) under attacks on the inputs, which stay within `span`.
    """

    name: str
    examples: int
    draws: int
    width: float
    tolerance: float
    found: Stability
    attacked: tuple[tuple[float, float], ...] = ()
    span: tuple[float, float] = (0.0, 0.0)

    @property
    def measure(self) -> str:
        """Unit of the tolerance: accuracy, loss or outputs, whichever the data allow."""
        if self.found.accuracy is not None:
            return "of accuracy"
        return "of loss, in bits" if self.found.loss is not None else "of the outputs' size"

    def remarks(self) -> list[str]:
        """The sentences below the table."""
        share = max(self.found.displacement.shares.items(), key=lambda item: item[1], default=("", 0.0))
        said = [
            f"Noise of {self.width:.1%} of every layer's norm costs {self.tolerance:g} {self.measure}.",
            f"Most fragile tensor: {share[0]}, through which {share[1]:.0%} of the effect of small noise comes.",
            "measured: median of the draws. expected: root mean square from the first derivative. model: deep relative "
            "trust, not a bound. proven: upper bounds (certificates), with the activations on these examples and "
            "without.",
        ]
        if self.attacked:
            told = ", ".join(f"{right:.1%} at {radius:g}" for radius, right in self.attacked)
            said.append(
                f"Accuracy under attack, by the largest change of an input number ({_STEPS} gradient steps from "
                f"{_STARTS} starts, inputs within {self.span[0]:.3g} to {self.span[1]:.3g}): {told}. A stronger attack "
                "may find less."
            )
        if self.found.refused:
            said.append(f"No certificate: {self.found.refused}.")
        return said

    def data(self) -> dict[str, Any]:
        """As plain data; what overflowed is null."""
        told = asdict(self)
        for step in told["found"]["steps"]:
            step.update({k: None for k, v in step.items() if isinstance(v, float) and not math.isfinite(v)})
        return told


def stability(
    path: Path,
    data: str,
    *,
    sizes: Sequence[float] = _SIZES,
    draws: int = 10,
    tolerance: float = 0.01,
    proven: bool = True,
    attack: Sequence[float] = (),
    limit: int = 512,
    settings: Settings,
) -> NoiseTest:
    """How much noise in the weights a checkpoint tolerates, on held-out examples of `data`.

    `sizes`: of the noise, relative to the norm of every tensor; `draws`: per size; `proven`: compute certificates.
    `attack`: radii of `robust_accuracy`, in units of the inputs, which stay within the range of the examples. Raises
    `WeightspaceError`.
    """
    if not 0 < tolerance < math.inf:
        raise WeightspaceError(f"--tolerance {tolerance}: give a positive number")
    net, seed, progress = settings.open(path).net, settings.seed, settings.progress
    task = splits(data, limit, seed)[1]
    span = _range(task) if attack else (0.0, 0.0)
    asked = robust_accuracy(task, list(attack), _STEPS, restarts=_STARTS, span=span, seed=seed) if attack else None

    def tell(done: int, total: int) -> None:
        progress("adding noise to the weights", done, total)

    found = perturbation.stability(net, task, sizes, draws, seed=seed, proven=proven, progress=tell)
    progress("measuring the width of the minimum", 0, 0)
    wide = perturbation.width(net, task, tolerance, draws=_WIDTH_DRAWS, seed=seed)
    progress("attacking the inputs", 0, 0)
    right = tuple(zip(attack, asked(net), strict=True)) if asked else ()
    return NoiseTest(path.name, len(task), draws, wide, tolerance, found, right, span)


def _range(task: Task) -> tuple[float, float]:
    """The least and the largest number of the inputs. Raises `WeightspaceError` for tokens."""
    found = [part.aminmax() for x, _ in task.batches() for part in leaves(x) if part.is_floating_point()]
    if not found:
        raise WeightspaceError("--attack moves inputs along gradients, and these are integers (tokens); leave it out")
    low, high = min(float(least) for least, _ in found), max(float(most) for _, most in found)
    if not low < high:
        raise WeightspaceError(f"--attack: all inputs are {low:g}; there is no range to stay in")
    return low, high
