"""Continuous moves of a network as parameters: logarithms of scales, skew matrices for rotations, exponents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from weightspace.symmetry.axis import MATRICES, Block
from weightspace.symmetry.element import Element
from weightspace.symmetry.group import Group
from weightspace.symmetry.matrix import complement, on_all, turned

__all__ = ["Matrices", "Moves", "Scales", "movable", "moves_of"]


@runtime_checkable
class Moves(Protocol):
    """Continuous moves of a network as parameters: what a refinement descends in.

    `pace`: the learning rate of these parameters, relative to that of the logarithms of scales.
    """

    parameters: dict[str, Tensor]
    pace: float

    def moved(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a network after the moves, differentiable in the parameters."""
        ...

    def element(self) -> Element:
        """The moves as an exact element of the group."""
        ...


class Scales:
    """The positive scales of a group that hold in training mode too, as logarithms of their factors; zero at first."""

    pace = 1.0

    def __init__(self, group: Group, like: Tensor) -> None:
        self.group = group
        self.logs = {
            k: torch.zeros(group.sizes(group[group.generators[k].axis]), dtype=like.dtype, device=like.device)
            for k in movable(group)
        }
        self.parameters = {f"scale {k}": log.requires_grad_() for k, log in self.logs.items()}
        found = {block for (block, _), powers in group.exponents_at.items() if any(k in self.logs for k, _ in powers)}
        self._names = {group.blocks[block].tensor for block in found}

    def moved(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every place times exp(exponent s), differentiable in s."""
        return {n: self._scaled(n, tensor) if n in self._names else tensor for n, tensor in tensors.items()}

    def _scaled(self, name: str, tensor: Tensor) -> Tensor:
        new = tensor
        for number, block in self.group.blocks_of(name):
            power = self._power(number)
            if power is None:
                continue
            view = self.group.view(block, tensor)
            new = _placed(self.group, block, new, view * power.exp())
        return new

    def _power(self, number: int) -> Tensor | None:
        """The logarithm of what a block is multiplied by, shaped to fit its view."""
        block, total = self.group.blocks[number], None
        for leaf in range(len(block.leaves)):
            for k, exponent in self.group.exponents_at.get((number, leaf), ()):
                if k in self.logs:
                    term = exponent * self.group.spread(self.logs[k], block, leaf)
                    total = term if total is None else total + term
        return total

    def element(self) -> Element:
        """The scales as an element of the group."""
        return Element(self.group, {}, {k: log.detach().cpu().double().exp() for k, log in self.logs.items()})


class Matrices:
    """The matrices of a group: (1 + A)^-1 (1 - A) with A skew for rotations, exp(A) for general ones, at first A = 0.

    Rotations that keep the vector of ones are those of its complement.
    """

    pace = 1 / 3

    def __init__(self, group: Group, like: Tensor) -> None:
        self.group = group
        self.exponents: dict[int, Tensor] = {}
        self._bases: dict[int, Tensor] = {}  # of the complement of the ones
        for k, generator in enumerate(group.generators):
            if generator.kind in MATRICES:
                *outer, n = group.sizes(group[generator.axis])
                if generator.ones:
                    self._bases[k], n = complement(n).to(like), n - 1
                self.exponents[k] = torch.zeros(*outer, n, n, dtype=like.dtype, device=like.device)
        self.parameters = {f"matrix {k}": a.requires_grad_() for k, a in self.exponents.items()}
        places = {place for k in self.exponents for place, _ in group.generators[k].exponents}
        self._names = {group.blocks[place.block].tensor for place in places}

    def moved(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every place times its matrix, differentiable in A."""
        made = {k: self._made(k, a) for k, a in self.exponents.items()}
        return {n: self._turned(n, tensor, made) if n in self._names else tensor for n, tensor in tensors.items()}

    def _made(self, k: int, a: Tensor) -> tuple[Tensor, Tensor]:
        """M and M^-T."""
        if self.group.generators[k].kind == "linear":
            return torch.linalg.matrix_exp(a), torch.linalg.matrix_exp(-a.mT)
        skew, eye = (a - a.mT) / 2, torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        matrix = torch.linalg.solve(eye + skew, eye - skew)
        if k in self._bases:
            matrix = on_all(matrix, self._bases[k].to(a))
        return matrix, matrix

    def _turned(self, name: str, tensor: Tensor, made: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        new = tensor
        for number, block in self.group.blocks_of(name):
            if turns := self._turns(number, block, made):
                new = _placed(self.group, block, new, turned(self.group.view(block, new.contiguous()), turns))
        return new

    def _turns(
        self, number: int, block: Block, made: Mapping[int, tuple[Tensor, Tensor]]
    ) -> list[tuple[Tensor, float, list[int]]]:
        return [
            (made[k][exponent < 0], 1.0, self.group.dims_of(block, leaf))
            for leaf in range(len(block.leaves))
            for k, exponent in self.group.exponents_at.get((number, leaf), ())
            if k in made
        ]

    def element(self) -> Element:
        """The matrices as an element of the group, in float64."""
        made = {k: self._made(k, a.detach().cpu().double())[0] for k, a in self.exponents.items()}
        return Element(self.group, self.group.identity().permutations, made)


def _placed(group: Group, block: Block, tensor: Tensor, value: Tensor) -> Tensor:
    """A copy of a tensor with other numbers in a block.

    Not `torch.as_strided_scatter`, whose gradient for what is outside of the block is zero.
    """
    if value.numel() == tensor.numel() and group.view(block, tensor).is_contiguous():
        return value.reshape(tensor.shape)
    new = tensor.clone(memory_format=torch.contiguous_format)
    group.view(block, new).copy_(value)
    return new


def movable(group: Group) -> list[int]:
    """The numbers of the scales that are refined: those that leave running statistics alone."""
    return [k for k, g in enumerate(group.generators) if g.kind == "scale" and not g.evaluation]


def moves_of(group: Group, like: Tensor) -> list[Moves]:
    """All continuous moves of a group, as parameters of the dtype and device of a tensor."""
    found: list[Moves] = [Scales(group, like), Matrices(group, like)]
    return [moves for moves in found if moves.parameters]
