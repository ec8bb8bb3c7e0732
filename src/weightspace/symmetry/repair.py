"""After averaging: re-estimate normalisation statistics, or rescale units whose variance collapsed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from weightspace.net import Net, Weights, WeightspaceError
from weightspace.symmetry.trace import Trace, arguments, math_attention, op_name, trace
from weightspace.task import Task

__all__ = ["has_statistics", "repair", "rescale", "reset_statistics"]

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def has_statistics(net: Net) -> bool:
    """Whether some norm keeps running statistics of the data."""
    return bool(_tracking(net.architecture))


def _tracking(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, _NORMS) and getattr(m, "running_mean", None) is not None]


def reset_statistics(net: Net, task: Task) -> Net:
    """`net` with every running mean and variance replaced by those of the task's inputs.

    mean = sum_b n_b m_b / N and var = sum_b n_b (v_b + m_b^2) / N - mean^2 over batches b in training mode, the
    variance unbiased as the norms keep it. Only the statistics change. Raises `WeightspaceError` for one example.
    """
    if not has_statistics(net):
        return net
    module = net.module()
    norms = _tracking(module)
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # type: ignore[assignment]
    total = 0
    sums = [(torch.zeros_like(n.running_mean), torch.zeros_like(n.running_var)) for n in norms]  # type: ignore[arg-type]
    with torch.no_grad():
        for x, _ in task.batches(net):
            size = _count(x)
            if size < 2:
                continue
            args, kwargs = arguments(x)
            module(*args, **kwargs)
            total += size
            for (mean, square), norm in zip(sums, norms, strict=True):
                mean += size * norm.running_mean  # type: ignore[operator]
                square += size * (norm.running_var + norm.running_mean**2)  # type: ignore[operator]
    if not total:
        raise WeightspaceError("running statistics need batches of at least two examples; give more data")
    for (mean, square), norm in zip(sums, norms, strict=True):
        norm.running_mean.copy_(mean / total)  # type: ignore[operator]
        norm.running_var.copy_((square / total - (mean / total) ** 2).clamp(min=0))  # type: ignore[operator]
    buffers = dict(module.named_buffers())
    return net.at(net.weights, Weights({name: buffers[name] for name in net.state}))


def _count(x: Any) -> int:
    args, kwargs = arguments(x)
    return next((len(t) for t in (*args, *kwargs.values()) if isinstance(t, Tensor)), 0)


def repair(net: Net, ends: list[Net], task: Task) -> Net:
    """`net`, an average of `ends`, with its statistics mended on the task's inputs.

    BatchNorm: running statistics re-estimated. Otherwise units are rescaled (`rescale`), and the result is kept only if
    the loss on the task falls.
    """
    if has_statistics(net):
        return reset_statistics(net, task)
    try:
        mended = rescale(net, ends, task)
    except WeightspaceError:
        return net
    with torch.no_grad():
        return mended if float(task(mended)) < float(task(net)) else net


def rescale(net: Net, ends: list[Net], task: Task, examples: int = 1024) -> Net:
    """Give every unit of `net` the mean and deviation that `ends` have on average.

    After every linear map, convolution or group or layer norm with a bias: h <- (h - m) s / d + M, where m, d are the
    mean and deviation of the unit in `net`, M and s the averages of those in `ends`; written into weight and bias.
    Source: REPAIR: renormalizing permuted activations for interpolation repair (Jordan, Sedghi, Saukh, Entezari,
    Neyshabur, 2023).
    """
    x = task.take(examples, seed=0).example(examples)
    net, ends = net.to(torch.float32), [end.to(torch.float32) for end in ends]
    graph = trace(net.live(), x)
    targets = [_moments(graph, end, x) for end in ends]
    wanted = {node: (_mean([t[node][0] for t in targets]), _mean([t[node][1] for t in targets])) for node in targets[0]}
    if not wanted:
        raise WeightspaceError("no layer has a weight and a bias of its own; nothing can be rescaled")
    return _rescaled(graph, net, x, wanted)


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean(0)


_Moments = dict[fx.Node, tuple[Tensor, Tensor]]


def _affine(graph: Trace) -> dict[fx.Node, tuple[str, str, int]]:
    """Nodes with a weight and a bias of their own -> their names and the dimension of their units."""
    uses: dict[str, int] = {}
    for node in graph.nodes:
        for used in node.all_input_nodes:
            if used in graph.sources:
                uses[graph.sources[used]] = uses.get(graph.sources[used], 0) + 1
    found = {}
    for node in graph.nodes:
        name = op_name(node) if node.op == "call_function" else ""
        at = {"linear": -1, "layer_norm": -1, "group_norm": 1, "conv1d": 1, "conv2d": 1, "conv3d": 1}.get(name)
        if at is None:
            continue
        first = 1 if name in ("linear", "conv1d", "conv2d", "conv3d") else 2
        names = [graph.sources.get(n) for n in node.args[first : first + 2] if isinstance(n, fx.Node)]
        if len(names) == 2 and all(n is not None and uses[n] == 1 for n in names):
            found[node] = (str(names[0]), str(names[1]), at)
    return found


def _per_unit(value: Tensor, at: int) -> tuple[Tensor, Tensor]:
    rows = value.movedim(at, 0).flatten(1)
    return rows.mean(1), rows.std(1, correction=0)


def _moments(graph: Trace, net: Net, x: Any) -> _Moments:
    affine, kept = _affine(graph), {}

    def watch(node: fx.Node, value: Any) -> None:
        if node in affine:
            kept[node] = _per_unit(value, affine[node][2])

    _run(graph, net, x, watch)
    return kept


def _rescaled(graph: Trace, net: Net, x: Any, wanted: _Moments) -> Net:
    affine = _affine(graph)
    outputs = {used for node in graph.nodes if node.op == "output" for used in node.all_input_nodes}
    changed: dict[str, Tensor] = {}

    def watch(node: fx.Node, value: Any) -> None:
        if node not in wanted or node in outputs:
            return
        weight, bias, at = affine[node]
        mean, deviation = _per_unit(value, at)
        factor = torch.where(deviation > 1e-6, wanted[node][1] / deviation.clamp(min=1e-6), torch.ones_like(deviation))
        shift = wanted[node][0] - mean * factor
        shape = [1] * value.dim()
        shape[at] = -1
        value.mul_(factor.view(shape)).add_(shift.view(shape))  # what follows sees the mended unit
        rows = (-1, *[1] * (net.weights[weight].dim() - 1))
        changed[weight] = net.weights[weight] * factor.view(rows)
        changed[bias] = net.weights[bias] * factor + shift

    _run(graph, net, x, watch)
    return net.at(net.weights.replace(changed))


def _run(graph: Trace, net: Net, x: Any, watch: Any) -> None:
    args, kwargs = arguments(x)
    with torch.no_grad(), math_attention():
        graph.run(net.tensors, [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)], watch, lift=False)
