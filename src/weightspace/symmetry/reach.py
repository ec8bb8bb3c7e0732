"""Operations whose behaviour depends on the size of their inputs, tested at all sizes.

A clip, a threshold, a rounding or the linear side of an ELU look homogeneous wherever the numbers of one run happen to
lie. Here every operation whose inputs a scale changes is evaluated again at inputs of every size, and of either sign
where both occur: it either follows the scale at all of them, or its inputs are held fixed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from weightspace.graph.follow import live, used_outputs
from weightspace.graph.trace import Trace, evaluate, op_name
from weightspace.net.errors import SymmetryError
from weightspace.net.inputs import input_tensors
from weightspace.net.state import math_attention
from weightspace.symmetry.element import Element
from weightspace.symmetry.moved import Moved
from weightspace.symmetry.probe import Probe

__all__ = ["Signs", "elementwise", "signs_met", "unreached", "wide"]


Signs = dict[fx.Node, tuple[bool, bool]]

_TOLERANCE = 1e-6
_DECADES = 5.0
_NORM_DECADES = 2.0  # an eps of 1e-12 in a norm is taken for none, one of 1e-9 is not
_ELEMENTS = 512  # about how many numbers an operation is tested at
_ROUNDS = 12
_DRAWS = 8
_NORMS = ("layer_norm", "rms_norm", "group_norm", "instance_norm")
_ELEMENTWISE = ("hardswish", "prelu", "_prelu_kernel", "log_sigmoid_forward")  # not tagged pointwise in torch


def elementwise(node: fx.Node) -> bool:
    """Whether every entry of the output depends on one entry of each input alone."""
    return torch.Tag.pointwise in getattr(node.target, "tags", ()) or op_name(node) in _ELEMENTWISE


def signs_met(graph: Trace, probe: Probe) -> Signs:
    """Whether each value is ever negative, and ever positive; over several draws where it has few entries."""
    met: Signs = {}
    seen: dict[fx.Node, int] = {}

    def watch(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor) and value.is_floating_point():
            below, above = met.get(node, (False, False))
            for part in (value.flatten()[:_ELEMENTS], value):  # most values show both signs at once
                if not (below and above):
                    below, above = below or bool((part < 0).any()), above or bool((part > 0).any())
            met[node] = below, above
            seen[node] = seen.get(node, 0) + value.numel()

    for seed in range(_DRAWS):
        probe.draw(seed)
        with torch.no_grad(), math_attention():
            graph.run(probe.net.tensors, input_tensors(probe.inputs(seed)), watch)
        if min(seen.values(), default=_ELEMENTS) >= _ELEMENTS // _DRAWS:
            break
    probe.draw(0)
    return met


def wide(value: Tensor, signs: tuple[bool, bool], seed: int, decades: float) -> Tensor:
    """Factors that bring the entries of `value` to many sizes: half relative to the entry, half relative to one."""
    generator = torch.Generator().manual_seed(seed)

    def uniform() -> Tensor:
        return torch.rand(value.shape, generator=generator, dtype=torch.float64, device="cpu").to(value)

    factor = 10 ** (decades * (2 * uniform() - 1))
    factor = torch.where((uniform() < 0.5) & (value != 0), factor / value.abs(), factor)
    return factor * torch.where(uniform() < 0.5, -1.0, 1.0) if all(signs) else factor


def unreached(graph: Trace, probe: Probe, element: Element, signs: Signs) -> set[fx.Node]:
    """Inputs of the operations that follow `element` at the sizes seen in a run, but not at all sizes."""
    held: set[fx.Node] = set()
    needed = live(graph)
    moved = Moved(element, probe.net.tensors)
    inputs = input_tensors(probe.example)
    with torch.no_grad(), math_attention():
        for node, args, values in graph.walk([probe.net.tensors, moved], inputs):
            if node.op != "call_function" or node not in needed or not _asked(node, needed):
                continue
            given = list(_floats(node, *args))
            if any(not torch.equal(a, b) for _, a, b in given) and _strained(
                node, args, values, signs, _flags(node, needed)
            ):
                held |= {source for source, _, _ in given}
    return held


def _asked(node: fx.Node, needed: set[fx.Node]) -> bool:
    """Operations on entries, norms, and those that return positions or flags."""
    return elementwise(node) or op_name(node) in _NORMS or bool(_flags(node, needed))


def _flags(node: fx.Node, needed: set[fx.Node]) -> list[int]:
    """Outputs that are positions, flags or counts, and are used."""
    outputs = node.meta.get("val")
    if not isinstance(outputs, (tuple, list)):
        return [0] if _counts(outputs) else []
    used = used_outputs(node, needed)
    return [k for k, t in enumerate(outputs) if k in used and _counts(t)]


def _counts(value: Any) -> bool:
    return isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())


def _floats(node: fx.Node, args: tuple[Any, ...], moved: tuple[Any, ...]) -> Iterator[tuple[fx.Node, Tensor, Tensor]]:
    for source, a, b in zip(node.args, args, moved, strict=True):
        if isinstance(source, fx.Node) and isinstance(a, Tensor) and a.is_floating_point():
            yield source, a, b


def _strained(node: fx.Node, args: list[tuple[Any, ...]], values: list[Any], signs: Signs, flags: list[int]) -> bool:
    """Whether the operation follows the move at the sizes seen in a run, and not elsewhere."""
    size = max((a.numel() for _, a, _ in _floats(node, *args)), default=1)
    rounds = min(_ROUNDS, max(2, -(-_ELEMENTS // max(size, 1))))
    if not all(_answers(node, args, values, signs, flags, seed, near=True) for seed in range(2)):
        return False
    return not all(_answers(node, args, values, signs, flags, seed, near=False) for seed in range(rounds))


def _answers(
    node: fx.Node,
    args: list[tuple[Any, ...]],
    values: list[Any],
    signs: Signs,
    flags: list[int],
    draw: int,
    near: bool,
) -> bool:
    """Whether f(m r x) / f(m x) is f(r x) / f(x) for random factors m; `near`: for those within 1 % of one."""
    factors: dict[fx.Node, Tensor] = {}
    for k, (source, a, _) in enumerate(_floats(node, *args)):
        if source not in factors:
            factors[source] = _factor(node, k, a, signs.get(source, (True, True)), 97 * draw + k, near)
    try:
        far = [evaluate(node, _times(node, given, factors), _kwargs(node), torch.float64) for given in args]
    except SymmetryError:
        return True
    outs = [v if isinstance(v, (tuple, list)) else (v,) for v in (*values, *far)]
    if not near and any(not torch.equal(outs[2][k], outs[3][k]) for k in flags):
        return False
    scaled = elementwise(node) or op_name(node) in _NORMS
    return not scaled or all(_follows(*four) for four in zip(*outs, strict=True))


def _factor(node: fx.Node, k: int, value: Tensor, signs: tuple[bool, bool], seed: int, near: bool) -> Tensor:
    norm = op_name(node) in _NORMS
    if norm and k:
        return torch.ones((), dtype=value.dtype, device=value.device)
    at = value[(0,) * value.dim()] if norm else value
    if near:
        generator = torch.Generator().manual_seed(seed)
        return 1 + 0.01 * torch.rand(at.shape, generator=generator, dtype=torch.float64, device="cpu").to(at)
    return wide(torch.ones_like(at), (False, True), seed, _NORM_DECADES) if norm else wide(at, signs, seed, _DECADES)


def _kwargs(node: fx.Node) -> dict[str, Any]:
    if any(isinstance(v, fx.Node) for v in node.kwargs.values()):
        raise SymmetryError(f"{op_name(node)} has a tensor as a named argument")
    return dict(node.kwargs)


def _times(node: fx.Node, args: tuple[Any, ...], factors: dict[fx.Node, Tensor]) -> tuple[Any, ...]:
    return tuple(
        a * factors[source] if isinstance(source, fx.Node) and source in factors else a
        for source, a in zip(node.args, args, strict=True)
    )


def _follows(y: Any, moved: Any, far: Any, far_moved: Any) -> bool:
    if not isinstance(y, Tensor) or _counts(y):
        return True
    wanted = far * (moved / y)
    size = torch.maximum(wanted.abs(), far_moved.abs())
    sound = (y != 0) & wanted.isfinite() & far_moved.isfinite()
    return not bool((sound & ((wanted - far_moved).abs() > _TOLERANCE * size)).any())
