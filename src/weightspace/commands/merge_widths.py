"""`weightspace merge --arch-b`: the mean of checkpoints of several widths, in the widest or in one of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from weightspace.checkpoint.architecture import ArchitectureError
from weightspace.commands.merge import Merged, scores_of, unlabelled
from weightspace.commands.scores import scored
from weightspace.commands.settings import Opened, Settings
from weightspace.commands.workspace import Workspace, file_names
from weightspace.flows.narrowing import narrow
from weightspace.net.net import Net
from weightspace.symmetry.align.repair import has_statistics
from weightspace.symmetry.symmetry import mean
from weightspace.symmetry.widths import widen
from weightspace.task.task import Task

__all__ = ["merge_widths"]


def merge_widths(
    paths: Sequence[Path], others: Sequence[str], out: Path, *, width: str, data: str | None, limit: int,
    settings: Settings,
) -> Merged:  # fmt: skip
    """Widen checkpoints to the widest of them, average them modulo symmetry, and write the mean. Raises
    `WeightspaceError`.

    `others`: the architectures of the checkpoints after the first, one for each or one for all. `width`: "largest",
    "smallest", or one of the checkpoints, to whose architecture the mean is narrowed (see `narrow`). The file has the
    names, dtypes and metadata of the checkpoint whose width it has.
    """
    if data is None:
        raise ArchitectureError("networks of several widths are aligned by what examples do in them; give --data")
    if len(others) not in (1, len(paths) - 1):
        raise ArchitectureError(
            f"{len(others)} times --arch-b for {len(paths) - 1} checkpoints after the first; give one for each or one "
            "for all"
        )
    for path in paths:
        if not path.exists():
            raise ArchitectureError(f"{path}: no such file or folder; check the path")
    given = [settings, *(replace(settings, arch=arch) for arch in [*others] * (len(paths) - 1))][: len(paths)]
    files = [one.open(path) for one, path in zip(given, paths, strict=True)]
    sizes = [file.net.weights.numel for file in files]
    widest, kept = sizes.index(max(sizes)), _kept(width, paths, sizes)
    space = Workspace.open([paths[widest]], given[widest], data, limit=limit)
    assert space.align_on is not None
    return _merged(space, paths, files, widest, kept, out)


def _kept(width: str, paths: Sequence[Path], sizes: list[int]) -> int:
    """The number of the checkpoint whose width the mean gets. Raises `ArchitectureError`."""
    if width in ("largest", "smallest"):
        return sizes.index(max(sizes) if width == "largest" else min(sizes))
    if Path(width) not in paths:
        raise ArchitectureError(f"--width {width}: choose largest, smallest, or one of the checkpoints")
    return [*paths].index(Path(width))


def _merged(
    space: Workspace, paths: Sequence[Path], files: Sequence[Opened], widest: int, kept: int, out: Path
) -> Merged:
    names, nets, on = file_names(*paths), [file.net for file in files], space.align_on
    assert on is not None
    tell, seed = space.settings.progress, space.settings.seed
    tell(f"widening {len(nets)} networks to {names[widest]}, aligning and averaging them", 0, 0)
    merged = mean(nets, space.group, data=on, seed=seed)
    wide = [_widened(net, nets[widest], on, seed) for net in nets]
    found, notes = scores_of(space, names, nets, merged, wide), unlabelled(space, nets, merged, wide)
    last = merged
    if nets[kept].fingerprint != nets[widest].fingerprint:
        tell(f"narrowing the mean to {names[kept]}", 0, 0)
        last = narrow(merged, nets[kept], on, seed=seed)
        notes.append(f"the mean was narrowed to the width of {names[kept]} and fitted to its own outputs")
        if found["aligned"] is not None and space.measure_on is not None:
            found["narrowed"] = scored(space.measure_on, last, name=f"mean, narrowed to {names[kept]}")[0]
    tell(f"writing {out.name}", 0, 0)
    files[kept].save(last, out, f"mean of {len(nets)} networks of several widths modulo symmetry")
    return Merged(
        names=names,
        out=str(out),
        group=str(space.group),
        examples=len(space.measure_on) if space.measure_on else 0,
        statistics_reset=has_statistics(merged),
        notes=[*space.group.notes, *notes],
        **found,
    )


def _widened(net: Net, wide: Net, data: Task, seed: int) -> Net:
    same = net.fingerprint == wide.fingerprint
    return net if same else widen(net, wide, data.example(2), seed=seed)
