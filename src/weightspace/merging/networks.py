"""Networks in memory merged by a recipe, as their files would be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from weightspace.merging.plan import Plan, Rules, planned
from weightspace.merging.recipe import Recipe
from weightspace.merging.stream import numbers_of
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, checked
from weightspace.net.public import public

__all__ = ["computed", "merged_net"]


@public
def merged_net(
    nets: Sequence[Net], recipe: Recipe, base: Net | None = None, *, beside: Sequence[Mapping[str, Tensor]] = ()
) -> Net:
    """The network whose tensors are merged by a recipe, in the dtypes of the first network; not aligned.

    The tensors are those that merging the files would give: frozen weights are merged as all others, running statistics
    are averaged, integers are those of the first. `base`: for methods on task vectors. `beside`: for each network,
    tensors that say how much its weights count, where the method needs them (`fisher_mean`, `regmean`). Raises
    `ArchitectureMismatch` for other architectures, and `WeightspaceError` for what the recipe does not take, and
    weights that are NaN or infinite.

    >>> import weightspace as ws
    >>> nets = [ws.demo.example(seed)[0] for seed in range(3)]
    >>> found = ws.merging.merged_net(nets[:2], ws.merging.Recipe("ties", options={"density": 0.5}), base=nets[2])
    >>> found
    Net(Sequential, 1,210 weights, torch.float32)
    """
    if not nets:
        raise WeightspaceError("no networks to merge; give one or more")
    first = checked(nets[0])
    for net in (*nets[1:], *([] if base is None else [base])):
        first.check(net)
    if beside and len(beside) != len(nets):
        raise WeightspaceError(f"importances of {len(beside)} networks for {len(nets)}; give those of each")
    origin = None if base is None else base.tensors
    plan = planned([net.tensors for net in nets], origin, recipe, Rules("refuse", "refuse"), beside=beside)
    return first.load({name: tensor.to(first.device) for name, tensor in computed(plan).items()}).refreshed()


def computed(plan: Plan) -> dict[str, Tensor]:
    """The tensors of the merged network, in memory.

    >>> import torch
    >>> from weightspace.merging.networks import computed
    >>> from weightspace.merging.plan import planned
    >>> computed(planned([{"w": torch.zeros(2)}, {"w": torch.ones(2)}]))
    {'w': tensor([0.5000, 0.5000])}
    """
    found = dict[str, Tensor]()
    for row in plan.rows:
        if row.action != "left out":
            flat, start = torch.empty(row.shape.numel(), dtype=row.dtype), 0
            for numbers in numbers_of(plan, row):
                flat[start : start + numbers.numel()] = numbers
                start += numbers.numel()
            found[row.name] = flat.reshape(row.shape)
    return found
