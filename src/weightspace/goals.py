"""Goals: what a flow lowers.

Any function of a network whose value is one differentiable number is a goal. Those here change from step to step
(batches), look at other networks as well, or bend the gradient; they add up: `learn(new) + 0.5 * hold(memory, net)`.
The known methods of continual learning are sums of them, under `Euclidean` or `Adam`:

    naive               learn(new)
    experience replay   learn(new) + learn(memory)
    LwF                 learn(new) + hold(new, net, "kl", temperature=2)
    frozen teacher      learn(new) + hold(memory, net, "bhattacharyya")
    DER++               learn(new) + hold(memory, net, "squared", labels=a)
    EWC                 learn(new) + ewc(old, net)
    A-GEM, GEM          gem(learn(new), [memory, ...])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import nnls
from torch import Tensor

from weightspace.digest import DigestError, Frame, digest
from weightspace.displacement import squared_gradients
from weightspace.examples import each, leaves
from weightspace.likelihood import law_of, likelihood
from weightspace.net import Net, Weights, WeightspaceError, checked, math_attention
from weightspace.public import public
from weightspace.task import Task, carried, counted, labelled, logits, value_and_gradient

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "Goal", "GoalError", "as_goal", "attacked", "covector", "drift", "ewc", "fisher", "gem", "harden", "hold",
    "input_gradient", "learn", "not_aliased", "spread", "toward",
]  # fmt: skip

Augment = Callable[[Any, torch.Generator], Any]


class GoalError(WeightspaceError):
    """A goal that makes no sense, or that has no gradient in what it is asked about."""


@public
class Goal:
    """What a flow lowers, step by step. Goals add up and take factors."""

    def covector(self, net: Net, step: int) -> tuple[Weights, float]:
        """The gradient at the net for this step, and the value there (NaN: it has none)."""
        raise NotImplementedError

    def __add__(self, other: Any) -> Goal:
        return self if isinstance(other, int) and other == 0 else Sum(((1.0, self), (1.0, as_goal(other))))

    __radd__ = __add__

    def __mul__(self, factor: float) -> Goal:
        return Sum(((float(factor), self),))

    __rmul__ = __mul__


@dataclass(frozen=True)
class Sum(Goal):
    """sum_k factor_k goal_k."""

    terms: tuple[tuple[float, Goal], ...]

    def covector(self, net: Net, step: int) -> tuple[Weights, float]:
        """The sum of the gradients and of the values."""
        total, value = net.weights.zeros(), 0.0
        for factor, goal in self.terms:
            vector, worth = goal.covector(net, step)
            total, value = total + factor * vector, value + factor * worth
        return total, value


@dataclass(frozen=True)
class Plain(Goal):
    """A task, or a function of the network, the same at every step."""

    function: Task | Callable[[Net], Tensor]

    def covector(self, net: Net, step: int) -> tuple[Weights, float]:
        """Its gradient and its value."""
        return _swapped(value_and_gradient(self.function, net))


@public
def as_goal(aim: Any) -> Goal:
    """A task or a function of a network as a goal that adds up. Raises `GoalError` for anything else."""
    if isinstance(aim, Goal):
        return aim
    if isinstance(aim, Task) or callable(aim):
        return Plain(aim)
    raise GoalError(f"a goal is a task or a function of a network, not a {type(aim).__name__}")


@public
def covector(goal: Goal | Task | Callable[[Net], Tensor], net: Net, step: int = 0) -> tuple[Weights, float]:
    """The gradient of any goal at the net, and its value."""
    return as_goal(goal).covector(net, step)


# ------------------------------------------------------------------ tasks, old and new


@dataclass(frozen=True)
class Learn(Goal):
    """The loss of a task, on another batch at every step."""

    task: Task
    batch: int
    seed: int
    augment: Augment | None

    def covector(self, net: Net, step: int) -> tuple[Weights, float]:
        """The gradient and the loss of one batch."""
        some = self.task.minibatch(self.batch, step, self.seed)
        if self.augment is not None:
            some = some.mapped(lambda x: _changed(x, self.augment, self.seed, step))
        return _swapped(value_and_gradient(some, net))


@public
def learn(task: Task, batch: int = 128, seed: int = 0, augment: Augment | None = None) -> Goal:
    """The task's loss, on `batch` examples at every step, in another order every epoch.

    `augment(inputs, generator)` changes the inputs of a batch on the way.
    """
    _positive("a batch", batch)
    return Learn(task, batch, seed, augment)


@dataclass(frozen=True)
class Hold(Goal):
    """How far outputs are from those of an anchor."""

    task: Task
    anchor: Net
    distance: str
    batch: int
    seed: int
    labels: float
    temperature: float
    augment: Augment | None
    output: Callable[[Tensor], Tensor]
    _kept: list[_Answers] = field(default_factory=list, repr=False, compare=False)

    def covector(self, net: Net, step: int) -> tuple[Weights, float]:
        """The gradient and the value on one batch."""
        if net.weights is not self.anchor.weights:
            not_aliased(net, self.anchor)
        triples = list(self._triples(net, step))

        def away(w: Net) -> Tensor:
            parts, losses = [], []
            for x, y, before in triples:
                f = _forward(self.task, w, x)
                parts.append(_DISTANCES[self.distance](*_alike(self.output(f), before), self.temperature, y))
                losses += [self.task.summed(f, y)] if self.labels else []
            return _mean(parts) + (self.labels * _mean(losses) if self.labels else 0.0)

        return _descended(away, net)

    def _triples(self, net: Net, step: int) -> Iterator[tuple[Any, Tensor | None, Tensor]]:
        """Inputs, labels, outputs of the anchor; asked for all at once where the inputs stay."""
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
                seen = _changed(x, self.augment, self.seed, step)
                yield seen, y, self.output(_forward(self.task, self.anchor, carried(seen, self.anchor)))


@dataclass(frozen=True)
class _Answers:
    """What an anchor says on the examples of a task; it depends on the anchor, on the inputs, and on what is picked.

    `numbered` is the task with its rows for labels, `sums` of the inputs tell whether a row is what it was.
    """

    outputs: Tensor
    numbered: Task
    sums: Tensor
    weights: list[Tensor]
    frame: str

    def batches(self, anchor: Net, frame: str, batch: int, step: int, seed: int) -> list[tuple[Any, Tensor]] | None:
        """Inputs of a batch, and what the anchor said; None where it would say something else, changed in place."""
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
        parts = [output(_forward(task, anchor, x)) for x, _ in task.batches(anchor)]
    sums = torch.cat([_row_sums(x) for x, _ in task.batches()])
    kept = [buffer.clone() for buffer in (*anchor.weights.buffers, *anchor.state.buffers)]
    return _Answers(torch.cat(parts), task.relabelled(torch.arange(len(sums))), sums, kept, frame)


def _row_sums(x: Any) -> Float[Tensor, " examples"]:
    """One number for every example, other for other inputs: a random projection in float64."""
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
    distance: str = "squared",
    *,
    batch: int = 64,
    seed: int = 0,
    labels: float = 0.0,
    temperature: float = 1.0,
    augment: Augment | None = None,
    output: Callable[[Tensor], Tensor] = lambda f: f,
) -> Goal:
    """E d(f(x), f_anchor(x)) over the inputs of a task: what `Pullback` measures, without being linearised.

    `distance`, for outputs f and probabilities p = softmax(f / temperature): "squared" |f - f_anchor|^2, "kl"
    temperature^2 KL(p_anchor | p), "bhattacharyya" -log sum_k sqrt(p_k p_anchor,k). `labels` adds so much of the task's
    own loss on the same examples. Positions that are labelled -100 count nowhere. `output` picks the outputs that
    count. The anchor's outputs are asked for anew where `augment` changes the inputs. Raises `GoalError`; also where
    anchor and network are two that share one memory, so that the anchor would move too.
    """
    if distance not in _DISTANCES:
        raise GoalError(f"unknown distance {distance!r}; choose {', '.join(_DISTANCES)}")
    _positive("a batch", batch)
    if not 0 < temperature < math.inf:
        raise GoalError(f"temperature must be positive, got {temperature}")
    return Hold(task, checked(anchor), distance, batch, seed, labels, temperature, augment, output)


@public
def not_aliased(net: Net, anchor: Net) -> None:
    """Raise `GoalError` where two networks share the memory of their weights."""
    mine = {t.untyped_storage().data_ptr() for t in net.weights.buffers}
    if mine & {t.untyped_storage().data_ptr() for t in anchor.weights.buffers}:
        raise GoalError("the anchor shares its memory with the network that moves, and would move too; clone() it")


def _alike(f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    if f.shape != g.shape:
        raise GoalError(
            f"the anchor's outputs have shape {tuple(g.shape)}, the network's {tuple(f.shape)}; give output="
        )
    return f, g.to(f)


def _probable(f: Tensor) -> None:
    if f.dim() < 2 or f.shape[-1] < 2:
        raise GoalError(f'outputs of shape {tuple(f.shape)} are no classes; hold them by distance="squared"')


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
    """The sum over the positions that count, and how many these are."""
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
    """strength / 2 sum_i F_i (w_i - anchor_i)^2."""

    anchor: Net
    importance: Weights
    strength: float

    def covector(self, net: Net, step: int) -> tuple[Weights, float]:
        """strength F (w - anchor), and the value."""
        away = net - self.anchor
        pull = away.shaped(self.strength * self.importance.flat() * away.flat())
        return pull, float(pull.dot(away)) / 2


@public
def ewc(task: Task, net: Net, strength: float = 1.0, seed: int = 0) -> Goal:
    """strength / 2 sum_i F_i (w_i - w0_i)^2, F the diagonal of the Fisher information of `task` at `net`.

    Source: Overcoming catastrophic forgetting in neural networks (Kirkpatrick et al., 2017).
    """
    if not 0 < strength < math.inf:
        raise GoalError(f"strength must be positive, got {strength}")
    return Ewc(net, fisher(task, net, seed), strength)


@public
def fisher(task: Task, net: Net, seed: int = 0) -> Weights:
    """F_i = E_x E_{y ~ p(.|x)} (d log p(y|x) / dw_i)^2: one label drawn from the network for every example.

    p is the `likelihood` of the task's loss: the softmax of the outputs, a normal distribution of variance one around
    them, or a coin for each. Of positions that are labelled -100 there is nothing. Squared gradients of examples, not
    of batches: a batch's mean gradient squared is smaller by the batch. Raises `WeightspaceError`, by its name, for a
    loss that is no likelihood.
    """
    names = [n for n, w in checked(net).weights.items() if w.is_floating_point()]
    total = {n: torch.zeros(net.weights[n].shape, dtype=torch.float64, device=net.device) for n in names}
    law_of(task)
    count = 0
    for x, y in task.batches(net):
        with torch.no_grad(), math_attention():
            drawn = likelihood(task, _forward(task, net, carried(x, net)), y)
        assert drawn.scores is not None
        for name, found in squared_gradients(net, task, x, [*drawn.scores(1, seed, count)], names).items():
            total[name] += found
        count += len(leaves(x)[0])
    return net.weights.zeros().replace({name: t / count for name, t in total.items()})


@dataclass(frozen=True)
class Gem(Goal):
    """A goal whose gradient is bent until it hurts no memory."""

    goal: Goal
    memories: tuple[Task, ...]
    batch: int
    seed: int

    def covector(self, net: Net, step: int) -> tuple[Weights, float]:
        """The nearest vector with no negative product with the gradient of any memory, and the goal's value."""
        wanted, value = self.goal.covector(net, step)
        rows = [value_and_gradient(m.minibatch(self.batch, step, self.seed), net)[1].flat() for m in self.memories]
        a, g = torch.stack(rows).double(), wanted.flat().double()
        if not bool(a.isfinite().all() and g.isfinite().all()) or bool((a @ g >= 0).all()):
            return wanted, value
        gram = (a @ a.T).numpy(force=True)
        root = np.linalg.cholesky(gram + 1e-10 * np.trace(gram) * np.eye(len(gram)))
        weights, _ = nnls(root.T, -np.linalg.solve(root, (a @ g).numpy(force=True)))
        return wanted.shaped((g + torch.from_numpy(weights).to(a) @ a).to(wanted.flat())), value


@public
def gem(goal: Goal | Task | Callable[[Net], Tensor], memories: Sequence[Task], batch: int = 64, seed: int = 0) -> Goal:
    """`goal` with its gradient g replaced by argmin |v - g| over <v, g_k> >= 0, g_k the gradient of memory k.

    One memory of all old tasks is A-GEM. Sources: Gradient episodic memory for continual learning (Lopez-Paz, Ranzato,
    2017); Efficient lifelong learning with A-GEM (Chaudhry, Ranzato, Rohrbach, Elhoseiny, 2019).
    """
    if isinstance(memories, Task) or not memories:
        raise GoalError("which memories are protected? give a list of at least one task")
    _positive("a batch", batch)
    return Gem(as_goal(goal), tuple(memories), batch, seed)


# ------------------------------------------------------------------ other networks, other inputs


@dataclass(frozen=True)
class Drift(Goal):
    """No goal but a heading: a random direction, the same at every step."""

    seed: int

    def covector(self, net: Net, step: int) -> tuple[Weights, float]:
        """The direction; it has no value."""
        return net.weights.randn(self.seed), math.nan


@public
def drift(seed: int) -> Goal:
    """Explore: a random heading drawn from `seed`, kept as far as the metric allows."""
    if not 0 <= seed < 1 << 63:
        raise GoalError(f"a seed is a whole number from 0 to 2^63, got {seed}")
    return Drift(seed)


@dataclass(frozen=True)
class Toward(Goal):
    """Half the squared distance to another network."""

    other: Net

    def __call__(self, net: Net) -> Tensor:
        """|w - w_other|^2 / 2, with its graph."""
        net.check(self.other)
        parts = [(w - self.other.weights[n].to(w)).square().sum() / 2 for n, w in net.weights.items()]
        return torch.stack(parts).sum()

    def covector(self, net: Net, step: int) -> tuple[Weights, float]:
        """w - w_other, and the value."""
        return _descended(self, net)


@public
def toward(other: Net) -> Goal:
    """|w - w_other|^2 / 2: go to another network (align it first)."""
    return Toward(checked(other))


@dataclass(frozen=True)
class Spread(Goal):
    """How alike the input gradients of networks are."""

    others: tuple[Net, ...]
    task: Task
    batch: int
    seed: int

    def covector(self, net: Net, step: int) -> tuple[Weights, float]:
        """The gradient and the coherence on one batch."""
        batches = list(self.task.minibatch(self.batch, step, self.seed).batches(net))
        theirs = [[input_gradient(self.task, other, x, y).detach() for other in self.others] for x, y in batches]

        def coherence(w: Net) -> Tensor:
            parts: list[tuple[Tensor, int]] = []
            for (x, y), rows in zip(batches, theirs, strict=True):
                mine = input_gradient(self.task, w, x, y, graph=True)
                parts += [(F.cosine_similarity(mine, row.to(mine), dim=1).sum(), len(row)) for row in rows]
            return _mean(parts)

        return _descended(coherence, net)


@public
def spread(others: Sequence[Net], task: Task, batch: int = 64, seed: int = 0) -> Goal:
    """mean over examples and others of cos(grad_x L(f), grad_x L(f_other)): networks that fool one another less.

    Source: Improving adversarial robustness of ensembles with diversity training (Kariyappa, Qureshi, 2019).
    """
    if not others:
        raise GoalError("spread from which networks? give at least one")
    _positive("a batch", batch)
    return Spread(tuple(checked(o) for o in others), task, batch, seed)


@public
def input_gradient(
    task: Task, net: Net, x: Any, y: Tensor | None, graph: bool = False
) -> Float[Tensor, "examples numbers"]:
    """d(loss of every example)/dx, flat. Raises `GoalError` for inputs that are not floating-point."""
    parts = leaves(x)
    if not all(part.is_floating_point() for part in parts):
        raise GoalError("these inputs are integers (tokens) and have no gradient; give embeddings or images")
    seen = each(lambda t: t.detach().requires_grad_(), x)
    with torch.enable_grad(), math_attention():
        loss = task.summed(_forward(task, net, seen), y)[0]
        found = torch.autograd.grad(loss, leaves(seen), create_graph=graph)
    return torch.cat([part.flatten(1) for part in found], 1)


@dataclass(frozen=True)
class Harden(Goal):
    """The loss where an attack has moved the inputs."""

    task: Task
    radius: float
    steps: int
    batch: int
    seed: int
    span: tuple[float, float]

    def covector(self, net: Net, step: int) -> tuple[Weights, float]:
        """The gradient and the loss on one attacked batch."""
        some = self.task.minibatch(self.batch, step, self.seed)
        moved = [(attacked(self.task, net, x, y, self.radius, self.steps, self.span), y) for x, y in some.batches(net)]
        return _descended(lambda w: _mean([self.task.summed(_forward(self.task, w, x), y) for x, y in moved]), net)


@public
def harden(
    task: Task,
    radius: float,
    steps: int = 7,
    batch: int = 128,
    seed: int = 0,
    span: tuple[float, float] = (-math.inf, math.inf),
) -> Goal:
    """max L(x + d) over |d|_inf <= radius, by `steps` of projected signed ascent; inputs stay within `span`.

    Source: Towards deep learning models resistant to adversarial attacks (Madry et al., 2018).
    """
    if not 0 < radius < math.inf or steps < 1:
        raise GoalError(f"an attack needs a positive radius and a step, got {radius} and {steps}")
    _positive("a batch", batch)
    return Harden(task, radius, steps, batch, seed, span)


@public
def attacked(
    task: Task, net: Net, x: Any, y: Tensor | None, radius: float, steps: int, span: tuple[float, float]
) -> Tensor:
    """The inputs where the ascent ends."""
    if not isinstance(x, Tensor):
        raise GoalError("an attack moves one tensor of inputs; these have several")
    moved = x
    for _ in range(steps):
        rise = input_gradient(task, net, moved, y).view_as(x).sign()
        moved = torch.clamp(moved + 2.5 * radius / steps * rise, x - radius, x + radius).clamp(*span)
    return moved.detach()


# ------------------------------------------------------------------


def _forward(task: Task, net: Net, x: Any) -> Tensor:
    return logits(task.forward(net, x))


def _changed(x: Any, augment: Augment | None, seed: int, step: int) -> Any:
    return x if augment is None else augment(x, torch.Generator().manual_seed(seed * 1_000_003 + step))


def _descended(goal: Callable[[Net], Tensor], net: Net) -> tuple[Weights, float]:
    return _swapped(value_and_gradient(goal, net))


def _swapped(pair: tuple[float, Weights]) -> tuple[Weights, float]:
    return pair[1], pair[0]


def _mean(parts: list[tuple[Tensor, int]]) -> Tensor:
    """The mean over examples, from sums over batches and their sizes."""
    total = sum(n for _, n in parts)
    if not total:
        raise GoalError("no example has a label: all are -100")
    return torch.stack([value for value, _ in parts]).sum() / total


def _positive(what: str, number: int) -> None:
    if number < 1:
        raise GoalError(f"{what} has at least one example, got {number}")
