"""Time of a flow under Adam beside a plain loop of torch.optim.Adam on the same batches.

`flow(net, learn(task, batch), Adam())` checks every gradient and every network for NaN, keeps a record of every step
and never writes into a network that somebody holds; the loop does none of that. One thread, in turns, processor time.

    python -m benchmarks.flow [--repeats 9]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import weightspace as ws
from benchmarks import measure

STEPS, RATE, EXAMPLES = 20, 1e-3, 4096


@dataclass(frozen=True)
class Row:
    """Milliseconds of a step of the loop and of the flow, the ratio, and how far the two ends are, relatively."""

    name: str
    weights: int
    batch: int
    loop: float
    flow: float
    ratio: float
    apart: float


def mlp(*sizes: int) -> nn.Module:
    layers = [m for a, b in zip(sizes, sizes[1:], strict=False) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


def cnn() -> nn.Module:
    one = nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    two = nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*one, *two, nn.Flatten(), nn.Linear(3136, 400), nn.ReLU(), nn.Linear(400, 10))


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "LeNet-300-100": (lambda: mlp(784, 300, 100, 10), 256),
    "MLP 784-1500-1000-10": (lambda: mlp(784, 1500, 1000, 10), 128),
    "two convolutions, two layers": (cnn, 128),
}


def one(name: str, steps: int, repeats: int) -> Row:
    make, batch = NETS[name]
    torch.manual_seed(0)
    start, generator = ws.Net.of(make()), torch.Generator().manual_seed(1)
    x, y = torch.rand(EXAMPLES, 1, 28, 28, generator=generator), torch.randint(10, (EXAMPLES,), generator=generator)
    task = ws.Task(x, y)

    def loop() -> ws.Net:
        module = start.module()
        optimiser = torch.optim.Adam(module.parameters(), RATE)
        for k in range(steps):
            some, labels = next(task.minibatch(batch, k, 0).batches())
            optimiser.zero_grad()
            F.cross_entropy(module(some), labels).backward()
            optimiser.step()
        return ws.Net.of(module)

    def flow() -> ws.Net:
        return ws.flow(start, ws.learn(task, batch, 0), ws.Adam(), steps=steps, size=RATE, save=steps)[-1]

    measure.in_turns({"loop": loop, "flow": flow}, 1)
    runs = measure.in_turns({"loop": loop, "flow": flow}, repeats)
    ends = [run.value for run in runs.values()]
    apart = float((ends[0] - ends[1]).norm() / (ends[0] - start).norm())
    times = [1e3 * run.seconds / steps for run in runs.values()]
    return Row(name, start.weights.numel, batch, *times, measure.ratio(runs["flow"], runs["loop"]), apart)


def run(
    names: Sequence[str] = tuple(NETS), steps: int = STEPS, repeats: int = 9, results: Path = measure.RESULTS
) -> list[Row]:
    rows = [one(name, steps, repeats) for name in names]
    measure.keep("flow", [asdict(row) for row in rows], results)
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> str:
    body = [
        [r["name"], f"{r['weights']:,}", str(r["batch"]), *(f"{r[way]:.1f}" for way in ("loop", "flow")),
         f"{r['ratio']:.2f}", f"{r['apart']:.0e}"]
        for r in rows
    ]  # fmt: skip
    head = "network | weights | batch | loop, ms a step | flow, ms a step | flow over loop | ends apart"
    return measure.table(head, body)


main = measure.command("flow", __doc__, run, summary, {"--repeats": 9})


if __name__ == "__main__":
    main()
