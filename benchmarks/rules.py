"""The bounds of the certificate, operation by operation, on random arguments: is a bound ever below what is measured?

A draw is an operation with settings from their whole domain, a reference in float64, a point near it as network a
computes it, and one further off as b does, each in a dtype of its own; weights move too, at random or, one time in
three, up the gradient of what is measured. Bounds are compared at three places: the norm at the reference, how far a is
from it, how far b is from a.

    python -m benchmarks.rules [--draws 10000] [names ..]     # three quarters of an hour on one core
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from benchmarks import measure
from weightspace.trust.bounds.rounding import Arithmetic, BoundError
from weightspace.trust.bounds.rule import Far, Value, size
from weightspace.trust.bounds.walk import apply, known

OPS: Any = torch.ops.aten
DTYPES = (torch.float64, torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float16)
_SLACK = 1 + 1e-9


@dataclass(frozen=True)
class Moving:
    """An argument that depends on the inputs, of this shape."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Learnt:
    """A weight of this shape; `positive`, as a variance is; `still`: torch knows no derivative in it."""

    shape: tuple[int, ...]
    positive: bool = False
    still: bool = False


@dataclass(frozen=True)
class Tokens:
    """Whole numbers below `top`."""

    shape: tuple[int, ...]
    top: int


@dataclass(frozen=True)
class Drawn:
    """An overload and its arguments, of which some are to be filled in."""

    overload: Any
    args: tuple[Any, ...]
    named: dict[str, Any] = field(default_factory=dict)


Draw = Callable[[random.Random], Drawn]
DRAWS: dict[str, Draw] = {}


def draw(*names: str) -> Callable[[Callable[[random.Random, Any], Drawn]], Callable[[random.Random, Any], Drawn]]:
    """Enter a way to draw the arguments of operations with these names."""

    def enter(make: Callable[[random.Random, Any], Drawn]) -> Callable[[random.Random, Any], Drawn]:
        for name in names:
            DRAWS[name] = lambda r, name=name: make(r, getattr(OPS, name))
        return make

    return enter


# ------------------------------------------------------------------ one draw


@dataclass
class Seen:
    """What a draw says: the largest measured number over its bound, or why there is no bound."""

    ratio: float
    refused: str = ""


def once(name: str, seed: int) -> Seen:
    """One draw of a rule."""
    r = random.Random(f"{name} {seed}")
    torch.manual_seed(r.randrange(1 << 30))
    one = DRAWS[name](r)
    dtype = r.choice(DTYPES)
    dtypes = (dtype, r.choice(DTYPES) if r.random() < 0.15 else dtype)
    points = _points(one, r, dtypes)
    try:
        out, own_a, own_b = (_called(one, points, at) for at in range(3))
    except NotImplementedError:
        return Seen(0.0, "torch has no such operation in this dtype")
    arithmetic = (Arithmetic.of(torch.float64), *(Arithmetic.of(_real(own)) for own in (own_a, own_b)))
    node, look = _node(one, points)
    worst, operators = 0.0, dict[str, float]()
    for data in (True, False):
        try:
            far = apply(node, look, out, arithmetic, data, operators)
        except BoundError as error:
            return Seen(0.0, str(error))
        reached = far.norm + far.off
        if not (reached <= arithmetic[1].most and reached + far.apart <= arithmetic[2].most):
            continue  # a certificate is infinite there
        worst = max(worst, _over(_apart(own_a, out), far.off), _over(_apart(own_b, own_a), far.apart))
        worst = worst if data else max(worst, _over(size(_wide(out)), far.norm))
    return Seen(worst)


def _over(seen: float, bound: float) -> float:
    if seen != seen:
        return float("inf")
    return seen / bound if bound else (float("inf") if seen else 0.0)


def _parts(value: Any) -> list[Tensor]:
    return [v for v in (value if isinstance(value, (tuple, list)) else [value]) if v.is_floating_point()]


def _real(value: Any) -> torch.dtype:
    return _parts(value)[0].dtype


def _wide(value: Any) -> list[Tensor]:
    return [part.double() for part in _parts(value)]


def _apart(x: Any, y: Any) -> float:
    return sum(float((p - q).norm()) ** 2 for p, q in zip(_wide(x), _wide(y), strict=True)) ** 0.5


@dataclass
class _Point:
    """An argument at the reference, in a, in b; `still`: known in both networks; `climbs`: b may be moved."""

    at: tuple[Tensor, Tensor, Tensor]
    still: bool
    climbs: bool = True


def _points(one: Drawn, r: random.Random, dtypes: tuple[torch.dtype, torch.dtype]) -> dict[Any, _Point]:
    largest = 0.3 if torch.float16 in dtypes else 2.0
    scale = 10 ** r.uniform(-2, largest)
    near, far = 10 ** r.uniform(-9, 0), 10 ** r.uniform(-8, 0.5)
    if r.random() < 0.3:
        near = 0.0
    points: dict[Any, _Point] = {}
    for place, spec in _specs(one):
        points[place] = _drawn(spec, r, scale, near, far, dtypes)
    if r.random() < 1 / 3 and far > 1e-6:
        _climb(one, points, dtypes)
    return points


def _drawn(
    spec: Any, r: random.Random, scale: float, near: float, far: float, dtypes: tuple[torch.dtype, torch.dtype]
) -> _Point:
    if isinstance(spec, Tokens):
        tokens = torch.randint(spec.top, spec.shape)
        return _Point((tokens, tokens, tokens), True, False)
    x = torch.randn(spec.shape, dtype=torch.float64)
    if r.random() < 0.3:
        x = x + 10 ** r.uniform(-1, 1) * torch.randn(1, dtype=torch.float64)
    if isinstance(spec, Learnt):
        x = 10 ** r.uniform(-2, 1) * x
        a = (x.abs() + 1e-3 if spec.positive else x).to(dtypes[0])
        moved = a.double() + far * float(a.double().abs().mean()) * torch.randn(spec.shape, dtype=torch.float64)
        b = (moved.abs() + 1e-3 if spec.positive else moved).to(dtypes[1])
        return _Point((a.double(), a, b), True, not (spec.positive or spec.still))
    x = scale * x
    a = (x + near * scale * torch.randn(spec.shape, dtype=torch.float64)).to(dtypes[0])
    b = (a.double() + far * scale * torch.randn(spec.shape, dtype=torch.float64)).to(dtypes[1])
    return _Point((x, a, b), False)


def _climb(one: Drawn, points: dict[Any, _Point], dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """b goes up the gradient of |f_b - f_a|^2, two steps of as long as it was from a."""
    places = [p for p, v in points.items() if v.climbs]
    for _ in range(2):
        leaves = {p: points[p].at[2].double().clone().requires_grad_() for p in places}
        with torch.enable_grad():
            here = {p: _Point((leaves.get(p, v.at[0]), *v.at[1:]), v.still) for p, v in points.items()}
            start = {p: _Point((_double(v.at[1]), *v.at[1:]), v.still) for p, v in points.items()}
            there = _called(one, start, 0)
            parts = zip(_parts(_called(one, here, 0)), _parts(there), strict=True)
            loss = sum((p - q).square().sum() for p, q in parts)
            if not isinstance(loss, Tensor) or not loss.requires_grad:
                return
            slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        for place, slope in zip(leaves, slopes, strict=True):
            reference, a, b = points[place].at
            length = float((b.double() - a.double()).norm())
            if slope is None or not float(slope.norm()) or not bool(slope.isfinite().all()):
                continue
            up = (a.double() + length * slope / slope.norm()).to(dtypes[1])
            points[place] = _Point((reference, a, up), points[place].still)


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _specs(one: Drawn) -> Iterable[tuple[Any, Any]]:
    for place, spec in [*enumerate(one.args), *one.named.items()]:
        for k, part in enumerate(spec) if isinstance(spec, list) else [(None, spec)]:
            if isinstance(part, (Moving, Learnt, Tokens)):
                yield (place, k), part


def _filled(one: Drawn, look: Callable[[Any], Any]) -> tuple[list[Any], dict[str, Any]]:
    def fill(place: Any, spec: Any) -> Any:
        if isinstance(spec, list):
            return [look((place, k)) if isinstance(p, (Moving, Learnt, Tokens)) else p for k, p in enumerate(spec)]
        return look((place, None)) if isinstance(spec, (Moving, Learnt, Tokens)) else spec

    return [fill(k, s) for k, s in enumerate(one.args)], {k: fill(k, s) for k, s in one.named.items()}


def _called(one: Drawn, points: dict[Any, _Point], at: int) -> Any:
    args, named = _filled(one, lambda place: points[place].at[at])
    if at == 0:
        args, named = ([torch.float64 if isinstance(x, torch.dtype) else x for x in args],
                       {k: torch.float64 if isinstance(x, torch.dtype) else x for k, x in named.items()})  # fmt: skip
    return one.overload(*args, **named)


def _node(one: Drawn, points: dict[Any, _Point]) -> tuple[fx.Node, Callable[[fx.Node], Any]]:
    graph = fx.Graph()
    nodes = {place: graph.placeholder(f"x{k}") for k, place in enumerate(points)}
    args, named = _filled(one, nodes.__getitem__)
    values = {node: _value(points[place]) for place, node in nodes.items()}
    return graph.call_function(one.overload, tuple(args), named), values.__getitem__


def _value(point: _Point) -> Any:
    reference, a, b = point.at
    if point.still:
        return known(a, b)
    off, apart = float((a.double() - reference).norm()), float((b.double() - a.double()).norm())
    return Value(reference, Far(size(reference), off, apart), False)


# ------------------------------------------------------------------ arguments


def _shape(r: random.Random, rank: int | None = None, top: int = 6) -> tuple[int, ...]:
    return tuple(r.randint(1, top) for _ in range(rank if rank is not None else r.randint(1, 3)))


def _maybe(r: random.Random, value: Any) -> Any:
    return value if r.random() < 0.7 else None


def _number(r: random.Random) -> float:
    return r.choice((-1, 1)) * 10 ** r.uniform(-2, 1)


@draw("relu", "neg", "abs", "tanh", "sin", "atan", "cos", "sigmoid", "hardsigmoid", "silu", "mish", "hardswish",
      "selu", "relu6")  # fmt: skip
def _plain(r: random.Random, op: Any) -> Drawn:
    return Drawn(op.default, (Moving(_shape(r)),))


@draw("gelu")
def _gelu(r: random.Random, op: Any) -> Drawn:
    return Drawn(op.default, (Moving(_shape(r)),), {"approximate": r.choice(("none", "tanh"))})


@draw("leaky_relu")
def _leaky(r: random.Random, op: Any) -> Drawn:
    return Drawn(op.default, (Moving(_shape(r)), _number(r)))


@draw("celu")
def _celu(r: random.Random, op: Any) -> Drawn:
    return Drawn(op.default, (Moving(_shape(r)), abs(_number(r))))


@draw("elu")
def _elu(r: random.Random, op: Any) -> Drawn:
    return Drawn(op.default, (Moving(_shape(r)), _number(r), _number(r), abs(_number(r))))


@draw("clamp", "hardtanh")
def _clamp(r: random.Random, op: Any) -> Drawn:
    low, high = sorted((_number(r), _number(r)))
    if op is OPS.clamp:
        low, high = r.choice(((low, high), (high, low), (None, high), (low, None)))
    return Drawn(op.default, (Moving(_shape(r)), low, high))


@draw("clamp_min", "clamp_max")
def _clamped(r: random.Random, op: Any) -> Drawn:
    return Drawn(op.default, (Moving(_shape(r)), _number(r)))


@draw("softplus")
def _softplus(r: random.Random, op: Any) -> Drawn:
    return Drawn(op.default, (Moving(_shape(r)), _number(r), r.choice((20.0, r.uniform(-5, 30)))))


@draw("softmax", "log_softmax")
def _softmax(r: random.Random, op: Any) -> Drawn:
    shape = _shape(r)
    return Drawn(op.int, (Moving(shape), r.randrange(-len(shape), len(shape)), r.choice((None, None, torch.float32))))


@draw("_softmax", "_log_softmax")
def _softmax_(r: random.Random, op: Any) -> Drawn:
    shape = _shape(r)
    return Drawn(op.default, (Moving(shape), r.randrange(-len(shape), len(shape)), False))


@draw("linear")
def _linear(r: random.Random, op: Any) -> Drawn:
    n, m = r.choice((3, 17, 60)), r.randint(1, 9)
    return Drawn(op.default, (Moving((*_shape(r, r.randint(1, 2)), n)), Learnt((m, n)), _maybe(r, Learnt((m,)))))


@draw("addmm")
def _addmm(r: random.Random, op: Any) -> Drawn:
    n, m = r.randint(1, 20), r.randint(1, 9)
    bias = Learnt((r.choice((1, m)),))
    factors = {"beta": r.choice((1, 0, _number(r))), "alpha": r.choice((1, 0, _number(r)))}
    return Drawn(op.default, (bias, Moving((r.randint(1, 5), n)), Learnt((n, m))), factors)


@draw("matmul")
def _matmul(r: random.Random, op: Any) -> Drawn:
    k, n, m, batch = r.randint(1, 9), r.randint(1, 4), r.randint(1, 4), r.randint(1, 3)
    left, right = r.choice((((n, k), (k, m)), ((batch, n, k), (k, m)), ((n, k), (batch, k, m)), ((k,), (k, m)),
                            ((batch, n, k), (batch, k, m)), ((n, k), (k,)), ((k,), (k,)),
                            ((batch, 1, n, k), (2, k, m))))  # fmt: skip
    kinds = r.choice(((Moving, Moving), (Moving, Learnt), (Learnt, Moving)))
    return Drawn(op.default, (kinds[0](left), kinds[1](right)))


@draw("mm", "bmm")
def _mm(r: random.Random, op: Any) -> Drawn:
    k, n, m = r.randint(1, 9), r.randint(1, 4), r.randint(1, 4)
    batch = (r.randint(1, 3),) if op is OPS.bmm else ()
    kinds = r.choice(((Moving, Moving), (Moving, Learnt), (Learnt, Moving)))
    return Drawn(op.default, (kinds[0]((*batch, n, k)), kinds[1]((*batch, k, m))))


@draw("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv(r: random.Random, op: Any) -> Drawn:
    name = op.__name__
    rank, turned = int(name[-2]), "transpose" in name
    groups, kernel = r.choice((1, 1, 2)), [r.randint(1, 3) for _ in range(rank)]
    inside, outside = groups * r.randint(1, 3), groups * r.randint(1, 3)
    stride, dilation = [r.randint(1, 3) for _ in range(rank)], [r.randint(1, 2) for _ in range(rank)]
    padding = [r.randint(0, 1) for _ in range(rank)]
    sizes = tuple(r.randint(5, 8 if rank < 3 else 6) for _ in range(rank))
    x, bias = Moving((r.randint(1, 2), inside, *sizes)), _maybe(r, Learnt((outside,)))
    if turned:
        w = Learnt((inside, outside // groups, *kernel))
        extra = [r.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True)]
        return Drawn(op.default if rank == 1 else op.input, (x, w, bias, stride, padding, extra, groups, dilation))
    w = Learnt((outside, inside // groups, *kernel))
    if r.random() < 0.2:
        return Drawn(op.padding, (x, w, bias, [1] * rank, r.choice(("same", "valid")), dilation, groups))
    return Drawn(op.default, (x, w, bias, stride, padding, dilation, groups))


@draw("scaled_dot_product_attention")
def _attention(r: random.Random, op: Any) -> Drawn:
    batch, heads, n, wide, out = r.randint(1, 2), r.randint(1, 2), r.randint(1, 5), r.randint(1, 6), r.randint(1, 4)
    length, causal = r.randint(1, 5), r.random() < 0.3
    q, k = Moving((batch, heads, n, wide)), Moving((batch, heads, length, wide))
    mask = None if causal or r.random() < 0.5 else Learnt((n, length))
    named = {"scale": r.choice((None, None, abs(_number(r))))}
    return Drawn(op.default, (q, k, Moving((batch, heads, length, out)), mask, 0.0, causal), named)


@draw("batch_norm", "_native_batch_norm_legit_no_training")
def _batch_norm(r: random.Random, op: Any) -> Drawn:
    c = r.randint(1, 5)
    x = Moving((r.randint(1, 4), c, *_shape(r, r.randint(0, 2))))
    affine = (None, None) if r.random() < 0.3 else (Learnt((c,)), Learnt((c,)))
    stats = (*affine, Learnt((c,), still=True), Learnt((c,), positive=True))
    eps = 10 ** r.uniform(-7, -1)
    rest = (False, 0.1, eps, True) if op is OPS.batch_norm else (0.1, eps)
    return Drawn(op.default, (x, *stats, *rest))


@draw("layer_norm", "rms_norm")
def _layer_norm(r: random.Random, op: Any) -> Drawn:
    shape = _shape(r, r.randint(2, 3), 9)
    inner = shape[r.randint(1, len(shape) - 1) :]
    gains = (_maybe(r, Learnt(inner)),)
    if op is OPS.layer_norm:
        gains = (gains[0], _maybe(r, Learnt(inner)) if gains[0] else None)
    return Drawn(op.default, (Moving(shape), list(inner), *gains, 10 ** r.uniform(-7, -1)))


@draw("group_norm")
def _group_norm(r: random.Random, op: Any) -> Drawn:
    groups = r.randint(1, 3)
    c = groups * r.randint(1, 3)
    affine = (None, None) if r.random() < 0.3 else (Learnt((c,)), Learnt((c,)))
    x = Moving((r.randint(1, 3), c, *_shape(r, r.randint(0, 2))))
    return Drawn(op.default, (x, groups, *affine, 10 ** r.uniform(-7, -1)))


@draw("add", "sub", "mul", "div")
def _arithmetic(r: random.Random, op: Any) -> Drawn:
    shape = _shape(r)
    other = r.choice((Moving, Learnt))(tuple(n if r.random() < 0.6 else 1 for n in shape[r.randint(0, len(shape)) :]))
    x = Moving(shape)
    if op is OPS.div:
        other = Learnt(other.shape, positive=True)
    named = {"alpha": r.choice((1, 0, _number(r)))} if op in (OPS.add, OPS.sub) else {}
    if r.random() < 0.2:
        return Drawn(op.Scalar, (x, _number(r), *named.values()))
    return Drawn(op.Tensor, (x, other) if op is OPS.div or r.random() < 0.7 else (other, x), named)


@draw("cat", "stack")
def _cat(r: random.Random, op: Any) -> Drawn:
    shape, n = _shape(r), r.randint(1, 4)
    parts = [Moving(shape), *(r.choice((Moving, Learnt))(shape) for _ in range(n - 1))]
    return Drawn(op.default, (parts, r.randrange(-len(shape), len(shape))))


@draw("sum", "mean")
def _sum(r: random.Random, op: Any) -> Drawn:
    shape = _shape(r, None, 12)
    dims = r.sample(range(len(shape)), r.randint(0, len(shape)))
    dtype = r.choice((None, None, torch.float32, torch.float16))
    if r.random() < 0.2:
        return Drawn(op.default, (Moving(shape),), {"dtype": dtype})
    overload = op.dim_IntList if op is OPS.sum else op.dim
    return Drawn(overload, (Moving(shape), dims, r.random() < 0.5), {"dtype": dtype})


@draw("amax", "amin")
def _amax(r: random.Random, op: Any) -> Drawn:
    shape = _shape(r)
    return Drawn(op.default, (Moving(shape), r.sample(range(len(shape)), r.randint(0, len(shape))), r.random() < 0.5))


@draw("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices",
      "max_pool3d_with_indices")  # fmt: skip
def _pool(r: random.Random, op: Any) -> Drawn:
    name = op.__name__.split("_with")[0]
    rank = int(name[-2])
    kernel = [r.randint(1, 4) for _ in range(rank)]
    stride = [r.randint(1, 4) for _ in range(rank)] if r.random() < 0.7 else []
    padding = [r.randint(0, k // 2) for k in kernel]
    x = Moving((r.randint(1, 2), r.randint(1, 2), *(r.randint(8, 9) for _ in range(rank))))
    if name.startswith("max"):
        dilation = [r.randint(1, 2) for _ in range(rank)]
        return Drawn(op.default, (x, kernel, stride, padding, dilation, r.random() < 0.5))
    extra = (r.choice((None, r.randint(1, 9))),) if rank > 1 else ()
    return Drawn(op.default, (x, kernel, stride, padding, r.random() < 0.5, r.random() < 0.5, *extra))


@draw("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
      "adaptive_max_pool2d", "adaptive_max_pool3d")  # fmt: skip
def _adaptive(r: random.Random, op: Any) -> Drawn:
    rank = int(op.__name__[-2])
    x = Moving((r.randint(1, 2), r.randint(1, 2), *(r.randint(1, 6) for _ in range(rank))))
    return Drawn(op.default, (x, [r.randint(1, 7) for _ in range(rank)]))


@draw("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d")
def _nearest(r: random.Random, op: Any) -> Drawn:
    rank = int(op.__name__[-2])
    sizes = tuple(r.randint(1, 5) for _ in range(rank))
    x = Moving((r.randint(1, 2), r.randint(1, 2), *sizes))
    if r.random() < 0.5:
        return Drawn(op.vec, (x, None, [r.uniform(1 / n + 1e-3, 4) for n in sizes]))
    return Drawn(op.default, (x, [r.randint(1, 9) for _ in range(rank)]))


@draw("pad", "constant_pad_nd")
def _pad(r: random.Random, op: Any) -> Drawn:
    shape = _shape(r)
    pads = [r.randint(0, 2) for _ in range(2 * r.randint(1, len(shape)))]
    rest = ("constant", _maybe(r, _number(r))) if op is OPS.pad else (_number(r),)
    return Drawn(op.default, (Moving(shape), pads, *rest))


@draw("embedding")
def _embedding(r: random.Random, op: Any) -> Drawn:
    rows = r.randint(1, 6)
    return Drawn(op.default, (Learnt((rows, r.randint(1, 5))), Tokens(_shape(r), rows), r.choice((-1, 0))))


@draw("to", "_to_copy")
def _to(r: random.Random, op: Any) -> Drawn:
    dtype = r.choice((torch.float64, torch.float32, torch.bfloat16, torch.float16))
    x = Moving(_shape(r))
    return Drawn(op.dtype, (x, dtype)) if op is OPS.to else Drawn(op.default, (x,), {"dtype": dtype})


@draw("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "native_dropout")
def _dropout(r: random.Random, op: Any) -> Drawn:
    return Drawn(op.default, (Moving(_shape(r, 3)), r.random(), False))


@draw("contiguous", "clone", "alias", "detach", "lift_fresh_copy", "squeeze", "numpy_T")
def _same(r: random.Random, op: Any) -> Drawn:
    return Drawn(op.default, (Moving(_shape(r)),))


@draw("t", "mT")
def _turned(r: random.Random, op: Any) -> Drawn:
    return Drawn(op.default, (Moving(_shape(r, 2)),))


_SHAPED: dict[str, Callable[[random.Random, Any], Drawn]] = {
    "view": lambda r, op: Drawn(op.default, (Moving((4, 6)), [8, 3])),
    "reshape": lambda r, op: Drawn(op.default, (Moving((4, 6)), [-1])),
    "_unsafe_view": lambda r, op: Drawn(op.default, (Moving((4, 6)), [2, 12])),
    "flatten": lambda r, op: Drawn(op.using_ints, (Moving(_shape(r, 3)), r.randint(0, 2))),
    "unflatten": lambda r, op: Drawn(op.int, (Moving((2, 6)), 1, [2, 3])),
    "permute": lambda r, op: Drawn(op.default, (Moving(_shape(r, 3)), r.sample(range(3), 3))),
    "transpose": lambda r, op: Drawn(op.int, (Moving(_shape(r, 3)), r.randrange(3), r.randrange(3))),
    "swapaxes": lambda r, op: Drawn(op.default, (Moving(_shape(r, 3)), r.randrange(3), r.randrange(3))),
    "swapdims": lambda r, op: Drawn(op.default, (Moving(_shape(r, 3)), r.randrange(3), r.randrange(3))),
    "movedim": lambda r, op: Drawn(op.int, (Moving(_shape(r, 3)), r.randrange(3), r.randrange(3))),
    "unsqueeze": lambda r, op: Drawn(op.default, (Moving(_shape(r, 2)), r.randrange(3))),
    "select": lambda r, op: Drawn(op.int, (Moving((3, 3)), r.randrange(2), r.randrange(3))),
    "slice": lambda r, op: Drawn(op.Tensor, (Moving((5, 6)), r.randrange(2), r.randint(0, 2), None, r.randint(1, 3))),
    "narrow": lambda r, op: Drawn(op.default, (Moving((5, 6)), r.randrange(2), r.randint(0, 2), r.randint(1, 3))),
    "split": lambda r, op: Drawn(op.Tensor, (Moving((5, 6)), r.randint(1, 6), r.randrange(2))),
    "split_with_sizes": lambda r, op: Drawn(op.default, (Moving((5, 6)), [2, 4], 1)),
    "chunk": lambda r, op: Drawn(op.default, (Moving((5, 6)), r.randint(1, 6), r.randrange(2))),
    "unbind": lambda r, op: Drawn(op.int, (Moving(_shape(r, 2)), r.randrange(2))),
    "flip": lambda r, op: Drawn(op.default, (Moving(_shape(r, 2)), [r.randrange(2)])),
    "roll": lambda r, op: Drawn(op.default, (Moving(_shape(r, 2)), [r.randint(-3, 3)], [r.randrange(2)])),
    "pixel_shuffle": lambda r, op: Drawn(op.default, (Moving((1, 8, 2, 3)), 2)),
    "pixel_unshuffle": lambda r, op: Drawn(op.default, (Moving((1, 2, 4, 6)), 2)),
    "expand": lambda r, op: Drawn(op.default, (Moving((1, 4)), [r.randint(1, 5), r.randint(1, 5), 4])),
    "repeat": lambda r, op: Drawn(op.default, (Moving((2, 3)), [r.randint(1, 3) for _ in range(3)])),
    "type_as": lambda r, op: Drawn(op.default, (Moving(_shape(r)), Learnt((1,)))),
}
for _name, _make in _SHAPED.items():
    draw(_name)(_make)


# ------------------------------------------------------------------ the table


def run(draws: int = 10_000, names: Iterable[str] = (), results: Path = measure.RESULTS) -> list[dict[str, Any]]:
    """A row for every rule; those of other rules stay as they were measured before."""
    wanted = list(names) or list(DRAWS)
    kept: dict[str, dict[str, Any]] = {}
    for name in wanted:
        seen = [once(name, k) for k in range(draws)]
        bounded = [s.ratio for s in seen if not s.refused]
        kept = {row["rule"]: row for row in measure.kept("rules", results) or []}
        kept[name] = {
            "rule": name,
            "draws": draws,
            "refused": draws - len(bounded),
            "broken": sum(ratio > _SLACK for ratio in bounded),
            "tightest": max(bounded, default=0.0),
        }
        measure.keep("rules", list(kept.values()), results)
    return list(kept.values())


def summary(rows: list[dict[str, Any]]) -> str:
    """Rules, draws, those that were refused, bounds that were exceeded, the largest measured number over its bound."""
    body = [
        [f"`{r['rule']}`", f"{r['draws']:,}", str(r["refused"]), str(r["broken"]), f"{r['tightest']:.4f}"] for r in rows
    ]
    return measure.table(["rule", "draws", "refused", "exceeded", "largest measured / bound"], body)


_NAMES = {"nargs": "*", "metavar": "RULE"}
main = measure.command("rules", __doc__, run, summary, {"names": _NAMES, "--draws": 10_000})


if __name__ == "__main__":
    main()
