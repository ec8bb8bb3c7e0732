"""How far apart two networks are: as points, as functions, tensor by tensor, and up to symmetry."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from weightspace.net import Net, WeightspaceError

if TYPE_CHECKING:
    from weightspace.task import Task

__all__ = ["Interval", "TensorDistance", "euclidean", "functional", "layerwise", "modulo"]

_CHUNK = 1 << 20
_LARGEST = 2048


def euclidean(a: Net, b: Net) -> float:
    """|w_a - w_b| = sqrt(sum_i (w_a,i - w_b,i)^2) over the parameters, summed in float64.

    State does not count. Raises `ArchitectureMismatch` unless both have the same tensors.
    """
    return float((b - a).norm())


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


def functional(a: Net, b: Net, task: Task, kind: str = "l2") -> float:
    """d(f_a, f_b) over the inputs x of `task`; zero for networks that the task cannot tell apart.

    - "l2": sqrt(mean_x |f_a(x) - f_b(x)|^2), in units of the output;
    - "disagreement": the share of predictions argmax f(x) that differ, in [0, 1];
    - "kl": mean_x KL(softmax f_a(x) | softmax f_b(x)), in nats, not symmetric.

    The networks may differ in architecture and width. Raises `WeightspaceError` for an unknown kind or where
    the outputs differ in shape.
    """
    if kind not in _KINDS:
        raise WeightspaceError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}")
    one = task.take(1)
    shape, other = one.outputs(a).shape, one.outputs(b).shape
    if shape != other:
        raise WeightspaceError(
            f"outputs of shape {tuple(shape[1:])} and {tuple(other[1:])} have no distance; "
            "give networks of one output space, or a task whose `output=` picks one"
        )
    total, count = 0.0, 0
    with torch.no_grad():
        for (x, _), (z, _) in zip(task.batches(a), task.batches(b), strict=True):
            each = _KINDS[kind](_exact(task.output(a(x))), _exact(task.output(b(z))))
            total, count = total + float(each.sum()), count + each.numel()
    return math.sqrt(total / count) if kind == "l2" else total / count


def _squared(p: Tensor, q: Tensor) -> Tensor:
    return (p - q).square().flatten(1).sum(1)


def _disagreement(p: Tensor, q: Tensor) -> Tensor:
    return (p.argmax(-1) != q.argmax(-1)).double()


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


_KINDS = {"l2": _squared, "disagreement": _disagreement, "kl": _divergence}


@dataclass(frozen=True)
class Interval:
    """A number that is known to lie in [lower, upper]."""

    lower: float
    upper: float

    def __contains__(self, number: float) -> bool:
        return self.lower <= number <= self.upper

    def __str__(self) -> str:
        return f"[{self.lower:.3g}, {self.upper:.3g}]"


@runtime_checkable
class Group(Protocol):
    """What `modulo` needs of a symmetry group."""

    @property
    def axes(self) -> Iterable[Any]:
        """The axes, each with its `kinds` of move."""
        ...

    def moved(self, name: str) -> set[int]:
        """The dimensions of the tensor `name` that any axis indexes."""
        ...

    def balance(self, net: Net) -> Net:
        """The network of least norm among those that positive scales make of `net`."""
        ...

    def align(self, net: Net, *, to: Net) -> Net:
        """A g(net) near `to`."""
        ...


def modulo(group: Group, distance: Callable[[Net, Net], float] = euclidean) -> Callable[[Net, Net], Interval]:
    """d([a], [b]) = min_g d(a', g b') over the permutations and signs g, where a' is `group.balance(a)`.

    Finding the minimum is NP-hard, so the value is an interval. Its upper end is the distance that
    `group.align` reaches; its lower end, for the Euclidean distance, what no permutation and no signs can
    undercut (`lower_bound`); for any other distance it is 0.

    Why balance first: min_g d(a, g b) is a pseudometric on orbits iff every g is an isometry. Permutations
    and signs are; positive scales are not (the infimum may be 0 between different functions), so each orbit
    of scales is replaced by its one point of least norm, which permutations and signs only move. Rueger and
    Ossen, "The metric structure of weight space", 1997.
    """

    def between(a: Net, b: Net) -> Interval:
        a.check(b)
        for net in (a, b):
            if bad := net.weights.unusable():
                raise WeightspaceError(f"NaN or infinity in {bad[0]}; compare networks of finite weights")
        a, b = group.balance(a), group.balance(b)
        upper = distance(a, group.balance(group.align(b, to=a)))
        lower = lower_bound(group, a, b) if distance is euclidean else 0.0
        return Interval(min(lower, upper), upper)

    return between


def lower_bound(group: Group, a: Net, b: Net) -> float:
    """A number that min_g |a - g b| over the permutations and signs g of `group` cannot undercut.

    The sum over tensors of min_g |A - g B|^2 is below the min of the sum, and for one tensor the largest of
    these is taken, all for any permutation and signs of each moved dimension: the whole of |A - B|^2 where
    nothing moves; sum_i (sigma_i(A) - sigma_i(B))^2 for every unfolding into a matrix (Mirsky, "Symmetric
    gauge functions and unitarily invariant norms", 1960) and for the slices at each position that stays (of a
    kernel); the cheapest assignment of slices to slices along a moved dimension, each sorted along the others
    that move. Exact for a tensor of which one dimension moves freely. Above 2048 units a dimension is only
    compared by its sorted norms.
    """
    signs = any("sign" in axis.kinds for axis in group.axes)
    total = 0.0
    for name, tensor in a.weights.items():
        other = b.weights[name]
        total += _least(_exact(tensor), _exact(other), sorted(group.moved(name)), signs)
    return math.sqrt(total)


def _least(x: Tensor, y: Tensor, moved: list[int], signs: bool) -> float:
    """A lower bound of |x - g y|^2 over the permutations (and signs) of the dimensions `moved`."""
    if not moved:
        return float((x - y).square().sum())
    bounds = [_slices(x, y, dim, [d for d in moved if d != dim], signs) for dim in moved]
    if len(moved) > 1:
        unfoldings = moved[:1] if x.dim() == 2 else moved  # a matrix and its transpose have one spectrum
        bounds += [_mirsky(_unfold(x, [dim]), _unfold(y, [dim])) for dim in unfoldings]
    if len(moved) == 2 < x.dim():
        bounds.append(_mirsky(_unfold(x, moved), _unfold(y, moved)))
    return max(bounds)


def _unfold(x: Tensor, front: list[int]) -> Tensor:
    """A matrix (front, rest); for two dimensions a stack of matrices, one at each position of the rest."""
    x = x.movedim(front, list(range(len(front)))).flatten(len(front))
    return x if len(front) == 1 else x.movedim(-1, 0)


def _mirsky(x: Tensor, y: Tensor) -> float:
    """sum_i (sigma_i(x) - sigma_i(y))^2 <= |x - U y V|^2 for orthogonal U, V; 0 where it would take long."""
    if x.numel() * min(x.shape[-2:]) > _LARGEST**3:
        return 0.0
    return float((torch.linalg.svdvals(x) - torch.linalg.svdvals(y)).square().sum())


def _slices(x: Tensor, y: Tensor, dim: int, others: list[int], signs: bool) -> float:
    """min_P sum_i |x_i - y_P(i)|^2 of the slices along `dim`, each sorted along the `others` that move."""
    x, y = _canonical(x, dim, others, signs), _canonical(y, dim, others, signs)
    n = len(x)
    if x.shape[1] == 1:
        if signs:
            x, y = x.abs(), y.abs()
        return float((x.sort(0).values - y.sort(0).values).square().sum())
    if n > _LARGEST:
        return float((x.norm(dim=1).sort().values - y.norm(dim=1).sort().values).square().sum())
    inner = x @ y.T
    free = signs and not others
    rows, columns = linear_sum_assignment((inner.abs() if free else inner).numpy(), maximize=True)
    x, y = x[rows], y[columns]
    apart = (x - y).square().sum(1)
    return float((torch.minimum(apart, (x + y).square().sum(1)) if free else apart).sum())


def _canonical(x: Tensor, dim: int, others: list[int], signs: bool) -> Tensor:
    """A row for each slice along `dim`, the same however the `others` are permuted (and signs flipped)."""
    x = x.movedim([dim, *others], list(range(1 + len(others))))
    n, count = x.shape[0], math.prod(x.shape[1 : 1 + len(others)])
    x = x.reshape(n, count, -1)
    if others:
        x = (x.abs() if signs else x).sort(dim=1).values
    return x.flatten(1)
