"""Merging by what data say of each network: Fisher information of its weights, inner products of its layers' inputs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from weightspace.curvature.curvature import curvature_diagonal
from weightspace.merging.networks import merged_net
from weightspace.merging.recipe import Recipe
from weightspace.metric.per_layer import moments
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.task.task import Task

__all__ = ["fisher_mean", "importances", "inner_products", "regmean"]


@public
def importances(net: Net, task: Task, draws: int | None = None, *, seed: int = 0) -> Weights:
    """The diagonal of the Fisher information of an example, F = E_x E_{y ~ p(y|x)} (d log p / dw)^2, for every weight.

    Exact with a backward pass for each output; with `draws` from so many random labels an example. Frozen weights have
    theirs too. Errors as `curvature_diagonal`.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.merging.importances(net, task)
    >>> found, round(float(found.flat().sum()), 1) == round(ws.fisher_trace(task, labels="all")(net), 1)
    (Weights(4 tensors, 1,210 numbers), True)
    """
    return curvature_diagonal(net, task, draws, seed=seed) / len(task)


@public
def inner_products(net: Net, task: Task) -> dict[str, Tensor]:
    """The inner products of the inputs of layers on a task: weight -> sum_x h h^T / N, in float64.

    Of linear maps and convolutions without groups whose weight is used once; h are the rows that the weight is
    multiplied with: of a convolution its patches, of a sequence its positions.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> {name: found.shape for name, found in ws.merging.inner_products(net, task).items()}
    {'1.weight': torch.Size([64, 64]), '3.weight': torch.Size([16, 16])}
    """
    found = {}
    for layer, moment in moments(net, task):
        columns = net.weights[layer.weight][0].numel()  # the last of the moment is the one for the bias
        found[layer.weight] = moment[:columns, :columns].clone()
    return found


@public
def fisher_mean(
    nets: Sequence[Net],
    tasks: Sequence[Task],
    weights: Sequence[float] | None = None,
    *,
    draws: int | None = None,
    seed: int = 0,
) -> Net:
    """The mean of networks weighted by the Fisher information of each on its task, entry by entry.

    sum_i w_i F_i theta_i / sum_i w_i F_i, F_i the `importances` of network i on task i. `tasks`: one for each network,
    such as what it was trained on. `draws` and `seed` as in `importances`. Where no network has information about a
    weight it is the weighted mean. Source: Merging models with Fisher-weighted averaging (Matena, Raffel, 2022).

    >>> import weightspace as ws
    >>> (a, task), (b, other) = ws.demo.example(0), ws.demo.example(1)
    >>> ws.merging.fisher_mean([a, b], [task, other])
    Net(Sequential, 1,210 weights, torch.float32)
    """
    _paired(nets, tasks)
    beside = [importances(net, task, draws, seed=seed) for net, task in zip(nets, tasks, strict=True)]
    return merged_net(nets, Recipe("fisher", weights), beside=beside)


@public
def regmean(
    nets: Sequence[Net], tasks: Sequence[Task], weights: Sequence[float] | None = None, *, alpha: float = 0.9
) -> Net:
    """The network whose layers answer most nearly as those of each network on that one's own inputs.

    For every linear map and convolution (sum_i w_i W_i C_i) (sum_i w_i C_i)^-1, C_i the `inner_products` of its inputs
    in network i on task i, those off the diagonal times `alpha`; for all other weights the weighted mean. `tasks`: one
    for each network; labels are not needed. Source: Dataless knowledge fusion by merging weights of language models
    (Jin, Ren, Preotiuc-Pietro, Cheng, 2023).

    >>> import weightspace as ws
    >>> (a, task), (b, other) = ws.demo.example(0), ws.demo.example(1)
    >>> ws.merging.regmean([a, b], [task, other])
    Net(Sequential, 1,210 weights, torch.float32)
    """
    _paired(nets, tasks)
    beside = [inner_products(net, task) for net, task in zip(nets, tasks, strict=True)]
    return merged_net(nets, Recipe("regmean", weights, {"alpha": alpha}), beside=beside)


def _paired(nets: Sequence[Net], tasks: Sequence[Task]) -> None:
    if len(nets) != len(tasks):
        raise WeightspaceError(f"{len(tasks)} tasks for {len(nets)} networks; give one for each")
