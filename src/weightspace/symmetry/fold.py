"""Folding: the gains of norms moved into the linear maps that read them, so that rotations of the stream are exact.

y = W (g * n(x) + s) + b = (W diag g) (n(x) + s / g) + b: the gain becomes one, shapes stay, the function too. Of a gain
1 + w the stored w becomes zero. Folding
is a choice of scales and signs within the group: a gain that no scale of the group moves alone (of a last norm before a
head that is tied to the embedding) stays, and with it the axis keeps its permutations only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from weightspace.net.errors import SymmetryError
from weightspace.net.net import Net
from weightspace.symmetry.axis import Block, Generator, Place

__all__ = [
    "Factors",
    "copied",
    "factors_between",
    "fold",
    "fold_in_place",
    "gains_of",
    "kept_values",
    "multiplied",
    "values_at",
]


Factors: TypeAlias = dict[Place, Tensor]  # what the units at a place are multiplied by


@runtime_checkable
class Gauged(Protocol):
    """What is asked of a group: the scales and signs that folding uses, and its blocks."""

    gauge: tuple[Generator, ...]
    free: tuple[Place, ...]
    blocks: tuple[Block, ...]

    def check(self, net: Net) -> None:
        """Raise `SymmetryError` unless the group belongs to this net's architecture."""
        ...

    def blocks_of(self, name: str) -> list[tuple[int, Block]]:
        """The numbered blocks of a tensor."""
        ...

    def view(self, block: Block, tensor: Tensor) -> Tensor:
        """The block of a contiguous tensor, one dimension per leaf."""
        ...

    def spread(self, table: Tensor, block: Block, leaf: int) -> Tensor:
        """A table on the axis at `leaf`, shaped to multiply the view of the block."""
        ...


def fold(group: Gauged, net: Net, like: Net | None = None) -> Net:
    """The same function with every gain of `group.gauge` at one, or at those of `like`; places without effect at zero.

    Raises `SymmetryError` for a gain that is zero, which loses what it multiplies.
    """
    for each in [net] if like is None else [net, like]:
        group.check(each)
    if like is None and all(bool((values_at(group, net, p) == number).all()) for p, number in _folded(group).items()):
        return net
    new = net.clone()
    fold_in_place(group, new.tensors, like)
    return new


def fold_in_place(group: Gauged, tensors: Mapping[str, Tensor], like: Net | None = None) -> None:
    """The same for the tensors of a network, in place."""
    now = gains_of(group, tensors.__getitem__)
    wanted = None if like is None else gains_of(group, like.tensors.__getitem__)
    factors = factors_between(group, now, wanted)
    for name in dict.fromkeys(group.blocks[place.block].tensor for place in factors):
        tensors[name].copy_(multiplied(group, name, tensors[name], factors))
    for place, number in _folded(group).items():  # free of rounding
        view = _view(group, tensors[group.blocks[place.block].tensor].detach(), place)
        view.copy_(torch.tensor(number) if like is None else values_at(group, like, place))


def _folded(group: Gauged) -> dict[Place, float]:
    """What folding sets, and to what."""
    return {**{place: 1.0 - offset for place, offset in _offsets(group).items()}, **dict.fromkeys(group.free, 0.0)}


def _offsets(group: Gauged) -> dict[Place, float]:
    """The places of gains, and what is added there to the number that is stored."""
    return {generator.uniform[0]: generator.offset for generator in group.gauge}


def gains_of(group: Gauged, tensor: Callable[[str], Tensor]) -> dict[Place, Tensor]:
    """The gains that folding sets, by their place: the numbers that are stored, or 1 + w for gains of that form."""
    return {
        place: _view(group, tensor(group.blocks[place.block].tensor), place).double() + offset
        for place, offset in _offsets(group).items()
    }


def factors_between(group: Gauged, now: Mapping[Place, Tensor], wanted: Mapping[Place, Tensor] | None) -> Factors:
    """What every place is multiplied by for gains to become those that are wanted (one), by scales and signs alone."""
    factors: Factors = {}
    for generator in group.gauge:
        place = generator.uniform[0]
        gain = now[place]
        target = torch.ones_like(gain) if wanted is None else wanted[place]
        name = group.blocks[place.block].tensor
        if not bool((gain * target).isfinite().all()):
            raise SymmetryError(f"{name} holds NaN or infinity; it cannot be folded into what reads it")
        if bool((gain * target == 0).any()):
            raise SymmetryError(
                f"{name} is zero for some unit and cannot be folded into what reads it; take group.foldable(net)"
            )
        ratio, own = target / gain, dict(generator.exponents)[place]
        unit = ratio.sign() if generator.kind == "sign" else ratio.abs() ** (1 / own)
        for met, exponent in generator.exponents:
            factor = unit**exponent
            factors[met] = factors[met] * factor if met in factors else factor
    return factors


def multiplied(group: Gauged, name: str, tensor: Tensor, factors: Factors) -> Tensor:
    """One tensor with its places multiplied by their factors, in float32 or wider."""
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    out, offsets = tensor.detach().float() if half else tensor.detach().clone().contiguous(), _offsets(group)
    for number, block in group.blocks_of(name):
        view = group.view(block, out)
        for leaf in range(len(block.leaves)):
            if (factor := factors.get(Place(number, leaf))) is not None:
                offset = offsets.get(Place(number, leaf), 0.0)
                view.add_(offset).mul_(group.spread(factor.to(view), block, leaf)).sub_(offset)
    return out.to(tensor.dtype)


def kept_values(group: Gauged, like: Net | None) -> Factors:
    """The numbers of a network at gains and at places without effect."""
    places = dict.fromkeys([*(g.uniform[0] for g in group.gauge), *group.free])
    return {} if like is None else {place: values_at(group, like, place).clone() for place in places}


def copied(group: Gauged, name: str, tensor: Tensor, values: Factors) -> Tensor:
    """A tensor with these numbers at those of the places that lie in it."""
    for place, value in values.items():
        if group.blocks[place.block].tensor == name:
            _view(group, tensor, place).copy_(value)
    return tensor


def values_at(group: Gauged, net: Net, place: Place) -> Tensor:
    """The block of a place, as a view of the tensor of the network."""
    return _view(group, net.tensors[group.blocks[place.block].tensor].detach(), place)


def _view(group: Gauged, tensor: Tensor, place: Place) -> Tensor:
    return group.view(group.blocks[place.block], tensor)
