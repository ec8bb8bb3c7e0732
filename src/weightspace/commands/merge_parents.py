"""The networks that `weightspace merge` is given: opened, aligned, brought into one vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from weightspace.atlas.lineage import lineage
from weightspace.checkpoint.architecture import ArchitectureError
from weightspace.checkpoint.reader import read
from weightspace.commands.settings import Settings
from weightspace.commands.workspace import Workspace
from weightspace.merging.adapters.adapted import into_base
from weightspace.merging.folders.configuration import Changes
from weightspace.merging.folders.folder import home_of
from weightspace.merging.folders.vocabulary import in_one_vocabulary
from weightspace.merging.plan import Rules
from weightspace.merging.recipe import Recipe
from weightspace.net.net import Net

__all__ = ["Asked", "Parents", "aligned", "in_common_vocabulary", "tensors_of"]

Aligning = Literal["auto", "never", "always"]


@dataclass(frozen=True)
class Asked:
    """What was asked of a merge besides the parents and the recipe.

    `align`: bring parents near the first, or near the base, modulo the group before they are merged; "auto" does it
    where the architecture is given, for those that the weights do not show to be of one origin with it. `tune`: find
    this option of the method, "weights", or weights by "entropy", on half of the data. `tokenizer`: the common
    vocabulary ("union", "first", "base", or a folder). `rank`: of a merged adapter. `code`: copy the Python files that
    a configuration asks for. `shard`: the most bytes of one file. `data`, `example`, `limit`: as other commands.
    `curves`: measure the loss at other coefficients too, for a report.
    """

    base: Path | None = None
    align: Aligning = "auto"
    tune: str | None = None
    rules: Rules = field(default_factory=Rules)
    tokenizer: str | None = None
    rank: int | None = None
    code: bool = False
    shard: int = 5_000_000_000
    data: str | None = None
    example: str | None = None
    limit: int = 2048
    curves: bool = False


@dataclass(frozen=True)
class Parents:
    """Checkpoints, and the base at the end where there is one; each as tensors under names."""

    paths: Sequence[Path]
    names: list[str]
    tensors: Sequence[Mapping[str, Tensor]]
    low: Sequence[bool]
    base: bool

    @property
    def count(self) -> int:
        """The number of networks that are merged."""
        return len(self.paths) - self.base

    def nets(self, template: Net, settings: Settings) -> Iterator[Net]:
        """The networks, one at a time; an adapter with its base."""
        for path, tensors, low in zip(self.paths, self.tensors, self.low, strict=True):
            yield template.load(tensors) if low else settings.load(template, path).net


def tensors_of(paths: Sequence[Path], low: Sequence[bool], base: Path | None) -> list[Mapping[str, Tensor]]:
    """The tensors of every checkpoint; of an adapter those of the network that it makes of the base."""
    origin = None if base is None else read(base)
    changed = [one and origin is not None for one in low]
    return [into_base(path, origin or {}) if one else read(path) for path, one in zip(paths, changed, strict=True)]


def aligned(parents: Parents, asked: Asked, settings: Settings) -> tuple[Parents, list[str]]:
    """The parents, those that need it aligned to the base or to the first; and the names of these."""
    if asked.align == "never" or (asked.align == "auto" and settings.arch is None):
        return parents, []
    to = parents.count if parents.base else 0
    far = [k for k in range(parents.count) if k != to]
    if any(parents.low) and asked.align == "always":
        raise ArchitectureError("adapters of one base need no aligning; leave --align always out")
    if asked.align == "auto" and far:
        kin = lineage(parents.tensors, parents.names, seed=settings.seed, progress=settings.progress)
        far = [k for k in far if kin.group[k] != kin.group[to] and not parents.low[k]]
    if not far:
        return parents, []
    space = Workspace.open(parents.paths, settings, asked.data, asked.example, limit=asked.limit)
    reference, found = space.load(parents.paths[to]), [*parents.tensors]
    for k in far:
        settings.progress(f"aligning {parents.names[k]}", 0, 0)
        moved = space.group.align(space.load(parents.paths[k]), reference, space.align_on, seed=settings.seed)
        found[k] = moved.tensors
    low = [one or k in far for k, one in enumerate(parents.low)]  # their networks are no longer those of their files
    return replace(parents, tensors=found, low=low), [parents.names[k] for k in far]


def in_common_vocabulary(
    parents: Parents, recipe: Recipe, asked: Asked
) -> tuple[Sequence[Mapping[str, Tensor]], Changes, list[str]]:
    """The parents with embeddings and heads in one vocabulary, where one is asked for."""
    if asked.tokenizer is None:
        return parents.tensors, Changes(dtype=recipe.dtype), []
    if any(parents.low):
        raise ArchitectureError("adapters and aligned networks keep their vocabulary; leave --tokenizer out")
    homes = [home_of(path) for path in parents.paths]
    for path, home in zip(parents.paths, homes, strict=True):
        if home is None:
            raise ArchitectureError(f"{path} is no Hugging Face folder, so it has no tokenizer; leave --tokenizer out")
    base = parents.count if parents.base else None
    folders = [home for home in homes if home is not None]
    views, rows, notes = in_one_vocabulary(parents.tensors, folders, asked.tokenizer, base=base)
    return [*views], Changes(rows=rows, dtype=recipe.dtype), notes
