"""Verification: every generator of a group tried on random weights and inputs, in float64, on the live module.

Also on the example itself, on inputs 100 times as large and as small, and at the network's own weights. No drawn
element is the identity. The tolerance follows the lowest precision that the module itself uses.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from weightspace.graph import atoms
from weightspace.graph.atoms import Atom
from weightspace.graph.follow import Reading
from weightspace.graph.trace import Trace, op_name
from weightspace.net.errors import SymmetryError
from weightspace.net.inputs import input_tensors
from weightspace.net.net import math_attention
from weightspace.symmetry.axis import Axis, as_blocks
from weightspace.symmetry.group import Element, Group
from weightspace.symmetry.probe import Probe, usable

__all__ = ["distance", "moved", "verify"]


_FAR = (1.0, 100.0, 0.01)  # sizes of the inputs that every element is tried on
_SMALL = 1e-4  # of the largest output: the least size that a change is relative to
_AT_HOME = 1e-7  # the network's own weights may be badly conditioned


def verify(
    group: Group,
    graph: Trace,
    reading: Reading,
    names: Mapping[Atom, str],
    probe: Probe,
    kinds: Iterable[str],
) -> set[int]:
    """Try every generator, then all at once on other inputs; return the numbers of the scales and signs that fail.

    Those hold for small moves only, as where an operation jumps. Raises `SymmetryError`, naming axis and operation, if
    a permutation changes the function, and where there are no outputs to compare.
    """
    tolerance = 1e-4 if graph.low_precision and probe.graph is None else 1e-9
    broken: set[int] = set()

    def try_all(example: Any) -> None:
        before = probe.outputs(example)
        for number, (axis, element) in enumerate(_generators(group, kinds, broken)):
            with moved(element, probe):
                change = distance(before, probe.outputs(example))
            if change <= tolerance:
                continue
            if element.factors:
                broken.update(element.factors)
                continue
            where = _culprit(element, graph, reading, names, probe)
            raise SymmetryError(
                f"moving {axis.name} ({axis.size} units, generator {number}) changes the function by {change:.1e}"
                f"{where}; this operation is misread: report it, or read with verify=False at your own risk"
            )

    before = probe.outputs()
    if not distance(before, probe.outputs()) <= tolerance:
        raise SymmetryError(
            "two calls on one input give different outputs: the module draws random numbers; leave them out"
        )
    try_all(probe.example)
    for example in _elsewhere(probe):
        if not _holds(group, kinds, broken, probe, example, tolerance):
            try_all(example)
    probe.at_home()
    if not _holds(group, kinds, broken, probe, probe.given, max(tolerance, _AT_HOME)):
        try_all(probe.given)
    probe.draw(0)
    return broken


def _elsewhere(probe: Probe) -> Iterator[Any]:
    """The example itself, and random inputs of other sizes."""
    yield probe.given
    if any(t.is_floating_point() for t in input_tensors(probe.given)):
        for k, size in enumerate(_FAR):
            yield probe.inputs(k + 1, size)


def _holds(group: Group, kinds: Iterable[str], broken: set[int], probe: Probe, example: Any, tolerance: float) -> bool:
    """Whether one move of everything leaves the outputs on this input alone; True where there are no outputs."""
    try:
        before = probe.outputs(example)
    except SymmetryError:
        return True
    if not usable(before):
        return True
    element = group.sample(2, kinds)
    factors = {k: f for k, f in element.factors.items() if k not in broken}
    with moved(Element(group, element.permutations, factors), probe):
        return distance(before, probe.outputs(example)) <= tolerance


def _generators(group: Group, kinds: Iterable[str], broken: set[int]) -> Iterable[tuple[Axis, Element]]:
    for axis in group.axes:
        if "permutation" in kinds and "permutation" in axis.kinds:
            yield axis, group.sample(1, ("permutation",), [axis.name])
    for k, generator in enumerate(group.generators):
        if generator.kind in kinds and k not in broken:
            element = group.sample(1, (generator.kind,), [generator.axis])
            yield group[generator.axis], Element(group, element.permutations, {k: element.factors[k]})


@contextlib.contextmanager
def moved(element: Element, probe: Probe) -> Iterator[None]:
    """The probe's tensors moved in place, one after the other, and moved back."""
    tensors, touched = probe.net.tensors, _touched(element)
    for name in touched:
        tensors[name].copy_(element.move(name, tensors[name]))
    try:
        yield
    finally:
        back = element.inverse()
        for name in touched:
            tensors[name].copy_(back.move(name, tensors[name]))


def _touched(element: Element) -> set[str]:
    group = element.group
    still = group.identity().permutations
    moving = {n for n, t in element.permutations.items() if not torch.equal(t, still[n])}
    moving |= {group.generators[k].axis for k in element.factors}
    return {block.tensor for block in group.blocks if moving & set(block.leaves)}


def distance(before: list[Tensor], after: list[Tensor]) -> float:
    """The largest change of an output, in units of that output's size; infinite if an infinite entry changes."""
    sizes = [float(t[t.isfinite()].abs().max()) if bool(t.isfinite().any()) else 0.0 for t in before]
    least = _SMALL * max(sizes, default=0.0) or 1.0
    worst = 0.0
    for a, b, size in zip(before, after, sizes, strict=True):
        same = a == b  # infinities too
        change = torch.where(same, 0.0, (a - b).abs())
        worst = max([worst, *([float(change.max()) / max(size, least)] if a.numel() else [])])
        if math.isnan(worst) or bool(change.isnan().any()):
            return math.inf
    return worst


def _culprit(element: Element, graph: Trace, reading: Reading, names: Mapping[Atom, str], probe: Probe) -> str:
    """The first operation whose value does not move as its labels say (permutations only)."""
    if element.factors:
        return ""
    inputs = input_tensors(probe.example)
    if len(inputs) != len(graph.inputs):
        return ""
    runs: list[dict[fx.Node, Any]] = []
    with torch.no_grad(), math_attention():
        for mover in (None, element):
            seen: dict[fx.Node, Any] = {}
            tensors = probe.net.tensors if mover is None else mover(probe.net).tensors
            graph.run(tensors, inputs, seen.__setitem__)
            runs.append(seen)
    for node, value in runs[0].items():
        labels = reading.values.get(node)
        if not isinstance(value, Tensor) or labels is None or isinstance(labels, tuple):
            continue
        wanted = _carry(element, value, labels.dims, names)
        if value.is_floating_point() and not torch.allclose(wanted, runs[1][node], rtol=1e-6, atol=1e-9):
            return f", first at {op_name(node)}"
    return ""


def _carry(element: Element, value: Tensor, dims: list[atoms.Dim], names: Mapping[Atom, str]) -> Tensor:
    group = element.group
    out = value.detach().clone().contiguous()
    for block in as_blocks("", tuple(value.shape), atoms.blocks(dims), names):
        if not group.whole(block):
            continue
        group.view(block, out).copy_(element._gather(group.view(block, value.contiguous()), block.leaves))
    return out
