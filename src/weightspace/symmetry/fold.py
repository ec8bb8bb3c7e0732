"""Folding: the gains of norms moved into the linear maps that read them, so that rotations of the stream are exact.

y = W (g * n(x) + s) + b = (W diag g) (n(x) + s / g) + b: the gain becomes one, shapes stay, the function too. Folding
is a choice of scales and signs within the group: a gain that no scale of the group moves alone (of a last norm before a
head that is tied to the embedding) stays, and with it the axis keeps its permutations only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weightspace.net.errors import SymmetryError
from weightspace.net.net import Net
from weightspace.symmetry.axis import Generator, Place
from weightspace.symmetry.group import Element, Group

__all__ = ["fold", "values_at"]


def fold(group: Group, net: Net, like: Net | None = None) -> Net:
    """The same function with every gain of `group.gauge` at one, or at those of `like`; places without effect at zero.

    Raises `SymmetryError` for a gain that is zero, which loses what it multiplies.
    """
    group.check(net)
    factors: dict[int, Tensor] = {}
    for k, generator in enumerate(group.gauge):
        (place,) = generator.uniform
        gain = values_at(group, net, place).double()
        target = torch.ones_like(gain) if like is None else values_at(group, like, place).double()
        if bool((gain * target == 0).any()) or not bool((gain * target).isfinite().all()):
            name = group.blocks[place.block].tensor
            raise SymmetryError(
                f"{name} is zero or not finite for some unit, which cannot be folded into what reads it"
            )
        ratio = target / gain
        factors[k] = ratio.sign() if generator.kind == "sign" else ratio.abs() ** (1 / _exponent(generator, place))
    own = Group(group.every, group.blocks, group.gauge, group.shapes, state=group.state, fingerprint=group.fingerprint)
    return _settled(group, Element(own, {}, factors)(net) if factors else net, like)


def _settled(group: Group, net: Net, like: Net | None) -> Net:
    """Gains at exactly what they are to be, free of rounding; places without effect at zero, or as in `like`."""
    exact = [(generator.uniform[0], 1.0) for generator in group.gauge]
    places = [*exact, *((place, 0.0) for place in group.free)]
    if not places:
        return net
    new = net.clone()
    for place, number in places:
        values_at(group, new, place).copy_(torch.tensor(number) if like is None else values_at(group, like, place))
    return new


def values_at(group: Group, net: Net, place: Place) -> Tensor:
    """The block of a place, as a view of the tensor of the network."""
    block = group.blocks[place.block]
    return group.view(block, net.tensors[block.tensor].detach())


def _exponent(generator: Generator, place: Place) -> float:
    return dict(generator.exponents)[place]
