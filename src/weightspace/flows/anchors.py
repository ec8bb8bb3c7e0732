"""Goals that keep a network as it was: its outputs (distillation) or its weights (elastic weight consolidation)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.curvature.curvature import summed_squares
from weightspace.curvature.outputs import law_of, likelihood
from weightspace.flows.batches import Augment, changed, forward, mean_of, positive
from weightspace.net.errors import WeightspaceError
from weightspace.net.inputs import carried, leaves
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.task.digest import DigestError, Frame, digest
from weightspace.task.goal import Goal, differentiated, not_aliased
from weightspace.task.outputs import counted, labelled
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["ewc", "fisher", "hold"]


Distance: TypeAlias = Literal["squared", "kl", "bhattacharyya"]


@dataclass(frozen=True)
class Hold(Goal):
    """The goal of `hold`: the mean distance of outputs from those of an anchor network."""

    task: Task
    anchor: Net
    distance: Distance
    batch: int
    seed: int
    labels: float
    temperature: float
    augment: Augment | None
    output: Callable[[Tensor], Tensor]
    _kept: list[_Answers] = field(default_factory=list, repr=False, compare=False)

    def value_and_gradient(self, net: Net, step: int) -> tuple[float, Weights]:
        """The value and the gradient on the batch of this step."""
        if net.weights is not self.anchor.weights:
            not_aliased(net, self.anchor)
        triples = list(self._triples(net, step))

        def away(w: Net) -> Tensor:
            parts, losses = [], []
            for x, y, before in triples:
                f = forward(self.task, w, x)
                parts.append(_DISTANCES[self.distance](*_alike(self.output(f), before), self.temperature, y))
                losses += [self.task.summed(f, y)] if self.labels else []
            return mean_of(parts) + (self.labels * mean_of(losses) if self.labels else 0.0)

        return differentiated(away, net)

    def _triples(self, net: Net, step: int) -> Iterator[tuple[Any, Tensor | None, Tensor]]:
        """Inputs, labels, and the anchor's outputs; the outputs are computed once where the inputs stay the same."""
        plain = self.augment is None and self.task.in_memory
        if plain and (frame := _frame(self.anchor, self.output)) is not None:
            asked = frame, self.batch, step, self.seed
            if not self._kept or (parts := self._kept[0].batches(self.anchor, *asked)) is None:
                self._kept[:] = [_answers(self.task, self.anchor, self.output, frame)]
                parts = self._kept[0].batches(self.anchor, *asked)
            labels = self.task.minibatch(self.batch, step, self.seed).batches()
            for (x, before), (_, y) in zip(parts or (), labels, strict=True):
                yield carried(x, net), y, before
            return
        with torch.no_grad():
            for x, y in self.task.minibatch(self.batch, step, self.seed).batches(net):
                seen = changed(x, self.augment, self.seed, step)
                yield seen, y, self.output(forward(self.task, self.anchor, carried(seen, self.anchor)))


@dataclass(frozen=True)
class _Answers:
    """The anchor's outputs on all examples of a task, and what tells whether they are still valid.

    `numbered` is the task with row numbers for labels; `sums` of the inputs tell whether a row has changed; `weights`
    and `frame` do so for the anchor.
    """

    outputs: Tensor
    numbered: Task
    sums: Tensor
    weights: list[Tensor]
    frame: str

    def batches(self, anchor: Net, frame: str, batch: int, step: int, seed: int) -> list[tuple[Any, Tensor]] | None:
        """Inputs and the anchor's outputs of a batch; None if the anchor or the inputs were changed in place."""
        now = [*anchor.weights.buffers, *anchor.state.buffers]
        if frame != self.frame or not all(torch.equal(w, b) for w, b in zip(self.weights, now, strict=True)):
            return None
        found = []
        for x, index in self.numbered.minibatch(batch, step, seed).batches():
            assert index is not None
            if not torch.allclose(_row_sums(x), self.sums[index], 1e-9, 1e-9, equal_nan=True):
                return None
            found.append((x, self.outputs[index]))
        return found


def _answers(task: Task, anchor: Net, output: Callable[[Tensor], Tensor], frame: str) -> _Answers:
    with torch.no_grad():
        parts = [output(forward(task, anchor, x)) for x, _ in task.batches(anchor)]
    sums = torch.cat([_row_sums(x) for x, _ in task.batches()])
    kept = [buffer.clone() for buffer in (*anchor.weights.buffers, *anchor.state.buffers)]
    return _Answers(torch.cat(parts), task.relabelled(torch.arange(len(sums))), sums, kept, frame)


def _row_sums(x: Any) -> Float[Tensor, " examples"]:
    """A checksum of every example: a random projection in float64."""
    total = torch.zeros(())
    for k, part in enumerate(leaves(x)):
        rows = part.detach().flatten(1) if part.dim() > 1 else part.detach()[:, None]
        generator = torch.Generator().manual_seed(k)
        row = torch.randn(rows.shape[1], generator=generator, dtype=torch.float64).to(rows.device)
        total = total + rows.double() @ row
    return total.double()


def _frame(net: Net, output: Callable[[Tensor], Tensor]) -> str | None:
    try:
        return digest(Frame(net), output)
    except DigestError:
        return None


@public
def hold(
    task: Task,
    anchor: Net,
    distance: Distance = "squared",
    *,
    batch: int = 64,
    seed: int = 0,
    labels: float = 0.0,
    temperature: float = 1.0,
    augment: Augment | None = None,
    output: Callable[[Tensor], Tensor] = lambda f: f,
) -> Goal:
    """A goal: the mean distance d(f(x), f_anchor(x)) of outputs from those of `anchor`, over the inputs of a task.

    What `Pullback` measures, without linearisation. `distance`, for outputs f and probabilities p = softmax(f /
    temperature): "squared" |f - f_anchor|^2, "kl" temperature^2 KL(p_anchor | p), "bhattacharyya" -log sum_k sqrt(p_k
    p_anchor,k). `labels` adds that multiple of the task's own loss on the same examples. Positions labelled -100 are
    not counted. `output` selects the outputs to compare. Where `augment` changes the inputs, the anchor's outputs are
    computed anew. Raises `WeightspaceError`; also where anchor and network are two that share memory, so that the
    anchor would move too.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> goal = ws.hold(task, net, "kl", temperature=2)
    >>> goal.value_and_gradient(net, step=0)[0] < 1e-6                     # at the anchor
    True
    >>> goal.value_and_gradient(ws.demo.example(1)[0], step=0)[0] > 1e-3
    True
    """
    positive("a batch", batch)
    if not 0 < temperature < math.inf:
        raise WeightspaceError(f"temperature must be positive, got {temperature}")
    return Hold(task, checked(anchor), distance, batch, seed, labels, temperature, augment, output)


def _alike(f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    if f.shape != g.shape:
        raise WeightspaceError(
            f"the anchor's outputs have shape {tuple(g.shape)}, the network's {tuple(f.shape)}; give output="
        )
    return f, g.to(f)


def _probable(f: Tensor) -> None:
    if f.dim() < 2 or f.shape[-1] < 2:
        raise WeightspaceError(f'outputs of shape {tuple(f.shape)} are not classes; hold them by distance="squared"')


def _squared(f: Tensor, g: Tensor, t: float, y: Tensor | None) -> tuple[Tensor, int]:
    return (counted(f, y) - counted(g, y)).square().sum(), len(f)


def _bhattacharyya(f: Tensor, g: Tensor, t: float, y: Tensor | None) -> tuple[Tensor, int]:
    _probable(f)
    return _positions(-((f / t).log_softmax(-1) / 2 + (g / t).log_softmax(-1) / 2).logsumexp(-1), f, y)


def _kl(f: Tensor, g: Tensor, t: float, y: Tensor | None) -> tuple[Tensor, int]:
    _probable(f)
    p, q = (f / t).log_softmax(-1), (g / t).log_softmax(-1)
    return _positions(t**2 * F.kl_div(p, q, log_target=True, reduction="none").sum(-1), f, y)


def _positions(d: Tensor, f: Tensor, y: Tensor | None) -> tuple[Tensor, int]:
    """The sum over the positions that count, and their number."""
    d = d[labelled(f, y)] if f.dim() > 2 else d
    return d.sum(), d.numel()


# sums over a batch, and over how many examples or positions
_DISTANCES: dict[str, Callable[[Tensor, Tensor, float, Tensor | None], tuple[Tensor, int]]] = {
    "squared": _squared,
    "kl": _kl,
    "bhattacharyya": _bhattacharyya,
}


@dataclass(frozen=True)
class Ewc(Goal):
    """The goal of `ewc`: strength / 2 sum_i F_i (w_i - anchor_i)^2."""

    anchor: Net
    importance: Weights
    strength: float

    def value_and_gradient(self, net: Net, step: int) -> tuple[float, Weights]:
        """The value, and the gradient strength F (w - anchor)."""
        away = net - self.anchor
        pull = away.shaped(self.strength * self.importance.flat() * away.flat())
        return float(pull.dot(away)) / 2, pull


@public(order=("task", "net"))
def ewc(net: Net, task: Task, strength: float = 1.0, seed: int = 0) -> Goal:
    """The elastic weight consolidation penalty, a goal: strength / 2 sum_i F_i (w_i - w0_i)^2.

    F is the diagonal of the Fisher information of `task` at `net`, and w0 the weights of `net`.
    Source: Overcoming catastrophic forgetting in neural networks (Kirkpatrick et al., 2017).

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> goal = ws.ewc(net, task, strength=10)
    >>> goal.value_and_gradient(net, step=0)[0]
    0.0
    >>> goal.value_and_gradient(ws.perturb(net, 0.1, seed=0), step=0)[0] > 0
    True
    """
    if not 0 < strength < math.inf:
        raise WeightspaceError(f"strength must be positive, got {strength}")
    return Ewc(net, fisher(net, task, seed), strength)


@public(order=("task", "net"))
def fisher(net: Net, task: Task, seed: int = 0) -> Weights:
    """The diagonal of the Fisher information, F_i = E_x E_{y ~ p(.|x)} (d log p(y|x) / dw_i)^2, as weights.

    One label is drawn from the network's own prediction for every example. p is the `likelihood` of the task's loss:
    the softmax of the outputs, a normal distribution of variance one around them, or a Bernoulli distribution for each.
    Positions labelled -100 contribute nothing. Gradients are squared per example, not per batch: the square of a
    batch's mean gradient is smaller by the batch size. Raises `WeightspaceError`, naming the loss, for one that is not
    a likelihood.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> f = ws.flows.fisher(net, task)
    >>> bool((f.flat() >= 0).all()), f["1.weight"].shape
    (True, torch.Size([16, 64]))
    """
    law_of(task)
    total, count = summed_squares(net, task, likelihood, 1, seed)
    return net.weights.zeros().replace({name: t / count for name, t in total.items()})
