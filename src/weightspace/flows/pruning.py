"""Pruning: which weights are set to zero, and on which schedule. `flow` repairs those that are left, without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public
from weightspace.net.weights import Weights

if TYPE_CHECKING:
    from weightspace.symmetry.group import Group

__all__ = ["Prune", "prune", "share_at", "sparsity", "tightened"]


Repair: TypeAlias = Literal["gauss-newton", "layer", "descent"]


@public
@dataclass(frozen=True)
class Prune:
    """The goal of `prune`: set the smallest matrix and kernel weights to zero; biases and norms stay."""

    sparsity: float
    structure: str
    repair: Repair
    batch: int
    seed: int
    augment: Callable[[Any, torch.Generator], Any] | None = None


@public
def prune(
    sparsity: float,
    structure: str = "unstructured",
    repair: Repair = "gauss-newton",
    batch: int = 256,
    seed: int = 0,
    augment: Callable[[Any, torch.Generator], Any] | None = None,
) -> Prune:
    """Pruning as a goal of `flow`: set a share `sparsity` of the matrix and kernel weights to zero, step by step.

    Frozen weights are left alone. `structure`: "unstructured"; "n:m" as in "2:4" (n of every m neighbours stay, so that
    the sparsity is 1 - n/m; a layer whose rows cannot be cut into m stays whole); or "neuron": whole units with their
    incoming and outgoing weights, the same share of the units of every layer. `repair`: "gauss-newton", a few steps of
    the flow with the metric's examples all at once; "layer", every layer by itself, as SparseGPT (a baseline; quick);
    or "descent", thousands of steps on batches: longer, and better at high sparsity. `augment(inputs, generator)`
    changes the inputs of a descent's batches; the original network's outputs on the changed inputs are the targets.
    Raises `WeightspaceError`.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> path = ws.flow(net, ws.prune(0.5), ws.Pullback(task), steps=3)
    >>> round(ws.flows.sparsity(path.mask), 2), round(ws.flows.sparsity(path[-1].weights), 2)
    (0.5, 0.5)
    """
    if not 0 < sparsity < 1:
        raise WeightspaceError(f"a sparsity lies between 0 and 1, got {sparsity}; 1 would empty every layer")
    if structure not in ("unstructured", "neuron"):
        n, colon, m = structure.partition(":")
        if not colon or not n.isdigit() or not m.isdigit() or not 0 < int(n) < int(m):
            raise WeightspaceError(f'structure is "unstructured", "neuron", or "n:m" such as "2:4", got {structure!r}')
        if abs(sparsity - (1 - int(n) / int(m))) > 1e-9:
            raise WeightspaceError(f"{structure} zeroes a share of {1 - int(n) / int(m):g}, not {sparsity:g}")
    if augment is not None and repair != "descent":
        raise WeightspaceError(
            f'augment changes the batches of a descent, and {repair!r} has none; give repair="descent"'
        )
    return Prune(sparsity, structure, repair, batch, seed, augment)


@public
def share_at(sparsity: float, done: float) -> float:
    """The cubic pruning schedule: the sparsity s (1 - (1 - done)^3) when a share `done` of the steps is made.

    Source: To prune, or not to prune (Zhu, Gupta, 2017).

    >>> import weightspace as ws
    >>> [round(ws.flows.share_at(0.9, done), 2) for done in (0, 0.5, 1)]
    [0.0, 0.79, 0.9]
    """
    return sparsity * (1 - (1 - min(1.0, done)) ** 3)


@public
def sparsity(mask: Mapping[str, Tensor]) -> float:
    """The share of zeros in the matrices and kernels of a mask or of weights.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> ws.flows.sparsity(net.weights), ws.flows.sparsity(net.weights.zeros())
    (0.0, 1.0)
    """
    matrices = [m for m in mask.values() if m.dim() > 1]
    return 1 - sum(int((m != 0).sum()) for m in matrices) / max(1, sum(m.numel() for m in matrices))


@public
def tightened(
    weights: Weights,
    goal: Prune,
    share: float,
    before: Weights | None = None,
    *,
    worth: Mapping[str, Tensor] | None = None,
    group: Group | None = None,
    frozen: Collection[str] = (),
) -> Weights:
    """The pruning mask for a share of the weights: zero where one is cut, else one; zeros of `before` stay zero.

    The weights with the smallest `worth` (by default |w|) are cut. Those of `frozen` are neither cut nor counted.
    Raises `WeightspaceError` for a layer that would be empty.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> mask = ws.flows.tightened(net.weights, ws.prune(0.8), share=0.8)
    >>> round(ws.flows.sparsity(mask), 2)
    0.8
    """
    names = [name for name, w in weights.items() if w.dim() > 1 and name not in frozen]
    if not names:
        raise WeightspaceError("there is no matrix or kernel to prune")
    value = {n: (weights if worth is None else worth)[n].abs() for n in weights}
    if before is not None:
        value = {n: v * before[n] for n, v in value.items()}
    if goal.structure == "neuron":
        assert group is not None
        mask = _units(weights, value, share, group.without(frozen) if frozen else group)
    elif goal.structure != "unstructured":
        mask = _neighbours(weights, value, names, goal.structure, share / goal.sparsity)
    else:
        mask = _smallest(weights, value, names, share)
    for name in weights:
        if before is not None:
            mask[name].mul_(before[name])
        if name in names and not bool(mask[name].any()):
            raise WeightspaceError(f"this sparsity would empty {name}; ask for less")
    return mask


def _smallest(weights: Weights, value: Mapping[str, Tensor], names: list[str], share: float) -> Weights:
    mask = weights.map(torch.ones_like)
    every = torch.cat([value[n].flatten() for n in names])
    count = round(share * len(every))
    if count:
        flat = torch.ones_like(every)
        flat[every.argsort(stable=True)[:count]] = 0
        for name, part in zip(names, flat.split([value[n].numel() for n in names]), strict=True):
            mask[name].copy_(part.view(weights[name].shape))
    return mask


def _neighbours(
    weights: Weights, value: Mapping[str, Tensor], names: list[str], structure: str, done: float
) -> Weights:
    """Of the m - n smallest of every m neighbours, which are to be cut in the end, the smallest so far."""
    n, m = map(int, structure.split(":"))
    fitting = [name for name in names if value[name].flatten(1).shape[1] % m == 0]
    if not fitting:
        raise WeightspaceError(f"no matrix or kernel has rows that can be cut into {m}")
    leaving = {}
    for name in fitting:
        groups = value[name].reshape(-1, m)
        smallest = torch.zeros_like(groups, dtype=torch.bool).scatter_(
            1, groups.topk(m - n, 1, largest=False).indices, True
        )
        leaving[name] = smallest.view(weights[name].shape)
    far = {name: torch.where(leaving[name], value[name], math.inf) for name in fitting}
    total = sum(int(leave.sum()) for leave in leaving.values())
    rest = sum(far[name].numel() for name in fitting)
    return _smallest(weights, far, fitting, round(done * total) / rest)


def _units(weights: Weights, value: Mapping[str, Tensor], share: float, group: Group) -> Weights:
    """The same share of every permutable axis of units: those with the smallest weights around them."""
    mask = weights.map(torch.ones_like)
    axes = [axis for axis in group.permutable() if not axis.over]
    if not axes:
        raise WeightspaceError("no unit of this network can be taken out by itself; prune weights instead")
    for axis in axes:
        met = [place for place in group.places[axis.name] if group.blocks[place.block].tensor in weights]
        table = torch.zeros(axis.size, dtype=torch.float64)
        for place in met:
            block = group.blocks[place.block]
            table += group.gather(group.view(block, value[block.tensor].double().square()), block, place.leaf).cpu()
        gone = torch.ones(axis.size)
        gone[table.argsort(stable=True)[: min(axis.size - 1, round(share * axis.size))]] = 0
        for place in met:
            block = group.blocks[place.block]
            view = group.view(block, mask[block.tensor])
            view.mul_(group.spread(gone.to(view), block, place.leaf))
    return mask
