"""What is known of the networks of an atlas: tasks, measures, pairs, sketches and jobs, by content key.

A row that is written again is replaced. Reading and writing raise `WeightspaceError` for a key that is in no table and
for what goes wrong in the database.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, or_, select, union_all

from weightspace import __version__
from weightspace.atlas.catalogue import Catalogue
from weightspace.atlas.tables import contents, jobs, measures, pairs, sketches, tasks
from weightspace.checkpoint import files
from weightspace.net.errors import WeightspaceError

__all__ = ["Jobs", "Keyed", "Measure", "Measures", "Pair", "Pairs", "Sketches", "TaskRow", "Tasks"]

_MANY = 500  # keys in one question
_PAIR = ("first", "second", "kind", "value", "low", "high", "method")


@dataclass(frozen=True)
class TaskRow:
    """A task: its digest, a name, how it is opened (as --data takes it), and its number of examples."""

    key: str
    name: str
    opened: str = ""
    examples: int = 0


@dataclass(frozen=True)
class Measure:
    """The value of an observable for a network on a task ("" for none), with its standard error (NaN: not known).

    `examples`: on how many it was measured; 0 where that is not known.
    """

    network: str
    observable: str
    value: float
    task: str = ""
    settings: str = ""
    error: float = math.nan
    version: str = __version__
    examples: int = 0


@dataclass(frozen=True)
class Pair:
    """A value of a kind ("euclidean", "barrier:TASK") for two networks, its interval, and how it was found."""

    first: str
    second: str
    kind: str
    value: float
    low: float = math.nan
    high: float = math.nan
    method: str = ""


class Keyed:
    """Rows of contents, which have a number in place of their key."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def numbers(self, connection: Connection, keys: Iterable[str]) -> dict[str, int]:
        """The number of each content. Raises `WeightspaceError` for a key that is not there."""
        wanted = sorted({*keys})
        found: dict[str, int] = {}
        for some in _parts(wanted):
            rows = connection.execute(select(contents.c.key, contents.c.id).where(contents.c.key.in_(some)))
            found |= {row.key: row.id for row in rows}
        if missing := [key for key in wanted if key not in found]:
            raise WeightspaceError(f"the atlas holds no network with the key {missing[0]!r:.80}; add it first")
        return found


class Tasks:
    """The tasks of an atlas, by their digest."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def put(self, rows: Iterable[TaskRow]) -> None:
        """Write tasks."""
        self.catalogue.put(tasks, [vars(row) for row in rows])

    def __iter__(self) -> Iterator[TaskRow]:
        with self.catalogue.reading() as connection:
            rows = connection.execute(select(tasks).where(tasks.c.key != "").order_by(tasks.c.name)).all()
        return iter([TaskRow(*row) for row in rows])


class Measures(Keyed):
    """Values of observables by content key, task and observable.

    >>> import tempfile
    >>> import weightspace as ws
    >>> from weightspace.atlas.records import Measure
    >>> net, _ = ws.demo.example()
    >>> with tempfile.TemporaryDirectory() as folder, ws.Atlas(folder) as atlas:
    ...     member = atlas.add(net, name="a")
    ...     atlas.measures.put([Measure(member.key, "norm", 2.0)])
    ...     atlas.measures.get(member.key, "norm").value
    2.0
    """

    def put(self, rows: Iterable[Measure]) -> None:
        """Write measures, in one transaction; a value of fewer examples never takes the place of one of more."""
        rows = sorted(rows, key=lambda row: row.examples)  # of two that are written together, the last counts
        now = time.time()
        with self.catalogue.writing() as connection:
            ids = self.numbers(connection, (row.network for row in rows))
            written = [
                {
                    "content": ids[row.network], "task": row.task, "observable": row.observable,
                    "settings": row.settings, "value": _number(row.value), "error": _number(row.error),
                    "version": row.version, "added": now, "examples": row.examples,
                }
                for row in rows
            ]  # fmt: skip
            self.catalogue.put(measures, written, connection, "excluded.examples >= measures.examples")

    def get(self, network: str, observable: str, task: str = "", settings: str = "") -> Measure | None:
        """One measure, or None."""
        asked = [contents.c.key == network, measures.c.settings == settings]
        found = self._found([*asked, measures.c.observable == observable, measures.c.task == task])
        return found[0] if found else None

    def of(self, observable: str | None = None, task: str | None = None) -> list[Measure]:
        """All measures of an observable, on a task; of all where none is named."""
        asked: list[ColumnElement[bool]] = [measures.c.observable == observable] if observable is not None else []
        return self._found([*asked, *([measures.c.task == task] if task is not None else [])])

    def _found(self, asked: Sequence[ColumnElement[bool]]) -> list[Measure]:
        m = measures.c
        columns = contents.c.key, m.observable, m.value, m.task, m.settings, m.error, m.version, m.examples
        with self.catalogue.reading() as connection:
            rows = connection.execute(select(*columns).join_from(measures, contents).where(*asked)).all()
        return [Measure(a, b, _float(c), d, e, _float(f), *rest) for a, b, c, d, e, f, *rest in rows]


class Pairs(Keyed):
    """Values of pairs of networks. A pair has no order, unless it is `directed`: then it stays as it is given.

    >>> import tempfile
    >>> import weightspace as ws
    >>> from weightspace.atlas.records import Pair
    >>> nets = [ws.demo.example(seed)[0] for seed in range(3)]
    >>> with tempfile.TemporaryDirectory() as folder, ws.Atlas(folder) as atlas:
    ...     a, b, c = (atlas.add(net, name=name).key for net, name in zip(nets, "abc"))
    ...     atlas.pairs.put([Pair(a, b, "euclidean", 3.0), Pair(c, a, "euclidean", 1.0)])
    ...     [pair.value for pair in atlas.pairs.near(a, "euclidean")], atlas.pairs.get(b, a, "euclidean").value
    ([1.0, 3.0], 3.0)
    """

    def __init__(self, catalogue: Catalogue) -> None:
        super().__init__(catalogue)
        self._near, self._ends = _near(), (contents.alias("a"), contents.alias("b"))

    def put(self, rows: Iterable[Pair], directed: bool = False) -> None:
        """Write pairs, in one transaction."""
        rows = list(rows)
        with self.catalogue.writing() as connection:
            ids = self.numbers(connection, {key for row in rows for key in (row.first, row.second)})
            written = []
            for row in rows:
                first, second = ids[row.first], ids[row.second]
                if second < first and not directed:
                    first, second = second, first
                three = _number(row.value), _number(row.low), _number(row.high)
                written.append((first, second, row.kind, *three, row.method))
            self.catalogue.fill(connection, pairs, _PAIR, written)

    def get(self, first: str, second: str, kind: str, directed: bool = False) -> Pair | None:
        """One pair, or None."""
        a, b = self._ends
        same = and_(a.c.key == first, b.c.key == second)
        asked = same if directed else or_(same, and_(a.c.key == second, b.c.key == first))
        found = self._found([asked, pairs.c.kind == kind])
        return found[0] if found else None

    def of(self, kind: str) -> list[Pair]:
        """All pairs of a kind."""
        return self._found([pairs.c.kind == kind])

    def near(self, network: str, kind: str, count: int = 20) -> list[Pair]:
        """The pairs of a network with the smallest values of a kind, smallest first; the network is `first` in each."""
        asked: dict[str, Any] = {"network": network, "kind": kind, "count": count}
        with self.catalogue.reading() as connection:
            rows = connection.execute(self._near, asked).all()
            if not rows:
                self.numbers(connection, [network])
        return [Pair(network, key, kind, value, _float(low), _float(high), m) for key, value, low, high, m in rows]

    def _found(self, asked: Sequence[ColumnElement[bool]]) -> list[Pair]:
        a, b = self._ends
        p = pairs.c
        joined = pairs.join(a, a.c.id == p.first).join(b, b.c.id == p.second)
        chosen = select(a.c.key, b.c.key, p.kind, p.value, p.low, p.high, p.method)
        with self.catalogue.reading() as connection:
            rows = connection.execute(chosen.select_from(joined).where(*asked)).all()
        return [Pair(a, b, kind, _float(value), _float(low), _float(up), m) for a, b, kind, value, low, up, m in rows]


class Sketches(Keyed):
    """Short vectors of float64 numbers by content key and method (its name, length and seed)."""

    def put(self, method: str, rows: Mapping[str, np.ndarray]) -> None:
        """Write the sketches of one method, in one transaction."""
        with self.catalogue.writing() as connection:
            ids = self.numbers(connection, rows)
            written = [
                {"content": ids[key], "method": method, "numbers": np.ascontiguousarray(row, dtype="<f8").tobytes()}
                for key, row in rows.items()
            ]
            self.catalogue.put(sketches, written, connection)

    def of(self, method: str, networks: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """The sketches of a method by content key; of all networks, or of those that are named and have one."""
        chosen = select(contents.c.key, sketches.c.numbers).join_from(sketches, contents)
        chosen = chosen.where(sketches.c.method == method)
        with self.catalogue.reading() as connection:
            if networks is None:
                rows = connection.execute(chosen).all()
            else:
                parts = _parts(sorted({*networks}))
                rows = [r for some in parts for r in connection.execute(chosen.where(contents.c.key.in_(some)))]
        return {key: np.frombuffer(numbers, dtype="<f8") for key, numbers in rows}


class Jobs:
    """The results of jobs by their key: whatever JSON can hold. `key in jobs`, `jobs[key]`, `jobs[key] = result`.

    >>> import tempfile
    >>> import weightspace as ws
    >>> with tempfile.TemporaryDirectory() as folder, ws.Atlas(folder) as atlas:
    ...     atlas.jobs["barrier-of-a-and-b"] = {"barrier": 0.25}
    ...     "barrier-of-a-and-b" in atlas.jobs, atlas.jobs["barrier-of-a-and-b"]
    (True, {'barrier': 0.25})
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def put(self, results: Mapping[str, Any], kind: str = "", seconds: float = math.nan) -> None:
        """Write results, in one transaction."""
        try:
            texts = {key: json.dumps(result) for key, result in results.items()}
        except TypeError as error:
            raise WeightspaceError(f"a result that JSON cannot hold ({error}); give numbers, text, lists") from error
        more = {"kind": kind, "seconds": _number(seconds), "version": __version__, "added": time.time()}
        self.catalogue.put(jobs, [{"key": key, "result": text, **more} for key, text in texts.items()])

    def found(self, keys: Iterable[str]) -> dict[str, Any]:
        """The results that are there, of all these keys."""
        done: dict[str, Any] = {}
        with self.catalogue.reading() as connection:
            for some in _parts(sorted({*keys})):
                rows = connection.execute(select(jobs.c.key, jobs.c.result).where(jobs.c.key.in_(some)))
                done |= {row.key: files.parse(row.result) for row in rows}
        return done

    def __contains__(self, key: str) -> bool:
        with self.catalogue.reading() as connection:
            return connection.execute(select(jobs.c.kind).where(jobs.c.key == key)).first() is not None

    def __getitem__(self, key: str) -> Any:
        found = self.found([key])
        if key not in found:
            raise KeyError(key)
        return found[key]

    def __setitem__(self, key: str, result: Any) -> None:
        self.put({key: result})

    def __len__(self) -> int:
        with self.catalogue.reading() as connection:
            return len(connection.execute(select(jobs.c.key)).all())


def _near() -> Select[Any]:
    """The question of `Pairs.near`, made once: making it takes longer than the database takes to answer."""
    p = pairs.c
    number = select(contents.c.id).where(contents.c.key == bindparam("network")).scalar_subquery()
    halves = [
        select(other.label("other"), p.value, p.low, p.high, p.method)
        .where(own == number, p.kind == bindparam("kind"), p.value.is_not(None))
        .order_by(p.value)
        .limit(bindparam("count"))
        .subquery()
        for own, other in ((p.first, p.second), (p.second, p.first))
    ]
    both = union_all(*(select(half) for half in halves)).subquery()
    asked = select(contents.c.key, both.c.value, both.c.low, both.c.high, both.c.method)
    asked = asked.where(contents.c.id == both.c.other).order_by(both.c.value, contents.c.key)
    return asked.limit(bindparam("count"))


def _parts(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    return (keys[start : start + _MANY] for start in range(0, len(keys), _MANY))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _float(value: float | None) -> float:
    return math.nan if value is None else value
