"""A model: an architecture before it stands at any point, and networks of it drawn from a seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import nn

from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.public import public

__all__ = ["Model", "ModelError", "fresh"]


Model: TypeAlias = Net | nn.Module | Callable[[], nn.Module | Net]


class ModelError(WeightspaceError):
    """An architecture that does not say how its weights are drawn."""


@public
def fresh(model: Model, seed: int) -> Net:
    """A network of the model, its weights drawn from `seed` as its layers draw them; torch's generators are kept.

    `model`: a function without arguments that makes a module; or a module or network, all of whose weights are drawn
    anew by the `reset_parameters()` of its parts. Raises `ModelError` where a weight is left that no part draws.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(model, (Net, nn.Module)):
            net = Net.of(model)
            return net.load(_drawn(net.module()).state_dict())
        if not callable(model):
            raise ModelError(f"a model is a module, a Net, or a function that makes one, not {type(model).__name__}")
        try:
            made = model()
        except TypeError as error:
            raise ModelError(f"the function that makes the model takes no arguments: {error}") from error
        return Net.of(made)


@torch.no_grad()
def _drawn(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        parameter.fill_(math.nan if parameter.is_floating_point() else 0)
    for part in module.modules():
        reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if callable(reset):
            reset()
    if left := [name for name, parameter in module.named_parameters() if parameter.isnan().any()]:
        raise ModelError(f"no part of the module draws {left[0]} anew; give a function that makes the module")
    return module
