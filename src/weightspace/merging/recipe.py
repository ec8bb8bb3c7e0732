"""A recipe: the method, the weights of the parents and the options, by tensor where they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weightspace.merging.methods import method
from weightspace.merging.part import BLOCK, Part
from weightspace.merging.schedule import Schedule, value_at
from weightspace.merging.settings import Settings
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public
from weightspace.net.seeds import derived

__all__ = ["Recipe", "merged", "streamed"]


@public
@dataclass(frozen=True)
class Recipe:
    """How tensors are merged.

    `method`: a name in `METHODS`. `weights`: one for each parent, each a number, a gradient over the layers or a
    mapping from patterns of names (see `schedule.value_at`); None is 1 for each. `options`: numbers of the method, each
    of these forms too; those not given have the method's defaults. `own`: options that differ by parent (density and
    the like of sparse methods), a list with one for each. `seed`: of random masks, which depend on it, on the tensor's
    name and on the parent alone. Raises `WeightspaceError` for an unknown method or option.
    """

    method: str = "linear"
    weights: Sequence[Schedule] | None = None
    options: Mapping[str, Schedule] = field(default_factory=dict)
    seed: int = 0
    dtype: torch.dtype | None = None  # of the merged tensors; None keeps that of the first parent
    own: Mapping[str, Sequence[Schedule]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", method(self.method).name)  # "Model-Stock" is model_stock everywhere
        known = method(self.method).options
        for name in self.options:
            if name not in known:
                has = f"has {', '.join(known)}" if known else "has none"
                raise WeightspaceError(f"{self.method} has no option {name!r}; it {has}")
        by_parent = method(self.method).own
        for name in self.own:
            if name not in by_parent:
                has = f"{', '.join(by_parent)} may" if by_parent else "none may"
                raise WeightspaceError(f"{name!r} of {self.method} is one for all networks; {has} differ by network")

    def check(self, parents: int, base: bool) -> None:
        """Raise `WeightspaceError` unless the recipe fits this number of parents, and a base is there if needed."""
        found = method(self.method)
        if self.weights is not None and len(self.weights) != parents:
            raise WeightspaceError(f"{len(self.weights)} weights for {parents} networks; give one for each")
        if self.weights is not None and not found.weighs:
            raise WeightspaceError(f"{found.name} takes no weights of the networks; leave them out")
        for name, numbers in self.own.items():
            if len(numbers) != parents:
                raise WeightspaceError(f"{len(numbers)} numbers of {name} for {parents} networks; give one for each")
        if found.base == "needed" and not base:
            raise WeightspaceError(f"{found.name} adds task vectors to a base network; give it as base (--base)")
        if parents < found.least or (found.most is not None and parents > found.most):
            wanted = f"{found.least}" if found.most == found.least else f"{found.least} to {found.most or 'any number'}"
            noun = ("network" if found.most == 1 else "networks") + (" beside the base" if base else "")
            raise WeightspaceError(f"{found.name} merges {wanted} {noun}, not {parents}")

    def at(self, name: str, parents: int, depth: float = 0.0) -> Settings:
        """The settings for one tensor at a depth from 0 (first layer) to 1 (last).

        Raises `WeightspaceError` for numbers that the method does not take.
        """
        found = method(self.method)
        weights = self.weights if self.weights is not None else [1.0] * parents
        options = {**found.options, **self.options}
        settings = Settings(
            tuple(value_at(weight, name, depth) for weight in weights),
            {key: value_at(value, name, depth) for key, value in options.items()},
            derived(self.seed, "merge", name),
            {key: tuple(value_at(value, name, depth) for value in values) for key, values in self.own.items()},
        )
        found.check(settings)
        return settings


def merged(part: Part, recipe: Recipe, depth: float = 0.0) -> Tensor:
    """The merged tensor, whole, in the dtype of the computation.

    >>> import torch
    >>> from weightspace.merging.part import Part
    >>> from weightspace.merging.recipe import Recipe, merged
    >>> parents = [{"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([4.0, 2.0])}]
    >>> part = Part("w", torch.Size([2]), [(parent, "w") for parent in parents])
    >>> merged(part, Recipe("linear", weights=[3.0, 1.0]))
    tensor([1., 2.])
    """
    found = torch.empty(part.shape.numel(), dtype=part.dtype)
    start = 0
    for numbers in streamed(part, recipe, depth):
        found[start : start + numbers.numel()] = numbers
        start += numbers.numel()
    assert start == found.numel()
    return found.reshape(part.shape)


def streamed(part: Part, recipe: Recipe, depth: float = 0.0) -> Iterator[Tensor]:
    """The merged tensor in consecutive vectors, in the dtype of the computation, which the next may overwrite."""
    made = method(recipe.method).make(part, recipe.at(part.name, len(part.sources), depth))
    if isinstance(made, Tensor):
        yield from made.reshape(-1).split(BLOCK)
    else:
        for piece in part.pieces(again=True):
            yield made(piece)
