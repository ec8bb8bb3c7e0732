"""What a change of the weights can do to the outputs, proven: a certificate for a pair of networks.

Through the graph of the network goes, for every value h, a bound d >= |h_b - h_a| on how far it is in b from what it is
in a. A linear map adds what its own change does: d' = |W_b|_2 d + |(W_b - W_a) h + (bias_b - bias_a)|, a non-linearity
multiplies by its Lipschitz constant, a sum adds, a product has the product rule. With the data, |h_a| and what the
change of a layer does to h_a are measured; without, |h_a| is bounded too, from |x| on: for a net without biases that
gives |x| prod_l (|W_l|_2 + |dW_l|_2) - |x| prod_l |W_l|_2. Operator norms are bounded from above.
Source: Optimisation and generalisation in networks of neurons (Bernstein, 2022), lemma of chapter 6; the step by step
form with data is folklore.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from weightspace.kernel import graph_of
from weightspace.net import Net, WeightspaceError, checked, math_attention
from weightspace.spectral import convolution_bound, spectral_bound
from weightspace.symmetry.trace import Trace, input_tensors, op_name
from weightspace.task import Task

__all__ = ["BoundError", "Certificate", "certificate", "certificates", "lipschitz"]

_SMOOTH = 1 + 1e-5  # rounding of a forward pass in float32


class BoundError(WeightspaceError):
    """A network with an operation for which no bound is known."""


@dataclass(frozen=True)
class Certificate:
    """sqrt(mean_x |f_b(x) - f_a(x)|^2) <= `bound`, proven; `relative` = bound / sqrt(mean_x |f_a(x)|^2)."""

    bound: float
    relative: float


@dataclass(frozen=True)
class _Far:
    """|h_a| <= norm and |h_b - h_a| <= apart, of all examples together."""

    norm: float
    apart: float


@dataclass
class _Walk:
    """One batch on its way through both networks."""

    graph: Trace
    data: bool
    norms: dict[tuple[fx.Node, str], float]
    far: dict[fx.Node, _Far] = field(default_factory=dict)

    def bound(self, key: tuple[fx.Node, str], compute: Callable[[], float]) -> float:
        """An operator norm, once for all batches."""
        if key not in self.norms:
            self.norms[key] = compute()
        return self.norms[key]


@dataclass(frozen=True)
class _Call:
    """An operation that depends on the inputs: its arguments in a and b, what is known of them, and its value in a."""

    walk: _Walk
    node: fx.Node
    a: tuple[Any, ...]
    b: tuple[Any, ...]
    far: tuple[_Far | None, ...]
    value: Any

    def arg(self, k: int, default: Any = None) -> Any:
        return self.a[k] if k < len(self.a) else default

    @property
    def numel(self) -> int:
        return (self.value[0] if isinstance(self.value, (tuple, list)) else self.value).numel()


def certificate(a: Net, b: Net, task: Task, *, data: bool = True) -> Certificate:
    """A number that sqrt(mean_x |f_b(x) - f_a(x)|^2) does not exceed on the inputs of `task`.

    `data`: with the activations of a on these inputs; without, from the norms of the inputs and weights alone. Cost: a
    forward pass of both networks and a Cholesky factor for every weight. Raises `BoundError`, which names the
    operation, for one of which no bound is known, such as a recurrent layer; `WeightspaceError` for NaN or infinity in
    the weights.
    """
    checked(a).check(checked(b))
    return _certificate(a, b, task, data, {})


def certificates(a: Net, b: Net, task: Task) -> tuple[Certificate, Certificate]:
    """`certificate` without the data and with it, for little more than the price of one."""
    checked(a).check(checked(b))
    norms: dict[tuple[fx.Node, str], float] = {}
    return _certificate(a, b, task, False, norms), _certificate(a, b, task, True, norms)


def _certificate(a: Net, b: Net, task: Task, data: bool, norms: dict[tuple[fx.Node, str], float]) -> Certificate:
    for net in (a, b):
        if bad := net.weights.unusable():
            raise WeightspaceError(f"NaN or infinity in {bad[0]}; a network of finite weights has a certificate")
    apart, norm = _through(a, b, task, data, norms)
    return Certificate(apart / math.sqrt(len(task)), apart / norm if norm else math.inf)


def lipschitz(net: Net, task: Task) -> float:
    """A number that |f(x + dx) - f(x)| / |dx| does not exceed: the product of the layers' operator norms, from above.

    For every dx, where the network has no LayerNorm or product of activations; with one of these, for dx -> 0 around
    the inputs of `task`. Raises `BoundError` as `certificate`.
    """
    norms: dict[tuple[fx.Node, str], float] = {}
    start, worst = 1e-12, 0.0
    for x, _ in task.recut(checked(net)):
        _, far = _batch(net, net, task, x, _Walk(graph_of(net, x), True, norms), start)
        worst = max(worst, far.apart / start)
    return worst


def _through(a: Net, b: Net, task: Task, data: bool, norms: dict[tuple[fx.Node, str], float]) -> tuple[float, float]:
    """Over all batches, squares added: a bound on how far the outputs are apart, and their norm in a."""
    apart = norm = 0.0
    for x, _ in task.recut(a):
        out, far = _batch(a, b, task, x, _Walk(graph_of(a, x), data, norms))
        apart, norm = math.hypot(apart, far.apart), math.hypot(norm, float(out.double().norm()))
    return apart, norm


def _batch(a: Net, b: Net, task: Task, x: Any, walk: _Walk, start: float = 0.0) -> tuple[Tensor, _Far]:
    given = set(walk.graph.inputs)
    with torch.no_grad(), math_attention():
        for node, (of_a, of_b), (value, other) in walk.graph.walk([a.tensors, b.tensors], input_tensors(x)):
            if node.op == "output":
                return _output(node, value, task, walk)
            if node in given:
                moved = isinstance(value, Tensor) and value.is_floating_point()
                walk.far[node] = _Far(_size(value), start if moved else 0.0)
                continue
            far = tuple(walk.far.get(n) if isinstance(n, fx.Node) else None for n in node.args)
            parts = [n for arg in node.args for n in (arg if isinstance(arg, (list, tuple)) else (arg,))]
            if node.op != "call_function" or not any(isinstance(n, fx.Node) and n in walk.far for n in parts):
                continue
            if node.kwargs and any(isinstance(v, fx.Node) and v in walk.far for v in node.kwargs.values()):
                raise BoundError(f"{op_name(node)} is called in a way for which no bound is known")
            found = _rule(_Call(walk, node, of_a, of_b, far, value), other)
            norm = _size(value) * _SMOOTH if walk.data else found.norm
            walk.far[node] = _Far(norm, found.apart)
            if op_name(node).endswith("_") and isinstance(node.args[0], fx.Node):  # what was written into is this now
                walk.far[node.args[0]] = walk.far[node]
    raise BoundError("the network has no output")


def _output(node: fx.Node, value: Any, task: Task, walk: _Walk) -> tuple[Tensor, _Far]:
    nodes = node.args[0] if isinstance(node.args[0], (tuple, list)) else [node.args[0]]
    raw = value[0] if isinstance(value, (tuple, list)) and len(value) == 1 else value
    out = task.output(raw)
    for n, v in zip(nodes, value if isinstance(value, (tuple, list)) else [value], strict=True):
        if isinstance(n, fx.Node) and isinstance(v, Tensor) and out.numel() <= v.numel() and _inside(out, v):
            return out, walk.far.get(n, _Far(_size(v), 0.0))
    raise BoundError("the task's output is computed from the network's; give one that picks an output as it is")


def _inside(part: Tensor, whole: Tensor) -> bool:
    return part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def _size(value: Any) -> float:
    parts = value if isinstance(value, (tuple, list)) else [value]
    squares = [float(v.double().norm()) ** 2 for v in parts if isinstance(v, Tensor) and v.is_floating_point()]
    return math.sqrt(sum(squares))


def _rule(call: _Call, other: Any) -> _Far:
    name = op_name(call.node)
    if name in _CONSTANTS:
        constant, zero = _CONSTANTS[name](call)
        known = _only(call)
        return _Far(constant * known.norm + abs(zero) * math.sqrt(call.numel), constant * known.apart)
    rounded = isinstance(call.value, Tensor) and not call.value.is_floating_point()
    if name in _SAME and (name == "getitem" or not rounded):
        return _only(call)
    if name not in _RULES:
        raise BoundError(
            f"no bound is known for {name}, so there is no certificate; the model, the expected displacement and "
            "measured noise need none"
        )
    return _RULES[name](call, other)


def _only(call: _Call) -> _Far:
    found = [far for far in call.far if far is not None]
    if len(found) != 1:
        raise BoundError(f"{op_name(call.node)} of several values has no known bound")
    return found[0]


# ------------------------------------------------------------------ non-linearities: Lipschitz constant, value at zero


def _fixed(constant: float, zero: float = 0.0) -> Callable[[_Call], tuple[float, float]]:
    return lambda call: (constant, zero)


def _slope(call: _Call) -> tuple[float, float]:
    return max(1.0, abs(float(call.arg(1, 0.01)))), 0.0


def _clamped(call: _Call) -> tuple[float, float]:
    low, high = call.arg(1), call.arg(2)
    zero = 0.0 if low is None else max(0.0, float(low))
    return 1.0, zero if high is None else min(zero, float(high))


def _elu(call: _Call) -> tuple[float, float]:
    alpha, scale, slope = (float(call.arg(k, 1.0)) for k in (1, 2, 3))
    return max(scale, abs(alpha * scale * slope)), 0.0


_CONSTANTS: dict[str, Callable[[_Call], tuple[float, float]]] = {
    **dict.fromkeys(("relu", "relu_", "tanh", "tanh_", "relu6", "abs", "sin", "neg", "atan"), _fixed(1.0)),
    **dict.fromkeys(("hardtanh", "hardtanh_"), _fixed(1.0)),
    **dict.fromkeys(("leaky_relu", "leaky_relu_"), _slope),
    **dict.fromkeys(("clamp", "clamp_"), _clamped),
    **dict.fromkeys(("elu", "elu_"), _elu),
    **dict.fromkeys(("selu", "selu_"), _fixed(1.0507009873554805 * 1.6732632423543772)),
    "gelu": _fixed(1.13),
    **dict.fromkeys(("silu", "silu_"), _fixed(1.1)),
    **dict.fromkeys(("mish", "mish_"), _fixed(1.09)),
    **dict.fromkeys(("hardswish", "hardswish_"), _fixed(1.5)),
    **dict.fromkeys(("sigmoid", "sigmoid_"), _fixed(0.25, 0.5)),
    "hardsigmoid": _fixed(1 / 6, 0.5),
    "softplus": lambda call: (1.0, math.log(2) / float(call.arg(1, 1.0))),
    "cos": _fixed(1.0, 1.0),
    "softmax": _fixed(0.5, 1.0),
    "_softmax": _fixed(0.5, 1.0),
}

_SAME = {"view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "unsqueeze", "squeeze", "contiguous",
         "clone", "alias", "detach", "movedim", "dropout", "dropout_", "alpha_dropout", "feature_dropout", "to",
         "_to_copy", "select", "slice", "narrow", "getitem", "split", "split_with_sizes", "chunk", "unbind", "identity",
         "_unsafe_view", "amax", "flip", "roll", "pixel_shuffle", "swapaxes", "swapdims", "mT",
         "lift_fresh_copy", "type_as", "detach_"}  # fmt: skip


# ------------------------------------------------------------------ linear maps


def _positions(call: _Call, channels: int) -> float:
    return math.sqrt(call.numel / channels)


def _affine(call: _Call, name: str, act: Callable[[Tensor, Tensor | None], Tensor], size: Callable[..., float]) -> _Far:
    """What W_b and b_b do to a value that is `apart`, and what their change does to the value itself."""
    known = call.far[0]
    if known is None or any(call.far[1:3]):
        raise BoundError(f"{name} with weights made from the inputs has no known bound")
    w, w_b, bias, bias_b = call.a[1], call.b[1], call.arg(2), call.b[2] if len(call.b) > 2 else None
    moved, moved_bias = w_b - w, None if bias is None or bias_b is None else bias_b - bias
    walk, node = call.walk, call.node
    own = 0.0
    if walk.data:
        own = _size(act(moved, moved_bias)) * _SMOOTH
    else:
        own = walk.bound((node, "change"), lambda: size(moved)) * known.norm
        own += 0.0 if moved_bias is None else _size(moved_bias) * _positions(call, len(moved_bias))
    norm = 0.0
    if not walk.data:
        norm = walk.bound((node, "a"), lambda: size(w)) * known.norm
        norm += 0.0 if bias is None else _size(bias) * _positions(call, len(bias))
    carried = walk.bound((node, "b"), lambda: size(w_b)) * known.apart if known.apart else 0.0
    return _Far(norm, carried + own)


def _linear(call: _Call, other: Any) -> _Far:
    return _affine(call, "linear", lambda w, b: F.linear(call.a[0], w, b), spectral_bound)


def _convolution(call: _Call, other: Any) -> _Far:
    target: Any = call.node.target
    rest, groups = call.a[3:], call.arg(6, 1)
    return _affine(
        call,
        op_name(call.node),
        lambda w, b: target(call.a[0], w, b, *rest),
        lambda w: convolution_bound(w, groups),
    )


def _addmm(call: _Call, other: Any) -> _Far:
    bias, x, w = call.a[:3]
    if call.far[1] is None or call.far[0] is not None or call.far[2] is not None or bias.dim() != 1:
        raise BoundError("addmm of two values that depend on the inputs has no known bound")
    swapped = _Call(
        call.walk, call.node, (x, w.T, bias), (call.b[1], call.b[2].T, call.b[0]), (call.far[1], None, None), call.value
    )
    return _linear(swapped, other)


def _matmul(call: _Call, other: Any) -> _Far:
    left, right = call.far[:2]
    a, b = call.a[:2]
    if left is not None and right is not None:
        return _product(left, right)
    if left is not None and b.dim() == 2:
        swapped = _Call(call.walk, call.node, (call.a[0], b.T), (call.b[0], call.b[1].T), (left, None), call.value)
        return _linear(swapped, other)
    known, still, moved = (left, b, call.b[1] - b) if left is not None else (right, a, call.b[0] - a)
    assert known is not None
    size, change = _size(still), _size(moved)
    return _Far(size * known.norm, (size + change) * known.apart + change * known.norm)


def _product(left: _Far, right: _Far) -> _Far:
    """|x_b y_b - x_a y_a| <= |x_a| |y_b - y_a| + |x_b - x_a| |y_b|, entry by entry or as matrices."""
    apart = left.norm * right.apart + left.apart * (right.norm + right.apart)
    return _Far(left.norm * right.norm, apart)


def _attention(call: _Call, other: Any) -> _Far:
    q, k, v = call.far[:3]
    if q is None or k is None or v is None or any(call.far[3:]) or call.node.kwargs.get("enable_gqa"):
        raise BoundError("attention of fixed queries, keys or values, or with groups, has no known bound")
    scale = call.node.kwargs.get("scale") or 1 / math.sqrt(call.a[0].shape[-1])
    scores = _product(q, k)
    rows = math.sqrt(call.a[0].shape[:-1].numel())
    return _product(_Far(rows, 0.5 * float(scale) * scores.apart), v)  # type: ignore[arg-type]


# ------------------------------------------------------------------ norms


def _scaled(call: _Call, x: Tensor, known: _Far, at: int, gains: tuple[Any, ...], offsets: tuple[Any, ...]) -> _Far:
    """s * x + t, s and t of both networks, along dimensions of x that `at` counts from the first."""
    (s, s_b), (t, t_b) = gains, offsets
    shape = (1,) * at + tuple(s.shape) + (1,) * (x.dim() - at - s.dim())
    moved, moved_t = (s_b - s).view(shape), (t_b - t).view(shape)
    if call.walk.data:
        own = _size(moved * x + moved_t) * _SMOOTH
    else:
        own = float(moved.abs().max()) * known.norm + _size(moved_t) * _positions(call, t.numel())
    norm = float(s.abs().max()) * known.norm + _size(t) * _positions(call, t.numel())
    return _Far(norm, float(s_b.abs().max()) * known.apart + own)


def _batch_norm(call: _Call, other: Any) -> _Far:
    known, x = call.far[0], call.a[0]
    names = op_name(call.node)
    if known is None or any(call.far[1:5]) or (names == "batch_norm" and call.a[5]) or call.a[3] is None:
        raise BoundError(f"{names} by the statistics of the batch has no known bound; put the network in evaluation")
    eps = call.a[7] if names == "batch_norm" else call.a[6]

    def parts(args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        gain, offset, mean, var = args[1:5]
        s = (var + eps).rsqrt() if gain is None else gain * (var + eps).rsqrt()
        return s, (0 if offset is None else offset) - s * mean

    (s, t), (s_b, t_b) = parts(call.a), parts(call.b)
    return _scaled(call, x, known, 1, (s, s_b), (t, t_b))


def _normalised(known: _Far, value: Tensor, spread: Tensor, eps: float, data: bool) -> _Far:
    """x / sqrt(mean x^2 + eps): Lipschitz 1 / sqrt(eps), and from a point of spread s, 2 / s; |value| <= sqrt(n)."""
    size = math.sqrt(value.numel())
    constant = 1 / math.sqrt(eps) if eps else math.inf
    if data:
        constant = min(constant, 2 / max(float(spread.min()), 1e-300))
    return _Far(size, min(constant * known.apart, 2 * size) if known.apart else 0.0)


def _layer_norm(call: _Call, other: Any) -> _Far:
    known, x, shape = call.far[0], call.a[0], call.a[1]
    dims = tuple(range(-len(shape), 0))
    eps = float(call.arg(4, 1e-5)) if op_name(call.node) != "rms_norm" else float(call.arg(3) or 1.2e-7)
    centred = x if op_name(call.node) == "rms_norm" else x - x.mean(dims, keepdim=True)
    return _after_norm(call, known, centred, dims, eps, x.dim() - len(shape))


def _group_norm(call: _Call, other: Any) -> _Far:
    known, x, groups = call.far[0], call.a[0], call.a[1]
    parted = x.reshape(len(x), groups, -1)
    centred = parted - parted.mean(-1, keepdim=True)
    call = _Call(
        call.walk, call.node, (x, None, *call.a[2:]), (x, None, *call.b[2:]), (known, *call.far[2:]), call.value
    )
    return _after_norm(call, known, centred, (-1,), float(call.arg(4, 1e-5)), 1)


def _after_norm(call: _Call, known: _Far | None, centred: Tensor, dims: tuple[int, ...], eps: float, at: int) -> _Far:
    if known is None or any(call.far[1:]):
        raise BoundError(f"{op_name(call.node)} with gains made from the inputs has no known bound")
    spread = (centred.square().mean(dims, keepdim=True) + eps).sqrt()
    z = (centred / spread).reshape(call.value.shape)
    found = _normalised(known, z, spread, eps, call.walk.data)
    rms = op_name(call.node) == "rms_norm"
    gain, gain_b = call.arg(2), call.b[2] if len(call.b) > 2 else None
    if gain is None:
        return found
    offset, offset_b = (None, None) if rms else (call.arg(3), call.b[3] if len(call.b) > 3 else None)
    zero = torch.zeros_like(gain)
    offsets = (zero, zero) if offset is None else (offset, offset_b)
    return _scaled(call, z, found, at, (gain, gain_b), offsets)


# ------------------------------------------------------------------ sums, products, pools


def _spread(whole: int, part: int) -> float:
    return math.sqrt(whole / max(1, part))


@dataclass(frozen=True)
class _Operand:
    """An operand spread over the result: |h_a|, |h_b - h_a|, and the largest entries of h_a and h_b."""

    norm: float
    apart: float
    most_a: float
    most_b: float


def _operand(call: _Call, k: int) -> _Operand:
    value, value_b, known = call.a[k], call.b[k], call.far[k]
    if not isinstance(value, Tensor):
        size = abs(float(value))
        return _Operand(size * math.sqrt(call.numel), 0.0, size, size)
    times = _spread(call.numel, value.numel())
    if known is None:
        most, most_b = float(value.abs().max()), float(value_b.abs().max())
        return _Operand(_size(value) * times, _size(value_b - value) * times, most, most_b)
    there = call.walk.data and not op_name(call.node).endswith("_")  # else it has been written over
    most = float(value.abs().max()) * _SMOOTH if there else known.norm
    return _Operand(known.norm * times, known.apart * times, most, most + known.apart)


def _add(call: _Call, other: Any) -> _Far:
    x, y = _operand(call, 0), _operand(call, 1)
    factor = abs(float(call.node.kwargs.get("alpha", call.arg(2, 1))))
    return _Far(x.norm + factor * y.norm, x.apart + factor * y.apart)


def _mul(call: _Call, other: Any) -> _Far:
    """|x_b y_b - x_a y_a| <= max |y_b| |x_b - x_a| + max |x_a| |y_b - y_a|."""
    x, y = _operand(call, 0), _operand(call, 1)
    return _Far(min(x.norm * y.most_a, x.most_a * y.norm), y.most_b * x.apart + x.most_a * y.apart)


def _div(call: _Call, other: Any) -> _Far:
    if call.far[0] is None or call.far[1] is not None:
        raise BoundError("a quotient of two values that depend on the inputs has no known bound")
    divisor = call.a[1] if isinstance(call.a[1], Tensor) else torch.tensor(float(call.a[1]))
    if isinstance(call.a[1], Tensor) and not torch.equal(divisor, call.b[1]):
        raise BoundError("a quotient by weights has no known bound")
    x, least = _operand(call, 0), float(divisor.abs().min())
    return _Far(x.norm / least, x.apart / least) if least else _Far(math.inf, math.inf)


def _cat(call: _Call, other: Any) -> _Far:
    norm = apart = 0.0
    nodes: Any = call.node.args[0]
    for node, x, x_b in zip(nodes, call.a[0], call.b[0], strict=True):
        far = call.walk.far.get(node, _Far(_size(x), _size(x_b - x)))
        norm, apart = math.hypot(norm, far.norm), math.hypot(apart, far.apart)
    return _Far(norm, apart)


def _windows(call: _Call, of: float) -> _Far:
    known = _only(call)
    return _Far(math.sqrt(of) * known.norm, math.sqrt(of) * known.apart)


def _each(value: Any, rank: int) -> list[int]:
    parts = list(value) if isinstance(value, (list, tuple)) else [value]
    return parts * rank if len(parts) == 1 else parts


def _max_pool(call: _Call, other: Any) -> _Far:
    """A value is the largest of at most prod ceil(k / s) windows."""
    rank = call.a[0].dim() - 2
    kernel = _each(call.a[1], rank)
    stride = _each(call.arg(2) or call.a[1], rank)
    dilation = _each(call.arg(4, 1), rank)
    counts = [min(k, -(-((k - 1) * d + 1) // s)) for k, s, d in zip(kernel, stride, dilation, strict=True)]
    return _windows(call, math.prod(counts))


def _adaptive_max_pool(call: _Call, other: Any) -> _Far:
    """A value lies in one bin of each dimension where the bins are even, else in at most two."""
    rank = call.a[0].dim() - 2
    bins = _each(call.a[1], rank)
    return _windows(call, math.prod(1 if n % k == 0 else 2 for n, k in zip(call.a[0].shape[2:], bins, strict=True)))


def _pool(call: _Call, other: Any) -> _Far:
    """Averages over windows: the product over dimensions of the map's norm, found by its action on the identity."""
    x, name = call.a[0], op_name(call.node)
    rank = int(name[-2])
    factor = 1.0
    for d in range(rank):
        eye = torch.eye(x.shape[x.dim() - rank + d], dtype=torch.float64)[None]
        if name.startswith("adaptive"):
            image = F.adaptive_avg_pool1d(eye, _each(call.a[1], rank)[d])
        else:
            kernel, stride = _each(call.a[1], rank)[d], _each(call.arg(2) or call.a[1], rank)[d]
            padding, ceil = _each(call.arg(3, 0), rank)[d], bool(call.arg(4, False))
            image = F.avg_pool1d(eye, kernel, stride, padding, ceil, bool(call.arg(5, True)))
            if call.arg(6) is not None:
                raise BoundError(f"{name} with a divisor has no known bound")
        factor *= spectral_bound(image[0])
    known = _only(call)
    return _Far(factor * known.norm, factor * known.apart)


def _mean(call: _Call, other: Any) -> _Far:
    count = call.a[0].numel() / max(1, call.numel)
    return _windows(call, 1 / count)


def _sum(call: _Call, other: Any) -> _Far:
    return _windows(call, call.a[0].numel() / max(1, call.numel))


def _expand(call: _Call, other: Any) -> _Far:
    return _windows(call, call.numel / call.a[0].numel())


def _nearest(call: _Call, other: Any) -> _Far:
    """Every entry is copied at most ceil(size after / size before) times in each dimension."""
    sizes = zip(call.a[0].shape[2:], call.value.shape[2:], strict=True)
    return _windows(call, math.prod(-(-after // before) for before, after in sizes))


def _pad(call: _Call, other: Any) -> _Far:
    constant = op_name(call.node) == "constant_pad_nd" or call.arg(2, "constant") == "constant"
    value = call.arg(2 if op_name(call.node) == "constant_pad_nd" else 3) or 0.0
    if not constant:
        raise BoundError(f"padding of kind {call.arg(2)!r} has no known bound")
    known = _only(call)
    return _Far(known.norm + abs(float(value)) * math.sqrt(call.numel), known.apart)


def _embedding(call: _Call, other: Any) -> _Far:
    """The rows that are looked up are as far apart as they are: tokens are the same in both networks."""
    return _Far(_size(call.value), _size(other - call.value))


def _log_softmax(call: _Call, other: Any) -> _Far:
    known = _only(call)
    wide = call.value.shape[int(call.a[1])]
    constant = 1 + math.sqrt(wide)
    return _Far(constant * known.norm + math.log(wide) * math.sqrt(call.numel), constant * known.apart)


_RULES: dict[str, Callable[[_Call, Any], _Far]] = {
    "linear": _linear,
    "addmm": _addmm,
    **dict.fromkeys(("matmul", "mm", "bmm"), _matmul),
    **dict.fromkeys((f"{kind}{d}d" for kind in ("conv", "conv_transpose") for d in (1, 2, 3)), _convolution),
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), _batch_norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    "group_norm": _group_norm,
    **dict.fromkeys(("add", "add_", "sub"), _add),
    **dict.fromkeys(("mul", "mul_"), _mul),
    **dict.fromkeys(("div", "div_"), _div),
    **dict.fromkeys(("cat", "stack"), _cat),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices"), _max_pool),
    **dict.fromkeys(("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"), _adaptive_max_pool),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _pool),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"), _pool),
    "mean": _mean,
    "sum": _sum,
    **dict.fromkeys(("expand", "repeat"), _expand),
    **dict.fromkeys(("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"), _nearest),
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    "embedding": _embedding,
    **dict.fromkeys(("log_softmax", "_log_softmax"), _log_softmax),
}
