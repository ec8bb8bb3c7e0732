"""Networks in memory merged by a recipe, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from weightspace.merging.part import Part
from weightspace.merging.recipe import Recipe, merged
from weightspace.merging.schedule import depths
from weightspace.net.average import average
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, checked
from weightspace.net.public import public

__all__ = ["merged_net"]


@public
def merged_net(
    nets: Sequence[Net], recipe: Recipe, base: Net | None = None, *, beside: Sequence[Mapping[str, Tensor]] = ()
) -> Net:
    """The network whose weights are merged by a recipe, in the dtypes of the first network; not aligned.

    The state, such as running statistics, is the plain mean; frozen weights and integers are those of the first.
    `base`: for methods on task vectors. `beside`: for each network, tensors that say how much its weights count, where
    the method needs them (`fisher_mean`, `regmean`). Raises `ArchitectureMismatch` for other architectures, and
    `WeightspaceError` for what the recipe does not take, and weights that are NaN or infinite.

    >>> import weightspace as ws
    >>> nets = [ws.demo.example(seed)[0] for seed in range(3)]
    >>> found = ws.merging.merged_net(nets[:2], ws.merging.Recipe("ties", options={"density": 0.5}), base=nets[2])
    >>> found
    Net(Sequential, 1,210 weights, torch.float32)
    """
    recipe.check(len(nets), base is not None)
    first = checked(nets[0])
    for net in (*nets[1:], *([] if base is None else [base])):
        first.check(net)
    for k, net in enumerate((*nets, *([] if base is None else [base]))):
        if bad := net.weights.unusable():
            label = f"network {k}" if k < len(nets) else "the base"
            raise WeightspaceError(f"NaN or infinity in {bad[0]!r} of {label}; leave this network out")
    if beside and len(beside) != len(nets):
        raise WeightspaceError(f"importances of {len(beside)} networks for {len(nets)}; give those of each")
    depth, new = depths(first.weights), {}
    for name, weight in first.weights.items():
        if weight.is_floating_point() and name not in first.frozen:
            wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
            origin = None if base is None else (base.weights, name)
            sources = [(net.weights, name) for net in nets]
            part = Part(name, weight.shape, sources, origin, wide, beside=[(more, name) for more in beside])
            new[name] = merged(part, recipe, depth[name])
    found = Net(first.architecture, first.weights.replace(new), average(nets).state)
    return found.refreshed()
