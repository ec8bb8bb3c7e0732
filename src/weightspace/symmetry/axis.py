"""The parts of a symmetry group as data: axes of units, the tensor dimensions that they index, and kinds of moves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from weightspace.graph.atoms import Atom, Span
from weightspace.net.public import public

__all__ = ["Axis", "Block", "Exchange", "Generator", "Place", "as_blocks", "place_axes"]


MATRICES = ("orthogonal", "linear")
KINDS = ("permutation", "scale", "sign", *MATRICES)
MOVES = (*KINDS, "exchange")


@public
@dataclass(frozen=True)
class Axis:
    """A set of `size` hidden units that move together in every tensor that they index.

    `over`: names of the outer axes on whose index the move may depend (channels inside a head over heads), outermost
    first. `kinds`: which of "permutation", "scale", "sign", "orthogonal", "linear" the units admit; empty for a fixed
    index.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> group = ws.Symmetry.of(net, task.example(2))
    >>> axis = group.axes[0]
    >>> axis.name, axis.size, axis.kinds
    ('1.weight[0]', 16, ('permutation', 'scale'))
    """

    name: str
    size: int
    over: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()


@public
@dataclass(frozen=True)
class Block:
    """A strided view of the tensor `tensor`, with one leaf per dimension: an axis name, or the size of a fixed index.

    `dims[k]` is the dimension of the tensor in which leaf k lies.
    """

    tensor: str
    offset: int
    strides: tuple[int, ...]
    leaves: tuple[str | int, ...]
    dims: tuple[int, ...]

    def part(self, dim: int, shape: tuple[int, ...], length: int, name: str = "") -> Block:
        """The block in a part of its tensor: `length` indices of a dimension that one leaf, which stays, is all of."""
        step = math.prod(shape[dim + 1 :])
        outside, inside = divmod(self.offset, step * shape[dim])
        strides = [s * length // shape[dim] if d < dim else s for s, d in zip(self.strides, self.dims, strict=True)]
        leaves = [length if d == dim else leaf for leaf, d in zip(self.leaves, self.dims, strict=True)]
        return Block(name or self.tensor, outside * step * length + inside, tuple(strides), tuple(leaves), self.dims)


@public
@dataclass(frozen=True)
class Place:
    """One occurrence of an axis: leaf number `leaf` of block number `block` of the group."""

    block: int
    leaf: int


@public
@dataclass(frozen=True)
class Generator:
    """Moves of one kind on one axis, with one factor for every unit or one matrix for all of them.

    "scale" and "sign": factors f > 0 or f = +-1; each place is multiplied by f^exponent. `evaluation`: it changes
    running statistics, so it holds in evaluation mode only. "linear": any invertible matrix M, one for every outer
    index; units at a place with exponent 1 become M u, those with exponent -1 become M^-T u. "orthogonal": the same
    with orthogonal M; with `ones` those with M 1 = 1; `proper`: rotations of a plane, with determinant one. It holds
    where each of the places `uniform` (gains of norms) has one number for all units. `offset`: a scale or sign of the
    numbers w + offset at `uniform`, as of gains 1 + w; folding alone uses it.
    """

    axis: str
    kind: str
    exponents: tuple[tuple[Place, float], ...]
    evaluation: bool = False
    uniform: tuple[Place, ...] = ()
    ones: bool = False
    proper: bool = False
    offset: float = 0.0


@public
@dataclass(frozen=True)
class Exchange:
    """Whole parts of a network that may be renumbered: heads, experts, branches, members of an ensemble.

    `members`: their names. `blocks`: sets of blocks that trade their contents, each a list of (members, block number);
    a block of member i gets the content of that of member p[i], one of members i and j that of p[i] and p[j]. `axes`,
    `generators`: axes, and numbers of generators, in the same role, one for every member. In a printed group, S4{hs}
    are the orders of hs.0 to hs.3, and S2{left,right} those of two branches.

    >>> import torch
    >>> import weightspace as ws
    >>> class Sum(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.left, self.right = (torch.nn.Linear(3, 2) for _ in range(2))
    ...     def forward(self, x):
    ...         return self.left(x).tanh() + self.right(x).tanh()
    >>> group = ws.Symmetry.of(Sum(), torch.randn(4, 3))
    >>> print(group), group.exchanges[0].members
    S2{left,right}
    (None, ('left', 'right'))
    """

    name: str
    members: tuple[str, ...]
    blocks: tuple[tuple[tuple[tuple[int, ...], int], ...], ...]
    axes: tuple[tuple[str, ...], ...] = ()
    generators: tuple[tuple[int, ...], ...] = ()

    @property
    def size(self) -> int:
        """The number of members."""
        return len(self.members)


def place_axes(table: Tensor, at: list[int], rank: int) -> Tensor:
    """A table, reshaped so that its dimensions are at positions `at` of a tensor of `rank` dimensions."""
    order = sorted(range(len(at)), key=lambda i: at[i])
    shape = [1] * rank
    for i in order:
        shape[at[i]] = table.shape[i]
    return table.permute(order).reshape(shape)


def as_blocks(
    tensor: str, shape: tuple[int, ...], found: Iterable[tuple[Span, ...]], names: Mapping[Atom, str]
) -> Iterator[Block]:
    """Blocks of a tensor from the spans of its dimensions; leaves without a name become plain sizes."""
    steps = [1] * len(shape)
    for d in range(len(shape) - 2, -1, -1):
        steps[d] = steps[d + 1] * shape[d + 1]
    for block in found:
        offset = sum(span.start * step for span, step in zip(block, steps, strict=True))
        strides = tuple(s * step for span, step in zip(block, steps, strict=True) for s in span.strides)
        leaves = tuple(names.get(leaf, leaf.size) for span in block for leaf in span.leaves)
        dims = tuple(d for d, span in enumerate(block) for _ in span.leaves)
        yield Block(tensor, offset, strides, leaves, dims)
