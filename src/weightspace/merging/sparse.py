"""Merging methods that make task vectors sparse, by magnitude or at random, and add them with or without a vote."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from weightspace.merging.elementwise import agreeing, shares, summed
from weightspace.merging.part import Part, Piece
from weightspace.merging.settings import Combine, Settings
from weightspace.merging.thresholds import Cut, largest
from weightspace.net.errors import WeightspaceError
from weightspace.net.seeds import derived

__all__ = [
    "breadcrumbs",
    "breadcrumbs_ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "elect",
    "ties",
    "uniform",
]

Sparse: TypeAlias = Callable[[Piece], list[Tensor]]
_BLOCK = 1 << 14  # positions that one generator draws


def ties(part: Part, settings: Settings) -> Combine:
    """Trim, elect sign, merge (TIES-merging: resolving interference when merging models, Yadav et al., 2023).

    Of every task vector the share `density` of largest magnitude is kept, max(1, floor(density n)) of n entries. The
    sign of an entry is that of sum_i w_i tau_i; those of the other sign, and zeros, are left out:
    theta_0 + scale sum_i w_i tau_i / sum_i w_i over the rest, or with `normalize` 0 without the divisor. `rescale` 1
    gives every trimmed task vector back its L1 norm.
    """
    return _merged(part, settings, _trimmed(part, settings), vote=True)


def dare_linear(part: Part, settings: Settings) -> Combine:
    """Drop and rescale: theta_0 + scale sum_i w_i m_i tau_i / density (Language models are super Mario: absorbing
    abilities from homologous models as a free lunch, Yu et al., 2024).

    m_i keeps every entry with probability `density`, independently; `rescale` 0 leaves out the division. The masks
    depend on the seed, the tensor's name, the parent's place in the list and the entry's position alone.
    """
    return _merged(part, settings, _dropped(settings), vote=False)


def dare_ties(part: Part, settings: Settings) -> Combine:
    """Drop and rescale as `dare_linear`, then elect signs as `ties`."""
    return _merged(part, settings, _dropped(settings), vote=True)


def della_linear(part: Part, settings: Settings) -> Combine:
    """`della` without an election of signs: theta_0 + scale sum_i w_i m_i tau_i / p_i."""
    return _merged(part, settings, _by_rank(part, settings), vote=False)


def della(part: Part, settings: Settings) -> Combine:
    """Drop small entries more often, rescale, then elect signs as `ties` (DELLA-merging: reducing interference in model
    merging through magnitude-based sampling, Deep, Bhardwaj, Poria, 2024).

    In each row an entry is kept with probability p from density - epsilon (the smallest magnitude) to
    density + epsilon (the largest), linear in its rank, and divided by p unless `rescale` is 0. `density` 1 keeps all.
    Raises `WeightspaceError` unless these are probabilities.
    """
    return _merged(part, settings, _by_rank(part, settings), vote=True)


def breadcrumbs(part: Part, settings: Settings) -> Combine:
    """Task vectors without their largest and smallest entries (Model Breadcrumbs: scaling multi-task model merging with
    sparse masks, Davari, Belilovsky, 2024).

    Of n entries the floor(gamma n) of largest magnitude are left out, fewer where that leaves too few, and the next
    floor(density n) are kept; `density` 1 keeps all. theta_0 + scale sum_i w_i m_i tau_i.
    """
    return _merged(part, settings, _between(part, settings), vote=False)


def breadcrumbs_ties(part: Part, settings: Settings) -> Combine:
    """Without the largest and smallest entries as `breadcrumbs`, then signs elected as `ties`."""
    return _merged(part, settings, _between(part, settings), vote=True)


def elect(deltas: list[Tensor], weights: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """The sum of the weighted entries that have the sign of their sum, and the sum of their weights, entry by entry.

    The task vectors are overwritten. A sum of zero counts as positive.
    """
    for delta, weight in zip(deltas, weights, strict=True):
        delta.mul_(weight)
    return agreeing(deltas, weights, summed(deltas, [1.0] * len(deltas)) >= 0)


def uniform(seed: int, start: int, stop: int) -> Tensor:
    """Uniform numbers in [0, 1) of the positions `start` to `stop`, which depend on the seed and the position alone."""
    drawn = [torch.empty(0, dtype=torch.float32, device="cpu")]
    for block in range(start // _BLOCK, -(-stop // _BLOCK)):
        generator = torch.Generator(device="cpu").manual_seed(derived(seed, block))
        numbers = torch.rand(_BLOCK, generator=generator, dtype=torch.float32, device="cpu")
        first = block * _BLOCK
        drawn.append(numbers[max(start - first, 0) : stop - first])
    return torch.cat(drawn)


def _merged(part: Part, settings: Settings, sparse: Sparse, *, vote: bool) -> Combine:
    """The base plus the sum of sparse task vectors, with or without a vote on the sign of every entry."""
    scale, normalize = settings.options["scale"], bool(settings.options["normalize"])
    weights = settings.weights if vote else tuple(shares(part, settings, normalize))

    def combine(piece: Piece) -> Tensor:
        assert piece.base is not None
        deltas = sparse(piece)
        if not vote:
            return summed(deltas, weights).mul_(scale).add_(piece.base)
        total, mass = elect(deltas, weights)
        if normalize:
            total.div_(torch.where(mass == 0, 1.0, mass))
        return total.mul_(scale).add_(piece.base)

    return combine


def _trimmed(part: Part, settings: Settings) -> Sparse:
    densities, size = settings.each("density"), part.shape.numel()
    if {*densities} == {1} or not size:
        return _whole
    cuts = _cuts(part, [[max(1, int(density * size))] for density in densities])

    def sparse(piece: Piece) -> list[Tensor]:
        deltas = piece.deltas
        for delta, (cut,) in zip(deltas, cuts, strict=True):
            delta.mul_(cut.mask(delta.abs(), piece.start))
        return deltas

    return _restored(part, settings, sparse)


def _between(part: Part, settings: Settings) -> Sparse:
    densities, size = settings.each("density"), part.shape.numel()
    if {*densities} == {1} or not size:
        return _whole
    counts = []
    for density, gamma in zip(densities, settings.each("gamma"), strict=True):
        kept = int(density * size)
        last = min(size, kept + int(gamma * size))
        counts.append([last, last - kept])
    cuts = _cuts(part, counts)

    def sparse(piece: Piece) -> list[Tensor]:
        deltas = piece.deltas
        for delta, (inner, outer) in zip(deltas, cuts, strict=True):
            sizes = delta.abs()
            delta.mul_(inner.mask(sizes, piece.start) & ~outer.mask(sizes, piece.start))
        return deltas

    return _restored(part, settings, sparse)


def _dropped(settings: Settings) -> Sparse:
    densities = settings.each("density")
    if {*densities} == {1}:
        return _whole

    def sparse(piece: Piece) -> list[Tensor]:
        deltas = piece.deltas
        for delta, drawn, density in zip(deltas, _drawn(settings, piece), densities, strict=True):
            delta.mul_(drawn < density).mul_(1 / density if settings.options["rescale"] else 1.0)
        return deltas

    return sparse


def _by_rank(part: Part, settings: Settings) -> Sparse:
    shares_of = [*zip(settings.each("density"), settings.each("epsilon"), strict=True)]
    if all(density == 1 for density, _ in shares_of):
        return _whole
    for density, epsilon in shares_of:
        if density < 1 and not 0 < density - epsilon <= density + epsilon <= 1:
            raise WeightspaceError(
                f"density - epsilon and density + epsilon are probabilities, not {density - epsilon:g} and "
                f"{density + epsilon:g}; take a smaller epsilon"
            )
    vectors = len(part.shape) < 2  # one row, which pieces may cut
    rows = [_ranks((part.parent(k) - part.origin()).view(1, -1)) for k in range(len(part.sources)) if vectors]

    def sparse(piece: Piece) -> list[Tensor]:
        deltas = piece.deltas
        for k, (delta, drawn) in enumerate(zip(deltas, _drawn(settings, piece), strict=True)):
            density, epsilon = shares_of[k]
            if density == 1:
                continue
            span = slice(piece.start, piece.start + delta.numel())
            ranks = rows[k][span] if vectors else _ranks(delta.view(-1, part.row))
            kept = ranks.mul(2 * epsilon).add_(density - epsilon)
            delta.mul_(drawn < kept)
            if settings.options["rescale"]:
                delta.div_(kept)
        return deltas

    return sparse


def _ranks(rows: Tensor) -> Tensor:
    """The rank of every magnitude in its row, from 0 for the smallest to 1 for the largest; 1/2 where it is alone."""
    columns = rows.shape[1]
    if columns < 2:
        return torch.full((rows.numel(),), 0.5, dtype=rows.dtype, device=rows.device)
    order = rows.abs().argsort(dim=1, stable=True)
    steps = torch.arange(columns, dtype=rows.dtype, device=rows.device).div_(columns - 1)
    return torch.empty_like(rows).scatter_(1, order, steps.expand_as(rows)).flatten()


def _drawn(settings: Settings, piece: Piece) -> list[Tensor]:
    """The uniform numbers of every parent at the positions of a piece."""
    stop = piece.start + piece.parents[0].numel()
    return [
        uniform(derived(settings.seed, "mask", k), piece.start, stop).to(parent.device)
        for k, parent in enumerate(piece.parents)
    ]


def _cuts(part: Part, counts: list[list[int]]) -> list[list[Cut]]:
    """The cuts that leave the largest so many magnitudes of every task vector, by task vector."""

    def sizes(piece: Piece) -> list[Tensor]:
        return [delta.abs_() for delta in piece.deltas]

    return largest(part, sizes, counts)


def _restored(part: Part, settings: Settings, sparse: Sparse) -> Sparse:
    """The sparse task vectors; with `rescale`, times the factors that give them their L1 norms back."""
    if not settings.options["rescale"]:
        return sparse
    before, after = (torch.zeros(len(part.sources), dtype=torch.float64, device="cpu") for _ in range(2))
    for piece in part.pieces():
        before += _sizes(piece.deltas)
        after += _sizes(sparse(piece))
    factors = torch.where(after > 0, before / after, 1.0).tolist()

    def restored(piece: Piece) -> list[Tensor]:
        return [delta.mul_(factor) for delta, factor in zip(sparse(piece), factors, strict=True)]

    return restored


def _sizes(deltas: list[Tensor]) -> Tensor:
    return torch.stack([delta.abs().double().sum().cpu() for delta in deltas])


def _whole(piece: Piece) -> list[Tensor]:
    return piece.deltas
