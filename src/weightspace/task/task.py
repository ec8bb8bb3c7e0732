"""Tasks: labelled examples, a metric between outputs and labels, and an aggregate over examples.

    L(f) = Sigma_t d_Y(f(x_t), y_t)

d_Y is the `metric`, Sigma the `aggregate`, and t runs over the examples, which are read one batch at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from weightspace.net.arguments import becomes
from weightspace.net.inputs import carried, each, leaves, shape
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.net.seeds import derived
from weightspace.task.examples import (
    Arrays,
    Joined,
    Loader,
    TaskError,
    digest,
    forget,
    form_of,
    gathered,
    joined,
    mixed,
    mixed_labels,
    order_of,
    parts_of,
    read_source,
    shuffled,
    stacked,
)
from weightspace.task.losses import EVEN, IGNORED, Beside, Loss, blamed, descend, name_of, not_a_sum
from weightspace.task.measures import METRICS, TERMS, Aggregate, Metric
from weightspace.task.outputs import logits

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["IGNORED", "Task", "TaskError"]


Seen: TypeAlias = Callable[[Tensor, Tensor], None]


@public(grad=False)
class Task:
    """Labelled examples with a loss L(f) = Sigma_t d_Y(f(x_t), y_t); `task(net)` is the loss, a differentiable scalar.

    `inputs`: a tensor or array (example, ...); a tuple of them (positional inputs of the net); a dict of them
    (keyword inputs; its key "labels" or "label" holds the labels); a map-style dataset of (x, y) or dicts
    (Hugging Face datasets too), stacked into batches of `batch`; or a `DataLoader`, read again at each pass, in the
    order of the dataset even if it shuffles, so that all networks get the same examples in the same order. Data that
    change between passes (random samplers, augmentation, shuffled streams) are refused. Floating-point inputs are
    converted to the dtype of the net.
    `metric`: d_Y, a name, or a function (outputs, labels) -> (example,); by default "cross-entropy" for integer labels
    and "squared" for floating-point ones. `aggregate`: Sigma, "mean" (default), "sum", "l1" = sum |d|,
    "l2" = sqrt(sum d^2), "linf" = max |d|, or a function of the whole vector d.
    `loss`: one function for both, such as `torch.nn.functional.cross_entropy`. Torch's losses are recognised with their
    settings (functions, modules and partials), and give the value of torch over all examples at once, whatever the
    batch size: class weights are divided by their sum, labels (n,) fit outputs (n, 1). Any other function may return
    one distance an example, or a 0-d tensor, the mean of its batch ("mean" and "sum" only); it is refused where a
    second batch shows that it is not the mean over examples, or that examples depend on each other. Labels of a
    sequence are one a position (shift them yourself for next-token prediction): each position whose label is not -100
    is an example t; another `ignore_index` of a loss of torch is read as -100. `output` picks the outputs of a network,
    by default `logits`. Raises `TaskError` for examples, labels, functions and networks that do not fit together.

    >>> import torch
    >>> import weightspace as ws
    >>> net, _ = ws.demo.example()
    >>> task = ws.Task(torch.zeros(20, 64), torch.arange(20) % 10)
    >>> task, task(net).shape
    (Task(20 examples, cross-entropy, mean), torch.Size([]))
    >>> ws.Task(torch.zeros(20, 64), torch.zeros(20, 10), metric="l2", aggregate="sum").distances(net).shape
    torch.Size([20])
    """

    notes: tuple[str, ...] = ()  # what was left out of a file, or guessed

    def __init__(
        self,
        inputs: Any,
        labels: Any = None,
        *,
        loss: Callable[..., Tensor] | None = None,
        metric: Metric | Callable[..., Tensor] | None = None,
        aggregate: Aggregate | Callable[[Tensor], Tensor] | None = None,
        batch: int = 512,
        output: Callable[[Any], Tensor] | None = None,
    ) -> None:
        if loss is not None and (metric is not None or not callable(loss)):
            raise TaskError("loss= is one function for both metric and aggregate; give metric= for a name")
        if batch < 1:
            raise TaskError(f"batch is {batch}; give 1 or more examples")
        self._metric: Any = not_a_sum(loss or metric, "metric")
        self.aggregate: Any = not_a_sum(aggregate, "aggregate") or "mean"
        self._beside, self._share = Beside(), dict[int, float]()
        self.batch, self.output = batch, output or logits
        if callable(self._metric):
            Loss.of(self._metric)  # raises `TaskError` for settings that cannot be used
        self._source = read_source(inputs, labels, batch)
        if isinstance(self._source, Arrays):
            self._metric = self.metric

    @property
    def metric(self) -> Metric | Callable[..., Tensor] | None:
        """The metric d_Y: its name, or the function that was given. None where there are no labels."""
        if self._metric is None:
            _, labels = next(self.batches())
            if labels is not None:
                self._metric = "squared" if labels.is_floating_point() else "cross-entropy"
        return self._metric

    @property
    def recognised(self) -> Loss | None:
        """The description of a metric that is a function, with its current settings; None for a name."""
        return Loss.of(self._metric) if callable(self._metric) else None

    def __len__(self) -> int:
        """The number of inputs; a loader of unknown length is read once to count them."""
        return len(self._source)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        parts = getattr(self._source, "parts", [self._source])
        size = "?" if any(isinstance(part, Loader) and part.size is None for part in parts) else f"{len(self):,}"
        metric = name_of(self._metric or "default metric")
        return f"Task({size} examples, {metric}, {name_of(self.aggregate)})"

    def batches(self, net: Net | None = None) -> Iterator[tuple[Any, Tensor | None]]:
        """The batches (x, y), always in the same order; with a `net`, x on its device and in its dtype."""
        if net is not None:
            checked(net)
        x = None
        self._beside = Beside()
        if all(isinstance(part, Arrays) for part in getattr(self._source, "parts", [self._source])):
            self._share.clear()  # labels may have been changed in place
        for x, y in self._source.batches(self.batch):
            yield (x if net is None else carried(x, net)), self._marked(y)
        if x is None:
            raise TaskError("no examples: the data is empty, or an iterable that can be read only once")

    def recut(self, net: Net | None = None, size: int = 512) -> Iterator[tuple[Any, Tensor | None]]:
        """The batches (x, y), regrouped into `size` examples each, for results that depend on how data are batched."""
        kept: list[tuple[Any, Tensor | None]] = []
        for x, y in self.batches(net):
            if kept and each(form_of, x) != each(form_of, kept[0][0]):  # padded to another length
                yield from joined(kept)
                kept = []
            kept.append((x, y))
            if sum(len(leaves(x)[0]) for x, _ in kept) >= size:
                *whole, rest = parts_of(joined(kept), size)
                yield from whole
                kept = [rest]
        yield from joined(kept)

    def _marked(self, y: Tensor | None) -> Tensor | None:
        """Labels in which ignored positions are -100, whatever the `ignore_index` of the loss."""
        loss = self.recognised
        if y is None or loss is None or loss.ignored is None or y.is_floating_point():
            return y
        return y.masked_fill(y == loss.ignored, IGNORED)

    def forward(self, net: Net, x: Any) -> Tensor:
        """The outputs of a network for a batch. Raises `TaskError` where the network does not take it."""
        return self.output(self.raw(net, x))

    def raw(self, net: Net, x: Any) -> Any:
        """The whole value that a network returns for a batch. Raises `TaskError` where it does not take it."""
        name = type(net.architecture).__name__
        with blamed(lambda: f"{name} does not take inputs of shape {each(shape, x)}"):
            return net(x)

    @torch.no_grad()
    def fits(self, net: Net) -> None:
        """Raise `TaskError` unless the network takes the first batch."""
        x, _ = next(self.batches(net))
        self.forward(net, x)

    def _distances(self, net: Net, seen: Seen | None = None) -> Iterator[tuple[Tensor, int]]:
        """The distances of each batch and their number; a 0-d tensor is their mean. `seen` gets outputs and labels."""
        for x, y in self.batches(net):
            if y is None:
                raise TaskError("the task has no labels; give Task(inputs, labels)")
            f = self.forward(net, x)
            if seen is not None:
                seen(f.detach(), y)
            yield self._measured(f, y)

    def _measured(self, f: Tensor, source: Tensor) -> tuple[Tensor, int]:
        f = f.float() if f.dtype in (torch.float16, torch.bfloat16) else f
        y = source.to(f.device, f.dtype) if source.is_floating_point() else source.to(f.device)
        if isinstance(self.metric, str):
            d = METRICS[self.metric](f, y)
            return d, len(d)
        loss = self.recognised
        assert loss is not None
        if loss.kind in ("whole", "apart"):
            d, count = self._beside.measured(loss, f, y, source)
        else:
            d = loss.distances(f, y) * self.share(y)
            count = len(d)
        if self.aggregate not in ("mean", "sum") and (d.ndim == 0 or loss.reduction not in ("", "none")):
            how = f"aggregate {name_of(self.aggregate)} needs one distance an example"
            raise TaskError(f"{loss.name} returned a batch mean, but {how}; use reduction='none'")
        return (d, count) if count else (f.sum() * 0, 0)

    def share(self, y: Tensor | None) -> float:
        """The number of labels divided by the sum of their class weights, for a loss with class weights; else 1."""
        loss = self.recognised
        if loss is None or y is None or not loss.weighs(y):
            return 1.0
        key = digest(loss.settings["weight"], torch.tensor(loss.ignored or IGNORED))
        if key not in self._share:
            masses = [loss.masses(y) for y in map(self._marked, self._labels()) if y is not None]
            whole, count = sum(float(m.sum()) for m in masses), sum(map(len, masses))
            if count and not whole > 0:
                raise TaskError(f"{loss.name}: the class weights of the labels add up to {whole:g}; give positive ones")
            self._share[key] = count / whole if count else 1.0
        return self._share[key]

    def _labels(self) -> Iterator[Tensor | None]:
        return (y for _, y in self._source.batches(self.batch))

    def loss(self, f: Tensor, y: Tensor | None) -> Float[Tensor, ""]:
        """The mean distance of a batch of outputs from its labels, differentiable in the outputs."""
        total, count = self.summed(f, y)
        if not count:
            raise TaskError(f"no example of this batch has a label: all are {IGNORED}")
        return total / count

    def summed(self, f: Tensor, y: Tensor | None) -> tuple[Float[Tensor, ""], int]:
        """The sum of the distances of a batch of outputs from its labels, differentiable; and their number."""
        if y is None:
            raise TaskError("the task has no labels; give Task(inputs, labels)")
        d, count = self._measured(f, y)
        return d.sum() if d.ndim else d * count, count

    def slopes(self, f: Tensor, y: Tensor | None) -> tuple[Tensor, int]:
        """The gradient of the sum of the distances of a batch in its outputs f; and the number of distances."""
        with torch.enable_grad():
            leaf = f.detach().requires_grad_()
            total, count = self.summed(leaf, y)
            return torch.autograd.grad(total, leaf)[0], count

    def wrong(self, f: Tensor, y: Tensor | None) -> Float[Tensor, " t"]:
        """The errors of a batch: 1 for every label that is not the class of the largest output, else 0."""
        if y is None:
            raise TaskError("the task has no labels; give Task(inputs, labels)")
        y, loss = y.to(f.device), self.recognised
        if loss is not None and loss.kind in EVEN and f.numel() == len(f):
            return ((f.flatten() > EVEN[loss.kind]) != (y.flatten() > 0.5)).to(f.dtype)
        return METRICS["zero-one"](f if loss is None else loss.turned(f), y)

    def distances(self, net: Net) -> Float[Tensor, " t"]:
        """The vector of distances d_t = d_Y(f(x_t), y_t), one an example."""
        return self._vector(net)

    def _vector(self, net: Net, seen: Seen | None = None) -> Tensor:
        parts = [d for d, _ in self._distances(net, seen)]
        means = self.recognised is not None and self.recognised.reduction not in ("", "none")
        if means or any(d.ndim == 0 for d in parts):
            raise TaskError(f"{name_of(self.metric)} returns batch means, not distances; use reduction='none'")
        d = torch.cat(parts)
        if not len(d):
            raise TaskError(f"no example has a label: all are {IGNORED}")
        return d

    def __call__(self, net: Net) -> Float[Tensor, ""]:
        """The loss Sigma_t d_Y(f(x_t), y_t); it has a graph only if the net's weights require a gradient."""
        return self.telling(net)

    def telling(self, net: Net, seen: Seen | None = None) -> Float[Tensor, ""]:
        """The loss as a call gives it; `seen` is called with the outputs and the labels of every batch on the way."""
        learns = any(tensor.requires_grad for tensor in checked(net).tensors.values())
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            if self.aggregate not in TERMS:
                return self._whole(self._vector(net, seen))
            terms, count, dtype = [], 0, torch.float32
            for d, n in self._distances(net, seen):
                terms.append(self._term(d, n))
                count, dtype = count + n, d.dtype
            return self._finish(torch.stack(terms).sum(), count).to(dtype)

    def _whole(self, d: Tensor) -> Tensor:
        value = self.aggregate(d) if callable(self.aggregate) else d.abs().amax()
        if not isinstance(value, Tensor) or value.ndim:
            raise TaskError(f"an aggregate returns a 0-d tensor, not {getattr(value, 'shape', value)}")
        return value

    def _term(self, d: Tensor, n: int) -> Tensor:
        wide = d if d.device.type == "mps" else d.double()
        return wide * n if d.ndim == 0 else TERMS[str(self.aggregate)](wide).sum()

    def _finish(self, total: Tensor, count: int) -> Tensor:
        if self.aggregate == "mean" and not count:
            raise TaskError(f"no example has a label: all are {IGNORED}")
        if self.aggregate == "l2":  # its subgradient at zero is zero
            return torch.where(total > 0, total, 1).sqrt() * (total > 0)
        return total / count if self.aggregate == "mean" else total

    def _backward(self, net: Net) -> tuple[Tensor, float]:
        """Accumulate the gradient in `.grad`, a batch at a time; returns the factor to multiply it with, and L.

        dL = factor * sum_t weight_t dd_t, where d_t are the distances.
        """
        total, count, weights, whole = torch.zeros(()), 0, None, torch.zeros(())
        if self.aggregate not in TERMS:
            with torch.no_grad():
                d = self.distances(net)
            whole = self._whole(d.requires_grad_())
            weights = torch.autograd.grad(whole, d)[0]
        for d, n in self._distances(net):
            term = self._term(d, n) if weights is None else weights[count : count + n].dot(d)
            descend(term)
            total, count = total + term.detach(), count + n
        if weights is not None:
            return torch.ones(()), float(whole.detach())
        leaf = total.requires_grad_()
        value = self._finish(leaf, count)
        return torch.autograd.grad(value, leaf)[0], float(value.detach())

    @torch.no_grad()
    def outputs(self, net: Net) -> Tensor:
        """The outputs f(x_t) of all examples, in order, without gradient."""
        return stacked(*(self.forward(net, x) for x, _ in self.batches(net)))

    def example(self, n: int = 2) -> Any:
        """The first n inputs, as `net(x)` takes them."""
        return self._gathered(n).inputs

    def labels(self, n: int | None = None) -> Tensor:
        """The labels of all examples, or of the first n. Raises `TaskError` where there are none."""
        task = self if n is None else self.take(n)
        parts = [y for _, y in task.batches() if y is not None]
        if not parts:
            raise TaskError("the task has no labels; give Task(inputs, labels)")
        return stacked(*parts)

    def positions(self) -> Tensor | None:
        """The labels of all examples, where they are classes of the positions of sequences; else None."""
        found = [y for _, y in self.batches()]
        parts = [y for y in found if y is not None and y.dim() > 1 and not y.is_floating_point()]
        return stacked(*parts) if len(parts) == len(found) else None

    def _with(self, source: Any, metric: Any = None, aggregate: Any = None) -> Task:
        new = copy.copy(self)
        new._source, new._metric = source, metric or self._metric
        new.aggregate = aggregate or self.aggregate
        new._beside, new._share = Beside(), {}
        return new

    def _gathered(self, n: int | None = None) -> Arrays:
        if n is not None and n < 1:
            raise TaskError(f"asked for {n} examples; ask for 1 or more")
        if isinstance(self._source, Arrays):
            some = self._source.pick(slice(n))
            return Arrays(some.inputs, self._marked(some.labels))
        forget(self._source)
        return gathered(self.batches(), n)

    def _check(self, other: Task) -> None:
        for what in ("metric", "aggregate", "output"):
            mine, its = getattr(self, what), getattr(other, what)
            if mine != its:
                raise TaskError(
                    f"two tasks of different {what}, {name_of(mine)} and {name_of(its)}; give both the same"
                )

    @property
    def in_memory(self) -> bool:
        """Whether all examples are held as tensors."""
        return isinstance(self._source, Arrays)

    def mapped(self, change: Callable[[Any], Any]) -> Task:
        """The task with the same labels and the inputs `change(inputs)`, all at once; held in memory."""
        some = self._gathered()
        return self._with(Arrays(change(some.inputs), some.labels))

    def relabelled(self, labels: Tensor) -> Task:
        """The task with the same inputs and other labels; held in memory."""
        return Task(self._gathered().inputs, labels, batch=self.batch, output=self.output)

    def __or__(self, other: object) -> Task:
        """The task of the examples of both: one aggregate over the union."""
        if not isinstance(other, Task):
            return NotImplemented
        self._check(other)
        parts = [part for task in (self, other) for part in getattr(task._source, "parts", [task._source])]
        return self._with(Joined(parts), self.metric)

    def toward(self, other: Task, t: float) -> Task:
        """The task between two tasks: inputs (1 - t) x_a + t x_b and labels (1 - t) y_a + t y_b, for t in [0, 1].

        Examples are paired by index; the longer task is cut to the length of the shorter one. Class labels become
        one-hot (soft) labels. Held in memory. Raises `TaskError` for integer inputs that differ, such as tokens.
        """
        self._check(other)
        if not 0 <= t <= 1:
            raise TaskError(f"t is {t}; give a number in [0, 1]")
        a = self._gathered()
        b = other._gathered(len(a))
        a = a.pick(slice(len(b)))
        between = Arrays(mixed(a.inputs, b.inputs, t), mixed_labels(a.labels, b.labels, t))
        return self._with(between, self.metric)

    def split(self, fraction: float, seed: int) -> tuple[Task, Task]:
        """Two disjoint tasks: round(fraction n) examples drawn at random from `seed`, and the others, each in order."""
        if isinstance(self._source, Loader):
            raise TaskError("a DataLoader cannot be split; give Task(loader.dataset), or take(n) of it first")
        n = len(self)
        first = round(fraction * n) if 0 < fraction < 1 else 0
        if not 0 < first < n:
            raise TaskError(f"a fraction {fraction} of {n} examples leaves a side empty; give one between 0 and 1")
        order = shuffled(n, seed)
        mine, rest = (self._source.pick(part.sort()[0]) for part in (order[:first], order[first:]))
        return self._with(mine), self._with(rest)

    def take(self, n: int, seed: int | None = None) -> Task:
        """The task of the first n examples, or of n drawn at random from `seed`, in order; all where there are fewer.

        Examples of a loader are held in memory.
        """
        if seed is None and isinstance(self._source, Loader):
            return self._with(self._gathered(n))
        if n < 1:
            raise TaskError(f"asked for {n} examples; ask for 1 or more")
        order = torch.arange(len(self)) if seed is None else shuffled(len(self), seed)
        return self._with(self._source.pick(order[:n].sort()[0]))

    def pick(self, rows: Sequence[int]) -> Task:
        """The task of the examples with these indices, in this order. Raises `TaskError` for an index out of range."""
        index, n = torch.as_tensor(rows, dtype=torch.long), len(self)
        if not len(index) or int(index.min()) < 0 or int(index.max()) >= n:
            raise TaskError(f"examples {list(rows)[:3]} are not all among the {n} of the task")
        return self._with(self._source.pick(index))

    def minibatch(self, n: int, step: int, seed: int) -> Task:
        """The task of one training batch of n examples, that of step number `step`.

        Every epoch has another random order, drawn from `seed`, and drops its last, smaller batch.
        """
        if n >= len(self):
            return self
        epoch, at = divmod(step, len(self) // n)
        order = order_of(len(self), derived(seed, "epoch", epoch))
        return self._with(self._source.pick(order[at * n : at * n + n].sort()[0]))


becomes(Task, DataLoader, Task)
becomes(Task, Dataset, Task)
