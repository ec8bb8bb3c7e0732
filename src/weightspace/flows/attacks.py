"""Adversarial examples: inputs moved to raise the loss, the accuracy that is left, adversarial training as a goal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import torch
from torch import Tensor

from weightspace.flows.batches import forward, mean_of, positive
from weightspace.net.errors import WeightspaceError
from weightspace.net.inputs import each, leaves
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.seeds import derived
from weightspace.net.state import math_attention
from weightspace.net.weights import Weights
from weightspace.task.classification import accuracy
from weightspace.task.examples import normal, uniform
from weightspace.task.goal import Goal, differentiated
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["attack", "attacked", "harden", "input_gradient", "robust_accuracy"]


@public(order=("task", "net"))
def input_gradient(
    net: Net, task: Task, x: Any, y: Tensor | None, graph: bool = False
) -> Float[Tensor, "examples numbers"]:
    """The gradient of every example's loss with respect to its inputs, as rows.

    `graph`: keep the graph, for second derivatives. Raises `WeightspaceError` for inputs that are not floating-point.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> x, y = next(task.batches(net))
    >>> ws.flows.input_gradient(net, task, x, y).shape                     # 60 images of 64 pixels
    torch.Size([60, 64])
    """
    parts = leaves(x)
    if not all(part.is_floating_point() for part in parts):
        raise WeightspaceError("these inputs are integers (tokens) and have no gradient; give embeddings or images")
    seen = each(lambda t: t.detach().requires_grad_(), x)
    with torch.enable_grad(), math_attention():
        loss = task.summed(forward(task, net, seen), y)[0]
        found = torch.autograd.grad(loss, leaves(seen), create_graph=graph)
    return torch.cat([part.flatten(1) for part in found], 1)


@dataclass(frozen=True)
class Harden(Goal):
    """The goal of `harden`: the loss on attacked inputs."""

    task: Task
    radius: float
    steps: int
    batch: int
    seed: int
    span: tuple[float, float]

    def value_and_gradient(self, net: Net, step: int) -> tuple[float, Weights]:
        """The loss and its gradient on one attacked batch."""
        some = self.task.minibatch(self.batch, step, self.seed)
        moved = [(attacked(net, self.task, x, y, self.radius, self.steps, self.span), y) for x, y in some.batches(net)]
        return differentiated(lambda w: mean_of([self.task.summed(forward(self.task, w, x), y) for x, y in moved]), net)


@public
def harden(
    task: Task,
    radius: float,
    steps: int = 7,
    batch: int = 128,
    seed: int = 0,
    span: tuple[float, float] = (-math.inf, math.inf),
) -> Goal:
    """Adversarial training, a goal: max L(x + d) over |d|_inf <= radius, by `steps` of projected gradient ascent.

    Inputs stay within `span`. Source: Towards deep learning models resistant to adversarial attacks (Madry et al.,
    2018).

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> goal = ws.harden(task, radius=0.1, batch=60)
    >>> goal.value_and_gradient(net, step=0)[0] > float(task(net))
    True
    """
    if not 0 < radius < math.inf or steps < 1:
        raise WeightspaceError(f"an attack needs a positive radius and at least one step, got {radius} and {steps}")
    positive("a batch", batch)
    return Harden(task, radius, steps, batch, seed, span)


@public(order=("task", "net"))
def attacked(
    net: Net, task: Task, x: Any, y: Tensor | None, radius: float, steps: int, span: tuple[float, float]
) -> Tensor:
    """Adversarial examples: the inputs after `steps` of projected gradient ascent on the loss within |d|_inf <= radius.

    `attack` moves all examples of a task, in other norms and from several starts.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> x, y = next(task.batches(net))
    >>> moved = ws.flows.attacked(net, task, x, y, radius=0.1, steps=3, span=(0, 1))
    >>> round(float((moved - x).abs().max()), 3), bool(ws.Task(moved, y)(net) > task(net))
    (0.1, True)
    """
    return _climbed(net, task, x, y, _Ball(radius, steps, "linf", span))


# ------------------------------------------------------------------ attacks on all examples


Norm: TypeAlias = Literal["linf", "l2"]


@dataclass(frozen=True)
class _Ball:
    """Where an attack may go, and in how many steps."""

    radius: float
    steps: int
    norm: Norm
    span: tuple[float, float]

    def step(self, slope: Float[Tensor, "examples numbers"]) -> Float[Tensor, "examples numbers"]:
        """The step of every example: the longest that raises its loss most."""
        length = 2.5 * self.radius / self.steps
        if self.norm == "linf":
            return length * slope.sign()
        return length * slope / torch.linalg.vector_norm(slope, dim=1, keepdim=True).clamp_min(_TINY)

    def inside(self, moved: Tensor, x: Tensor) -> Tensor:
        """The nearest point in the ball around x and in the span."""
        if self.norm == "linf":
            return torch.clamp(moved, x - self.radius, x + self.radius).clamp(*self.span)
        away = (moved - x).flatten(1)
        far = torch.linalg.vector_norm(away, dim=1, keepdim=True).clamp_min(_TINY)
        return (x + (away * (self.radius / far).clamp_max(1.0)).view_as(x)).clamp(*self.span)

    def drawn(self, x: Tensor, restart: int, seed: int, start: int) -> Tensor:
        """A random point of the ball around every example; x itself for the first start."""
        if not restart:
            return x
        u = next(uniform((len(x), max(1, x[0].numel())), 1, derived(seed, "start", restart), start, x.device))
        if self.norm == "linf":
            away = self.radius * (2 * u - 1)
        else:
            z = normal(u)
            away = self.radius * z / torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min(_TINY)
        return self.inside(x + away.to(x).view_as(x), x)


_TINY = 1e-30


def _climbed(net: Net, task: Task, x: Any, y: Tensor | None, ball: _Ball, start: Tensor | None = None) -> Tensor:
    """The inputs after projected gradient ascent on the loss, from `start` or from themselves."""
    if not isinstance(x, Tensor):
        raise WeightspaceError("an attack moves one tensor of inputs; these have several")
    moved = x if start is None else start
    for _ in range(ball.steps):
        rise = ball.step(input_gradient(net, task, moved, y)).view_as(x)
        moved = ball.inside(moved + rise, x)
    return moved.detach()


@public(order=("task", "net"))
def attack(
    net: Net,
    task: Task,
    radius: float,
    steps: int = 20,
    *,
    norm: Norm = "linf",
    restarts: int = 1,
    span: tuple[float, float] = (-math.inf, math.inf),
    seed: int = 0,
) -> Task:
    """The task with adversarial inputs: those of the highest loss L(x + d) found with |d| <= radius.

    `steps` of projected gradient ascent of length 2.5 `radius` / `steps`, from the inputs and from `restarts` - 1
    random points of the ball, drawn from `seed`; of all ends and the input itself the one of highest loss is taken,
    example by example, so that no loss falls. `norm`: "linf" moves along the sign of the gradient, "l2" along the
    gradient itself. Inputs stay within `span`. The result is a task like every other: another network on it meets a
    transferred attack. Cost: `steps` x `restarts` gradients in the inputs. An attack finds a lower bound of the worst
    loss, not the worst. Raises `WeightspaceError` for a radius below 0, inputs outside of `span`, tokens, and several
    labels an example.
    Source: Towards deep learning models resistant to adversarial attacks (Madry et al., 2018).

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> moved = ws.attack(net, task, radius=0.1, steps=5, span=(0, 1))
    >>> bool((moved.distances(net) >= task.distances(net)).all())
    True
    >>> round(float((moved.example(60) - task.example(60)).abs().max()), 3)
    0.1
    """
    ball, found, start = _ball(radius, steps, norm, span, restarts), [], 0
    for x, y in task.batches(net):
        _attackable(x, y, span)
        best, worst = x, _losses(task, _outputs(net, task, x), x, y)
        for k in range(restarts if radius else 0):
            moved = _climbed(net, task, x, y, ball, ball.drawn(x, k, seed, start))
            loss = _losses(task, _outputs(net, task, moved), x, y)
            higher = loss > worst
            best = torch.where(higher.view(-1, *[1] * (x.dim() - 1)), moved, best)
            worst = torch.maximum(loss, worst)
        found.append(best)
        start += len(x)
    return task.mapped(lambda _: torch.cat(found))


@overload
def robust_accuracy(
    task: Task, radius: float, steps: int = ..., *, norm: Norm = ..., restarts: int = ...,
    span: tuple[float, float] = ..., seed: int = ...,
) -> Callable[[Net], float]: ...  # fmt: skip
@overload
def robust_accuracy(
    task: Task, radius: Sequence[float], steps: int = ..., *, norm: Norm = ..., restarts: int = ...,
    span: tuple[float, float] = ..., seed: int = ...,
) -> Callable[[Net], list[float]]: ...  # fmt: skip
@public
def robust_accuracy(
    task: Task,
    radius: float | Sequence[float],
    steps: int = 20,
    *,
    norm: Norm = "linf",
    restarts: int = 1,
    span: tuple[float, float] = (-math.inf, math.inf),
    seed: int = 0,
) -> Callable[[Net], Any]:
    """Accuracy under attack, as a function of a network: the fraction of examples right wherever the attack ends.

    An example counts if it is right as it is and at the ends of all `restarts` of an `attack` (see there for the other
    arguments). Several radii give the list of accuracies: a larger ball holds the smaller one, so that an example that
    was wrong in a smaller one counts as wrong, and no accuracy is above that of a smaller radius. Radius 0 is
    `accuracy`. An upper bound of the worst accuracy in the ball: `steps` and `restarts` lower it, no attack proves it
    (see `ws.lipschitz` for a proof). Raises `WeightspaceError` as `attack` does.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.robust_accuracy(task, [0, 0.05, 0.1], steps=5, span=(0, 1))(net)
    >>> found[0] == ws.accuracy(task)(net), found[0] >= found[1] >= found[2]
    (True, True)
    """
    several = not isinstance(radius, int | float)
    radii = [float(r) for r in radius] if isinstance(radius, Sequence) else [float(radius)]
    if not radii:
        raise WeightspaceError("no radius; give one or more")
    balls = {r: _ball(r, steps, norm, span, restarts) for r in sorted({*radii})}
    accuracy(task)  # refuses labels that are not classes

    @public
    def robust_accuracy(net: Net) -> float | list[float]:
        right, count, start = dict.fromkeys(balls, 0), 0, 0
        for x, y in task.batches(net):
            _attackable(x, y, span)
            f = _outputs(net, task, x)
            _losses(task, f, x, y)  # refuses what has no loss for each example
            stands = _right(task, f, y)
            for r, ball in balls.items():
                for k in range(restarts if r else 0):
                    moved = _climbed(net, task, x, y, ball, ball.drawn(x, k, seed, start))
                    stands = stands & _right(task, _outputs(net, task, moved), y)
                right[r] += int(stands.sum())
            count, start = count + len(stands), start + len(x)
        found = [right[r] / count for r in radii]
        return found if several else found[0]

    return robust_accuracy


def _ball(radius: float, steps: int, norm: Norm, span: tuple[float, float], restarts: int) -> _Ball:
    if not 0 <= radius < math.inf or steps < 1 or restarts < 1:
        raise WeightspaceError(
            f"an attack needs a radius from 0, and at least one step and one start; got {radius:g}, {steps}, {restarts}"
        )
    if len(span) != 2 or not span[0] < span[1]:
        raise WeightspaceError(f"a span is the least and the largest input, got {span}")
    return _Ball(radius, steps, norm, span)


def _attackable(x: Any, y: Tensor | None, span: tuple[float, float]) -> None:
    """Raise `WeightspaceError` for inputs that cannot be attacked."""
    if not isinstance(x, Tensor):
        raise WeightspaceError("an attack moves one tensor of inputs; these have several")
    if not x.is_floating_point():
        raise WeightspaceError("these inputs are integers (tokens) and have no gradient; give embeddings or images")
    if bool(((x < span[0]) | (x > span[1])).any()):
        low, high = x.aminmax()
        raise WeightspaceError(
            f"inputs from {float(low):.4g} to {float(high):.4g} are outside of the span {span}; give a wider one"
        )
    if y is None:
        raise WeightspaceError("the task has no labels, and an attack raises their loss; give Task(inputs, labels)")


@torch.no_grad()
def _outputs(net: Net, task: Task, x: Tensor) -> Tensor:
    return forward(task, net, x)


@torch.no_grad()
def _losses(task: Task, f: Tensor, x: Tensor, y: Tensor | None) -> Float[Tensor, " examples"]:
    """The loss of every example. Raises `WeightspaceError` where there is not one for each."""
    assert y is not None
    losses = task._measured(f, y)[0]
    if losses.shape != (len(x),):
        raise WeightspaceError("an attack needs one label and one loss for each example; these have several, or a mean")
    return losses


def _right(task: Task, f: Tensor, y: Tensor | None) -> Tensor:
    return task.wrong(f, y) == 0
