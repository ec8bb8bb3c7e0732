"""Weights whose entries are shared or held: circulant, Toeplitz, repeated blocks, masks, (anti)symmetric, asymmetric.

They are affine families, W = W0 + sum_k theta_k B_k, whose B_k have no entry in common. So the nearest weight is a
mean: theta_k is the mean of the entries of W that theta_k stands for, with their signs.

Sources: Deep learning (Goodfellow, Bengio, Courville, 2016), section 9.1, for convolutions as doubly block circulant
matrices; CirCNN (Ding et al., 2017) for block circulant layers; The empirical impact of neural parameter symmetries, or
lack thereof (Lim, Putterman, Walters, Maron, Jegelka, 2024) for fixed entries.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from weightspace.constraints.form import Kind, matrix, square, whole
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public
from weightspace.net.seeds import derived

__all__ = ["Antisymmetric", "Asymmetric", "Circulant", "Masked", "SharedBlocks", "Symmetric", "Toeplitz"]


@dataclass(frozen=True)
class _Shared(Kind):
    """Every entry is one of the free parameters, with a sign: W_e = sign_e theta[index_e]."""

    def form(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the free parameters."""
        raise NotImplementedError

    def index(self, shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
        """For every entry, the number of its free parameter."""
        raise NotImplementedError

    def sign(self, shape: tuple[int, ...]) -> Tensor | None:
        """For every entry 1, -1 or, where it is zero, 0; None where all are 1."""
        return None

    def constants(self, shape: tuple[int, ...], name: str) -> dict[str, Tensor]:
        """The signs, if there are any; the index is computed at every call, and takes no memory between them."""
        sign = self.sign(shape)
        return {} if sign is None else {"sign": sign}

    def weight(self, free: tuple[Tensor, ...], shape: tuple[int, ...], constants: Mapping[str, Tensor]) -> Tensor:
        """theta[index], with the signs."""
        index = self.index(shape, free[0].device)
        entries = torch.index_select(free[0].reshape(-1), 0, index.reshape(-1)).view(shape)
        return entries * constants["sign"].to(entries) if "sign" in constants else entries

    def solved(self, weight: Tensor, constants: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The mean of the entries of every free parameter."""
        shape = tuple(weight.shape)
        form, index = self.form(shape), self.index(shape, weight.device).reshape(-1)
        sign = constants.get("sign", torch.ones_like(weight)).reshape(-1)
        zero = weight.new_zeros(math.prod(form))
        counts = zero.index_add(0, index, sign.abs())
        return ((zero.index_add(0, index, sign * weight.reshape(-1)) / counts).view(form),)


def _apart(size: int, device: torch.device | None) -> Tensor:
    at = torch.arange(size, device=device)
    return at[:, None] - at[None]


@public(grad=False)
@dataclass(frozen=True)
class Circulant(_Shared):
    """A matrix of circulant blocks: each entry depends on where its row and column lie on a circle, W_ij = c[i - j].

    `grid`: None for one block (a square matrix), `(b,)` for blocks of b x b, `(h, w)` for doubly block circulant blocks
    of hw x hw, W_(ij)(kl) = c[i - k, j - l]. A layer with such a weight is a circular convolution, with a channel for
    every block: free parameters c of shape (channels out, channels in, *grid), or `grid` where there is one block.
    Texts: "circulant", "block-circulant:4", "doubly-block-circulant:8x8".

    >>> import torch
    >>> import weightspace as ws
    >>> ws.constraints.Circulant().nearest(torch.tensor([[1.0, 2.0], [4.0, 3.0]]))
    tensor([[2., 3.],
            [3., 2.]])
    >>> ws.constraints.Circulant((8, 8)).size((128, 64))                   # two channels out, one in, of 8 x 8
    128
    """

    grid: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.grid is None:
            return
        if not isinstance(self.grid, tuple) or not 1 <= len(self.grid) <= 2:
            raise WeightspaceError(f"the grid of circulant blocks is (size,) or (height, width), got {self.grid!r}")
        for side in self.grid:
            whole(side, "a side of a circulant block")

    def __str__(self) -> str:
        if self.grid is None:
            return "circulant"
        return f"{'doubly-' if len(self.grid) == 2 else ''}block-circulant:{'x'.join(map(str, self.grid))}"

    def check(self, shape: tuple[int, ...], name: str = "the weight") -> None:
        """Raise `WeightspaceError` where a weight of that shape cannot have this form."""
        if self.grid is None:
            square(shape, name, "a circulant matrix", 'give "block-circulant:SIZE" with a size that divides both')
            return
        size = math.prod(self.grid)
        rows, columns = matrix(shape, name, "a block circulant weight")
        if rows % size or columns % size:
            raise WeightspaceError(
                f"{name} is {rows} x {columns}, which blocks of {size} x {size} do not divide; "
                f"give a size that divides {math.gcd(rows, columns)}"
            )

    def circle(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The grid of a block of a weight of that shape."""
        return self.grid or (shape[0],)

    def channels(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """How many blocks are below and beside one another."""
        size = math.prod(self.circle(shape))
        return shape[0] // size, shape[1] // size

    def form(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the free parameters."""
        channels = self.channels(shape)
        return self.circle(shape) if channels == (1, 1) else (*channels, *self.circle(shape))

    def index(self, shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
        """For every entry, the number of its free parameter."""
        within = torch.zeros((1, 1), dtype=torch.long, device=device)
        for side in self.circle(shape):
            step = _apart(side, device) % side
            within = (within[:, None, :, None] * side + step[None, :, None, :]).reshape(
                len(within) * side, len(within) * side
            )
        (rows, columns), size = self.channels(shape), len(within)
        block = torch.arange(rows * columns, device=device).view(rows, 1, columns, 1)
        return (block * size + within[None, :, None, :]).reshape(shape)


@public(grad=False)
@dataclass(frozen=True)
class Toeplitz(_Shared):
    """A matrix that is constant along its diagonals, W_ij = t[i - j + columns - 1]: rows + columns - 1 parameters.

    >>> import torch
    >>> import weightspace as ws
    >>> ws.constraints.Toeplitz().nearest(torch.tensor([[1.0, 2.0, 3.0], [4.0, 3.0, 2.0]]))
    tensor([[2., 2., 3.],
            [4., 2., 2.]])
    """

    text: ClassVar[str] = "toeplitz"

    def check(self, shape: tuple[int, ...], name: str = "the weight") -> None:
        """Raise `WeightspaceError` where a weight of that shape cannot have this form."""
        matrix(shape, name, "a Toeplitz weight")

    def form(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the free parameters."""
        return (shape[0] + shape[1] - 1,)

    def index(self, shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
        """For every entry, the number of its free parameter."""
        rows, columns = shape
        ahead = torch.arange(columns - 1, -1, -1, device=device)
        return torch.arange(rows, device=device)[:, None] + ahead[None]


@public(grad=False)
@dataclass(frozen=True)
class SharedBlocks(_Shared):
    """A matrix cut into blocks of `rows` x `columns` that are shared.

    `equal`: "blocks", one block repeated; or "entries", the entries of each block equal to one another. Texts:
    "shared-blocks:2x4", "shared-entries:2x4".

    >>> import torch
    >>> import weightspace as ws
    >>> w = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    >>> ws.constraints.SharedBlocks(1, 2).nearest(w), ws.constraints.SharedBlocks(1, 2, "entries").nearest(w)
    (tensor([[2., 3., 2., 3.]]), tensor([[1.5000, 1.5000, 3.5000, 3.5000]]))
    """

    rows: int
    columns: int
    equal: Literal["blocks", "entries"] = "blocks"

    def __post_init__(self) -> None:
        whole(self.rows, "the height of a shared block")
        whole(self.columns, "the width of a shared block")
        if self.equal not in ("blocks", "entries"):
            raise WeightspaceError(f'equal is "blocks" or "entries", got {self.equal!r}')

    def __str__(self) -> str:
        return f"shared-{self.equal}:{self.rows}x{self.columns}"

    def check(self, shape: tuple[int, ...], name: str = "the weight") -> None:
        """Raise `WeightspaceError` where a weight of that shape cannot have this form."""
        rows, columns = matrix(shape, name, "a weight of shared blocks")
        if rows % self.rows or columns % self.columns:
            raise WeightspaceError(
                f"{name} is {rows} x {columns}, which blocks of {self.rows} x {self.columns} do not divide; "
                "give a height that divides the rows and a width that divides the columns"
            )

    def form(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the free parameters."""
        if self.equal == "blocks":
            return self.rows, self.columns
        return shape[0] // self.rows, shape[1] // self.columns

    def index(self, shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
        """For every entry, the number of its free parameter."""
        row, column = (torch.arange(size, device=device) for size in shape)
        if self.equal == "blocks":
            row, column = row % self.rows, column % self.columns
        else:
            row, column = row // self.rows, column // self.columns
        return row[:, None] * self.form(shape)[1] + column[None]


@public(grad=False)
@dataclass(frozen=True)
class Symmetric(_Shared):
    """A symmetric matrix, W = W^T: its upper triangle is free. The nearest is (W + W^T) / 2.

    >>> import torch
    >>> import weightspace as ws
    >>> ws.constraints.Symmetric().nearest(torch.tensor([[1.0, 2.0], [4.0, 3.0]]))
    tensor([[1., 3.],
            [3., 3.]])
    """

    text: ClassVar[str] = "symmetric"

    def check(self, shape: tuple[int, ...], name: str = "the weight") -> None:
        """Raise `WeightspaceError` where a weight of that shape cannot have this form."""
        square(shape, name, "a symmetric matrix")

    def form(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the free parameters."""
        return (shape[0] * (shape[0] + 1) // 2,)

    def index(self, shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
        """For every entry, the number of its free parameter."""
        at = torch.arange(shape[0], device=device)
        low, high = torch.minimum(at[:, None], at[None]), torch.maximum(at[:, None], at[None])
        return high * (high + 1) // 2 + low


@public(grad=False)
@dataclass(frozen=True)
class Antisymmetric(_Shared):
    """An antisymmetric matrix, W = -W^T: the part above the diagonal is free. The nearest is (W - W^T) / 2.

    >>> import torch
    >>> import weightspace as ws
    >>> ws.constraints.Antisymmetric().nearest(torch.tensor([[1.0, 2.0], [4.0, 3.0]]))
    tensor([[ 0., -1.],
            [ 1.,  0.]])
    """

    text: ClassVar[str] = "antisymmetric"

    def check(self, shape: tuple[int, ...], name: str = "the weight") -> None:
        """Raise `WeightspaceError` where a weight of that shape cannot have this form."""
        if square(shape, name, "an antisymmetric matrix") == 1:
            raise WeightspaceError(
                f"{name} is 1 x 1, and the only antisymmetric matrix of that size is 0; leave it out"
            )

    def form(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the free parameters."""
        return (shape[0] * (shape[0] - 1) // 2,)

    def index(self, shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
        """For every entry, the number of its free parameter."""
        at = torch.arange(shape[0], device=device)
        low, high = torch.minimum(at[:, None], at[None]), torch.maximum(at[:, None], at[None])
        return torch.where(low == high, 0, high * (high - 1) // 2 + low)

    def sign(self, shape: tuple[int, ...]) -> Tensor:
        """For every entry 1 above the diagonal, -1 below, and 0 on it."""
        return -_apart(shape[0], None).sign().to(torch.float64)


# ------------------------------------------------------------------ entries that are held


@dataclass(frozen=True)
class _Held(Kind):
    """Some entries are free and the others held: W = W0 + sum_k theta_k E_k."""

    def loose(self, shape: tuple[int, ...], name: str) -> Tensor:
        """True where an entry is free."""
        raise NotImplementedError

    def held(self, shape: tuple[int, ...], name: str) -> Tensor:
        """What the others are held at."""
        return torch.zeros(shape, dtype=torch.float64)

    def constants(self, shape: tuple[int, ...], name: str) -> dict[str, Tensor]:
        """Where the free entries are, and the values of those that are held, zero where they are free."""
        loose = self.loose(shape, name)
        return {
            "where": loose.reshape(-1).nonzero()[:, 0],
            "held": self.held(shape, name).masked_fill(loose, 0.0),
        }

    def weight(self, free: tuple[Tensor, ...], shape: tuple[int, ...], constants: Mapping[str, Tensor]) -> Tensor:
        """The held values, with the free entries in their places."""
        held = constants["held"].reshape(-1).to(free[0].dtype)
        return held.scatter(0, constants["where"], free[0]).view(shape)

    def solved(self, weight: Tensor, constants: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The free entries."""
        return (weight.reshape(-1)[constants["where"]],)


@public(grad=False)
@dataclass(frozen=True, eq=False)
class Masked(_Held):
    """A weight with fixed zeros, where `mask` is zero; the other entries are free. A mask has the shape of the weight.

    >>> import torch
    >>> import weightspace as ws
    >>> ws.constraints.Masked(torch.tensor([[1, 0], [0, 1]])).nearest(torch.tensor([[1.0, 2.0], [4.0, 3.0]]))
    tensor([[1., 0.],
            [0., 3.]])
    """

    mask: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.mask, Tensor) or self.mask.is_complex():
            raise WeightspaceError(f"a mask is a tensor of zeros and others, got {type(self.mask).__name__}")
        object.__setattr__(self, "mask", self.mask.detach().cpu() != 0)

    def __str__(self) -> str:
        told = hashlib.sha256(self.mask.numpy().tobytes()).hexdigest()[:12]
        return f"masked:{int(self.mask.sum())}/{self.mask.numel()}:{told}"

    def check(self, shape: tuple[int, ...], name: str = "the weight") -> None:
        """Raise `WeightspaceError` where a weight of that shape cannot have this form."""
        if tuple(self.mask.shape) != shape:
            raise WeightspaceError(
                f"{name} has shape {shape}, and the mask {tuple(self.mask.shape)}; give a mask of the same shape"
            )
        if not bool(self.mask.any()):
            raise WeightspaceError(f"the mask of {name} is zero everywhere and leaves nothing free")

    def loose(self, shape: tuple[int, ...], name: str) -> Tensor:
        """True where an entry is free."""
        return self.mask


@public(grad=False)
@dataclass(frozen=True)
class Asymmetric(_Held):
    """A weight with a `share` of its entries held at random numbers N(0, scale^2), drawn from `seed` and its name.

    The held entries tell the units apart, so that networks trained from other starts share their order: no symmetry is
    left, and the barrier between them falls. All networks that are to be compared take the same seed. Texts:
    "asymmetric:0.25", "asymmetric:0.25:SEED".

    >>> import torch
    >>> import weightspace as ws
    >>> kind = ws.constraints.Asymmetric(0.25, seed=1)
    >>> kind.size((8, 8)), torch.equal(kind.nearest(torch.zeros(8, 8)), kind.nearest(torch.zeros(8, 8)))
    (48, True)
    """

    share: float
    scale: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise WeightspaceError(f"the share of entries that are held lies between 0 and 1, got {self.share}")
        if not 0 < self.scale < math.inf:
            raise WeightspaceError(f"the scale of held entries is a positive number, got {self.scale}")
        if not 0 <= self.seed < 1 << 63:
            raise WeightspaceError(f"a seed is a whole number from 0 to 2^63, got {self.seed}")

    def __str__(self) -> str:
        return f"asymmetric:{self.share:g}:{self.seed}" + (f":{self.scale:g}" if self.scale != 0.25 else "")

    def check(self, shape: tuple[int, ...], name: str = "the weight") -> None:
        """Raise `WeightspaceError` where a weight of that shape cannot have this form."""
        count = math.prod(shape)
        if not shape or not 0 < round(self.share * count) < count:
            raise WeightspaceError(
                f"{name} has {count} entries, of which a share of {self.share:g} holds none or all; give another share"
            )

    def _drawn(self, shape: tuple[int, ...], name: str, what: str) -> Tensor:
        generator = torch.Generator().manual_seed(derived(self.seed, "asymmetric", what, name))
        return torch.randn(math.prod(shape), generator=generator, dtype=torch.float64)

    def loose(self, shape: tuple[int, ...], name: str) -> Tensor:
        """True where an entry is free."""
        drawn = self._drawn(shape, name, "places")
        loose = torch.ones(len(drawn), dtype=torch.bool)
        loose[drawn.argsort()[: round(self.share * len(drawn))]] = False
        return loose.view(shape)

    def held(self, shape: tuple[int, ...], name: str) -> Tensor:
        """What the others are held at."""
        return self.scale * self._drawn(shape, name, "values").view(shape)
