"""`weightspace merge`: write the mean of checkpoints, aligned first, and compare it with other averages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weightspace.commands.scores import Score, scored
from weightspace.commands.workspace import Workspace, file_names
from weightspace.merging.folders.card import About
from weightspace.merging.folders.folder import Carried, carried
from weightspace.net.average import average
from weightspace.net.net import Net
from weightspace.path.divergence import Divergence, is_labelled
from weightspace.symmetry.align.repair import has_statistics, reset_statistics
from weightspace.symmetry.symmetry import mean
from weightspace.task.classification import classifies
from weightspace.task.task import Task

__all__ = ["Merged", "merge", "scores_of", "unlabelled"]


@dataclass(frozen=True)
class Merged:
    """The aligned mean of networks, and the scores of each, of their plain mean and of their ensemble.

    `narrowed`: of the mean of networks of several widths, brought back to a smaller one.
    """

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
    narrowed: Score | None = None

    def scores(self) -> list[Score]:
        """Scores of the single networks, both means and the ensemble; an empty list without data."""
        return [*self.singles, *(s for s in (self.naive, self.aligned, self.narrowed, self.ensemble) if s is not None)]

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def merge(space: Workspace, paths: Sequence[Path], out: Path) -> Merged:
    """Align checkpoints, average them, and write the mean in the names, dtypes and metadata of the first.

    `out` without an ending is a folder, which gets what a Hugging Face folder needs to be loaded.
    """
    beside = Carried({}, ())
    if out.suffix != ".safetensors":
        beside = carried(paths, about=About({"method": "mean modulo symmetry"}))
    file, settings = space.open_file(paths[0]), space.settings
    first = file.net
    nets = [first, *(space.load(path) for path in paths[1:])]
    settings.progress(f"aligning {len(nets)} networks and averaging them", 0, 0)
    merged = mean(nets, space.group, data=space.align_on, seed=settings.seed)
    names = file_names(*paths)
    scores = scores_of(space, names, nets, merged, nets)
    settings.progress(f"writing {out.name}", 0, 0)
    if beside.files and not out.is_dir():
        out.mkdir()
    file.save(merged, out, f"mean of {len(nets)} networks modulo symmetry")
    beside.write(out, settings.force)
    return Merged(
        names=names,
        out=str(out),
        group=str(space.group),
        examples=len(space.measure_on) if space.measure_on else 0,
        statistics_reset=bool(space.align_on) and has_statistics(first),
        notes=[
            *space.group.notes,
            *beside.notes,
            *_stale(first, space.align_on),
            *unlabelled(space, nets, merged, nets),
        ],
        **scores,
    )


def scores_of(space: Workspace, names: list[str], nets: list[Net], merged: Net, plain: list[Net]) -> dict[str, Any]:
    """The scores of networks, of their mean, and of the plain average of `plain`, which are of one architecture."""
    task = space.measure_on
    if task is None or space.align_on is None or any(y is None for _, y in task.batches()):
        return {"singles": [], "naive": None, "aligned": None, "ensemble": None}
    singles, progress = [], space.settings.progress
    for k, (name, net) in enumerate(zip(names, nets, strict=True)):
        progress("measuring", k, len(nets) + 2)
        singles += scored(task, net, name=name)
    progress("measuring", len(nets), len(nets) + 2)
    naive, *_ = scored(task, reset_statistics(average(plain), space.align_on), name="mean as stored")
    progress("measuring", len(nets) + 1, len(nets) + 2)
    aligned, *_ = scored(task, merged, name="mean after alignment and repair")
    return {"singles": singles, "naive": naive, "aligned": aligned, "ensemble": _ensemble(nets, task)}


def unlabelled(space: Workspace, nets: list[Net], merged: Net, plain: list[Net]) -> list[str]:
    """What is measured in place of losses where the data have no labels."""
    if space.measure_on is None or space.align_on is None or is_labelled(space.measure_on):
        return []
    look = Divergence(space.measure_on, nets)
    with torch.no_grad():
        stored, aligned = (float(look(net)) for net in (reset_statistics(average(plain), space.align_on), merged))
    return [
        "the data have no labels, so no loss was measured; the divergence of the outputs from the mean outputs of the "
        f"networks is {stored:.4g} for the mean as stored and {aligned:.4g} after alignment"
    ]


def _stale(net: Net, data: Task | None) -> list[str]:
    if data is not None or not has_statistics(net):
        return []
    return ["the BatchNorm statistics of the mean are averages and fit badly; re-estimate them with --data"]


def _ensemble(nets: Sequence[Net], task: Task) -> Score | None:
    """The score of the averaged predictions: of probabilities where labels are classes, else of outputs."""
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
