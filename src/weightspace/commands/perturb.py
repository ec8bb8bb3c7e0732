"""`weightspace perturb`: change every layer by a share of its norm, and write the network."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from weightspace.commands.data import splits
from weightspace.commands.scores import Score, scored
from weightspace.commands.settings import Settings
from weightspace.trust import perturbation
from weightspace.trust.expected_displacement import displacement
from weightspace.trust.relative import relative_trust

__all__ = ["Perturbed", "perturb"]


@dataclass(frozen=True)
class Perturbed:
    """A perturbed network: size of the change, and what it does to the outputs.

    `largest`: of the relative changes of all tensors; `model`: deep relative trust. With data: `measured`, the relative
    displacement of the outputs, `expected`, the same for random changes of these sizes, and `scores` before and after.
    """

    name: str
    out: str
    kind: str
    tensors: int
    largest: float
    model: float
    measured: float | None
    expected: float | None
    scores: tuple[Score, Score] | None

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def perturb(
    path: Path,
    out: Path,
    *,
    data: str | None = None,
    relative: float | None = None,
    kind: str = "noise",
    bits: int | None = None,
    share: float | None = None,
    limit: int = 2048,
    settings: Settings,
) -> Perturbed:
    """`trust.perturb` a checkpoint and write it in the names and dtypes of its file. Raises `WeightspaceError`."""
    file, seed = settings.open(path), settings.seed
    net = file.net
    task = splits(data, limit, seed)[1] if data is not None else None
    other = perturbation.perturb(net, relative, seed=seed, kind=cast(perturbation.Kind, kind), bits=bits, share=share)
    names = perturbation.movable(net)
    measured = expected = scores = None
    if task is not None:
        before, after = (task.outputs(n).double() for n in (net, other))
        measured = float((after - before).norm() / before.norm())
        expected = displacement(net, task, other - net, seed=seed, names=names).relative
        before_and_after = scored(task, net, other)
        scores = (before_and_after[0], before_and_after[1]) if before_and_after else None
    file.save(other, out, f"perturbed by {kind}")
    change = (other - net).norms()
    sizes = net.weights.norms()
    largest = max((change[n] / sizes[n] for n in names), default=0.0)
    model = relative_trust(net, other)
    return Perturbed(path.name, str(out), kind, len(names), largest, model, measured, expected, scores)
