"""Weights whose rows stay in increasing order of a key: one network of all that permutations of hidden units make.

The key of every row is k_i = k_1 + softplus(d_2) + .. + softplus(d_i), and the rest of the row is free.

Sources: Sorensen, Machine learning, math, and generalization, for the keys and for searching over differences;
Statistical inference under order restrictions (Barlow, Bartholomew, Bremner, Brunk, 1972) for the nearest order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import isotonic_regression
from torch import Tensor

from weightspace.constraints.form import Kind
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public
from weightspace.net.seeds import derived

__all__ = ["Ordered"]

_GAP = 1e-6
_KEYS = ("first", "mean", "linear", "norm")


@public(grad=False)
@dataclass(frozen=True, eq=False)
class Ordered(Kind):
    """A weight whose rows have increasing keys; a bias, whose entries increase.

    `key`: "first", the first entry of a row; "mean", the mean of a row; "linear", <v, row> for a pseudo-random v (from
    `seed`), or for the tensor that is given as `key`; "norm", |row|. The first three are written without a parameter
    too many: the row is reflected so that v becomes the first axis, where the key stands. With "norm" the length of a
    row's direction has no effect.
    The nearest weight lowers keys that are too large and raises those that are too small (an isotonic regression, the
    rows stay where they are), with steps of 1e-6 at least; ties hardly move from then on. So sort the units first:
    `group.canonical(net, key="first")` does it without a change of the function. `sort`: the nearest weight takes the
    rows in another order too, which is right for a network that is not trained yet. Texts: "ordered",
    "ordered:norm", "sorted:first".

    >>> import torch
    >>> import weightspace as ws
    >>> w = torch.tensor([[2.0, 7.0], [1.0, 8.0], [3.0, 9.0]])
    >>> ws.constraints.Ordered("first").nearest(w)                         # 2 > 1: both become 1.5
    tensor([[1.5000, 7.0000],
            [1.5000, 8.0000],
            [3.0000, 9.0000]])
    >>> ws.constraints.Ordered("first", sort=True).nearest(w)[:, 0]
    tensor([1., 2., 3.])
    """

    key: str | Tensor = "first"
    seed: int = 0
    sort: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.key, str) and self.key not in _KEYS:
            raise WeightspaceError(f"a key is {', '.join(_KEYS)} or a tensor, got {self.key!r}")
        if isinstance(self.key, Tensor):
            key = self.key.detach().cpu().double()
            if key.dim() != 1 or not bool(key.isfinite().all()) or not bool(key.any()):
                raise WeightspaceError("a key given as a tensor is a vector of finite numbers, not all zero")
            object.__setattr__(self, "key", key)

    def __str__(self) -> str:
        if isinstance(self.key, Tensor):
            named = hashlib.sha256(self.key.numpy().tobytes()).hexdigest()[:12]
        else:
            named = self.key + (f":{self.seed}" if self.key == "linear" else "")
        return f"{'sorted' if self.sort else 'ordered'}:{named}"

    def check(self, shape: tuple[int, ...], name: str = "the weight") -> None:
        """Raise `WeightspaceError` where a weight of that shape cannot have this form."""
        if not shape or shape[0] < 2 or 0 in shape:
            raise WeightspaceError(f"{name} has shape {shape}, and an order needs two rows at least; constrain another")
        if isinstance(self.key, Tensor) and len(self.key) != math.prod(shape[1:]):
            raise WeightspaceError(
                f"the key has {len(self.key)} entries, and a row of {name} {math.prod(shape[1:])}; give one for each"
            )

    def constants(self, shape: tuple[int, ...], name: str) -> dict[str, Tensor]:
        """The direction v of the key, and the mirror that takes it to the first axis."""
        columns = math.prod(shape[1:])
        if self.key == "norm" and len(shape) > 1:
            return {}
        first = torch.eye(1, columns, dtype=torch.float64)[0]
        direction = first
        if isinstance(self.key, Tensor):
            direction = self.key
        elif self.key == "mean":
            direction = torch.full_like(first, 1 / columns)
        elif self.key == "linear":
            generator = torch.Generator().manual_seed(derived(self.seed, "ordered", columns))
            direction = torch.randn(columns, generator=generator, dtype=torch.float64)
        length = direction.norm()
        mirror = first - direction / length
        size = mirror.norm()
        return {"length": length, "mirror": mirror / size if float(size) > 1e-9 else mirror.zero_()}

    def weight(self, free: tuple[Tensor, ...], shape: tuple[int, ...], constants: Mapping[str, Tensor]) -> Tensor:
        """The rows of these differences and of what is free beside them."""
        steps = F.softplus(free[0][1:])
        if "mirror" not in constants:
            keys = torch.cat([F.softplus(free[0][:1]), steps]).cumsum(0)
            return (keys[:, None] * F.normalize(free[1], dim=1)).view(shape)
        keys = torch.cat([free[0][:1], steps]).cumsum(0) / constants["length"].to(steps)
        rows = torch.cat([keys[:, None], *free[1:]], 1)
        return _mirrored(rows, constants["mirror"].to(rows)).view(shape)

    def solved(self, weight: Tensor, constants: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The differences of the nearest increasing keys, and the rest of every row."""
        rows = weight.reshape(len(weight), -1)
        if self.sort:
            rows = rows[_keys(rows, constants).argsort(stable=True)]
        keys = increasing(_keys(rows, constants))
        if "mirror" in constants:
            rest = _mirrored(rows, constants["mirror"].to(rows))[:, 1:]
            steps = torch.cat([keys[:1], _unplussed(keys.diff())])
            return (steps, rest) if rest.shape[1] else (steps,)
        keys = keys - min(0.0, float(keys[0]) - _GAP)
        first = torch.eye(1, rows.shape[1]).to(rows)
        rest = torch.where(rows.norm(dim=1, keepdim=True) > 0, F.normalize(rows, dim=1), first)
        return _unplussed(torch.cat([keys[:1], keys.diff()])), rest

    def sorted(self, weight: Tensor, name: str) -> bool:
        """Whether the keys of a weight increase already, or are sorted by `sort`."""
        wide = weight.detach().double()
        constants = {n: t.to(wide.device) for n, t in self.constants(tuple(weight.shape), name).items()}
        steps = _keys(wide.reshape(len(wide), -1), constants).diff()
        return self.sort or bool((steps >= -1e-6 * (1 + wide.abs().max())).all())


def increasing(keys: Tensor) -> Tensor:
    """The nearest increasing numbers, with steps of 1e-6 at least: by pooling neighbours that are out of order."""
    ramp = _GAP * torch.arange(len(keys)).to(keys)
    found = isotonic_regression((keys - ramp).numpy(force=True)).x
    return torch.from_numpy(found).to(keys) + ramp


def _keys(rows: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
    if "mirror" not in constants:
        return rows.norm(dim=1)
    return constants["length"].to(rows) * _mirrored(rows, constants["mirror"].to(rows))[:, 0]


def _mirrored(rows: Tensor, mirror: Tensor) -> Tensor:
    """Rows reflected at the plane that is orthogonal to a unit vector; as they are for a zero vector."""
    return rows - 2 * (rows @ mirror)[:, None] * mirror


def _unplussed(steps: Tensor) -> Tensor:
    """The d with softplus(d) = step."""
    steps = steps.clamp_min(_GAP * (1 - 1e-3))
    return steps + torch.log(-torch.expm1(-steps))
