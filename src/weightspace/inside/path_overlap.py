"""Path overlap: how much the paths of examples through a network agree, over time and between examples.

The path of an example is the set of its active units. P, P' are the gates of one set of examples at two times,
Bool[image, unit]; Q = P and P' entry by entry. Two empty paths count as equal: 0 / 0 is 1, 0 / x is 0.
Source: Image functions in neural networks: a perspective on generalization (anonymous, 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr
from torch import Tensor

from weightspace.inside.counts import (
    Paths,
    columns_of,
    float_product,
    gram,
    lower,
    matrices,
    mirrored,
    pieces,
    share_of,
    shares,
    width,
)
from weightspace.inside.units import Gates, features
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "Neighbours",
    "against_distance",
    "cross_features",
    "cross_path",
    "dead",
    "early_to_mid",
    "features_since",
    "neighbours",
    "off_diagonal",
    "overlap",
    "ranked",
    "self_features",
    "self_path",
    "shared_paths",
    "turnover",
]

Kind: TypeAlias = Literal["count", "cosine", "jaccard", "hamming"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@public
def self_path(p: Paths, q: Paths, layer: str | None = None) -> Float[Tensor, " image"]:
    """The cosine of every example's path with its own path at another time: s_i = p_i . q_i / (|p_i| |q_i|).

    How much of its path an example has kept. `layer`: the name of one layer of `Gates`; by default all layers.
    Raises `WeightspaceError` where p and q are of different examples or units.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> other, _ = ws.demo.example(1)
    >>> p, q = ws.gates(task)(net), ws.gates(task)(other)
    >>> ws.self_path(p, q).shape
    torch.Size([60])
    >>> round(float(ws.self_path(p, p).mean()), 3)
    1.0
    """
    n = _same(p, q, layer)
    both, one, two = (np.zeros(n) for _ in range(3))
    for rows, x, y in pieces(p, q, layer):
        both[rows] += (x & y).sum(1, dtype=np.int64)
        one[rows] += x.sum(1, dtype=np.int64)
        two[rows] += y.sum(1, dtype=np.int64)
    return share_of(*(torch.from_numpy(t) for t in (both, one, two)))


@public
def cross_path(
    p: Paths, q: Paths, layer: str | None = None, *, overlaps: tuple[Tensor, Tensor] | None = None
) -> Float[Tensor, "image image"]:
    """The cosine of the units that two examples share, with those they share at another time, for every pair.

    C_ij = ((p_i p_j) . (q_i q_j)) / (|p_i p_j| |q_i q_j|), products unit by unit; for all pairs
    C = Q Q^T / sqrt(P P^T * P' P'^T), counted exactly. `overlaps`: P P^T and P' P'^T, if `overlap` has computed them
    already. Cost: three Gram matrices in bytes; memory: four matrices (image, image). Raises `WeightspaceError` where
    p and q are of different examples or units.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> other, _ = ws.demo.example(1)
    >>> p, q = ws.gates(task)(net), ws.gates(task)(other)
    >>> ws.cross_path(p, q).shape
    torch.Size([60, 60])
    >>> round(float(ws.cross_path(p, p).mean()), 3)
    1.0
    """
    _same(p, q, layer)
    one, two = overlaps or (gram(x for (x,) in columns_of(t, layer=layer)) for t in (p, q))
    return shares(gram(x & y for x, y in columns_of(p, q, layer=layer)), one, two)


@public
def overlap(p: Paths, kind: Kind = "count", layer: str | None = None) -> Float[Tensor, "image image"]:
    """The overlap of the paths of every pair of examples: the number of shared units p_i . p_j, or a similarity.

    `kind`: "count" is p_i . p_j, "cosine" p_i . p_j / (|p_i| |p_j|), "jaccard" |p_i and p_j| / |p_i or p_j|, "hamming"
    the share of the units that are on for both or off for both. The count is large for examples with many active units,
    whatever they share.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> p = ws.gates(task)(net)
    >>> shared = ws.inside.overlap(p)
    >>> shared.shape, bool((shared.diagonal() == p["2"].sum(1)).all())
    (torch.Size([60, 60]), True)
    >>> float(ws.inside.overlap(p, "jaccard").diagonal().min())
    1.0
    """
    count = mirrored(gram(x for (x,) in columns_of(p, layer=layer)))
    size = count.diagonal()
    if kind == "count":
        return count
    if kind == "cosine":
        return share_of(count, size[:, None], size)
    if kind == "jaccard":
        union = size[:, None] + size - count
        return torch.where(union > 0, count / union.clamp_min(1), 1.0)
    units = width(p, layer)
    return 1 - (size[:, None] + size - 2 * count) / units


@public
def self_features(a: Tensor, b: Tensor) -> Float[Tensor, " image"]:
    """The cosine of every example's activations at two times: a_i . b_i / (|a_i| |b_i|); `self_path` of activations.

    Raises `WeightspaceError` where the shapes differ.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> a = ws.features(task)(net)["2"]
    >>> ws.self_features(a, 2 * a).shape, round(float(ws.self_features(a, 2 * a).mean()), 3)
    (torch.Size([60]), 1.0)
    """
    a, b = matrices(a, b)
    return share_of((a * b).sum(1), a.square().sum(1), b.square().sum(1))


@public
def cross_features(a: Tensor, b: Tensor) -> Float[Tensor, "image image"]:
    """`cross_path` of activations: C = (A * B)(A * B)^T / sqrt((A^2)(A^2)^T * (B^2)(B^2)^T), products unit by unit.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> a = ws.features(task)(net)["2"]
    >>> ws.cross_features(a, a).shape, round(float(ws.cross_features(a, a).mean()), 3)
    (torch.Size([60, 60]), 1.0)
    """
    a, b = matrices(a, b)
    both, one, two = a * b, a.square(), b.square()
    return shares(*(lower(t, float_product(t.dtype)) for t in (both, one, two)))


@public
def shared_paths(p: Gates, log: bool = False) -> Float[Tensor, "image image"]:
    """The number of active paths from input to output that two examples share: prod_l p_i^l . p_j^l, for every pair.

    A path is one unit of every layer; the number is exact for a plain chain of layers, and a product of overlaps
    elsewhere. In float64; with `log`, its logarithm.
    Source: Neural path features and neural path kernel (Lakshminarayanan, Singh, 2020).

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> p = ws.gates(task)(net)
    >>> bool((ws.inside.shared_paths(p) == ws.inside.overlap(p)).all())     # one hidden layer
    True
    """
    total = sum(overlap(p, layer=name).double().log() for name in p.layers)
    assert isinstance(total, Tensor)
    return total if log else total.exp().round()


@public
def dead(p: Gates) -> dict[str, float]:
    """The share of dead units of every layer: those that are on for no example.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> ws.inside.dead(ws.gates(task)(net))
    {'2': 0.0625}
    """
    found = {}
    for name in p.layers:
        on = [x.any(0) for (x,) in columns_of(p, layer=name)]
        found[name] = float(1 - np.concatenate(on).mean())
    return found


@public
def turnover(p: Paths, q: Paths, distance: float) -> float:
    """The change of the paths per distance moved in weight space: (1 - mean_i s_i) / distance, s_i the `self_path`.

    The paths alone change little when steps are small; this ratio does not depend on the learning rate. `distance`:
    best `log_relative_trust` of the two networks, which adds up along a run. Raises `WeightspaceError` for a distance
    that is not positive.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> near = ws.perturb(net, 0.1, seed=0)
    >>> p, q = ws.gates(task)(net), ws.gates(task)(near)
    >>> ws.inside.turnover(p, q, ws.log_relative_trust(net, near)) > 0
    True
    """
    if not 0 < distance < math.inf:
        raise WeightspaceError(f"turnover is relative to a positive distance, got {distance}")
    return float(1 - self_path(p, q).mean()) / distance


@public
def against_distance(p: Paths, inputs: Tensor, layer: str | None = None) -> dict[str, float]:
    """Spearman's rank correlation of the overlap of two examples with their distance |x_i - x_j|, for each kind.

    Over all pairs of examples; NaN where all overlaps are the same. Raises `WeightspaceError` for inputs of other
    examples.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.inside.against_distance(ws.gates(task)(net), task.example(60))
    >>> found.keys(), found["cosine"] < 0     # images far apart share few units
    (dict_keys(['count', 'cosine', 'jaccard', 'hamming']), True)
    """
    x = inputs.detach().flatten(1).double()
    if len(x) != len(p):
        raise WeightspaceError(f"paths of {len(p)} examples do not fit {len(x)} inputs")
    return ranked(p, torch.cdist(x, x), layer)


@public
def ranked(p: Paths, far: Tensor, layer: str | None = None) -> dict[str, float]:
    """`against_distance` with the distances of all pairs of examples given: `far` is (example, example).

    >>> import torch, weightspace as ws
    >>> net, task = ws.demo.example()
    >>> x = task.example(60).flatten(1)
    >>> ws.inside.ranked(ws.gates(task)(net), torch.cdist(x, x))["cosine"] < 0
    True
    """
    i, j = torch.tril_indices(len(far), len(far), -1)
    close = {kind: overlap(p, kind, layer)[i, j].numpy() for kind in KINDS}
    apart = far[i, j].numpy()
    return {kind: float(spearmanr(o, apart).statistic) if np.ptp(o) else math.nan for kind, o in close.items()}


@public
def early_to_mid(values: Sequence[float], first: int, second: int) -> float:
    """The ratio of the means of two stages of training: mean(values[:first]) / mean(values[first:second]).

    `values`: one number per epoch, such as the mean cross-path similarity; `first`, `second`: epochs at which the
    learning rate decays. Raises `WeightspaceError` for an empty stage.

    >>> import weightspace as ws
    >>> round(ws.inside.early_to_mid([0.1, 0.3, 0.8, 0.8], first=2, second=4), 3)
    0.25
    """
    if not 0 < first < second <= len(values):
        n = len(values)
        raise WeightspaceError(f"the stages end at {first} and {second} of {n} epochs; give 0 < first < second <= {n}")
    return float(np.mean(values[:first]) / np.mean(values[first:second]))


@public
def features_since(task: Task, layers: Sequence[str] | None = None) -> Callable[[Net], dict[str, dict[str, float]]]:
    """A function of a network: how similar its activations on `task` are to those at the previous call, by layer.

    Layer -> {"self": the mean of `self_features`, "cross": that of `cross_features` over pairs of different examples};
    an empty dict at the first call. Memory: activations of two times.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> since = ws.inside.features_since(task)
    >>> since(net)
    {}
    >>> {layer: sorted(found) for layer, found in since(ws.perturb(net, 0.1, seed=0)).items()}
    {'2': ['cross', 'self']}
    """
    last: dict[str, Tensor] = {}
    look = features(task)

    @public
    def since(net: Net) -> dict[str, dict[str, float]]:
        now = {layer: values for layer, values in look(net).items() if layers is None or layer in layers}
        found = {
            layer: {
                "self": float(self_features(last[layer], now[layer]).mean()),
                "cross": off_diagonal(cross_features(last[layer], now[layer])),
            }
            for layer in (now if last else {})
        }
        last.clear()
        last.update(now)
        return found

    return since


@public
def off_diagonal(square: Tensor) -> float:
    """The mean of a square matrix off its diagonal: over all pairs of different examples.

    Raises `WeightspaceError` for one example.

    >>> import torch, weightspace as ws
    >>> ws.inside.off_diagonal(torch.tensor([[1.0, 0.25], [0.75, 1.0]]))
    0.5
    """
    n = len(square)
    if n < 2:
        raise WeightspaceError("one example has no pairs; give two or more")
    return float((square.double().sum() - square.diagonal().double().sum()) / (n * (n - 1)))


@public
@dataclass(frozen=True)
class Neighbours:
    """The nearest neighbours of anchor examples by path overlap, over time. Made by `neighbours`.

    `ranks[t, a, c]`: rank of candidate c for anchor a at time t, 0 the nearest. `jaccard[t, a]`: Jaccard index of the
    nearest few at times t and t + 1; `kendall[t, a]`: Kendall's tau of the two rankings. `top[a]`: the candidates that
    were ever among the nearest few.
    """

    ranks: Tensor
    jaccard: Float[Tensor, "time anchor"]
    kendall: Float[Tensor, "time anchor"]
    top: list[list[int]]


@public
def neighbours(
    history: Sequence[Paths], anchors: Sequence[int] = (5, 10, 15), candidates: int = 128, nearest: int = 6,
    layer: str | None = None,
) -> Neighbours:  # fmt: skip
    """The nearest neighbours of some examples by path overlap p_a . p_c, at every time of a history of gates.

    The first `candidates` examples are ranked for each anchor, the anchor itself left out. Raises `WeightspaceError`
    for fewer than two times, anchors that are not among the candidates, or fewer candidates than `nearest`.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> p, q = (ws.gates(task)(n) for n in (net, ws.perturb(net, 0.1, seed=0)))
    >>> found = ws.inside.neighbours([p, q], anchors=[0, 1], candidates=20)
    >>> found.ranks.shape, found.jaccard.shape
    (torch.Size([2, 2, 20]), torch.Size([1, 2]))
    """
    size = min(candidates, min((len(p) for p in history), default=0))
    if len(history) < 2 or not anchors or not 1 <= nearest < size or any(not 0 <= a < size for a in anchors):
        raise WeightspaceError(
            f"{len(history)} times, anchors {tuple(anchors)}, {nearest} nearest of {size} candidates do not fit; "
            "give two times or more, and anchors among the candidates"
        )
    orders = [_order(_few(p, size), anchors, layer) for p in history]
    ranks = torch.stack([order.argsort(1) for order in orders])
    near = [[set(row[:nearest].tolist()) for row in order] for order in orders]
    steps = range(1, len(history))
    pairs = [[(near[t - 1][a], near[t][a]) for a in range(len(anchors))] for t in steps]
    jaccard = [[len(x & y) / len(x | y) for x, y in row] for row in pairs]
    others = [[c for c in range(size) if c != a] for a in anchors]
    kendall = [
        [float(kendalltau(ranks[t - 1, a, o], ranks[t, a, o]).statistic) for a, o in enumerate(others)] for t in steps
    ]
    ever = [sorted(set().union(*(row[a] for row in near))) for a in range(len(anchors))]
    return Neighbours(ranks, torch.tensor(jaccard), torch.tensor(kendall), ever)


def _order(p: Paths, anchors: Sequence[int], layer: str | None) -> Tensor:
    """Candidates by decreasing overlap, the anchor last."""
    close = overlap(p, layer=layer)[list(anchors)].clone()
    close[range(len(anchors)), list(anchors)] = -1
    return torch.argsort(close, dim=1, descending=True, stable=True)


def _same(p: Paths, q: Paths, layer: str | None) -> int:
    sizes = [(len(t), width(t, layer)) for t in (p, q)]
    if sizes[0] != sizes[1]:
        raise WeightspaceError(
            f"paths of {sizes[0]} and {sizes[1]} (examples, units) cannot be compared; take both on one task"
        )
    if isinstance(p, Gates) and isinstance(q, Gates):
        p.check(q.examples)
    return sizes[0][0]


def _few(p: Paths, n: int) -> Paths:
    return p.take(range(n)) if isinstance(p, Gates) else p[:n]
