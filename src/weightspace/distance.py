"""How far apart two networks are: as points, as functions, tensor by tensor, and up to symmetry."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from weightspace.examples import each
from weightspace.metric import by_layer
from weightspace.net import Net, WeightspaceError, checked, squared_distance
from weightspace.public import public
from weightspace.symmetry.balance import unit_variances
from weightspace.task import carried, counted, labelled

if TYPE_CHECKING:
    from jaxtyping import Float

    from weightspace.symmetry import Symmetry
    from weightspace.symmetry.group import Block, Group
    from weightspace.task import Task

__all__ = [
    "Interval",
    "TensorDistance",
    "euclidean",
    "functional",
    "layerwise",
    "log_relative_trust",
    "modulo",
    "relative_distances",
    "relative_trust",
]

_CHUNK = 1 << 20
_LARGEST = 2048


@public
def euclidean(a: Net, b: Net) -> float:
    """|w_a - w_b| = sqrt(sum_i (w_a,i - w_b,i)^2) over the parameters, summed in float64.

    State does not count. Raises `ArchitectureMismatch` unless both have the same tensors.
    """
    checked(a).weights.check(checked(b).weights)
    return math.sqrt(sum(squared_distance(tensor, b.weights[name]) for name, tensor in a.weights.items()))


@public
@dataclass(frozen=True)
class TensorDistance:
    """One tensor of two networks a and b.

    `relative` = |a - b| / |a| (infinite where only a is zero), `cosine` = <a, b> / |a||b| (NaN where one is
    zero).
    """

    name: str
    shape: tuple[int, ...]
    norm_a: float
    norm_b: float
    distance: float
    relative: float
    cosine: float


@public
def layerwise(a: Net, b: Net) -> list[TensorDistance]:
    """How far every parameter tensor of b is from a's, in the order of the module, in float64.

    The squares of the distances add up to that of `euclidean`. Raises `ArchitectureMismatch` unless both have
    the same tensors.
    """
    a.weights.check(b.weights)
    return [_compare(name, tensor, b.weights[name]) for name, tensor in a.weights.items()]


def _compare(name: str, x: Tensor, y: Tensor) -> TensorDistance:
    squares = torch.zeros(4, dtype=torch.float64)
    for p, q in zip(x.detach().flatten().split(_CHUNK), y.detach().flatten().split(_CHUNK), strict=True):
        p, q = _exact(p), _exact(q)
        squares += torch.stack([p @ p, q @ q, (p - q) @ (p - q), p @ q])
    norm_x, norm_y, apart = squares[:3].sqrt().tolist()
    relative = apart / norm_x if norm_x else (math.inf if apart else 0.0)
    cosine = float(squares[3]) / (norm_x * norm_y) if norm_x and norm_y else math.nan
    return TensorDistance(name, tuple(x.shape), norm_x, norm_y, apart, relative, cosine)


def _exact(x: Tensor) -> Tensor:
    return x.detach().cpu().double()


@public
def relative_distances(
    a: Net, b: Net, granularity: str = "tensor", layers: str = "weights"
) -> dict[str, Float[Tensor, " parts"]]:
    """d_l = |b_l - a_l| / |a_l| for every layer l, a tensor or each neuron (row) of it, in float64.

    `layers`: "weights" (tensors of two dimensions or more) or "all" (biases and gains too). Zero where a_l and b_l are
    zero, infinite where only a_l is. Raises `ArchitectureMismatch` unless both have the same tensors,
    `WeightspaceError` for another word.
    """
    checked(a).weights.check(checked(b).weights)
    if layers not in ("weights", "all"):
        raise WeightspaceError(f'layers must be "weights" or "all", got {layers!r}')
    found = {}
    for name, w in a.weights.items():
        if w.dim() > 1 or layers == "all":
            apart, size = by_layer(_exact(b.weights[name]) - _exact(w), granularity), by_layer(_exact(w), granularity)
            found[name] = torch.where(apart > 0, apart / size, 0.0)
    return found


@public
def log_relative_trust(
    a: Net, b: Net, *, granularity: str = "tensor", layers: str = "weights", symmetric: bool = False
) -> float:
    """sum_l log(1 + d_l), d_l = |b_l - a_l| / |a_l| the relative distance of layer l (the largest of its neurons').

    A quasi-metric on networks without a zero layer: zero only between equal ones, with the triangle inequality, because
    |b_l| <= (1 + d_l) |a_l|, but not symmetric; `symmetric` adds both directions, which is a metric. Arguments as for
    `relative_distances`.
    """
    parts = relative_distances(a, b, granularity, layers)
    there = sum(float(torch.log1p(d.max())) for d in parts.values())
    return there + log_relative_trust(b, a, granularity=granularity, layers=layers) if symmetric else there


@public
def relative_trust(a: Net, b: Net, *, granularity: str = "tensor", layers: str = "weights") -> float:
    """prod_l (1 + d_l) - 1, the deep relative trust: a model of how far the outputs of b are from a's, in their size.

    d_l as in `relative_distances` (the largest of a layer's neurons). A model and no bound: it takes layers for maps of
    condition one, and is too large for noise, too small along gradients. Not symmetric, and without a triangle
    inequality, which `log_relative_trust` has. Source: On the distance between two neural networks and the stability of
    learning (Bernstein, Vahdat, Yue, Liu, 2020).
    """
    try:
        return math.expm1(log_relative_trust(a, b, granularity=granularity, layers=layers))
    except OverflowError:
        return math.inf


@public
def functional(a: Net, b: Net, task: Task, kind: str = "l2") -> float:
    """d(f_a, f_b) over the inputs x of `task`; zero for networks that the task cannot tell apart.

    - "l2": sqrt(mean_x |f_a(x) - f_b(x)|^2), in units of the output;
    - "disagreement": the share of predictions argmax f(x) that differ, in [0, 1];
    - "kl": mean_x KL(softmax f_a(x) | softmax f_b(x)), in nats, not symmetric.

    Of a sequence, positions that the task labels -100 count nowhere. The networks may differ in architecture and width.
    Raises `WeightspaceError` for an unknown kind, classes of one output, or where the outputs differ in shape.
    """
    if kind not in _KINDS:
        raise WeightspaceError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}")
    one = each(lambda x: x[:1], next(task.batches())[0])
    with torch.no_grad():
        shape, other = (task.forward(net, carried(one, net)).shape for net in (a, b))
    if shape != other:
        raise WeightspaceError(
            f"outputs of shape {tuple(shape[1:])} and {tuple(other[1:])} have no distance; "
            "give networks of one output space, or a task whose `output=` picks one"
        )
    if kind != "l2" and (len(shape) < 2 or shape[-1] < 2):
        raise WeightspaceError(f'outputs of shape {tuple(shape[1:])} name no classes; their distance is kind="l2"')
    total, count = 0.0, 0
    with torch.no_grad():
        for x, y in task.batches():  # one pass for both: of some loaders no two can go on at once
            p, q = (counted(_exact(task.output(net(carried(x, net)))), y) for net in (a, b))
            apart = _KINDS[kind](p, q)
            if kind != "l2" and p.dim() > 2:
                apart = apart[labelled(p, y)]
            total, count = total + float(apart.sum()), count + apart.numel()
    if not count:
        raise WeightspaceError("no position of the task has a label: all are -100")
    return math.sqrt(total / count) if kind == "l2" else total / count


def _squared(p: Tensor, q: Tensor) -> Tensor:
    return (p - q).square().flatten(1).sum(1)


def _disagreement(p: Tensor, q: Tensor) -> Tensor:
    return (p.argmax(-1) != q.argmax(-1)).double()


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


_KINDS = {"l2": _squared, "disagreement": _disagreement, "kl": _divergence}


@public
@dataclass(frozen=True)
class Interval:
    """A number that is known to lie in [lower, upper]."""

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
    """d([a], [b]) = min_g d(a', g b') over the permutations and signs g, where a' is a on its slice of scales.

    Finding the minimum is NP-hard, so the value is an interval. Its upper end is the distance that
    `group.align` reaches; its lower end, for the Euclidean distance, what no permutation and no signs can
    undercut (`lower_bound`); for any other distance it is 0. `exact` tries all permutations and signs, of which there
    may be 20,000; then both ends are the minimum.

    Why balance first: min_g d(a, g b) is a pseudometric on orbits iff every g is an isometry. Permutations
    and signs are; positive scales are not (the infimum may be 0 between different functions), so each orbit
    of scales is replaced by its one point of least norm (`group.balance`), which permutations and signs only
    move. Rueger and Ossen, "The metric structure of weight space", 1997. Before that, running variances are
    brought to one and the gains of their norms divided: a layer that is louder before BatchNorm, its statistics
    too, is then as near as the outputs say, which only eps tells apart.
    """

    @public
    def between(a: Net, b: Net) -> Interval:
        a.check(b)
        group.check(a)
        for net in (a, b):
            if bad := net.weights.unusable():
                raise WeightspaceError(f"NaN or infinity in {bad[0]}; compare networks of finite weights")
        a, b = sliced(group, a), sliced(group, b)
        if exact:
            least = min(distance(a, g(b)) for g in group.isometries())
            return Interval(least, least)
        upper = distance(a, sliced(group, group.align(b, to=a)))
        lower = lower_bound(group, a, b) if distance is euclidean else 0.0
        return Interval(min(lower, upper), upper)

    return between


def sliced(group: Symmetry, net: Net) -> Net:
    """The same function on the balanced slice, with running variances at one (`unit_variances`)."""
    return group.balance(unit_variances(group, net))


def lower_bound(group: Group, a: Net, b: Net) -> float:
    """A number that min_g |a - g b| over the permutations and signs g of `group` cannot undercut.

    The sum over blocks of min_g |A - g B|^2 is below the min of the sum, and for one block, whose moved
    dimensions are taken to move freely, the largest of these is taken: the whole of |A - B|^2 where nothing
    moves; sum_i (sigma_i(A) - sigma_i(B))^2 for every unfolding into a matrix (Mirsky, "Symmetric gauge
    functions and unitarily invariant norms", 1960) and for the slices at each index that stays (position in a
    kernel); the cheapest assignment of slices to slices along a moved dimension, each sorted along the others
    that move. Exact for a block of which one dimension moves freely. Above 2048 units a dimension is only
    compared by its sorted norms.
    """
    signed = {place.block for g in group.generators if g.kind == "sign" for place, _ in g.exponents}
    total = 0.0
    for name, tensor in a.weights.items():
        x, y = _exact(tensor).contiguous(), _exact(b.weights[name]).contiguous()
        if name not in group.tensors:
            total += float((x - y).square().sum())
            continue
        for number, block in group.blocks_of(name):
            total += _least(_arranged(group, block, x), _arranged(group, block, y), number in signed)
    return math.sqrt(total)


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
    """sum_i (sigma_i(x) - sigma_i(y))^2 <= |x - U y V|^2 for orthogonal U, V; 0 where it would take long."""
    if x.numel() * min(x.shape[-2:]) > _LARGEST**3:
        return 0.0
    return float((torch.linalg.svdvals(x) - torch.linalg.svdvals(y)).square().sum())


def _slices(x: Tensor, y: Tensor, signs: bool) -> float:
    """min_P sum_i |x_i - y_P(i)|^2 of slices (i, moved.., rest), each sorted along what else moves."""
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
    rows, columns = linear_sum_assignment((inner.abs() if free else inner).numpy(), maximize=True)
    x, y = x[rows], y[columns]
    apart = (x - y).square().sum(1)
    return float((torch.minimum(apart, (x + y).square().sum(1)) if free else apart).sum())


def _sorted(x: Tensor) -> Tensor:
    """(n, moved.., rest) as a matrix of n rows, the same however the moved dimensions are permuted."""
    return x.reshape(len(x), -1, x.shape[-1]).sort(dim=1).values.flatten(1)
