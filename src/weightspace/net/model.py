"""Models: architectures without weights, from which networks with random initial weights are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import nn

from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.state import seeded

__all__ = ["Model", "fresh"]


Model: TypeAlias = Net | nn.Module | Callable[[], nn.Module | Net]


@public
def fresh(model: Model, seed: int) -> Net:
    """A network with random initial weights drawn from `seed`; the state of torch's global generator is kept.

    `model`: a function without arguments that makes a module; or a module or network, whose layers are initialised
    anew by their `reset_parameters()`. Raises `WeightspaceError` for a weight that no layer initialises.

    >>> import weightspace as ws
    >>> net, _ = ws.demo.example()
    >>> ws.fresh(net, seed=5)
    Net(Sequential, 1,210 weights, torch.float32)
    >>> float((ws.fresh(net, seed=5) - ws.fresh(net, seed=5)).norm())
    0.0
    """
    with seeded(seed):
        if isinstance(model, (Net, nn.Module)):
            net = Net.of(model)
            return net.load(_drawn(net.module()).state_dict())
        if not callable(model):
            raise WeightspaceError(
                f"a model is a module, a Net, or a function that makes one, not {type(model).__name__}"
            )
        try:
            made = model()
        except TypeError as error:
            raise WeightspaceError(f"the function that makes the model takes no arguments: {error}") from error
        return Net.of(made)


@torch.no_grad()
def _drawn(module: nn.Module) -> nn.Module:
    """The module, all its parameters initialised anew in place."""
    for parameter in module.parameters():
        parameter.fill_(math.nan if parameter.is_floating_point() else 0)
    for part in module.modules():
        reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if callable(reset):
            reset()
    if left := [name for name, parameter in module.named_parameters() if parameter.isnan().any()]:
        raise WeightspaceError(f"no part of the module draws {left[0]} anew; give a function that makes the module")
    return module
