"""Weight matching by coordinate descent at width 2048 on trained weights: our linear assignment against scipy's.

Everything else is the same code, the same order of axes and the same start; only the solver of the linear assignment
is exchanged. The objective <a, g b> of both is reported beside the seconds.

    python -m benchmarks.assignment [--pairs 1] [--repeats 3]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

import weightspace as ws
from benchmarks import measure, zoo
from weightspace.linear import assignment
from weightspace.symmetry.align import ascent
from weightspace.symmetry.align.terms import weight_terms
from weightspace.symmetry.balance import balancing


@dataclass(frozen=True)
class Row:
    """One pair: objective and processor seconds (and wall) with scipy's solver and with ours; ratio by turn.

    `assignments`: how many were solved in one descent; `solving`: scipy's seconds over ours in the solver alone.
    """

    net: str
    pair: tuple[int, int]
    plain: float
    ours: float
    plain_seconds: float
    ours_seconds: float
    plain_wall: float
    ours_wall: float
    ratio: float
    assignments: int
    solving: float


def dense(gain: torch.Tensor) -> np.ndarray:
    """The assignment of scipy alone."""
    return linear_sum_assignment(gain.numpy(), maximize=True)[1]


def compare(name: str, pair: tuple[int, int], a: ws.Net, b: ws.Net, repeats: int = 3) -> Row:
    """Coordinate descent from the identity, with the one solver and the other in turns."""
    group = ws.Symmetry.of(b, ws.digits("train").example(2))
    terms = weight_terms(group, balancing(group, a.weights)(a), balancing(group, b.weights)(b))
    times: dict[str, list[float]] = {"plain": [], "ours": []}

    def descend(key: str, solver: Any) -> float:
        clocked = _clocked(solver, times[key])
        with mock.patch.object(ascent, "assign", clocked):
            matching = ascent.Matching(group, terms)
            matching.run(0)
        return matching.objective()

    solvers = {"plain": dense, "ours": assignment.assign}
    contestants = {key: (lambda key=key, s=solver: descend(key, s)) for key, solver in solvers.items()}
    runs = measure.in_turns(contestants, repeats)
    plain, ours = runs["plain"], runs["ours"]
    return Row(
        name, pair, plain.value, ours.value, plain.seconds, ours.seconds, median(plain.wall),
        median(ours.wall), measure.ratio(plain, ours), len(times["ours"]) // repeats,
        sum(times["plain"]) / sum(times["ours"]),
    )  # fmt: skip


def _clocked(solver: Any, times: list[float]) -> Any:
    def solve(*arguments: Any) -> Any:
        began = process_time()
        solved = solver(*arguments)
        times.append(process_time() - began)
        return solved

    return solve


def run(
    name: str = "wide_mlp",
    pairs: int = 1,
    repeats: int = 3,
    cache: Path = zoo.CACHE,
    epochs: int = zoo.EPOCHS,
    results: Path = measure.RESULTS,
) -> list[Row]:
    rows = []
    for first in range(0, 2 * pairs, 2):
        a, b = (ws.Net.of(zoo.load(name, seed, cache, epochs)) for seed in (first, first + 1))
        rows.append(compare(name, (first, first + 1), a, b, repeats))
        measure.keep("assignment", [asdict(row) for row in rows], results)
        print(rows[-1], flush=True)
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> str:
    body = [
        [
            f"`{r['net']}` {tuple(r['pair'])}", f"{r['plain']:.4f}", f"{r['ours']:.4f}", f"{r['plain_seconds']:.1f}",
            f"{r['ours_seconds']:.1f}", f"{r['ratio']:.2f}x", f"{r['solving']:.2f}x",
        ]
        for r in rows
    ]  # fmt: skip
    head = "pair | objective, scipy | objective, ours | scipy, s | ours, s | ratio | assignments alone"
    return measure.table(head, body)


main = measure.command("assignment", __doc__, run, summary, {"--pairs": 1, "--repeats": 3})


if __name__ == "__main__":
    main()
