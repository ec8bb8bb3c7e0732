"""What kind of relatives two networks are, from their weights alone, and which of them came first.

| kind | seen by |
|---|---|
| copy | equal, or equal to rounding |
| cast | one is the other, rounded to a coarser dtype |
| quantised | one lies on a grid of few levels, within half a step of the other |
| pruned | zeros of one contain those of the other, and all other weights are equal or near |
| low-rank | the difference of every matrix has a low rank, and nothing else differs (a merged LoRA) |
| fine-tune | correlated far above chance, and one has changed as training changes weights |
| siblings | correlated far above chance, and the differences of weights have heavy tails: one start, another order; |
|          | or both within the rounding of their two dtypes of some third: casts of one network |
| independent | not correlated above chance |

Casts, grids and zeros give the direction for free, and so do rows or columns that no example reaches: weight decay
makes them smaller multiples of what they were. Else that of a fine-tune is told by a paired statistic over units:
training concentrates the incoming and outgoing weights of a unit, so that their kurtosis grows; from a random start
their norms grow too. The difference that a new task makes is spread over the weights as the weights are; runs from one
start on the same data drift apart in few weights, and their norms stay alike.

Source: Horwitz, Shul and Hoshen, Unsupervised model tree heritage recovery, 2024 (kurtosis as a direction).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from weightspace.atlas.independence import Independence
from weightspace.atlas.side_by_side import Member
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public
from weightspace.net.state import seeded

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Kind", "Relation", "is_pattern", "relation"]


Kind: TypeAlias = Literal[
    "copy", "cast", "quantised", "pruned", "low-rank", "fine-tune", "siblings", "independent"
]  # fmt: skip
SURE = 0.999  # of a direction that follows from casts, grids or zeros
_COARSE = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
_ROUNDING = 2e-6  # of the norm: scaled by factors and back in float32
_LEVELS, _GROUPS = 256, (0, -1, 128, 64, 32)  # of a grid; the whole tensor, its rows, groups along rows
_NEW_ZEROS = 0.02
_RANK, _SHARE, _SMALLEST = 64, 4, 6  # a low rank is at most 64, and a quarter of the smaller side
_STARTED = 8.0  # standard errors by which norms are larger than at a random start
_HEAVY, _ALIKE = 4.2, 3.5  # of siblings: the kurtosis of differences, and standard errors between norms
_SHRUNK, _MULTIPLE, _CHANGED = 2, 2e-6, 2e-5  # rows or columns that only weight decay has changed
_SIGMAS, _CORRELATED, _NEAR = 6.0, 0.3, 0.5


@public
@dataclass(frozen=True)
class Relation:
    """The kind of relatives that two networks a and b are. Made by `relation`.

    `direction`: 1 if b came from a, -1 if a came from b, 0 if that is not told; `confidence`: the probability that
    this is right (.5 where it is not told). `distance`: |a - b| over the root mean square of their norms, in matrices.
    `evidence`: the numbers that decided, by name; `why` says it in words.
    """

    kind: Kind
    direction: int
    confidence: float
    distance: float
    why: str
    evidence: Mapping[str, float] = field(default_factory=dict)

    def forward(self) -> float:
        """The probability that b came from a, if one of them came from the other."""
        return 0.5 + self.direction * (self.confidence - 0.5)


@public
def relation(a: Member, b: Member, chance: Independence | None = None, rounding: float = _ROUNDING) -> Relation:
    """What kind of relatives two networks of one architecture are, as they are stored, and which came first.

    `chance`: their test of independence, which decides whether networks are correlated at all; without it, networks of
    a correlation below .3 count as independent. `rounding`: the share of the norm by which copies may differ. Align
    renumbered relatives first. Two tensors are in memory at a time. How often the direction of a fine-tune is right
    depends on the start and on weight decay: see `experiments/README.md`. Raises `WeightspaceError` where the tensors
    differ in name or shape, or hold NaN.

    >>> import weightspace as ws
    >>> from weightspace.atlas.relatives import relation
    >>> net, _ = ws.demo.example()
    >>> half = {name: w.half() for name, w in net.tensors.items()}
    >>> found = relation(net.tensors, half)
    >>> found.kind, found.direction, relation(half, net.tensors).direction
    ('cast', 1, -1)
    >>> relation(net.tensors, ws.demo.example(1)[0].tensors).kind
    'independent'
    """
    seen = _Seen()
    for name, x, y in _pairs(a, b):
        seen.add(name, x, y)
    return seen.verdict(chance, rounding)


def _pairs(a: Member, b: Member) -> Iterator[tuple[str, Tensor, Tensor]]:
    if a.keys() != b.keys():
        raise WeightspaceError(f"only one of the networks has {min(a.keys() ^ b.keys())!r}; give one architecture")
    for name in a:
        x, y = a[name].detach().cpu(), b[name].detach().cpu()
        if x.shape != y.shape:
            raise WeightspaceError(f"{name!r} has shapes {tuple(x.shape)} and {tuple(y.shape)}; give one architecture")
        if x.is_floating_point() and y.is_floating_point():
            yield name, x, y


class _Seen:
    """What has been seen of two networks, tensor by tensor."""

    def __init__(self) -> None:
        self.equal = True
        self.casts: dict[int, set[torch.dtype]] = {1: set(_COARSE), -1: set(_COARSE)}
        self.grids: dict[int, bool] = {1: True, -1: True}
        self.on_grid = {1: 0, -1: 0}
        self.zeros = {1: 0, -1: 0}  # zeros of b alone, of a alone
        self.off_zero = 0.0  # squared distance where neither is zero
        self.numbers = 0
        self.low, self.rank, self.touched = True, 0, 0
        self.rounded = True  # both may be casts of one network
        self.size = self.apart = self.all_size = self.all_apart = self.changed_size = 0.0
        self.kurtosis: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.tails: list[float] = []
        self.shrunk = {1: 0, -1: 0}  # rows and columns that are a smaller multiple in b, in a
        self.products: list[float] = []

    def add(self, name: str, x: Tensor, y: Tensor) -> None:
        """Look at one tensor of both."""
        wide, dtypes = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32, (x.dtype, y.dtype)
        x, y = x.to(wide), y.to(wide)
        same = torch.equal(x, y)
        difference = (x - y).double()
        apart, size = float(difference.square().sum()), float((x.double().square() + y.double().square()).sum()) / 2
        if not math.isfinite(apart + size):
            raise WeightspaceError(f"NaN or infinity in {name!r}; leave this network out")
        self.equal &= same
        if same and is_pattern(x):
            return
        self.changed_size += 0.0 if same else size
        self.all_apart, self.all_size = self.all_apart + apart, self.all_size + size
        self.numbers += x.numel()
        self._zeros(x, y, difference)
        if x.dim() > 1:
            self.apart, self.size = self.apart + apart, self.size + size
            self._units(x, y)
        if same:
            return
        for sign, (parent, child) in ((1, (x, y)), (-1, (y, x))):
            self.casts[sign] = {d for d in self.casts[sign] if torch.equal(_rounded(parent, d), child)}
            if self.grids[sign]:
                self.grids[sign] = _on_grid(parent, child)
                self.on_grid[sign] += x.numel()
        self.touched += 1
        self.rounded &= _of_one(x, y, dtypes)
        if x.dim() > 1:
            self.tails.append(float(_log_kurtosis(difference.reshape(1, -1)).exp()))
        if self.low:
            rank = _rank(difference, math.sqrt(size)) if x.dim() > 1 else None
            self.low, self.rank = rank is not None, max(self.rank, rank or 0)

    def _zeros(self, x: Tensor, y: Tensor, difference: Tensor) -> None:
        no_x, no_y = x == 0, y == 0
        if not bool(no_x.all() | no_y.all()):  # a tensor of zeros has not been trained yet, rather than pruned
            self.zeros[1] += int((no_y & ~no_x).sum())
            self.zeros[-1] += int((no_x & ~no_y).sum())
        self.off_zero += float(difference[~(no_x | no_y)].square().sum())

    def _units(self, x: Tensor, y: Tensor) -> None:
        """How much the kurtosis and the norm of every row and column are larger in b, in logarithms."""
        centred = [(t - t.mean()).flatten().double() for t in (x, y)]
        scale = float(centred[0].norm() * centred[1].norm())
        if scale > 0:
            self.products.append(float(centred[0] @ centred[1]) / scale)
        for p, q in ((x.flatten(1), y.flatten(1)), (x.transpose(0, 1).flatten(1), y.transpose(0, 1).flatten(1))):
            for sign, times in _multiples(p, q).items():
                self.shrunk[sign] += times
            if p.shape[1] > 3:
                self.kurtosis.append(_log_kurtosis(q) - _log_kurtosis(p))
        self.norms.append(_log_norm(y) - _log_norm(x))

    def verdict(self, chance: Independence | None, most: float) -> Relation:
        """The kind of relatives, from what has been seen of all tensors."""
        distance = math.sqrt(self.apart / self.size) if self.size else math.sqrt(self.all_apart / (self.all_size or 1))
        rounding = math.sqrt(self.all_apart / (self.changed_size or 1))
        if self.equal:
            return Relation("copy", 0, 0.5, 0.0, "all weights are equal")
        if rounding <= most:
            return Relation("copy", 0, 0.5, distance, f"the weights differ by {rounding:.1g} of their norm: rounding")
        if (found := self._derived(distance)) is not None:
            return found
        if self.rounded and self.touched:
            return Relation(
                "siblings", 0, 0.5, distance, "both are one network, rounded to two dtypes", {"rounded": 1.0}
            )
        return self._trained(distance, chance)

    def _derived(self, distance: float) -> Relation | None:
        """One network as what a rule makes of the other: a cast, a grid, zeros."""
        for sign in (1, -1):
            if self.casts[sign]:
                dtype = str(next(d for d in _COARSE if d in self.casts[sign])).removeprefix("torch.")
                return Relation("cast", sign, SURE, distance, f"the later is the earlier, rounded to {dtype}")
        for sign in (1, -1):
            if self.grids[sign] and not self.grids[-sign]:
                why = f"the later lies on a grid of at most {_LEVELS} levels, within half a step of the earlier"
                return Relation("quantised", sign, SURE, distance, why)
        new, other = self.zeros[1], self.zeros[-1]
        sign = 1 if new > other else -1
        if max(new, other) > _NEW_ZEROS * self.numbers and min(new, other) < 0.01 * max(new, other):
            kept = math.sqrt(self.off_zero / (self.all_size or 1))
            if kept <= _NEAR:
                share = max(new, other) / self.numbers
                why = f"the later has {share:.0%} more weights at zero, and the others are near"
                return Relation("pruned", sign, SURE, distance, why, {"zeros": share, "beside zeros": kept})
        return None

    def _trained(self, distance: float, chance: Independence | None) -> Relation:
        """One network trained from the other, both from one start, or apart."""
        correlation = sum(self.products) / len(self.products) if self.products else 0.0
        kurtosis, norm = _paired(self.kurtosis), _paired(self.norms)
        evidence = {"correlation": correlation, "kurtosis": kurtosis, "norm": norm}
        related = correlation > _CORRELATED
        if chance is not None and chance.exact:
            evidence |= {"p": chance.p, "sigmas": chance.sigmas}
            related = chance.p <= 1 / (chance.draws + 1) and chance.sigmas >= _SIGMAS or correlation > 0.9
        if not related:
            return Relation("independent", 0, 0.5, distance, f"a correlation of {correlation:.2g}", evidence)
        what, told = ("norms", norm) if abs(norm) >= _STARTED else ("kurtosis", kurtosis)
        sign = 1 if told > 0 else -1
        sure = min(SURE, _normal(abs(told) / 2))
        shrunk, other = max(self.shrunk.values()), min(self.shrunk.values())
        if shrunk >= _SHRUNK and other == 0:
            sign, sure = (1 if self.shrunk[1] else -1), SURE
            evidence["shrunk"] = float(shrunk)
        if self.low and self.touched:
            why = f"the difference has a rank of at most {self.rank} in {self.touched} matrices, and is 0 elsewhere"
            return Relation("low-rank", sign, sure, distance, why, evidence | {"rank": float(self.rank)})
        tails = sum(self.tails) / len(self.tails) if self.tails else 0.0
        evidence["tails"] = tails
        if tails >= _HEAVY and abs(norm) < _ALIKE and "shrunk" not in evidence:
            why = f"correlated ({correlation:.2g}), and their differences have heavy tails (kurtosis {tails:.1f})"
            return Relation("siblings", 0, 0.5, distance, why, evidence)
        why = f"correlated ({correlation:.2g})"
        if "shrunk" in evidence:
            why = f"{why}; {shrunk} rows or columns are the same in the later, less weight decay"
        else:
            why = f"{why}; {what} of units larger in the later by {abs(told):.1f} standard errors"
        return Relation("fine-tune", sign, sure, distance, why, evidence)


def is_pattern(x: Tensor) -> bool:
    """Whether a tensor holds three values at most, one of them 0, as masks do: it says nothing of where it is from."""
    return not x.numel() or bool(((x == 0) | (x == x.amin()) | (x == x.amax())).all())


def _of_one(x: Tensor, y: Tensor, dtypes: tuple[torch.dtype, torch.dtype]) -> bool:
    """Whether one tensor may have been rounded to both of two different coarse dtypes."""
    if dtypes[0] == dtypes[1] or not {*dtypes} <= {*_COARSE}:
        return False
    kinds = [torch.finfo(dtype) for dtype in dtypes]
    size = torch.maximum(x.abs(), y.abs())
    step = sum(kind.eps for kind in kinds) / 2 * size + sum(kind.tiny * kind.eps for kind in kinds)
    return bool(((x - y).abs() <= 1.01 * step).all())


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).to(x.dtype)


def _log_kurtosis(rows: Float[Tensor, "units entries"]) -> Tensor:
    rows = rows.double()
    centred = rows - rows.mean(1, keepdim=True)
    return (centred**4).mean(1).log() - 2 * centred.square().mean(1).log()


def _log_norm(x: Tensor) -> Tensor:
    return x.flatten(1).double().norm(dim=1).log()


def _multiples(p: Tensor, q: Tensor) -> dict[int, int]:
    """How many rows of q are those of p times a number below 1, and the reverse: no example has reached them."""
    p, q = p.double(), q.double()
    inner, first, second = (p * q).sum(1), p.square().sum(1), q.square().sum(1)
    ratio = inner / first
    alike = (q - ratio[:, None] * p).square().sum(1) <= _MULTIPLE**2 * second
    alike &= (first > 0) & (second > 0) & (ratio > 0) & (p.shape[1] > 1)
    return {1: int((alike & (ratio < 1 - _CHANGED)).sum()), -1: int((alike & (ratio > 1 + _CHANGED)).sum())}


def _paired(differences: list[Tensor]) -> float:
    """The mean of paired differences in standard errors; 0 where there are too few."""
    if not differences:
        return 0.0
    found = torch.cat(differences)
    found = found[found.isfinite()]
    spread = float(found.std()) if len(found) > 2 else 0.0
    return float(found.mean()) / (spread / math.sqrt(len(found))) if spread > 0 else 0.0


def _normal(z: float) -> float:
    """The probability that a standard normal number is below z."""
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def _on_grid(parent: Tensor, child: Tensor) -> bool:
    """Whether the child lies on a grid of few levels, the parent within half a step of it; biases may be any."""
    if child.dim() < 2:
        return False if float((parent - child).norm()) > 0.01 * float(parent.norm()) else True
    for group in _GROUPS:
        width = {0: child.numel(), -1: child[0].numel()}.get(group, group)
        if width and child.numel() % width == 0 and width >= _SMALLEST:
            if _all_on_grid(parent.reshape(-1, width), child.reshape(-1, width)):
                return True
    return False


def _all_on_grid(parent: Tensor, child: Tensor) -> bool:
    for p, c in zip(parent.double(), child.double(), strict=True):
        levels = c.unique()
        if len(levels) == 1 or len(levels) > _LEVELS:
            return False
        if not any(_steps_fit(p, c, levels, step) for step in _steps(c, levels)):
            return False
    return True


def _steps(child: Tensor, levels: Tensor) -> Iterator[float]:
    """Steps that a grid may have: of 8 or 4 bits about zero or between the ends, or the smallest difference."""
    largest, ends = float(child.abs().max()), float(levels[-1] - levels[0])
    for parts in (127, 128, 127.5, 7, 8):
        yield largest / parts
    for parts in (255, 15):
        yield ends / parts
    yield float(levels.diff().min())


def _steps_fit(parent: Tensor, child: Tensor, levels: Tensor, step: float) -> bool:
    """Whether all levels are whole steps apart, and the parent is within half a step of the child."""
    whole = (levels - levels[0]) / step
    if step <= 0 or float(whole[-1]) > 2 * _LEVELS or float((whole - whole.round()).abs().max()) > 0.02:
        return False
    return float(((parent - child).abs() <= 0.51 * step).double().mean()) >= 0.99


def _rank(difference: Tensor, size: float) -> int | None:
    """The rank of a matrix of differences up to rounding, where it is low; None where it is not."""
    matrix = difference.flatten(1)
    most = min(_RANK, min(matrix.shape) // _SHARE)
    if most < 1:
        return None
    if min(matrix.shape) <= 1024:
        values = torch.linalg.svdvals(matrix)
    else:
        with seeded(0):
            values = torch.svd_lowrank(matrix, q=_RANK + 16)[1]
    total = float(matrix.norm()) ** 2
    noise = 1e-6 * total + (3e-7 * size) ** 2
    left = total - values.square().cumsum(0)
    low = (left <= noise).nonzero()
    if not len(low) or int(low[0]) + 1 > most:
        return None
    return int(low[0]) + 1
