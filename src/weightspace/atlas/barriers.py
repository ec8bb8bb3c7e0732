"""Loss barriers between near networks, straight and after alignment: one job for each pair, kept when it is done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightspace import __version__
from weightspace.atlas.gram import Distances
from weightspace.atlas.question import Member, opened, reason, single
from weightspace.atlas.records import Pair, Pairs
from weightspace.atlas.relations import group_digest
from weightspace.jobs.engine import Engine, run
from weightspace.jobs.progress import Progress, silent
from weightspace.metric.distance import euclidean
from weightspace.net.errors import WeightspaceError
from weightspace.path.path import line
from weightspace.symmetry.symmetry import Symmetry
from weightspace.task.digest import digest
from weightspace.task.task import Task

__all__ = ["Barrier", "Lines", "barriers", "near_pairs"]


@dataclass(frozen=True)
class Barrier:
    """How far the loss rises on the line between networks number `first` and `second`.

    `straight`: between them as they are stored; `aligned`: once the second is aligned to the first, at the distance
    `distance`; both NaN without a group.
    """

    first: int
    second: int
    straight: float
    aligned: float
    distance: float

    @property
    def lowest(self) -> float:
        """The lower of the two barriers."""
        return min((x for x in (self.straight, self.aligned) if x == x), default=math.nan)

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return {name: None if value != value else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Lines:
    """A function of two members: the barriers of the lines between them, and their distance once aligned.

    It returns three numbers, the last two NaN without a group; or why there are none.
    """

    task: Task
    group: Symmetry | None
    points: int = 7
    seed: int = 0

    def __call__(self, a: Member, b: Member) -> list[float] | str:
        """The barriers; or, where a member cannot be opened or read the examples, why."""
        try:
            one, other = single(opened(a)), single(opened(b))
            straight = line(one, other).barrier(self.task, self.points)
            if self.group is None:
                return [straight, math.nan, math.nan]
            moved = self.group.align(other, to=one, seed=self.seed)
            return [straight, line(one, moved).barrier(self.task, self.points), euclidean(one, moved)]
        except (WeightspaceError, OSError) as error:
            return reason(error)

    @property
    def said(self) -> str:
        """What a result depends on, beside the networks and the task."""
        group = f", group {group_digest(self.group)[:16]}" if self.group is not None else ", as stored"
        return f"{self.points} points, seed {self.seed}{group}, {__version__}"[:100]


class _Kept:
    """Results of `Lines` as pairs of an atlas: what is there is not computed again, and each is written when done."""

    def __init__(self, pairs: Pairs, lines: Lines, writable: bool) -> None:
        self.pairs, self.said, self.writable = pairs, lines.said, writable
        task = digest(lines.task)
        self.kinds = (f"barrier:{task}", f"aligned barrier:{task}", f"aligned distance:{task}")
        found: dict[tuple[str, str], list[float]] = {}
        for number, kind in enumerate(self.kinds):
            for pair in pairs.of(kind):
                if pair.method == self.said:
                    ends = min(pair.first, pair.second), max(pair.first, pair.second)
                    found.setdefault(ends, [math.nan] * 3)[number] = pair.value
        self.known = found

    def __contains__(self, key: Any) -> bool:
        return key in self.known

    def __getitem__(self, key: Any) -> list[float]:
        return self.known[key]

    def __setitem__(self, key: Any, value: list[float] | str) -> None:
        if isinstance(value, str) or not self.writable:
            return
        (first, second), named = key, zip(self.kinds, value, strict=True)
        self.pairs.put([Pair(first, second, kind, number, method=self.said) for kind, number in named])


def near_pairs(distances: Distances, count: int) -> list[tuple[int, int]]:
    """The pairs i < j of each network with the `count` nearest to it, the nearest pairs first; of few networks all."""
    if count < 1:
        raise WeightspaceError(f"the {count} nearest of each network; ask for 1 or more")
    apart, n = distances.squared, len(distances)
    found = set()
    for i in range(n):
        near = [int(j) for j in apart[i].argsort(stable=True) if int(j) != i]
        found |= {(min(i, j), max(i, j)) for j in near[:count]}
    return sorted(found, key=lambda pair: (float(apart[pair]), pair))


def barriers(
    members: Sequence[Member],
    keys: Sequence[str],
    chosen: Sequence[tuple[int, int]],
    lines: Lines,
    pairs: Pairs,
    *,
    engine: Engine = 1,
    progress: Progress = silent,
) -> tuple[list[Barrier], dict[int, str]]:
    """The barriers of chosen pairs of members, and why some members have none.

    `keys`: the content of each member. A pair whose result is among `pairs`, for the same task and settings, is not
    measured again; all others are jobs, whose results are written there one by one. Of the two networks of a pair the
    one with the larger key is aligned to the other. Exact copies have no barrier. Raises `WeightspaceError`.
    """
    kept = _Kept(pairs, lines, pairs.catalogue.writable)
    jobs: dict[tuple[str, str], tuple[Member, Member]] = {}
    ends: dict[tuple[int, int], tuple[str, str]] = {}
    for i, j in chosen:
        i, j = (i, j) if keys[i] <= keys[j] else (j, i)
        if keys[i] != keys[j]:
            ends[i, j] = keys[i], keys[j]
            jobs.setdefault((keys[i], keys[j]), (members[i], members[j]))
    what = f"barriers of {len(jobs)} pairs"
    found: Mapping[Any, list[float] | str] = run(
        lines, jobs, engine=engine, done=kept, progress=lambda done, whole: progress(what, done, whole)
    )
    told = [Barrier(*pair, *found[key]) for pair, key in ends.items() if not isinstance(found[key], str)]
    left: dict[int, str] = {}
    for (i, j), key in ends.items():
        if isinstance(why := found[key], str):
            left.setdefault(j if i in left else i, why)
    return told, left
