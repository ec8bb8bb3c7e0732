"""Networks that are averages of others, found by least squares: w = sum_i c_i w_i with sum_i c_i = 1.

The matrix of squared distances is enough to solve this for all pairs and triples; what is found is then confirmed on
the weights themselves in float64. Task arithmetic (a negative weight, of the base) is found in triples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from weightspace.atlas.gram import Distances
from weightspace.atlas.side_by_side import Member, SideBySide
from weightspace.net.public import public

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Average", "averages"]


_COPIES = 1e-5  # relative distance up to which two candidates are one
_SCREEN, _CONFIRMED = 1e-2, 0.02  # residual over the distance to the nearest parent
_LEAST, _MOST = 0.02, 3.0  # weights
_CANDIDATES = 12


@public
@dataclass(frozen=True)
class Average:
    """Network number `child` as sum_i c_i w_i of the networks `parents`, with the weights c, which add up to 1.

    `residual`: |w - sum_i c_i w_i| / |w|, measured on the weights in float64.
    """

    child: int
    parents: tuple[int, ...]
    weights: tuple[float, ...]
    residual: float

    @property
    def convex(self) -> bool:
        """Whether all weights are positive: an average, and not arithmetic of tasks."""
        return min(self.weights) > 0


Confirm: TypeAlias = Callable[[int, tuple[int, ...], Callable[[], Average | None]], Average | None]


@public
def averages(
    members: Sequence[Member],
    distances: Distances,
    related: Float[Tensor, "n n"] | None = None,
    confirm: Confirm | None = None,
) -> list[Average]:
    """The networks that are averages of two or three others, and how much of each.

    `distances` are those of the members (see `pairwise`); `related[i, j]` > 0 where j may be a parent of i, by default
    everywhere; of these, the twelve nearest are tried. A network that would be an average of two is one only if both
    weights are positive, since each end of a line is an extrapolation of the other two points. The residual is at most
    the rounding of the child's dtype. Where a parent is an average itself, its own parents are preferred. `confirm`: a
    function of child, parents and what looks at their weights, which may know the answer. Of estimated distances only
    exact ones count.

    >>> import weightspace as ws
    >>> from weightspace.atlas.averages import averages
    >>> from weightspace.atlas.gram import pairwise
    >>> a, b = (ws.demo.example(seed)[0] for seed in range(2))
    >>> members = [net.tensors for net in (a, b, a.lerp(b, 0.3))]
    >>> [found] = averages(members, pairwise(members))
    >>> found.child, found.parents, [round(c, 3) for c in found.weights]
    (2, (0, 1), [0.7, 0.3])
    """
    n = len(distances)
    found: dict[int, list[Average]] = {}
    for child in range(n):
        near = [int(k) for k in distances.squared[child].argsort(stable=True) if k != child]
        allowed = [k for k in near if (related is None or float(related[child, k]) > 0) and distances.exact(child, k)]
        sets = _screened(distances, child, _different(distances, child, allowed))
        confirmed = []
        for parents in sets:
            look = partial(_confirmed, members, distances, child, parents)
            confirmed.append(look() if confirm is None else confirm(child, parents, look))
        if kept := [one for one in confirmed if one is not None]:
            found[child] = kept
    chosen = []
    for some in found.values():
        some.sort(
            key=lambda one: (any(p in found for p in one.parents), not one.convex, len(one.parents), one.residual)
        )
        chosen.append(some[0])
    return [*_unambiguous(chosen, distances)]


def _different(distances: Distances, child: int, near: Sequence[int]) -> list[int]:
    """The nearest candidates, one of each set of copies, and no copy of the child."""
    kept: list[int] = []
    relative = distances.relative
    for k in near:
        if all(float(relative[k, other]) > _COPIES for other in (child, *kept)):
            kept.append(k)
    return kept[:_CANDIDATES]


def _screened(distances: Distances, child: int, near: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The sets of parents whose distances alone leave almost nothing of the child, the best few of each size."""
    for size in (2, 3):
        sets = [tuple(sorted(some)) for some in combinations(near, size)]
        if distances.estimated is not None:
            sets = [some for some in sets if all(distances.exact(i, j) for i, j in combinations(some, 2))]
        if not sets:
            continue
        at = torch.tensor(sets)
        squared = distances.squared[child]
        to = squared[at]
        between = distances.squared[at[:, :, None], at[:, None, :]]
        inner = (to[:, :, None] + to[:, None, :] - between) / 2
        weights, left = _least_squares(inner)
        good = (left <= _SCREEN**2 * to.amin(1)) & _plausible(weights)
        order = left[good].argsort()[:4]
        yield from (sets[int(k)] for k in good.nonzero().flatten()[order])


def _least_squares(inner: Float[Tensor, "sets k k"]) -> tuple[Tensor, Tensor]:
    """The weights c of sum 1 with the least c^T B c, and that minimum, for every matrix B."""
    k = inner.shape[-1]
    scale = inner.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-300)[:, None, None]
    ridge = 1e-12 * torch.eye(k, dtype=inner.dtype)
    solved = torch.linalg.solve(inner / scale + ridge, torch.ones(len(inner), k, 1, dtype=inner.dtype))[..., 0]
    weights = solved / solved.sum(1, keepdim=True)
    left = (weights[:, None] @ inner @ weights[..., None])[:, 0, 0].clamp(min=0)
    return weights, left


def _plausible(weights: Float[Tensor, "sets k"]) -> Tensor:
    """Every parent counts; two weights are positive, of three one may be negative."""
    counts = (weights.abs() >= _LEAST).all(1) & (weights.abs() <= _MOST).all(1)
    return counts & ((weights < 0).sum(1) <= (weights.shape[1] > 2))


def _confirmed(members: Sequence[Member], distances: Distances, child: int, parents: tuple[int, ...]) -> Average | None:
    """The average with weights found on the weights themselves; None where more than rounding is left."""
    together = SideBySide([members[k] for k in (child, *parents)], tensors=distances.names)
    inner = torch.zeros(1, len(parents), len(parents), dtype=torch.float64)
    for name in together.names:
        for piece in together.pieces(name):
            rows = piece.rows.double()
            steps = rows[1:] - rows[:1]
            inner[0] += steps @ steps.mT
    weights, _ = _least_squares(inner)
    left = float((weights[0] @ inner[0] @ weights[0]).clamp(min=0).sqrt())
    size = float(distances.norms[child])
    kinds = (together.dtypes[0][name] for name in together.names)
    rounding = max(torch.finfo(dtype).eps for dtype in kinds)
    nearest = math.sqrt(float(inner[0].diagonal().min()))
    if left > min(rounding * size, _CONFIRMED * nearest) or not bool(_plausible(weights)):
        return None
    return Average(child, parents, tuple(float(c) for c in weights[0]), left / size if size else 0.0)


def _unambiguous(found: Sequence[Average], distances: Distances) -> Iterator[Average]:
    """One explanation of every set of networks: the average, else the corner farthest from all others.

    Four corners of a parallelogram are each a combination of the other three.
    """
    sets: dict[frozenset[int], list[Average]] = {}
    for one in found:
        sets.setdefault(frozenset((one.child, *one.parents)), []).append(one)
    for some in sets.values():
        yield max(some, key=lambda one: (one.convex, float(distances.norms[one.child])))
