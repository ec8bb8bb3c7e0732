"""Distances and inner products of all pairs of networks, in one pass over their weights.

|w_i - w_j|^2 from inner products loses all digits where two networks are near. So the networks are taken as a tree: in
every piece of the weights a minimum spanning tree of the networks is found on a sample in float64, and inner products
are those of the differences along its edges. No edge on the way between two networks is longer than they are apart, so
that float32 products, summed in float64, give every distance to a relative error of about 1e-6, however near the two
are to one another and however far from all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from weightspace.atlas.side_by_side import Member, Piece, SideBySide, flat_part
from weightspace.jobs.progress import Progress, silent
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Distances", "Estimated", "Row", "against", "gathered", "pairwise"]


Matrix: TypeAlias = np.ndarray
_SHORT, _RUN, _STEP = 2048, 16, 512  # a sample: all of a short piece, else runs of 16 numbers in every 512
_BLOCK = 1 << 14  # columns that one float32 product sums
_MANY = 64


@public
@dataclass(frozen=True)
class Estimated:
    """What is exact of distances that are estimates elsewhere (see `neighbourhoods`).

    `exact[i, j]`: whether that of networks i and j is; `rows[i, j]` with i < j: their squared distances over the
    tensors `names` one by one, for these pairs alone. `parts`: which tensors one row of `Distances.tensors` sums.
    `error`: the relative standard deviation of an estimated distance, at most.
    """

    exact: Tensor
    names: tuple[str, ...]
    rows: Mapping[tuple[int, int], Tensor]
    parts: Mapping[str, tuple[str, ...]]
    error: float

    def only(self, parts: Sequence[str]) -> Estimated:
        """The same over some parts."""
        kept = [k for k, name in enumerate(self.names) if any(name in self.parts[part] for part in parts)]
        rows = {pair: row[kept] for pair, row in self.rows.items()}
        chosen = {part: self.parts[part] for part in parts}
        return replace(self, names=tuple(self.names[k] for k in kept), rows=rows, parts=chosen)


@public
@dataclass(frozen=True)
class Distances:
    """Squared distances |w_i - w_j|^2 and inner products <w_i, w_j> of n networks, in all and tensor by tensor.

    `squared` and `inner` have shape (n, n), in float64; `squares[t]` and `products[t]` are those of the tensor
    `tensors[t]` alone. `matrices`: those of `tensors` with two dimensions or more. `left_out`: tensors that do not
    count, those of integers among them. `numbers`: how many weights of each network count. `estimated`: of a large set,
    which distances are exact; `tensors` are parts of the networks there. Made by `pairwise` and `neighbourhoods`.
    """

    labels: tuple[str, ...]
    tensors: tuple[str, ...]
    left_out: tuple[str, ...]
    numbers: int
    squared: Float[Tensor, "n n"]
    inner: Float[Tensor, "n n"]
    squares: Float[Tensor, "tensors n n"]
    products: Float[Tensor, "tensors n n"]
    matrices: tuple[str, ...] = ()
    estimated: Estimated | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def distances(self) -> Float[Tensor, "n n"]:
        """Euclidean distances |w_i - w_j|."""
        return self.squared.sqrt()

    @property
    def norms(self) -> Float[Tensor, " n"]:
        """The norms |w_i|."""
        return self.inner.diagonal().sqrt()

    @property
    def cosines(self) -> Float[Tensor, "n n"]:
        """The cosines <w_i, w_j> / |w_i||w_j|; NaN where one of the two is zero."""
        return _cosines(self.inner)

    @property
    def relative(self) -> Float[Tensor, "n n"]:
        """|w_i - w_j| over the root mean square of |w_i| and |w_j|: 0 for copies, about 1.41 for unrelated networks."""
        return _relative(self.squared, self.inner)

    def only(self, tensors: Iterable[str]) -> Distances:
        """The same over these tensors alone; `numbers` stays. Raises `WeightspaceError` for one that is not there."""
        wanted = list(tensors)
        if unknown := [name for name in wanted if name not in self.tensors]:
            raise WeightspaceError(f"no distances of a tensor {unknown[0]!r}; choose one of `tensors`")
        at = [self.tensors.index(name) for name in wanted]
        squares, products = self.squares[at], self.products[at]
        left = tuple(name for name in (*self.tensors, *self.left_out) if name not in wanted)
        partly = None if self.estimated is None else self.estimated.only(wanted)
        return replace(
            self, tensors=tuple(wanted), matrices=tuple(name for name in wanted if name in self.matrices),
            estimated=partly, left_out=left, squared=squares.sum(0), inner=products.sum(0),
            squares=squares, products=products,
        )  # fmt: skip

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that count, one by one."""
        return self.tensors if self.estimated is None else self.estimated.names

    def layers(self, i: int, j: int) -> Float[Tensor, " tensors"]:
        """The squared distances of networks i and j over `names`. Raises `KeyError` where that is an estimate."""
        return self.squares[:, i, j] if self.estimated is None else self.estimated.rows[min(i, j), max(i, j)]

    def exact(self, i: int, j: int) -> bool:
        """Whether the distance of networks i and j is exact, and not an estimate."""
        return self.estimated is None or bool(self.estimated.exact[i, j])

    def joined(self, row: Row) -> Distances:
        """With one network more, whose distances to all others are `row`.

        >>> import weightspace as ws
        >>> from weightspace.atlas.gram import against, pairwise
        >>> members = [ws.demo.example(seed)[0].tensors for seed in range(3)]
        >>> found = pairwise(members[:2]).joined(against(members[2], members[:2], "new"))
        >>> bool((found.squared - pairwise(members).squared).abs().max() < 1e-4), found.labels[-1]
        (True, 'new')
        """
        if self.estimated is not None or row.tensors != self.tensors or row.squares.shape[1] != len(self):
            raise WeightspaceError("a row of other networks or tensors; compare the new network with the same ones")
        squares = _bordered(self.squares, row.squares, torch.zeros(len(self.tensors), dtype=torch.float64))
        products = _bordered(self.products, row.products, row.own)
        return replace(
            self, labels=(*self.labels, row.label), squares=squares, products=products,
            squared=squares.sum(0), inner=products.sum(0),
        )  # fmt: skip


@public
@dataclass(frozen=True)
class Row:
    """Squared distances and inner products of one network with n others, tensor by tensor. Made by `against`.

    `own[t]` is the squared norm of its tensor t. `nearest()` gives the others, the nearest first.
    """

    label: str
    tensors: tuple[str, ...]
    squares: Float[Tensor, "tensors n"]
    products: Float[Tensor, "tensors n"]
    own: Float[Tensor, " tensors"]

    @property
    def distances(self) -> Float[Tensor, " n"]:
        """Euclidean distances to the others."""
        return self.squares.sum(0).sqrt()

    def nearest(self) -> list[int]:
        """Numbers of the others, the nearest first."""
        return [int(k) for k in self.distances.argsort(stable=True)]


@public
def pairwise(
    members: Sequence[Member],
    labels: Sequence[str] | None = None,
    *,
    tensors: Iterable[str] | None = None,
    progress: Progress = silent,
) -> Distances:
    """Distances and inner products of all pairs of networks, tensor by tensor; each weight is read once.

    `members`: mappings from names to tensors of one architecture, of any floating dtypes: checkpoints (read piece by
    piece), `Net.tensors`, state dicts. `labels`: what to call them. `tensors`: those that count, by default all of
    floating-point numbers. In memory are at most some ten million numbers of the weights, however many and large the
    networks are, and the result: 16 bytes for each pair and tensor. `progress`: told of every tensor. Raises
    `ArchitectureMismatch` for networks of other names or shapes, and `WeightspaceError` for NaN or infinity, naming the
    tensor and the network.

    >>> import weightspace as ws
    >>> from weightspace.atlas.gram import pairwise
    >>> nets = [ws.demo.example(seed)[0] for seed in range(2)]
    >>> found = pairwise([net.tensors for net in nets])
    >>> round(float(found.distances[0, 1]), 1) == round(ws.euclidean(*nets), 1)
    True
    """
    together = SideBySide(members, labels, tensors)
    count, n = len(together.names), len(together)
    squares, products = (np.zeros((count, n, n)) for _ in range(2))
    for t, name in enumerate(together.names):
        progress(f"distances of {n} networks", t, count)
        for piece in together.pieces(name):
            _add(together, piece, squares[t], products[t])
    return gathered(together, torch.from_numpy(squares), torch.from_numpy(products))


def gathered(together: SideBySide, squares: Tensor, products: Tensor) -> Distances:
    """Squared distances and inner products of every tensor in `together.names`, of shape (tensors, n, n), as one."""
    numbers = sum(together.numbers(name) for name in together.names)
    matrices = tuple(name for name in together.names if len(together.shapes[name]) > 1)
    names = tuple(together.labels), tuple(together.names), together.left_out
    return Distances(*names, numbers, squares.sum(0), products.sum(0), squares, products, matrices)


@public
def against(
    new: Member,
    members: Sequence[Member],
    label: str = "the new network",
    labels: Sequence[str] | None = None,
    *,
    tensors: Iterable[str] | None = None,
) -> Row:
    """Distances and inner products of one network with n others, tensor by tensor: one row of `pairwise`.

    The others are read once, and one piece of one of them is in memory at a time. Raises as `pairwise` does.

    >>> import weightspace as ws
    >>> from weightspace.atlas.gram import against
    >>> nets = [ws.demo.example(seed)[0].tensors for seed in range(3)]
    >>> against(nets[1], nets).nearest()[0]
    1
    """
    names = [label, *(labels if labels is not None else [f"network {k}" for k in range(len(members))])]
    together = SideBySide([new, *members], names, tensors)
    count, n = len(together.names), len(members)
    squares, products = (torch.zeros(count, n, dtype=torch.float64) for _ in range(2))
    own = torch.zeros(count, dtype=torch.float64)
    alone = SideBySide([new], [label], together.names)
    for t, name in enumerate(together.names):
        for piece in alone.pieces(name):
            x = piece.rows[0].to(together.wide(name))
            alone.refuse(piece)
            own[t] += _dot(x, x)
            for k, member in enumerate(members):
                y = flat_part(member, name, piece.start, piece.stop).to(x.dtype)
                product, apart = _dot(x, y), y - x
                if not bool((product * apart.sum()).isfinite()):
                    together.refuse(replace(piece, rows=torch.stack([x, *[y if j == k else x for j in range(n)]])))
                squares[t, k] += _dot(apart, apart)
                products[t, k] += product
    return Row(label, tuple(together.names), squares, products, own)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """The inner product of two vectors, in float64."""
    return x.double() @ y.double()


def _add(together: SideBySide, piece: Piece, squared: Matrix, inner: Matrix) -> None:
    """Add one piece's squared distances and inner products."""
    order, parents = _spanning_tree(_apart(_sample(piece.rows), together, piece))
    gram = _products(piece.rows.numpy(), order, parents)
    if not np.isfinite(gram).all():
        together.refuse(piece)
        gram = _products(piece.rows.double().numpy(), order, parents)
    apart, product = _along(gram, parents)
    squared[np.ix_(order, order)] += apart
    inner[np.ix_(order, order)] += product


def _sample(rows: Tensor) -> Tensor:
    """Some columns of a piece, spread over it, in float64."""
    size = rows.shape[1]
    if size <= _SHORT:
        return rows.double()
    whole = rows[:, : size // _STEP * _STEP].unflatten(1, (-1, _STEP))
    return whole[:, :, :_RUN].double().flatten(1)


def _apart(sample: Tensor, together: SideBySide, piece: Piece) -> Matrix:
    """Squared distances of all pairs on a sample, in float64."""
    centred = sample - sample[:1]
    gram = (centred @ centred.mT).numpy()
    if not np.isfinite(gram).all():
        together.refuse(piece)
    size = gram.diagonal()
    return np.maximum(size[:, None] + size - 2 * gram, 0.0)


def _spanning_tree(apart: Matrix) -> tuple[list[int], list[int]]:
    """Nodes in the order in which Prim's algorithm meets them, and for each the place of its parent in that order."""
    n = len(apart)
    order, parents = [0], [0]
    near, parent = apart[0].copy(), np.zeros(n, dtype=np.intp)
    near[0] = np.inf
    for _ in range(n - 1):
        at = int(near.argmin())
        parents.append(int(parent[at]))
        closer = apart[at] < near
        parent[closer] = len(order)
        order.append(at)
        near = np.minimum(near, apart[at])
        near[order] = np.inf
    return order, parents


def _products(rows: Matrix, order: Sequence[int], parents: Sequence[int]) -> Matrix:
    """The inner products of the edges of a tree of rows, in their dtype for a block, summed in float64 over blocks."""
    n, size = rows.shape
    total, edges = np.zeros((n, n)), np.empty((n, min(_BLOCK, size)), rows.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, size, _BLOCK):
            block = rows[:, start : start + _BLOCK]
            part = edges[:, : block.shape[1]]
            part[0] = block[order[0]]
            for k in range(1, n):
                np.subtract(block[order[k]], block[order[parents[k]]], out=part[k])
            total += _squared(part)
    return (total + total.T) / 2


def _squared(x: Matrix) -> Matrix:
    """x x^T; for many rows by numpy, which knows that it is symmetric."""
    if len(x) >= _MANY:
        return x @ x.T
    y = torch.from_numpy(x)
    return (y @ y.mT).numpy()


def _along(gram: Matrix, parents: Sequence[int]) -> tuple[Matrix, Matrix]:
    """Squared distances and inner products of the nodes of a tree, from the inner products of its edges.

    Row 0 is the root itself; row k is node k less its parent. With node k met after its parent p,
    |x_k - x_i|^2 = |x_p - x_i|^2 + |u_k|^2 + 2 <x_p - x_i, u_k> for every node i before it.
    """
    n = len(gram)
    ways = np.zeros((n, n))  # ways[i] @ edges = x_i - x_0
    squared = np.zeros((n, n))
    to_edges = np.zeros((n, n))  # <x_i - x_0, u_k>
    for k in range(1, n):
        p = parents[k]
        ways[k] = ways[p]
        ways[k, k] = 1.0
        to_edges[k] = to_edges[p] + gram[k]
        between = to_edges[p, k] - to_edges[:k, k]
        squared[k, :k] = squared[:k, k] = np.maximum(squared[p, :k] + gram[k, k] + 2 * between, 0.0)
    whole = ways.copy()
    whole[:, 0] = 1.0
    return squared, whole @ gram @ whole.T


def _cosines(inner: Tensor) -> Tensor:
    norms = inner.diagonal().sqrt()
    return inner / (norms[:, None] * norms)


def _relative(squared: Tensor, inner: Tensor) -> Tensor:
    size = inner.diagonal()
    mean = (size[:, None] + size) / 2
    return torch.where(squared > 0, squared / mean, torch.zeros(())).sqrt()


def _bordered(inside: Tensor, row: Tensor, corner: Tensor) -> Tensor:
    """Matrices with one row and column more."""
    tall = torch.cat([inside, row[:, None, :]], 1)
    return torch.cat([tall, torch.cat([row, corner[:, None]], 1)[:, :, None]], 2)
