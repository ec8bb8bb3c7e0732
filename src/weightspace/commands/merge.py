"""What `weightspace merge` does: write the mean of checkpoints modulo the group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weightspace.checkpoint import architecture, writer
from weightspace.checkpoint.architecture import Stored
from weightspace.commands.workspace import Score, Workspace, labels, scored
from weightspace.net.average import average
from weightspace.net.net import Net
from weightspace.symmetry.align.repair import has_statistics, reset_statistics
from weightspace.symmetry.symmetry import mean
from weightspace.task.classification import classifies
from weightspace.task.task import Task

__all__ = ["Merged", "merge"]


@dataclass(frozen=True)
class Merged:
    """The mean of networks modulo the group, and what else one could have done with them."""

    names: list[str]
    out: str
    group: str
    singles: list[Score]
    naive: Score | None
    aligned: Score | None
    ensemble: Score | None
    examples: int
    statistics_reset: bool
    notes: list[str]

    def scores(self) -> list[Score]:
        """Single networks, their mean as stored and after alignment, and the ensemble; nothing without data."""
        return [*self.singles, *(s for s in (self.naive, self.aligned, self.ensemble) if s is not None)]

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def merge(space: Workspace, paths: Sequence[Path], out: Path, *, force: bool = False) -> Merged:
    """Write the mean of checkpoints modulo the group, in the names, dtypes and metadata of the first."""
    first, source, metadata = architecture.load(space.template, paths[0], space.trust_code)
    nets = [first, *(space.load(path) for path in paths[1:])]
    space.progress(f"aligning {len(nets)} networks and averaging them", 0, 0)
    merged = mean(nets, space.group, data=space.align_on, seed=space.seed)
    names = labels(paths)
    scores = _merge_scores(space, names, nets, merged)
    space.progress(f"writing {out.name}", 0, 0)
    tensors = merged.tensors
    stored = Stored(source, space.template, lambda name, tensor: tensors[name].to(tensor.dtype))
    note = {"weightspace": f"mean of {len(nets)} networks modulo symmetry"}
    writer.save(stored, out, force=force, metadata={**metadata, **note})
    return Merged(
        names=names,
        out=str(out),
        group=str(space.group),
        examples=len(space.measure_on) if space.measure_on else 0,
        statistics_reset=bool(space.align_on) and has_statistics(first),
        notes=[*space.group.notes, *_stale(first, space.align_on)],
        **scores,
    )


def _merge_scores(space: Workspace, names: list[str], nets: list[Net], merged: Net) -> dict[str, Any]:
    task = space.measure_on
    if task is None or space.align_on is None or any(y is None for _, y in task.batches()):
        return {"singles": [], "naive": None, "aligned": None, "ensemble": None}
    singles = []
    for k, (name, net) in enumerate(zip(names, nets, strict=True)):
        space.progress("measuring", k, len(nets) + 2)
        singles += scored(task, net, name=name)
    space.progress("measuring", len(nets), len(nets) + 2)
    naive, *_ = scored(task, reset_statistics(average(nets), space.align_on), name="mean as stored")
    space.progress("measuring", len(nets) + 1, len(nets) + 2)
    aligned, *_ = scored(task, merged, name="mean after alignment and repair")
    return {"singles": singles, "naive": naive, "aligned": aligned, "ensemble": _ensemble(nets, task)}


def _stale(net: Net, data: Task | None) -> list[str]:
    stale = data is None and has_statistics(net)
    return (
        ["BatchNorm statistics of the mean are averages and fit badly; re-estimate them with --data"] if stale else []
    )


def _ensemble(nets: Sequence[Net], task: Task) -> Score | None:
    """The average of predictions: of probabilities where labels name classes, else of outputs."""
    labels = [y for _, y in task.batches()]
    if any(y is None for y in labels) or not isinstance(task.metric, str):
        return None
    outputs = torch.stack([task.outputs(net).float() for net in nets])
    if task.metric == "cross-entropy":
        outputs = outputs.log_softmax(-1).logsumexp(0)
    else:
        outputs = outputs.mean(0)
    predicted = Task(outputs, torch.cat([y for y in labels if y is not None]), metric=task.metric)
    name = f"ensemble of {'predictions' if classifies(task) else 'outputs'}"
    return scored(predicted, Net.of(nn.Identity()), name=name)[0]
