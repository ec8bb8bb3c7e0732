"""What constraints leave of the permutations of a network: the renumberings of units that keep every weight's form.

A permutation of hidden units acts on the weights without constraints. It is a symmetry of the constrained network if
the weights that it gives have their forms again: cyclic shifts of a circulant weight, one order for rows and columns of
a symmetric one, nothing for an ordered or asymmetric one. Candidates come from the kinds; each is tried on random
weights of the form.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.constraints.constraining import forms, kinds_of, released, with_weights
from weightspace.constraints.form import Kind
from weightspace.constraints.matrices import LowRank
from weightspace.constraints.ordered import Ordered
from weightspace.constraints.shared import Antisymmetric, Circulant, SharedBlocks, Symmetric, Toeplitz
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.seeds import derived
from weightspace.net.state import settled
from weightspace.symmetry.element import Element
from weightspace.symmetry.group import Group
from weightspace.symmetry.read import read

__all__ = ["Renumbering", "remaining"]

_CLOSE = 1e-5  # constants of a form may have been rounded to float32


@public(grad=False)
@dataclass(frozen=True)
class Renumbering:
    """A symmetry of a constrained network that renumbers hidden units: `move(net)` has the same function.

    `name`: the group that such moves generate ("C16", "S16") and the axes of the network without constraints on which
    it acts, all at once. `element`: the move there; `order`: how often it is made until all units are back.

    >>> import torch
    >>> import weightspace as ws
    >>> module = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    >>> net = ws.constrain(ws.Net.of(module), {"0.weight": "circulant"})
    >>> [move] = ws.symmetry.remaining(net, torch.randn(3, 6))
    >>> move.name, move.order
    ('C6 on 0.weight[0]', 6)
    >>> x = torch.randn(5, 6)
    >>> bool((move(net)(x) - net(x)).abs().max() < 1e-5), bool((move(net) - net).norm() > 0.1)
    (True, True)
    """

    name: str
    element: Element
    order: int

    def __call__(self, net: Net) -> Net:
        """The network with its units renumbered, in the same constraints."""
        return with_weights(net, self.element(released(net)))


@public
def remaining(net: Net | nn.Module, example: Any) -> list[Renumbering]:
    """The renumberings of hidden units that the constraints of a network leave: generators, each found by trying it.

    `example`: inputs as for `Symmetry.of`, which lists what acts on the free parameters linearly, in blocks (units of
    other layers, GL(r) of low rank); what is here does not, and is not in that group. Candidates: all orders of an
    axis; shifts, blocks and reversals that a kind suggests; the same order on rows and columns of a square weight.

    >>> import torch
    >>> import weightspace as ws
    >>> layers = torch.nn.Linear(6, 6), torch.nn.ReLU(), torch.nn.Linear(6, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)
    >>> net = ws.constrain(ws.Net.of(torch.nn.Sequential(*layers)), {"2.weight": "symmetric"})
    >>> [move.name for move in ws.symmetry.remaining(net, torch.randn(3, 6))]
    ['S6 on 0.weight[0] and 2.weight[0]']
    """
    net = Net.of(net)
    if net.device.type == "meta" or not kinds_of(net):
        return []
    with settled(torch.float64):
        net = net.to(torch.float64)
        dense = released(net)
        group = read(dense, example, into=Group, scales=False, linear=False)
        listed = {(axis.name, axis.size) for axis in read(net, example, into=Group, scales=False).permutable()}
        return list(_Search(net, dense, group, listed).found())


def told(net: Net, moves: list[Renumbering]) -> list[str]:
    """One sentence on each constraint of a network: what is left of the permutations of its units."""
    notes = []
    for name, form in kinds_of(net).items():
        mine = [
            move.name for move in moves if name in {b.tensor for b in move.element.group.blocks} and _on(move, name)
        ]
        if mine:
            notes.append(f"{name} is {form}, which is kept by {', '.join(mine)} (see symmetry.remaining)")
        elif isinstance(form, Ordered):
            notes.append(f"{name} is {form}: no permutation of its rows is left, up to ties; scales are not looked for")
        elif not isinstance(form, LowRank):
            notes.append(f"{name} is {form}: no permutation of its rows or columns was found to keep that")
    return notes


def _on(move: Renumbering, name: str) -> bool:
    group = move.element.group
    moved = {axis for axis, order in move.element.permutations.items() if not torch.equal(order, order.sort()[0])}
    return any(group.blocks[p.block].tensor == name for axis in moved for p in group.places[axis])


class _Search:
    """Candidates for one network, tried on random weights of the forms."""

    def __init__(self, net: Net, dense: Net, group: Group, listed: Collection[tuple[str, int]]) -> None:
        self.group, self.kinds, self.listed = group, kinds_of(net), listed
        self.forms = forms(net.module())
        drawn = dense.weights.randn(derived(0, "remaining"))
        self.random = dense.at(drawn.replace({name: self._nearest(name, drawn[name]) for name in self.forms}))
        self.axes = {name: self._axes(name) for name in self.kinds}

    def _nearest(self, name: str, weight: Tensor) -> Tensor:
        with torch.no_grad():
            free = self.forms[name].right_inverse(weight)
            return self.forms[name](*(free if isinstance(free, tuple) else (free,)))

    def _axes(self, name: str) -> list[str]:
        """The axes of units that index a weight, but for those that the group of the constrained network permutes."""
        if isinstance(self.kinds[name], LowRank):
            return []
        every = [a for a in self.group.permutable() if not a.over and a.size > 1]
        plain = [a.name for a in every if (a.name, a.size) not in self.listed]
        return [a for a in plain if any(self.group.blocks[p.block].tensor == name for p in self.group.places[a])]

    def found(self) -> Iterator[Renumbering]:
        """The generators: those on one axis, then those on the rows and columns of a weight at once."""
        for axis in dict.fromkeys(a for name in self.kinds for a in self.axes[name]):
            size = self.group[axis].size
            if self._all([axis], size):
                yield self._move(f"S{size}", [axis], torch.arange(size).roll(1))
            else:
                yield from self._some([axis], self._shifts(axis, size))
        for name, form in self.kinds.items():
            both, sizes = self.axes[name], {self.group[axis].size for axis in self.axes[name]}
            if len(both) != 2 or len(sizes) != 1:
                continue
            [size] = sizes
            if isinstance(form, Symmetric | Antisymmetric) and self._all(both, size):
                yield self._move(f"S{size}", both, torch.arange(size).roll(1))
            yield from self._some(both, _mirrored(form, size, self.forms[name].shape))

    def _all(self, axes: list[str], size: int) -> bool:
        """Whether every order keeps the forms: one exchange of two units does, and so does a turn of all."""
        return self._keeps(axes, _swap(size)) and self._keeps(axes, torch.arange(size).roll(1))

    def _some(self, axes: list[str], orders: Iterable[tuple[str, Tensor]]) -> Iterator[Renumbering]:
        names = set[str]()
        for text, order in orders:
            if f"S{text[1:]}" not in names and self._keeps(axes, order):
                names |= {text} if text[0] == "S" else set()
                yield self._move(text, axes, order)

    def _shifts(self, axis: str, size: int) -> Iterator[tuple[str, Tensor]]:
        """The orders that the kinds of the weights on an axis suggest."""
        for name, form in self.kinds.items():
            met = [p for p in self.group.places[axis] if self.group.blocks[p.block].tensor == name]
            if met and isinstance(form, Circulant):
                yield from _within(form.circle(self.forms[name].shape), size)
            if met and isinstance(form, SharedBlocks):
                along = self.group.blocks[met[0].block].dims[met[0].leaf]
                yield from _within((form.columns if along else form.rows,), size)

    def _element(self, axes: list[str], order: Tensor) -> Element:
        still = self.group.still()
        return Element(self.group, {**still, **{axis: order.expand(still[axis].shape) for axis in axes}})

    def _keeps(self, axes: list[str], order: Tensor) -> bool:
        """Whether weights of the forms have them after the move, too."""
        moved = self._element(axes, order)(self.random)
        touched = [name for name in self.kinds if {*axes} & {*self.axes[name]}]
        pairs = ((moved.weights[name], self._nearest(name, moved.weights[name])) for name in touched)
        return all(bool((a - b).abs().max() <= _CLOSE * (1 + a.abs().max())) for a, b in pairs)

    def _move(self, text: str, axes: list[str], order: Tensor) -> Renumbering:
        return Renumbering(f"{text} on {' and '.join(axes)}", self._element(axes, order), _period(order))


def _swap(size: int) -> Tensor:
    order = torch.arange(size)
    order[:2] = torch.tensor([1, 0])
    return order


def _period(order: Tensor) -> int:
    """How often a permutation is made until all are back: the least common multiple of its cycles."""
    left, lengths = set(range(len(order))), [1]
    while left:
        start = at = left.pop()
        count = 1
        while (at := int(order[at])) != start:
            left.discard(at)
            count += 1
        lengths.append(count)
    return math.lcm(*lengths)


def _within(grid: tuple[int, ...], size: int) -> Iterator[tuple[str, Tensor]]:
    """Orders of an axis of blocks to try, with the name of the group that they generate, larger groups first."""
    flat = torch.arange(size).view(-1, math.prod(grid))
    count, block = flat.shape
    if block > 1 and count > 1:
        yield f"S{block}", torch.cat([flat[0][_swap(block)], flat[1:].reshape(-1)])
        yield f"S{count}", flat[_swap(count)].reshape(-1)
    if block > 1:
        yield f"S{block}", flat[:, _swap(block)].reshape(-1)
    at = flat.view(-1, *grid)
    yield from ((f"C{side}", at.roll(1, d + 1).reshape(-1)) for d, side in enumerate(grid) if side > 2 or block > 2)


def _mirrored(form: Kind, size: int, shape: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    """Reversals of rows and columns together: of all units, or along the sides of a circle."""
    if isinstance(form, Toeplitz):
        yield "S2", torch.arange(size).flip(0)
    if isinstance(form, Circulant):
        grid = form.circle(shape)
        at = torch.arange(size).view(-1, *grid)
        yield from (("S2", at.flip(d + 1).roll(1, d + 1).reshape(-1)) for d, side in enumerate(grid) if side > 2)


def notes_of(net: Net, example: Any) -> list[str]:
    """The sentences of `told` for a network with constraints; none for another one, or for one without values."""
    return told(net, remaining(net, example)) if kinds_of(net) and net.device.type != "meta" else []
