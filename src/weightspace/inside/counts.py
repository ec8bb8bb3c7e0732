"""Counts of units that pairs of examples share, all pairs at once, by integer or floating-point products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from weightspace.inside.units import Gates
from weightspace.net.errors import WeightspaceError

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "Paths",
    "columns_of",
    "float_product",
    "gram",
    "integer_product",
    "lower",
    "matrices",
    "mirrored",
    "pieces",
    "share_of",
    "shares",
    "width",
]


Paths: TypeAlias = Gates | Tensor
_CHUNK, _BLOCK = 1 << 14, 256  # units at once; columns of a Gram matrix, of which only the lower half is computed
_BYTES = 1 << 26  # of the gates unpacked at once


# ------------------------------------------------------------------ counting


def gram(blocks: Iterator[np.ndarray]) -> Float[Tensor, "image image"]:
    """sum of X X^T over blocks X (image, unit) of bytes 0 and 1, exact below 2^24; on and below the diagonal."""
    total, product = None, integer_product() or float_product()
    for block in blocks:
        part = lower(torch.from_numpy(np.ascontiguousarray(block)), product)
        total = part if total is None else total.add_(part)
    if total is None:
        raise WeightspaceError("the paths have no units; give gates of one unit or more")
    return total


@dataclass(frozen=True)
class _Product:
    """x, y -> x y^T as times(left(x), right(y))."""

    left: Callable[[Tensor], Any]
    right: Callable[[Tensor], Any]
    times: Callable[[Any, Any], Tensor]


def float_product(dtype: torch.dtype = torch.float32) -> _Product:
    """Products in a floating-point type."""
    return _Product(lambda x: x.to(dtype), lambda x: x.to(dtype), lambda x, y: x @ y.T)


@lru_cache(maxsize=1)
def integer_product() -> _Product | None:
    """Products of bytes, sums in 32 bits, as torch's compiler uses them; None where this build has none or errs."""
    try:
        pack, linear = torch.ops.onednn.qlinear_prepack, torch.ops.onednn.qlinear_pointwise.default
        scale, zero = torch.ones(1), torch.zeros(1, dtype=torch.int)

        def times(x: Tensor, packed: Tensor) -> Tensor:
            return linear(x, 1.0, 0, packed, scale, zero, None, 1.0, 0, torch.float32, "none", [], "")

        product = _Product(lambda x: x, lambda y: pack(y.view(torch.int8), None), times)
        x = (torch.arange(40 * 600).view(40, 600) % 7 < 5).view(torch.uint8)
        right = torch.equal(product.times(x, product.right(x[:24].contiguous())), x.float() @ x[:24].float().T)
    except (AttributeError, RuntimeError, TypeError):
        return None
    return product if right else None


def lower(x: Tensor, product: _Product) -> Tensor:
    """x x^T by blocks of columns, on and below the diagonal; entries above it are undefined."""
    n, left = len(x), product.left(x)
    found = torch.empty(n, n, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    for a in range(0, n, _BLOCK):
        found[a:, a : a + _BLOCK] = product.times(left[a:], product.right(x[a : a + _BLOCK]))
    return found


def mirrored(lower: Tensor) -> Tensor:
    """The symmetric matrix whose lower triangle is given; in place."""
    for a in range(_BLOCK, len(lower), _BLOCK):
        lower[:a, a : a + _BLOCK] = lower[a : a + _BLOCK, :a].T
    return lower


def shares(both: Tensor, one: Tensor, two: Tensor) -> Tensor:
    """`share_of` of symmetric matrices whose lower triangles are known, written into `both`."""
    for a in range(0, len(both), _BLOCK):
        rows, some = slice(a, a + _BLOCK), slice(0, a + _BLOCK)
        size = one[rows, some] * two[rows, some]
        if bool(size.min() > 0):
            both[rows, some] /= size.sqrt_()
        else:
            both[rows, some] = share_of(both[rows, some], one[rows, some], two[rows, some])
    return mirrored(both)


def share_of(both: Tensor, one: Tensor, two: Tensor) -> Tensor:
    """both / sqrt(one two), 0 / 0 being 1 and 0 / x being 0."""
    size = (one * two).sqrt_() if one.is_floating_point() else (one.double() * two).sqrt_()
    found = both / size
    empty = size == 0
    if bool(empty.any()):
        found = torch.where(empty, ((one == 0) & (two == 0)).to(found), found)
    return found


# ------------------------------------------------------------------ gates, packed or not


def width(p: Paths, layer: str | None) -> int:
    """The number of units, of one layer or of all."""
    if isinstance(p, Gates):
        first, last = p.span(layer)
        return last - first
    if layer is not None:
        raise WeightspaceError(f"layer {layer!r} of a plain tensor; give Gates, or the layer's own tensor")
    if p.dtype != torch.bool or p.dim() != 2:
        raise WeightspaceError(f"paths are Gates or Bool[image, unit], got {p.dtype} of shape {tuple(p.shape)}")
    return p.shape[1]


def _bytes(p: Paths, rows: slice, first: int, last: int) -> np.ndarray:
    if isinstance(p, Gates):
        return p.columns(first, last, rows)
    return p[rows, first:last].cpu().numpy().view(np.uint8)


def columns_of(*paths: Paths, layer: str | None = None) -> Iterator[tuple[np.ndarray, ...]]:
    """Blocks (image, unit) of all examples, some units at once."""
    first, last = _spans(paths[0], layer)
    for a in range(first, last, _CHUNK):
        yield tuple(_bytes(p, slice(None), a, min(a + _CHUNK, last)) for p in paths)


def pieces(p: Paths, q: Paths, layer: str | None) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Some examples at once with all of their units, as many as fit into `_BYTES`."""
    first, last = _spans(p, layer)
    step = max(1, _BYTES // max(1, last - first))
    for a in range(0, len(p), step):
        rows = slice(a, a + step)
        yield rows, _bytes(p, rows, first, last), _bytes(q, rows, first, last)


def _spans(p: Paths, layer: str | None) -> tuple[int, int]:
    return p.span(layer) if isinstance(p, Gates) else (0, width(p, layer))


def matrices(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two sets of bits as matrices (example, unit) of one shape."""
    if a.shape != b.shape or a.dim() < 2:
        raise WeightspaceError(
            f"activations of {tuple(a.shape)} and {tuple(b.shape)} cannot be compared; give one shape, (example, ..)"
        )
    x, y = (t.detach().flatten(1).to(torch.promote_types(t.dtype, torch.float32)) for t in (a, b))
    return x, y
