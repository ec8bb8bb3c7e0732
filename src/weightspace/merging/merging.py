"""`merge`: networks, named tensors or files merged by a recipe, into the same kind of thing or into files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from weightspace.checkpoint.reader import read
from weightspace.merging.networks import computed, merged_net
from weightspace.merging.plan import Rules, planned
from weightspace.merging.recipe import Recipe
from weightspace.merging.schedule import Schedule
from weightspace.merging.stream import write
from weightspace.net.errors import CallError, WeightspaceError
from weightspace.net.net import Net
from weightspace.net.public import public

__all__ = ["merge"]

Parent: TypeAlias = Net | Mapping[str, Tensor] | str | os.PathLike[str]


@public
def merge(
    parents: Sequence[Net | Mapping[str, Tensor] | str | os.PathLike[str]],
    method: str | Recipe = "linear",
    *,
    base: Net | Mapping[str, Tensor] | str | os.PathLike[str] | None = None,
    weights: Sequence[Schedule] | None = None,
    options: Mapping[str, Schedule] | None = None,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Net | dict[str, Tensor] | Path:
    """Merge networks by a method of `METHODS`, tensor by tensor: theta = method(theta_1 .. theta_n; theta_0, weights).

    `parents`, and `base` theta_0: networks, named tensors (a state dict, a checkpoint), or paths of checkpoints.
    `weights`: one for each parent, by default 1; they and the `options` of the method may depend on the tensor (see
    `Recipe`, which may be given as `method` in place of all these). `dtype`: of the result, by default that of the
    first parent; the computation is in float32 or float64. With `out` (a `.safetensors` file or a folder) the result
    is written there in pieces, and its path returned; else networks give a `Net` of the first architecture, other
    parents named tensors. Networks are not aligned: see `ws.mean` for that. Raises `WeightspaceError` where parents,
    base and method do not fit, for NaN, and for quantised weights. What is done with tensors that the parents do not
    have alike: `merging.planned`, whose plan `merging.write` carries out.

    >>> import weightspace as ws
    >>> a, b = ws.demo.example(0)[0], ws.demo.example(1)[0]
    >>> merged = ws.merge([a, b], weights=[3, 1])
    >>> bool((merged - a.lerp(b, 0.25)).norm() < 1e-6)
    True
    """
    if isinstance(method, Recipe):
        if weights is not None or options is not None or seed or dtype is not None:
            raise CallError("merge: a Recipe has weights, options, seed and dtype of its own; give them there")
        recipe = method
    else:
        recipe = Recipe(method, weights, options or {}, seed, dtype)
    if not parents:
        raise WeightspaceError("no networks to merge; give one or more")
    nets = [parent for parent in parents if isinstance(parent, Net)]
    whole = len(nets) == len(parents)
    if whole and out is None and (base is None or isinstance(base, Net)):
        return merged_net(nets, recipe, base)
    rules = Rules("refuse", "refuse") if whole else Rules()  # a network has a place for every tensor
    origin = None if base is None else _tensors(base)
    plan = planned([_tensors(parent) for parent in parents], origin, recipe, rules)
    if out is not None:
        return write(plan, out)
    return nets[0].load(computed(plan)).refreshed() if whole else computed(plan)


def _tensors(parent: Parent) -> Mapping[str, Tensor]:
    if isinstance(parent, Net):
        return parent.tensors
    return parent if isinstance(parent, Mapping) else read(parent)
