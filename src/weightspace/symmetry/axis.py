"""The parts of a symmetry group as data: axes of units, the tensor dimensions that they index, and kinds of moves."""

from __future__ import annotations

from dataclasses import dataclass

from weightspace.net.public import public

__all__ = ["Axis", "Block", "Generator", "Place"]


KINDS = ("permutation", "scale", "sign")


@public
@dataclass(frozen=True)
class Axis:
    """A set of `size` hidden units that move together in every tensor that they index.

    `over`: names of the outer axes on whose index the move may depend (channels inside a head over heads), outermost
    first. `kinds`: which of "permutation", "scale", "sign" the units admit; empty for a fixed index.

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


@public
@dataclass(frozen=True)
class Place:
    """One occurrence of an axis: leaf number `leaf` of block number `block` of the group."""

    block: int
    leaf: int


@public
@dataclass(frozen=True)
class Generator:
    """A scale or sign symmetry of one axis: factors f > 0 ("scale") or f = +-1 ("sign") on its units.

    Each place is multiplied by f^exponent. `evaluation`: it changes running statistics, so it holds in evaluation mode
    only.
    """

    axis: str
    kind: str
    exponents: tuple[tuple[Place, float], ...]
    evaluation: bool = False
