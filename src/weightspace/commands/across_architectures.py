"""`weightspace compare --arch-b`: how far two checkpoints of two architectures are apart, on the same examples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightspace.checkpoint.architecture import ArchitectureError
from weightspace.commands.data import examples, limited
from weightspace.commands.settings import Settings
from weightspace.commands.workspace import file_names
from weightspace.metric.across_architectures import Distances, distances

__all__ = ["Across", "compare_across"]


@dataclass(frozen=True)
class Across:
    """Two networks of any architectures: their names, what they are, and their distances."""

    names: tuple[str, str]
    architectures: tuple[str, str]
    found: Distances

    def rows(self) -> list[tuple[str, str]]:
        """Rows of the table: what, and how much."""
        told = {"l2": "outputs, root mean square", "relative": "outputs, of their size", "kl": "outputs, KL in nats"}
        rows = [(told[name], f"{value:.4g}") for name, value in self.found.outputs.items() if name in told]
        if "disagreement" in self.found.outputs:
            rows.append(("predictions that differ", f"{self.found.outputs['disagreement']:.1%}"))
        rows.append(("mean CKA of the matched layers (the same: 1)", f"{self.found.alike:.3f}"))
        return [
            *rows,
            ("mean Procrustes distance of them (the same: 0, unrelated: to 1.41)", f"{self.found.apart:.3f}"),
        ]

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return {"names": [*self.names], "architectures": [*self.architectures], **self.found.data()}


def compare_across(a: Path, b: Path, arch_b: str, data: str | None, limit: int, settings: Settings) -> Across:
    """The distances of two checkpoints on the examples of `data`, without labels. Raises `WeightspaceError`."""
    if data is None:
        raise ArchitectureError("two architectures are compared by what examples do in them; give --data")
    task = limited(examples(data), limit, settings.seed)
    first, second = settings.open(a).net, replace(settings, arch=arch_b).open(b).net
    settings.progress("comparing outputs and layers", 0, 0)
    kinds = type(first.architecture).__name__, type(second.architecture).__name__
    one, other = file_names(a, b)
    return Across((one, other), kinds, distances(first, second, task))
