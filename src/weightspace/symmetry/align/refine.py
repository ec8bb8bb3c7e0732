"""Refining a match by descent: the continuous moves that make the line between two networks flat, without labels.

Permutations and signs stay as they were matched. Every positive scale of the group is multiplied by exp(s), every
matrix by a rotation or an exponential; these parameters descend the divergence of the line from a to g b (see
`weightspace.path.divergence`)

    E over t in [0, 1] and x of KL(softmax m_t(x) | softmax f(lerp(a, g b, t), x)),  m_t = (1 - t) f_a + t f_b

by Adam, one random t and one batch a step, so that the result is an element of the group whatever the steps did.
Learned moves toward one shared line: Theus et al., Generalized linear mode connectivity for transformers, 2025.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.net.average import lifted
from weightspace.net.differentiable import called
from weightspace.net.errors import WeightspaceError
from weightspace.net.inputs import arguments, carried, each, leaves, shape
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.state import settled
from weightspace.path.divergence import Look
from weightspace.symmetry.align.moves import Moves, moves_of
from weightspace.symmetry.align.repair import tracking
from weightspace.symmetry.align.score import Score
from weightspace.symmetry.element import Element
from weightspace.symmetry.fold import fold
from weightspace.symmetry.group import Group
from weightspace.task.losses import blamed
from weightspace.task.task import Task

__all__ = ["Refinement", "refine"]


_EXAMPLES = 8192
_ROOM = 1 << 24  # numbers of outputs of one network that are kept
_WARM = 0.1


@public
@dataclass(frozen=True)
class Refinement:
    """A refined match: the element to apply, what it was measured to be worth, and how it came about.

    `before`, `after`: the measured height of the line with the element at the start and with the refined one; `kept`
    says whether the refined one is lower, and `element` then is that one. `losses`: the loss that was descended, of
    every step. `examples`: how many were seen, with repetition. `seconds`: of wall time.
    """

    element: Element
    before: float
    after: float
    losses: tuple[float, ...] = field(default=(), repr=False)
    examples: int = 0
    seconds: float = 0.0

    @property
    def kept(self) -> bool:
        """Whether the refined element is the lower one."""
        return self.after < self.before


@public
def refine(
    group: Group,
    net: Net,
    to: Net,
    start: Element,
    task: Task,
    *,
    steps: int = 300,
    lr: float = 0.03,
    batch: int = 128,
    seed: int = 0,
    labels: bool = False,
    score: Callable[[Net], float] | None = None,
) -> Refinement:
    """The match `start` of `net` to another with its scales refined by descent, where that measures lower (see above).

    Takes `steps` of Adam at the learning rate `lr`, which rises for a tenth of them and falls as a cosine, each on
    `batch` examples. Labels are not looked at, unless `labels` asks for the loss of the task in place of the
    divergence. Norms that keep running statistics use those of the batch; all else is in evaluation mode. The result is
    kept only if `score`, by default the divergence on the line, measures lower than at the start. The cost is `steps`
    training steps with three networks in memory, and the outputs of both ends on at most 8192 examples. Raises
    `WeightspaceError` where networks do not fit the group, for outputs that are not finite, and for steps < 1.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> group = ws.Symmetry.of(net, task.example(2))
    >>> scaled = group.sample(seed=1, kinds="scale")(net)
    >>> found = ws.symmetry.refine(group, scaled, net, group.identity(), ws.Task(task.example(200)), steps=100, lr=0.1)
    >>> found.kept, found.after < 0.1 * found.before
    (True, True)
    """
    if steps < 1 or batch < 2 or not lr > 0:
        raise WeightspaceError(f"a descent takes steps >= 1, batch >= 2 and lr > 0, got {steps}, {batch} and {lr}")
    net, to = fold(group, net), fold(group, to)
    began = time.perf_counter()
    score = Score(to, task, seed, labels) if score is None else score
    before = score(start(net))
    one, other = lifted([to, start(net)])
    with settled(one.dtype):
        moves = moves_of(group, torch.empty((), dtype=one.dtype, device=one.device))
        if not moves:
            return Refinement(start, before, before)
        descent = _Descent(one, other, moves, task, labels)
        losses = descent.run(steps, lr, batch, seed)
    refined = descent.element() @ start
    after = score(refined(net))
    seen, seconds = len(losses) * min(batch, len(descent.task)), time.perf_counter() - began
    return Refinement(refined if after < before else start, before, after, tuple(losses), seen, seconds)


class _Descent:
    """The line from one network to a moved one, and the descent of what is measured on it in the moves."""

    def __init__(self, a: Net, b: Net, moves: Sequence[Moves], task: Task, labels: bool) -> None:
        self.a, self.b, self.moves, self.labels = a, b, moves, labels
        self.parameters = [p for each_of in moves for p in each_of.parameters.values()]
        self.task = task.take(_EXAMPLES, seed=0)  # of a loader this holds them in memory
        self.inner = _on_batches(a.architecture)
        self.start = {name: tensor.detach().clone() for name, tensor in a.tensors.items()}
        self.base = {name: tensor.detach().clone() for name, tensor in b.tensors.items()}
        self.kept: list[Tensor] = []
        with torch.no_grad():
            x, _ = next(self.task.batches())
            f = self.task.forward(a, carried(x, a))
            self.look = Look.at(self.task, f)
            if self.task.in_memory and f.numel() / len(f) * len(self.task) <= _ROOM and not labels:
                self.kept = [self.look.seen(self.task.outputs(net)) for net in (a, b)]

    def run(self, steps: int, lr: float, batch: int, seed: int) -> list[float]:
        """The loss of every step; fewer than `steps` where it stops being a number."""
        adam = torch.optim.Adam([{"params": [*moves.parameters.values()], "pace": moves.pace} for moves in self.moves])
        generator = torch.Generator().manual_seed(seed)
        losses: list[float] = []
        for step, rows in zip(range(steps), _rows(len(self.task), batch, generator), strict=False):
            for part in adam.param_groups:
                part["lr"] = lr * part["pace"] * _pace(step, steps)
            adam.zero_grad()
            loss = self.loss(torch.rand((), generator=generator).item(), rows)
            if not math.isfinite(loss):
                break
            losses.append(loss)
            adam.step()
        return losses

    def loss(self, t: float, rows: Tensor) -> float:
        """The loss at t on these examples, whose gradient is left in the parameters; the graph of one piece in memory.

        Norms on the statistics of the batch need it as one piece.
        """
        size = len(rows) if self.inner is not self.a.architecture else min(len(rows), self.task.batch)
        total, count, seen = 0.0, 0, 0
        for x, y in self.task.pick(rows.tolist()).recut(self.a, size):
            here = rows[seen : seen + len(leaves(x)[0])]
            wanted = None if self.labels else self._wanted(t, here, x)  # before the network may write into its input
            f = self._outputs(t, x)
            if wanted is None:
                term, n = self.task.summed(f, y)
            else:
                apart = self.look.apart(self.look.seen(f), wanted, x, y)
                term, n = apart.sum(), len(apart)
            term.backward()
            total, count, seen = total + float(term.detach()), count + n, seen + len(here)
        for p in self.parameters:
            if p.grad is not None:
                p.grad /= max(count, 1)
        return total / max(count, 1)

    @torch.no_grad()
    def _wanted(self, t: float, rows: Tensor, x: Any) -> Tensor:
        if self.kept:
            parts = [outputs[rows.to(outputs.device)] for outputs in self.kept]
        else:
            parts = [self.look.seen(self.task.forward(net, carried(x, net))) for net in (self.a, self.b)]
        return self.look.mixture(parts, (1 - t, t))

    def _outputs(self, t: float, x: Any) -> Tensor:
        moved = self.base
        for moves in self.moves:
            moved = moves.moved(moved)
        tensors = {name: _between(tensor, moved[name], t) for name, tensor in self.start.items()}
        args, kwargs = arguments(x)
        name = type(self.inner).__name__
        with blamed(lambda: f"{name} does not take inputs of shape {each(shape, x)}"):
            return self.task.output(called(self.inner, tensors, args, kwargs, always=False))

    def element(self) -> Element:
        """The moves that were found, as one element."""
        found = [moves.element() for moves in self.moves]
        for later in found[1:]:
            found[0] = later @ found[0]
        return found[0]


def _between(a: Tensor, b: Tensor, t: float) -> Tensor:
    return torch.lerp(a, b, t) if a.is_floating_point() else a


def _pace(step: int, steps: int) -> float:
    """The learning rate of a step relative to its maximum: up in a line, then down as half a cosine."""
    warm = max(1, round(_WARM * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm + 1) / (steps - warm + 1)))


def _rows(n: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of an endless stream of examples, each epoch in another order, rows ascending."""
    while True:
        for rows in torch.randperm(n, generator=generator)[: max(n // batch, 1) * batch].split(batch):
            yield rows.sort()[0]


def _on_batches(architecture: nn.Module) -> nn.Module:
    """The architecture, with the norms that keep running statistics on those of each batch, keeping nothing."""
    if not tracking(architecture):
        return architecture
    inner = copy.deepcopy(architecture)
    for norm in tracking(inner):
        norm.train()
        norm.track_running_stats = False  # type: ignore[assignment]
    return inner
