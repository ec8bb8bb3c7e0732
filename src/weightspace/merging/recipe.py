"""A recipe: the method, the weights of the parents and the options, by tensor where they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weightspace.merging.methods import method
from weightspace.merging.part import Part
from weightspace.merging.schedule import Schedule, value_at
from weightspace.merging.settings import Combine, Settings
from weightspace.net.errors import WeightspaceError
from weightspace.net.seeds import derived

__all__ = ["Recipe", "merged"]


@dataclass(frozen=True)
class Recipe:
    """How tensors are merged.

    `method`: a name in `METHODS`. `weights`: one for each parent, each a number, a gradient over the layers or a
    mapping from patterns of names (see `schedule.value_at`); None is 1 for each. `options`: numbers of the method, each
    of these forms too; those not given have the method's defaults. `own`: for each parent, options that take the place
    of those of all, where the method has such (density, gamma, epsilon). `seed`: of random masks, which depend on it,
    on the tensor's name and on the parent alone. Raises `WeightspaceError` for an unknown method or option.
    """

    method: str = "linear"
    weights: Sequence[Schedule] | None = None
    options: Mapping[str, Schedule] = field(default_factory=dict)
    seed: int = 0
    dtype: torch.dtype | None = None  # of the merged tensors; None keeps that of the first parent
    own: Sequence[Mapping[str, Schedule]] = ()

    def __post_init__(self) -> None:
        known = method(self.method).options
        for name in self.options:
            if name not in known:
                has = f"has {', '.join(known)}" if known else "has none"
                raise WeightspaceError(f"{self.method} has no option {name!r}; it {has}")
        for name in (name for options in self.own for name in options):
            if name not in (own := method(self.method).own):
                has = f"{', '.join(own)} may differ" if own else "all its options are the same for all"
                raise WeightspaceError(f"{self.method} has no {name!r} of single networks; {has}")

    def check(self, parents: int, base: bool) -> None:
        """Raise `WeightspaceError` unless the recipe fits this number of parents, and a base is there if needed."""
        found = method(self.method)
        if self.weights is not None and len(self.weights) != parents:
            raise WeightspaceError(f"{len(self.weights)} weights for {parents} networks; give one for each")
        if self.own and len(self.own) != parents:
            raise WeightspaceError(f"own options of {len(self.own)} networks for {parents}; give those of each")
        if found.base == "needed" and not base:
            raise WeightspaceError(f"{found.name} adds task vectors to a base network; give it as base (--base)")
        if parents < found.least or (found.most is not None and parents > found.most):
            wanted = f"{found.least}" if found.most == found.least else f"{found.least} to {found.most or 'any number'}"
            raise WeightspaceError(f"{found.name} merges {wanted} networks, not {parents}")

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
            tuple({key: value_at(value, name, depth) for key, value in own.items()} for own in self.own),
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
    made = method(recipe.method).make(part, recipe.at(part.name, len(part.sources), depth))
    if isinstance(made, Tensor):
        return made
    return joined(part, made)


def joined(part: Part, combine: Combine) -> Tensor:
    """The tensor of all pieces."""
    out = torch.empty(part.shape.numel(), dtype=part.dtype)
    for piece in part.pieces():
        found = combine(piece)
        out[piece.start : piece.start + found.numel()] = found
    return out.reshape(part.shape)
