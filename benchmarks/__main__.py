"""Print every table from the results of the last runs: `python -m benchmarks`."""

from __future__ import annotations

from benchmarks import align, assignment, measure, memory, merge, planted

_TABLES = {
    "align": [align.summary, align.by_matcher],
    "merge": [merge.summary],
    "planted": [planted.summary],
    "assignment": [assignment.summary],
    "memory": [memory.summary],
}


def main() -> None:
    for name, tables in _TABLES.items():
        rows = measure.kept(name)
        if rows:
            print(f"### {name}\n\n" + "\n\n".join(table(rows) for table in tables) + "\n")


if __name__ == "__main__":
    main()
