"""The same function in a wider architecture: units duplicated, and what reads them shared out among the copies.

Definition. A unit j of an axis becomes the units i with s(i) = j. Wherever a tensor is indexed by the axis, unit i gets
the numbers of unit s(i); at the places that read the axis (see `readers`) they are multiplied by shares c_i >= 0 with
sum_{s(i)=j} c_i = 1. Then f is the same function (Chen, Goodfellow and Shlens, "Net2Net: accelerating learning via
knowledge transfer", 2016; there for layers one by one, here for any axis of permutations that a group has).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from weightspace.constraints.constraining import kinds_of
from weightspace.net.errors import WeightspaceError, first_line
from weightspace.net.inputs import carried
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.net.seeds import derived
from weightspace.net.state import math_attention, settled
from weightspace.symmetry.axis import Axis, Block, Place, place_axes
from weightspace.symmetry.group import Group
from weightspace.symmetry.larger import enlarged
from weightspace.symmetry.layout import Layout
from weightspace.symmetry.probe import floating
from weightspace.symmetry.read import Draft, label
from weightspace.symmetry.readers import Readers, find_readers

__all__ = ["New", "Widening", "difference", "shared", "widen", "widening"]


_EXACT = 1e-9
New = Literal["copies", "zeros"]


@public
def widen(net: Net, to: float | Mapping[str, int] | Net, example: Any, *, new: New = "copies", seed: int = 0) -> Net:
    """The same function in a wider architecture: f(widened, x) = f(net, x), checked in float64.

    `to`: a factor for all axes of hidden units (of axes inside of others, as channels in heads, the outer ones grow);
    new sizes of axes by their names (`Symmetry.of(net, example).axes`); or a network or module of the wider
    architecture, whose numbers are not used. `example`: an input, on which the axes are read. `new`: "copies" of units,
    drawn from `seed`, read with random shares that add up to one, so that gradients do not keep the copies equal; or
    "zeros", random units that are read with weight zero (of an axis that a norm averages, all are copies).

    Raises `WeightspaceError` for sizes that shrink, axes that are not there, architectures that are not a widening of
    that of `net`, and axes of which no parameter can take shares, as where a weight is tied to its transpose.

    >>> import torch
    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> wide = ws.widen(net, 2, task.example(2))
    >>> net.weights["1.weight"].shape, wide.weights["1.weight"].shape
    (torch.Size([16, 64]), torch.Size([32, 64]))
    >>> x = task.example(9)
    >>> torch.allclose(wide(x), net(x), atol=1e-5)
    True
    """
    found = widening(net, to, example)
    return found.drawn(new, seed).checked(net, example).of(net)


@dataclass(frozen=True)
class Widening:
    """How the units of a network stand in a wider architecture.

    `small`, `large`: where the axes lie, block by block the same; `places`: the places that read. `tables[axis][.., i]`
    is the unit s(i) that unit i copies, `shares[axis][.., i]` its share. `rooted`: axes of which every place takes the
    root of the share, as tied weights do; `scaled`: axes of queries and keys, whose products are divided by the root of
    their number; `whole`: axes without shares, since a softmax makes them. `fresh`: the seed of new units that copy
    none.
    """

    target: Net
    small: Layout
    large: Layout
    readers: Readers
    tables: Mapping[str, Tensor] = field(default_factory=dict)
    shares: Mapping[str, Tensor] = field(default_factory=dict)
    rooted: frozenset[str] = frozenset()
    scaled: frozenset[str] = frozenset()
    whole: frozenset[str] = frozenset()
    fresh: int | None = None

    @property
    def grown(self) -> list[Axis]:
        """The axes of the wider architecture that have more units, outer ones first."""
        every = sorted(self.large.every, key=lambda a: len(a.over))
        return [axis for axis in every if any(self.large[n].size > self.small[n].size for n in (axis.name, *axis.over))]

    def drawn(self, new: New, seed: int) -> Widening:
        """With units to copy and shares drawn from a seed."""
        generator = torch.Generator().manual_seed(seed)
        tables, shares = {}, {}
        for axis in self.grown:
            even, size = axis.name in self.readers.even, self.small[axis.name].size
            rows = math.prod(self.large.sizes(axis)[:-1])
            drawn = [_copied(axis.size, size, generator) for _ in range(rows)]
            table = torch.stack(drawn).reshape(self.large.sizes(axis))
            tables[axis.name] = table
            weight = 0.5 + torch.rand(table.shape, generator=generator, dtype=torch.float64)
            if new == "zeros" and not even:
                weight[..., size:] = 0.0
            shares[axis.name] = shared(table, weight, size)
        fresh = seed if new == "zeros" else None
        return replace(self, tables=tables, shares=shares, fresh=fresh)

    def moved(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor of that name in the wider architecture."""
        shape = self.large.shapes.get(name)
        if shape is None:
            return tensor
        source, target = tensor.detach().contiguous(), tensor.new_zeros(shape)
        noise = torch.Generator().manual_seed(derived(self.fresh or 0, "units", name))
        for before, number, after in self._pairs(name):
            view = self.gathered(self.small.view(before, source), after)
            for leaf, axis in enumerate(after.leaves):
                if axis in self.shares and axis in self.tables:
                    view = self.weighted(view, number, leaf, after, noise)
            self.large.view(after, target).copy_(view)
        return target

    def _pairs(self, name: str) -> Iterator[tuple[Block, int, Block]]:
        for (_, before), (number, after) in zip(self.small.blocks_of(name), self.large.blocks_of(name), strict=True):
            yield before, number, after

    def gathered(self, view: Tensor, block: Block) -> Tensor:
        """A block of the narrow network with its units copied."""
        met = [k for k, axis in enumerate(block.leaves) if axis in self.tables]
        for k in sorted(met, key=lambda k: len(self.large[str(block.leaves[k])].over)):
            axis = self.large[str(block.leaves[k])]
            table = self.tables[axis.name].to(view.device)
            if not axis.over:
                view = view.index_select(k, table)
                continue
            at = [block.leaves.index(outer) for outer in axis.over]
            shape = [*view.shape]
            shape[k] = axis.size
            view = torch.gather(view, k, place_axes(table, [*at, k], view.dim()).expand(shape))
        return view

    def weighted(
        self, view: Tensor, number: int, leaf: int, block: Block, noise: torch.Generator | None = None
    ) -> Tensor:
        """A block with the shares of one axis, where it is read; or with fresh numbers of new units, where not."""
        name = str(block.leaves[leaf])
        share = self.shares[name]
        if name in self.whole:
            return view
        if Place(number, leaf) in self.readers.places.get(name, ()) or name in self.rooted:
            power = 0.5 if name in self.rooted else 1.0
            factor = share**power
            if name in self.scaled:
                factor = factor * math.sqrt(self.large[name].size / self.small[name].size)
            return view * self.large.spread(factor.to(view), block, leaf)
        if (
            noise is None
            or self.fresh is None
            or block.tensor not in self.target.weights
            or not bool((share == 0).any())
        ):
            return view
        drawn = torch.randn(view.shape, generator=noise, dtype=torch.float64).to(view) * view.std(correction=0)
        return torch.where(self.large.spread((share == 0).to(view.device), block, leaf), drawn, view)

    def of(self, net: Net) -> Net:
        """The network in the wider architecture, not checked."""
        tensors = {}
        for name, old in self.target.tensors.items():
            given = net.tensors[name]
            tensors[name] = self.moved(name, given) if name in self.large.shapes else given.to(old.dtype)
        return self.target.load(tensors)

    def narrowed(self, wide: Net, net: Net) -> Net:
        """A network of the wider architecture in that of `net`, units of one table entry merged: undoes `of`."""
        tensors = {}
        for name, old in net.tensors.items():
            given = wide.tensors[name]
            if name in self.small.shapes:
                source, given = given.detach().contiguous(), given.new_zeros(self.small.shapes[name])
                for before, number, after in self._pairs(name):
                    self.small.view(before, given).copy_(self._merged(self.large.view(after, source), number, after))
            tensors[name] = given.to(old.dtype)
        return net.load(tensors)

    def _merged(self, view: Tensor, number: int, block: Block) -> Tensor:
        """A block of the wide network: what makes units averaged with their shares, what reads them summed."""
        met = [k for k, axis in enumerate(block.leaves) if axis in self.tables]
        for k in sorted(met, key=lambda k: -len(self.large[str(block.leaves[k])].over)):
            axis, view = self.large[str(block.leaves[k])], self._apportioned(view, number, k, block)
            size = self.small[axis.name].size
            at = [block.leaves.index(outer) for outer in axis.over]
            table = place_axes(self.tables[axis.name].to(view.device), [*at, k], view.dim()).expand(view.shape)
            shape = [*view.shape]
            shape[k] = size
            view = view.new_zeros(shape).scatter_add_(k, table, view)
        return view

    def _apportioned(self, view: Tensor, number: int, leaf: int, block: Block) -> Tensor:
        """A block times what each unit of one axis gives to the unit that it is merged into."""
        name = str(block.leaves[leaf])
        share = self.shares[name].clamp(min=0)
        share = shared(self.tables[name], share + 1e-12, self.small[name].size)
        if name in self.rooted:
            share = share.sqrt()
        elif Place(number, leaf) in self.readers.places.get(name, ()) and name not in self.whole:
            share = torch.ones_like(share)
        if name in self.scaled and Place(number, leaf) in self.readers.places.get(name, ()):
            share = share / math.sqrt(self.large[name].size / self.small[name].size)
        return view * self.large.spread(share.to(view), block, leaf)

    def checked(self, net: Net, example: Any) -> Widening:
        """The first of the ways to share under which the wide network has the function of the narrow one.

        Raises `WeightspaceError` where there is none.
        """
        trouble: list[str] = []
        for way in self._ways():
            trouble.append(way.difference(net, example))
            if not trouble[-1]:
                return way
        unread = {axis: op for axis, op in self.readers.unread.items() if axis in {a.name for a in self.grown}}
        why = ", ".join(f"{axis} in {op}" for axis, op in unread.items()) or trouble[0]
        raise WeightspaceError(
            f"the wider network would not be the same function ({why}); widen other axes, by their names, or untie "
            "weights that both make units and read them"
        )

    def _ways(self) -> Iterator[Widening]:
        """Itself, then with other shares: of queries and keys, under a softmax, and roots where weights are tied."""
        grown, readers = {axis.name for axis in self.grown}, self.readers
        options = [
            [frozenset[str](), *([frozenset(found)] if (found := some & grown) else [])]
            for some in (readers.dots, readers.weighed, readers.tied | readers.unread.keys())
        ]
        for scaled, whole, rooted in product(*options):
            yield replace(self, scaled=scaled, whole=whole, rooted=rooted)

    def difference(self, net: Net, example: Any) -> str:
        """What differs between the network, or one with noise added, and the wide one; "" where nothing does."""
        wide = replace(self, target=self.target.double())
        return difference(net, wide.of, example)


def difference(net: Net, larger: Callable[[Net], Net], example: Any) -> str:
    """What differs in float64 between `net`, or one with noise added, and the larger one; "" where nothing does."""
    own, noise = net.double(), torch.Generator().manual_seed(0)
    shaken = {
        n: t + 0.1 * t.std(correction=0) * torch.randn(t.shape, generator=noise, dtype=torch.float64).to(t)
        for n, t in own.weights.items()
        if t.is_floating_point() and t.numel() > 1
    }
    with settled(torch.float64), math_attention():
        for one in (own, own.at(own.weights.replace(shaken))):
            x = carried(example, one)
            for given in (x, pytree.tree_map(_other, x)):
                pairs = zip(floating(one(given)), floating(larger(one)(given)), strict=True)
                far = max((_relative(a, b) for a, b in pairs), default=0.0)
                if not far <= _EXACT:
                    return f"outputs differ by {far:.1e} of their size"
    return ""


def widening(net: Net, to: float | Mapping[str, int] | Net, example: Any) -> Widening:
    """How the architecture of `net` lies in a wider one, without tables; see `widen`. Raises `WeightspaceError`."""
    net = checked(net)
    if isinstance(to, bool):
        raise WeightspaceError(f"a width of {to}; give a factor, sizes of axes by name, or a wider network")
    if kinds := kinds_of(net):
        name, kind = next(iter(kinds.items()))
        raise WeightspaceError(f"{name} is constrained ({kind}); widen constraints.released(net), and constrain that")
    example = carried(example, net)
    graph, draft = label(net, example)
    small = draft.group(Group, ())
    if isinstance(to, Net):
        target = to.to(net.dtype)
        for name in net.tensors.keys() ^ target.tensors.keys():
            raise WeightspaceError(f"{_wide(target)} is not a widening of this network: only one of them has {name}")
        large = label(target, example)[1].group(Group, ())
        _check(small, large, net, target)
    else:
        target, large = _built(net, draft, small, _sizes(small, to), example)
    return Widening(target, small, large, find_readers(graph, draft, small))


def _built(net: Net, draft: Draft, small: Layout, options: list[dict[str, int]], example: Any) -> tuple[Net, Group]:
    """The wider architecture and its layout, for the first sizes that the module takes. Raises `WeightspaceError`."""
    why = "it has no axis of hidden units"
    for sizes in options:
        try:
            target = Net.of(enlarged(net, draft, sizes))
            large = label(target, example)[1].group(Group, ())
            _check(small, large, net, target)
            wrong = [n for n, size in sizes.items() if large[n].size != size]
            if not wrong:
                return target, large
            trouble = f"{wrong[0]} came out with {large[wrong[0]].size} units"
        except (RuntimeError, ValueError, AssertionError) as error:
            trouble = first_line(error).split(";")[0]
        why = trouble if sizes is options[0] else why
    name = type(net.architecture).__name__
    raise WeightspaceError(f"a wider {name} cannot be made from this module ({why}); build it, and give it as to=")


def shared(table: Tensor, weight: Tensor, size: int) -> Tensor:
    """Weights divided by their sums over the units of equal table entries, row by row."""
    total = torch.zeros((*table.shape[:-1], size), dtype=weight.dtype).scatter_add_(-1, table, weight)
    return weight / total.gather(-1, table)


def _sizes(layout: Layout, to: float | Mapping[str, int]) -> list[dict[str, int]]:
    """The new sizes of axes; for a factor several that may be meant. Raises `WeightspaceError`."""
    moving = {axis.name: axis for axis in layout.axes}
    if isinstance(to, Mapping):
        for name, size in to.items():
            if name not in moving:
                raise WeightspaceError(f"no axis {name!r}; the axes are {', '.join(list(moving)[:8]) or 'none'}")
            if size < moving[name].size:
                raise WeightspaceError(f"{name} has {moving[name].size} units, {size} are fewer; give at least as many")
        return [dict(to)]
    if not 1 <= to < math.inf:
        raise WeightspaceError(f"a factor of {to:g} makes the network narrower; give a factor from 1")
    if not moving:
        raise WeightspaceError("the network has no axis of hidden units that could be widened")
    outer = {name for axis in moving.values() for name in axis.over if name in moving}
    inner = {axis.name for axis in moving.values() if outer & {*axis.over}}
    chosen = [moving.keys() - inner, moving.keys() - outer, moving.keys() - inner - outer]
    return [{name: round(moving[name].size * to) for name in moving if name in some} for some in chosen if some]


def _check(small: Layout, large: Layout, net: Net, target: Net) -> None:
    """Raise `WeightspaceError` unless the axes of one lie in its tensors as those of the other do, and are larger."""
    for name in net.tensors:
        ours, theirs = ([(b.leaves, b.dims) for _, b in g.blocks_of(name)] for g in (small, large))
        if ours != theirs or (name not in small.shapes and net.tensors[name].shape != target.tensors[name].shape):
            shapes = " and ".join(str(tuple(n.tensors[name].shape)) for n in (net, target))
            raise WeightspaceError(f"{_wide(target)} is not a widening of this network: {name} has shapes {shapes}")
    for axis in small.every:
        wide = large[axis.name]
        if wide.size < axis.size:
            raise WeightspaceError(f"{axis.name} has {axis.size} units, {wide.size} in the other; give a wider network")
        if wide.size > axis.size and not axis.kinds:
            raise WeightspaceError(f"{axis.name} cannot be widened: {small.pinned.get(axis.name, 'its units stay')}")


def _wide(target: Net) -> str:
    return type(target.architecture).__name__


def _copied(size: int, units: int, generator: torch.Generator) -> Tensor:
    """All units once, and then copies of some, each as often as any other up to one."""
    table = [torch.arange(units)]
    for start in range(units, size, units):
        table.append(torch.randperm(units, generator=generator)[: size - start])
    return torch.cat(table)


def _other(value: Any) -> Any:
    """Another input of the same form: floating-point numbers are changed, others stay."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    noise = torch.Generator().manual_seed(1)
    return value + torch.randn(value.shape, generator=noise, dtype=torch.float64).to(value)


def _relative(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return math.inf
    return float((a - b).norm() / a.norm().clamp(min=1e-30)) if a.numel() else 0.0
