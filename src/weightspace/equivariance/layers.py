"""Group convolutions and group pooling: layers that are equivariant by construction."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.equivariance.finite_group import FiniteGroup
from weightspace.net.errors import WeightspaceError

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["GroupConv", "GroupPool"]


# ------------------------------------------------------------------ layers

_POINT: dict[str, Callable[[], FiniteGroup] | None] = {
    "shifts": None,
    "p4": FiniteGroup.rotations,
    "p4m": FiniteGroup.dihedral,
}


class GroupConv(nn.Module):
    """A group convolution (F * psi)(g) = sum_h F(h) psi(g^-1 h) over the plane, equivariant for any weights psi.

    `group`: "shifts", a plain convolution, also of sequences (`dims=1`); "p4", with the 4 quarter turns; "p4m", with
    reflections as well, 8 elements. A lifting layer takes images (example, channel, height, width); the others take,
    and all return, maps (example, channel, element, height, width), on which the group acts as
    `FiniteGroup.rotations().regular()` does. Weights are (out, in, element, size, size), without the element axis in a
    lifting layer. `padding`: "circular", exact for shifts too; "zeros", exact for turns; "valid". There is no stride,
    which would sample off the centre; pool maps of even size with `F.max_pool3d(x, (1, 2, 2))`. Raises
    `WeightspaceError` for an even `size` with padding, which moves the centre, and for maps that do not fit.

    >>> import torch, weightspace as ws
    >>> _, task = ws.demo.example()
    >>> lift, group = ws.GroupConv(1, 4, 3, lifting=True), ws.FiniteGroup.rotations()
    >>> lift(task.example(3)).shape
    torch.Size([3, 4, 4, 8, 8])
    >>> ws.GroupConv(4, 2, 3)(lift(task.example(3))).shape
    torch.Size([3, 2, 4, 8, 8])
    >>> ws.equivariance_defect(lift, task.example(3), group, group.regular()).worst < 1e-4
    True
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
            raise WeightspaceError(f"unknown group {group!r} or padding {padding!r}; choose of {known}")
        if min(inputs, outputs, size) < 1 or dims not in (1, 2) or (dims == 1 and group != "shifts"):
            raise WeightspaceError(
                f"{group} has no layer of {inputs} and {outputs} channels, size {size} and {dims} dimensions"
            )
        if size % 2 == 0 and padding != "valid":
            raise WeightspaceError(f'a kernel of even size {size} has no centre; take an odd one, or padding="valid"')
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
        """The convolved maps, with an axis over the group elements."""
        elements = () if self.lifting else (self.order,)
        if x.dim() != 2 + len(elements) + self.dims or x.shape[1 : 2 + len(elements)] != (
            self.weight.shape[1],
            *elements,
        ):
            wanted = ("example", self.weight.shape[1], *elements, *("size",) * self.dims)
            raise WeightspaceError(f"expected maps {wanted}, got shape {tuple(x.shape)}")
        x, half = x if self.lifting else x.flatten(1, 2), self.size // 2
        if half and self.padding != "valid":
            if self.padding == "circular" and min(x.shape[-self.dims :]) < half:
                raise WeightspaceError(f"maps {tuple(x.shape)} are too small for a circular kernel of size {self.size}")
            mode = "circular" if self.padding == "circular" else "constant"
            x = F.pad(x, (half,) * (2 * self.dims), mode=mode)
        bias = None if self.bias is None else self.bias.repeat_interleave(self.order)
        out = (F.conv1d if self.dims == 1 else F.conv2d)(x, self.bank, bias)
        return out if self.order == 1 else out.unflatten(1, (-1, self.order))

    def extra_repr(self) -> str:
        """The settings shown when the layer is printed."""
        out, channels = self.weight.shape[:2]
        kind = "lifting, " if self.lifting and self.order > 1 else ""
        return f"{channels}, {out}, size={self.size}, {self.group}, {kind}{self.padding}"


class GroupPool(nn.Module):
    """Pooling over the group: the maximum or the mean of a map over the elements, which turns with the image.

    >>> import torch, weightspace as ws
    >>> maps = torch.zeros(3, 4, 8, 5, 5)     # example, channel, element, height, width
    >>> ws.GroupPool("mean")(maps).shape
    torch.Size([3, 4, 5, 5])
    """

    def __init__(self, how: str = "max") -> None:
        super().__init__()
        if how not in ("max", "mean"):
            raise WeightspaceError(f'how must be "max" or "mean", got {how!r}')
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        """(example, channel, element, height, width) -> (example, channel, height, width)."""
        if x.dim() != 5:
            raise WeightspaceError(
                f"expected maps (example, channel, element, height, width), got shape {tuple(x.shape)}"
            )
        return x.amax(2) if self.how == "max" else x.mean(2)
