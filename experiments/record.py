"""What was measured: rows in a JSON file, written after each one, and their medians over seeds."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any


class Record:
    """Rows by key "experiment/setting/../seed"."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def forget(self, experiment: str) -> None:
        self.rows = {key: row for key, row in self.rows.items() if not key.startswith(f"{experiment}/")}

    def add(self, key: str, row: dict[str, Any]) -> None:
        self.rows[key] = {name: _short(value) for name, value in row.items()}
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


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return [_short(v) for v in value] if isinstance(value, list) else value


def number(value: Any, digits: int = 3) -> str:
    """.983, 1.24, 34.5, or several with slashes."""
    if value is None:
        return ""
    if isinstance(value, list):
        return " / ".join(number(v, digits) for v in value)
    return f"{value:.{digits}f}"


def percent(value: Any, digits: int = 1) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " / ".join(percent(v, digits) for v in value)
    return f"{100 * value:.{digits}f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """GitHub's Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def insert(readme: Path, blocks: dict[str, str]) -> None:
    """Put every block between its two marks in a Markdown file."""
    text = readme.read_text()
    for name, block in blocks.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if begin in text and end in text:
            before, rest = text.split(begin, 1)
            text = f"{before}{begin}\n{block}\n{end}{rest.split(end, 1)[1]}"
    readme.write_text(text)


# ------------------------------------------------------------------ one command for all of them

RESULTS, README = Path(__file__).parent / "results", Path(__file__).parent / "README.md"

Job = tuple[str, Callable[[], dict[str, Any]]]


def parser(module: str, doc: str, known: Collection[str], data: str) -> argparse.ArgumentParser:
    """What an experiment is to measure, on which data, for which seeds."""
    found = argparse.ArgumentParser(prog=f"experiments.{module}", description=doc.splitlines()[0])
    found.add_argument("chosen", nargs="*", metavar="NAME", help=f"{', '.join(known)}; all")
    found.add_argument("--data", help=f"{data} (embedded digits)")
    found.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    found.add_argument("--quick", action="store_true", help="one seed, barely trained: does it run?")
    found.add_argument("--out", type=Path, help="results file")
    return found


def parse(
    found: argparse.ArgumentParser, arguments: Sequence[str] | None, known: Collection[str]
) -> argparse.Namespace:
    """The arguments, all names where none was given."""
    given = found.parse_args(arguments)
    if wrong := [name for name in given.chosen if name not in known]:
        found.error(f"no {wrong[0]!r}; choose {', '.join(known)}")
    given.chosen = given.chosen or list(known)
    given.seeds = [0] if given.quick else given.seeds
    return given


def measure(out: Path, jobs: Iterable[Job], say: Callable[[dict[str, Any]], str] = lambda row: "") -> None:
    """Do the jobs whose rows are not there, and write every row at once; several processes may fill one file."""
    for key, job in jobs:
        if key not in Record(out):
            began = time.perf_counter()
            row = job()
            Record(out).add(key, row)
            print(f"{key}  {say(row)}  {time.perf_counter() - began:.1f} s", flush=True)


def tell(found: dict[str, str], given: argparse.Namespace) -> int:
    """Print the tables, and put them into the README unless the run was a trial."""
    for mark, block in found.items():
        print(f"\n{mark}\n\n{block}")
    if given.out is None and not given.quick:
        insert(README, found)
    return 0


def conduct(
    name: str,
    about: str,
    experiments: dict[str, Callable[[Any, int], Iterable[Job]]],
    lab: Callable[[str | None, bool], Any],
    tables: Callable[[Record, str], dict[str, str]],
    arguments: Sequence[str] | None = None,
) -> int:
    """Measure what is not measured yet, then put the tables into the README; `lab(data, quick)` has a name."""
    options = parser(name, about, experiments, "folder of MNIST's official files")
    given = parse(options, arguments, experiments)
    return measured(name, experiments, given, lab(given.data, given.quick), tables)


def measured(
    name: str,
    experiments: dict[str, Callable[[Any, int], Iterable[Job]]],
    given: argparse.Namespace,
    lab: Any,
    tables: Callable[[Record, str], dict[str, str]],
) -> int:
    """`conduct`, where options of its own were read."""
    out = given.out or RESULTS / f"{name}.json"
    for chosen in given.chosen:
        for seed in given.seeds:
            measure(out, experiments[chosen](lab, seed))
    return tell(tables(Record(out), lab.name), given)
