"""Verification: every generator of a group tried on random weights and inputs, in float64, on the live module.

Also on the example itself, on inputs 100 times as large and as small, and at the network's own weights. No drawn
element is the identity. The tolerance follows the lowest precision that the module itself uses.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from weightspace.graph import atoms
from weightspace.graph.atoms import Atom
from weightspace.graph.follow import Reading
from weightspace.graph.trace import Trace, op_name
from weightspace.net.errors import SymmetryError
from weightspace.net.inputs import carried, input_tensors
from weightspace.net.state import math_attention
from weightspace.symmetry.alone import Alone
from weightspace.symmetry.axis import Axis, as_blocks
from weightspace.symmetry.element import Element
from weightspace.symmetry.group import Group
from weightspace.symmetry.moved import touched
from weightspace.symmetry.probe import Probe, usable
from weightspace.symmetry.scale import sizes

__all__ = ["distance", "moved", "verify"]


_FAR = (1.0, 100.0, 0.01)  # sizes of the inputs that every element is tried on
_SMALL = 1e-4  # of the largest output: the least size that a change is relative to
_FELT = 1e-9  # in the graph, which has no casts to lower precision
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

    Those hold for small moves only, as where an operation jumps. Each alone is tried in the graph, where only what it
    changes is evaluated again, and on the module if it is felt there; all at once are tried on the module, and each of
    them if that fails. Raises `SymmetryError`, naming axis and operation, if a permutation changes the function, and
    where there are no outputs to compare.
    """
    tolerance = 1e-4 if graph.low_precision and probe.graph is None else 1e-9
    broken: set[int] = set()

    def try_each(example: Any, chosen: Set[int] | None = None) -> None:
        before = probe.outputs(example) if chosen is None or chosen else []
        for number, (axis, element) in enumerate(_generators(group, kinds, broken)):
            if chosen is not None and number not in chosen:
                continue
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

    probe.draw(0)
    _repeat(probe, tolerance)
    try_each(probe.example, _felt(group, kinds, broken, graph, probe, probe.example))
    drawn = [probe.example, *_elsewhere(probe)]
    tries: list[tuple[Callable[[], None], list[Any], float]] = [(partial(probe.draw, 0), drawn, tolerance)]
    for k in _felt_on(probe, kinds):
        tries.append((partial(probe.draw, k), [probe.inputs(k, size) for size in sizes(k)], tolerance))
    tries.append((probe.at_home, [probe.given], max(tolerance, _AT_HOME)))
    for place, examples, limit in tries:
        place()
        for example in _changed(group, kinds, broken, probe, examples, limit):
            place()
            try_each(example, _felt(group, kinds, broken, graph, probe, example))
            if _changed(group, kinds, broken, probe, [example], limit):
                place()
                try_each(example)
    return broken


def _felt_on(probe: Probe, kinds: Iterable[str]) -> range:
    """The other draws on which slopes were felt: of an expert that no token of the first draw chooses, say."""
    return range(1, probe.passes if {"scale", "sign"} & {*kinds} else 1)


def _repeat(probe: Probe, tolerance: float) -> None:
    """Raise `SymmetryError` where two calls on one input differ."""
    before = probe.outputs()
    if not distance(before, probe.outputs()) <= tolerance:
        raise SymmetryError(
            "two calls on one input give different outputs: the module draws random numbers; leave them out"
        )


def _felt(
    group: Group, kinds: Iterable[str], broken: set[int], graph: Trace, probe: Probe, example: Any
) -> set[int] | None:
    """The numbers of the generators that, each alone, change an output of the graph; None where it cannot be evaluated.

    The cost of a generator is that of the operations whose values it changes, however deep the network is.
    """
    try:
        run = Alone(graph, probe.net.tensors, input_tensors(carried(example, probe.net)))
        found = ((k, run.outputs(element)) for k, (_, element) in enumerate(_generators(group, kinds, broken)))
        return {k for k, pair in found if pair is not None and not distance(*pair) <= _FELT}
    except SymmetryError:
        return None


def _elsewhere(probe: Probe) -> Iterator[Any]:
    """The example itself where it is not what all is tried on, and random inputs of other sizes."""
    given, drawn = input_tensors(probe.given), input_tensors(probe.example)
    if not all(torch.equal(a, b) for a, b in zip(given, drawn, strict=True)):
        yield probe.given
    if any(t.is_floating_point() for t in input_tensors(probe.given)):
        for k, size in enumerate(_FAR):
            yield probe.inputs(k + 1, size)


def _changed(
    group: Group, kinds: Iterable[str], broken: set[int], probe: Probe, examples: list[Any], tolerance: float
) -> list[Any]:
    """The examples whose outputs one move of everything changes, or of the other signs. The weights stay moved."""
    before = [_outputs(probe, example) for example in examples]
    pairs = [(example, was) for example, was in zip(examples, before, strict=True) if was is not None]
    element = group.sample(2, kinds)
    factors = {k: f for k, f in element.factors.items() if k not in broken}
    tables = element.permutations if "permutation" in kinds else {}
    signs = {k: -torch.ones_like(f) for k, f in factors.items() if group.generators[k].kind == "sign"}
    changed: dict[int, Any] = {}
    # a unit that one draw leaves alone, as that of the only expert that is chosen, is flipped by the other
    for moves in [Element(group, tables, factors), *([Element(group, {}, signs)] if signs else [])]:
        _move(moves, probe)
        found = [k for k, (x, was) in enumerate(pairs) if not distance(was, probe.outputs(x)) <= tolerance]
        changed |= {k: pairs[k][0] for k in found}
    return [changed[k] for k in sorted(changed)]


def _outputs(probe: Probe, example: Any) -> list[Tensor] | None:
    """The outputs on an example; None where there are none."""
    try:
        found = probe.outputs(example)
    except SymmetryError:
        return None
    return found if usable(found) else None


def _generators(group: Group, kinds: Iterable[str], broken: set[int]) -> Iterable[tuple[Axis, Element]]:
    """Each generator with a random element of it alone: the same as `group.sample` would draw for its axis."""
    for axis in group.axes:
        if "permutation" in kinds and "permutation" in axis.kinds:
            yield axis, Element(group, {axis.name: group._shuffle(axis, torch.Generator().manual_seed(1))})
    drawn: dict[tuple[str, str], torch.Generator] = {}
    for k, generator in enumerate(group.generators):
        if generator.kind in kinds:
            source = drawn.setdefault((generator.axis, generator.kind), torch.Generator().manual_seed(1))
            factor = group._draw(group.sizes(group[generator.axis]), generator.kind, source)
            if k not in broken:
                yield group[generator.axis], Element(group, {}, {k: factor})


@contextlib.contextmanager
def moved(element: Element, probe: Probe) -> Iterator[None]:
    """The probe's tensors moved in place and moved back."""
    _move(element, probe)
    try:
        yield
    finally:
        _move(element.inverse(), probe)


def _move(element: Element, probe: Probe) -> None:
    """Move the probe's tensors in place, one after the other; those that are exchanged all at once."""
    tensors, names = probe.net.tensors, touched(element)
    traded = {element.group.blocks[k].tensor for name in element.exchanges for k in element.group.traded[name]}
    kept = {name: tensors[name].clone() for name in names if name in traded}
    for name in names:
        tensors[name].copy_(element.move(name, kept.get(name, tensors[name]), kept.__getitem__))


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
