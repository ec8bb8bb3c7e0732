"""Similarity of representations (CKA, SVCCA, PWCCA, Procrustes, matching): layers of any widths on the same examples.

A representation is a tensor (examples, ..); all dimensions but the first are flattened, for feature maps too. Features
are centred first, so that constant offsets do not count. K = X X^T and L = Y Y^T of the centred X and Y:

- `cka`: <K, L> / |K| |L|; invariant under rotations and one scale for all features;
- `procrustes`: min_Q |X / |X| - Y Q / |Y|| over orthogonal Q, a metric; invariant under the same;
- `svcca`, `pwcca`: correlations of the subspaces that X and Y span; invariant under invertible linear maps, in part;
- `matched`: correlations of neurons, one to one; invariant under their order, and the scale of each.

Sources: Similarity of neural network representations revisited (Kornblith et al., 2019); Feature selection via
dependence maximization (Song et al., 2012); Do wide and deep networks learn the same things? (Nguyen et al., 2021);
SVCCA (Raghu et al., 2017); Insights on representational similarity (Morcos et al., 2018); Grounding representation
similarity (Ding et al., 2021); Generalized shape metrics on neural representations (Williams et al., 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from weightspace.linear.assignment import assign
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["cka", "matched", "procrustes", "pwcca", "similarity", "svcca"]


Measure: TypeAlias = Literal["cka", "unbiased cka", "svcca", "pwcca", "procrustes", "matched"]
_LEAF = 64  # rows up to which a block on the diagonal of a Gram matrix is formed whole; larger ones split at multiples
_CHUNK = 1 << 14  # terms of a sum in the tensors' own precision, before float64 takes over
_OFFSET = 1e-4  # |x - mean|^2 / |mean|^2, below which float32 loses too much to the mean
_SAFE = 1e4  # the largest size of numbers whose fourth powers float32 holds


@public
def cka(x: Float[Tensor, " n *p"], y: Float[Tensor, " m *q"], unbiased: bool = False) -> float:
    """Linear CKA: <K, L> / |K| |L| of the centred Gram matrices, 0 to 1; 1 for a rotation and scale of each other.

    It is biased: near 1 for any two representations with many more features than examples. `unbiased`: <K, L> is
    replaced by the U-statistic of HSIC, with mean 0 for independent ones; it may be negative, and needs 4 examples.
    Symmetric. Accurate to 1e-6 for float32 inputs. Cost: n^2 (p + q) / 2 multiplications, or n (p + q)^2 / 2 where
    these are fewer.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> other, _ = ws.demo.example(1)
    >>> a, b = (ws.features(task)(n)["2"] for n in (net, other))
    >>> round(ws.cka(a, 3 * a), 3), 0 < ws.cka(a, b) < 0.5
    (1.0, True)
    """
    return float(_cka({"x": x}, {"y": y}, unbiased)[0, 0])


@public
def svcca(x: Float[Tensor, " n *p"], y: Float[Tensor, " m *q"], keep: float = 0.99) -> float:
    """SVCCA: the mean canonical correlation of the principal directions that hold a share `keep` of each variance.

    0 to 1, over as many correlations as the smaller subspace has dimensions. Invariant under rotations and one scale;
    with `keep` = 1 under every invertible linear map. Symmetric. With n < r + s + 1 examples, r and s the dimensions of
    the subspaces, r + s + 1 - n of the correlations are one whatever the data; where one subspace has all n - 1
    dimensions that there are, every correlation is one: that raises `WeightspaceError`.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> a = ws.features(task)(net)["2"]
    >>> round(ws.svcca(a, a.flip(1)), 3)
    1.0
    """
    return float(_pairs({"x": x}, {"y": y}, *_svcca(keep)))


@public
def pwcca(x: Float[Tensor, " n *p"], y: Float[Tensor, " m *q"]) -> float:
    """PWCCA: the mean sum_i a_i r_i / sum_i a_i of canonical correlations r_i, weighted by their part in x's features.

    a_i = sum_j |<h_i, x_j>| over the features x_j of x, h_i the canonical directions of x. Not symmetric: the weights
    are those of x. Invariant under every invertible linear map of y. Only directions of rounding are cut off, so that
    more examples than features are needed, several times as many for a meaningful value: see `svcca`.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> a = ws.features(task)(net)["2"]
    >>> round(ws.pwcca(a, a.flip(1)), 3)
    1.0
    """
    return float(similarity({"x": x}, {"y": y}, "pwcca"))


@public
def procrustes(x: Float[Tensor, " n *p"], y: Float[Tensor, " m *q"]) -> float:
    """Procrustes distance min_Q |X - Y Q| over orthogonal Q, X and Y centred and of norm one: sqrt(2 - 2 |X^T Y|_*).

    A metric on representations up to rotation and scale: 0 to sqrt(2), with the triangle inequality; the narrower
    one is padded with zero features. In float64; distances below 1e-7 are rounding.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> other, _ = ws.demo.example(1)
    >>> a, b = (ws.features(task)(n)["2"] for n in (net, other))
    >>> ws.procrustes(a, 3 * a.flip(1)) < 1e-5, 0.5 < ws.procrustes(a, b) < 2**0.5
    (True, True)
    """
    return float(similarity({"x": x}, {"y": y}, "procrustes"))


@public
def matched(
    x: Float[Tensor, " n *p"], y: Float[Tensor, " m *q"], signed: bool = True
) -> tuple[float, Int[Tensor, " units"]]:
    """The mean correlation of neurons of x and y, matched one to one for the largest sum; and the matching.

    The second value is, for each neuron of x, the neuron of y matched to it, -1 for none (where x has more). With
    `signed` False, absolute values of correlations. A constant neuron has correlation 0. Cost: cubic in the width.

    >>> import torch, weightspace as ws
    >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 5.0]])
    >>> mean, order = ws.inside.matched(x, x.flip(1))
    >>> round(mean, 3), order
    (1.0, tensor([1, 0]))
    """
    matrices, (one,), (other,) = _checked({"x": x}, {"y": y})
    return _match(_standardised(matrices[one]), _standardised(matrices[other]), signed)


@public
def similarity(
    first: dict[str, Tensor], second: dict[str, Tensor], measure: Measure = "cka"
) -> Float[Tensor, "first second"]:
    """The similarity of every layer of `first` (rows) with every layer of `second` (columns), in float64.

    `measure`: one of the functions of this module by its name; "procrustes" gives distances. Each layer is centred and
    factored once, not once per pair, and once for a tensor that is in both sets.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> layers = ws.features(task, of="maps")(net)
    >>> ws.similarity(layers, layers).shape, [round(float(s), 3) for s in ws.similarity(layers, layers).diagonal()]
    (torch.Size([2, 2]), [1.0, 1.0])
    """
    if measure in ("cka", "unbiased cka"):
        return _cka(first, second, measure != "cka")
    return _pairs(first, second, *_MEASURES[measure])


def _pairs(
    first: dict[str, Tensor],
    second: dict[str, Tensor],
    factor: Callable[[Tensor], Any],
    compare: Callable[[Any, Any], float],
) -> Tensor:
    matrices, rows, columns = _checked(first, second)
    factors = {key: factor(x) for key, x in matrices.items()}
    found = [[compare(factors[i], factors[j]) for j in columns] for i in rows]
    return torch.tensor(found, dtype=torch.float64).reshape(len(rows), len(columns))


def _checked(
    first: dict[str, Tensor], second: dict[str, Tensor], least: int = 2
) -> tuple[dict[int, Tensor], list[int], list[int]]:
    """Every different tensor, flattened, by its id; and the ids of the layers of both sets."""
    matrices: dict[int, Tensor] = {}
    count = None
    for name, x in [*first.items(), *second.items()]:
        if id(x) in matrices:
            continue
        n = len(x) if x.dim() else 0
        if n < least or not x.numel():
            raise WeightspaceError(f"at least {least} examples with a feature are needed, {name} is {tuple(x.shape)}")
        count = count or (name, n)
        if n != count[1]:
            raise WeightspaceError(f"{count[0]} has {count[1]} examples and {name} has {n}; give both the same ones")
        matrices[id(x)] = _sound(x.detach().reshape(n, -1), name)
    return matrices, [id(x) for x in first.values()], [id(x) for x in second.values()]


def _sound(x: Tensor, name: str) -> Tensor:
    low, high = (float(end) for end in x.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise WeightspaceError(f"NaN or infinity in {name}; give finite numbers")
    if bool((x[0] == x[-1]).all()) and bool((x == x[:1]).all()):
        raise WeightspaceError(f"{name} is the same for every example; a constant has no similarity with anything")
    dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    top = max(-low, high)
    return x.to(dtype) if 1 / _SAFE < top < _SAFE else (x.double() / top).to(dtype)


def _centred(x: Tensor, room: Tensor | None = None) -> Tensor:
    """x less its mean over the examples, up to a factor; by way of float64 where the mean is nearly all of it."""
    mean = x.mean(0)
    z = torch.sub(x, mean, out=None if room is None else room[: x.numel()].view(x.shape))
    if float(z.norm()) ** 2 >= _OFFSET * len(x) * float(mean.norm()) ** 2:
        return z
    exact = x.double()
    exact = exact - exact.mean(0)
    return exact.div_(exact.norm()).to(x.dtype)


def _cka(first: dict[str, Tensor], second: dict[str, Tensor], unbiased: bool) -> Tensor:
    matrices, rows, columns = _checked(first, second, 4 if unbiased else 2)
    keys = {key: k for k, key in enumerate(matrices)}
    if not keys:
        return torch.zeros(0, 0, dtype=torch.float64)
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in matrices.values()) else torch.float32
    xs = [x.to(dtype) for x in matrices.values()]
    rows, columns = [keys[key] for key in rows], [keys[key] for key in columns]
    apart, own = _by_features(xs, rows, columns) if _narrow(xs, rows, columns) else _by_examples(xs)
    n, both = len(xs[0]), own @ own.T
    if unbiased:
        trace = own.sum(1)
        inner = apart + trace.outer(trace) / ((n - 1) * (n - 2)) - 2 / (n - 2) * both
    else:
        inner = apart + both
    squares = inner.diagonal()
    if bool((squares <= 64 * torch.finfo(dtype).eps * both.diagonal() / n).any()):
        raise WeightspaceError("unbiased CKA is 0/0: all examples of a representation are equally far from each other")
    return (inner / (squares.sqrt()[:, None] * squares.sqrt()))[rows][:, columns]


def _narrow(xs: list[Tensor], rows: list[int], columns: list[int]) -> bool:
    """Whether products X^T Y of all pairs cost less than all Gram matrices, and their inner products."""
    n, widths = len(xs[0]), [x.shape[1] for x in xs]
    products = sum(widths[i] for i in rows) * sum(widths[j] for j in columns) + sum(p * p for p in widths) / 2
    return products < n * (sum(widths) + len(xs) ** 2) / 2


def _by_examples(xs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """<K_i, K_j> without the diagonals, and the diagonals, of the Gram matrices of all xs, in float64."""
    room = xs[0].new_empty(max(x.numel() for x in xs))  # fresh memory costs more than the centring
    grams, own = zip(*(_halved(_centred(x, room)) for x in xs), strict=True)
    return 2 * _inner(grams), torch.stack(own)


def _by_features(xs: list[Tensor], rows: list[int], columns: list[int]) -> tuple[Tensor, Tensor]:
    """The same from |X_i^T X_j|^2 = <K_i, K_j>; pairs that are not asked for are left at zero."""
    zs = [_centred(x) for x in xs]
    own = torch.stack([z.square().sum(1, dtype=torch.float64) for z in zs])
    inner = torch.zeros(len(zs), len(zs), dtype=torch.float64, device=own.device)
    for i, j in {(min(i, j), max(i, j)) for i in rows for j in columns if i != j}:
        inner[i, j] = inner[j, i] = _inner([[zs[i].T @ zs[j]]])[0, 0]
    for i, z in enumerate(zs):
        half, diagonal = _halved(z.T)
        inner[i, i] = 2 * _inner([half])[0, 0] + diagonal.square().sum()
    return inner - own @ own.T, own


def _halved(z: Float[Tensor, "n p"]) -> tuple[list[Tensor], Float[Tensor, " n"]]:
    """The blocks of Z Z^T on and below its diagonal, whose sums are half of those of all; the diagonal in float64.

    The diagonal itself is left out of the blocks; those on it, which are whole, are divided by sqrt(2).
    """
    product = _onednn() if z.dtype == torch.float32 and z.device.type == "cpu" and z.is_contiguous() else None
    times = product or (lambda x, y: x @ y.T)
    found, diagonal = [], torch.empty(len(z), dtype=torch.float64, device=z.device)
    for a, b, c, d in _blocks(0, len(z)):
        found.append(times(z[a:b], z[c:d]))
        if a == c:
            diagonal[a:b] = found[-1].diagonal()
            found[-1].fill_diagonal_(0).mul_(math.sqrt(0.5))
    return found, diagonal


@lru_cache(maxsize=1)
def _onednn() -> Callable[[Tensor, Tensor], Tensor] | None:
    """x, y -> x y^T of contiguous float32 matrices, as torch's compiler has it; None where a build has none or errs.

    On processors that are not Intel's it is a tenth faster than the product of MKL, more on small matrices.
    """
    try:
        linear = torch.ops.mkldnn._linear_pointwise.default

        def times(x: Tensor, y: Tensor) -> Tensor:
            return linear(x, y, None, "none", [], "")

        x = (torch.arange(40 * 600).view(40, 600) % 7 - 3).float()  # sums are whole numbers, exact in any order
        right = torch.equal(times(x, x[:24]), x @ x[:24].T)
    except (AttributeError, RuntimeError, TypeError):
        return None
    return times if right else None


def _blocks(low: int, high: int) -> Iterator[tuple[int, int, int, int]]:
    """Rows a to b and columns c to d of blocks that hold the lower triangle, the largest half as wide as all of it."""
    if high - low <= _LEAF:
        yield low, high, low, high
        return
    middle = low + -(-(high - low) // (2 * _LEAF)) * _LEAF
    yield middle, high, low, middle
    yield from _blocks(low, middle)
    yield from _blocks(middle, high)


def _inner(matrices: Sequence[Sequence[Tensor]]) -> Float[Tensor, "k k"]:
    """All inner products of matrices in blocks of equal shapes: float32 within a chunk, float64 between chunks."""
    total = torch.zeros(len(matrices), len(matrices), dtype=torch.float64, device=matrices[0][0].device)
    for blocks in zip(*matrices, strict=True):
        for parts in zip(*(block.flatten().split(_CHUNK) for block in blocks), strict=True):
            rows = torch.stack(parts)
            total += rows @ rows.T
    return total


def _principal(x: Tensor, keep: float) -> Tensor:
    """An orthonormal basis (n, k) of the principal directions of examples that hold a share `keep` of the variance.

    By the Gram matrix of the shorter side, in float64, where something is cut off; by the singular values where not.
    """
    if keep == 1:
        return _span(x)
    z, wide = _centred(x.double()), x.shape[0] <= x.shape[1]
    values, vectors = torch.linalg.eigh(z @ z.T if wide else z.T @ z)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    share = values.cumsum(0) / values.sum()
    k = min(int((share < keep).sum()) + 1, len(share))
    basis = vectors[:, :k] if wide else z @ (vectors[:, :k] / values[:k].sqrt())
    return _proper(basis)


def _span(x: Tensor) -> Tensor:
    """An orthonormal basis of what the centred features span, but for directions that are rounding of x's dtype."""
    z = _centred(x.double())
    basis, values, _ = torch.linalg.svd(z, full_matrices=False)
    return _proper(basis[:, values > max(z.shape) * torch.finfo(x.dtype).eps * values[0]])


def _proper(basis: Tensor) -> Tensor:
    n, k = basis.shape
    if k >= n - 1:
        raise WeightspaceError(
            f"canonical correlations are all one, whatever the data, where {n} examples have {k} directions; "
            "give more examples than features, a smaller `keep`, or use cka or procrustes"
        )
    return basis


def _svcca(keep: float) -> tuple[Callable[[Tensor], Any], Callable[[Any, Any], float]]:
    if not 0 < keep <= 1:
        raise WeightspaceError(f"keep is a share of the variance in (0, 1], got {keep}")
    return partial(_principal, keep=keep), lambda u, v: float(torch.linalg.svdvals(u.T @ v).clamp(max=1).mean())


def _weighted(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> float:
    """The mean of the canonical correlations of two bases, weighted by the features of x."""
    (z, u), (_, v) = x, y
    left, values, _ = torch.linalg.svd(u.T @ v, full_matrices=False)
    weights = ((u @ left).T @ z).abs().sum(1)
    return float((weights * values.clamp(max=1)).sum() / weights.sum())


def _square(x: Tensor) -> Tensor:
    """The centred x of norm one, rotated into n features where it has more: X = R^T Q^T with Q orthonormal."""
    z = _centred(x.double())
    z = z / z.norm()
    return torch.linalg.qr(z.T, mode="r").R.T if z.shape[1] > z.shape[0] else z


def _rotated(x: Tensor, y: Tensor) -> float:
    return math.sqrt(max(0.0, 2 - 2 * float(torch.linalg.svdvals(x.T @ y).sum())))


def _standardised(x: Tensor) -> Tensor:
    """Features of mean 0 and norm 1; constant ones zero."""
    z = _centred(x.double())
    z = z / z.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    return z.masked_fill_((x == x[:1]).all(0), 0.0)


def _match(x: Tensor, y: Tensor, signed: bool = True) -> tuple[float, Tensor]:
    p, q = x.shape[1], y.shape[1]
    gain = x.new_zeros(max(p, q), max(p, q))
    gain[:p, :q] = x.T @ y if signed else (x.T @ y).abs()
    order = torch.as_tensor(assign(gain))[:p]
    order[order >= q] = -1
    mine = (order >= 0).nonzero()[:, 0]
    return float(gain[mine, order[mine]].mean()), order


_MEASURES: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any, Any], float]]] = {
    "svcca": _svcca(0.99),
    "pwcca": (lambda x: (_centred(x.double()), _span(x)), _weighted),
    "procrustes": (_square, _rotated),
    "matched": (_standardised, lambda x, y: _match(x, y)[0]),
}
