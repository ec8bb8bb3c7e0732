"""Merging methods that look at angles between networks: spherical means, model stock, orthogonal task vectors.

Each gives sum_i c_i x_i with coefficients of one tensor that depend on the inner products <x_i, x_j> alone, so that a
tensor of any size is read twice in pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from weightspace.merging.elementwise import shares, summed
from weightspace.merging.part import Part, Piece
from weightspace.merging.settings import Combine, Settings

__all__ = ["inner_products", "karcher", "model_stock", "multislerp", "nuslerp", "orthogonal", "slerp"]

_BLOCK = 1 << 20  # numbers that are held in float64 at once
_PARALLEL = 0.9995  # the cosine above which slerp is linear
_RANK = 1e-10  # of a squared norm: what counts as zero


def slerp(part: Part, settings: Settings) -> Combine:
    """Spherical linear interpolation of two networks, t = w_2 / (w_1 + w_2) of the way:
    (sin((1 - t) phi) theta_1 + sin(t phi) theta_2) / sin(phi), phi the angle between them (Animating rotation with
    quaternion curves, Shoemake, 1985).

    Linear where |cos(phi)| > 0.9995, and where one of them is zero.
    """
    t = shares(part, settings)[1]
    return _combination(_arc(inner_products(part, _parents), t, _PARALLEL), _parents)


def nuslerp(part: Part, settings: Settings) -> Combine:
    """Spherical linear interpolation of two task vectors, or of two networks where there is no base, t = w_2 / (w_1 +
    w_2) of the way; row by row over the last axis with `nuslerp_flatten` 0 (NuSLERP of mergekit, 2024).

    Linear only where the two are parallel, and where one of them is zero.
    """
    t = shares(part, settings)[1]
    if settings.options["nuslerp_flatten"] or len(part.shape) < 2:
        return _combination(_arc(inner_products(part, _deltas), t, 1 - 1e-12), _deltas)
    last = part.shape[-1]

    def combine(piece: Piece) -> Tensor:
        a, b = (delta.view(-1, last).double() for delta in piece.deltas)
        cosines = (torch.nn.functional.normalize(a, dim=1) * torch.nn.functional.normalize(b, dim=1)).sum(1)
        bent = (cosines.abs() <= 1 - 1e-12) & (a.square().sum(1) > 0) & (b.square().sum(1) > 0)
        angle = torch.where(bent, cosines, 0).arccos()
        first = torch.where(bent, ((1 - t) * angle).sin() / angle.sin(), 1 - t)
        second = torch.where(bent, (t * angle).sin() / angle.sin(), t)
        total = a.mul_(first[:, None]).add_(b.mul_(second[:, None])).flatten().to(piece.parents[0].dtype)
        return total if piece.base is None else total.add_(piece.base)

    return combine


def multislerp(part: Part, settings: Settings) -> Combine:
    """The direction of the weighted mean of directions, with the weighted mean length: of task vectors where there is a
    base, else of the networks (Multi-SLERP of mergekit, 2024).

    u_i = x_i / |x_i|, m = sum_i w_i u_i, weights that sum to one: (sum_i w_i |x_i|) m / |m|. The step in the tangent
    space at m that its author describes is zero, since sum_i w_i (u_i - <u_i, m> m / |m|^2) = 0. Where the directions
    cancel (|m| < 1e-6) it is the weighted mean.
    """
    weights = torch.tensor(shares(part, settings), dtype=torch.float64, device="cpu")
    gram = inner_products(part, _deltas)
    norms, cosines = _directions(gram)
    size = float(weights @ cosines @ weights) ** 0.5 if weights @ cosines @ weights > 0 else 0.0
    if size < 1e-6:
        return _combination(weights, _deltas)
    return _combination(_over(weights, norms) * float(weights @ norms) / size, _deltas)


def karcher(part: Part, settings: Settings) -> Combine:
    """The Riemannian (Karcher) mean of the directions on the sphere, with the weighted mean length (Riemannian center
    of mass and mollifier smoothing, Karcher, 1977).

    u_i = x_i / |x_i|; m minimises sum_i w_i arccos(<m, u_i>)^2, by fixed-point steps from the normalised weighted mean,
    at most `max_iter` of them, until one is shorter than `tol`; then (sum_i w_i |x_i|) m, weights that sum to one. Zero
    networks have no direction, and count for the length alone. Where the directions cancel it is the weighted mean.
    """
    weights = torch.tensor(shares(part, settings), dtype=torch.float64, device="cpu")
    norms, cosines = _directions(inner_products(part, _parents))
    pull = weights * (norms > 0)
    square = float(pull @ cosines @ pull)
    if square < 1e-12:
        return _combination(weights, _parents)
    at = pull / square**0.5  # coefficients of m
    for _ in range(int(settings.options["max_iter"])):
        dots = (cosines @ at).clamp(-1, 1)
        angles = dots.arccos()
        bent = angles.sin() > 1e-7  # of one that is opposite, every direction is the shortest
        turned = pull * torch.where(bent, angles / angles.sin(), (angles < 1).double())
        step = turned - (turned @ dots) * at
        length = max(0.0, float(step @ cosines @ step)) ** 0.5
        if length < settings.options["tol"]:
            break
        at = math.cos(length) * at + math.sin(length) / length * step
        at = at / (at @ cosines @ at).sqrt()
    return _combination(_over(at, norms) * float(weights @ norms), _parents)


def model_stock(part: Part, settings: Settings) -> Combine:
    """The mean of n fine-tuned networks, pulled to the base by how little they agree: theta_0 + t mean_i tau_i,
    t = n c / (1 + (n - 1) c), c the mean cosine of two task vectors (Model stock: all we need is just a few fine-tuned
    models, Jang, Yun, Han, 2024).

    For each tensor. The weights of the recipe do not count. t is 0 where its denominator is.
    """
    n = len(part.sources)
    _, cosines = _directions(inner_products(part, _deltas))
    mean = float((cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1)))
    below = 1 + (n - 1) * mean
    t = n * mean / below if abs(below) >= 1e-6 else 0.0
    return _combination(torch.full((n,), t / n, dtype=torch.float64, device="cpu"), _deltas)


def orthogonal(part: Part, settings: Settings) -> Combine:
    """Task vectors made orthogonal to the ones before, then summed: theta_0 + scale sum_i w_i tau_i', tau_i' the part
    of tau_i that is orthogonal to tau_1 .. tau_{i-1}, tensor by tensor (after Gram and Schmidt; compare Merging models
    on the fly without retraining: a sequential approach to scalable continual model merging, Tang et al., 2025).

    The order of the networks counts: the first keeps its task vector.
    """
    gram, n = inner_products(part, _deltas), len(part.sources)
    kept = torch.eye(n, dtype=torch.float64, device="cpu")
    for i in range(1, n):
        before = gram[:i, :i]
        kept[i, :i] = -torch.linalg.pinv(before, rtol=_RANK, hermitian=True) @ gram[:i, i]
    weights = torch.tensor(settings.weights, dtype=torch.float64, device="cpu") * settings.options["scale"]
    return _combination(weights @ kept, _deltas)


def inner_products(part: Part, vectors: Callable[[Piece], list[Tensor]]) -> Tensor:
    """The inner products of all pairs of vectors of one tensor, summed in float64."""
    total = torch.zeros(len(part.sources), len(part.sources), dtype=torch.float64, device="cpu")
    for piece in part.pieces():
        rows = vectors(piece)
        step = max(1, _BLOCK // len(rows))
        for start in range(0, rows[0].numel(), step):
            block = torch.stack([row[start : start + step].double() for row in rows])
            total += (block @ block.mT).cpu()
    return total


def _parents(piece: Piece) -> list[Tensor]:
    return piece.parents


def _deltas(piece: Piece) -> list[Tensor]:
    return piece.deltas


def _combination(coefficients: Tensor, vectors: Callable[[Piece], list[Tensor]]) -> Combine:
    """sum_i c_i x_i, and the base where the x_i are task vectors."""
    found = coefficients.tolist()

    def combine(piece: Piece) -> Tensor:
        total = summed(vectors(piece), found)
        return total if piece.base is None or vectors is _parents else total.add_(piece.base)

    return combine


def _arc(gram: Tensor, t: float, parallel: float) -> Tensor:
    """The coefficients of spherical linear interpolation, t of the way; linear where the cosine is above `parallel`."""
    norms, cosines = _directions(gram)
    cosine = float(cosines[0, 1])
    coefficients = 1 - t, t
    if abs(cosine) <= parallel and bool((norms > 0).all()):
        angle = math.acos(cosine)
        coefficients = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return torch.tensor(coefficients, dtype=torch.float64, device="cpu")


def _directions(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The norms of vectors, and the cosines between them: 0 with one that is zero."""
    norms = gram.diagonal().sqrt()
    inverse = _over(torch.ones_like(norms), norms)
    return norms, (gram * inverse * inverse[:, None]).clamp(-1, 1)


def _over(numbers: Tensor, norms: Tensor) -> Tensor:
    """Numbers divided by norms; 0 where a norm is."""
    return torch.where(norms > 0, numbers / norms, 0.0)
