"""`Symmetry`: the group of moves of the weights that leave the function of a network alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from weightspace.contents import deprecated
from weightspace.net.average import average, lifted
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, checked, unfrozen
from weightspace.net.public import public
from weightspace.symmetry import saved
from weightspace.symmetry.align.features import activation_terms
from weightspace.symmetry.align.match import Match, Method, match
from weightspace.symmetry.align.merge import gather_round
from weightspace.symmetry.align.refine import refine
from weightspace.symmetry.align.repair import best_repaired
from weightspace.symmetry.align.score import Score
from weightspace.symmetry.align.widths import widen_toward
from weightspace.symmetry.balance import balance
from weightspace.symmetry.canonical import Key, canonical
from weightspace.symmetry.constrained import notes_of
from weightspace.symmetry.fold import fold
from weightspace.symmetry.group import Group
from weightspace.symmetry.read import read
from weightspace.task.task import Task

__all__ = ["Symmetry", "mean"]


_FEATURE_EXAMPLES = 512


@public
class Symmetry(Group):
    """The symmetry group of an architecture, read off its graph and verified; also aligns and normalises networks.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> group = ws.Symmetry.of(net, task.example(2))
    >>> print(group)                                                       # 16 units may be permuted and rescaled
    S16 x R+16
    >>> g = group.sample(seed=0)                                           # a random element
    >>> float((g(net)(task.example(9)) - net(task.example(9))).abs().max()) < 1e-4
    True
    >>> bool((g(net) - net).norm() > 1)
    True
    """

    @classmethod
    def of(
        cls,
        net: Net | nn.Module,
        example: Any,
        *,
        verify: bool | None = None,
        scales: bool = True,
        linear: bool = True,
        outputs_move: bool = False,
    ) -> Symmetry:
        """Read the group of any module that `torch.export` takes, on one example input, and verify every generator.

        Positive scales and signs are searched too unless `scales=False`. So are orthogonal and general linear moves,
        as of heads, of rotary pairs and of the stream of a transformer (see `fold`), unless `linear=False`. Parts of
        one form that enter one sum, product or concatenation (heads or experts in a list, branches, members) may be
        exchanged with all that is numbered as they are (see `Exchange`). `outputs_move` leaves the axes of the output
        free, to compare representations. A network on the meta device has no weights to verify with and is only read;
        with `verify=True` they are drawn at random. Internal values that a model returns beside `logits` (hidden
        states, caches) are not outputs: they are permuted along, and a note says so. Other notes say what constraints
        (see `constrain`) leave of the permutations, which `remaining` finds. Raises `SymmetryError`.
        """
        net = Net.of(net)
        group = read(net, example, into=cls, check=verify, scales=scales, linear=linear, outputs_move=outputs_move)
        notes = notes_of(net, example) if verify is not False else []
        return group.again(notes=[*group.notes, *notes]) if notes else group

    def as_json(self) -> dict[str, Any]:
        """The group as plain data: axes, places, kinds, architecture hash, how it was verified."""
        return saved.as_json(self)

    def certificate(self) -> dict[str, Any]:
        """The old name of `as_json`."""
        deprecated("Symmetry.certificate() is called as_json() now")
        return self.as_json()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `as_json()` to a file, whole or not at all."""
        saved.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Symmetry:
        """Read a group that `save` wrote; raises `SymmetryError` for any other file."""
        return saved.load(path, cls)

    def match(self, net: Net, to: Net, data: Task | None = None, method: Method = "auto", seed: int = 0) -> Match:
        """The element g that brings `net` nearest `to`; with `data`, the one with the lowest measured loss barrier.

        `data` may have no labels: then the divergence of the outputs on the line from the mixture of those of its ends
        (see `Divergence`) takes the place of the barrier. `method`: see `Match`, which says how g was found. Where the
        matchers leave a barrier, the scales of the best are refined by 300 steps of descent (see `refine`).

        >>> import weightspace as ws
        >>> net, task = ws.demo.example()
        >>> group = ws.Symmetry.of(net, task.example(2))
        >>> found = group.match(group.sample(seed=1)(net), to=net)
        >>> found.method, round(float((found.element(group.sample(seed=1)(net)) - net).norm()), 3)
        ('weights', 0.0)
        """
        group = self.foldable(net, to)
        net, to = fold(group, net), fold(group, to)
        if data is None:
            return match(group, net, to, method=method, seed=seed)
        batch = data.take(_FEATURE_EXAMPLES, seed=seed)
        features = lambda a, b: activation_terms(group, a, b, batch.example(_FEATURE_EXAMPLES))  # noqa: E731
        refined = lambda start, score: refine(group, net, to, start, data, seed=seed, score=score)  # noqa: E731
        score = Score(to, data, seed)
        return match(group, net, to, features=features, score=score, refined=refined, method=method, seed=seed)

    def align(self, net: Net, to: Net, data: Task | None = None, method: Method = "auto", seed: int = 0) -> Net:
        """The member of the orbit of `net` nearest `to`: the same function, ready to be compared or averaged.

        With `data` the network may be narrower than `to`, whose architecture the group was read from: it is widened
        first (see `widen_toward`).

        >>> import weightspace as ws
        >>> net, task = ws.demo.example()
        >>> group = ws.Symmetry.of(net, task.example(2))
        >>> copy = group.sample(seed=1)(net)                                   # units permuted and rescaled
        >>> round(float((group.align(copy, to=net) - net).norm()), 3)
        0.0
        """
        net = _at_width(self, net, to, data, seed)
        group = self.foldable(net, to)
        return fold(group, group.match(net, to, data, method, seed).element(net), like=to)

    def fold(self, net: Net, like: Net | None = None) -> Net:
        """The same function with gains of norms at one, so that what they normalise may be rotated.

        y = W (g * n(x) + s) + b = (W diag g) (n(x) + s / g) + b. Names and shapes stay. Biases without effect on the
        outputs (of keys) are set to zero. With `like` the gains become those of that network: `fold(.., like=net)`
        undoes `fold(net)`. Of gains 1 + w (Gemma) w becomes zero. A group that was read with `linear=False` folds
        nothing. Raises `SymmetryError` for a gain of zero.

        >>> import torch
        >>> import weightspace as ws
        >>> net = ws.Net.of(torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2)))
        >>> group = ws.Symmetry.of(net, torch.randn(2, 3))
        >>> print(group)                                    # rotations of 8 units that keep the vector of ones
        O7
        >>> folded = group.fold(net)
        >>> bool((folded.weights["1.weight"] == 1).all())
        True
        """
        return fold(self, net, like)

    def canonical(self, net: Net, key: Key = "norm") -> Net:
        """The canonical form of `net`: scales balanced, signs fixed, units sorted by `key`; one per orbit.

        Keys: "first" (first coordinate, ties by the next), "norm", "mean", "linear" (a random functional), or any
        function of the rows. Raises `SymmetryError` where the key is not well defined on an axis.

        >>> import weightspace as ws
        >>> net, task = ws.demo.example()
        >>> group = ws.Symmetry.of(net, task.example(2))
        >>> copy = group.sample(seed=1)(net)
        >>> round(float((group.canonical(copy) - group.canonical(net)).norm()), 3)
        0.0
        """
        return canonical(self.foldable(net), net, key)

    def balance(self, net: Net, tolerance: float = 1e-10) -> Net:
        """`net` with the least norm that positive scales reach, running statistics included: the same function.

        >>> import weightspace as ws
        >>> net, task = ws.demo.example()
        >>> group = ws.Symmetry.of(net, task.example(2))
        >>> balanced = group.balance(net)
        >>> bool(balanced.weights.norm() < net.weights.norm())
        True
        """
        return balance(self, net, tolerance)


@public
def mean(
    nets: Sequence[Net],
    group: Symmetry,
    data: Task | None = None,
    seed: int = 0,
    *,
    frozen: Literal["stay", "move"] = "stay",
) -> Net:
    """The average of networks modulo the group: (1/n) sum_i g_i w_i, every g_i w_i nearest the mean of the others.

    Networks are aligned to the first (with `data`: by the method with the lowest measured barrier), then each to the
    mean of the others until almost no unit moves. With `data` the average is repaired (BatchNorm statistics; units
    rescaled or layers refitted only if the loss falls), and the better of the two averages is kept; data without labels
    will do, and divergences then take the place of losses (see `Symmetry.match` and `repair`). The result has the
    scales and the dtypes of the first network: computed in float32 or better, whatever the dtypes of the networks, and
    rounded once at the end. Frozen weights, which must be equal in all networks, stay as they are, and so do units that
    they index; with frozen="move" they are averaged like all others. With `data` some networks may be narrower than
    those of the group's architecture; they are widened first (see `widen_toward`), and the mean is as wide as those.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> group = ws.Symmetry.of(net, task.example(2))
    >>> copy = group.sample(seed=1)(net)
    >>> round(float((ws.mean([net, copy], group) - net).norm()), 3)        # of two copies: the network itself
    0.0
    """
    if not nets:
        raise WeightspaceError("the mean of no networks; give at least one network")
    nets = [unfrozen(checked(net), frozen) for net in nets]
    for net in nets if data is None else ():
        group.check(net)
    wide = next((net for net in nets if net.fingerprint == group.fingerprint), nets[0])
    nets = [_at_width(group, net, wide, data, seed) for net in nets]
    frozen_names = _still(nets)
    group = (group.without(frozen_names) if frozen_names else group).foldable(*nets)
    many = [fold(group, net) for net in lifted(nets)]
    still = group.identity()
    star = [still, *(group.match(net, many[0], data, seed=seed).element for net in many[1:])]
    found = [star]
    if len(nets) > 2:
        near = gather_round(group, [g(net) for g, net in zip(star, many, strict=True)], seed)
        found.append([g @ h for g, h in zip(near, star, strict=True)])
    if data is None:
        middle = average(g(net.double()) for g, net in zip(found[-1], many, strict=True))
    else:
        aligned = [[g(net) for g, net in zip(elements, many, strict=True)] for elements in found]
        middle = best_repaired([(average(some), some) for some in aligned], data)
    first = nets[0]
    middle = fold(group, middle, like=first)
    return Net(first.architecture, first.weights.replace(middle.weights), first.state.replace(middle.state))


def _at_width(group: Group, net: Net, wide: Net, data: Task | None, seed: int) -> Net:
    """The network, widened to the architecture of the group where it has another one; read on `data`."""
    if data is None or checked(net).fingerprint == group.fingerprint != "":
        return net
    return widen_toward(net, wide, data.example(2), seed=seed)


def _still(nets: Sequence[Net]) -> frozenset[str]:
    """Names of the weights that are frozen in any of the networks. Raises `WeightspaceError` where they differ."""
    still = frozenset[str]().union(*(net.frozen for net in nets))
    for net in nets[1:]:
        nets[0].check(net)
        for name in still:
            if not torch.equal(nets[0].weights[name], net.weights[name]):
                raise WeightspaceError(
                    f'{name} is frozen, and differs between the networks; give frozen="move" to average it too'
                )
    return still
