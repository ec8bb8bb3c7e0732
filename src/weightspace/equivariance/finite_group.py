"""Finite groups acting on tensors: cyclic shifts, quarter turns, reflections, permutations, any list of functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from weightspace.net.errors import WeightspaceError, first_line
from weightspace.net.public import public

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["FiniteGroup", "Matrices"]


Act: TypeAlias = Callable[[Tensor], Tensor]
_EXACT = 1e-5


@public
@dataclass(frozen=True)
class FiniteGroup:
    """A finite group acting on tensors: `actions[k]` is x -> g_k x, `table[i, j]` the number of g_i g_j, g_0 = 1.

    The actions move the last axes of a tensor; the axes before them, examples and channels, are left alone. Made by
    `shifts`, `rotations`, `dihedral`, `permutations`, or from any list of functions by `of`.

    >>> import torch, weightspace as ws
    >>> group = ws.FiniteGroup.rotations()
    >>> group
    FiniteGroup(quarter turns, 4 elements)
    >>> group(1, torch.tensor([[1, 2], [3, 4]]))
    tensor([[2, 4],
            [1, 3]])
    >>> int(group.table[1, 2]), group.inverse(1)
    (3, 3)
    """

    actions: tuple[Act, ...]
    table: Int[Tensor, "n n"]
    name: str = "group"

    @classmethod
    def of(cls, actions: Sequence[Act], example: Tensor, name: str = "group") -> FiniteGroup:
        """The group formed by a list of functions, checked on random tensors of the shape of `example`.

        The identity is put first. Raises `WeightspaceError` for functions that change the shape or act alike, and lists
        without the identity or a product of two of them.

        >>> import torch, weightspace as ws
        >>> ws.FiniteGroup.of([lambda x: x, lambda x: -x], torch.zeros(3), name="signs")
        FiniteGroup(signs, 2 elements)
        """
        given = tuple(actions)
        if not given:
            raise WeightspaceError("a group has at least one element, the identity; got none")
        probe, images = _probed(given, example)
        weight = torch.randn(probe.numel(), generator=torch.Generator().manual_seed(1), dtype=images.dtype)
        order, size = (images @ weight).argsort(), float(probe.norm())
        keys = (images @ weight)[order]

        def find(x: Tensor) -> int | None:
            near = int(torch.searchsorted(keys, x.flatten() @ weight))
            for at in range(max(0, near - 1), min(len(given), near + 1)):
                if float((images[order[at]] - x.flatten()).norm()) <= _EXACT * size:
                    return int(order[at])
            return None

        for k, image in enumerate(images):
            if (twin := find(image)) not in (k, None):
                raise WeightspaceError(
                    f"elements {min(k, twin or 0)} and {max(k, twin or 0)} act alike; give each once"
                )
        if (one := find(probe)) is None:
            raise WeightspaceError(f"none of the {len(given)} functions is the identity; a group has it")
        sequence = [one, *(k for k in range(len(given)) if k != one)]
        place = {k: at for at, k in enumerate(sequence)}
        table = torch.zeros(len(given), len(given), dtype=torch.long)
        for i, j in product(range(len(given)), repeat=2):
            if (both := find(given[i](images[j].view(probe.shape)))) is None:
                raise WeightspaceError(
                    f"element {i} after element {j} is none of the {len(given)}; the list is not a group"
                )
            table[place[i], place[j]] = place[both]
        return cls(tuple(given[k] for k in sequence), table, name)

    @classmethod
    def shifts(cls, sizes: int | Sequence[int], step: int = 1) -> FiniteGroup:
        """Cyclic shifts of the last axes, which have these sizes, by multiples of `step`.

        >>> import weightspace as ws
        >>> ws.FiniteGroup.shifts((8, 8), step=2)
        FiniteGroup(shifts of 8 x 8, 16 elements)
        """
        sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
        if not sizes or step < 1 or any(n < 1 or n % step for n in sizes):
            raise WeightspaceError(f"shifts by {step} need sizes that it divides, got {sizes}")
        places = torch.cartesian_prod(*(torch.arange(0, n, step) for n in sizes)).view(-1, len(sizes))
        axes, counts = tuple(range(-len(sizes), 0)), torch.tensor([n // step for n in sizes])
        strides = torch.cat([counts[1:].flip(0).cumprod(0).flip(0), torch.ones(1, dtype=torch.long)])
        sums = (places[:, None] + places[None]) // step % counts
        label = " x ".join(str(n) for n in sizes)
        return cls(
            tuple(_roll(p, axes, sizes) for p in places.tolist()), (sums * strides).sum(-1), f"shifts of {label}"
        )

    @classmethod
    def rotations(cls) -> FiniteGroup:
        """C4: quarter turns of square images, which are the last two axes.

        >>> import weightspace as ws
        >>> len(ws.FiniteGroup.rotations())
        4
        """
        turns = torch.arange(4)
        return cls(tuple(_turn(k, False) for k in range(4)), (turns[:, None] + turns) % 4, "quarter turns")

    @classmethod
    def dihedral(cls) -> FiniteGroup:
        """D4: quarter turns of square images, and each of them after a reflection left to right.

        >>> import weightspace as ws
        >>> len(ws.FiniteGroup.dihedral())
        8
        """
        turn, mirror = torch.arange(8) % 4, torch.arange(8) // 4
        turned = (turn[:, None] + (1 - 2 * mirror[:, None]) * turn) % 4
        actions = tuple(_turn(k % 4, k > 3) for k in range(8))
        return cls(actions, turned + 4 * ((mirror[:, None] + mirror) % 2), "quarter turns and reflections")

    @classmethod
    def permutations(cls, orders: Sequence[Sequence[int]] | Int[Tensor, "n d"]) -> FiniteGroup:
        """A group of permutations p of the features on the last axis, acting by x -> x[..., p].

        Raises `WeightspaceError` for rows that are not permutations, or do not form a group.

        >>> import weightspace as ws
        >>> ws.FiniteGroup.permutations([[0, 1, 2], [1, 0, 2]])
        FiniteGroup(permutations, 2 elements)
        """
        rows = torch.as_tensor(orders)
        if rows.dim() != 2 or not torch.equal(rows.sort(1).values, torch.arange(rows.shape[1]).expand(*rows.shape)):
            raise WeightspaceError(f"expected rows that are permutations of 0 .. d - 1, got shape {tuple(rows.shape)}")
        return cls.of([_reorder(row) for row in rows], torch.zeros(1, rows.shape[1]), "permutations")

    def regular(self, axis: int = -3) -> FiniteGroup:
        """The action (g F)(h, x) = F(g^-1 h, g^-1 x) on maps with an `axis` over G, before those that g moves."""
        back = [self.table[self.inverse(k)] for k in range(len(self))]
        return FiniteGroup(
            tuple(_both(act, where, axis) for act, where in zip(self.actions, back, strict=True)),
            self.table,
            f"{self.name}, on functions of the group",
        )

    def inverse(self, k: int) -> int:
        """The number of the inverse of element k."""
        return int((self.table[k] == 0).nonzero()[0])

    def matrices(self, shape: Sequence[int]) -> Matrices:
        """The action on flattened tensors of this shape, as one matrix rho(g) for every element.

        >>> import weightspace as ws
        >>> rho = ws.FiniteGroup.rotations().matrices((2, 2))
        >>> len(rho), rho[1].shape
        (4, torch.Size([4, 4]))
        """
        return Matrices(self, tuple(shape))

    def __call__(self, k: int, x: Tensor) -> Tensor:
        """g_k x. Raises `WeightspaceError` for a tensor on which the group does not act."""
        try:
            found = self.actions[k](x)
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            if isinstance(error, WeightspaceError):
                raise
            raise WeightspaceError(
                f"{self.name} does not act on shape {tuple(x.shape)}: {first_line(error)}"
            ) from error
        if found.shape != x.shape:
            raise WeightspaceError(
                f"element {k} turns shape {tuple(x.shape)} into {tuple(found.shape)}; an action keeps it"
            )
        return found

    def __len__(self) -> int:
        return len(self.actions)

    def __repr__(self) -> str:
        return f"FiniteGroup({self.name}, {len(self)} elements)"


def _probed(given: tuple[Act, ...], example: Tensor) -> tuple[Tensor, Tensor]:
    """A random tensor of the shape of the example, and its image under every element."""
    generator = torch.Generator().manual_seed(0)
    dtype = example.dtype if example.is_floating_point() else torch.float32
    probe = torch.randn(example.shape, generator=generator, dtype=dtype)
    unchecked = FiniteGroup(given, torch.zeros(1, 1, dtype=torch.long), "the list")
    return probe, torch.stack([unchecked(k, probe).flatten() for k in range(len(given))])


def _roll(place: Sequence[int], axes: tuple[int, ...], sizes: tuple[int, ...]) -> Act:
    def act(x: Tensor) -> Tensor:
        if x.shape[-len(sizes) :] != sizes:
            raise WeightspaceError(f"shifts of {sizes} do not act on shape {tuple(x.shape)}; the last axes must fit")
        return x.roll(tuple(place), axes)

    return act


def _turn(quarters: int, mirrored: bool) -> Act:
    def act(x: Tensor) -> Tensor:
        if x.dim() < 2 or x.shape[-1] != x.shape[-2]:
            raise WeightspaceError(f"quarter turns need square images, got shape {tuple(x.shape)}")
        return (x.flip(-1) if mirrored else x).rot90(quarters, (-2, -1))

    return act


def _reorder(row: Tensor) -> Act:
    return lambda x: x[..., row]


def _both(act: Act, where: Tensor, axis: int) -> Act:
    def both(x: Tensor) -> Tensor:
        if x.dim() < -axis or x.shape[axis] != len(where):
            raise WeightspaceError(f"axis {axis} of shape {tuple(x.shape)} does not run over the {len(where)} elements")
        return act(x).index_select(axis, where.to(x.device))

    return both


@public
class Matrices(Sequence[Tensor]):
    """The matrices rho(g_0), rho(g_1), ... of a group on flattened tensors of a shape, each made when it is read.

    >>> import weightspace as ws
    >>> rho = ws.FiniteGroup.shifts(3).matrices((3,))
    >>> rho[1]
    tensor([[0., 0., 1.],
            [1., 0., 0.],
            [0., 1., 0.]], dtype=torch.float64)
    """

    def __init__(self, group: FiniteGroup, shape: tuple[int, ...]) -> None:
        self.group, self.shape, self.size = group, shape, math.prod(shape)

    def __len__(self) -> int:
        return len(self.group)

    def __getitem__(self, k: Any) -> Any:
        if isinstance(k, slice):
            return [self[i] for i in range(len(self))[k]]
        ones = torch.eye(self.size, dtype=torch.float64).view(-1, *self.shape)
        return self.group(range(len(self))[k], ones).reshape(self.size, self.size).T

    def inverse(self, k: int) -> Float[Tensor, "d d"]:
        """rho(g_k)^-1."""
        return self[self.group.inverse(k)]
