"""Rules for sums, products, quotients and averages of values that depend on the inputs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from weightspace.trust.bounds.rounding import BoundError
from weightspace.trust.bounds.rule import Call, Far, Value, rule, size

__all__ = []


def _times(call: Call, value: Value) -> float:
    """The factor by which broadcasting an operand to the result's shape raises its norm."""
    return math.sqrt(call.numel / max(1, value.a.numel()))


@rule("add sub", "self other", "alpha")
def _add(call: Call) -> Far:
    x, y = call["self"], call["other"]
    alpha = float(call.plain["alpha"])
    by, factor = _times(call, x), abs(alpha) * _times(call, y)
    return call.found(
        by * x.far.norm + factor * y.far.norm,
        by * x.far.off + factor * y.far.off,
        by * x.far.apart + factor * y.far.apart,
        terms=4,
        stored_terms=0 if alpha == 1 else 4,  # alpha and its product are rounded to the dtype
        size_at=lambda p: by * x.at(p) + factor * y.at(p),
    )


@rule("mul", "self other")
def _mul(call: Call) -> Far:
    return _multiplied(call, call["self"], call["other"])


def _multiplied(call: Call, x: Value, y: Value) -> Far:
    """|x_b y_b - x_a y_a| <= max |y_b| |x_b - x_a| + max |x_a| |y_b - y_a|."""
    at_x, at_y = _times(call, x), _times(call, y)
    norm = min(at_x * x.at(0) * call.most(y, 0), at_y * y.at(0) * call.most(x, 0))
    off = call.most(y, 1) * at_x * x.far.off + call.most(x, 0) * at_y * y.far.off
    apart = call.most(y, 2) * at_x * x.far.apart + call.most(x, 1) * at_y * y.far.apart
    return call.found(norm, off, apart, terms=4)


@rule("div", "self other", rounding_mode=None)
def _div(call: Call) -> Far:
    """Division by values that do not depend on the inputs."""
    x, y = call["self"], call["other"]
    if x.still or not y.still:
        raise BoundError("no bound is known for div whose other depends on the inputs")
    inverse, inverse_b = 1 / y.a.double(), 1 / y.b.double()
    if not bool((inverse.isfinite() & inverse_b.isfinite()).all()):
        raise BoundError("no bound is known for div whose other is zero somewhere")
    off, loose = (_inverted(value, error) for value, error in ((y.a, y.far.off), (y.b, y.loose)))
    apart = 0.0 if y.same else size(inverse_b - inverse) + off + loose
    return _multiplied(call, x, Value(inverse, Far(size(inverse), off, apart), y.same, inverse_b, loose))


def _inverted(value: Tensor, error: float) -> float:
    """|1/v - 1/w| <= |v - w| / min |v| (min |v| - |v - w|), for all w with |v - w| <= error."""
    least = float(value.double().abs().min()) if error else 1.0
    if error >= least:
        raise BoundError("no bound is known for div whose other is zero to rounding")
    return error / (least * (least - error))


@rule("cat stack", "tensors", "dim")
def _cat(call: Call) -> Far:
    parts = [part.far for part in call["tensors"]]
    norm, off, apart = (math.hypot(*(getattr(far, k) for far in parts)) for k in ("norm", "off", "apart"))
    return call.found(norm, off, apart, terms=0, stores=1)


@rule("sum mean", "self", "dim keepdim dtype")
def _sum(call: Call) -> Far:
    x, count = call.x, call.x.a.numel() / max(1, call.numel)
    by = math.sqrt(count) if call.name == "sum" else 1 / math.sqrt(count)
    far = x.far
    return call.found(by * far.norm, by * far.off, by * far.apart, terms=count + 2, size_at=lambda p: by * x.at(p))


@rule("amax amin", "self", "dim keepdim")
def _amax(call: Call) -> Far:
    return call.copied()


@rule("avg_pool1d avg_pool2d avg_pool3d", "self",
      "kernel_size stride padding ceil_mode count_include_pad divisor_override")  # fmt: skip
@rule("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", "self", "output_size")
def _average(call: Call) -> Far:
    """Average pooling, a map W with entries >= 0: |W|_2^2 <= its largest row sum times its largest column sum."""
    rank, x = int(call.name[-2]), call.x
    by = math.sqrt(math.prod(_row_and_column(call, rank))) * (1 + 1e-12)
    kernel, far = call.plain.get("kernel_size"), x.far
    pairs = zip(x.a.shape[-rank:], call.out.shape[-rank:], strict=True)
    terms = math.prod(_each(kernel, rank) if kernel else [-(-n // k) + 1 for n, k in pairs]) + 2
    stored = terms if call.name == "adaptive_avg_pool3d" else 0  # which sums in the dtype of its input
    return call.found(
        by * far.norm, by * far.off, by * far.apart, terms=terms, size_at=lambda p: by * x.at(p), stored_terms=stored
    )


@rule("upsample_nearest1d upsample_nearest2d upsample_nearest3d", "self input",
      "output_size scale_factors scales scales_d scales_h scales_w")  # fmt: skip
def _nearest(call: Call) -> Far:
    """Nearest upsampling copies entries; refused where the places depend on the dtype of the scale."""
    x, rank = call.x.a, call.out.dim() - 2
    places = torch.arange(math.prod(x.shape[-rank:]), device=x.device).view(1, 1, *x.shape[-rank:])
    wide, short = (call.overload(places.to(t), *call.plain.values()) for t in (torch.float64, torch.float32))
    if any(a.inner > 2.0**-53 for a in call.arithmetic) and not torch.equal(wide, short.double()):
        raise BoundError(f"no bound is known for {call.name} whose scale rounds to other places in another dtype")
    return call.copied(math.sqrt(float(wide.long().flatten().bincount().max())))


def _row_and_column(call: Call, rank: int) -> tuple[float, float]:
    """The largest row sum and column sum of a linear map with entries >= 0 on the last dimensions."""
    x = call.x.a
    with torch.enable_grad():
        ones = x.new_ones(1, 1, *x.shape[-rank:]).requires_grad_()
        image = call.overload(ones, *call.plain.values())
        columns = torch.autograd.grad(image.sum(), ones)[0]
    return float(image.detach().max()), float(columns.max())


def _each(value: Any, rank: int) -> list[int]:
    parts = list(value) if isinstance(value, (list, tuple)) else [value]
    return parts * rank if len(parts) == 1 else parts


@rule("max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices", "self",
      "kernel_size stride padding dilation ceil_mode")  # fmt: skip
def _max_pool(call: Call) -> Far:
    """Max pooling: an entry lies in at most prod ceil(((k - 1) d + 1) / s) windows."""
    rank = int(call.name.split("_with")[0][-2])
    kernel, dilation = _each(call.plain["kernel_size"], rank), _each(call.plain["dilation"], rank)
    stride = _each(call.plain["stride"] or kernel, rank)
    counts = [min(k, -(-((k - 1) * d + 1) // s)) for k, s, d in zip(kernel, stride, dilation, strict=True)]
    return call.copied(math.sqrt(math.prod(counts)))


@rule("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d", "self", "output_size")
def _adaptive_max_pool(call: Call) -> Far:
    """Adaptive max pooling: an entry lies in one bin of each dimension for even bins, else in all that overlap."""
    rank = int(call.name[-2])
    out = call.out[0] if isinstance(call.out, (tuple, list)) else call.out
    pairs = zip(call.x.a.shape[-rank:], out.shape[-rank:], strict=True)
    return call.copied(math.sqrt(math.prod(_overlap(n, k) for n, k in pairs)))


def _overlap(n: int, bins: int) -> int:
    """The largest number of bins that share an index; bin i reaches from floor(i n / k) to ceil((i + 1) n / k)."""
    held = torch.zeros(n, dtype=torch.long)
    for i in range(bins):
        held[i * n // bins : -(-(i + 1) * n // bins)] += 1
    return int(held.max())


@rule("embedding", "weight indices", "padding_idx scale_grad_by_freq sparse")
def _embedding(call: Call) -> Far:
    """Embedding: the distance of the rows looked up, measured; the tokens must be the same in both networks."""
    weight, tokens = call.learnt("weight"), call.learnt("indices")
    assert weight is not None and tokens is not None
    if not tokens.same:
        raise BoundError("no bound is known for embedding whose indices differ between the two networks")
    rows: Tensor = tokens.a.long()
    count = math.sqrt(rows.numel())
    own = 0.0 if weight.same else size(weight.b[rows] - call.out)
    loose = count * weight.far.off
    return Far(size(call.out), loose, own + loose + count * weight.loose)
