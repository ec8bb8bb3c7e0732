"""Members of a set of networks, opened one at a time, and what each answers to examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from weightspace.atlas.halving import Losses
from weightspace.net.errors import WeightspaceError
from weightspace.net.inputs import leaves
from weightspace.net.net import Net, checked
from weightspace.task.classification import classifies
from weightspace.task.examples import Joined, Loader, TaskError
from weightspace.task.losses import IGNORED
from weightspace.task.task import Task

__all__ = ["Member", "Members", "Question", "held", "opened", "reason", "single"]

Member: TypeAlias = Net | Callable[[], Net]
Members: TypeAlias = Mapping[str, Member]
Wanted: TypeAlias = Literal["loss", "accuracy", "perplexity"]
_HALF = (torch.float16, torch.bfloat16)


def opened(member: Member) -> Net:
    """The network of a member: itself, or what its function returns."""
    return checked(member if isinstance(member, Net) else member())


def single(net: Net) -> Net:
    """The network in float32 where it is in half precision, in which small steps are lost and sums overflow."""
    buffers = (*net.weights.buffers, *net.state.buffers)
    return net.to(torch.float32) if any(flat.dtype in _HALF for flat in buffers) else net


def reason(error: Exception) -> str:
    """Why a member is left out: the message of an error."""
    return str(error) or type(error).__name__


def held(task: Task) -> Task:
    """The task, its examples in memory where they come from loaders or several sources, which have one order alone."""
    return task.mapped(lambda x: x) if isinstance(task._source, Loader | Joined) else task


@dataclass(frozen=True)
class Question:
    """What members are asked: the loss of every example of a task, or whether it is classified wrong.

    A function of (member, start, stop), for the examples between: their `Losses`, or why the member has none.
    """

    task: Task
    by: Wanted

    def check(self) -> None:
        """Raise `TaskError` where the task has no labels, or not those that are asked for."""
        _, y = next(self.task.batches())
        if y is None:
            raise TaskError("the data have no labels, so that no member can be measured on them; give some with labels")
        if self.by == "accuracy" and not classifies(self.task):
            raise TaskError("the labels are not classes, so that there is no accuracy; ask for the loss")
        if self.by == "perplexity" and (y.is_floating_point() or self.task.metric != "cross-entropy"):
            raise TaskError("perplexity is that of tokens under cross-entropy; give such a task, or ask for the loss")
        if self.task.aggregate != "mean":
            raise TaskError(f"members are ranked by mean loss, the task has the aggregate {self.task.aggregate!r}")

    def __call__(self, member: Member, start: int, stop: int) -> Losses | str:
        """The losses of these examples; or, where the member cannot be opened or read them, why."""
        try:
            return self.of(opened(member), start, stop)
        except (WeightspaceError, OSError) as error:
            return reason(error)

    @torch.no_grad()
    def of(self, net: Net, start: int, stop: int) -> Losses:
        """The losses of these examples. Raises `WeightspaceError` for a network that cannot read them."""
        sums, counts = [], []
        some = self.task._with(self.task._source.pick(torch.arange(start, stop)))
        for x, y in some.batches(net):
            assert y is not None
            f, n = self.task.forward(net, x), len(leaves(x)[0])
            d = self.task.wrong(f, y) if self.by == "accuracy" else self.task._measured(f, y)[0]
            count = _labels(y, n, len(d) if d.dim() else -1)
            sums.append(_added(d.double().cpu(), count))
            counts.append(count.double())
        return Losses(torch.cat(sums), torch.cat(counts), stop - start)


def _labels(y: Tensor, n: int, found: int) -> Tensor:
    """How many labels every example has. Raises `TaskError` where the losses are not one for each."""
    each = torch.ones(n, dtype=torch.long)
    if found != n and not y.is_floating_point():
        each = (y.cpu() != IGNORED).view(n, -1).sum(1)
    if int(each.sum()) != found:
        raise TaskError("the loss gives batch means, not one number an example; use reduction='none'")
    return each


def _added(d: Tensor, counts: Tensor) -> Tensor:
    """The sum of the losses of every example."""
    owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return torch.zeros(len(counts), dtype=d.dtype).index_add_(0, owner, d.flatten())
