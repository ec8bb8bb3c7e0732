"""The command line of every experiment: parse, measure what is not measured yet, show the tables.

Rows are kept in a JSON file, written after each one; tables are medians over seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median, stdev
from typing import Any

from scipy.stats import t as student

from weightspace import WeightspaceError


class Record:
    """Rows by key "experiment/setting/../seed"."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def forget(self, experiment: str) -> None:
        """Drop all rows of an experiment, from the file too."""
        left = {key: row for key, row in self.rows.items() if not key.startswith(f"{experiment}/")}
        if len(left) < len(self.rows):
            self.rows = left
            self._write()

    def add(self, key: str, row: dict[str, Any]) -> None:
        self.rows[key] = {name: _short(value) for name, value in row.items()}
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = (f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(self.rows.items()))
        partial = self.path.with_suffix(".tmp")
        partial.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        os.replace(partial, self.path)

    def of(self, setting: str) -> list[dict[str, Any]]:
        """Rows of a setting, one a seed."""
        return [row for key, row in self.rows.items() if key.rpartition("/")[0] == setting]

    def median(self, setting: str, name: str) -> Any:
        """Over the seeds; of lists, entry by entry. None where nothing was measured."""
        values = [row[name] for row in self.of(setting) if row.get(name) is not None]
        if not values:
            return None
        if isinstance(values[0], list):
            return [median(column) for column in zip(*values, strict=True)]
        return median(values)

    def at(self, setting: str) -> Callable[[str], Any]:
        """Name -> median over the seeds of that setting."""
        return lambda name: self.median(setting, name)

    def cells(self, setting: str, names: str, show: Callable[..., str], *digits: int) -> list[str]:
        """Medians of the names, given with spaces between them, as cells of a table."""
        return [show(self.median(setting, name), *digits) for name in names.split()]


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return [_short(v) for v in value] if isinstance(value, list) else value


def _shown(value: Any, style: str, times: int = 1) -> str:
    """A number in Python's format; nothing for None, several with slashes."""
    if value is None:
        return ""
    if isinstance(value, list):
        return " / ".join(_shown(v, style, times) for v in value)
    return f"{times * value:{style}}"


def number(value: Any, digits: int = 3) -> str:
    """0.983, 1.240, 34.500."""
    return _shown(value, f".{digits}f")


def brief(value: Any, digits: int = 3) -> str:
    """0.983, 1.24, 34.5, 1.2e-05: so many significant digits."""
    return _shown(value, f".{digits}g")


def percent(value: Any, digits: int = 1) -> str:
    return _shown(value, f".{digits}f", 100)


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean of two values or more, by Student's t."""
    return float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def table(head: str | Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the head as a list or as "one | two"."""
    head = head.split(" | ") if isinstance(head, str) else head
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def block(mark: str, head: str | Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, str]:
    """Mark in the README -> table, where there are rows."""
    return {mark: table(head, rows)} if rows else {}


def insert(readme: Path, blocks: dict[str, str]) -> None:
    """Put every block between its two marks in a Markdown file."""
    text = readme.read_text()
    for name, shown in blocks.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if begin in text and end in text:
            before, rest = text.split(begin, 1)
            text = f"{before}{begin}\n{shown}\n{end}{rest.split(end, 1)[1]}"
    readme.write_text(text)


# ------------------------------------------------------------------ one command for all of them

RESULTS, README = Path(__file__).parent / "results", Path(__file__).parent / "README.md"

Job = tuple[str, Callable[[], dict[str, Any]]]


def measure(out: Path, jobs: Iterable[Job], say: Callable[[dict[str, Any]], str] = lambda row: "") -> None:
    """Do the jobs whose rows are not there, and write every row at once; several processes may fill one file."""
    for key, job in jobs:
        if key not in Record(out):
            began = time.perf_counter()
            row = job()
            Record(out).add(key, row)
            print(f"{key}  {say(row)}  {time.perf_counter() - began:.1f} s", flush=True)


def each(experiments: Mapping[str, Callable[[Any, int], Iterable[Job]]]) -> Callable[..., Iterator[Job]]:
    """The jobs of the chosen experiments, seed by seed."""
    return lambda lab, given: (
        job for name in given.chosen for seed in given.seeds for job in experiments[name](lab, seed)
    )


def command(
    name: str,
    about: str,
    known: Collection[str],
    lab: Callable[[argparse.Namespace], Any],
    tables: Callable[[Record, Any], dict[str, str]],
    *,
    jobs: Callable[[Any, argparse.Namespace], Iterable[Job]] | None = None,
    data: str = "folder of MNIST's official files",
    seeds: Sequence[int] = (0, 1, 2),
    options: Mapping[str, dict[str, Any]] | None = None,
    say: Callable[[dict[str, Any]], str] = lambda row: "",
) -> Callable[[Sequence[str] | None], int]:
    """The `main` of an experiment: measure what is not measured yet, then put the tables into the README.

    `lab(given)` makes what the jobs work with, `jobs(lab, given)` yields them (those of `known` by default), and
    `tables(record, lab.name)` are shown (`tables(record, lab)` where it has no name). A WeightspaceError of `lab` is
    a mistake in the arguments. Tables go into the README unless the run was quick or had a results file of its own.
    """
    settings: dict[str, dict[str, Any]] = {
        "chosen": {"nargs": "*", "metavar": "NAME", "help": f"{', '.join(known)}; all"},
        "--data": {"help": f"{data} (embedded digits)"},
        "--seeds": {"type": int, "nargs": "*", "default": list(seeds)},
        "--quick": {"action": "store_true", "help": "one seed, barely trained: does it run?"},
        "--out": {"type": Path, "help": "results file"},
    }
    jobs = jobs or each(known)  # type: ignore[arg-type]

    def main(arguments: Sequence[str] | None = None) -> int:
        parser = argparse.ArgumentParser(prog=f"experiments.{name}", description=about.splitlines()[0])
        for option, how in (settings | dict(options or {})).items():
            parser.add_argument(option, **how)
        given = parser.parse_args(arguments)
        if wrong := [chosen for chosen in given.chosen if chosen not in known]:
            parser.error(f"no {wrong[0]!r}; choose {', '.join(known)}")
        given.chosen, given.seeds = given.chosen or list(known), [0] if given.quick else given.seeds
        try:
            made = lab(given)
        except WeightspaceError as error:
            parser.error(str(error))
        trial, given.out = given.quick or given.out is not None, given.out or RESULTS / f"{name}.json"
        measure(given.out, jobs(made, given), say)
        found = tables(Record(given.out), getattr(made, "name", made))
        for mark, shown in found.items():
            print(f"\n{mark}\n\n{shown}")
        if not trial:
            insert(README, found)
        return 0

    return main
