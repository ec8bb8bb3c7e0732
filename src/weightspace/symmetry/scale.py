"""Positive scale symmetries, as the null space of directional derivatives.

Let place j of an axis be one occurrence of it in one tensor. Scaling the units x by exp(t_x e_j) at every place j
leaves f alone, for all t, if and only if sum_j e_j <df/dw_j[x], w_j[x]> = 0 for every unit x and every output. One
backward pass of a random projection of the outputs gives that row for all units, axes and places at once; the
exponents e are the null space, reduced to simple fractions. Values that must not change (`held`) count as outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from weightspace.graph.trace import Trace
from weightspace.net.errors import SymmetryError, first_line
from weightspace.net.inputs import input_tensors
from weightspace.net.state import math_attention
from weightspace.symmetry.axis import Block, Generator, Place
from weightspace.symmetry.group import Group
from weightspace.symmetry.probe import Probe, usable

__all__ = ["Slope", "dead_blocks", "place_slopes", "scale_generators", "sizes", "with_matrix"]


_NONE: Mapping[str, float] = MappingProxyType({})
_SPARE = 8
_DEAD = 1e-11
_NOISE = 1e-13  # of the largest slope anywhere: rounding error where all terms cancel, as for a key's bias
_MOST_PASSES = 24
_GIVEN_UP = 6
_LARGE = 1 << 22
_PART = 1 << 18  # numbers that are multiplied at a time
_MOST_ROWS = 512  # equations of a place in one pass
_SAID = 1e-6
_SIZES = (1.0, 1.0, 100.0, 1.0, 0.01, 1.0)  # sizes of the inputs of each pass


@dataclass(frozen=True)
class Slope:
    """The slope at one place: <d(r . f)/dw, w> for every unit and random projection r, and the size of its terms."""

    values: np.ndarray
    size: float


def place_slopes(
    group: Group,
    graph: Trace,
    probe: Probe,
    held: Set[fx.Node] = frozenset(),
    masks: Set[str] = frozenset(),
    offsets: Mapping[str, float] = _NONE,
) -> dict[str, dict[Place, Slope]]:
    """axis -> place -> slope; without places that have no effect, and those in `masks`, which are never rescaled.

    Every pass has weights and inputs of its own, until each axis has more informative rows than places. `offsets`: of
    these tensors the slopes are those of scales of w + offset. Raises `SymmetryError` where torch has no derivative.
    """
    rows: dict[Place, list[tuple[Tensor, float]]] = {}
    try:
        for seed in range(_MOST_PASSES):
            probe.draw(seed)
            _backward(graph, probe, seed, rows, held, _Leaves(group, probe.net.tensors, offsets))
            slopes = _felt(group, rows, masks)
            if seed and all(_enough(slopes[a.name], seed) for a in group.every if not _still(group, a.name)):
                break
    finally:
        probe.draw(0)
        probe.passes = max(probe.passes, seed + 1)
    return slopes


def dead_blocks(group: Group, slopes: Mapping[str, Mapping[Place, object]], masks: Set[str] = frozenset()) -> list[int]:
    """The numbers of the blocks without any effect on the outputs, where a matrix is among them.

    Without a matrix there are none: a vector, such as the bias of keys, may be free for good. A matrix without effect
    says that the example is too short to tell (one token, one step), or that what it feeds is never chosen.
    """
    felt = {place.block for met in slopes.values() for place in met}
    known = {place.block for axis in group.every if not _still(group, axis.name) for place in group.places[axis.name]}
    dead = [number for number in sorted(known - felt) if group.blocks[number].tensor not in {*masks, *group.state}]
    return with_matrix(group, dead)


def with_matrix(group: Group, numbers: list[int]) -> list[int]:
    """The blocks, or none where no matrix is among them."""
    return numbers if any(len({*group.blocks[number].dims}) > 1 for number in numbers) else []


def _enough(met: dict[Place, Slope], seed: int) -> bool:
    """Whether there are more informative rows than places; an axis without effect in a few draws is given up."""
    if not met:
        return seed >= _GIVEN_UP
    said = sum(np.abs(slope.values) > _SAID * slope.size for slope in met.values())
    return int((said > 0).sum()) >= len(met) + _SPARE


def _felt(
    group: Group, rows: dict[Place, list[tuple[Tensor, float]]], masks: Set[str]
) -> dict[str, dict[Place, Slope]]:
    slopes: dict[str, dict[Place, Slope]] = {}
    noise = _NOISE * max((sum(s for _, s in found) for found in rows.values()), default=0.0)
    for axis in group.every:
        if _still(group, axis.name):
            slopes[axis.name] = {}
            continue
        met = {
            p: Slope(torch.cat([v for v, _ in rows[p]]).numpy(), sum(s for _, s in rows[p]))
            for p in group.places[axis.name]
            if p in rows and group.blocks[p.block].tensor not in masks
        }
        largest = max((slope.size for slope in met.values()), default=0.0)
        slopes[axis.name] = {p: slope for p, slope in met.items() if slope.size > max(_DEAD * largest, noise)}
    return slopes


def _still(group: Group, axis: str) -> bool:
    """Positions of a kernel have no scale."""
    return group.pinned.get(axis) == "convolved over"


def _backward(
    graph: Trace,
    probe: Probe,
    seed: int,
    rows: dict[Place, list[tuple[Tensor, float]]],
    held: Set[fx.Node],
    leaves: _Leaves,
) -> None:
    kept: list[Tensor] = []

    def watch(node: fx.Node, value: Any) -> None:
        if node in held and isinstance(value, Tensor):
            kept.append(value)

    with math_attention():
        outputs: list[Tensor] = []
        for size in sizes(seed):
            kept.clear()
            outputs = graph.run(leaves, input_tensors(probe.inputs(seed, size)), watch)
            if usable(outputs):
                break
        _project([*outputs, *kept], seed)
    leaves.close()
    for place, found in leaves.met.items():
        rows.setdefault(place, []).append((torch.stack([t for t, _ in found]).sum(0), sum(s for _, s in found)))


def sizes(seed: int) -> list[float]:
    """The sizes of the inputs of a pass: the first at which the outputs are usable."""
    return list(dict.fromkeys((_SIZES[seed % len(_SIZES)], 1.0)))


class _Leaves(Mapping[str, Tensor]):
    """The weights as leaves of a backward pass, which sums gradient x weight at every place and drops the gradient.

    A large tensor is another leaf at every use, so that the gradients of its uses are not alive together.
    `met`: place -> the sums, and the size of their terms.
    """

    def __init__(self, group: Group, tensors: Mapping[str, Tensor], offsets: Mapping[str, float]) -> None:
        self.group, self.tensors, self.offsets = group, tensors, offsets
        self.met: dict[Place, list[tuple[Tensor, float]]] = {}
        self.made: dict[str, Tensor] = {}
        self.hooks: list[Any] = []

    def close(self) -> None:
        """Let go of the weights: a hook that holds its own leaf is a cycle that is never collected."""
        for hook in self.hooks:
            hook.remove()
        self.made.clear()

    def __getitem__(self, name: str) -> Tensor:
        if name in self.made:
            return self.made[name]
        leaf = self.tensors[name].detach().requires_grad_(self.tensors[name].is_floating_point())
        if leaf.requires_grad:
            self.hooks.append(leaf.register_post_accumulate_grad_hook(partial(self._felt, name)))
        if leaf.numel() < _LARGE:
            self.made[name] = leaf
        return leaf

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def _felt(self, name: str, leaf: Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None  # one gradient is alive at a time
        assert gradient is not None
        stored = leaf.detach() + self.offsets[name] if name in self.offsets else leaf.detach()
        for number, block in self.group.blocks_of(name):
            moving = [
                k for k, axis in enumerate(block.leaves) if isinstance(axis, str) and not _still(self.group, axis)
            ]
            pair = self.group.view(block, gradient.contiguous()), self.group.view(block, stored)
            tables, size = _summed(self.group, block, moving, *pair)
            for k, table in zip(moving, tables, strict=True):
                self.met.setdefault(Place(number, k), []).append((table.cpu(), size))


class _Sums:
    """A table on the units of an axis, added up part by part; of a large one, random sums of units.

    The exponents are the same for every unit, so that random sums of the units' equations have the same null space.
    `along`: the dimension along which the parts follow one another; None where every part is a whole table.
    """

    def __init__(self, shape: Sequence[int], along: int | None, device: torch.device) -> None:
        self.shape, self.along = tuple(shape), along
        self.total = torch.zeros(min(math.prod(shape), _MOST_ROWS), dtype=torch.float64, device=device)

    def add(self, part: Tensor, start: int) -> None:
        """Add a part that begins at `start`."""
        if math.prod(self.shape) <= _MOST_ROWS:
            table = self.total.view(self.shape)
            (table if self.along is None else table.narrow(self.along, start, part.shape[self.along])).add_(part)
            return
        unit = self._units(part, start).flatten()
        noise = 2 * (torch.sin(unit.double() * 12.9898) * 43758.5453).frac()  # the same for a unit at every place
        self.total.index_add_(0, unit % _MOST_ROWS, part.flatten() * noise)

    def _units(self, part: Tensor, start: int) -> Tensor:
        """The number of the unit at every entry of a part."""
        unit = torch.zeros(part.shape, dtype=torch.int64, device=part.device)
        for dim, size in enumerate(self.shape):
            first = start if dim == self.along else 0
            at = torch.arange(first, first + part.shape[dim], device=part.device)
            unit = unit * size + at.view([-1 if k == dim else 1 for k in range(part.dim())])
        return unit


def _summed(group: Group, block: Block, leaves: list[int], x: Tensor, y: Tensor) -> tuple[list[Tensor], float]:
    """The product of two views of a block, summed over everything but each of the leaves, and its norm.

    Part by part, so that the product is never whole, and not in place: a gradient may be that of a value too.
    """
    if not leaves:
        return [], 0.0
    rows = max(1, _PART * len(x) // max(x.numel(), 1))
    kept = [group.dims_of(block, k) for k in leaves]
    sums = [_Sums([x.shape[d] for d in at], at.index(0) if 0 in at else None, x.device) for at in kept]
    squares, room = [], x.new_empty((min(rows, len(x)), *x.shape[1:]))  # or small results between fragment the heap
    for number, (a, b) in enumerate(zip(x.split(rows), y.split(rows), strict=True)):
        value = torch.mul(a, b, out=room[: len(a)])
        squares.append(torch.linalg.vector_norm(value))
        for table, k in zip(sums, leaves, strict=True):
            table.add(group.gather(value, block, k), number * rows)
    return [table.total for table in sums], float(torch.stack(squares).norm())


def _project(outputs: list[Tensor], seed: int) -> None:
    """Backward from a random projection of the outputs, each relative to its size; infinite entries are masked."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64, device="cpu")
    for out in outputs:
        if out.requires_grad and out.is_floating_point():
            weight = torch.randn(out.shape, generator=generator, dtype=torch.float64, device="cpu").to(out)
            sound = out.isfinite()
            size = torch.where(sound, out, 0.0).detach().abs().max().clamp(min=1e-300)
            total = total + (torch.where(sound, out, 0.0) * weight).sum().div(size).cpu()
    if total.requires_grad:
        try:
            total.backward()
        except (RuntimeError, NotImplementedError) as error:
            raise SymmetryError(f"torch has no derivative here ({first_line(error)})") from error


def scale_generators(group: Group, slopes: dict[str, dict[Place, Slope]]) -> list[Generator]:
    """All positive-scale generators of all axes; those that touch running statistics are marked."""
    found = []
    for axis in group.every:
        met = slopes.get(axis.name, {})
        # state first: the reduction then leaves as many generators as possible free of it
        places = sorted(met, key=lambda p: group.blocks[p.block].tensor not in group.state)
        if not places:
            continue
        columns = np.stack([met[p].values for p in places], 1)
        sizes = np.array([met[p].size for p in places])
        for exponents in exponent_basis(columns, sizes):
            pairs = tuple((p, e) for p, e in zip(places, exponents, strict=True) if e)
            evaluation = any(group.blocks[p.block].tensor in group.state for p, _ in pairs)
            found.append(Generator(axis.name, "scale", pairs, evaluation))
    return found


def exponent_basis(slopes: np.ndarray, sizes: np.ndarray, tolerance: float = 1e-9) -> list[list[float]]:
    """Null space of `slopes` (rows x places) in reduced row echelon form, rounded to simple fractions.

    `sizes`: the size of a slope at every place before its terms cancel, against which zero is judged.
    """
    triangle = np.linalg.qr(slopes / sizes, mode="r")
    _, values, rows = np.linalg.svd(triangle)
    rank = int((values > tolerance).sum())
    simple = []
    for row in _row_echelon(rows[rank:] / sizes):
        fractions = [Fraction(float(x)).limit_denominator(6) for x in row]
        if max(abs(float(f) - x) for f, x in zip(fractions, row, strict=True)) < 1e-5:
            simple.append([float(f) for f in fractions])
    return simple


def _row_echelon(basis: np.ndarray) -> np.ndarray:
    basis = basis / np.abs(basis).max(axis=1, keepdims=True) if len(basis) else basis
    at = 0
    for column in range(basis.shape[1]):
        if at == len(basis):
            break
        best = at + int(np.abs(basis[at:, column]).argmax())
        if abs(basis[best, column]) < 1e-6 * np.abs(basis[at:]).max():
            continue
        basis[[at, best]] = basis[[best, at]]
        basis[at] /= basis[at, column]
        others = np.flatnonzero((np.arange(len(basis)) != at) & (basis[:, column] != 0))
        basis[others] -= basis[others, column, None] * basis[at]
        at += 1
    return basis
