"""Distances between networks modulo their symmetry group, as an interval with proven bounds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightspace.linear.assignment import paired
from weightspace.metric.distance import euclidean
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.weights import squared_distance
from weightspace.symmetry.axis import MATRICES
from weightspace.symmetry.balance import unit_variances
from weightspace.symmetry.fold import fold

if TYPE_CHECKING:
    from weightspace.symmetry.axis import Block
    from weightspace.symmetry.group import Group
    from weightspace.symmetry.symmetry import Symmetry

__all__ = ["Interval", "modulo"]

_LARGEST = 2048
_AT_ONCE = 1 << 20  # numbers of a matrix that are held in float64


@public
@dataclass(frozen=True)
class Interval:
    """A number known to lie in [lower, upper].

    >>> import weightspace as ws
    >>> interval = ws.symmetry.Interval(0.5, 0.75)
    >>> 0.6 in interval, str(interval)
    (True, '[0.5, 0.75]')
    """

    lower: float
    upper: float

    def __contains__(self, number: float) -> bool:
        return self.lower <= number <= self.upper

    def __str__(self) -> str:
        return f"[{self.lower:.3g}, {self.upper:.3g}]"


@public
def modulo(
    group: Symmetry, distance: Callable[[Net, Net], float] = euclidean, *, exact: bool = False
) -> Callable[[Net, Net], Interval]:
    """A function of two networks: their distance modulo the group, min over permutations and signs g of d(a', g b').

    a' is a with its scales balanced. Finding the minimum is NP-hard, so the value is an interval. Its upper end is the
    distance after `group.align`; its lower end, for the Euclidean distance, a proven `lower_bound`; for any other
    distance it is 0. `exact` tries all permutations and signs, at most 20,000; then both ends are the minimum.

    Why balance first: min_g d(a, g b) is a pseudometric on orbits iff every g is an isometry. Permutations
    and signs are; positive scales are not (the infimum may be 0 between different functions), so each orbit
    of scales is replaced by its one point of least norm (`group.balance`), which permutations and signs only
    move. Rueger and Ossen, "The metric structure of weight space", 1997. Before that, running variances are
    set to one and the gains of their norms divided, so that two layers which differ in the scale before BatchNorm
    are as near as their outputs.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> group = ws.Symmetry.of(net, task.example(2))
    >>> distance = ws.modulo(group)
    >>> distance(net, group.sample(seed=1)(net)).upper < 1e-3              # a copy, disguised
    True
    >>> apart = distance(net, ws.demo.example(1)[0])
    >>> 0 < apart.lower < apart.upper
    True
    """

    @public
    def between(a: Net, b: Net) -> Interval:
        a.check(b)
        for net in (a, b):
            group.check(net)
            if bad := net.weights.unusable():
                raise WeightspaceError(f"NaN or infinity in {bad[0]}; compare networks of finite weights")
        whole = group.foldable(a, b)
        a, b = sliced(whole, a), sliced(whole, b)
        if exact:
            least = min(distance(a, g(b)) for g in whole.isometries())
            return Interval(least, least)
        upper = distance(a, sliced(whole, whole.align(b, to=a)))
        lower = lower_bound(whole, a, b) if distance is euclidean else 0.0
        return Interval(min(lower, upper), upper)

    return between


def sliced(group: Symmetry, net: Net) -> Net:
    """The same function with norms folded, scales and matrices balanced, and running variances at one."""
    return group.balance(unit_variances(group, fold(group, net)))


def lower_bound(group: Group, a: Net, b: Net) -> float:
    """A lower bound on min_g |a - g b| over the permutations, signs and orthogonal matrices g of `group`.

    The sum over blocks of min_g |A - g B|^2 is below the min of the sum. For one block, whose moved dimensions are
    taken to move freely, the largest of these bounds is used: |A - B|^2 where nothing moves; sum_i (sigma_i(A) -
    sigma_i(B))^2 for every unfolding into a matrix (Mirsky, "Symmetric gauge functions and unitarily invariant norms",
    1960) and for the slices at each fixed index (position in a kernel); the cheapest assignment of slices to slices
    along a moved dimension, each sorted along the others that move. Exact for a block of which one dimension moves
    freely. Dimensions above 2048 units are only compared by their sorted norms. Of blocks that an exchange moves, each
    of a is paired with one of b, at the least sum of these bounds.
    """
    bounds = _Bounds(group, a, b)
    traded = {number for found in group.traded.values() for number in found}
    total = 0.0
    for name, tensor in a.weights.items():
        if name not in group.tensors:
            total += squared_distance(tensor, b.weights[name])
            continue
        total += sum(bounds.of(number, number) for number, _ in group.blocks_of(name) if number not in traded)
    return math.sqrt(total + sum(map(_cheapest, _costs(group, bounds, traded))))


class _Bounds:
    """Lower bounds of |A - g B|^2 for a block A of one network and a block B of another."""

    def __init__(self, group: Group, a: Net, b: Net) -> None:
        self.group, self.a, self.b = group, a.weights, b.weights
        self.turned = {group.blocks[place.block].tensor for g in group.generators for place in g.uniform}
        self.turning = {g.axis for g in group.generators if g.kind in MATRICES}
        self.signed = {place.block for g in group.generators if g.kind == "sign" for place, _ in g.exponents}

    def of(self, ours: int, theirs: int) -> float:
        block, other = self.group.blocks[ours], self.group.blocks[theirs]
        if block.tensor not in self.a or block.tensor in self.turned:  # the gains of folded norms are one
            return 0.0
        x = _arranged(self.group, block, self.a[block.tensor].detach().cpu().contiguous())
        y = _arranged(self.group, other, self.b[other.tensor].detach().cpu().contiguous())
        turned = self.turning & set(block.leaves)
        return _turned(x, y) if turned else _least(x.double(), y.double(), ours in self.signed)


def _costs(group: Group, bounds: _Bounds, traded: set[int]) -> Iterator[Tensor]:
    """Matrices of bounds: member by member for blocks of one member, block by block for all others that may meet."""
    count = Counter(number for found in group.traded.values() for number in found)
    left = set(traded)
    for exchange in group.exchanges:
        alone = [some for some in exchange.blocks if len(some[0][0]) == 1 and count[some[0][1]] == 1]
        cost = torch.zeros(exchange.size, exchange.size, dtype=torch.float64)
        for some in alone:
            left -= {number for _, number in some}
            for ((i,), ours), ((j,), theirs) in product(some, repeat=2):
                cost[i, j] += bounds.of(ours, theirs)
        yield cost
    while left:
        met, todo = set[int](), [left.pop()]
        while todo:
            number = todo.pop()
            met.add(number)
            for found in group.traded.values():
                todo += [n for n in found[number][0].values() if n not in met] if number in found else []
        left -= met
        if len(met) ** 2 <= _LARGEST:
            order = sorted(met)
            yield torch.tensor([[bounds.of(i, j) for j in order] for i in order], dtype=torch.float64)


def _cheapest(cost: Tensor) -> float:
    rows, columns = paired(cost)
    return float(cost[rows, columns].sum())


def _turned(x: Tensor, y: Tensor) -> float:
    """A lower bound of |x - g y|^2 over the orthogonal matrices of every dimension but the last, by Mirsky."""
    return max(_mirsky(x.movedim(d, 0).flatten(1), y.movedim(d, 0).flatten(1)) for d in range(x.dim() - 1))


def _arranged(group: Group, block: Block, tensor: Tensor) -> Tensor:
    """The block as (moved.., rest): one dimension for each set of leaves that moves on its own.

    An axis over an outer one (channels in a head) moves as its outer index says, so the two make one
    dimension.
    """
    moving = {axis.name for axis in group.axes}
    together: list[set[int]] = []
    for k, leaf in enumerate(block.leaves):
        if leaf in moving:
            outer = group[str(leaf)].over
            joint = {k} | {j for j, other in enumerate(block.leaves) if other in outer}
            for met in [part for part in together if part & joint]:
                together.remove(met)
                joint |= met
            together.append(joint)
    value = group.view(block, tensor)
    order = [k for part in together for k in sorted(part)]
    rest = [k for k in range(value.dim()) if k not in order]
    sizes = [math.prod(value.shape[k] for k in part) for part in together]
    return value.permute(order + rest).reshape(*sizes, math.prod(value.shape[k] for k in rest))


def _least(x: Tensor, y: Tensor, signs: bool) -> float:
    """A lower bound of |x - g y|^2 over the permutations (and signs) of every dimension but the last."""
    moved, rest = x.dim() - 1, x.shape[-1]
    if not moved:
        return float((x - y).square().sum())
    unfoldings = [(x.movedim(d, 0), y.movedim(d, 0)) for d in range(moved)]
    bounds = [_slices(p, q, signs) for p, q in unfoldings]
    if moved > 1:
        if (moved, rest) == (2, 1):  # a matrix and its transpose have one spectrum
            unfoldings.pop()
        bounds += [_mirsky(p.flatten(1), q.flatten(1)) for p, q in unfoldings]
    if moved == 2 and rest > 1:
        bounds.append(_mirsky(x.movedim(2, 0), y.movedim(2, 0)))
    return max(bounds)


def _mirsky(x: Tensor, y: Tensor) -> float:
    """sum_i (sigma_i(x) - sigma_i(y))^2 <= |x - U y V|^2 for orthogonal U, V; 0 where it is too expensive."""
    if x.numel() * min(x.shape[-2:]) > _LARGEST**3:
        return 0.0
    return float((_singular_values(x) - _singular_values(y)).square().sum())


def _singular_values(x: Tensor) -> Tensor:
    """The singular values of a matrix, or of each in a batch, in float64; of a long one by parts of its rows."""
    if x.dim() > 2 or x.numel() <= _AT_ONCE:
        return torch.linalg.svdvals(x.double())
    long = x if len(x) >= x.shape[1] else x.T
    left = long[:0].double()
    for rows in long.split(max(long.shape[1], _AT_ONCE // long.shape[1])):
        left = torch.linalg.qr(torch.cat([left, rows.double()]), mode="r").R
    return torch.linalg.svdvals(left)


def _slices(x: Tensor, y: Tensor, signs: bool) -> float:
    """min_P sum_i |x_i - y_P(i)|^2 of slices (i, moved.., rest), each sorted along the other moved dimensions."""
    n, alone = len(x), x.dim() == 2
    if not alone:
        x, y = (_sorted(t.abs() if signs else t) for t in (x, y))
    if x.shape[1] == 1 or n > _LARGEST:
        if x.shape[1] > 1:
            x, y = x.norm(dim=1, keepdim=True), y.norm(dim=1, keepdim=True)
        x, y = (_sorted((t.abs() if signs else t)[None]) for t in (x, y))
        return float((x - y).square().sum())
    inner = x @ y.T
    free = signs and alone
    rows, columns = paired(inner.abs() if free else inner, maximize=True)
    x, y = x[rows], y[columns]
    apart = (x - y).square().sum(1)
    return float((torch.minimum(apart, (x + y).square().sum(1)) if free else apart).sum())


def _sorted(x: Tensor) -> Tensor:
    """(n, moved.., rest) as a matrix of n rows, the same however the moved dimensions are permuted."""
    return x.reshape(len(x), -1, x.shape[-1]).sort(dim=1).values.flatten(1)
