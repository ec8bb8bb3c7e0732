"""Equivariance and invariance defects of functions and weights, and averages over a group.

A function f is equivariant when f(g x) = g f(x) for all g of a group G, invariant when the action on its outputs is
trivial. A linear map W is equivariant exactly when it equals its Reynolds average R(W) = mean_g rho_out(g)^-1 W
rho_in(g), the orthogonal projection onto the equivariant maps where G acts by permutations. `GroupConv` is equivariant
whatever its weights: (F * psi)(g) = sum_h F(h) psi(g^-1 h), over turns, reflections and shifts.
Sources: Group equivariant convolutional networks (Cohen, Welling, 2016); Steerable CNNs (Cohen, Welling, 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from weightspace.equivariance.finite_group import FiniteGroup, Matrices
from weightspace.net.errors import WeightspaceError, first_line
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.task.outputs import logits
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Defect", "equivariance_defect", "invariance_defect", "invariant", "reynolds", "reynolds_defect"]


Act: TypeAlias = Callable[[Tensor], Tensor]
Pooling: TypeAlias = Literal["max", "mean"]
_EXACT = 1e-5


# ------------------------------------------------------------------ of functions


@public
@dataclass(frozen=True)
class Defect:
    """How far a function is from equivariant: |f(g x) - g f(x)| / |f(x)| over all examples, for every group element.

    Made by `equivariance_defect` and `invariance_defect`.
    """

    elements: list[float]

    @property
    def mean(self) -> float:
        """The mean over the elements but the identity; 0 in the trivial group."""
        others = self.elements[1:]
        return sum(others) / len(others) if others else 0.0

    @property
    def worst(self) -> float:
        """The largest over the elements."""
        return max(self.elements)


@public
def equivariance_defect(f: Any, x: Task | Tensor, group: FiniteGroup, on_output: FiniteGroup | None = None) -> Defect:
    """The relative equivariance error |f(g x) - g f(x)| / |f(x)| of a function, for every element g of a group.

    `f`: a Net, a module or a function; `on_output`: the same group as it acts on outputs, by default as on inputs.
    Norms are over all examples and outputs. Zero for an equivariant f, about sqrt(2) where f(g x) and g f(x) are
    unrelated. Networks are in evaluation mode. Cost: one forward pass per element, and one. Raises `WeightspaceError`
    for outputs on which the group does not act, that are zero, or that are not finite.

    >>> import torch, weightspace as ws
    >>> _, task = ws.demo.example()
    >>> x, group = task.example(4), ws.FiniteGroup.rotations()
    >>> ws.equivariance_defect(torch.nn.AvgPool2d(2), x, group).worst < 1e-5
    True
    >>> ws.equivariance_defect(lambda x: x.cumsum(-1), x, group).worst > 0.1
    True
    """
    acting = group if on_output is None else on_output
    if not torch.equal(acting.table, group.table):
        raise WeightspaceError(
            f"{acting} on the outputs is not the group on the inputs, {group}; give the same elements"
        )
    return _defect(f, x, group, acting)


@public
def invariance_defect(f: Any, x: Task | Tensor, group: FiniteGroup) -> Defect:
    """The relative invariance error |f(g x) - f(x)| / |f(x)| of a function, for every element g of a group.

    Arguments, cost and errors as in `equivariance_defect`.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.invariance_defect(net, task, ws.FiniteGroup.rotations())
    >>> len(found.elements), found.elements[0], found.worst > 0.1
    (4, 0.0, True)
    """
    return _defect(f, x, group, None)


@torch.no_grad()
def _defect(f: Any, x: Task | Tensor, group: FiniteGroup, acting: FiniteGroup | None) -> Defect:
    function, net = _function(f), Net.of(f) if isinstance(f, (Net, nn.Module)) else None
    squares, total = torch.zeros(len(group), dtype=torch.float64), 0.0
    for batch in _batches(x, net):
        before = _finite(function(batch))
        total += float(before.double().square().sum())
        for k in range(len(group)):
            turned = before if acting is None else acting(k, before)
            after = _finite(function(group(k, batch)))
            if after.shape != turned.shape:
                raise WeightspaceError(
                    f"f(g x) has shape {tuple(after.shape)}, g f(x) has {tuple(turned.shape)}; give one"
                )
            squares[k] += (after.double() - turned.double()).square().sum().cpu()
    if not total:
        raise WeightspaceError("the outputs are all zero, so that no relative defect is defined")
    return Defect((squares / total).sqrt().tolist())


def _function(f: Any) -> Act:
    if isinstance(f, nn.Module):
        f = Net.of(f)
    if not callable(f):
        raise WeightspaceError(f"expected a Net, a module or a function, got {type(f).__name__}")
    return lambda x: logits(f(x))


def _batches(x: Task | Tensor, net: Net | None) -> Iterator[Tensor]:
    for batch in [x] if isinstance(x, Tensor) else (b for b, _ in x.batches(net)):
        if not isinstance(batch, Tensor) or not len(batch):
            seen = "an empty tensor" if isinstance(batch, Tensor) else type(batch).__name__
            raise WeightspaceError(f"a group acts on one tensor of inputs, got {seen}")
        yield _finite(batch, "inputs")


def _finite(x: Tensor, what: str = "outputs") -> Tensor:
    if x.is_floating_point() and not bool(x.isfinite().all()):
        raise WeightspaceError(f"the {what} hold NaN or infinity; look for it in the data and the weights")
    return x


class Orbit(nn.Module):
    """A module x -> max or mean of f(g x) over the group."""

    def __init__(self, f: Any, group: FiniteGroup, how: Pooling) -> None:
        super().__init__()
        self.inner, self.group, self.how = f, group, how

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate f at g x for every element, one after the other."""
        seen = torch.stack([logits(self.inner(self.group(k, x))) for k in range(len(self.group))])
        return seen.amax(0) if self.how == "max" else seen.mean(0)


@public
def invariant(f: Any, group: FiniteGroup, how: Pooling = "mean") -> Any:
    """An invariant version of f: the function x -> mean_g f(g x), or with "max" the maximum over g of every output.

    A Net becomes a Net whose weights are named "inner.*", a module a module that can be trained, a function a function.
    Cost: that of f, once for every element.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> group = ws.FiniteGroup.rotations()
    >>> averaged = ws.invariant(net, group)
    >>> ws.invariance_defect(averaged, task, group).worst < 1e-4
    True
    """
    if not isinstance(f, Net):
        orbit = Orbit(f, group, how) if callable(f) else None
        if orbit is None:
            raise WeightspaceError(f"expected a Net, a module or a function, got {type(f).__name__}")
        return orbit if isinstance(f, nn.Module) else orbit.forward
    named = (Weights({f"inner.{n}": t for n, t in part.items()}) for part in (f.weights, f.state))
    return Net(Orbit(f.architecture, group, how).eval(), *named)


# ------------------------------------------------------------------ of weights

Rho: TypeAlias = "Matrices | Tensor | Sequence[Tensor] | None"


@public
def reynolds(
    weight: Float[Tensor, "*shape"], rho_in: Rho, rho_out: Rho = None, *, kernel: FiniteGroup | None = None
) -> Float[Tensor, "*shape"]:
    """The Reynolds average of a linear map, its equivariant part: R(W) = mean_g rho_out(g)^-1 W rho_in(g).

    `rho_in`, `rho_out`: one matrix for every element, such as `group.matrices((1, 8, 8))`; None is the trivial action.
    For a convolution's kernel they act on channels, and `kernel` on the spatial taps:
    R(K) = mean_g rho_out(g)^-1 K(g .) rho_in(g), the condition of a steerable kernel. In float64. Raises
    `WeightspaceError` for matrices of other sizes, or that do not form a group.

    >>> import torch, weightspace as ws
    >>> rho = ws.FiniteGroup.shifts(3).matrices((3,))
    >>> ws.equivariance.reynolds(torch.diag(torch.tensor([1.0, 2.0, 6.0])), rho, rho)
    tensor([[3., 0., 0.],
            [0., 3., 0.],
            [0., 0., 3.]], dtype=torch.float64)
    """
    w = _finite(weight.detach().double(), "weights")
    if w.dim() < 2:
        raise WeightspaceError(f"expected a matrix or a kernel, got shape {tuple(w.shape)}")
    once = _averaged(w, rho_in, rho_out, kernel)
    again = _averaged(once, rho_in, rho_out, kernel)
    if float((again - once).norm()) > _EXACT * float(w.norm()):
        raise WeightspaceError("averaging twice differs from averaging once: rho_in and rho_out are not one group")
    return once


@public
def reynolds_defect(
    weight: Float[Tensor, "*shape"], rho_in: Rho, rho_out: Rho = None, *, kernel: FiniteGroup | None = None
) -> float:
    """The relative distance of a linear map from its Reynolds average: |W - R(W)| / |W|, arguments as in `reynolds`.

    0 for an equivariant map; sqrt(1 - 1/n) is expected of random weights under n regular shifts.

    >>> import torch, weightspace as ws
    >>> rho = ws.FiniteGroup.shifts(3).matrices((3,))
    >>> ws.equivariance.reynolds_defect(torch.eye(3), rho, rho)
    0.0
    >>> round(ws.equivariance.reynolds_defect(torch.diag(torch.tensor([1.0, 2.0, 6.0])), rho, rho), 2)
    0.58
    """
    w = weight.detach().double()
    if not float(w.norm()):
        raise WeightspaceError("the weights are all zero, so that no relative defect is defined")
    return float((w - reynolds(weight, rho_in, rho_out, kernel=kernel)).norm() / w.norm())


def _averaged(w: Tensor, rho_in: Rho, rho_out: Rho, kernel: FiniteGroup | None) -> Tensor:
    counts = {len(part) for part in (rho_in, rho_out, kernel) if part is not None}
    if len(counts) != 1 or 0 in counts:
        raise WeightspaceError(f"expected one matrix for every element in rho_in and rho_out, got {sorted(counts)}")
    total, n = torch.zeros_like(w), counts.pop()
    for k in range(n):
        moved = w if kernel is None else kernel(kernel.inverse(k), w)
        if rho_in is not None:
            moved = torch.einsum("rc...,cd->rd...", moved, _square(rho_in[k], w.shape[1], "rho_in"))
        if rho_out is not None:
            back = rho_out.inverse(k) if isinstance(rho_out, Matrices) else _inverted(rho_out[k])
            moved = torch.einsum("or,rc...->oc...", _square(back, w.shape[0], "rho_out"), moved)
        total += moved
    return total / n


def _square(matrix: Tensor, size: int, name: str) -> Tensor:
    if matrix.shape != (size, size):
        raise WeightspaceError(f"{name} has matrices of shape {tuple(matrix.shape)}; the weight needs {size} x {size}")
    return matrix.double()


def _inverted(matrix: Tensor) -> Tensor:
    try:
        return torch.linalg.inv(matrix.double())
    except RuntimeError as error:
        raise WeightspaceError(f"rho_out has a matrix that cannot be inverted: {first_line(error)}") from error
