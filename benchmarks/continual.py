"""Time of a step of the invariant path beside a step of DER++, on the same new and old examples.

A path step is equation 4 on the memory within a drift budget, one correction, and the drift measured; a step of DER++
is Adam on the loss of the new batch, and on the outputs and labels held of `REHEARSED` old examples, or of all of them
("whole memory", the examples that the path looks at). One thread, in turns, processor time; a step is a mean over
`STEPS` of one flow. Enlarged digits: an MLP learns 5 to 9 after 0 to 4, a small CNN turned digits after digits.

    python -m benchmarks.continual [NET ..] [--memories 50 200] [--repeats 5]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weightspace as ws
from benchmarks import measure
from experiments.continual import REHEARSED, cnn
from weightspace.metric.pullback import Solver

SIDE, BATCH, STEPS, LENGTH, BUDGET, WIDE = 14, 128, 20, 0.02, 4.0, 200

BEFORE = {  # path over DER++ with one exact or Krylov solve a step, twenty steps of CGLS, and no pass shared
    ("MLP 196-200-200-10", 50): 13.9, ("MLP 196-200-200-10", 200): 18.7,
    ("CNN 32-64-400-120-20", 50): 33.7, ("CNN 32-64-400-120-20", 200): 41.1,
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Milliseconds of a step of both, ratios, and accuracy (old, new) and drift on the memory after so many steps."""

    net: str
    weights: int
    images: int
    outputs: int
    path: float
    rehearsed: float
    whole: float
    over_rehearsed: float
    over_whole: float
    drift: float
    old: float
    new: float


def mlp(side: int) -> nn.Module:
    """Two layers of 200 units, 10 outputs: 81,610 weights on images of 14 x 14."""
    hidden = nn.Linear(side**2, WIDE), nn.ReLU(), nn.Linear(WIDE, WIDE), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(WIDE, 10))


def halves(x: Tensor, y: Tensor) -> tuple[ws.Task, ws.Task]:
    """Digits 0 to 4, and 5 to 9."""
    return ws.Task(x[y < 5], y[y < 5]), ws.Task(x[y >= 5], y[y >= 5])


def turned(x: Tensor, y: Tensor) -> tuple[ws.Task, ws.Task]:
    """Digits, and turned digits with ten labels of their own."""
    return ws.Task(x, y), ws.Task(x.rot90(1, (-2, -1)).contiguous(), y + 10)


NETS: dict[str, tuple[Callable[[int], nn.Module], Callable[[Tensor, Tensor], tuple[ws.Task, ws.Task]], int]] = {
    "MLP 196-200-200-10": (mlp, halves, 10),
    "CNN 32-64-400-120-20": (cnn, turned, 20),
}


def trained(make: Callable[[int], nn.Module], task: ws.Task, epochs: int = 5) -> ws.Net:
    """The network that has learnt the old task."""
    torch.manual_seed(0)
    start = ws.Net.of(make(SIDE))
    steps = epochs * (len(task) // 64)
    return ws.flow(start, ws.learn(task, 64), ws.Adam(), steps=steps, size=1e-3, save=steps)[-1]


def images() -> tuple[Tensor, Tensor]:
    digits = ws.digits("train")
    x = digits.example(len(digits)).reshape(-1, 1, 8, 8)
    return F.interpolate(x, size=SIDE, mode="bilinear"), digits.labels()


def one(name: str, n: int, repeats: int, steps: int = STEPS, solver: Solver = "auto") -> Row:
    make, split, outputs = NETS[name]
    old, new = split(*images())
    net = trained(make, old)
    memory = old.take(n, seed=1)
    length = LENGTH * float(net.weights.norm())

    def path() -> ws.Flow:
        metric = ws.Pullback(memory, damping=1e-6, solver=solver)
        return ws.flow(net, ws.learn(new, BATCH), metric, steps=steps, size=length, budget=BUDGET, save=steps)

    def rehearsing(batch: int) -> Callable[[], ws.Flow]:
        def way() -> ws.Flow:
            held = ws.hold(memory, net, batch=batch, labels=float(outputs))
            goal = ws.learn(new, BATCH) + 0.5 / outputs * held
            return ws.flow(net, goal, ws.Adam(), steps=steps, size=1e-3, save=steps)

        return way

    ways = {"path": path, "rehearsed": rehearsing(REHEARSED), "whole": rehearsing(n)}
    measure.in_turns(ways, 1)  # graphs are exported, and derivatives checked, once for every network
    runs = measure.in_turns(ways, repeats)
    assert not any(run.error for run in runs.values()), runs
    end = runs["path"].value
    times = [1e3 * run.seconds / steps for run in runs.values()]
    ratios = [measure.ratio(runs["path"], runs[way]) for way in ("rehearsed", "whole")]
    drift, right = max(record.drift for record in end.log), [float(ws.accuracy(task)(end[-1])) for task in (old, new)]
    return Row(name, net.weights.numel, n, outputs, *times, *ratios, drift, *right)  # type: ignore[call-arg]


def run(
    names: Sequence[str] = (), memories: Sequence[int] = (50, 200), repeats: int = 5, results: Path = measure.RESULTS,
    steps: int = STEPS,
) -> list[Row]:  # fmt: skip
    rows = [one(name, n, repeats, steps) for name in names or NETS for n in memories]
    measured = {(row.net, row.images) for row in rows}
    older = [row for row in measure.kept("continual", results) or [] if (row["net"], row["images"]) not in measured]
    measure.keep("continual", sorted([*older, *map(asdict, rows)], key=lambda row: [*NETS].index(row["net"])), results)
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> str:
    body = [
        [r["net"], str(r["images"]), *(f"{r[way]:.1f}" for way in ("path", "rehearsed", "whole")),
         f"{r['over_rehearsed']:.1f}", f"{r['over_whole']:.1f}", measure.fixed(BEFORE.get((r["net"], r["images"])), 1),
         f"{r['drift']:.2f}", f"{100 * r['old']:.1f}", f"{100 * r['new']:.1f}"]
        for r in rows
    ]  # fmt: skip
    head = (
        "network | memory | path, ms a step | DER++, ms | .. whole memory, ms | path over DER++ | .. over whole memory"
        " | path over DER++ in 0.9 | largest drift | old after 20 steps, % | new, %"
    )
    return measure.table(head, body)


_OPTIONS = {
    "names": {"nargs": "*", "metavar": "NET", "help": ", ".join(NETS)},
    "--memories": {"type": int, "nargs": "*", "default": [50, 200], "metavar": "IMAGES"},
    "--repeats": 5,
}
main = measure.command("continual", __doc__, run, summary, _OPTIONS)


if __name__ == "__main__":
    main()
