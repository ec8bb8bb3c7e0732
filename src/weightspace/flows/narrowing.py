"""A network brought to a narrower architecture: units merged, and then fitted to the outputs that it had.

Knowledge distillation from the wide network (Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network",
2015), from a start that has as much of its function as semi-permutations give (see `symmetry.narrow_toward`).
"""

from __future__ import annotations

import math

import torch

from weightspace.flows.anchors import hold
from weightspace.flows.stepper import flow
from weightspace.metric.metric import Adam
from weightspace.net.errors import WeightspaceError
from weightspace.net.inputs import carried
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.path.divergence import Divergence
from weightspace.symmetry.align.repair import reset_statistics
from weightspace.symmetry.align.widths import narrow_toward
from weightspace.task.task import Task

__all__ = ["narrow"]


@public
def narrow(
    net: Net, to: Net, task: Task, *, steps: int = 500, size: float = 1e-3, batch: int = 64, seed: int = 0
) -> Net:
    """A network of the narrower architecture of `to` with nearly the outputs of `net` on the inputs of a task.

    Of two starts, `net` with units merged (`symmetry.narrow_toward`) and `to` itself, the one of less divergence D(f)
    from the outputs of `net` is taken (see `Divergence`), and brought nearer by `steps` of Adam on `hold(task, net)`:
    KL where outputs are logits, else squares; on `batch` examples, the learning rate `size` falling to zero over the
    second half. The nearest network met is returned, so that a widened one comes back exactly. Labels are not used.
    Running statistics are re-estimated.

    Raises `WeightspaceError` where `net` is no widening of the architecture of `to`.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> wide = ws.widen(net, 2, task.example(2))
    >>> back = ws.narrow(wide, net, task, steps=0)
    >>> back.weights["1.weight"].shape, bool((back - net).norm() < 1e-3)
    (torch.Size([16, 64]), True)
    """
    if steps < 0 or not 0 < size < math.inf:
        raise WeightspaceError(f"{steps} steps of size {size:g}; give steps from 0, and a positive size")
    net, to = checked(net), checked(to)
    divergence = Divergence(task, [net])

    @torch.no_grad()
    def nearest(*nets: Net) -> Net:
        return min((reset_statistics(one, task) for one in nets), key=lambda one: float(divergence(one)))

    start = nearest(narrow_toward(net, to, carried(task.example(2), net), seed), to)
    if not steps:
        return start
    goal = hold(task, net, "kl" if divergence.kind == "softmax" else "squared", batch=batch, seed=seed)
    path = flow(start, goal, Adam(), steps=steps, size=lambda done: size * min(1.0, 2 * (1 - done)), save=steps)
    return nearest(start, path[-1])
