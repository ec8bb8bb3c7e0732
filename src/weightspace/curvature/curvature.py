"""Second derivatives of a task's loss at a network, as operators: Gauss-Newton, Hessian, Fisher information.

    Gauss-Newton  G = sum_t J_t^T H_t J_t     J_t the Jacobian of the outputs, H_t the Hessian of d_Y in the outputs
    Hessian       H = G + sum_t sum_k (d d_Y / d f_k) d^2 f_k / dw^2
    Fisher        F = sum_t E_{y ~ p} g g^T   g = grad_w log p(y | x_t), p(y) ~ exp(-d_Y(f, y))

All are sums over the examples, never means: for a loss in nats their unit is nats. Where log p is linear in y but for
terms without f (softmax, Gaussian, Bernoulli), H_t does not depend on y and F = G. Where the outputs are probabilities
or their logarithms, F is not G: nll_loss is linear in them, so that its G is zero.
J v is the derivative of u -> J^T u along v, so that one graph of a batch, kept, gives all products.
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
from weightspace.curvature.outputs import CurvatureError, OutputHessian, likelihood, output_hessian
from weightspace.linear.estimate import OperatorError
from weightspace.linear.operator import Operator
from weightspace.net.differentiable import called, custom_functions, told
from weightspace.net.errors import WeightspaceError
from weightspace.net.inputs import arguments, carried
from weightspace.net.inputs import leaves as input_leaves
from weightspace.net.net import Net, checked, math_attention
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.task.digest import DigestError, Frame, digest, form, shapes
from weightspace.task.task import Task

__all__ = [
    "CurvatureError",
    "blocks",
    "curvature_diagonal",
    "fisher_information",
    "gauss_newton",
    "graph_bytes",
    "hessian",
    "output_hessian",
]


_MEMORY = 1 << 30
_GRAIN, _LEAST = 1 << 22, 256  # bytes of a batch's graph that stay near the processor; examples of a batch
_TOGETHER = 16  # passes back through one graph
_STEP, _SAME = 1e-6, 1e-3  # of the weights' norm; of the second derivative's

Part = Callable[[Weights], Mapping[str, Tensor]]


@public
def gauss_newton(net: Net, task: Task, *, memory: int = _MEMORY) -> Operator:
    """G = sum_t J_t^T H_t J_t on `net.weights.flat()`, summed over the examples; its diagonal is exact.

    H_t has a closed form for cross-entropy, squared error and binary cross-entropy with logits; any other loss is
    differentiated twice in the outputs. Labels that H_t does not depend on may be missing. Graphs are kept up to
    `memory` bytes (`graph_bytes` tells what all would take): a product then costs a tangent and a pass back, and for
    the batches beyond it two passes more. Evaluation mode; the weights must not change in place while the operator is
    in use. Raises `CurvatureError` for outputs that are not finite or do not depend on the weights, and for losses
    without derivatives; `TaskError` for labels that do not fit.
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
    """F = sum_t E_{y ~ p} g g^T, labels y drawn from the network, p(y) ~ exp(-d_Y): softmax, Gaussian or Bernoulli.

    Exact, for which F = G, or with the outputs read as p or log p where the loss reads them so (binary_cross_entropy,
    nll_loss); with `draws`, the mean over so many labels an example (in a sequence, a position) in place of E. The
    Gaussian of "squared" is exp(-|f - y|^2), of variance 1/2, so that F = 2 J^T J. Memory, cost and errors as
    `gauss_newton`; `CurvatureError` as well for a loss that is no likelihood.
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
    """The Hessian of the loss in the weights, summed over the examples: exact, the derivative of the gradient.

    Memory, cost and errors as `gauss_newton`; `CurvatureError` as well where torch's second derivative is not the
    change of the first one: for parts that are detached, and backward passes written in Python that forget some.
    """

    def part(start: int, x: Any, y: Tensor | None) -> Part:
        if y is None:
            raise CurvatureError("the Hessian needs labels; give Task(inputs, labels)")
        output_hessian(task, task.forward(net, carried(x, net)), y)
        _compared(net, task)
        return _Bent(net, task, x, y).times

    return _operator(net, task, part, memory, None)


@public
def curvature_diagonal(net: Net, task: Task, draws: int | None = None, *, seed: int = 0) -> Weights:
    """diag G, exact: a pass back for every output, and of each the squares of every example's gradient, added up.

    With `draws`, that of the Fisher information from so many labels an example, drawn: unbiased, a pass back each.
    Linear maps and convolutions whose weight is used once cost a pass together; other tensors, a gradient for every
    example. Errors as `gauss_newton`, and with draws as `fisher_information`.
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
    """Name -> the diagonal block (n, n) of a symmetric operator that is that tensor's, in float64.

    Of a tensor of more than `largest` numbers its diagonal (n,) alone, for which the operator must know its own. Cost:
    a product for every number of the others. Raises `OperatorError` for a diagonal that is not known.
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
    """What the graphs of all batches would take, known from two examples."""
    x = carried(task.example(2), checked(net))
    with torch.no_grad():
        task.forward(net, x)  # says what is wrong in the user's words
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
            raise CurvatureError(str(error)) from error
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
                raise CurvatureError("the outputs do not depend on the weights")
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
    """Compare the derivative of the gradient with its differences, on two examples.

    Once for every architecture, form of its inputs, and loss.
    In float64, for a step so short that it crosses no kink. Raises `CurvatureError`.
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
        raise CurvatureError(
            f"the second derivative is not the change of the first: {told_of} has a derivative that cannot be "
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
        raise CurvatureError(f"{told(error)}; write it by operations that have one") from error


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
    """The sum of the batches' parts; as many of them are kept as fit into `memory`."""
    weights, held = checked(net).weights, []
    single = max(1, graph_bytes(net, task) / len(task))
    task, share, start = _regrouped(task, _GRAIN / single), memory / single, 0
    for x, y in task.batches(net):
        share -= len(input_leaves(x)[0])
        made = part(start, x, y)  # also where it is not kept: what is wrong is said here
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
    """The same task in batches that a processor works on well; those of a loader, or a metric of batches, stay."""
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
    """The Fisher information in the outputs; labels that are there must fit."""
    if y is not None:
        output_hessian(task, f, y)
    return likelihood(task, f, y, unit=False)


def _some(draws: int | None) -> None:
    if draws is not None and draws < 1:
        raise CurvatureError(f"draws is {draws}; give 1 or more labels an example")
