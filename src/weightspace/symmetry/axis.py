"""The parts of a group as data: axes of units, the places that they index, blocks and kinds of moves."""

from __future__ import annotations

from dataclasses import dataclass

from weightspace.net.public import public

__all__ = ["Axis", "Block", "Generator", "Place"]


KINDS = ("permutation", "scale", "sign")


@public
@dataclass(frozen=True)
class Axis:
    """`size` units that move together wherever they are met.

    `over`: names of the outer axes on whose index the move may depend (channels inside a head over heads), outermost
    first. `kinds`: which of "permutation", "scale", "sign" the units admit; empty for a fixed index.
    """

    name: str
    size: int
    over: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()


@public
@dataclass(frozen=True)
class Block:
    """A strided view of the tensor `tensor`: `leaves` are axis names, or sizes of indices that stay.

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
    """Leaf number `leaf` of block number `block` of the group."""

    block: int
    leaf: int


@public
@dataclass(frozen=True)
class Generator:
    """Factors f > 0 ("scale") or f = +-1 ("sign") on the units of an axis: each place is multiplied by f^exponent.

    `evaluation`: it touches running statistics, so it holds in evaluation mode only.
    """

    axis: str
    kind: str
    exponents: tuple[tuple[Place, float], ...]
    evaluation: bool = False
