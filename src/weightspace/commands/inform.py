"""`weightspace inform`: the information that the weights hold about their data, in nats."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from weightspace.checkpoint.architecture import ArchitectureError
from weightspace.codes import sweep, weight_information
from weightspace.codes.structure_functions import StructureFunction
from weightspace.codes.sweep import structure_function
from weightspace.codes.weight_information import Information, information
from weightspace.commands.data import labelled, limited, train_and_test
from weightspace.commands.progress import duration, seconds
from weightspace.commands.scores import scored
from weightspace.commands.settings import Settings
from weightspace.jobs.progress import Progress
from weightspace.net.net import Net
from weightspace.task.classification import classifies
from weightspace.task.task import Task

__all__ = ["Informed", "inform"]

METHODS = ("local", "variational", "sgld")


@dataclass(frozen=True)
class Informed:
    """Information in the weights of a checkpoint about `examples` examples, by one or more methods; all in nats.

    `labels`: N times the entropy of the classes, the code length of the labels without the inputs; `loss`: the summed
    loss of the network. `structure`: the structure function of the task, where it was asked for.
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
        """The method with the shortest code, E L + beta KL; None for sgld alone, which gives no code."""
        return min((i for i in self.found if i.method != "sgld"), key=lambda i: i.length, default=None)

    def remarks(self) -> list[str]:
        """The sentences below the table."""
        said = [
            "information: KL divergence between the posterior over weights and the prior, in nats. local: from the "
            "curvature at the network; variational: from a Gaussian trained on the code length; sgld: the learning "
            "coefficient times log N, estimated by SGLD chains, without a prior."
        ]
        best = self.shortest
        if best is not None and self.labels:
            share = best.length / self.labels
            said.append(
                f"Weights and remaining loss take {best.length:,.0f} nats ({best.method}); the labels alone take "
                f"{self.labels:,.0f}. "
                + (f"The network saves {1 - share:.0%} of that." if share < 1 else
                   "Nothing is saved: the code of the weights is longer than that of the labels.")
            )  # fmt: skip
        said += [f"{i.method}: {note}." for i in self.found for note in i.notes]
        return [*said, *(f"structure: {note}." for note in (self.structure.notes if self.structure else ()))]

    def data(self) -> dict[str, Any]:
        """As plain data."""
        told = {k: v for k, v in vars(self).items() if k not in ("found", "structure")}
        curve = self.structure.data() if self.structure else None
        return {**told, "found": [i.data() for i in self.found], "structure": curve}


def inform(
    path: Path,
    data: str,
    *,
    method: str = "local",
    beta: float = 1.0,
    anchor: Path | None = None,
    curve: bool = False,
    rank: int | None = None,
    limit: int = 1000,
    settings: Settings,
) -> Informed:
    """`information` in a checkpoint about the training examples of `data`; the cost is told before it runs.

    `anchor`: a checkpoint from before training, the mean of the prior. `rank`: of the local method. `curve`: the
    structure function of the task as well. Raises `WeightspaceError`.
    """
    if method not in (*METHODS, "all"):
        raise ArchitectureError(f"--method {method}: choose {', '.join(METHODS)} or all")
    file, seed, progress = settings.open(path), settings.seed, settings.progress
    net = file.net
    start = file.like(anchor) if anchor else None
    task = limited(labelled(train_and_test(data)[0], data), limit, seed)
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
            found.append(
                information(
                    net,
                    task,
                    cast(weight_information.Method, name),
                    seed=seed,
                    progress=partial(progress, what),
                    **options,
                    **how,
                )
            )
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
    """N times the entropy of the classes, in nats; None where labels are not classes."""
    if not classifies(task):
        return None
    y = task.labels()
    y = y if y.dim() == 1 else y.argmax(-1)
    share = y[y >= 0].bincount().double() / (y >= 0).sum()
    return float(-(share * share.clamp_min(1e-300).log()).sum() * (y >= 0).sum())
