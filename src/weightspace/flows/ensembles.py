"""Ensembles of networks: mean prediction, draws around a training run (SWAG), and diversity measures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.flows.attacks import input_gradient
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.net.seeds import derived
from weightspace.net.weights import wide
from weightspace.task.outputs import logits
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["coherence", "disagreement", "ensemble", "swag"]


class _Mean(nn.Module):
    """The log of the mean probability, log (1 / n) sum_k softmax f_k(x)."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        outputs = [logits(member(*args, **kwargs)) for member in self.members]
        if outputs[0].dim() < 2 or outputs[0].shape[-1] < 2:
            raise WeightspaceError(f"outputs of shape {tuple(outputs[0].shape)} are not classes; average them yourself")
        rows = torch.stack([f.to(wide(f.dtype)).log_softmax(-1) for f in outputs])  # rounded once, at the end
        return (rows.logsumexp(0) - math.log(len(self.members))).to(outputs[0].dtype)


@public
def ensemble(nets: Sequence[Net]) -> Net:
    """The ensemble of networks as one network: f(x) = log (1 / n) sum_k softmax f_k(x).

    Whatever takes a network takes it. One call costs a call of every member. Raises `WeightspaceError` for an empty
    list, `ArchitectureMismatch` for networks of different tensors.

    >>> import weightspace as ws
    >>> (a, task), (b, _) = ws.demo.example(), ws.demo.example(1)
    >>> both = ws.ensemble([a, b])
    >>> both(task.example(3)).exp().sum(1).round(decimals=3)               # probabilities
    tensor([1., 1., 1.])
    """
    members = list(nets)
    if not members:
        raise WeightspaceError("an ensemble needs at least one network, got none")
    for net in members:
        checked(members[0]).check(net)
        if net.dtype != members[0].dtype:
            raise WeightspaceError(
                f"an ensemble of {members[0].dtype} and {net.dtype}; bring all to one dtype by .to()"
            )
    return Net.of(_Mean([net.live() for net in members]))


@public
def swag(points: Iterable[Net], n: int, seed: int = 0) -> list[Net]:
    """Draw n networks by SWAG: from a Gaussian fitted to the points of a training run.

    Its mean is m, its covariance (diag(s^2) + D D^T / (k - 1)) / 2; m and s^2 are the mean and the variance of the k
    points, D their differences from m. Buffers are those of the last point (re-estimate running statistics). Frozen
    weights stay. Raises `WeightspaceError` for fewer than two points, and for frozen weights that differ. Source: A
    simple baseline for Bayesian uncertainty in deep learning (Maddox et al., 2019).

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> path = ws.flow(net, ws.learn(task), ws.Euclidean(), steps=4, size=0.1, save=1)
    >>> nets = ws.swag(path, 3, seed=0)
    >>> len(nets), bool((nets[0] - nets[1]).norm() > 0)
    (3, True)
    """
    nets = _pair(list(points))
    flat = torch.stack([net.weights.flat() for net in nets])
    rows = flat.to(wide(flat.dtype))
    mean, away = rows.mean(0), rows - rows.mean(0)
    deviation = away.square().mean(0).sqrt()
    last, drawn = nets[-1], []
    still = {name: last.weights[name] for name in last.frozen}
    for name, tensor in still.items():
        if any(not torch.equal(tensor, net.weights[name]) for net in nets):
            raise WeightspaceError(f"{name} is frozen, and differs between the points; take net.thawed() of each")
    for k in range(n):
        generator = torch.Generator().manual_seed(derived(seed, "network", k))
        one, other = (torch.randn(size, generator=generator).to(mean) for size in (len(mean), len(rows)))
        low = away.T @ other / math.sqrt(len(rows) - 1)
        weights = last.weights.shaped((mean + (deviation * one + low) / math.sqrt(2)).to(flat.dtype))
        drawn.append(last.at(weights.replace(still) if still else weights))
    return drawn


@public
def disagreement(nets: Sequence[Net], task: Task) -> float:
    """The share of examples that two networks classify differently, in [0, 1]; the mean over pairs.

    >>> import weightspace as ws
    >>> (a, task), (b, _) = ws.demo.example(), ws.demo.example(1)
    >>> ws.disagreement([a, a], task), ws.disagreement([a, b], task) > 0
    (0.0, True)
    """
    with torch.no_grad():
        outputs = [task.outputs(net) for net in _pair(nets)]
    if outputs[0].dim() < 2 or outputs[0].shape[-1] < 2:
        raise WeightspaceError(f"outputs of shape {tuple(outputs[0].shape)} are not classes; give classifiers")
    classes = [f.argmax(-1) for f in outputs]
    return _mean([(a != b).double().mean() for a, b in combinations(classes, 2)])


@public
def coherence(nets: Sequence[Net], task: Task) -> float:
    """The mean cosine similarity of input gradients, cos(grad_x L(f_a), grad_x L(f_b)), in [-1, 1].

    The mean is over pairs of networks and examples. Where it is high, an adversarial example for one network also fools
    the other. Source: Improving adversarial robustness of ensembles with diversity training (Kariyappa, Qureshi, 2019).

    >>> import weightspace as ws
    >>> (a, task), (b, _) = ws.demo.example(), ws.demo.example(1)
    >>> round(ws.coherence([a, a], task), 3), ws.coherence([a, b], task) < 0.9
    (1.0, True)
    """
    rows = [_gradients(net, task) for net in _pair(nets)]
    return _mean([F.cosine_similarity(a, b, dim=1).double().mean() for a, b in combinations(rows, 2)])


def _gradients(net: Net, task: Task) -> Float[Tensor, "examples numbers"]:
    return torch.cat([input_gradient(net, task, x, y) for x, y in task.batches(net)])


def _pair(nets: Sequence[Net]) -> list[Net]:
    found = [checked(net) for net in nets]
    if len(found) < 2:
        raise WeightspaceError(f"a comparison needs at least two networks, got {len(found)}")
    return found


def _mean(parts: list[Tensor]) -> float:
    return float(torch.stack(parts).mean())
