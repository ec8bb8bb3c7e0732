"""Results kept in a JSON file beside what they depend on, and taken up again only where that is the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from weightspace.checkpoint import files
from weightspace.net.errors import WeightspaceError
from weightspace.task.digest import changed

__all__ = ["Store"]

K = TypeVar("K")
V = TypeVar("V")
_NOW = {"rate": "lr"}  # settings that files of the last release know by another name


class Store(Generic[K, V]):
    """Results by key, written to a file as they are found; without a path they are kept in memory alone.

    `about`: group -> name -> what the results depend on, as `digest.told` says it; asked for only with a path. A kind
    of result says how a row of the file is loaded and dumped, and how a file of something else is refused.
    """

    rows: ClassVar[str]  # the name of the list of results in the file
    holds: ClassVar[str]  # what it holds, and what to do where it does not, in words
    instead: ClassVar[str]
    version: ClassVar[int | None] = None
    grows: ClassVar[tuple[str, ...]] = ()  # groups of which a file may hold more, or fewer, than is asked for

    def __init__(self, path: Path | None, about: Callable[[], dict[str, dict[str, Any]]]) -> None:
        self.path = path
        self.found: dict[K, V] = {}
        self.about: dict[str, dict[str, Any]] = {} if path is None else about()
        self.more: dict[str, Any] = {}  # what else stands in the file
        if path is not None and path.exists():
            self._read(path)

    def load(self, row: Any) -> tuple[K, V]:
        """Key and value of a row."""
        raise NotImplementedError

    def dump(self, key: K, value: V) -> Any:
        """The row of a key and a value."""
        raise NotImplementedError

    def other(self, group: str, name: str, before: Any, now: Any) -> str:
        """The sentence that refuses a file in which `name` is not what is asked for."""
        raise NotImplementedError

    def _read(self, path: Path) -> None:
        try:
            kept = files.unsealed(files.read_json(path))
            found, known = dict(self.load(row) for row in kept[self.rows]), kept.get("version") == self.version
            about = {group: dict(kept[group]) for group in self.about} if known else {}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise WeightspaceError(f"{path} holds no {self.holds} ({error}); {self.instead}") from error
        if not known:
            raise WeightspaceError(f"{path} is of another version, which told less of what it holds; give another file")
        for group, before in about.items():
            now = self.about[group]
            if group not in self.grows:
                before = {_NOW.get(name, name): value for name, value in before.items()}
            asked = {name: value for name, value in now.items() if group not in self.grows or name in before}
            if name := changed(before, asked):
                raise WeightspaceError(self.other(group, name, before.get(name), now[name]))
            self.about[group] = before | now
        self.found.update(found)
        self.more.update({k: v for k, v in kept.items() if k not in (*about, self.rows, "version")})

    def __contains__(self, key: K) -> bool:
        return key in self.found

    def __getitem__(self, key: K) -> V:
        return self.found[key]

    def __setitem__(self, key: K, value: V) -> None:
        self.found[key] = value
        if self.path is None:
            return
        first = {} if self.version is None else {"version": self.version}
        rows = [self.dump(*item) for item in self.found.items()]
        try:
            files.write(self.path, json.dumps(files.sealed({**first, **self.about, **self.more, self.rows: rows})))
        except OSError as error:
            raise WeightspaceError(f"{self.path} cannot be written ({error.strerror}); free space there") from error
