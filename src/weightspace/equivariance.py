"""What a function owes a group that acts on its inputs and outputs, and how far it is from paying.

A function f is equivariant when f(g x) = g f(x) for all g of a group G, invariant when the action on its outputs is
trivial. A linear map W is equivariant exactly when it equals its Reynolds average R(W) = mean_g rho_out(g)^-1 W
rho_in(g), the orthogonal projection on the equivariant maps where G acts by permutations. `GroupConv` is equivariant
whatever its weights: (F * psi)(g) = sum_h F(h) psi(g^-1 h), over turns, reflections and shifts.
Sources: Group equivariant convolutional networks (Cohen, Welling, 2016); Steerable CNNs (Cohen, Welling, 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.acting import FiniteGroup, GroupError, Matrices
from weightspace.examples import line
from weightspace.net import Net, Weights
from weightspace.public import public
from weightspace.task import Task, logits

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "Defect", "GroupConv", "GroupPool", "equivariance_defect", "invariance_defect", "invariant", "reynolds",
    "reynolds_defect",
]  # fmt: skip

Act: TypeAlias = Callable[[Tensor], Tensor]
_EXACT = 1e-5


# ------------------------------------------------------------------ of functions


@public
@dataclass(frozen=True)
class Defect:
    """|f(g x) - g f(x)| / |f(x)| over all examples for every element; `mean` and `worst` leave out the identity."""

    elements: list[float]

    @property
    def mean(self) -> float:
        """The mean over the elements other than the identity."""
        others = self.elements[1:]
        return sum(others) / len(others) if others else 0.0

    @property
    def worst(self) -> float:
        """The largest."""
        return max(self.elements)


@public
def equivariance_defect(f: Any, x: Task | Tensor, group: FiniteGroup, on_output: FiniteGroup | None = None) -> Defect:
    """|f(g x) - g f(x)| / |f(x)| for every g; `on_output`: the same group as it acts on outputs, else as on inputs.

    Norms go over all examples and outputs. Zero for an equivariant f, about sqrt(2) where f(g x) and g f(x) have
    nothing to do with one another. Networks are in evaluation mode. Cost: n + 1 passes forward. Raises `GroupError`
    for outputs on which the group does not act, that are zero, or that are not finite.
    """
    acting = group if on_output is None else on_output
    if not torch.equal(acting.table, group.table):
        raise GroupError(f"{acting} on the outputs is not the group on the inputs, {group}; give the same elements")
    return _defect(f, x, group, acting)


@public
def invariance_defect(f: Any, x: Task | Tensor, group: FiniteGroup) -> Defect:
    """|f(g x) - f(x)| / |f(x)| for every g of the group; as `equivariance_defect`."""
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
                raise GroupError(f"outputs {tuple(after.shape)} of turned inputs, {tuple(turned.shape)} of others")
            squares[k] += (after.double() - turned.double()).square().sum().cpu()
    if not total:
        raise GroupError("the outputs are zero, and nothing is small or large beside them")
    return Defect((squares / total).sqrt().tolist())


def _function(f: Any) -> Act:
    if isinstance(f, nn.Module):
        f = Net.of(f)
    if not callable(f):
        raise GroupError(f"expected a Net, a module or a function, got {type(f).__name__}")
    return lambda x: logits(f(x))


def _batches(x: Task | Tensor, net: Net | None) -> Iterator[Tensor]:
    for batch in [x] if isinstance(x, Tensor) else (b for b, _ in x.batches(net)):
        if not isinstance(batch, Tensor) or not len(batch):
            seen = "an empty tensor" if isinstance(batch, Tensor) else type(batch).__name__
            raise GroupError(f"a group acts on one tensor of inputs, got {seen}")
        yield _finite(batch, "inputs")


def _finite(x: Tensor, what: str = "outputs") -> Tensor:
    if x.is_floating_point() and not bool(x.isfinite().all()):
        raise GroupError(f"the {what} hold NaN or infinity; look for it in the data and the weights")
    return x


class Orbit(nn.Module):
    """x -> max or mean of f(g x) over the group."""

    def __init__(self, f: Any, group: FiniteGroup, how: str) -> None:
        super().__init__()
        self.inner, self.group, self.how = f, group, how

    def forward(self, x: Tensor) -> Tensor:
        """All elements, one after the other."""
        seen = torch.stack([logits(self.inner(self.group(k, x))) for k in range(len(self.group))])
        return seen.amax(0) if self.how == "max" else seen.mean(0)


@public
def invariant(f: Any, group: FiniteGroup, how: str = "mean") -> Any:
    """x -> mean_g f(g x), or the maximum over g of every output: invariant whatever f is.

    A Net becomes a Net whose weights are named "inner.*", a module a module that can be trained, a function a function.
    Cost: that of f, once for every element.
    """
    if how not in ("max", "mean"):
        raise GroupError(f'how must be "max" or "mean", got {how!r}')
    if not isinstance(f, Net):
        orbit = Orbit(f, group, how) if callable(f) else None
        if orbit is None:
            raise GroupError(f"expected a Net, a module or a function, got {type(f).__name__}")
        return orbit if isinstance(f, nn.Module) else orbit.forward
    named = (Weights({f"inner.{n}": t for n, t in part.items()}) for part in (f.weights, f.state))
    return Net(Orbit(f.architecture, group, how).eval(), *named)


# ------------------------------------------------------------------ of weights

Rho: TypeAlias = "Matrices | Tensor | Sequence[Tensor] | None"


@public
def reynolds(
    weight: Float[Tensor, "*shape"], rho_in: Rho, rho_out: Rho = None, *, kernel: FiniteGroup | None = None
) -> Float[Tensor, "*shape"]:
    """R(W) = mean_g rho_out(g)^-1 W rho_in(g), the equivariant part of a linear map; None is the trivial action.

    `rho_in`, `rho_out`: one matrix for every element, such as `group.matrices((1, 8, 8))`. For a convolution's kernel
    they act on channels, and `kernel` on the taps: R(K) = mean_g rho_out(g)^-1 K(g .) rho_in(g), the condition of a
    steerable kernel. In float64. Raises `GroupError` for matrices of other sizes, or that are no group.
    """
    w = _finite(weight.detach().double(), "weights")
    if w.dim() < 2:
        raise GroupError(f"expected a matrix or a kernel, got shape {tuple(w.shape)}")
    once = _averaged(w, rho_in, rho_out, kernel)
    again = _averaged(once, rho_in, rho_out, kernel)
    if float((again - once).norm()) > _EXACT * float(w.norm()):
        raise GroupError("averaging twice is not averaging once: the matrices are no group in the same order")
    return once


@public
def reynolds_defect(
    weight: Float[Tensor, "*shape"], rho_in: Rho, rho_out: Rho = None, *, kernel: FiniteGroup | None = None
) -> float:
    """|W - R(W)| / |W|: 0 for an equivariant map; sqrt(1 - 1/n) expected of noise under n regular shifts."""
    w = weight.detach().double()
    if not float(w.norm()):
        raise GroupError("the weights are zero, which is equivariant and has no relative defect")
    return float((w - reynolds(weight, rho_in, rho_out, kernel=kernel)).norm() / w.norm())


def _averaged(w: Tensor, rho_in: Rho, rho_out: Rho, kernel: FiniteGroup | None) -> Tensor:
    counts = {len(part) for part in (rho_in, rho_out, kernel) if part is not None}
    if len(counts) != 1 or 0 in counts:
        raise GroupError(f"expected one matrix for every element in rho_in and rho_out, got {sorted(counts)}")
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
        raise GroupError(f"{name} has matrices of shape {tuple(matrix.shape)}; the weight needs {size} x {size}")
    return matrix.double()


def _inverted(matrix: Tensor) -> Tensor:
    try:
        return torch.linalg.inv(matrix.double())
    except RuntimeError as error:
        raise GroupError(f"rho_out has a matrix that cannot be inverted: {line(error)}") from error


# ------------------------------------------------------------------ layers

_POINT: dict[str, Callable[[], FiniteGroup] | None] = {
    "shifts": None,
    "p4": FiniteGroup.rotations,
    "p4m": FiniteGroup.dihedral,
}


class GroupConv(nn.Module):
    """A convolution over a group of the plane: (F * psi)(g) = sum_h F(h) psi(g^-1 h), equivariant whatever psi.

    `group`: "shifts", a plain convolution, of sequences too (`dims=1`); "p4", with quarter turns; "p4m", with
    reflections as well, these being 4 and 8 elements. A lifting layer takes images (example, channel, height, width);
    others take, and all give, maps (example, channel, element, height, width), on which G acts as
    `FiniteGroup.rotations().regular()` does. Weights are (out, in, element, size, size), without elements where the
    layer lifts. `padding`: "circular", exact for shifts too; "zeros", exact for turns; "valid". Without a stride, which
    would sample off the centre; pool maps of even size with `F.max_pool3d(x, (1, 2, 2))`. Raises `GroupError` for an
    even `size` with a padding, which moves the centre, and for maps that do not fit.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        group: str = "p4",
        *,
        lifting: bool = False,
        padding: str = "circular",
        bias: bool = True,
        dims: int = 2,
    ) -> None:
        super().__init__()
        self.index: Tensor
        if group not in _POINT or padding not in ("circular", "zeros", "valid"):
            known = "shifts, p4, p4m and circular, zeros, valid"
            raise GroupError(f"unknown group {group!r} or padding {padding!r}; choose of {known}")
        if min(inputs, outputs, size) < 1 or dims not in (1, 2) or (dims == 1 and group != "shifts"):
            raise GroupError(
                f"no layer of {group} has {inputs} and {outputs} channels, size {size} and {dims} dimensions"
            )
        if size % 2 == 0 and padding != "valid":
            raise GroupError(f'a kernel of even size {size} has no centre; take an odd one, or padding="valid"')
        make = _POINT[group]
        point = make() if make else None
        self.group, self.padding, self.size, self.dims = group, padding, size, dims
        self.order, self.lifting = len(point) if point else 1, lifting or point is None
        taps = (() if self.lifting else (self.order,)) + (size,) * dims
        bound = 1 / math.sqrt(inputs * math.prod(taps))
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *taps).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound)) if bias else None
        turned = torch.arange(math.prod(taps)).view(taps)
        acting = point if self.lifting or point is None else point.regular()
        index = [(turned if acting is None else acting(k, turned)).flatten() for k in range(self.order)]
        self.register_buffer("index", torch.stack(index), persistent=False)

    @property
    def bank(self) -> Float[Tensor, "units channels *taps"]:
        """The kernels g psi for all g, as those of a plain convolution."""
        out, taps = len(self.weight), (self.size,) * self.dims
        turned = self.weight.flatten(2)[:, :, self.index]  # (out, in, element, element of the input and taps)
        return turned.transpose(1, 2).reshape(out * self.order, -1, *taps)

    def forward(self, x: Tensor) -> Tensor:
        """The maps over the group."""
        elements = () if self.lifting else (self.order,)
        if x.dim() != 2 + len(elements) + self.dims or x.shape[1 : 2 + len(elements)] != (
            self.weight.shape[1],
            *elements,
        ):
            wanted = ("example", self.weight.shape[1], *elements, *("size",) * self.dims)
            raise GroupError(f"expected maps {wanted}, got shape {tuple(x.shape)}")
        x, half = x if self.lifting else x.flatten(1, 2), self.size // 2
        if half and self.padding != "valid":
            if self.padding == "circular" and min(x.shape[-self.dims :]) < half:
                raise GroupError(f"maps {tuple(x.shape)} are too small for a circular kernel of size {self.size}")
            mode = "circular" if self.padding == "circular" else "constant"
            x = F.pad(x, (half,) * (2 * self.dims), mode=mode)
        bias = None if self.bias is None else self.bias.repeat_interleave(self.order)
        out = (F.conv1d if self.dims == 1 else F.conv2d)(x, self.bank, bias)
        return out if self.order == 1 else out.unflatten(1, (-1, self.order))

    def extra_repr(self) -> str:
        """What is printed of the layer."""
        out, channels = self.weight.shape[:2]
        kind = "lifting, " if self.lifting and self.order > 1 else ""
        return f"{channels}, {out}, size={self.size}, {self.group}, {kind}{self.padding}"


class GroupPool(nn.Module):
    """Maps over a group and the plane -> maps on the plane: the maximum or the mean over the elements."""

    def __init__(self, how: str = "max") -> None:
        super().__init__()
        if how not in ("max", "mean"):
            raise GroupError(f'how must be "max" or "mean", got {how!r}')
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        """(example, channel, element, height, width) -> (example, channel, height, width)."""
        if x.dim() != 5:
            raise GroupError(f"expected maps (example, channel, element, height, width), got shape {tuple(x.shape)}")
        return x.amax(2) if self.how == "max" else x.mean(2)
