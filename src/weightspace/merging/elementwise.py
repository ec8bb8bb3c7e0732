"""Merging methods that act entry by entry: weighted means and sums of task vectors, with masks."""

from __future__ import annotations

from torch import Tensor

from weightspace.merging.part import Part, Piece
from weightspace.merging.settings import Combine, Settings
from weightspace.net.errors import WeightspaceError

__all__ = ["linear", "task_arithmetic"]


def linear(part: Part, settings: Settings) -> Combine:
    """The weighted mean: sum_i w_i theta_i / sum_i w_i; with `normalize` 0 the sum alone."""
    scale = sum(settings.weights) if settings.options["normalize"] else 1.0
    if not scale:
        raise WeightspaceError(f"the weights of {part.name!r} sum to zero; give others, or normalize=0")
    weights = [weight / scale for weight in settings.weights]

    def combine(piece: Piece) -> Tensor:
        return _sum(piece.parents, weights)

    return combine


def task_arithmetic(part: Part, settings: Settings) -> Combine:
    """The base plus task vectors: theta_0 + scale sum_i w_i tau_i (Editing models with task arithmetic, Ilharco et al.,
    2023)."""
    weights = [settings.options["scale"] * weight for weight in settings.weights]

    def combine(piece: Piece) -> Tensor:
        assert piece.base is not None
        return _sum(piece.deltas, weights).add_(piece.base)

    return combine


def _sum(tensors: list[Tensor], weights: list[float]) -> Tensor:
    total = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor, alpha=weight)
    return total
