"""The members nearest to a network up to symmetry, and ways from network to network over members by low barriers."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from weightspace.atlas.question import Members, opened, reason
from weightspace.jobs.progress import Tick
from weightspace.metric.distance import euclidean
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.plain import plain
from weightspace.net.public import public
from weightspace.path.path import Path, line
from weightspace.symmetry.quotient import Interval, lower_bound, modulo, sliced
from weightspace.symmetry.symmetry import Symmetry
from weightspace.task.task import Task

__all__ = ["Nearby", "Neighbour", "Way", "between", "neighbours"]


@public
@dataclass(frozen=True)
class Neighbour:
    """A member near to a network: the distance as stored, and modulo the group, as an interval (see `modulo`)."""

    name: str
    stored: float
    modulo: Interval

    @property
    def distance(self) -> float:
        """The distance after alignment, the upper end of the interval, or that as stored where it is smaller."""
        return min(self.modulo.upper, self.stored)


@public
@dataclass(frozen=True)
class Nearby:
    """The nearest members, the nearest first; what `neighbours` returns.

    `aligned`: how many members were aligned, of `members` that could be. `left_out`: member -> why it was not compared.
    """

    neighbours: tuple[Neighbour, ...]
    aligned: int
    members: int
    left_out: Mapping[str, str]

    def data(self) -> dict[str, Any]:
        """All results as plain data for JSON."""
        rows = [
            {"name": n.name, "distance": n.distance, "lower": n.modulo.lower, "stored": n.stored}
            for n in self.neighbours
        ]
        told = {"neighbours": rows, "aligned": self.aligned, "members": self.members, "left_out": self.left_out}
        return plain(told)


@public
def neighbours(net: Net, members: Members, group: Symmetry, k: int = 5, *, progress: Tick | None = None) -> Nearby:
    """The k members nearest to a network modulo its group: renumbered and rescaled copies are at distance 0.

    Every member is opened once for a proven lower bound of its distance modulo the group (see `lower_bound`); members
    are then aligned in the order of these bounds, until no other can be nearer than the k found. Distances are between
    networks with balanced scales, as those of `modulo`. Members of another architecture, and with NaN, are listed with
    the reason. Raises `WeightspaceError` where no member can be compared, and for k below 1.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> group = ws.Symmetry.of(net, task.example(2))
    >>> members = {"copy": group.sample(seed=1)(net), "other": ws.demo.example(1)[0]}
    >>> found = ws.atlas.neighbours(net, members, group, k=1)
    >>> found.neighbours[0].name, found.neighbours[0].distance < 1e-3 < found.neighbours[0].stored
    ('copy', True)
    """
    if k < 1:
        raise WeightspaceError(f"asked for {k} neighbours; ask for 1 or more")
    group.check(net)
    apart, bounds, left_out = modulo(group), list[tuple[float, float, str]](), dict[str, str]()
    for number, (name, member) in enumerate(members.items()):
        try:
            bounds.append((*_bounded(group, net, opened(member)), name))
        except (WeightspaceError, OSError) as error:
            left_out[name] = reason(error)
        if progress is not None:
            progress(number + 1, len(members))
    if not bounds:
        said = next((f"{name}: {why}" for name, why in left_out.items()), "there are none")
        raise WeightspaceError(f"no member to compare with: {said}")
    found: list[Neighbour] = []
    aligned = 0
    for lower, stored, name in sorted(bounds):
        if len(found) >= k and lower > found[k - 1].distance:
            break
        found.append(Neighbour(name, stored, apart(net, opened(members[name]))))
        found.sort(key=lambda one: one.distance)
        aligned += 1
    return Nearby(tuple(found[:k]), aligned, len(bounds), left_out)


def _bounded(group: Symmetry, net: Net, other: Net) -> tuple[float, float]:
    """A lower bound of the distance modulo the group, and the distance as stored."""
    net.check(other)
    if bad := other.weights.unusable():
        raise WeightspaceError(f"NaN or infinity in {bad[0]}")
    whole = group.foldable(net, other)
    return lower_bound(whole, sliced(whole, net), sliced(whole, other)), euclidean(net, other)


# ------------------------------------------------------------------ ways over members


@public
@dataclass(frozen=True)
class Way:
    """A way from one network to another over members: the names of those between, and the barriers of its pieces.

    `nets`: the networks of the way, its ends among them, each aligned to the one before. `direct`: the barrier of the
    line between the ends; `measured`: how many lines were measured.
    """

    names: tuple[str, ...]
    barriers: tuple[float, ...]
    nets: tuple[Net, ...]
    direct: float
    measured: int

    @property
    def highest(self) -> float:
        """The highest of the barriers."""
        return max(self.barriers)

    @property
    def path(self) -> Path:
        """The way as a path: a polyline through its networks."""
        return Path.through(self.nets)

    def data(self) -> dict[str, Any]:
        """All results as plain data for JSON."""
        own = {name: getattr(self, name) for name in ("names", "barriers", "highest", "direct", "measured")}
        return plain(own)


@public
def between(
    a: Net,
    b: Net,
    members: Members,
    task: Task,
    group: Symmetry | None = None,
    *,
    near: int = 6,
    points: int = 7,
    seed: int = 0,
    progress: Tick | None = None,
) -> Way:
    """The way from a to b over members whose highest barrier is lowest: a minimax path.

    The barrier of a line is how far the loss of `task` rises on it above the straight line between its ends (see
    `Path.barrier`), at so many `points`. With a `group`, b and every member are aligned to a, once. Members are opened
    once, and kept in memory as long as they fit into two gigabytes. Lines are measured as they are needed, from every
    network that is reached to the `near` members nearest to it and to b. Networks of equal highest barrier are reached
    in the fewest pieces. Members of another architecture are passed over. The barriers of the way are measured on it:
    every network is aligned to the one before it there. Raises `WeightspaceError` for
    fewer than three points, and where no barrier is finite.

    >>> import weightspace as ws
    >>> a, task = ws.demo.example()
    >>> b = ws.demo.example(1)[0]
    >>> way = ws.atlas.between(a, b, {"middle": a.lerp(b, 0.5)}, task, points=3)
    >>> way.highest <= way.direct == ws.line(a, b).barrier(task, 3)
    True
    """
    a.check(b)
    found = _Ways(a, b, members, task, group, points, seed, progress)
    order = found.best(near)
    nets = [a]
    for name in order[1:]:
        nets.append(found.aligned(found.net(name), nets[-1]))
    barriers = [line(one, other).barrier(task, points) for one, other in pairwise(nets)]
    if len(order) > 2 and not max(barriers) < found.direct:  # aligned in a row it is no better than the line
        nets, barriers, order = [a, found.net(_END)], [found.direct], [order[0], order[-1]]
    return Way(tuple(str(name) for name in order[1:-1]), tuple(barriers), tuple(nets), found.direct, found.measured)


_START, _END = 0, 1  # keys of the ends, beside names of members
_ROOM = 1 << 31  # bytes of networks that are kept open


class _Ways:
    """The search of one way: networks by name, distances, and the barriers that were measured."""

    def __init__(
        self, a: Net, b: Net, members: Members, task: Task, group: Symmetry | None, points: int, seed: int,
        progress: Tick | None,
    ) -> None:  # fmt: skip
        self.members, self.task, self.group = members, task, group
        self.points, self.seed, self.progress, self.measured = points, seed, progress, 0
        self._room, self._apart = _ROOM, dict[tuple[Any, Any], float]()
        self._held: dict[Any, Net] = {_START: a}
        self._held[_END] = self.aligned(b, a)
        self.keys = [name for name in members if self._fits(name)]
        self.direct = self._barrier(_START, _END)

    def net(self, key: Any) -> Net:
        """A network by its key, aligned to the start; opened and aligned again only where there is no room for it."""
        if key not in self._held:
            found = opened(self.members[key])
            if not self._hold(key, found):
                return self.aligned(found, self._held[_START])
        return self._held[key]

    def _hold(self, key: Any, net: Net) -> bool:
        """Keep a network, aligned to the start, where there is room for it; whether there was."""
        size = sum(flat.nbytes for flat in (*net.weights.buffers, *net.state.buffers))
        if size <= self._room:
            self._held[key], self._room = self.aligned(net, self._held[_START]), self._room - size
        return key in self._held

    def _fits(self, name: str) -> bool:
        try:
            net = opened(self.members[name])
            self._held[_START].check(net)
            if net.weights.unusable():
                return False
            self._hold(name, net)
        except (WeightspaceError, OSError):
            return False
        return True

    def aligned(self, net: Net, to: Net) -> Net:
        """A network aligned to another, where there is a group."""
        return net if self.group is None else self.group.align(net, to=to, seed=self.seed)

    def _barrier(self, one: Any, other: Any) -> float:
        height = line(self.net(one), self.net(other)).barrier(self.task, self.points)
        self.measured += 1
        if self.progress is not None:
            self.progress(self.measured, 0)
        return height if not math.isnan(height) else math.inf

    def best(self, near: int) -> list[Any]:
        """The keys of the way, by Dijkstra's algorithm with the largest barrier in place of the sum."""
        reached: dict[Any, tuple[float, int]] = {_START: (0.0, 0)}
        before: dict[Any, Any] = {}
        heap: list[tuple[float, int, int, Any]] = [(0.0, 0, 0, _START)]
        done, number = set[Any](), 0
        while heap:
            height, pieces, _, key = heapq.heappop(heap)
            if key in done:
                continue
            done.add(key)
            if key == _END:
                break
            for other in self._around(key, near, done):
                rise = self.direct if (key, other) == (_START, _END) else self._barrier(key, other)
                new = max(height, rise), pieces + 1
                if new < reached.get(other, (math.inf, 0)):
                    reached[other], before[other], number = new, key, number + 1
                    heapq.heappush(heap, (*new, number, other))
        if _END not in before:
            raise WeightspaceError("the loss is not finite on any line to the second network; look for NaN in it")
        way = [_END]
        while way[-1] != _START:
            way.append(before[way[-1]])
        return way[::-1]

    def _around(self, key: Any, near: int, done: set[Any]) -> Sequence[Any]:
        """The end, and the members nearest to a network."""
        left = [name for name in self.keys if name not in done]
        if len(left) > near:
            here = self.net(key)
            for name in left:
                if (key, name) not in self._apart:
                    self._apart[key, name] = self._apart[name, key] = euclidean(here, self.net(name))
        return [_END, *sorted(left, key=lambda name: self._apart.get((key, name), 0.0))[:near]]
