"""`weightspace extract`: write the low-rank adapter that makes a fine-tune of its base."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightspace.checkpoint.reader import read
from weightspace.commands.settings import Settings, must_exist
from weightspace.merging.adapters.extracted import extract

__all__ = ["Extracted", "extract_adapter"]


@dataclass(frozen=True)
class Extracted:
    """An adapter that was taken out of a fine-tune.

    `errors[layer]`: |difference - B A| / |difference|. `ranks`: the usual one, and those of layers with another.
    `weights`: numbers of the adapter, and of the fine-tune. `left`: what an adapter cannot hold.
    """

    names: tuple[str, str]
    out: str
    rank: int
    ranks: dict[str, int]
    errors: dict[str, float]
    weights: tuple[int, int]
    left: list[str]
    notes: list[str]

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def extract_adapter(
    path: Path, base: Path, out: Path, *, rank: int | None, share: float | None, settings: Settings
) -> Extracted:
    """Extract an adapter of a rank, or one that keeps a share of every difference. Raises `WeightspaceError`."""
    must_exist(path, base)
    found = extract(path, base, rank, share, progress=settings.progress)
    found.save(out, force=settings.force)
    whole = sum(shape.numel() for shape in read(path).shapes.values())
    return Extracted(
        (path.name, base.name), str(out), found.config["r"], dict(found.config["rank_pattern"]), dict(found.errors),
        (sum(tensor.numel() for tensor in found.tensors.values()), whole), [*found.left], [*found.notes],
    )  # fmt: skip
