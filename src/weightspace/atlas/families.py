"""Families of networks, and the map on which they lie: clusters of relatives, and classical scaling of distances.

Classical scaling takes the eigenvectors of the inner products that squared distances determine; its stress says how
much of the distances a plane cannot show.

Source: Torgerson, Multidimensional scaling: theory and method, 1952; Kruskal, Multidimensional scaling, 1964 (stress).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from weightspace.atlas.gram import Distances
from weightspace.atlas.lineage import Lineage
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public
from weightspace.symmetry.verdict import RELATED

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Families", "Map", "families", "scaled"]


Linkage: TypeAlias = Literal["average", "single", "complete"]


@public
@dataclass(frozen=True)
class Families:
    """Which family each network belongs to, numbered by size. Made by `families`.

    `order`: all networks, so that those of a family, and near ones in it, lie side by side (for a matrix of distances).
    `middles[k]`: the member of family k with the least sum of distances to the others of it.
    """

    labels: tuple[str, ...]
    family: tuple[int, ...]
    order: tuple[int, ...]
    middles: tuple[int, ...]

    def members(self, k: int) -> list[int]:
        """The numbers of the networks of one family."""
        return [i for i, family in enumerate(self.family) if family == k]


@public
@dataclass(frozen=True)
class Map:
    """Networks as points, by classical scaling. Made by `scaled`.

    `points` has shape (n, dimensions); `stress` = sqrt(sum (d - |x_i - x_j|)^2 / sum d^2) is 0 where the points show
    all distances exactly; `share[k]`: the part of the spread that coordinate k shows.
    """

    points: Float[Tensor, "n dimensions"]
    stress: float
    share: tuple[float, ...]


@public
def families(found: Lineage | Distances, *, within: float = RELATED, by: Linkage = "average") -> Families:
    """Families: clusters of networks at a relative distance of at most `within`, and of relatives that were found.

    Agglomerative clustering of relative distances |w_i - w_j| / rms(|w_i|, |w_j|); by="average", "single" or
    "complete" linkage. Of a `Lineage`, renumbered relatives are one family too, however far they came from one another.
    Raises `WeightspaceError` for a distance that is not positive.

    >>> import weightspace as ws
    >>> from weightspace.atlas.families import families
    >>> from weightspace.atlas.gram import pairwise
    >>> a, b = (ws.demo.example(seed)[0] for seed in range(2))
    >>> nets = [a, b, a + 0.01 * a.weights.randn(0), a + 0.01 * a.weights.randn(1)]
    >>> families(pairwise([net.tensors for net in nets])).family
    (0, 1, 0, 0)
    """
    if not within > 0:
        raise WeightspaceError(f"families within a distance of {within}; give a positive number")
    distances = found.distances if isinstance(found, Lineage) else found
    relative = (distances.only(distances.matrices) if distances.matrices else distances).relative.numpy().copy()
    n = len(relative)
    if isinstance(found, Lineage):
        same = np.array(found.group)
        near = same[:, None] == same
        relative = np.where(near, np.minimum(relative, 0.999 * within), np.maximum(relative, 1.001 * within))
    np.fill_diagonal(relative, 0.0)
    if n == 1:
        return Families(distances.labels, (0,), (0,), (0,))
    tree = linkage(squareform((relative + relative.T) / 2, checks=False), by)
    raw = fcluster(tree, within, "distance")
    sizes = sorted(set(raw.tolist()), key=lambda k: (-int((raw == k).sum()), int((raw == k).argmax())))
    family = tuple(sizes.index(k) for k in raw.tolist())
    order = tuple(int(k) for k in leaves_list(tree))
    place = {k: at for at, k in enumerate(order)}
    order = tuple(sorted(order, key=lambda k: (family[k], place[k])))
    return Families(distances.labels, family, order, tuple(_middles(distances, family)))


def _middles(distances: Distances, family: Sequence[int]) -> list[int]:
    """The member of every family with the least sum of distances to the others."""
    found = []
    for k in range(max(family) + 1):
        own = [i for i, f in enumerate(family) if f == k]
        found.append(own[int(distances.distances[own][:, own].sum(1).argmin())])
    return found


@public
def scaled(distances: Float[Tensor, "n n"], dimensions: int = 2) -> Map:
    """The map of n networks: points whose distances are as near the given ones as a linear projection can make them.

    The eigenvectors of -1/2 J D^2 J, J = I - 1/n, times the roots of their eigenvalues; negative ones count as 0.
    Signs are fixed: the largest coordinate of each axis is positive. Raises `WeightspaceError` for a matrix that is not
    square, symmetric, finite and positive.

    >>> import torch
    >>> from weightspace.atlas.families import scaled
    >>> corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    >>> found = scaled(torch.cdist(corners, corners))
    >>> found.stress < 1e-9, torch.allclose(torch.cdist(found.points, found.points), torch.cdist(corners, corners))
    (True, True)
    """
    d = distances.detach().double()
    n = len(d)
    bad = d.dim() != 2 or d.shape[0] != d.shape[-1] or not n or not bool(d.isfinite().all()) or bool((d < 0).any())
    if bad or not torch.allclose(d, d.mT, rtol=1e-6) or bool((d.diagonal() != 0).any()):
        raise WeightspaceError("a map needs a symmetric matrix of finite distances with zeros on its diagonal")
    if dimensions < 1:
        raise WeightspaceError(f"a map of {dimensions} dimensions; give at least 1")
    squared = d.square()
    centred = squared - squared.mean(0) - squared.mean(1, keepdim=True) + squared.mean()
    values, vectors = torch.linalg.eigh(-centred / 2)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    points = torch.zeros(n, dimensions, dtype=torch.float64)
    kept = min(n, dimensions)
    points[:, :kept] = vectors[:, :kept] * values[:kept].sqrt()
    top = points.gather(0, points.abs().argmax(0, keepdim=True))
    points = points * torch.where(top < 0, -1.0, 1.0)
    shown = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    whole = float(squared.sum())
    stress = float((d - shown).square().sum()) / whole if whole else 0.0
    share = (values[:kept] / values.sum()).tolist() if float(values.sum()) else [0.0] * kept
    return Map(points, stress**0.5, tuple(share))
