"""What `weightspace inform` measures: how many nats the weights hold about their data."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from weightspace.checkpoint import architecture
from weightspace.checkpoint.architecture import ArchitectureError
from weightspace.codes import sweep, weight_information
from weightspace.codes.structure_functions import StructureFunction
from weightspace.codes.sweep import structure_function
from weightspace.codes.weight_information import Information, information
from weightspace.commands.progress import Progress, duration, seconds, silent
from weightspace.commands.workspace import labelled, limited, opened, scored, sources
from weightspace.net.net import Net
from weightspace.task.classification import classifies
from weightspace.task.task import Task

__all__ = ["Informed", "informed"]

METHODS = ("local", "variational", "sgld")


# ------------------------------------------------------------------ inform


@dataclass(frozen=True)
class Informed:
    """What the weights of a checkpoint hold about `examples` examples, by one or more methods; all in nats.

    `labels`: what it takes to write the labels down without the inputs, N times the entropy of the classes; `loss`: the
    network's own, summed. `structure`: of the task with networks of this architecture, where it was asked for.
    """

    name: str
    data_name: str
    weights: int
    examples: int
    loss: float
    right: float | None
    labels: float | None
    found: tuple[Information, ...]
    structure: StructureFunction | None = None

    @property
    def shortest(self) -> Information | None:
        """The code with the least E L + beta KL, where one was found."""
        return min((i for i in self.found if i.method != "sgld"), key=lambda i: i.length, default=None)

    def remarks(self) -> list[str]:
        """The sentences below the table."""
        said = [
            "information: KL between the weights that the task allows and what was known before, in nats. local: from "
            "the curvature at the network; variational: from the noise that its weights bear; sgld: from the loss at "
            "the temperature of the data, the learning coefficient times log N, without a prior."
        ]
        best = self.shortest
        if best is not None and self.labels:
            share = best.length / self.labels
            said.append(
                f"Network and what it leaves open take {best.length:,.0f} nats ({best.method}); the labels alone take "
                f"{self.labels:,.0f}. "
                + (f"The network saves {1 - share:.0%} of that." if share < 1 else
                   "Nothing is saved: this code of the network costs more than the labels that it explains.")
            )  # fmt: skip
        return [*said, *(f"{i.method}: {note}." for i in self.found for note in i.notes)]

    def data(self) -> dict[str, Any]:
        """As plain data."""
        told = {k: v for k, v in vars(self).items() if k not in ("found", "structure")}
        curve = self.structure.data() if self.structure else None
        return {**told, "found": [i.data() for i in self.found], "structure": curve}


def informed(
    path: Path,
    data: str,
    *,
    method: str = "local",
    arch: str | None = None,
    beta: float = 1.0,
    anchor: Path | None = None,
    curve: bool = False,
    rank: int | None = None,
    limit: int = 1000,
    trust_code: bool = False,
    seed: int = 0,
    progress: Progress = silent,
) -> Informed:
    """`information` in a checkpoint about the training examples of `data`; what it takes is told before it runs.

    `anchor`: the checkpoint from before training. `rank`: of the local method. `curve`: the structure function of the
    task as well. Raises `WeightspaceError`.
    """
    if method not in (*METHODS, "all"):
        raise ArchitectureError(f"--method {method}: choose {', '.join(METHODS)} or all")
    template, net, *_ = opened(path, arch, trust_code)
    start = architecture.load(template, anchor, trust_code)[0] if anchor else None
    task = limited(labelled(sources(data)[0], data), limit, seed)
    score = scored(task, net)
    one = seconds(net, task)
    found = []
    for name in METHODS if method == "all" else (method,):
        options: dict[str, Any] = {} if name == "sgld" else {"beta": beta, "anchor": start}
        how: dict[str, Any] = {"blocks": False, "rank": rank} if name == "local" else {}
        cost = weight_information.cost(net, task, name, **how)
        what = f"{name}: {cost}, about {duration(one * cost.products)}"
        progress(what, 0, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", weight_information.Unconverged)  # it is among the notes
            found.append(information(net, task, name, seed=seed, progress=partial(progress, what), **options, **how))
    swept = _swept(net, task, start, seed, one, progress) if curve else None
    total = score[0].loss * found[0].examples
    return Informed(
        path.name, data, net.weights.numel, found[0].examples, total, score[0].accuracy, _entropy(task), tuple(found),
        swept,
    )  # fmt: skip


def _swept(net: Net, task: Task, start: Net | None, seed: int, one: float, progress: Progress) -> StructureFunction:
    cost = sweep.cost(net, task, seeds=(seed,))
    passes = cost.codes * cost.steps * min(1.0, cost.batch / len(task))
    what = f"structure function: {cost}, about {duration(2 * one * passes)}"
    progress(what, 0, 0)
    return structure_function(net, task, seeds=(seed,), anchor=start, progress=partial(progress, what))


def _entropy(task: Task) -> float | None:
    """N H(classes) in nats, where labels name classes."""
    if not classifies(task):
        return None
    y = task.labels()
    y = y if y.dim() == 1 else y.argmax(-1)
    share = y[y >= 0].bincount().double() / (y >= 0).sum()
    return float(-(share * share.clamp_min(1e-300).log()).sum() * (y >= 0).sum())
