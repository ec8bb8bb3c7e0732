"""Rules for normalisation layers: x / sqrt(mean x^2 + eps), then a gain and an offset for every unit.

The map has the Lipschitz constant 1 / sqrt(eps); from a point with s = sqrt(mean x^2 + eps) it moves at most 2 / s as
far as x. Computed in one pass, the variance has the error gamma_n s rms(x) (Chan, Golub, LeVeque, 1983); with channels
last torch computes mean x^2 - (mean x)^2, which has the error gamma_n rms(x)^2.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from weightspace.trust.bounds.rounding import BoundError, gamma
from weightspace.trust.bounds.rule import Call, Far, Value, rule, size

__all__ = []


_TERMS = 64


def _gain(
    call: Call, z: Tensor, far: Far, at: int, gains: tuple[Tensor, Tensor], offsets: tuple[Tensor, Tensor]
) -> Far:
    """The bounds of s * z + t without rounding, s and t of both networks along the dimensions of z from `at` on."""
    (s, s_b), (t, t_b) = gains, offsets
    shape = (1,) * at + tuple(s.shape) + (1,) * (z.dim() - at - s.dim())
    moved, moved_t = (s_b - s).view(shape), (t_b - t).view(shape)
    positions = math.sqrt(call.numel / t.numel())
    step = float(moved.abs().max())
    if call.data:
        own = size(moved * z + moved_t) + 8 * gamma(1, 2.0**-53) * (step * far.norm + positions * size(moved_t))
    else:
        own = step * far.norm + size(moved_t) * positions
    most, most_b = float(s.abs().max()), float(s_b.abs().max())
    return Far(most * far.norm + size(t) * positions, most * far.off, most_b * far.apart + own + step * far.off)


def _learnt(call: Call, *names: str) -> list[Value | None]:
    found = [call.learnt(name) for name in names]
    for name, value in zip(names, found, strict=True):
        if value is not None and (value.far.off or value.loose):
            raise BoundError(f"no bound is known for {call.name} whose {name} is computed with rounding")
    return found


@rule(
    "batch_norm _native_batch_norm_legit_no_training",
    "input weight bias running_mean running_var",
    "momentum eps cudnn_enabled",
    training=False,
)
def _batch_norm(call: Call) -> Far:
    x, eps = call.moving("input"), float(call.plain["eps"])
    stats = _learnt(call, "weight", "bias", "running_mean", "running_var")

    def parts(at: str) -> tuple[Tensor, Tensor, Tensor]:
        gain, offset, mean, var = (cast(Any, None if v is None else getattr(v, at)) for v in stats)
        s = (var + eps).rsqrt() if gain is None else gain * (var + eps).rsqrt()
        zero = torch.zeros_like(s) if offset is None else offset
        return s, zero - s * mean, zero.abs() + 3 * (s * mean).abs()

    (s, t, size_a), (s_b, t_b, size_b) = parts("a"), parts("b")
    if not bool((s.isfinite() & s_b.isfinite()).all()):
        raise BoundError(f"no bound is known for {call.name} whose running_var + eps is not above zero")
    out = _gain(call, x.a, x.far, 1, (s, s_b), (t, t_b))
    positions = math.sqrt(call.numel / t.numel())

    def added(p: int) -> float:
        gain, rest = (s_b, size_b) if p == 2 else (s, size_a)
        return 2 * float(gain.abs().max()) * x.at(p) + positions * size(rest)

    return _rounded(call, out, _TERMS, added)


def _rounded(call: Call, out: Far, terms: float, added: Any) -> Far:
    """The bounds with rounding, for sums and stored numbers of norm `added(point)`."""
    if call.exact:
        return Far(size(call.out) if call.data else out.norm, out.off, out.apart)
    more = call.slip(terms, added, 4, added)
    norm = size(call.out) if call.data else out.norm + more[0]
    return Far(norm, out.off + more[1], out.apart + more[2])


@rule("layer_norm", "input weight bias", "normalized_shape eps cudnn_enable")
def _layer_norm(call: Call) -> Far:
    x, shape = call.moving("input"), call.plain["normalized_shape"]
    dims = tuple(range(-len(shape), 0))
    centred = x.a - x.a.mean(dims, keepdim=True)
    return _after(call, x, x.a, centred, dims, float(call.plain["eps"]), x.a.dim() - len(shape))


@rule("rms_norm", "input weight", "normalized_shape eps")
def _rms_norm(call: Call) -> Far:
    x, shape, eps = call.moving("input"), call.plain["normalized_shape"], call.plain["eps"]
    if eps is None:
        raise BoundError("no bound is known for rms_norm without eps; give one, as its default depends on the dtype")
    return _after(call, x, x.a, x.a, tuple(range(-len(shape), 0)), float(eps), x.a.dim() - len(shape))


@rule("group_norm", "input weight bias", "num_groups eps cudnn_enabled")
def _group_norm(call: Call) -> Far:
    x = call.moving("input")
    parted = x.a.reshape(len(x.a), int(call.plain["num_groups"]), -1)
    centred = parted - parted.mean(-1, keepdim=True)
    return _after(call, x, parted, centred, (-1,), float(call.plain["eps"]), 1, not x.a.is_contiguous())


def _after(
    call: Call, x: Value, raw: Tensor, centred: Tensor, dims: tuple[int, ...], eps: float, at: int, square: bool = False
) -> Far:
    weight, bias = _learnt(call, "weight", "bias")
    n = math.prod(raw.shape[d] for d in dims)
    rms = raw.square().mean(dims).sqrt()
    spread = (centred.square().mean(dims) + eps).sqrt()
    inside = _Inside(x, rms, spread, math.sqrt(n), eps, call.data)
    z = (centred / inside.wide(centred)).reshape(call.out.shape)
    total = math.sqrt(z.numel())
    far = Far(total, inside.moved(0, x.far.off, total), inside.moved(1, x.far.apart, total))
    terms = 8 * n + _TERMS

    def ratio(p: int) -> float:
        """The norm of |x| / s over all rows, for mean and variance together."""
        return inside.error(p, square)

    if not call.exact:
        worst = [gamma(terms, a.inner) * inside.worst(p) for p, a in enumerate(call.arithmetic)]
        if square and max(worst) > 0.5:
            raise BoundError(
                f"no bound is known for {call.name} where the mean of its input is so far above the spread "
                "that rounding may leave nothing of the variance"
            )
        more = call.slip(terms, ratio, 0, ratio)
        far = Far(far.norm, far.off + more[1], far.apart + more[2])
    ones = torch.ones(1, dtype=torch.float64, device=z.device)
    gains = (ones, ones) if weight is None else (weight.a, weight.b)
    offsets = (0 * gains[0], 0 * gains[1]) if bias is None else (bias.a, bias.b)
    if weight is None and bias is not None:
        gains = (torch.ones_like(bias.a), torch.ones_like(bias.a))
    out = _gain(call, z, far, at if gains[0].numel() > 1 else 0, gains, offsets)
    positions = math.sqrt(call.numel / offsets[0].numel())

    def added(p: int) -> float:
        gain, offset = (g[1 if p == 2 else 0] for g in (gains, offsets))
        length = far.norm + (far.off if p else 0.0) + (far.apart if p == 2 else 0.0)
        return float(gain.abs().max()) * length + positions * size(offset)

    return _rounded(call, out, 8, added)


class _Inside:
    """The root mean square and spread s of the rows that are normalised, at the reference and bounded in a and b."""

    def __init__(self, x: Value, rms: Tensor, spread: Tensor, root: float, eps: float, data: bool) -> None:
        self.x, self.rms, self.spread, self.root, self.least, self.data = x, rms, spread, root, math.sqrt(eps), data

    def wide(self, like: Tensor) -> Tensor:
        """The spread of every row, in a shape that broadcasts to its entries."""
        return self.spread.reshape(self.spread.shape + (1,) * (like.dim() - self.spread.dim())).clamp_min(1e-300)

    def _gone(self, point: int) -> float:
        return (self.x.far.off if point else 0.0) + (self.x.far.apart if point == 2 else 0.0)

    def moved(self, point: int, distance: float, total: float) -> float:
        """A bound on how far the normalised rows move when x moves by `distance` from a point."""
        slope = 1 / self.least if self.least else math.inf
        if self.data:
            here = max(self.least, float(self.spread.min()) - self._gone(point) / self.root)
            slope = min(slope, 2 / here if here else math.inf)
        return min(slope * distance, 2 * total) if distance else 0.0

    def _ratios(self, point: int) -> Tensor:
        gone = self._gone(point) / self.root
        if not self.data:
            largest = self.x.at(point) / self.root
            return torch.full_like(self.rms, largest / self.least if self.least else math.inf)
        return (self.rms + gone) / (self.spread - gone).clamp_min(max(self.least, 1e-300))

    def error(self, point: int, square: bool) -> float:
        """The norm over all entries of what mean and variance add up, over the spread."""
        if not self.data and not square:
            return 2 * self.x.at(point) / self.least if self.least else math.inf
        q = self._ratios(point)
        return self.root * (float(q.norm()) + float((q * q if square else q).norm()))

    def worst(self, point: int) -> float:
        """The relative error of the variance as a difference of squares, per roundoff, in the worst row."""
        return float(self._ratios(point).max()) ** 2
