"""Matrices of distances between tasks, and their two-dimensional map by classical scaling."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from weightspace.net.errors import WeightspaceError
from weightspace.net.plain import plain
from weightspace.net.public import public

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "Distance",
    "TaskMap",
]


Key: TypeAlias = tuple[str, ...]


# ------------------------------------------------------------------ two tasks


@public
@dataclass(frozen=True)
class Distance:
    """The distance d(a -> b) = C(ab) - C(a) between two tasks, `value` in nats; what `task_distance` returns.

    `source` is C(a), `target` C(b), `joint` C(ab), the description lengths at this beta. `spread`: their standard
    deviation over the seeds, for C(ab) and C(a) together (NaN for one seed); the value uses the shortest of each.
    `codes`: the lengths of every seed under "a", "b" and "ab". `task_id`: whether the network has a head for each task.
    `notes`: warnings about this result.
    """

    value: float
    source: float
    target: float
    joint: float
    spread: float
    beta: float
    task_id: bool
    codes: Mapping[str, tuple[float, ...]]
    notes: tuple[str, ...] = ()

    @property
    def relative(self) -> float:
        """The relative distance d(a -> b) / C(b): 0 where a contains all of b, 1 where it helps nothing."""
        return self.value / self.target if self.target else math.nan

    def data(self) -> dict[str, Any]:
        """All fields as plain data for JSON."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        codes = {name: list(lengths) for name, lengths in self.codes.items()}
        plain_fields = {"codes": codes, "notes": list(self.notes), "relative": plain(self.relative)}
        return fields | plain_fields | {"spread": plain(self.spread)}


# ------------------------------------------------------------------ many tasks


@public
@dataclass(frozen=True)
class TaskMap:
    """The matrix of distances d(row -> column) between tasks, in nats: its diagonal is zero, and it is not symmetric.

    `codes`: the description lengths of every seed, by the names of one task or of two, in the order of `names`: one
    code serves both directions, since C(ab) = C(ba). `examples`: the number of examples of each task. Pairs that were
    not measured are NaN in the matrices. `task_distances` returns one.

    >>> import weightspace as ws
    >>> codes = {("a",): (10.0,), ("b",): (30.0,), ("a", "b"): (32.0,)}
    >>> map = ws.codes.TaskMap(("a", "b"), codes, examples=(5, 20), beta=1.0, task_id=False)
    >>> map.distance("a", "b").value, map.distance("b", "a").value, map.nearest("a")
    (22.0, 2.0, 'b')
    """

    names: tuple[str, ...]
    codes: Mapping[Key, tuple[float, ...]]
    examples: tuple[int, ...]
    beta: float
    task_id: bool

    def distance(self, source: str, target: str) -> Distance:
        """The distance d(source -> target). Raises `WeightspaceError` for an unknown name or a pair not measured."""
        i, j = (self._at(name) for name in (source, target))
        if i == j:
            length = self.lengths[source]
            own = {name: self.codes[source,] for name in ("a", "b", "ab")}
            return Distance(0.0, length, length, length, 0.0, self.beta, self.task_id, own)
        pair = (source, target) if i < j else (target, source)
        if pair not in self.codes:
            raise WeightspaceError(f"{source} and {target} were not measured together; name one of them among targets=")
        one, other = self.lengths[source], self.lengths[target]
        joint, found = self._joint(pair), min(self.codes[pair])
        notes = []
        if joint < found:
            notes.append(f"two networks are {found - joint:.0f} nats shorter than the one found for both")
        for name in (source, target):
            if (over := min(self.codes[name,]) - self.lengths[name]) > 0:
                notes.append(f"the code of {name} is {over:.0f} nats longer than that of a larger task, which is used")
        if not self.task_id and joint - one > other:
            notes.append(f"part of it is the cost of telling tasks apart: C({target}) is {other:.0f}; see task_id=True")
        lengths = {"a": self.codes[source,], "b": self.codes[target,], "ab": self.codes[pair]}
        spread = math.hypot(*(_deviation(lengths[name]) for name in ("a", "ab")))
        return Distance(joint - one, one, other, joint, spread, self.beta, self.task_id, lengths, tuple(notes))

    def _at(self, name: str) -> int:
        if name not in self.names:
            raise WeightspaceError(f"no task {name!r}; there are {', '.join(self.names)}")
        return self.names.index(name)

    @property
    def lengths(self) -> dict[str, float]:
        """The description length C of every task: the shortest code found for it, or for a union of tasks with it."""
        return {name: min(min(lengths) for key, lengths in self.codes.items() if name in key) for name in self.names}

    def _joint(self, pair: Key) -> float:
        found = min(self.codes[pair])
        return min(found, sum(self.lengths[name] for name in pair)) if self.task_id else found

    @property
    def values(self) -> Float[Tensor, "tasks tasks"]:
        """The matrix of distances d(row -> column), in nats."""
        return self._matrix(lambda d: d.value)

    @property
    def spread(self) -> Float[Tensor, "tasks tasks"]:
        """The standard deviation over seeds of each distance."""
        return self._matrix(lambda d: d.spread)

    @property
    def relative(self) -> Float[Tensor, "tasks tasks"]:
        """The matrix of relative distances d(row -> column) / C(column)."""
        return self._matrix(lambda d: d.relative)

    def _matrix(self, of: Callable[[Distance], float]) -> Tensor:
        rows = [[of(self.distance(a, b)) if self._known(a, b) else math.nan for b in self.names] for a in self.names]
        return torch.tensor(rows, dtype=torch.float64)

    def _known(self, a: str, b: str) -> bool:
        return a == b or (a, b) in self.codes or (b, a) in self.codes

    def sources(self, target: str) -> list[str]:
        """The other tasks sorted by their distance d(. -> target), the best source first."""
        others = [name for name in self.names if self._at(target) != self._at(name) and self._known(name, target)]
        return sorted(others, key=lambda name: self.distance(name, target).value)

    def nearest(self, target: str) -> str:
        """The best source for a target: the task with the least d(. -> target)."""
        if not (found := self.sources(target)):
            raise WeightspaceError(f"no distance to {target} was measured; name it among targets=")
        return found[0]

    @property
    def positions(self) -> Float[Tensor, "tasks 2"]:
        """The tasks as points in the plane, by classical scaling of the symmetric part of `values`; needs all pairs."""
        values = self.values
        return scaling(values) if bool(values.isfinite().all()) else torch.full((len(values), 2), math.nan)

    @property
    def stress(self) -> float:
        """The stress of the map, sqrt(sum (|p_i - p_j| - s_ij)^2 / sum s_ij^2), s the symmetric part of `values`."""
        return stress(self.values, self.positions)

    def data(self) -> dict[str, Any]:
        """All results as plain data for JSON; `arrows` has both directions of every pair."""
        pairs = [(self.distance(a, b), self.distance(b, a), a, b) for a, b in (k for k in self.codes if len(k) > 1)]
        return {
            "names": list(self.names),
            "examples": list(self.examples),
            "beta": self.beta,
            "task_id": self.task_id,
            "lengths": [self.lengths[name] for name in self.names],
            **{name: plain(getattr(self, name)) for name in ("values", "spread", "relative", "positions", "stress")},
            "nearest": {name: self.nearest(name) for name in self.names if self.sources(name)},
            "arrows": [{"from": a, "to": b, "there": there.value, "back": back.value} for there, back, a, b in pairs],
            "notes": list(dict.fromkeys(note for there, back, *_ in pairs for note in (*there.notes, *back.notes))),
        }

    def table(self) -> str:
        """A Markdown table: C of every task, and d(row -> column)."""
        head = ["from, to", "examples", "C", *self.names]
        lines = [head, ["---"] * len(head)]
        for name, size, row in zip(self.names, self.examples, self.values.tolist(), strict=True):
            lines.append([name, str(size), f"{self.lengths[name]:.0f}", *(f"{value:.0f}" for value in row)])
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _deviation(lengths: Sequence[float]) -> float:
    return float(torch.tensor(lengths, dtype=torch.float64).std()) if len(lengths) > 1 else math.nan


# ------------------------------------------------------------------ the map


def scaling(distances: Float[Tensor, "n n"], dimensions: int = 2) -> Float[Tensor, "n dimensions"]:
    """Classical multidimensional scaling of the symmetric part of a matrix of distances."""
    squared = ((distances + distances.T) / 2).square()
    centred = squared - squared.mean(0) - squared.mean(1)[:, None] + squared.mean()
    values, vectors = torch.linalg.eigh(-centred / 2)
    values, vectors = values.flip(0)[:dimensions], vectors.flip(1)[:, :dimensions]
    found = vectors * values.clamp(min=0).sqrt()
    found = found * torch.where(found[0] < 0, -1.0, 1.0)  # fixes the sign: the first point has coordinates >= 0
    return torch.nn.functional.pad(found, (0, dimensions - found.shape[1]))


def stress(distances: Float[Tensor, "n n"], points: Float[Tensor, "n dimensions"]) -> float:
    """The stress sqrt(sum (|p_i - p_j| - s_ij)^2 / sum s_ij^2) of a map, s the symmetric part of the matrix."""
    wanted = (distances + distances.T) / 2
    left = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") - wanted
    whole = float(wanted.square().sum())
    return math.sqrt(float(left.square().sum()) / whole) if whole else 0.0
