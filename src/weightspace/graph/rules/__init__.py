"""How each operation carries axes from its inputs to its outputs.

One short function per family of operations, registered under the names of the operators of core ATen (and of the few
composite ones that the trace keeps whole). A rule unifies what the operation forces to be indexed alike, pins what it
mixes, and returns the dimensions of its outputs. An operation without a rule pins everything it touches, with a note.
Tensors of positions (of a largest entry, of an order) carry the dimension to which they point: looking up by them, or
writing at them, is indexed alike.
"""

from __future__ import annotations

from weightspace.graph.rules import contraction, part, reduction, shape, write
from weightspace.graph.rules.call import RULES, Call, Outcome, follow_choices, follow_positions, pointwise, unknown

__all__ = [
    "Call",
    "apply_rule",
    "contraction",
    "known",
    "part",
    "reduction",
    "shape",
    "write",
]  # rules enter when imported


def known(op: str) -> bool:
    """Whether an operator has a rule of its own."""
    return op in RULES


def apply_rule(call: Call) -> Outcome:
    """Dimensions of the outputs of one call."""
    outcome = _ruled(call)
    follow_positions(call, outcome)
    follow_choices(call, outcome)
    return outcome


def _ruled(call: Call) -> Outcome:
    if call.op in RULES:
        return RULES[call.op](call)
    if call.pointwise:
        return pointwise(call)
    if call.reduction:
        return reduction.reduce(call)
    return unknown(call)
