"""The Jacobian of a network's outputs in its weights, as a linear operator: exact J v and J^T u."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, reduce
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.func import jvp

from weightspace.linear.estimate import OperatorError
from weightspace.linear.operator import Operator
from weightspace.net.differentiable import called, custom_functions, told
from weightspace.net.inputs import carried
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.state import forward_mode, math_attention
from weightspace.task.digest import form
from weightspace.task.examples import TaskError
from weightspace.task.outputs import counted, logits
from weightspace.task.task import Task

__all__ = ["Linearised", "jacobian", "tangent", "trusted"]

_HELD = 1 << 13  # outputs of a task up to which its graphs are stored
_AGREE = 10.0  # relative tolerance of <r, J J^T r> = |J^T r|^2, in square roots of the rounding


# ------------------------------------------------------------------ the Jacobian of a network on data


Function = Callable[[Sequence[Tensor]], Tensor]


@public
class Linearised:
    """A function linearised at a point: J v and J^T u from one stored graph.

    J v is the derivative of u -> J^T u along v, and so the exact transpose: what the backward pass leaves out, J leaves
    out too. With `forward`, or where an operation cannot be differentiated twice, J v is taken in forward mode. Raises
    `OperatorError` for outputs that do not depend on the point, and where torch has neither derivative.

    >>> import torch, weightspace as ws
    >>> at = ws.curvature.Linearised(lambda w: w[0] ** 2, [torch.tensor([1.0, 2.0, 3.0])])
    >>> at.push([torch.ones(3)])
    tensor([2., 4., 6.])
    >>> at.pull(torch.ones(3))
    [tensor([2., 4., 6.])]
    """

    def __init__(self, f: Function, point: Sequence[Tensor], forward: bool = False) -> None:
        self._f, self._forward = f, forward
        self.point = [t.detach().requires_grad_() for t in point]
        with torch.enable_grad(), math_attention():
            self.outputs = f(self.point)
        if not self.outputs.requires_grad:
            raise OperatorError("the outputs do not depend on the weights")

    @cached_property
    def back(self) -> tuple[Tensor, list[Tensor | None]]:
        """u, and J^T u as a function of u; u is random, because some derivatives divide by it."""
        drawn = torch.randn(self.outputs.shape, generator=torch.Generator().manual_seed(0))
        u = drawn.to(self.outputs).requires_grad_()
        with torch.enable_grad(), math_attention():
            return u, [*grad(self.outputs, self.point, u, create_graph=True, allow_unused=True)]

    def push(self, vector: Sequence[Tensor]) -> Tensor:
        """J v, a change of the point to a change of the outputs."""
        if self._forward:
            return tangent(self._f, self.point, vector)
        try:
            u, back = self.back
            used = [(b, v) for b, v in zip(back, vector, strict=True) if b is not None and b.requires_grad]
            if not used:
                return torch.zeros_like(u)
            return grad([b for b, _ in used], u, [v for _, v in used], retain_graph=True, materialize_grads=True)[0]
        except RuntimeError as error:
            self._forward = True
            try:
                return tangent(self._f, self.point, vector)
            except OperatorError:
                raise OperatorError(_missing(error)) from error

    def pull(self, u: Tensor) -> list[Tensor | None]:
        """J^T u; None where the outputs do not depend on a part of the point."""
        try:
            return [*grad(self.outputs, self.point, u, retain_graph=True, allow_unused=True)]
        except RuntimeError as error:
            raise OperatorError(_missing(error)) from error


def _missing(error: BaseException) -> str:
    return f"{told(error)}; write it by operations that have one"


@public
def tangent(f: Function, point: Sequence[Tensor], vector: Sequence[Tensor]) -> Tensor:
    """J v by forward-mode differentiation. Raises `OperatorError` where an operation has no forward derivative.

    >>> import torch, weightspace as ws
    >>> ws.curvature.tangent(lambda w: w[0] ** 2, [torch.tensor([1.0, 2.0, 3.0])], [torch.ones(3)])
    tensor([2., 4., 6.])
    """
    with forward_mode():
        try:
            found = jvp(
                lambda *w: f(w),
                tuple(t.detach() for t in point),
                tuple(v.to(t) for v, t in zip(vector, point, strict=True)),
            )
        except (RuntimeError, NotImplementedError) as error:
            raise OperatorError(_missing(error)) from error
    return found[1].detach()


_trusted: WeakKeyDictionary[nn.Module, dict[str | None, tuple[bool, bool]]] = WeakKeyDictionary()


@public
def trusted(net: Net, some: Iterable[Function], point: Sequence[Tensor], of: str | None) -> tuple[bool, bool]:
    """Whether J v is right by two backward passes, and whether it is right in forward mode: a pair of booleans.

    Right means that J is the transpose of J^T, checked by |J^T r|^2 = <r, J J^T r>. Forward mode also differentiates
    what runs under no_grad, and a derivative written in Python may have none of its own. Checked on the first function
    of `some` that can be computed (a network may refuse two examples alone), once for every architecture and kind `of`
    inputs (`digest.form`; None: always anew). Raises `OperatorError` where neither is right.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> outputs = lambda w: w[0].square()
    >>> ws.curvature.trusted(net, [outputs], [net.weights.flat()], None)
    (True, True)
    """
    kept = _trusted.setdefault(net.architecture, {})
    if of in kept:
        return kept[of]
    f, back = _first(some, point)
    drawn = torch.randn(back.outputs.shape, generator=torch.Generator().manual_seed(1)).to(back.outputs)
    along = [torch.zeros_like(w) if g is None else g for g, w in zip(back.pull(drawn), back.point, strict=True)]
    size = sum(float(g.double().square().sum()) for g in along)
    rounding = _AGREE * torch.finfo(back.outputs.dtype).eps ** 0.5

    def agrees(push: Callable[[], Tensor]) -> bool:
        try:
            found = float((push().double() * drawn.double()).sum())
        except (RuntimeError, OperatorError) as error:
            why.append(str(error))
            return False
        return not abs(found - size) > rounding * size

    why: list[str] = []
    verdict = agrees(lambda: back.push(along)), agrees(lambda: tangent(f, point, along))
    if not any(verdict):
        names = custom_functions(back.outputs)
        raise OperatorError(_opaque(names) if names or not why else why[0])
    if of is not None:
        kept[of] = verdict
    return verdict


def _first(some: Iterable[Function], point: Sequence[Tensor]) -> tuple[Function, Linearised]:
    *before, last = some
    for f in before:
        with contextlib.suppress(RuntimeError, TaskError):
            return f, Linearised(f, point)
    return last, Linearised(last, point)


def _opaque(names: Sequence[str]) -> str:
    return (
        f"the derivative of {', '.join(names) or 'an operation or a hook'} cannot itself be differentiated; write its "
        "backward pass by operations of torch"
    )


@public
def jacobian(net: Net, task: Task, output: Callable[[Any], Tensor] = logits) -> Operator:
    """The Jacobian J = d(outputs of all examples)/d(weights) of a network on a task, as an `Operator`.

    Rows are outputs example by example, columns flat weights. J and J^T are exact transposes: what a backward pass
    leaves out, such as the padding row of an embedding, J leaves out too. One batch is in memory at a time, or the
    graphs of all where these are small. J v then costs about a forward and a backward pass, else a forward pass with
    its tangent; J^T u one forward and backward pass. Evaluation mode: running statistics are constants. Raises
    `OperatorError` for outputs that do not depend on the weights, and for an operation that torch cannot differentiate
    twice. Positions of a sequence that are labelled -100 have rows of zeros.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> j = ws.jacobian(net, task)
    >>> j.rows, j.columns                    # 60 examples x 10 outputs; 1210 weights
    (600, 1210)
    >>> (j @ net.weights.randn(0).flat()).shape
    torch.Size([600])
    """
    parts = _Batches(net, task, output)
    return Operator(sum(parts.sizes), len(parts.flat), parts.push, parts.pull)


class _Batches:
    """The Jacobian of a network on a task, batch by batch; the graphs of a small task are stored."""

    def __init__(self, net: Net, task: Task, output: Callable[[Any], Tensor]) -> None:
        self.net, self.output, self.state = net, output, dict(net.state)
        self.flat = net.weights.flat()
        self.batches = [*task.batches(net)]
        task.fits(net)
        with torch.no_grad(), math_attention():
            self.sizes = [self.function(*batch)([self.flat]).numel() for batch in self.batches]
        self.held: dict[int, Linearised] = {}
        self.keep = sum(self.sizes) <= _HELD
        some = [self.function(carried(task.example(2), net), None), self.function(*self.batches[0])]
        self.back, self.forward = trusted(net, some, [self.flat], form(net, task.example(1)))

    def function(self, x: Any, y: Tensor | None) -> Function:
        """The outputs of a batch as a function of the flat weights."""

        def f(w: Sequence[Tensor]) -> Tensor:
            args, kwargs = ((), dict(x)) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
            tensors = {**self.net.weights.shaped(w[0]), **self.state}
            out = counted(self.output(called(self.net.architecture, tensors, args, kwargs)), y)
            return out.reshape(len(out), -1)

        return f

    def linear(self, k: int) -> Linearised:
        """Batch k, linearised."""
        if k in self.held:
            return self.held[k]
        found = Linearised(self.function(*self.batches[k]), [self.flat], not self.back)
        if self.keep:
            self.held[k] = found
        return found

    def push(self, v: Tensor) -> Tensor:
        """J v."""
        along = [v.to(self.flat)]
        if self.forward and not self.keep:
            parts = (tangent(self.function(*batch), [self.flat], along) for batch in self.batches)
        else:
            parts = (self.linear(k).push(along) for k in range(len(self.batches)))
        return torch.cat([part.flatten() for part in parts])

    def pull(self, u: Tensor) -> Tensor:
        """J^T u."""
        rows = u.to(self.flat).split(self.sizes)
        return reduce(Tensor.add_, (self._transposed(k, part) for k, part in enumerate(rows)))

    def _transposed(self, k: int, part: Tensor) -> Tensor:
        found = self.linear(k)
        return found.pull(part.view(found.outputs.shape))[0]  # type: ignore[return-value]
