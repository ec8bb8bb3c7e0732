"""Rules for reshaping operations: views, copies, slices, repetitions, casts, padding."""

from __future__ import annotations

import math

from weightspace.trust.bounds.rounding import BoundError
from weightspace.trust.bounds.rule import Call, Far, rule, size

__all__ = []


_MOVED = {
    "view reshape _unsafe_view": "size shape",
    "flatten": "start_dim end_dim",
    "unflatten": "dim sizes",
    "permute": "dims",
    "transpose swapaxes swapdims": "dim0 dim1 axis0 axis1",
    "movedim": "source destination",
    "t numpy_T mT contiguous clone alias detach lift_fresh_copy": "memory_format",
    "unsqueeze squeeze": "dim",
    "select": "dim index",
    "slice": "dim start end step",
    "narrow": "dim start length",
    "split": "split_size split_sizes dim",
    "split_with_sizes": "split_sizes dim",
    "chunk": "chunks dim",
    "unbind": "dim",
    "flip": "dims",
    "roll": "shifts dims",
    "pixel_shuffle": "upscale_factor",
    "pixel_unshuffle": "downscale_factor",
    "expand": "size implicit",
    "repeat": "repeats",
}


def _moved(call: Call) -> Far:
    """Slices hold an entry at most once; expand and repeat hold each as often as the result is larger."""
    parts = call.out if isinstance(call.out, (tuple, list)) else [call.out]
    return call.copied(max(1.0, math.sqrt(sum(p.numel() for p in parts) / max(1, call.x.a.numel()))))


for _names, _settings in _MOVED.items():
    rule(_names, "self", _settings)(_moved)
rule("dropout alpha_dropout feature_dropout feature_alpha_dropout native_dropout", "input", "p", train=False)(_moved)


@rule("to _to_copy", "self", "dtype")
@rule("type_as", "self", shapes="other")
def _cast(call: Call) -> Far:
    """A cast: one rounding."""
    if not call.out.is_floating_point():
        raise BoundError(f"no bound is known for {call.name} whose dtype is an integer dtype")
    x = call["self"].far
    return call.found(x.norm, x.off, x.apart, terms=0, stores=1)


@rule("pad constant_pad_nd", "self", "pad value")
def _pad(call: Call) -> Far:
    far, value = call.x.far, abs(float(call.plain["value"] or 0.0))
    norm = size(call.out) if call.data else far.norm + value * math.sqrt(call.numel)
    return call.found(norm, far.off, far.apart, terms=0, stores=1 if value else 0)
