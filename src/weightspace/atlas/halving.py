"""Successive halving: the member of least loss among many, found without asking every member on every example.

All members answer the same few examples; the better half answers twice as many, and so on, until the best is told from
the second. Members that are left see the SAME examples, so losses are compared in pairs, l_a(x_t) - l_b(x_t): the
variance of a difference of two related networks is a fraction of the variance of a loss.
Sources: Almost optimal exploration in multi-armed bandits (Karnin, Koren, Somekh, 2013); Best-arm identification
algorithms for multi-armed bandits in the fixed confidence setting (Jamieson, Nowak, 2014).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from scipy.special import bdtr, stdtr
from torch import Tensor

from weightspace.jobs.progress import Tick
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Halving", "Losses", "Paired", "Standing", "halve", "paired"]


_LEAST = 8  # examples of the first round

Ask: TypeAlias = Callable[[Sequence[str], int, int], Mapping[str, "Losses | str"]]


@dataclass(frozen=True)
class Losses:
    """What one member answers to examples: the sum of the losses of each, and how many labels each has.

    An example has one label, but a text has one at every position. `passes`: examples that were passed through it.
    """

    sums: Float[Tensor, " examples"]
    counts: Float[Tensor, " examples"]
    passes: int = 0


@public
@dataclass(frozen=True)
class Paired:
    """The mean difference of two members' losses on the same examples, with its standard error.

    `p`: the probability of a difference as large if the two were equal. Made by `paired`.
    """

    difference: float
    error: float
    p: float


@public
def paired(one: Tensor, other: Tensor, counts: Tensor | None = None) -> Paired:
    """The difference delta = sum_t (a_t - b_t) / sum_t c_t of two members on the same examples, with its error.

    `one`, `other`: the summed losses (example,) of both; `counts`: c_t, the labels of every example, by default one
    each. The error is that of a ratio, sqrt(n / (n - 1) sum_t (a_t - b_t - delta c_t)^2) / sum_t c_t. `p` is that of a
    t-test; where all losses are 0 or 1 it is exact, that of the sign test on the examples on which the two differ
    (McNemar, "Note on the sampling error of the difference between correlated proportions", 1947). Raises
    `WeightspaceError` for losses of two lengths, and for none.

    >>> import torch
    >>> import weightspace as ws
    >>> found = ws.atlas.paired(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.5, 1.5]))
    >>> found.difference, round(found.error, 3), round(found.p, 3)
    (1.0, 0.289, 0.074)
    """
    d = one.double() - other.double()
    c = torch.ones_like(d) if counts is None else counts.double()
    if d.shape != c.shape or d.dim() != 1 or not len(d):
        raise WeightspaceError(f"losses of shape {tuple(d.shape)} for {len(c)} examples; give one number an example")
    return _compared(d, c, _is_zero_one(one, other, c))


def _is_zero_one(one: Tensor, other: Tensor, counts: Tensor) -> bool:
    both = torch.cat([one, other])
    return bool(((both == 0) | (both == 1)).all() and (counts == 1).all())


def _compared(d: Tensor, c: Tensor, signs: bool) -> Paired:
    n, whole = len(d), float(c.sum())
    difference = float(d.sum()) / whole
    rest = float((d - difference * c).square().sum())
    error = math.sqrt(n / (n - 1) * rest) / whole if n > 1 else math.inf
    if signs:
        worse, better = int((d > 0).sum()), int((d < 0).sum())
        told = worse + better
        return Paired(difference, error, min(1.0, 2 * float(bdtr(min(worse, better), told, 0.5))))
    if not difference:
        return Paired(0.0, error, 1.0)
    p = 1.0 if n < 2 else 0.0 if not error else 2 * float(stdtr(n - 1, -abs(difference) / error))
    return Paired(difference, error, p)


@public
@dataclass(frozen=True)
class Standing:
    """One member: its mean loss on the `examples` that it answered, and the standard `error` of that mean.

    `behind`: by how much its mean loss is larger than that of the best on the same examples, and the standard error of
    that difference; `tied`: whether it cannot be told from the best.
    """

    name: str
    loss: float
    error: float
    examples: int
    behind: float
    behind_error: float
    tied: bool


@public
@dataclass(frozen=True)
class Halving:
    """What `halve` returns: the members by standing, the best first, and what it cost.

    `left_out`: member -> why it has no standing; `instead`: member that was not asked -> the one that answered for its
    group. `passes`: examples passed through members in all, `whole`: those of asking every member on all examples.
    With probability `confidence` the best member is among `tied`, where losses are independent and the t-test holds.
    """

    ranking: tuple[Standing, ...]
    left_out: Mapping[str, str]
    instead: Mapping[str, str]
    passes: int
    whole: int
    confidence: float

    @property
    def best(self) -> str:
        """The member of least loss."""
        return self.ranking[0].name

    @property
    def tied(self) -> tuple[str, ...]:
        """The members that cannot be told from the best, the best first; also those for which one of them answered."""
        told = [found.name for found in self.ranking if found.tied]
        return (*told, *(name for name, other in self.instead.items() if other in told))

    @property
    def share(self) -> float:
        """The cost as a share of asking every member on all examples."""
        return self.passes / self.whole


@public
def halve(
    ask: Callable[[Sequence[str], int, int], Mapping[str, Losses | str]],
    names: Sequence[str],
    size: int,
    *,
    budget: float = 0.2,
    first: int | None = None,
    confidence: float = 0.95,
    groups: Sequence[Sequence[str]] = (),
    progress: Tick | None = None,
) -> Halving:
    """The ranking of members by mean loss over `size` examples in random order, by successive halving.

    `ask(names, start, stop)` returns the `Losses` of each of these members on the examples from `start` to `stop`, or a
    sentence that says why it has none. All answer the `first` examples; then members that are told from the best, and
    all but the better half, are dropped, and the others answer at least twice as many. It ends where the best is told
    from the second, or at the last example. `first` is such that all takes about `budget` of asking every member on all
    examples. "Told" is a paired test (see `paired`) at the level 1 - `confidence`, divided by the number of members and
    of looks (Bonferroni). `groups`: near-duplicates, of which the first is asked for all; then the members of the
    winner's group are halved. Members with NaN or infinite losses are left out. `progress(passes, planned)`. Raises
    `WeightspaceError` where no member has losses, for no members, and for numbers out of range.

    >>> import torch
    >>> import weightspace as ws
    >>> noise = torch.randn(900, generator=torch.Generator().manual_seed(0))
    >>> def ask(names, start, stop):
    ...     return {n: ws.atlas.Losses(noise[start:stop] + float(n), torch.ones(stop - start)) for n in names}
    >>> found = ws.atlas.halve(ask, ["2", "1", "3", "4"], 900)
    >>> found.best, found.tied, found.share < 0.1
    ('1', ('1',), True)
    """
    _check(names, size, budget, first, confidence, groups)
    race = _Race(ask, names, size, budget, first, confidence, any(len(group) > 1 for group in groups), progress)
    instead = race.heads(groups)
    winner = race.run([name for name in names if name not in instead])
    if winner is None:
        name, why = next(iter(race.left_out.items()))
        raise WeightspaceError(f"no member can answer: {name}: {why}")
    if group := [name for name, other in instead.items() if other == winner]:
        winner = race.run([winner, *group]) or winner
        instead = {name: other for name, other in instead.items() if name not in group}
    return race.told(winner, instead)


def _check(
    names: Sequence[str],
    size: int,
    budget: float,
    first: int | None,
    confidence: float,
    groups: Sequence[Sequence[str]],
) -> None:
    if not names or len({*names}) < len(names):
        raise WeightspaceError(f"{len(names)} members of {len({*names})} names; give one or more, each once")
    if size < 1 or (first is not None and first < 1):
        raise WeightspaceError(f"{size} examples, {first} of them first; give 1 or more")
    for what, value in (("budget", budget), ("confidence", confidence)):
        if not 0 < value < 1:
            raise WeightspaceError(f"{what} is {value}; give a share between 0 and 1")
    grouped = [name for group in groups for name in group]
    if len({*grouped}) < len(grouped) or not {*grouped} <= {*names}:
        wrong = next(name for name in grouped if grouped.count(name) > 1 or name not in names)
        raise WeightspaceError(f"{wrong!r} of groups= is no member, or in two groups; give every member at most once")


def _passes(alive: int, seen: int, n: int, size: int) -> int:
    """The examples passed until the last two have answered all, halving the members and doubling the examples."""
    total = alive * (n - seen)
    while n < size:
        alive, before, n = max(2, math.ceil(alive / 2)), n, min(size, 2 * n)
        total += alive * (n - before)
    return total


class _Race:
    """The state of one query: what every member has answered so far, and who is left out."""

    def __init__(
        self,
        ask: Ask,
        names: Sequence[str],
        size: int,
        budget: float,
        first: int | None,
        confidence: float,
        twice: bool,
        progress: Tick | None,
    ) -> None:
        self.ask, self.size, self.confidence, self.progress = ask, size, confidence, progress
        self.sums: dict[str, Tensor] = {}
        self.counts = torch.zeros(0, dtype=torch.float64)
        self.left_out: dict[str, str] = {}
        self.passes, self.members = 0, len(names)
        self.planned = budget * len(names) * size
        self.first = min(size, self._most(len(names), 0, _LEAST) if first is None else first)
        looks = (math.ceil(math.log2(size / self.first)) + 1) * (2 if twice else 1)
        self.level = (1 - confidence) / max(1, len(names) - 1) / looks

    def heads(self, groups: Sequence[Sequence[str]]) -> dict[str, str]:
        """Member -> the one that answers for its group: the first that can."""
        instead: dict[str, str] = {}
        for group in groups:
            left = [*group]
            while len(left) > 1 and not self._answered(left[:1], self.first):
                left.pop(0)
            instead |= {name: left[0] for name in left[1:]}
        return instead

    def run(self, names: Sequence[str]) -> str | None:
        """The member of least loss among these; None where none has a loss."""
        alive, n = [name for name in names if name not in self.left_out], self.first
        while True:
            alive = self._answered(alive, n)
            if not alive:
                return None
            behind = [self.against(name, alive[0]) for name in alive[1:]]
            close = [name for name, found in zip(alive[1:], behind, strict=True) if found.p > self.level]
            if not close or n == self.size:
                return alive[0]
            better = {*alive[: max(2, math.ceil(len(alive) / 2))]}
            alive = [alive[0], *(name for name in close if name in better)]
            alive = alive if len(alive) > 1 else [alive[0], close[0]]
            n = min(self.size, self._most(len(alive), n, 2 * n))

    def _most(self, alive: int, seen: int, least: int) -> int:
        """The most examples, at least so many, that members may have answered after the next round.

        Where the rounds after it halve the members and double the examples, all of them stay within the budget.
        """
        low, high = least, max(least, self.size)
        while low < high:
            middle = (low + high + 1) // 2
            fits = _passes(alive, seen, middle, self.size) <= self.planned - self.passes
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    def _answered(self, alive: Sequence[str], n: int) -> list[str]:
        """Members after all have answered n examples, the best first; without those that cannot."""
        waiting: dict[int, list[str]] = {}
        for name in alive:
            waiting.setdefault(len(self.sums.get(name, ())), []).append(name)
        for start, some in sorted(waiting.items()):
            if start < n:
                self._take(self.ask(some, start, n), some, start, n)
        left = [name for name in alive if name not in self.left_out]
        return sorted(left, key=lambda name: float(self.sums[name][:n].sum()))

    def _take(self, found: Mapping[str, Losses | str], some: Sequence[str], start: int, stop: int) -> None:
        for name in some:
            losses = found[name]
            if isinstance(losses, str):
                self.left_out[name] = losses
                continue
            self.passes += losses.passes or stop - start
            sums = losses.sums.detach().double().cpu()
            if bad := int((~sums.isfinite()).sum()):
                self.left_out[name] = f"its loss is NaN or infinite on {bad} of {stop - start} examples"
                continue
            if len(self.counts) < stop:
                self.counts = torch.cat([self.counts[:start], losses.counts.double().cpu()])
            self.sums[name] = torch.cat([self.sums.get(name, sums[:0]), sums])
        if self.progress is not None:
            self.progress(self.passes, max(self.passes, int(self.planned)))

    def against(self, name: str, other: str) -> Paired:
        """The paired difference of two members on what both have answered."""
        a, b = self.sums[name], self.sums[other]
        n = min(len(a), len(b))
        counts = self.counts[:n]
        if not float(counts.sum()):
            return Paired(0.0, math.inf, 1.0)
        return _compared(a[:n] - b[:n], counts, _is_zero_one(a[:n], b[:n], counts))

    def told(self, winner: str, instead: Mapping[str, str]) -> Halving:
        """The result."""
        rows = []
        for name in [winner, *(n for n in self.sums if n != winner and n not in self.left_out)]:
            found, own = self.against(name, winner), self._own(name)
            tied = name == winner or found.p > self.level
            rows.append(
                Standing(name, *own, len(self.sums[name]), found.difference, found.error if name != winner else 0, tied)
            )
        first, *others = rows
        others.sort(key=lambda row: (-row.examples, row.behind))
        readable = max(1, self.members - len(self.left_out))
        return Halving((first, *others), self.left_out, instead, self.passes, readable * self.size, self.confidence)

    def _own(self, name: str) -> tuple[float, float]:
        """The mean loss of a member and its standard error."""
        sums = self.sums[name]
        counts = self.counts[: len(sums)]
        if not float(counts.sum()):
            raise WeightspaceError("no example that was asked has a label; give examples with labels")
        found = _compared(sums, counts, False)
        return found.difference, found.error
