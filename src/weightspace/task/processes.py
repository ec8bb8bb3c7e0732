"""Tasks in several processes: each process holds a part of the examples, and sums are added up over all of them.

The processes are those of `torch.distributed`, such as torchrun starts. A sharded task is asked for: nothing else in
this library looks at whether processes were started.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from weightspace.linear.operator import Operator
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.task.examples import TaskError
from weightspace.task.goal import Goal, differentiated
from weightspace.task.measures import TERMS
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Sharded", "sharded"]


class _Part(Task):
    """The examples of one process; class weights are divided by their sum over all examples."""

    whole: Task

    def share(self, y: Tensor | None) -> float:
        """That of the whole task."""
        return self.whole.share(y)


class _Summed(_Part):
    """The examples of one process, with the loss of the examples of all."""

    group: Any

    def _finish(self, total: Tensor, count: int) -> Tensor:
        mine = torch.stack([total.detach().double(), torch.tensor(count, dtype=torch.float64, device=total.device)])
        found = mine.clone()
        dist.all_reduce(found, group=self.group)
        return super()._finish(total + (found - mine)[0].to(total), int(found[1]))


@public
class Sharded(Goal):
    """A task whose examples are shared out among processes; made by `sharded`.

    `sharded(net)` is the loss over all examples, the same number in every process. It is a goal: `gradient`,
    `value_and_gradient` and `flow` take it. `operator(make, net)` is a curvature operator of all examples. All
    processes must call the same things in the same order, with the same network. `part`: the examples of this process,
    `rank` of `size`.
    """

    def __init__(self, task: Task, group: Any = None) -> None:
        self.rank, self.size, self.group = dist.get_rank(group), dist.get_world_size(group), group
        n = len(task)
        if n < self.size:
            raise TaskError(f"{n} examples for {self.size} processes; give each at least one, or start fewer")
        if task.aggregate not in TERMS:
            raise TaskError(f"the aggregate {task.aggregate!r} is not a sum over examples, and cannot be shared out")
        rows = torch.arange(n * self.rank // self.size, n * (self.rank + 1) // self.size)
        self.part: Task = _as(_Part, task._with(task._source.pick(rows)), whole=task)
        self._all = _as(_Summed, self.part, whole=task, group=group)

    def __call__(self, net: Net) -> Float[Tensor, ""]:
        """The loss over the examples of all processes, without gradient (see `gradient`)."""
        with torch.no_grad():
            return self._all(checked(net))

    def value_and_gradient(self, net: Net, step: int = 0) -> tuple[float, Weights]:
        """The loss over all examples and its gradient in the weights."""
        value, slope = differentiated(self._all, net)
        return value, slope.map(self._added)

    def operator(self, make: Callable[[Net, Task], Operator], net: Net) -> Operator:
        """The sum over all processes of `make(net, task)`, such as `gauss_newton` or `hessian` of their examples.

        `make` must give a sum over examples, and nothing else that depends on them; labels that it draws at random are
        drawn by the number of an example in its process. Raises `TaskError` for an operator that is not symmetric, such
        as a Jacobian, whose rows are those of the examples.
        """
        own = make(checked(net), self.part)
        if not own.symmetric:
            raise TaskError(f"an operator of shape {own.shape} that is not symmetric is no sum over examples")

        def times(v: Tensor) -> Tensor:
            return self._added(own @ v)

        exact = None if own._exact is None else lambda: self._added(own.exact_diagonal())
        return Operator(own.rows, own.columns, times, matmat=times, exact=exact)

    def _added(self, mine: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in float64."""
        total = mine.detach().to(torch.float64 if mine.is_floating_point() else mine.dtype, copy=True)
        dist.all_reduce(total, group=self.group)
        return total.to(mine.dtype)


def _as(kind: type[Task], task: Task, **more: Any) -> Task:
    """A copy of a task as one of another kind."""
    part = copy.copy(task)
    part.__class__ = kind
    vars(part).update(more)
    return part


@public
def sharded(task: Task, group: Any = None) -> Sharded:
    """The task with its examples shared out among the processes of `torch.distributed`, in parts of equal size.

    Every process gives the same task, and reads a part of it; losses, gradients and products of curvature operators are
    sums over all of them. `group`: the processes, by default all. With torchrun:

        torch.distributed.init_process_group("gloo")
        task = ws.task.sharded(ws.Task(x, y))
        loss, slope = task(net), ws.gradient(task, net)
        curvature = task.operator(ws.gauss_newton, net)

    Raises `TaskError` where no processes were started, for fewer examples than processes, and for aggregates that are
    not sums over examples ("linf" and functions).

    >>> import torch.distributed as dist, weightspace as ws
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)     # torchrun does this
    >>> net, task = ws.demo.example()
    >>> bool(abs(ws.task.sharded(task)(net) - task(net)) < 1e-6)
    True
    >>> dist.destroy_process_group()
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise TaskError(
            "no processes to share the examples among; start them with torchrun and call "
            "torch.distributed.init_process_group first"
        )
    return Sharded(task, group)
