"""What `weightspace perturb` does: change every layer by a share of its norm, and write the network."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from weightspace.checkpoint import writer
from weightspace.checkpoint.architecture import Stored
from weightspace.commands.workspace import Score, opened, picked, scored, splits
from weightspace.trust.expected_displacement import displacement
from weightspace.trust.perturbation import movable, perturb
from weightspace.trust.relative import relative_trust

__all__ = ["Perturbed", "perturbed"]


@dataclass(frozen=True)
class Perturbed:
    """A network that was changed: `model` is its relative trust; with data, the outputs' relative displacement too.

    `expected`: for a change of these sizes in no particular direction. `scores`: before and after.
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


def perturbed(
    path: Path,
    out: Path,
    *,
    data: str | None = None,
    arch: str | None = None,
    relative: float | None = None,
    kind: str = "noise",
    bits: int | None = None,
    share: float | None = None,
    limit: int = 2048,
    force: bool = False,
    trust_code: bool = False,
    seed: int = 0,
) -> Perturbed:
    """`perturb` a checkpoint and write it in the names and dtypes of its file. Raises `WeightspaceError`."""
    template, net, source, metadata = opened(path, arch, trust_code)
    task = splits(data, limit, seed)[1] if data is not None else None
    other = perturb(net, relative, seed=seed, kind=kind, bits=bits, share=share)
    names = movable(net)
    measured = expected = scores = None
    if task is not None:
        before, after = (task.outputs(n).double() for n in (net, other))
        measured = float((after - before).norm() / before.norm())
        expected = displacement(net, task, other - net, seed=seed, names=names).relative
        before_and_after = scored(task, net, other)
        scores = (before_and_after[0], before_and_after[1]) if before_and_after else None
    stored = Stored(source, template, partial(picked, other.tensors))
    writer.save(stored, out, force=force, metadata={**metadata, "weightspace": f"perturbed by {kind}"})
    change = (other - net).norms()
    sizes = net.weights.norms()
    largest = max((change[n] / sizes[n] for n in names), default=0.0)
    model = relative_trust(net, other)
    return Perturbed(path.name, str(out), kind, len(names), largest, model, measured, expected, scores)
