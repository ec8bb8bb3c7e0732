"""Homotopies of tasks: t in [0, 1] -> Task, from one task at t = 0 to another at t = 1.

With examples (x_a, y_a) and (x_b, y_b) in pairs, the task between is, by what is mixed,

    inputs     (1 - t) x_a + t x_b, with the labels (1 - t) y_a + t y_b
    labels     the inputs that both tasks have, with the labels (1 - t) y_a + t y_b
    batches    (x_b, y_b) for a share t of the pairs, (x_a, y_a) for the others

Mixed batches have, on average, the mixed losses (1 - t) L_a + t L_b. Pairs of least total squared distance are the
optimal transport of one data set onto the other.
Sources: Machine learning, math, and generalization (Sorensen, 2018), section 7.2, on landscapes that morph into each
other; A convexity principle for interacting gases (McCann, 1997), on interpolation along optimal transport.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from weightspace.linear.assignment import assign
from weightspace.net.inputs import each, leaves
from weightspace.net.public import public
from weightspace.net.seeds import derived
from weightspace.task.examples import TaskError, shuffled
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["Homotopy", "homotopy"]


Kind: TypeAlias = Literal["inputs", "labels", "batches"]
Pairs: TypeAlias = Literal["transport", "class", "order"]
_BLOCK = 1000  # pairs that are assigned together


@public
@dataclass(frozen=True)
class Homotopy:
    """A task that changes with t in [0, 1]: `homotopy(t)` is `first` at 0, `last` at 1, a task between them elsewhere.

    `pairs`: how many pairs of examples the tasks between are made of. `distance`: the root mean squared distance of the
    inputs of a pair, 0 for the kinds that do not mix inputs.

    >>> import weightspace as ws
    >>> _, a = ws.demo.example()
    >>> path = ws.homotopy(a, a.mapped(lambda x: 1 - x))
    >>> path(0) is a, len(path(0.3)), path
    (True, 60, Homotopy(inputs, 60 pairs, 60 examples to 60))
    """

    first: Task
    last: Task
    kind: Kind
    pairs: int
    distance: float
    between: Callable[[float], Task] = field(repr=False, compare=False)

    def __call__(self, t: float) -> Task:
        """The task at t. Raises `TaskError` for a t outside of [0, 1]."""
        if not 0 <= t <= 1:
            raise TaskError(f"t is {t}; give a number in [0, 1]")
        return self.first if t == 0 else self.last if t == 1 else self.between(t)

    def __repr__(self) -> str:
        return f"Homotopy({self.kind}, {self.pairs:,} pairs, {len(self.first):,} examples to {len(self.last):,})"


@public
def homotopy(a: Task, b: Task, kind: Kind = "inputs", *, pairs: Pairs = "transport", seed: int = 0) -> Homotopy:
    """The homotopy from task a to task b by mixing inputs, labels or batches: a function t in [0, 1] -> Task.

    `kind`: "inputs" moves the inputs and the labels of every pair in a straight line; "labels" moves the labels alone,
    of two tasks with the same inputs in the same order; "batches" exchanges examples of a for examples of b, in an
    order drawn from `seed`, so that a share t is of b. `pairs`, for inputs: "transport", the exact assignment of least
    squared distance within random blocks of 1,000 examples; "class", the same within every class, so that labels stay;
    "order", by index. A shorter task has its examples used several times, evenly. Class labels become soft ones where
    they are mixed, of as many classes as both tasks have. At t = 0 and 1 the tasks are a and b themselves.
    Mixed losses need no homotopy: `(1 - t) * ws.learn(a) + t * ws.learn(b)` is a goal. Any other function t -> Task is
    a homotopy too, such as `lambda t: task.mapped(turned(90 * t))`. Cost: the pairs are held in memory; an assignment
    of a block takes about .1 s, a task between a pass over all inputs. Raises `TaskError` for tasks without labels,
    inputs or soft labels of other shapes, other losses, inputs that cannot be mixed (tokens), for "class" other
    classes, and for "labels" other inputs.

    >>> import weightspace as ws
    >>> net, a = ws.demo.example()
    >>> b = a.mapped(lambda x: x.flip(-1))                                 # images from right to left
    >>> path = ws.homotopy(a, b)
    >>> path.distance <= ws.homotopy(a, b, pairs="order").distance         # the nearest pairs
    True
    >>> [len(ws.homotopy(a, b, "batches")(t)) for t in (0, 0.5, 1)]
    [60, 60, 60]
    """
    if kind != "inputs" and pairs != "transport":
        raise TaskError(f'pairs="{pairs}" is about inputs that are mixed; leave it out for {kind}')
    one, two = (task.mapped(lambda x: x) for task in (a, b))
    _fit(one, two)
    a._check(b)
    if kind == "batches":
        return _exchanged(a, b, one, two, seed)
    if kind == "labels":
        same = len(one) == len(two) and all(map(torch.equal, *(leaves(task.example(len(task))) for task in (one, two))))
        if not same:
            raise TaskError(
                'mixing labels needs two tasks with the same inputs in the same order; mix "inputs" or "batches"'
            )
        return Homotopy(a, b, kind, len(one), 0.0, lambda t: one.toward(two, t))
    mine, its = (torch.as_tensor(rows) for rows in _paired(one, two, pairs, seed))
    start, end = one.pick(mine.tolist()), two.pick(its.tolist())
    apart = float((_rows(start) - _rows(end)).square().sum(1).mean().sqrt())
    return Homotopy(a, b, kind, len(mine), apart, lambda t: start.toward(end, t))


def _fit(a: Task, b: Task) -> None:
    """Raise `TaskError` for tasks between which there is nothing."""
    y, z = ([y for _, y in task.batches()][0] for task in (a, b))
    if y is None or z is None:
        which = " and ".join(name for name, labels in (("first", y), ("second", z)) if labels is None)
        raise TaskError(
            f"the {which} task has no labels, and a homotopy takes two with labels; give Task(inputs, labels)"
        )
    one, two = (each(lambda x: tuple(x.shape[1:]), task.example(1)) for task in (a, b))
    if one != two:
        raise TaskError(f"inputs of different shape an example: {one} and {two}; nothing lies between them")
    if y.is_floating_point() == z.is_floating_point() and y.shape[1:] != z.shape[1:]:
        raise TaskError(
            f"labels of different shape an example, {tuple(y.shape[1:])} and {tuple(z.shape[1:])}: other numbers of "
            "classes; pad the labels of one"
        )


# ------------------------------------------------------------------ exchanged examples


def _exchanged(a: Task, b: Task, one: Task, two: Task, seed: int) -> Homotopy:
    """Examples of a, exchanged for those of b one after the other."""
    n = max(len(one), len(two))
    mine, its = (_evenly(torch.arange(len(task)), n, derived(seed, name)) for name, task in (("a", one), ("b", two)))

    def between(t: float) -> Task:
        k = round(t * n)
        parts = [task.pick(rows.tolist()) for task, rows in ((one, mine[k:]), (two, its[:k])) if len(rows)]
        return parts[0] if len(parts) == 1 else parts[0] | parts[1]

    return Homotopy(a, b, "batches", n, 0.0, between)


def _evenly(rows: Int[Tensor, " n"], n: int, seed: int) -> Int[Tensor, " m"]:
    """n of the rows in a random order: every row n / len(rows) times, rounded up or down."""
    order = rows[shuffled(len(rows), seed)]
    return order.repeat(-(-n // len(rows)))[:n]


# ------------------------------------------------------------------ pairs


def _paired(a: Task, b: Task, pairs: Pairs, seed: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """The rows of both tasks that make pairs."""
    if pairs == "order":
        n = min(len(a), len(b))
        return torch.arange(n), torch.arange(n)
    x, y = _rows(a), _rows(b)
    found = []
    for k, (mine, its) in enumerate(_groups(a, b, pairs)):
        n = max(len(mine), len(its))
        mine, its = (_evenly(part, n, derived(seed, name, k)) for name, part in (("a", mine), ("b", its)))
        for start in range(0, n, _BLOCK):
            i, j = mine[start : start + _BLOCK], its[start : start + _BLOCK]
            found.append((i, j[torch.from_numpy(assign(x[i] @ y[j].T))]))  # |x|^2 and |y|^2 are the same for all pairs
    return torch.cat([i for i, _ in found]), torch.cat([j for _, j in found])


def _groups(a: Task, b: Task, pairs: Pairs) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows that may be paired with each other: all, or those of one class."""
    if pairs == "transport":
        yield torch.arange(len(a)), torch.arange(len(b))
        return
    y, z = a.labels(), b.labels()
    if y.is_floating_point() or z.is_floating_point() or y.dim() != 1 or z.dim() != 1:
        raise TaskError('pairs="class" needs one class label for each example; pair by "transport"')
    one, two = y.unique().tolist(), z.unique().tolist()
    if one != two:
        lone = sorted({*one} ^ {*two})[:3]
        raise TaskError(
            f'pairs="class" needs the same classes in both tasks, and only one has {lone}; pair by "transport"'
        )
    for label in one:
        yield (y == label).nonzero().flatten(), (z == label).nonzero().flatten()


def _rows(task: Task) -> Float[Tensor, "examples numbers"]:
    """All inputs of an example as one row of numbers."""
    parts = [part.flatten(1) for part in leaves(task.example(len(task))) if part.is_floating_point()]
    if not parts:
        raise TaskError('integer inputs, such as tokens, have no point between them; mix "batches"')
    return torch.cat([part.double() for part in parts], 1)
