"""Gauss-Newton matrix, Hessian and Fisher information of a task at a network, as linear operators.

    Gauss-Newton  G = sum_t J_t^T H_t J_t     J_t the Jacobian of the outputs, H_t the Hessian of d_Y in the outputs
    Hessian       H = G + sum_t sum_k (d d_Y / d f_k) d^2 f_k / dw^2
    Fisher        F = sum_t E_{y ~ p} g g^T   g = grad_w log p(y | x_t), p(y) ~ exp(-d_Y(f, y))

All are sums over the examples, never means: for a loss in nats their unit is nats. Where log p is linear in y up to
terms without f (softmax, Gaussian, Bernoulli), H_t does not depend on y and F = G. Where the outputs are probabilities
or their logarithms, F is not G: nll_loss is linear in them, so that its G is zero.
J v is the derivative of u -> J^T u along v, so that one stored graph per batch gives all products.
Sources: Fast exact multiplication by the Hessian (Pearlmutter, 1994); Fast curvature matrix-vector products for
second-order gradient descent (Schraudolph, 2002); New insights and perspectives on the natural gradient method
(Martens, 2020).
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import groupby, islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.autograd.graph import saved_tensors_hooks

from weightspace.curvature.gradients import squared_gradients
from weightspace.curvature.linearised import Linearised, trusted
from weightspace.curvature.outputs import OutputHessian, likelihood, output_hessian
from weightspace.linear.estimate import OperatorError
from weightspace.linear.operator import Operator
from weightspace.net.differentiable import called, custom_functions, told
from weightspace.net.errors import WeightspaceError
from weightspace.net.inputs import arguments, carried
from weightspace.net.inputs import leaves as input_leaves
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.net.state import math_attention
from weightspace.net.weights import Weights
from weightspace.task.digest import DigestError, Frame, digest, form, shapes
from weightspace.task.task import Task

__all__ = [
    "blocks",
    "curvature_diagonal",
    "fisher_information",
    "gauss_newton",
    "graph_bytes",
    "hessian",
    "output_hessian",
]


_MEMORY = 1 << 30
_GRAIN, _LEAST = 1 << 22, 256  # bytes of a batch's graph that fit into the processor's cache; least examples of a batch
_TOGETHER = 16  # backward passes through one graph
_STEP, _SAME = 1e-6, 1e-3  # of the weights' norm; relative error of the second derivative

Part = Callable[[Weights], Mapping[str, Tensor]]


@public
def gauss_newton(net: Net, task: Task, *, memory: int = _MEMORY) -> Operator:
    """The Gauss-Newton matrix G = sum_t J_t^T H_t J_t of a task at a network, as an `Operator` on flat weights.

    Summed over the examples; acts on `net.weights.flat()`; its diagonal is exact. H_t has a closed form for
    cross-entropy, squared error and binary cross-entropy with logits; any other loss is differentiated twice in the
    outputs. Labels that H_t does not depend on may be missing. Graphs are stored up to `memory` bytes (`graph_bytes`
    estimates the size of all): a product then costs a tangent and a backward pass, and two passes more for the batches
    beyond. Evaluation mode; the weights must not change in place while the operator is in use. Raises
    `WeightspaceError` for outputs that are not finite or do not depend on the weights, and for losses without
    derivatives; `TaskError` for labels that do not fit.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> g, v = ws.gauss_newton(net, task), net.weights.randn(0).flat()
    >>> g.shape, bool(v @ (g @ v) >= 0)     # positive semidefinite
    ((1210, 1210), True)
    """

    def part(start: int, x: Any, y: Tensor | None) -> Part:
        linear = _Linear(net, task, x)
        middle = output_hessian(task, linear.outputs, y).action
        return lambda v: linear.pull(middle(linear.push(v)))

    return _operator(net, task, part, memory, lambda: curvature_diagonal(net, task))


@public
def fisher_information(
    net: Net, task: Task, draws: int | None = None, *, seed: int = 0, memory: int = _MEMORY
) -> Operator:
    """The Fisher information F = sum_t E_{y ~ p} g g^T of a network on a task, g = grad_w log p(y), as an `Operator`.

    Labels y are drawn from the network, p(y) ~ exp(-d_Y): softmax, Gaussian or Bernoulli. Exact by default, where
    F = G, or with the outputs taken as p or log p for a loss that does so (binary_cross_entropy, nll_loss); with
    `draws`, the mean over so many labels per example (in a sequence, per position). The Gaussian of "squared" is
    exp(-|f - y|^2), of variance 1/2, so that F = 2 J^T J. Memory, cost and errors as `gauss_newton`; `WeightspaceError`
    also for a loss that is not a negative log-likelihood.

    >>> import torch, weightspace as ws
    >>> net, task = ws.demo.example()
    >>> v = net.weights.randn(0).flat()
    >>> f, g = ws.fisher_information(net, task), ws.gauss_newton(net, task)
    >>> torch.allclose(f @ v, g @ v, rtol=1e-2, atol=1e-2)     # equal for cross-entropy
    True
    """
    _some(draws)

    def part(start: int, x: Any, y: Tensor | None) -> Part:
        linear = _Linear(net, task, x)
        bent = _likely(task, linear.outputs, y)
        if draws is None:
            return lambda v: linear.pull(bent.action(linear.push(v)))
        scores = torch.stack([score for _, score in bent.factors(draws, seed, start)])
        return lambda v: linear.pull(_outer(scores, linear.push(v)))

    return _operator(net, task, part, memory, None if draws else lambda: _squared(net, task, _likely))


@public
def hessian(net: Net, task: Task, *, memory: int = _MEMORY) -> Operator:
    """The Hessian of the loss in the weights, summed over the examples and exact, as an `Operator`.

    Memory, cost and errors as `gauss_newton`; `WeightspaceError` also where torch's second derivative is not that of
    the first: for detached parts, and backward passes written in Python that leave out a part of it.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> h = ws.hessian(net, task)
    >>> u, v = net.weights.randn(0).flat(), net.weights.randn(1).flat()
    >>> h.shape, bool(abs(u @ (h @ v) - v @ (h @ u)) < 1e-2 * (h @ u).norm() * v.norm())     # symmetric
    ((1210, 1210), True)
    """

    def part(start: int, x: Any, y: Tensor | None) -> Part:
        if y is None:
            raise WeightspaceError("the Hessian needs labels; give Task(inputs, labels)")
        output_hessian(task, task.forward(net, carried(x, net)), y)
        _compared(net, task)
        return _Bent(net, task, x, y).times

    return _operator(net, task, part, memory, None)


@public
def curvature_diagonal(net: Net, task: Task, draws: int | None = None, *, seed: int = 0) -> Weights:
    """The exact diagonal of the Gauss-Newton matrix, as `Weights`; or with `draws`, an estimate of the Fisher diagonal.

    Cost: a backward pass for every output; with `draws`, one for each of so many random labels per example, which is
    unbiased. Linear maps and convolutions whose weight is used once share a pass; other tensors take a gradient for
    every example. Errors as `gauss_newton`, and with draws as `fisher_information`.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> diagonal = ws.curvature_diagonal(net, task)
    >>> diagonal["1.weight"].shape, bool(diagonal.flat().min() >= 0)
    (torch.Size([16, 64]), True)
    >>> trace = 60 * ws.fisher_trace(task, labels="all")(net)
    >>> bool(abs(diagonal.flat().sum() / trace - 1) < 1e-3)
    True
    """
    _some(draws)
    return _squared(net, task, _likely if draws else output_hessian, draws, seed)


def _squared(
    net: Net, task: Task, middle: Callable[..., OutputHessian], draws: int | None = None, seed: int = 0
) -> Weights:
    task = _regrouped(task, 2 * _GRAIN / max(1, graph_bytes(net, task) / len(task)))
    return net.weights.zeros().replace(summed_squares(net, task, middle, draws, seed)[0])


def summed_squares(
    net: Net, task: Task, middle: Callable[..., OutputHessian], draws: int | None = None, seed: int = 0
) -> tuple[dict[str, Tensor], int]:
    """The sum of the squares of J_t^T u over the roots u of `middle`, or over drawn scores; and how many examples t."""
    names = [name for name, w in checked(net).weights.items() if w.is_floating_point()]
    total = {name: torch.zeros(net.weights[name].shape, dtype=torch.float64, device=net.device) for name in names}
    start = 0
    for x, y in task.batches(net):
        with torch.no_grad(), math_attention():
            bent = middle(task, task.forward(net, carried(x, net)), y)
        for sign, some in groupby(bent.factors(draws, seed, start), lambda root: root[0]):
            while together := [u for _, u in islice(some, _TOGETHER)]:
                for name, part in squared_gradients(net, task, x, together, names).items():
                    total[name] += sign * part
        start += len(input_leaves(x)[0])
    return total, start


@public
def blocks(operator: Operator, weights: Weights, *, largest: int = 1024) -> dict[str, Tensor]:
    """The diagonal blocks of a symmetric operator, one (n, n) for every tensor, in float64.

    For a tensor of more than `largest` numbers only the diagonal (n,), from the operator's exact diagonal. Cost: a
    product for every number of the other tensors. Raises `OperatorError` for an operator without an exact diagonal.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.curvature.blocks(ws.gauss_newton(net, task), net.weights, largest=20)
    >>> {name: tuple(block.shape) for name, block in found.items()}
    {'1.weight': (1024,), '1.bias': (16, 16), '3.weight': (160,), '3.bias': (10, 10)}
    """
    found: dict[str, Tensor] = {}
    diagonal = None
    for name, tensor in weights.items():
        n = tensor.numel()
        where = weights.zeros().replace({name: torch.ones_like(tensor)}).flat().nonzero()[:, 0].cpu()
        if n > largest:
            diagonal = operator.exact_diagonal() if diagonal is None else diagonal
            found[name] = diagonal.cpu()[where].double()
        else:
            columns = torch.zeros(operator.columns, n, dtype=torch.float64)
            columns[where, torch.arange(n)] = 1
            block = (operator @ columns)[where]
            found[name] = (block + block.T) / 2
    return found


@public
def graph_bytes(net: Net, task: Task) -> int:
    """An estimate of the bytes that the autograd graphs of all batches take together, from two examples.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> ws.curvature.graph_bytes(net, task) > 60 * 16 * 4     # at least the hidden activations
    True
    """
    x = carried(task.example(2), checked(net))
    with torch.no_grad():
        task.forward(net, x)  # raises a clear error first
    seen = {w.untyped_storage().data_ptr() for w in net.tensors.values()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.layout is not torch.strided:
            kept[id(tensor)] = tensor._nnz() * tensor.dtype.itemsize
            return tensor
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    linear = _Linear(net, task, x, saved_tensors_hooks(pack, lambda tensor: tensor))
    return round(sum(kept.values()) / len(linear.outputs) * len(task))


# ------------------------------------------------------------------ products


class _Linear:
    """The outputs of a batch as a linear function of the weights around the net: J v and J^T u from one graph."""

    def __init__(self, net: Net, task: Task, x: Any, counted: AbstractContextManager[Any] | None = None) -> None:
        self.names = [name for name, w in net.weights.items() if w.is_floating_point()]
        f, point = _function(net, task, x, self.names), [net.weights[name] for name in self.names]
        two = _function(net, task, task.example(2), self.names)
        try:
            back = trusted(net, [two, f], point, form(net, task.example(1)))[0]
            with counted or contextlib.nullcontext():
                self.map = Linearised(f, point, not back)
                if back:
                    _ = self.map.back
        except OperatorError as error:
            raise WeightspaceError(str(error)) from error
        self.outputs = self.map.outputs

    def push(self, vector: Weights) -> Tensor:
        """J v."""
        return self.map.push([vector[name] for name in self.names])

    def pull(self, u: Tensor) -> Mapping[str, Tensor]:
        """J^T u."""
        return {name: g for name, g in zip(self.names, self.map.pull(u), strict=True) if g is not None}


class _Bent:
    """The gradient of a batch's loss as a function of the weights, and its derivative."""

    def __init__(self, net: Net, task: Task, x: Any, y: Tensor) -> None:
        names = [name for name, w in net.weights.items() if w.is_floating_point()]
        self.leaves = {name: net.weights[name].detach().requires_grad_() for name in names}
        with torch.enable_grad(), math_attention():
            f = _function(net, task, x, names)([*self.leaves.values()])
            if not f.requires_grad:
                raise WeightspaceError("the outputs do not depend on the weights")
            total = task.summed(f, y.to(f.device))[0]
            slopes = _differentiated(total, [*self.leaves.values()], create_graph=True)
        self.slopes = {n: slope for n, slope in zip(names, slopes, strict=True) if slope.requires_grad}
        self.written = custom_functions(f)

    def gradient(self) -> Tensor:
        """The gradient, flat."""
        return torch.cat([slope.detach().flatten() for slope in self.slopes.values()])

    def times(self, v: Weights) -> Mapping[str, Tensor]:
        """H v."""
        along = [v[name] for name in self.slopes]
        if not along:
            return {}
        found = _differentiated([*self.slopes.values()], [*self.leaves.values()], along, retain_graph=True)
        return dict(zip(self.leaves, found, strict=True))


_seen: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def _compared(net: Net, task: Task) -> None:
    """Check the derivative of the gradient against finite differences on two examples; raises `WeightspaceError`.

    Once for every architecture, shape of inputs, and loss; in float64, with a step too short to cross a kink.
    """
    kept, this = _seen.setdefault(net.architecture, set()), _question(net, task)
    if this is not None and this in kept:
        return
    wide = net.double()
    for x, y in (next(task.take(2).batches()), next(task.batches())):  # a network may not take two examples alone
        with contextlib.suppress(WeightspaceError), torch.no_grad():
            task.summed(task.forward(wide, carried(x, wide)), y)
            break
    else:  # it computes in one precision only
        return
    assert y is not None
    v = wide.weights.randn(0)
    step = _STEP * max(1.0, float(wide.weights.norm())) / float(v.norm())
    bent = _Bent(wide, task, x, y)
    found = bent.times(v)
    ends = [_Bent(wide + s * step * v, task, x, y).slopes for s in (1.0, -1.0)]
    away = size = 0.0
    for name, mine in found.items():
        up, down = (end[name].detach() if name in end else torch.zeros_like(mine) for end in ends)
        change = (up - down) / (2 * step)
        away += float((change - mine).square().sum())
        size += float(change.square().sum()) + float(mine.square().sum())
    noise = float(bent.gradient().norm()) * torch.finfo(torch.float64).eps / step if bent.slopes else 0.0
    if math.sqrt(away) > _SAME * math.sqrt(size) + 100 * noise:
        told_of = ", ".join(bent.written) or "a part of the network that is detached, or an operation"
        raise WeightspaceError(
            f"the second derivative is not the derivative of the first: {told_of} has a derivative that cannot be "
            "differentiated; take gauss_newton, or write it by operations of torch"
        )
    if this is not None:
        kept.add(this)


def _question(net: Net, task: Task) -> str | None:
    try:
        return digest(Frame(net), shapes(task.example(1)), task.metric, task.output)
    except DigestError:
        return None


def _differentiated(outputs: Any, inputs: Sequence[Tensor], along: Any = None, **how: bool) -> Sequence[Tensor]:
    try:
        return grad(outputs, inputs, along, materialize_grads=True, **how)
    except RuntimeError as error:
        raise WeightspaceError(f"{told(error)}; write it by operations that have one") from error


def _function(net: Net, task: Task, x: Any, names: Sequence[str]) -> Callable[[Sequence[Tensor]], Tensor]:
    """The outputs of a batch as a function of the weights of these names."""
    args, kwargs = arguments(carried(x, net))

    def f(w: Sequence[Tensor]) -> Tensor:
        tensors = {**net.tensors, **dict(zip(names, w, strict=True))}
        return task.output(called(net.architecture, tensors, args, kwargs))

    return f


def _operator(
    net: Net,
    task: Task,
    part: Callable[[int, Any, Tensor | None], Part],
    memory: int,
    diagonal: Callable[[], Weights] | None,
) -> Operator:
    """The operator that sums the batches' parts, of which as many are stored as fit into `memory`."""
    weights, held = checked(net).weights, []
    single = max(1, graph_bytes(net, task) / len(task))
    task, share, start = _regrouped(task, _GRAIN / single), memory / single, 0
    for x, y in task.batches(net):
        share -= len(input_leaves(x)[0])
        made = part(start, x, y)  # also where it is not kept, so that errors are raised here
        start += len(input_leaves(x)[0])
        if share >= 0:
            held.append(made)

    def parts() -> Iterator[Part]:
        yield from held
        if share < 0:
            start = 0
            for number, (x, y) in enumerate(task.batches(net)):
                if number >= len(held):
                    yield part(start, x, y)
                start += len(input_leaves(x)[0])

    def times(columns: Tensor) -> Tensor:
        flat = weights.flat()
        vectors = [weights.shaped(column.to(flat, copy=True).contiguous()) for column in columns.T]
        totals = [weights.zeros() for _ in vectors]
        for made in parts():
            for vector, total in zip(vectors, totals, strict=True):
                for name, found in made(vector).items():
                    total[name].add_(found)
        return torch.stack([total.flat() for total in totals], 1).to(columns)

    n = weights.numel
    exact = None if diagonal is None else lambda: diagonal().flat()
    return Operator(n, n, lambda v: times(v[:, None])[:, 0], matmat=times, exact=exact)


def _regrouped(task: Task, most: float) -> Task:
    """The same task in batches that fit into the cache; unchanged for loaders and metrics of whole batches."""
    own = task.metric is None or isinstance(task.metric, str)
    if not (task.in_memory and (own or (task.recognised and task.recognised.kind not in ("whole", "apart")))):
        return task
    task = copy.copy(task)
    task.batch = max(int(most), min(task.batch, _LEAST))
    return task


def _outer(scores: Tensor, u: Tensor) -> Tensor:
    """The mean over draws of s (s . u), label by label."""
    flat = u.ndim < 2
    s, u = (scores[..., None], u[..., None]) if flat else (scores, u)
    found = ((s * u).sum(-1, keepdim=True) * s).mean(0)
    return found[..., 0] if flat else found


def _likely(task: Task, f: Tensor, y: Tensor | None) -> OutputHessian:
    """The Fisher information in the outputs; labels, where given, are checked."""
    if y is not None:
        output_hessian(task, f, y)
    return likelihood(task, f, y, unit=False)


def _some(draws: int | None) -> None:
    if draws is not None and draws < 1:
        raise WeightspaceError(f"draws is {draws}; give 1 or more labels an example")
