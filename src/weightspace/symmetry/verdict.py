"""How two networks of one architecture relate: the relative distance of their aligned weights, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.weights import squared_distance, squared_norm

__all__ = ["OUTPUTS", "RELATED", "SAME", "Verdict", "beside_matrices", "judge", "precision", "relative_distance"]


SAME, RELATED = 1e-4, 0.7
OUTPUTS, _ROUNDING = 1e-3, 1e-5


@public
@dataclass(frozen=True)
class Verdict:
    """How two networks relate: `kind` is "same", "function", "related" or "independent"; `why` gives the number."""

    kind: str
    words: str
    why: str


@public
def judge(relative: float, precision: float = 0.0, outputs: float | None = None) -> Verdict:
    """The verdict on two networks at aligned relative distance r = `relative`.

    - same: r <= max(1e-4, `precision`), the rounding of the dtype, and outputs (where data was given) that differ by
      at most max(1e-3, 10 `precision`) of their size;
    - function: r is larger, and outputs were given and agree to rounding, max(1e-5, 10 `precision`) of their size: the
      same function on these examples, though no element of the group maps one network to the other;
    - related (fine-tuned from one another, or from a common ancestor): r <= 0.7;
    - independent: everything else.

    Measured on CNNs and MLPs of width 16 to 512 on digits: copies permuted and rescaled 7e-8, fine-tuned for 2 to 60
    epochs .01 to .41, independent seeds .99 to 1.15, random initialisations 1.15 to 1.21. On transformers of digits:
    fine-tuned for 2 to 30 epochs .05 to .37, turned by a random element of the whole group or not; independent seeds
    1.05 (by permutations, scales and signs alone 1.25).
    """
    most = max(SAME, precision)
    seen = f"once the units are matched, the weights differ by {relative:.2g} of their norm"
    if relative <= most:
        if outputs is None or outputs <= max(OUTPUTS, 10 * precision):
            agree = "" if outputs is None else f", and the outputs by {outputs:.1g}"
            return Verdict("same", "the same network, up to symmetry", f"{seen}{agree} (up to {most:g} is rounding)")
        why = f"{seen}, but the outputs by {outputs:.2g} of their size, which is more than rounding"
        return Verdict("related", "related: one is a small change of the other", why)
    if outputs is not None and outputs <= max(_ROUNDING, 10 * precision):
        words = "the same function, but no symmetry that was found maps one to the other"
        return Verdict(
            "function", words, f"{seen}, and yet the outputs by {outputs:.1g} of their size, which is rounding"
        )
    if relative <= RELATED:
        words = "related: fine-tuned from one another, or from one ancestor"
        return Verdict(
            "related", words, f"{seen} (up to {RELATED:g} is related; unrelated weights, not matched, give 1.41)"
        )
    words = "independent: trained apart"
    return Verdict(
        "independent", words, f"{seen} (above {RELATED:g} is independent; unrelated weights, not matched, give 1.41)"
    )


def relative_distance(a: Net, b: Net) -> float:
    """|a - b| over the root mean square of |a| and |b|: 0 for equal weights, about 1.41 for unrelated ones.

    Over matrices and kernels, if there are any: gains of norm layers are near 1 in unrelated networks too.
    """
    names = [n for n, w in a.weights.items() if w.dim() > 1] or list(a.weights)
    return _apart(a, b, names)


def beside_matrices(a: Net, b: Net, relative: float) -> float:
    """Where the matrices agree to rounding: the same measure over everything else, buffers too; else 0.

    Networks that differ in their biases or statistics alone are not the same.
    """
    if relative > SAME:
        return 0.0
    names = [n for n, t in a.tensors.items() if t.is_floating_point() and (t.dim() < 2 or n in a.state)]
    return min(_apart(a, b, names), RELATED)


def _apart(a: Net, b: Net, names: Iterable[str]) -> float:
    """|a - b| over the root mean square of |a| and |b|, over these tensors, summed in float64."""
    pairs = [(a.tensors[name], b.tensors[name]) for name in names]
    size = sum(squared_norm(x) + squared_norm(y) for x, y in pairs) / 2
    distance = sum(squared_distance(x, y) for x, y in pairs)
    return math.sqrt(distance / size) if size else 0.0


def precision(a: Net, b: Net) -> float:
    """The relative rounding of the coarser of the dtypes of two networks."""
    dtypes = {t.dtype for net in (a, b) for t in net.weights.values() if t.is_floating_point()}
    return max((float(torch.finfo(dtype).eps) for dtype in dtypes), default=0.0)
