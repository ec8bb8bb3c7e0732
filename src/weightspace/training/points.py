"""Points of a training run: the tensors of a module at some of its steps, read, checked, saved and restored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from weightspace.net.errors import ArchitectureMismatch, WeightspaceError
from weightspace.net.net import Net, checked
from weightspace.net.weights import difference, finite

__all__ = ["Points", "averaged", "entry"]


def averaged(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers of which there is a mean."""
    return tensor.is_floating_point() or tensor.is_complex()


class Points:
    """The tensors of a module at some steps: step -> name -> tensor, the `last` ones alone, or all for None."""

    def __init__(self, last: int | None) -> None:
        self.last = last
        self.like: Net | None = None  # the architecture, and the dtypes of what is given back
        self.kept: dict[int, dict[str, Tensor]] = {}

    def read(self, module: nn.Module | Net) -> dict[str, Tensor]:
        """The tensors of a module as they are now, not copied. Raises `WeightspaceError` for those of another one.

        And for weights with NaN or infinity, and buffers with NaN, which would be in every later average.
        """
        if self.like is None:
            self.like = Net.of(module)
        expected = {name: tensor.shape for name, tensor in self.like.tensors.items()}
        weights = dict(module.weights if isinstance(module, Net) else module.named_parameters())
        state = dict(module.state if isinstance(module, Net) else module.named_buffers())
        seen = weights | {name: state[name] for name in self.like.state if name in state}
        if (shapes := {name: tensor.shape for name, tensor in seen.items()}) != expected:
            raise ArchitectureMismatch(difference(expected, shapes))
        found = {name: seen[name].detach() for name in expected}
        for name, tensor in found.items():
            if averaged(tensor) and not (finite(tensor) or (name in state and not bool(tensor.isnan().any()))):
                raise WeightspaceError(f"{name} holds NaN or infinity, and was not taken in; the training has diverged")
        return found

    def add(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep a copy of the tensors, and drop those before the last ones."""
        self.kept[step] = {name: tensor.clone() for name, tensor in tensors.items()}
        while self.last is not None and len(self.kept) > self.last:
            del self.kept[min(self.kept)]

    def net(self, tensors: Mapping[str, Tensor]) -> Net:
        """The network with these tensors, in the dtypes of the module."""
        assert self.like is not None
        weights, state = ({n: tensors[n] for n in part} for part in (self.like.weights, self.like.state))
        return self.like.at(self.like.weights.replace(weights), self.like.state.replace(state))

    def nets(self) -> dict[int, Net]:
        """Step -> the network at it."""
        return {step: self.net(tensors) for step, tensors in self.kept.items()}

    def state(self) -> dict[int, dict[str, Tensor]]:
        """A copy of all that is kept."""
        return {step: {name: tensor.clone() for name, tensor in part.items()} for step, part in self.kept.items()}

    def restore(self, kept: Any, module: nn.Module | Net) -> None:
        """Take up a `state()` for the architecture of a module. Raises `WeightspaceError` where it does not fit."""
        like = Net.of(checked(module))
        if not isinstance(kept, Mapping) or not all(isinstance(part, Mapping) for part in kept.values()):
            raise WeightspaceError("the state has no points; give what state_dict() returned")
        for part in kept.values():
            if not all(isinstance(tensor, Tensor) for tensor in part.values()):
                raise WeightspaceError("the points of the state are not tensors; give what state_dict() returned")
            shapes = {name: tensor.shape for name, tensor in part.items()}
            if shapes != (expected := {name: tensor.shape for name, tensor in like.tensors.items()}):
                raise ArchitectureMismatch(difference(expected, shapes))
        self.like = like
        self.kept = {
            int(step): {name: tensor.detach().to(like.tensors[name].device, copy=True) for name, tensor in part.items()}
            for step, part in kept.items()
        }


def entry(state: Mapping[str, Any], name: str, kind: type) -> Any:
    """An entry of a saved state. Raises `WeightspaceError` where it is missing, or of another kind."""
    found = state.get(name) if isinstance(state, Mapping) else None
    if not isinstance(found, kind):
        raise WeightspaceError(f"the state has no {name!r} of the kind it must have; give what state_dict() returned")
    return found
