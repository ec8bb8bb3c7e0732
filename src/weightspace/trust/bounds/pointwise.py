"""Rules for pointwise non-linearities: the Lipschitz constant sup |f'|, and the value at zero.

The constants are in closed form where there is one; those of GELU with tanh, SiLU and Mish are numerical, rounded
upwards in the 13th digit.
"""

from __future__ import annotations

import math

from weightspace.trust.bounds.rounding import BoundError
from weightspace.trust.bounds.rule import Call, Far, rule

__all__ = ["GELU", "GELU_TANH", "MISH", "SELU", "SILU"]


GELU = 0.5 * (1 + math.erf(1)) + math.exp(-1) / math.sqrt(math.pi)  # at sqrt 2
GELU_TANH = 1.1289930686588
SILU = 1.0998393201289
MISH = 1.0884981612518
SELU = 1.0507009873554805 * 1.6732632423543772
_SMOOTH = 16  # roundings inside an elementary function
_OVERFLOW = 80.0  # exp of more overflows in float32


def lipschitz(call: Call, constant: float, zero: float = 0.0, terms: int = _SMOOTH, stores: int = 2) -> Far:
    """The bounds of a pointwise function with this Lipschitz constant and this value at zero."""
    x, start = call.x, abs(zero) * math.sqrt(call.numel)
    norm = constant * x.far.norm + start
    return call.found(
        norm,
        constant * x.far.off,
        constant * x.far.apart,
        terms=terms,
        stores=stores,
        size_at=lambda p: (1 + constant) * x.at(p) + start,
    )


@rule("relu neg abs", "self")
def _exact(call: Call) -> Far:
    return lipschitz(call, 1.0, terms=0, stores=0)


@rule("tanh sin atan", "self")
def _through_zero(call: Call) -> Far:
    return lipschitz(call, 1.0)


@rule("cos", "self")
def _cos(call: Call) -> Far:
    return lipschitz(call, 1.0, 1.0)


@rule("sigmoid", "self")
def _sigmoid(call: Call) -> Far:
    return lipschitz(call, 0.25, 0.5)


@rule("hardsigmoid", "self")
def _hardsigmoid(call: Call) -> Far:
    return lipschitz(call, 1 / 6, 0.5)


@rule("silu", "self")
def _silu(call: Call) -> Far:
    return lipschitz(call, SILU)


@rule("mish", "self")
def _mish(call: Call) -> Far:
    return lipschitz(call, MISH)


@rule("hardswish", "self")
def _hardswish(call: Call) -> Far:
    return lipschitz(call, 1.5)


@rule("selu", "self")
def _selu(call: Call) -> Far:
    return lipschitz(call, SELU)


@rule("gelu", "self", "approximate")
def _gelu(call: Call) -> Far:
    return lipschitz(call, GELU_TANH if call.plain["approximate"] == "tanh" else GELU)


@rule("leaky_relu", "self", "negative_slope")
def _leaky_relu(call: Call) -> Far:
    return lipschitz(call, max(1.0, abs(float(call.plain["negative_slope"]))))


@rule("elu", "self", "alpha scale input_scale")
def _elu(call: Call) -> Far:
    """ELU: scale x above zero, alpha scale (exp(input_scale x) - 1) below."""
    alpha, scale, inner = (float(call.plain[k]) for k in ("alpha", "scale", "input_scale"))
    if inner < 0:
        raise BoundError(f"no bound is known for elu with input_scale={inner}, which grows without limit")
    return lipschitz(call, max(abs(scale), abs(alpha * scale * inner)))


@rule("celu", "self", "alpha")
def _celu(call: Call) -> Far:
    """CELU: x above zero, alpha (exp(x / alpha) - 1) below, with slope at most 1 for alpha > 0."""
    alpha = float(call.plain["alpha"])
    if alpha <= 0:
        raise BoundError(f"no bound is known for celu with alpha={alpha}, which grows without limit")
    return lipschitz(call, 1.0)


@rule("clamp hardtanh relu6 clamp_min clamp_max", "self", "min max min_val max_val")
def _clamp(call: Call) -> Far:
    low = next((v for k in ("min", "min_val") if (v := call.plain.get(k)) is not None), -math.inf)
    high = next((v for k in ("max", "max_val") if (v := call.plain.get(k)) is not None), math.inf)
    if call.name == "relu6":
        low, high = 0.0, 6.0
    return lipschitz(call, 1.0, min(max(0.0, float(low)), float(high)), terms=0)


@rule("softplus", "self", "beta threshold")
def _softplus(call: Call) -> Far:
    """Softplus: log(1 + exp(beta x)) / beta up to beta x = threshold, then x: a jump, counted at every entry."""
    beta, threshold = float(call.plain["beta"]), float(call.plain["threshold"])
    if not beta or threshold > _OVERFLOW:
        raise BoundError(f"no bound is known for softplus with beta={beta}, threshold={threshold}")
    jump = math.log1p(math.exp(-threshold)) / abs(beta) * math.sqrt(call.numel)
    if call.exact and threshold < 20:
        raise BoundError(f"softplus with threshold={threshold} jumps there, so it has no Lipschitz constant")
    found = lipschitz(call, 1.0, math.log(2) / beta)
    return found if call.exact else Far(found.norm, found.off + jump, found.apart + jump)


@rule("softmax _softmax", "self", "dim dtype", half_to_float=False)
def _softmax(call: Call) -> Far:
    """Softmax: the Jacobian diag(p) - p p^T has norm <= 1/2; exp(-t) t <= 1 / e bounds the exponent's rounding."""
    x, n = call.x, math.sqrt(call.numel)
    wide = _width(call)
    rows = math.sqrt(call.numel / wide)
    far = x.far
    off, apart = (min(0.5 * d, math.sqrt(2) * rows) for d in (far.off, far.apart))
    return call.found(rows, off, apart, terms=wide + _SMOOTH, size_at=lambda p: rows + n)


@rule("log_softmax _log_softmax", "self", "dim dtype", half_to_float=False)
def _log_softmax(call: Call) -> Far:
    """Log-softmax: the Jacobian 1 - 1 p^T is an oblique projection of norm sqrt(n) |p| <= sqrt(n)."""
    x, wide = call.x, _width(call)
    constant, start = math.sqrt(wide), math.log(wide) * math.sqrt(call.numel)
    return call.found(
        constant * x.far.norm + start,
        constant * x.far.off,
        constant * x.far.apart,
        terms=wide + _SMOOTH,
        size_at=lambda p: (2 + 2 * constant) * x.at(p) + start,
    )


def _width(call: Call) -> int:
    return int(call.out.shape[int(call.plain["dim"])]) if call.out.dim() else 1
