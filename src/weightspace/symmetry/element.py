"""The elements of a symmetry group, and their action on weights.

An `Element` holds a permutation for every axis, factors or a matrix for every generator, and an order of the parts,
which acts first; it acts linearly:
(g w)[.., x, ..] = prod_k f_k[x]^e_k w[.., p[x], ..], or sum_y M[x, y] w[.., p[y], ..].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar, overload

import torch
from torch import Tensor

from weightspace.net.errors import SymmetryError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.symmetry.axis import MATRICES, Axis, Block, place_axes
from weightspace.symmetry.fold import copied, factors_between, gains_of, kept_values, multiplied, values_at
from weightspace.symmetry.layout import Layout
from weightspace.symmetry.matrix import inverse, turned

__all__ = ["Element"]


@public(grad=False)
@dataclass(frozen=True)
class Element:
    """One element g of the group: a permutation of every axis, then factors for its scales and signs, or matrices.

    `permutations[axis]` has shape (outer sizes.., size): unit x of the result is unit p[.., x] of the argument;
    `factors[k]`, of the same shape, belongs to generator k; a matrix has the shape (outer sizes.., size, size).
    `exchanges[name]`: member i of an exchange is member p[i] of the argument; those that stay may be left out.
    `g(net)`, `g(weights)`, `g.inverse()`, `g @ h`. Raises `SymmetryError` for a network of another architecture.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> group = ws.Symmetry.of(net, task.example(2))
    >>> g = group.sample(seed=0)
    >>> round(float((g.inverse()(g(net)) - net).norm()), 3), (g @ g.inverse()).difference(group.identity())
    (0.0, 0.0)
    """

    group: Layout
    permutations: Mapping[str, Tensor]
    factors: Mapping[int, Tensor] = field(default_factory=dict)
    exchanges: Mapping[str, Tensor] = field(default_factory=dict)

    @overload
    def __call__(self, point: Net) -> Net: ...
    @overload
    def __call__(self, point: Weights) -> Weights: ...
    def __call__(self, point: Net | Weights) -> Net | Weights:
        """The action g w. A Net moves with its buffers; Weights move linearly.

        Rotations act where the gains of norms are one: a Net is folded, turned, and unfolded to the gains that it had.
        """
        if not isinstance(point, Weights):
            self.group.check(point)
            move = self.on(point)
            return Net(point.architecture, self._moved(point.weights, move), self._moved(point.state, move))
        return self._moved(point, lambda name, tensor: self.move(name, tensor, point.__getitem__))

    def _moved(self, point: Weights, move: Callable[[str, Tensor], Tensor]) -> Weights:
        new = point.clone()
        for name in self.group.tensors:
            if name in new:
                new[name].copy_(move(name, point[name]))
        return new

    def on(self, net: Net, like: Net | None = None) -> Callable[[str, Tensor], Tensor]:
        """The action on a network, tensor by tensor: a function of a name and the tensor of that name.

        With `like`, gains of norms that can be folded and places without effect become those of that network.
        """
        turned = {place for k in self.factors for place in self.group.generators[k].uniform if self.is_matrix(k)}
        if like is None and all(_is_uniform(values_at(self.group, net, place)) for place in turned):
            return partial(self.move, others=net.tensors.__getitem__) if self.exchanges else self.move
        gains = gains_of(self.group, net.tensors.__getitem__)
        order = Element(self.group, self.permutations, {}, self.exchanges)
        ordered = lambda name: order.move(name, net.tensors[name], net.tensors.__getitem__)  # noqa: E731
        tensors = like.tensors.__getitem__ if like is not None else ordered
        before = factors_between(self.group, gains, None)
        even = {place: torch.ones_like(gain) for place, gain in gains.items()}
        after = factors_between(self.group, even, gains_of(self.group, tensors))
        values = kept_values(self.group, like)
        met, left = ({self.group.blocks[place.block].tensor for place in factors} for factors in (before, after))

        def folded(name: str, tensor: Tensor) -> Tensor:
            wide = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
            return multiplied(self.group, name, wide, before) if name in met else wide

        others = (lambda name: folded(name, net.tensors[name])) if self.exchanges else None  # or the network is kept

        def move(name: str, tensor: Tensor) -> Tensor:
            moved = self.move(name, folded(name, tensor), others)
            moved = multiplied(self.group, name, moved, after) if name in left else moved
            return copied(self.group, name, moved, values).to(tensor.dtype)

        return move

    def move(
        self, name: str, tensor: Tensor, others: Callable[[str], Tensor] | None = None, cut: int | None = None
    ) -> Tensor:
        """The action on the one tensor of that name; `others`: the tensors of other names, which exchanges need.

        `cut`: the tensor is a part along that dimension, one of `group.whole_dims(name)`; without exchanges.
        """
        shape, source = self.group.shapes[name], tensor.detach().contiguous()
        if cut is None:
            self.group.expect(name, tensor)
        target = torch.empty_like(source)
        for number, whole in self.group.blocks_of(name):
            block = whole if cut is None else whole.part(cut, shape, tensor.shape[cut])
            place = self.group.view(block, target)
            content = self._content(number, source, others) if cut is None else self.group.view(block, source)
            self._gather(content, block.leaves, place)
            for leaf in range(len(block.leaves)):
                factor = self._factor(number, leaf)
                if factor is not None:
                    place.mul_(self.group.spread(factor.to(place), block, leaf))
            if turns := self._turns(number, block):
                place.copy_(turned(place, turns))
        return target

    def _content(self, number: int, source: Tensor, others: Callable[[str], Tensor] | None) -> Tensor:
        """A view of the block from which exchanges take the content of block `number`, a part of `source`."""
        block, own = self.group.blocks[self.source(number)], self.group.blocks[number].tensor
        if block.tensor != own:
            if others is None:
                raise SymmetryError(f"{own} takes the place of {block.tensor}, which must be given too")
            source = others(block.tensor).detach().to(source).contiguous()
        return self.group.view(block, source)

    def source(self, number: int) -> int:
        """The number of the block from which exchanges take the content of block `number`."""
        for name, order in self.exchanges.items():
            if number in self.group.traded[name]:
                blocks, members = self.group.traded[name][number]
                number = blocks[tuple(int(order[i]) for i in members)]
        return number

    def _traded(self, other: Element) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """Permutations and factors of another element as they act after the exchanges of this: at the new member."""
        new, scaled = dict(other.permutations), dict(other.factors)
        for name, order in self.exchanges.items():
            exchange = self.group.exchange(name)
            new = _renumbered(new, exchange.axes, order)
            scaled = _renumbered(scaled, exchange.generators, order)
        return new, scaled

    def _turns(self, number: int, block: Block) -> list[tuple[Tensor, float, list[int]]]:
        """The matrices that act on a block, their exponents, and the dimensions (outer.., own) that they act on."""
        return [
            (self.factors[k], exponent, self.group.dims_of(block, leaf))
            for leaf in range(len(block.leaves))
            for k, exponent in self.group.exponents_at.get((number, leaf), ())
            if k in self.factors and self.is_matrix(k)
        ]

    def _gather(self, value: Tensor, leaves: tuple[str | int, ...], out: Tensor | None = None) -> Tensor:
        """A view of a block with its units in their new places, written to `out` if that is given."""
        order = sorted(
            (k for k, axis in enumerate(leaves) if axis in self.permutations),
            key=lambda k: len(self.group[str(leaves[k])].over),
        )
        for k in order:
            name, to = str(leaves[k]), out if k == order[-1] else None
            table = self.permutations[name].to(value.device)
            if not self.group[name].over:
                value = torch.index_select(value, k, table, out=to)
                continue
            at = [leaves.index(outer) for outer in self.group[name].over]
            value = torch.gather(value, k, place_axes(table, [*at, k], value.dim()).expand(value.shape), out=to)
        return value if order or out is None else out.copy_(value)

    def _factor(self, block: int, leaf: int) -> Tensor | None:
        total = None
        for k, exponent in self.group.exponents_at.get((block, leaf), ()):
            if k in self.factors and self.group.generators[k].kind not in MATRICES:
                power = self.factors[k] ** exponent
                total = power if total is None else total * power
        return total

    def inverse(self) -> Element:
        """The inverse element g^-1."""
        if self.exchanges:
            first = Element(self.group, {}, {}, {name: order.argsort() for name, order in self.exchanges.items()})
            return first @ Element(self.group, self.permutations, self.factors).inverse()
        tables: dict[str, Tensor] = {}
        for axis in sorted(self.group.every, key=lambda a: len(a.over)):
            if axis.name in self.permutations:
                back = Element(self.group, tables)
                tables[axis.name] = back._outer(axis, self.permutations[axis.name].argsort(-1))
        back = Element(self.group, tables)
        factors = {k: back._carried(k, inverse(f) if self.is_matrix(k) else 1 / f) for k, f in self.factors.items()}
        return Element(self.group, tables, factors)

    def __matmul__(self, other: Element) -> Element:
        """The product: (g h) w = g (h w)."""
        traded, scaled = self._traded(other)
        tables = dict(self.permutations)
        for name, table in traded.items():
            tables[name] = self._carry(name, table)
        factors = dict(self.factors)
        for k, factor in scaled.items():
            moved = self._carried(k, factor)
            if k in factors:
                moved = factors[k] @ moved if self.is_matrix(k) else factors[k] * moved
            factors[k] = moved
        orders = dict(self.exchanges)
        for name, order in other.exchanges.items():
            orders[name] = order[orders[name]] if name in orders else order
        return Element(self.group, tables, factors, orders)

    def is_matrix(self, k: int) -> bool:
        """Whether generator k moves by matrices."""
        return self.group.generators[k].kind in MATRICES

    def _carried(self, k: int, factor: Tensor) -> Tensor:
        """Factors or matrices of generator k, moved as the weights move."""
        axis = self.group[self.group.generators[k].axis]
        return self._gather(factor, (*axis.over, *[axis.name] * (2 if self.is_matrix(k) else 1)))

    def _carry(self, name: str, table: Tensor) -> Tensor:
        """Move an array indexed by (outer axes.., axis) as the weights move."""
        axis = self.group[name]
        return self._gather(table, (*axis.over, name))

    def _outer(self, axis: Axis, table: Tensor) -> Tensor:
        return self._gather(table, (*axis.over, axis.size))

    def difference(self, other: Element) -> float:
        """Fraction of units, and of members of exchanges, that the two elements send to different places."""
        wrong = total = 0
        for exchange in self.group.exchanges:
            still = torch.arange(exchange.size)
            mine, theirs = (g.exchanges.get(exchange.name, still) for g in (self, other))
            wrong, total = wrong + int((mine != theirs).sum()), total + exchange.size
        for name, table in self.permutations.items():
            theirs = other.permutations.get(name, self.group.still()[name])
            wrong += int((table != theirs).sum())
            total += table.numel()
        return wrong / max(total, 1)

    def __repr__(self) -> str:
        still = self.group.still()
        moved = sum(int((t != still[n]).sum()) for n, t in self.permutations.items())
        traded = sum(int((order != torch.arange(len(order))).sum()) for order in self.exchanges.values())
        also = f", {traded} parts exchanged" if traded else ""
        return f"Element({moved} units permuted, {len(self.factors)} of {len(self.group.generators)} factors{also})"


_K = TypeVar("_K", str, int)


def _renumbered(values: Mapping[_K, Tensor], classes: Iterable[Sequence[_K]], order: Tensor) -> dict[_K, Tensor]:
    """Values at the members of every class, moved as an order moves the members."""
    new = dict(values)
    for members in classes:
        for i, member in enumerate(members):
            new.pop(member, None)
            if (source := members[int(order[i])]) in values:
                new[member] = values[source]
    return new


def _is_uniform(gain: Tensor) -> bool:
    return float(gain.max() - gain.min()) <= 1e-12 * float(gain.abs().max())
