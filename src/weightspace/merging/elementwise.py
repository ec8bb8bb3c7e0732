"""Merging methods that act entry by entry: weighted means, sums of task vectors, agreement between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightspace.merging.part import Part, Piece, entries
from weightspace.merging.settings import Combine, Settings
from weightspace.merging.thresholds import largest
from weightspace.net.errors import WeightspaceError

__all__ = [
    "agreeing",
    "consensus",
    "fisher",
    "fusion",
    "linear",
    "nearswap",
    "passthrough",
    "sce",
    "shares",
    "summed",
    "task_arithmetic",
]


def summed(tensors: Sequence[Tensor], weights: Sequence[float], *, over: bool = False) -> Tensor:
    """sum_i w_i x_i, a new tensor; `over`: in the memory of the first."""
    total = tensors[0].mul_(weights[0]) if over else tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor, alpha=weight)
    return total


def shares(part: Part, settings: Settings, normalize: bool = True) -> list[float]:
    """The weights divided by their sum. Raises `WeightspaceError` where they sum to zero."""
    scale = sum(settings.weights) if normalize else 1.0
    if normalize and abs(scale) <= 1e-12 * sum(map(abs, settings.weights)):
        raise WeightspaceError(f"the weights of {part.name!r} sum to zero; give others, or normalize=0")
    return [weight / scale for weight in settings.weights]


def agreeing(deltas: Sequence[Tensor], weights: Sequence[float], rises: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the entries that are positive where `rises`, or negative elsewhere; and the sum of their weights.

    The vectors are overwritten.
    """
    sign = torch.where(rises, 1.0, -1.0).to(deltas[0].dtype)
    total, mass = torch.zeros_like(sign), torch.zeros_like(sign)
    for delta, weight in zip(deltas, weights, strict=True):
        mass.add_(delta.mul_(sign) > 0, alpha=weight)
        total.add_(delta.clamp_(min=0))
    return total.mul_(sign), mass


def linear(part: Part, settings: Settings) -> Combine:
    """The weighted mean: sum_i w_i theta_i / sum_i w_i; with `normalize` 0 the sum alone (Model soups:
    averaging weights of multiple fine-tuned models improves accuracy without increasing inference time, Wortsman et
    al., 2022)."""
    weights = shares(part, settings, bool(settings.options["normalize"]))
    return lambda piece: summed(piece.parents, weights, over=True)


def task_arithmetic(part: Part, settings: Settings) -> Combine:
    """The base plus task vectors: theta_0 + scale sum_i w_i tau_i, with `normalize` divided by sum_i w_i (Editing
    models with task arithmetic, Ilharco et al., 2023)."""
    weights = [settings.options["scale"] * w for w in shares(part, settings, bool(settings.options["normalize"]))]
    return lambda piece: summed(piece.deltas, weights).add_(_base(piece))


def passthrough(part: Part, settings: Settings) -> Combine:
    """The one parent as it is, times `scale`: scale theta."""
    return lambda piece: piece.parents[0] * settings.options["scale"]


def nearswap(part: Part, settings: Settings) -> Combine:
    """The base moved to the parent where they are near: by at most `t`, and not beyond (nearswap, alchemonaut, 2024).

    theta_0 + s tau with s = min(1, t / |tau|): entries that differ by less than t are the parent's.
    """
    t = settings.options["t"]
    return lambda piece: piece.deltas[0].clamp_(-t, t).add_(_base(piece))


def consensus(part: Part, settings: Settings) -> Combine:
    """The sum of task vectors where at least `agreement` tasks use it (Localizing task information for improved model
    merging and compression, Wang et al., 2024).

    tau = sum_i w_i tau_i; task i uses an entry where |w_i tau_i| >= mask |tau - w_i tau_i| (its TALL mask); the merged
    entry is theta_0 + scale tau where `agreement` tasks or more use it, else theta_0. An entry without any change is
    used by none.
    """
    scale, threshold, agreement = (settings.options[name] for name in ("scale", "mask", "agreement"))

    def combine(piece: Piece) -> Tensor:
        own = [delta * weight for delta, weight in zip(piece.deltas, settings.weights, strict=True)]
        total = summed(own, [1.0] * len(own))
        users = torch.zeros(total.shape, dtype=torch.int16, device=total.device)
        for delta in own:
            users += delta.abs() >= (total - delta).abs_().mul_(threshold)
        return total.mul_(users >= agreement).mul_(scale).add_(_base(piece))

    return combine


def fisher(part: Part, settings: Settings) -> Combine:
    """The mean weighted by importances: sum_i w_i F_i theta_i / sum_i w_i F_i (Merging models with Fisher-weighted
    averaging, Matena and Raffel, 2022).

    F_i >= 0 is beside the parents, such as the diagonal of the Fisher information. Where all are zero, and for tensors
    that have none, such as buffers, it is the weighted mean.
    """
    if len(part.beside) != len(part.sources):
        raise WeightspaceError(f"fisher needs the importances of every network; {part.name!r} has none")
    weights = shares(part, settings)
    if not any(name in source for source, name in part.beside):
        return lambda piece: summed(piece.parents, weights)

    def combine(piece: Piece) -> Tensor:
        total = torch.zeros(piece.parents[0].shape, dtype=torch.float64, device=piece.parents[0].device)
        mass = torch.zeros_like(total)
        stop = piece.start + total.numel()
        for parent, weight, (source, name) in zip(piece.parents, weights, part.beside, strict=True):
            importance = entries(source, name, piece.start, stop).to(total) * weight
            total.addcmul_(importance, parent)
            mass.add_(importance)
        plain = summed(piece.parents, weights)
        return torch.where(mass > 0, total / mass, plain).to(plain.dtype)

    return combine


def sce(part: Part, settings: Settings) -> Combine:
    """Select, calculate, erase: a mean of task vectors weighted by their energy (FuseChat, Wan et al., 2024).

    Of the entries at which the task vectors differ, the share `select_topk` of largest variance is kept; w_i is the
    mean square of task vector i there, over their sum; then entries against the sign of the sum are erased, and
    theta_0 + sum_i w_i tau_i / sum_i w_i over the rest. The weights of the recipe do not count.
    """
    share = settings.options["select_topk"]
    size, cut = len(part.sources), None
    if share < 1:
        count = int(share * sum(int(_variance(piece).count_nonzero()) for piece in part.pieces()))
        cut = largest(part, lambda piece: [_variance(piece)], [[count]])[0][0]

    def selected(piece: Piece) -> list[Tensor]:
        if cut is None:
            return piece.deltas
        mask = cut.mask(_variance(piece), piece.start)
        return [delta.mul_(mask) for delta in piece.deltas]

    energy = torch.zeros(size, dtype=torch.float64, device="cpu")
    for piece in part.pieces():
        energy += torch.stack([delta.double().square().sum().cpu() for delta in selected(piece)])
    weights = (energy / energy.sum() if energy.sum() > 0 else torch.full_like(energy, 1 / size)).tolist()

    def combine(piece: Piece) -> Tensor:
        deltas = selected(piece)
        rises = summed(deltas, [1.0] * size) >= 0
        for delta, weight in zip(deltas, weights, strict=True):
            delta.mul_(weight)
        total, mass = agreeing(deltas, weights, rises)
        return total.div_(torch.where(mass > 0, mass, 1.0)).add_(_base(piece))

    return combine


def fusion(part: Part, settings: Settings) -> Combine:
    """The base with the most important entries of one parent (arcee_fusion of mergekit, 2024).

    The importance is |tau| KL(softmax(theta) || softmax(theta_0)), the divergence over the last axis; an entry is the
    parent's where its importance is at least median + 1.5 (third - first quartile), of exact order statistics.
    """
    last = part.shape[-1] if len(part.shape) > 1 else part.shape.numel()
    whole = _divergence(part.parent(0).view(1, -1), part.origin().view(1, -1)) if len(part.shape) < 2 else None

    def importance(piece: Piece) -> Tensor:
        base, parent = _base(piece), piece.parents[0]
        size = (parent - base).abs_()
        if whole is not None:
            return size.mul_(whole.flatten())
        return size.view(-1, last).mul_(_divergence(parent.view(-1, last), base.view(-1, last))).flatten()

    n = part.shape.numel()
    ranks = [n - int(q * (n - 1)) for q in (0.25, 0.5, 0.75)]  # the q-th number from below, counted from above
    first, median, third = (cut.value for cut in largest(part, lambda piece: [importance(piece)], [ranks])[0])
    bar = median + 1.5 * (third - first)

    def combine(piece: Piece) -> Tensor:
        return piece.deltas[0].mul_(importance(piece) >= bar).add_(_base(piece))

    return combine


def _divergence(parent: Tensor, base: Tensor) -> Tensor:
    """KL(softmax(parent) || softmax(base)) of every row, as a column."""
    p, q = (t.double().softmax(-1).add_(1e-8) for t in (parent, base))
    return p.mul_((p / q).log_()).sum(-1, keepdim=True).clamp_(min=0).to(parent.dtype)


def _variance(piece: Piece) -> Tensor:
    deltas = piece.deltas
    mean = summed(deltas, [1 / len(deltas)] * len(deltas))
    total = torch.zeros_like(mean)
    for delta in deltas:
        total.add_(delta.sub_(mean).square_(), alpha=1 / len(deltas))
    return total


def _base(piece: Piece) -> Tensor:
    assert piece.base is not None
    return piece.base
