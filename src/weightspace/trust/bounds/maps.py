"""Rules for linear and convolutional layers, for products of two activations, and for attention.

For a linear layer |W_b x_b - W_a x_a| <= |W_b|_2 |x_b - x_a| + |(W_b - W_a) x_a|. The rounding of a sum of products is
at most gamma_n |W| |x|, with the absolute values of the entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.linear.norms import convolution_bound, rough_bound, spectral_bound
from weightspace.trust.bounds.rounding import BoundError, gamma
from weightspace.trust.bounds.rule import Call, Far, Value, rule, size

__all__ = ["product"]


_SINGLE, _DOUBLE = 2.0**-24, 2.0**-53
_LARGE = 1e18
_DEAD = 120.0  # exp(-120) underflows in float32
_STORES = 4


@dataclass(frozen=True)
class _Map:
    """A linear map x -> W x + b: its action, its operator norm, a cheap bound on it, and the products in every sum."""

    act: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    norm: Callable[[Tensor], float]
    rough: Callable[[Tensor], float]
    terms: int


def _affine(call: Call, x: Value, w: Value, bias: Value | None, how: _Map) -> Far:
    moved = w.b - w.a
    change = call.bound("rough change", lambda: how.rough(moved))
    positions = math.sqrt(call.numel / bias.a.numel()) if bias is not None else 0.0
    far, point = x.far, (0.0 if bias is None else positions * bias.at(0))
    op_b = call.bound("b", lambda: how.norm(w.b)) if far.off or far.apart else 0.0
    op_a = 0.0
    if not call.data or "a" in call.known:
        op_a = call.bound("a", lambda: how.norm(w.a))
    elif far.off:
        op_a = min(op_b + change, call.bound("rough a", lambda: how.rough(w.a)))
    own = 0.0 if w.same and (bias is None or bias.same) else _own(call, x, w, bias, how, positions, moved)
    loose_bias = (0.0, 0.0) if bias is None else (positions * bias.far.off, positions * bias.loose)
    off = (op_a + w.far.off) * far.off + w.far.off * far.norm + loose_bias[0]
    apart = (op_b + w.loose) * far.apart + own + change * far.off
    apart += (w.far.off + w.loose) * x.at(1) + sum(loose_bias)

    def products(p: int) -> float:
        at_b = p == 2
        key, weight, loose = ("rough b", w.b, w.loose) if at_b else ("rough a", w.a, w.far.off)
        still = 0.0 if bias is None else positions * bias.at(p)
        return (call.bound(key, lambda: how.rough(weight)) + loose) * x.at(p) + still

    beside = 0.0 if bias is None else max(point, positions * bias.at(1), positions * bias.at(2))
    return call.found(
        op_a * far.norm + point, off, apart, terms=how.terms + 2, size_at=products, beside=beside, products=True
    )


def _own(call: Call, x: Value, w: Value, bias: Value | None, how: _Map, positions: float, moved: Tensor) -> float:
    """|(W_b - W_a) x_a + b_b - b_a|, measured with the data or bounded by norms without."""
    moved_bias = None if bias is None else bias.b - bias.a
    of_bias = 0.0 if moved_bias is None else positions * size(moved_bias)
    if not call.data:
        return call.bound("change", lambda: how.norm(moved)) * x.far.norm + of_bias
    short = not call.exact and call.arithmetic[1].inner > _DOUBLE and x.at(0) < _LARGE
    dtype, unit = (torch.float32, _SINGLE) if short else (torch.float64, _DOUBLE)
    slack = gamma(how.terms + 4, unit) * (call.bound("rough change", lambda: how.rough(moved)) * x.at(0) + of_bias)
    shorter = (None if t is None else t.to(dtype) for t in (x.a, moved, moved_bias))
    return size(how.act(*shorter)) + slack + (1e-30 * math.sqrt(call.numel) if short else 0.0)  # type: ignore[arg-type]


def _linear_map(width: int) -> _Map:
    return _Map(F.linear, spectral_bound, rough_bound, width)


@rule("linear", "input weight bias")
def _linear(call: Call) -> Far:
    x, w, bias = call.moving("input"), call.learnt("weight"), call.learnt("bias")
    assert w is not None
    return _affine(call, x, w, bias, _linear_map(w.a.shape[1]))


@rule([f"{kind}{d}d" for kind in ("conv", "conv_transpose") for d in (1, 2, 3)], "input weight bias",
      "stride padding output_padding groups dilation")  # fmt: skip
def _convolution(call: Call) -> Far:
    x, w, bias = call.moving("input"), call.learnt("weight"), call.learnt("bias")
    assert w is not None
    groups, transposed = int(call.plain["groups"]), "transpose" in call.name

    def act(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return call.overload(x, w, b, *call.plain.values())

    terms = w.a.numel() // w.a.shape[1] // groups if transposed else w.a[0].numel()
    how = _Map(act, lambda w: convolution_bound(w, groups), lambda w: rough_bound(w, groups), terms)
    return _affine(call, x, w, bias, how)


@rule("addmm", "self mat1 mat2", "beta alpha")
def _addmm(call: Call) -> Far:
    """beta bias + alpha x W."""
    bias, x, w = call.learnt("self"), call.moving("mat1"), call.learnt("mat2")
    assert w is not None and bias is not None
    if bias.a.dim() != 1:
        raise BoundError("no bound is known for addmm whose self is a matrix")
    alpha, beta = float(call.plain["alpha"]), float(call.plain["beta"])
    w, bias = _times(_turned(w), alpha), _times(bias, beta)
    if bias.a.numel() == 1:
        bias = _spread(bias, w.a.shape[0])
    return _affine(call, x, w, bias, _linear_map(w.a.shape[1]))


def _times(value: Value, factor: float) -> Value:
    far, by = value.far, abs(factor)
    scaled = Far(by * far.norm, by * far.off, by * far.apart)
    return Value(factor * value.a, scaled, value.same, factor * value.b, by * value.loose)


def _spread(value: Value, n: int) -> Value:
    a, b, by = value.a.expand(n), value.b.expand(n), math.sqrt(n)
    return Value(a, Far(by * value.far.norm, by * value.far.off, by * value.far.apart), value.same, b, by * value.loose)


def _turned(value: Value) -> Value:
    return Value(value.a.mT, value.far, value.same, value.b.mT, value.loose)


@rule("matmul mm bmm", "self other mat2")
def _matmul(call: Call) -> Far:
    left, right = call.values["self"], call["other"] or call["mat2"]
    inner = left.a.shape[-1]
    if not left.still and right.still and right.a.dim() == 2:
        return _affine(call, left, _turned(right), None, _linear_map(inner))
    found = product(left, right)
    return call.found(*found, terms=inner, products=True, size_at=lambda p: left.at(p) * right.at(p))


def product(x: Value, y: Value) -> tuple[float, float, float]:
    """(norm, off, apart) of a product: |x_b y_b - x_a y_a| <= |x_a| |y_b - y_a| + |x_b - x_a| |y_b|.

    For products of entries and of matrices.
    """
    off = x.at(0) * y.far.off + x.far.off * y.at(1)
    apart = x.at(1) * y.far.apart + x.far.apart * y.at(2)
    return x.at(0) * y.at(0), off, apart


@rule("scaled_dot_product_attention", "query key value attn_mask", "is_causal scale")
def _attention(call: Call) -> Far:
    """Attention softmax(scale q k^T + mask) v; softmax has the Lipschitz constant 1/2."""
    q, k, v, mask = call.moving("query"), call.moving("key"), call.moving("value"), call.learnt("attn_mask")
    wide, length = q.a.shape[-1], k.a.shape[-2]
    scale = abs(float(call.plain["scale"] or 1 / math.sqrt(wide)))
    count = q.a.shape[:-1].numel() * length
    rows = math.sqrt(q.a.shape[:-1].numel())

    def scores(p: int) -> float:
        return scale * q.at(p) * k.at(p)

    norm, off, apart = (scale * d for d in product(q, k))
    if mask is not None:
        of_mask = _mask(call, mask, math.sqrt(count), scale * _longest(call, q) * _longest(call, k))
        norm, off, apart = norm + of_mask.norm, off + of_mask.off, apart + of_mask.apart
    kept = norm

    def stored(p: int) -> float:
        return kept + (off if p else 0.0) + (apart if p == 2 else 0.0)

    more = call.slip(wide + 4, scores, _STORES + 2, stored, True, count)
    off, apart = (min(0.5 * d, math.sqrt(2) * rows) for d in (off + more[1], apart + more[2]))
    more = call.slip(4 * length + 64, lambda p: rows * (1 + math.sqrt(length)), _STORES, lambda p: rows, False, count)
    p = Value(None, Far(rows, off + more[1], apart + more[2]), False)
    return call.found(
        *product(p, v), terms=4 * length + 64, stores=_STORES, products=True, size_at=lambda i: p.at(i) * v.at(i)
    )


def _longest(call: Call, value: Value) -> float:
    """A bound on the norm of the longest query or key, in both networks."""
    far = value.far
    return (float(value.a.norm(dim=-1).max()) if call.data else far.norm) + far.off + far.apart


def _mask(call: Call, mask: Value, count: float, largest: float) -> Far:
    """The bounds of a mask, added to scores of at most `largest`; entries whose exponential underflows are left out."""
    if not mask.a.is_floating_point() or not mask.b.is_floating_point():
        if not mask.same:
            raise BoundError(f"no bound is known for {call.name} whose attn_mask is not the same in both networks")
        return Far(0.0, 0.0, 0.0)
    shut = (mask.a <= -_DEAD - 2 * largest) & (mask.b <= -_DEAD - 2 * largest)
    if bool(shut.all(-1).any()):
        raise BoundError(f"no bound is known for {call.name} whose attn_mask shuts a query off from every key")
    a, b = mask.a.masked_fill(shut, 0.0), mask.b.masked_fill(shut, 0.0)
    times = count / math.sqrt(max(1, a.numel()))
    left = count * math.exp(-_DEAD)
    if mask.far.off or mask.loose:
        raise BoundError(f"no bound is known for {call.name} whose attn_mask is computed with rounding")
    apart = 0.0 if mask.same else times * size(b - a)
    return Far(times * max(size(a), size(b)), left, apart + left)
