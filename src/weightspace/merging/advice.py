"""Whether networks should be merged: how their task vectors agree and disagree, tensor by tensor, in one pass.

Task vectors are tau_i = theta_i - theta_0 with the base theta_0, or with the mean of the networks where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightspace.checkpoint.refusal import some
from weightspace.jobs.progress import Progress, silent
from weightspace.merging.part import Part, Piece
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public
from weightspace.net.weights import dtypes_of, shapes_of

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["MOST", "Advice", "Interference", "advise", "interference", "of_products"]

_LARGE = 0.1  # the share of the entries of a piece that count as its largest
_CHEAP = 512  # the smaller side of matrices whose singular vectors are compared
MOST = 50
SAME = 1e-4  # spread of copies
LOW = 0.15  # conflict up to which averages kept what the networks know, in all sets that were measured
_NEAR = 0.02  # spread below which there is little to lose
# spread up to which -> % of the accuracy that averages lost where conflicts are above LOW
_EXPECTED = ((0.03, 5), (0.05, 15), (0.1, 22), (0.2, 32), (math.inf, 41))
_RISE = 0.05  # of the loss, in nats


@public
@dataclass(frozen=True)
class Interference:
    """How the task vectors of n networks meet, for each tensor. Made by `interference`.

    `inner[t]`: the inner products of the task vectors in tensor t; `absolute[t]`: those of their absolute values;
    `shared[t]`: how many entries are among the largest tenth of both; `opposed[t]`: 1 - sum |sum_i tau_i| /
    sum sum_i |tau_i|, the share that cancels in the sum; `sizes[t]`: the squared norm of the base, or of the mean;
    `singular[t]`: singular task interference |(U^T U - I) S (V^T V - I)|_1 / |S|_1 of the leading singular vectors, NaN
    where it was not computed; `ranks[t]`: the effective ranks of the task vectors. `left_out`: tensors that do not
    count, with the reason.
    """

    labels: tuple[str, ...]
    tensors: tuple[str, ...]
    matrices: tuple[str, ...]
    based: bool
    inner: Float[Tensor, "tensors n n"]
    absolute: Float[Tensor, "tensors n n"]
    shared: Float[Tensor, "tensors n n"]
    opposed: Float[Tensor, " tensors"]
    weights: Float[Tensor, " tensors"]
    sizes: Float[Tensor, " tensors"]
    singular: Float[Tensor, " tensors"]
    ranks: Float[Tensor, "tensors n"]
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def cosines(self) -> Float[Tensor, "n n"]:
        """The cosines of the task vectors over all tensors; NaN where one is zero."""
        return _cosines(self.inner.sum(0))

    @property
    def by_tensor(self) -> Float[Tensor, "tensors n n"]:
        """The cosines of the task vectors in every tensor."""
        return torch.stack([_cosines(one) for one in self.inner])

    @property
    def norms(self) -> Float[Tensor, " n"]:
        """The norms |tau_i|."""
        return self.inner.sum(0).diagonal().clamp(min=0).sqrt()

    @property
    def relative(self) -> Float[Tensor, " n"]:
        """|tau_i| / |theta_0|."""
        return self.norms / self.sizes.sum().sqrt()

    @property
    def conflicts(self) -> Float[Tensor, "n n"]:
        """The share of entries whose signs disagree, each weighted by |tau_i||tau_j|: 0 to 1, 1/2 for unrelated ones.

        (sum |tau_i||tau_j| - <tau_i, tau_j>) / 2 sum |tau_i||tau_j|.
        """
        whole = self.absolute.sum(0)
        return (whole - self.inner.sum(0)) / (2 * whole)

    @property
    def cancelled(self) -> float:
        """The share of the absolute entries that cancels in the sum of all task vectors."""
        return float((self.opposed * self.weights).sum() / self.weights.sum()) if float(self.weights.sum()) else 0.0

    @property
    def overlaps(self) -> Float[Tensor, "n n"]:
        """The share of the largest tenth of entries that two task vectors have in common; .1 by chance."""
        count = self.shared.sum(0)
        return count / (count.diagonal()[:, None] * count.diagonal()).sqrt()

    @property
    def spread(self) -> float:
        """How far the networks are from their mean, relative to it, over all matrices: see `spreads`."""
        return _root(*(float(x.sum()) for x in self._apart()))

    @property
    def spreads(self) -> Float[Tensor, " tensors"]:
        """sqrt(mean_i |theta_i - mean|^2) / |theta_0| of every matrix; sizes of 0 count as 1."""
        apart, size = self._apart()
        return (apart / torch.where(size > 0, size, 1.0)).sqrt()

    def _apart(self) -> tuple[Tensor, Tensor]:
        at = [k for k, name in enumerate(self.tensors) if name in self.matrices] or [*range(len(self.tensors))]
        inner = self.inner[at]
        apart = inner.diagonal(dim1=1, dim2=2).mean(1) - inner.mean((1, 2))
        return apart.clamp(min=0), self.sizes[at]

    @property
    def trust(self) -> float:
        """prod_t (1 + spread_t) - 1: how far the outputs of the mean may be from those of the networks.

        Source: Bernstein et al., On the distance between two neural networks and the stability of learning, 2020.
        """
        return math.expm1(float(torch.log1p(self.spreads).sum()))

    @property
    def interfering(self) -> float:
        """The mean singular task interference over the matrices where it was computed; NaN where it was nowhere."""
        known = self.singular[self.singular.isfinite()]
        return float(known.mean()) if len(known) else math.nan

    def mean(self, pairs: Tensor) -> float:
        """The mean of a matrix (n, n) over pairs of different networks."""
        n = len(self)
        apart = pairs[~torch.eye(n, dtype=torch.bool)]
        apart = apart[apart.isfinite()]
        return float(apart.mean()) if len(apart) else math.nan


@public
def interference(
    networks: Sequence[Mapping[str, Tensor]],
    base: Mapping[str, Tensor] | None = None,
    labels: Sequence[str] | None = None,
    *,
    singular: bool = True,
    progress: Progress = silent,
) -> Interference:
    """How the task vectors of 2 to 50 networks meet, tensor by tensor; every weight is read once, in pieces.

    `networks`, `base`: checkpoints, or named tensors. Without a base, task vectors are from the mean: distances are the
    same, and cosines say nothing. Tensors that not all have in one shape (heads) are left out. `singular`: also compare
    the singular vectors of matrices of at most 512 rows or columns, which are read once more. In memory are pieces of
    64 MB together. Raises `WeightspaceError` for fewer than 2 or more than 50 networks, nothing in common, and NaN or
    infinity, naming the tensor and the network.

    >>> import torch
    >>> from weightspace.merging.advice import interference
    >>> base = {"w": torch.zeros(2, 2)}
    >>> tuned = [{"w": torch.tensor([[1.0, sign], [0.0, 0.0]])} for sign in (1.0, -1.0)]
    >>> found = interference(tuned, base)
    >>> float(found.cosines[0, 1]), float(found.conflicts[0, 1]), found.cancelled
    (0.0, 0.5, 0.5)

    Sources: Yadav et al., TIES-merging, 2023 (signs); Gargiulo et al., Task singular vectors, 2025 (`singular`).
    """
    if not 2 <= len(networks) <= MOST:
        raise WeightspaceError(f"{len(networks)} networks to compare; give 2 to {MOST}")
    names = [f"network {k}" for k in range(len(networks))] if labels is None else list(labels)
    if len(names) != len(networks):
        raise WeightspaceError(f"{len(names)} names for {len(networks)} networks; give one for each")
    everyone = [*networks, *([] if base is None else [base])]
    chosen, left = _shared(everyone, [*names, *([] if base is None else ["the base"])])
    shapes, wide = shapes_of(networks[0]), [dtypes_of(one) for one in everyone]
    rows = []
    for k, name in enumerate(chosen):
        progress(f"how {len(networks)} networks agree", k, len(chosen))
        double = any(kinds[name] == torch.float64 for kinds in wide)
        part = Part(
            name, shapes[name], [(one, name) for one in networks], None if base is None else (base, name),
            torch.float64 if double else torch.float32, labels=[*names, "the base"],
        )  # fmt: skip
        rows.append(_met(part, names, singular))
    matrices = tuple(name for name in chosen if len(shapes[name]) > 1)
    inner, absolute, shared, opposed, weights, sizes, met, ranks = (
        torch.stack(column) for column in zip(*rows, strict=True)
    )
    known = tuple(names), tuple(chosen), matrices, base is not None
    return Interference(*known, inner, absolute, shared, opposed, weights, sizes, met, ranks, left)


def of_products(labels: Sequence[str], tensors: Sequence[str], inner: Tensor) -> Interference:
    """What the inner products of task vectors alone tell: cosines and norms; all else is NaN (updates in factors)."""
    count, n = len(tensors), len(labels)
    pairs, one = torch.full((count, n, n), math.nan).double(), torch.full((count,), math.nan).double()
    return Interference(
        tuple(labels), tuple(tensors), tuple(tensors), True, inner, pairs, pairs, one, one, one, one, pairs[:, :, 0]
    )  # fmt: skip


def _shared(networks: Sequence[Mapping[str, Tensor]], labels: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The tensors of floating-point numbers that all networks have in one shape, and why others do not count."""
    shapes, kinds = [shapes_of(one) for one in networks], [dtypes_of(one) for one in networks]
    chosen, left = [], []
    for name in dict.fromkeys(name for one in shapes for name in one):
        lacking = [label for label, one in zip(labels, shapes, strict=True) if name not in one]
        if lacking:
            left.append(f"{name}: {some(lacking)} lack it")
        elif len({tuple(one[name]) for one in shapes}) > 1:
            left.append(f"{name}: of several shapes, {some(dict.fromkeys(tuple(one[name]) for one in shapes))}")
        elif all(one[name].is_floating_point for one in kinds) and shapes[0][name].numel():
            chosen.append(name)
    if not chosen:
        raise WeightspaceError("the networks have no tensor in common; give networks of one architecture")
    return chosen, tuple(left)


def _met(part: Part, labels: Sequence[str], singular: bool) -> tuple[Tensor, ...]:
    """The statistics of one tensor, in the order of the fields of `Interference`."""
    n = len(part.sources)
    inner, absolute, shared = (torch.zeros(n, n, dtype=torch.float64) for _ in range(3))
    cancelled, whole, size = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    for piece in part.pieces():
        origin = piece.base if piece.base is not None else torch.stack(piece.parents).mean(0)
        rows = torch.stack(piece.parents).sub_(origin)
        if not bool(rows.sum().isfinite()):
            _refuse(part.name, piece, labels)
        sizes = rows.abs()
        inner += _gram(rows)
        absolute += _gram(sizes)
        shared += _gram(_largest(sizes))
        total = sizes.double().sum()
        whole += total
        cancelled += total - rows.sum(0).abs().double().sum()
        size += origin.double().square().sum()
    opposed = cancelled / whole if float(whole) else torch.zeros((), dtype=torch.float64)
    cheap = singular and len(part.shape) > 1 and min(part.shape[0], part.shape[1:].numel()) <= _CHEAP
    meeting, ranks = _spectra(part) if cheap else (math.nan, torch.full((n,), math.nan, dtype=torch.float64))
    return inner, absolute, shared, opposed, whole, size, torch.tensor(meeting, dtype=torch.float64), ranks


def _gram(rows: Tensor) -> Tensor:
    """x x^T, summed in float64 over blocks."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for block in rows.split(1 << 16, 1):
        total += block.double() @ block.double().mT
    return total


def _largest(sizes: Tensor) -> Tensor:
    """1 where an entry is among the largest tenth of its row, and not 0."""
    kept = max(1, round(_LARGE * sizes.shape[1]))
    least = sizes.kthvalue(sizes.shape[1] - kept + 1, 1, keepdim=True).values
    return ((sizes >= least) & (sizes > 0)).to(sizes.dtype)


def _refuse(name: str, piece: Piece, labels: Sequence[str]) -> None:
    everyone = zip([*piece.parents, *([] if piece.base is None else [piece.base])], [*labels, "the base"], strict=False)
    bad = next((label for row, label in everyone if not bool(row.isfinite().all())), "one of them")
    raise WeightspaceError(f"NaN or infinity in {name!r} of {bad}; leave this network out")


def _spectra(part: Part) -> tuple[float, Tensor]:
    """Singular task interference of a matrix, relative to the singular values, and the effective ranks."""
    origin, n = part.origin().flatten(1), len(part.sources)
    if part.base is None:
        origin = sum(part.parent(k).flatten(1) for k in range(n)) / n  # type: ignore[assignment]
    kept = max(1, min(origin.shape) // n)
    lefts, values, rights, ranks = [], [], [], []
    for k in range(n):
        u, s, v = torch.linalg.svd((part.parent(k).flatten(1) - origin).double(), full_matrices=False)
        lefts.append(u[:, :kept])
        values.append(s[:kept])
        rights.append(v[:kept])
        share = s / s.sum() if float(s.sum()) else s
        ranks.append(
            torch.exp(-torch.special.xlogy(share, share).sum()) if float(s.sum()) else torch.zeros(()).double()
        )
    u, s, v = torch.cat(lefts, 1), torch.cat(values), torch.cat(rights)
    one = torch.eye(len(s), dtype=torch.float64)
    size = float(s.sum())
    met = float((((u.mT @ u) - one) * s @ ((v @ v.mT) - one)).abs().sum())
    return met / size if size else 0.0, torch.stack(ranks)


def _cosines(inner: Tensor) -> Tensor:
    norms = inner.diagonal().clamp(min=0).sqrt()
    return (inner / (norms[:, None] * norms)).clamp(-1, 1)


def _root(apart: float, size: float) -> float:
    return math.sqrt(apart / size) if size else math.inf if apart else 0.0


@public
@dataclass(frozen=True)
class Advice:
    """Whether to merge: `kind` is "same", "average", "search", "align", "apart" or "unknown"; `why` has the numbers."""

    kind: str
    words: str
    why: str


@public
def advise(
    met: Interference,
    families: Sequence[int] | None = None,
    renumbered: bool = False,
    *,
    matched: bool = False,
    rise: float | None = None,
) -> Advice:
    """Whether networks should be merged, and how, from how their task vectors meet.

    `families`: the number of the set of relatives that each network belongs to, and `renumbered` whether units of some
    were found in another order (see `atlas.lineage`); None takes them as one family. `matched`: whether renumbered
    relatives were looked for. `rise`: the measured loss of their mean less the mean of their losses, which goes before
    all predictions.

    - apart: several families; no average of strangers as they are stored keeps what they know;
    - same: the networks are copies;
    - align: one family, and units of some are renumbered;
    - average: one family, whose task vectors conflict by at most `LOW`, or that is very near together;
    - search: one family that conflicts more; what its average loses grows with the spread;
    - unknown: without a base conflicts are not known, or nothing but updates in factors is.

    The bounds were measured on fine-tunes of digit networks, see section 36 of `experiments/README.md`: for networks of
    another size or data they are a guess, which --data replaces by a measurement.

    >>> import torch
    >>> from weightspace.merging.advice import advise, interference
    >>> base = {"w": torch.ones(4, 4)}
    >>> near = [{"w": 1.1 * base["w"] + 0.01 * torch.eye(4).roll(k, 0)} for k in range(3)]
    >>> advise(interference(near, base)).kind
    'average'
    """
    if families is not None and len(families) != len(met):
        raise WeightspaceError(f"{len(families)} families for {len(met)} networks; give the number of one for each")
    if families is not None and len({*families}) > 1:
        return _apart(met, families, matched)
    if math.isnan(met.spread):
        cosine = f"{met.mean(met.cosines):.2g}"
        why = f"the updates have a mean cosine of {cosine}, and the weights that they change are not known"
        return Advice("unknown", "their updates alone do not tell whether to merge them", why)
    seen = f"they are {met.spread:.2g} of its norm away from their mean"
    if met.spread <= SAME:
        return Advice("same", "copies of one network: there is nothing to merge", seen)
    if renumbered:
        why = "they are relatives, but units of some have other numbers: an average of what is stored mixes units"
        return Advice("align", "align them first, then average", why)
    if rise is not None:
        return _measured(rise, seen)
    if met.spread <= _NEAR:
        why = f"{seen}; no unlike fine-tunes as near as {_NEAR:g} were measured, and averages at .024 to .03 lost 5%"
        return Advice("average", "average them", why)
    if not met.based:
        return Advice("unknown", "give what they were trained from (--base), or data to measure their mean on", seen)
    signs = met.mean(met.conflicts)
    seen += f", and {signs:.0%} of the signs of what they changed disagree (50% if unrelated)"
    if signs <= LOW:
        why = f"{seen}; where that was at most {LOW:.0%}, every average that was measured kept 95% of the accuracy"
        return Advice("average", "average them; do not add their task vectors, which are one", why)
    lost = next(percent for most, percent in _EXPECTED if met.spread <= most)
    best = "the sum of the task vectors" if len(met) == 2 else "the mean"
    why = f"{seen}; such averages of digit networks lost {lost}% of the accuracy, and {best} lost least more often than"
    why += " TIES or TSV"
    return Advice("search", "expect a loss: merge with coefficients found on data, or keep them apart", why)


def _measured(rise: float, seen: str) -> Advice:
    why = f"measured: the loss of their mean is {rise:+.3g} against the mean of their losses, and {seen}"
    if rise <= _RISE:
        return Advice("average", "average them", why)
    return Advice("search", "their average loses: merge with coefficients found on data, or keep them apart", why)


def _apart(met: Interference, families: Sequence[int], matched: bool) -> Advice:
    """Advice for strangers."""
    groups = [[label for label, k in zip(met.labels, families, strict=True) if k == family] for family in {*families}]
    shown = " | ".join(
        ", ".join(group[:4]) + (f" and {len(group) - 4} more" if len(group) > 4 else "") for group in groups
    )
    do = "merge within the families, or align them on data first and measure the loss of the mean"
    why = (
        f"by their weights they come from {len(groups)} bases: {shown}; averages of strangers lost half of the accuracy"
    )
    if not matched:
        why += "; renumbered relatives count as strangers here, as no --arch was given to look for them"
    return Advice("apart", f"not of one base: {do}", why)
