"""Copies under the group, for every architecture of the tests: are they one point to all that chooses in an orbit?

For every kind of move alone and for all together, elements g drawn at random: how far alignment leaves g a from a, how
far apart canonical forms are and balanced ones (as far as scales go), the distance modulo the group and its lower
bound, how many verdicts are "same", and how much the mean of a and g a changes the outputs. All over |a|, or over the
largest output.

    python -m benchmarks.orbits [--elements 20] [names ..]     # two hours on one core
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import measure

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from architectures import CASES, noisy
from test_orbit import KINDS, apart, change

import weightspace as ws
from weightspace.commands.compare import compare


def one(a: ws.Net, group: ws.Symmetry, x: Any, kinds: tuple[str, ...], seed: int) -> dict[str, float]:
    """What is measured of a and one copy of it."""
    b = group.sample(seed, kinds)(a)
    interval, size = ws.modulo(group)(a, b), float(a.weights.norm())
    found = {
        "align": apart(a, group.align(b, to=a)),
        "canonical": apart(group.canonical(a), group.canonical(b)),
        "balance": apart(group.balance(a), group.balance(b)) if kinds == ("scale",) else 0.0,
        "lower": interval.lower / size,
        "upper": interval.upper / size,
        "strangers": float(compare(a, b, group).verdict.kind != "same"),
        "mean": change(a, ws.mean([a, b], group), x),
    }
    return found


def run(elements: int, names: list[str], results: Path = measure.RESULTS) -> list[dict[str, Any]]:
    """The rows of all architectures, those of the named ones measured anew: the worst of all elements and kinds."""
    for name in names or list(CASES):
        a = noisy(CASES[name], 1)
        group, x = ws.Symmetry.of(a, CASES[name].example(0)), CASES[name].example(3)
        kinds = [k for k in KINDS if any(set(k) <= set(axis.kinds) for axis in group.axes) or k == KINDS[-1]]
        begun, row = time.process_time(), {"net": name, "group": str(group), "elements": elements * len(kinds)}
        try:
            seen = [one(a, group, x, k, seed) for k in kinds for seed in range(elements)]
            row |= {key: max(s[key] for s in seen) for key in seen[0]}
            row["strangers"] = sum(s["strangers"] for s in seen)
        except ws.WeightspaceError as error:
            row["refused"] = str(error)
        row["seconds"] = round(time.process_time() - begun, 1)
        kept = {r["net"]: r for r in measure.kept("orbits", results) or []}
        measure.keep("orbits", list((kept | {name: row}).values()), results)
        print(name, {k: v for k, v in row.items() if k not in ("net", "group")}, flush=True)
    return measure.kept("orbits", results) or []


def summary(rows: list[dict[str, Any]]) -> str:
    """Architectures, copies, and the worst of each number."""
    columns = ["align", "canonical", "balance", "lower", "upper", "mean"]
    body = []
    for r in rows:
        numbers = [f"{r[c]:.0e}" if "refused" not in r else "" for c in columns]
        note = r.get("refused", f"{r['elements'] - int(r.get('strangers', 0))} of {r['elements']}")
        body.append([f"`{r['net']}`", *numbers, note])
    return measure.table(["net", *columns, '"same"'], body)


_NAMES = {"nargs": "*", "metavar": "NET"}
main = measure.command("orbits", __doc__, run, summary, {"names": _NAMES, "--elements": 20})


if __name__ == "__main__":
    main()
