"""The Jacobian of a network on data, as a linear map: J v and J^T u, exact."""

from __future__ import annotations

import contextlib
import warnings
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
from weightspace.net.net import Net, math_attention
from weightspace.net.public import public
from weightspace.task.digest import form
from weightspace.task.examples import TaskError
from weightspace.task.outputs import counted, logits
from weightspace.task.task import Task

__all__ = ["Linearised", "jacobian", "tangent", "trusted"]

_HELD = 1 << 13  # outputs of a task whose graphs are kept
_AGREE = 10.0  # square roots of rounding, relative, by which a product and its transpose may differ


# ------------------------------------------------------------------ the Jacobian of a network on data


Function = Callable[[Sequence[Tensor]], Tensor]


@public
class Linearised:
    """f around a point as a linear map: J v and J^T u from one graph.

    J v is the derivative of u -> J^T u along v, and so its transpose: what a pass back leaves out, J leaves out too.
    With `forward`, or where an operation cannot be differentiated twice, it is a tangent instead. Raises
    `OperatorError` for outputs that do not depend on the point, and where torch has neither.
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
        """u, and J^T u as a function of it; u is nowhere in particular, as some formulas divide by it."""
        drawn = torch.randn(self.outputs.shape, generator=torch.Generator().manual_seed(0))
        u = drawn.to(self.outputs).requires_grad_()
        with torch.enable_grad(), math_attention():
            return u, [*grad(self.outputs, self.point, u, create_graph=True, allow_unused=True)]

    def push(self, vector: Sequence[Tensor]) -> Tensor:
        """J v."""
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
    """J v, forward. Raises `OperatorError` where an operation has no forward derivative."""
    with math_attention(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own forward mode raises one when first used
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
    """Whether J is the transpose of J^T where it is taken from two passes back, and where it is taken forward.

    torch's forward mode follows what is computed under no_grad, and a derivative written in Python may follow nothing.
    Tried once for every architecture and form `of` its inputs (`digest.form`), by |J^T r|^2 = <r, J J^T r>, on the
    first of `some` that can be computed: a network may not take two examples alone. Raises `OperatorError` where
    neither is.
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
    """J = d(outputs of all examples)/dw: rows are outputs example by example, columns weights.

    J and J^T are transposes of one another: what a pass back leaves out, as the row of an embedding's padding, J leaves
    out. Nothing is stored but a batch at a time, and the graphs of all where these are small. J v then costs about a
    pass forward and back, else a pass forward and its tangent; J^T u one pass forward and back. The net is in
    evaluation mode: running statistics are constants. Raises `OperatorError` for outputs that do not depend on the
    weights, and for an operation whose derivative torch has only once. Positions of a sequence that are labelled -100
    have rows of zeros.
    """
    weights, state = net.weights, dict(net.state)
    flat = weights.flat()
    batches = [*task.batches(net)]
    task.fits(net)

    def at(x: Any, y: Tensor | None) -> Function:
        def f(w: Sequence[Tensor]) -> Tensor:
            args, kwargs = ((), dict(x)) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
            out = counted(output(called(net.architecture, {**weights.shaped(w[0]), **state}, args, kwargs)), y)
            return out.reshape(len(out), -1)

        return f

    with torch.no_grad(), math_attention():
        sizes = [at(*batch)([flat]).numel() for batch in batches]
    held: dict[int, Linearised] = {}
    keep = sum(sizes) <= _HELD
    some = [at(carried(task.example(2), net), None), at(*batches[0])]
    back, forward = trusted(net, some, [flat], form(net, task.example(1)))

    def linear(k: int) -> Linearised:
        """A batch; those of a small task are kept."""
        if k in held:
            return held[k]
        found = Linearised(at(*batches[k]), [flat], not back)
        if keep:
            held[k] = found
        return found

    def push(v: Tensor) -> Tensor:
        along = [v.to(flat)]
        ahead = forward and not keep
        parts = (tangent(at(*b), [flat], along) if ahead else linear(k).push(along) for k, b in enumerate(batches))
        return torch.cat([part.flatten() for part in parts])

    def pull(u: Tensor) -> Tensor:
        def transposed(k: int, part: Tensor) -> Tensor:
            found = linear(k)
            return found.pull(part.view(found.outputs.shape))[0]  # type: ignore[return-value]

        return reduce(Tensor.add_, (transposed(k, part) for k, part in enumerate(u.to(flat).split(sizes))))

    return Operator(sum(sizes), len(flat), push, pull)
