"""Whether two networks were trained apart: an exact p-value, from random members of the orbit of one of them.

Null hypothesis: b was trained from a start that was drawn independently of a. Starts are exchangeable in the hidden
units, and optimisers treat all units alike, so that (a, g b) has the law of (a, b) for every permutation g of units.
The rank of a statistic T(a, b) among T(a, g_1 b), .., T(a, g_m b) is then uniform, whatever the data and the training:
p = (1 + #{i: T(a, g_i b) >= T(a, b)}) / (m + 1). Permutations alone are drawn: under weight decay, Adam or a start of
given variance, scales and rotations do not leave the law alone.

Source: Zhu, Ahmed, Kuditipudi and Liang, Independence tests for language models, 2025.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from weightspace.atlas.side_by_side import Member
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public
from weightspace.net.seeds import derived
from weightspace.symmetry.axis import Axis, Block, place_axes
from weightspace.symmetry.group import Group

__all__ = ["Independence", "Renumbering", "independence", "renumbering"]


_UNITS = 256  # of one axis that a statistic looks at
_FEWEST = 4


@public
@dataclass(frozen=True)
class Independence:
    """The p-value of independence of two networks, in all and tensor by tensor. Made by `independence`.

    `p`: of the sum of correlations over all tensors; `tensors[name]`: of one tensor alone; `lowest`: the lowest of
    these times their number (Bonferroni). `correlation`: the mean correlation of the tensors as they are stored, 1 for
    copies; `chance`: its standard deviation among `draws` random members of the orbit, so that
    `sigmas` = correlation / chance. `left_out`: tensors that say nothing, being constant or not permuted. `exact` is
    False where there was no group to draw from: then `p` is 1 and `correlation` is evidence, not a test.
    """

    p: float
    lowest: float
    correlation: float
    chance: float
    draws: int
    tensors: Mapping[str, float]
    correlations: Mapping[str, float]
    left_out: tuple[str, ...] = ()
    exact: bool = True

    @property
    def sigmas(self) -> float:
        """How many standard deviations of the random members the correlation is above their mean of about zero."""
        return self.correlation / self.chance if self.chance else math.inf * self.correlation

    def __str__(self) -> str:
        if not self.exact:
            return f"correlation {self.correlation:.2g} (evidence: no group to draw from, so no p-value)"
        shown = f"p = {self.p:.2g}" if self.p > 1 / (self.draws + 1) else f"p <= {self.p:.2g}"
        carry = sorted(self.tensors, key=lambda name: self.tensors[name])[:3]
        return f"{shown}, {self.sigmas:.1f} sigmas, by {', '.join(carry)}"


@public
def independence(a: Member, b: Member, group: Group | None, *, draws: int = 99, seed: int = 0) -> Independence:
    """The exact p-value of the hypothesis that b was trained from a start drawn independently of a.

    T is the sum over tensors of the correlation of their entries, as the networks are stored; the smallest p is
    1 / (draws + 1). Of axes of more than 256 units, 256 are looked at. Tensors that no permutation moves, and those
    whose entries are all equal (biases that were not trained, gains at one), do not count. Tensors that both networks
    have from one fixed start are dependence, and found. Without a group the correlations are evidence, not a test.
    Renumbered relatives are not seen, see `renumbering`. Raises `WeightspaceError` for no draws, or NaN.

    >>> import weightspace as ws
    >>> from weightspace.atlas.independence import independence
    >>> net, task = ws.demo.example()
    >>> group = ws.Symmetry.of(net, task.example(2))
    >>> tuned = net + 0.05 * net.weights.randn(0)
    >>> independence(net.tensors, tuned.tensors, group).p
    0.01
    >>> independence(net.tensors, ws.demo.example(1)[0].tensors, group).p > 0.05
    True
    """
    if draws < 1:
        raise WeightspaceError(f"a p-value from {draws} draws; draw at least one")
    if group is None:
        return _evidence(a, b)
    tables = [group.still(), *(_uniform(group, seed, k) for k in range(draws))]
    found: dict[str, Tensor] = {}
    left: list[str] = []
    for name in group.shapes:
        blocks = [block for _, block in group.blocks_of(name)]
        moved = any(leaf in tables[0] for block in blocks for leaf in block.leaves)
        if name not in a or name not in b or not moved or not a[name].is_floating_point():
            left.append(name)
            continue
        x, y = (_numbers(member[name], name) for member in (a, b))
        values = _correlations(group, blocks, x, y, tables)
        if values is None:
            left.append(name)
        else:
            found[name] = values
    if not found:
        raise WeightspaceError("no tensor in which units could be permuted; there is nothing to test")
    each = {name: _rank(values) for name, values in found.items()}
    total = torch.stack([*found.values()]).mean(0)
    shown = {name: float(values[0]) for name, values in found.items()}
    lowest = min(1.0, min(each.values()) * len(each))
    chance = float(total[1:].square().mean().sqrt())
    return Independence(_rank(total), lowest, float(total[0]), chance, draws, each, shown, tuple(left))


def _rank(values: Tensor) -> float:
    """The share of values, itself included, that are at least the first."""
    return float((values >= values[0]).double().mean())


def _uniform(group: Group, seed: int, k: int) -> dict[str, Tensor]:
    """Uniform permutations of every axis; unlike those of `Group.sample` they may be the identity."""
    generator = torch.Generator().manual_seed(derived(seed, "member", k))
    tables = {}
    for axis in group.permutable():
        sizes = group.sizes(axis)
        rows = [torch.randperm(axis.size, generator=generator) for _ in range(math.prod(sizes[:-1]))]
        tables[axis.name] = torch.stack(rows).reshape(sizes)
    return tables


def _numbers(tensor: Tensor, name: str) -> Tensor:
    x = tensor.detach().cpu().float().contiguous()
    if not bool(x.isfinite().all()):
        raise WeightspaceError(f"NaN or infinity in {name!r}; there is nothing to test")
    return x


def _correlations(
    group: Group, blocks: Sequence[Block], x: Tensor, y: Tensor, tables: Sequence[Mapping[str, Tensor]]
) -> Tensor | None:
    """The correlation of a tensor of a with that of b under each of the permutations; None for constants."""
    parts = [(block, group.view(block, x), group.view(block, y)) for block in blocks]
    fixed = torch.cat([_seen(group, block, u, tables[0]).flatten() for block, u, _ in parts]).double()
    fixed = fixed - fixed.mean()
    values = []
    for table in tables:
        moved = torch.cat([_seen(group, block, v, table).flatten() for block, _, v in parts]).double()
        moved = moved - moved.mean()
        size = float(fixed.norm() * moved.norm())
        values.append(float(fixed @ moved) / size if size > 1e-12 * fixed.numel() ** 0.5 else math.nan)
    return None if any(map(math.isnan, values)) else torch.tensor(values, dtype=torch.float64).round(decimals=12)


def _seen(group: Group, block: Block, view: Tensor, tables: Mapping[str, Tensor]) -> Tensor:
    """The first units of a permuted view, in every dimension."""
    leaves = block.leaves
    movable = [k for k, axis in enumerate(leaves) if axis in tables]
    for k in sorted(movable, key=lambda k: len(group[str(leaves[k])].over)):
        name = str(leaves[k])
        table = tables[name][tuple(slice(_UNITS) for _ in tables[name].shape)]
        outer = group[name].over
        if not outer:
            view = view.index_select(k, table)
        elif all(o in leaves for o in outer):
            at = [leaves.index(o) for o in outer]
            placed = place_axes(table, [*at, k], view.dim())
            view = view.gather(k, placed.expand(*view.shape[:k], placed.shape[k], *view.shape[k + 1 :]))
    return view[tuple(slice(_UNITS) for _ in view.shape)]


def _evidence(a: Member, b: Member) -> Independence:
    """Correlations as the networks are stored, without a test."""
    shown = {}
    for name in a:
        if name not in b or not a[name].is_floating_point() or a[name].numel() < 2:
            continue
        x, y = (_numbers(member[name], name).flatten().double() for member in (a, b))
        x, y = x - x.mean(), y - y.mean()
        size = float(x.norm() * y.norm())
        if size > 0:
            shown[name] = float(x @ y) / size
    mean = sum(shown.values()) / len(shown) if shown else 0.0
    return Independence(1.0, 1.0, mean, 0.0, 0, {}, shown, exact=False)


@public
@dataclass(frozen=True)
class Renumbering:
    """Whether two networks are relatives whose hidden units were renumbered. Made by `renumbering`.

    `axes[name]`: the Spearman correlation of two matchings of the units, each from other tensors, and the probability
    that two random orders reach it; `p`: the smallest of these times the number of axes. It is evidence and not a test:
    networks that learn from the same data learn similar features, so that their matchings agree a little too. Of 276
    pairs of MLPs trained apart on digits, 15 % had p < .01 and none p < 5e-6; of fine-tuned and renumbered ones all had
    p < 1e-100.
    """

    p: float
    axes: Mapping[str, tuple[float, float]]


@public
def renumbering(a: Member, b: Member, group: Group) -> Renumbering:
    """The evidence that b is a relative of a with its hidden units renumbered, signs and positive scales aside.

    The units of every axis are matched twice: by what enters them, from the inputs on, and by what they give to
    others, from the outputs back, so that the two matchings of an axis look at different tensors. Those of relatives
    agree; those of strangers are two unrelated orders, whose rank correlation has a known law. Raises
    `WeightspaceError` where no axis lies in two tensors.

    >>> import weightspace as ws
    >>> from weightspace.atlas.independence import renumbering
    >>> net, task = ws.demo.example()
    >>> group = ws.Symmetry.of(net, task.example(2))
    >>> copy, other = group.sample(seed=1)(net + 0.05 * net.weights.randn(0)), ws.demo.example(1)[0]
    >>> renumbering(net.tensors, copy.tensors, group).p < 1e-6, renumbering(net.tensors, other.tensors, group).p > 1e-3
    (True, True)
    """
    sides = {axis.name: _sides(group, axis, a) for axis in group.permutable()}
    sides = {name: found for name, found in sides.items() if len({block.tensor for block, _ in found}) > 1}
    forward: dict[str, np.ndarray] = {}
    backward: dict[str, np.ndarray] = {}
    for orders, names, end in ((forward, list(sides), 0), (backward, list(sides)[::-1], -1)):
        for name in names:
            block, leaf = sides[name][end]
            x, y = (_numbers(member[block.tensor], block.tensor) for member in (a, b))
            rows = _described(group, block, leaf, x, orders, still=True), _described(group, block, leaf, y, orders)
            orders[name] = linear_sum_assignment((rows[0] @ rows[1].mT).numpy(), maximize=True)[1]
    axes = {name: _agreement(forward[name], backward[name]) for name in sides}
    if not axes:
        raise WeightspaceError("no axis of units lies in two matrices; their matchings cannot be compared")
    return Renumbering(min(1.0, min(p for _, p in axes.values()) * len(axes)), axes)


def _sides(group: Group, axis: Axis, a: Member) -> list[tuple[Block, int]]:
    """The matrices and kernels in which the units of an axis lie, and the dimension that they index."""
    if axis.over or axis.size < _FEWEST:
        return []
    places = [(group.blocks[place.block], place.leaf) for place in group.places[axis.name]]
    return [(block, leaf) for block, leaf in places if block.tensor in a and len(block.leaves) > 1]


def _described(
    group: Group, block: Block, leaf: int, tensor: Tensor, orders: Mapping[str, np.ndarray], *, still: bool = False
) -> Tensor:
    """One row of unit length for each unit, whatever the order of the units that no matching has brought in order."""
    view = group.view(block, tensor)
    moving = []
    for k, name in enumerate(block.leaves):
        if k == leaf or not isinstance(name, str) or not group[name].kinds:
            continue
        if name not in orders:
            moving.append(k)
        elif not still:
            view = view.index_select(k, torch.from_numpy(orders[name]))
    if moving:
        rest = [k for k in range(view.dim()) if k != leaf and k not in moving]
        view = view.abs().permute(leaf, *rest, *moving).flatten(1 + len(rest)).sort(-1).values
    else:
        view = view.movedim(leaf, 0)
    rows = view.flatten(1).double()
    rows = rows - rows.mean(0) if moving else rows
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-300)


def _agreement(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The Spearman correlation of two orders, and the probability that random ones reach it."""
    from scipy.stats import spearmanr

    found = spearmanr(first, second, alternative="greater")
    return float(found.statistic), float(max(found.pvalue, 1e-300))
