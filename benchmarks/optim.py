"""Time of a step of Fromage beside plain SGD and the fastest published code; precision of norms in float32.

9.5 million weights in the 12 tensors of an MLP 784-1536-1536-1536-1536-784-10, one thread, in turns, processor time.
Published: `Fromage` of pytorch_optimizer 4.1.0, both ways it has, from the folder that WEIGHTSPACE_PEERS_OPTIMIZER
names.

    python -m benchmarks.optim [--repeats 100]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks import measure, peers
from weightspace.metric import optim

SIZES = (784, 1536, 1536, 1536, 1536, 784, 10)
RATE = 1e-3
NUMBERS = 1 << 26  # of the tensor whose norm is taken


@dataclass(frozen=True)
class Row:
    """Median milliseconds of a step, and the medians over the turns of this time over two others.

    `over_sgd`: over SGD with foreach; `published`: the published code's time over this one, its faster way.
    """

    name: str
    milliseconds: float
    fastest: float
    over_sgd: float
    published: float | None


def parameters(sizes: tuple[int, ...] = SIZES) -> list[nn.Parameter]:
    torch.manual_seed(0)
    module = nn.Sequential(*(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)))
    params = list(module.parameters())
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def contestants(sizes: tuple[int, ...] = SIZES) -> dict[str, Callable[[], Any]]:
    """All on one set of parameters, so that none has the caches to itself."""
    params = parameters(sizes)
    makers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "SGD, loop": lambda: torch.optim.SGD(params, RATE, foreach=False),
        "SGD, foreach": lambda: torch.optim.SGD(params, RATE, foreach=True),
        "SGD, fused": lambda: torch.optim.SGD(params, RATE, fused=True),
        "Fromage": lambda: optim.Fromage(params, RATE),
        "Fromage, loop": lambda: optim.Fromage(params, RATE, foreach=False),
        "Fromage, neurons": lambda: optim.Fromage(params, RATE, granularity="neuron"),
    }
    if peers.available("optimizer"):
        makers["published, default"] = lambda: peers.fromage(params, RATE)
        makers["published, loop"] = lambda: peers.fromage(params, RATE, foreach=False)
    return {name: make().step for name, make in makers.items()}


def run(
    repeats: int = 100, sizes: tuple[int, ...] = SIZES, numbers: int = NUMBERS, results: Path = measure.RESULTS
) -> dict[str, Any]:
    steps = contestants(sizes)
    measure.in_turns(steps, 3)
    runs = measure.in_turns(steps, repeats)
    times = {name: one.processor for name, one in runs.items()}
    both = [times[name] for name in ("published, default", "published, loop") if times.get(name)]
    published = min(both, key=median) if both else None
    rows = [
        Row(
            name, 1e3 * median(taken), 1e3 * min(taken), _ratio(taken, times["SGD, foreach"]),
            _ratio(published, taken) if published else None,
        )
        for name, taken in times.items()
    ]  # fmt: skip
    found = {"rows": [asdict(row) for row in rows], "repeats": repeats, "norm": norms(numbers), "numbers": numbers}
    measure.keep("optim", found, results)
    return found


def _ratio(one: list[float], other: list[float]) -> float:
    return median(a / b for a, b in zip(one, other, strict=True))


def norms(numbers: int) -> dict[str, float]:
    """Relative error of the norm of one float32 tensor: ours and torch's."""
    x = torch.randn(numbers, generator=torch.Generator().manual_seed(0))
    exact = sum(float(piece.double().square().sum()) for piece in x.split(1 << 20)) ** 0.5
    return {"ours": abs(float(optim.norm(x)) / exact - 1), "torch": abs(float(x.norm()) / exact - 1)}


def summary(found: dict[str, Any]) -> str:
    rows = [
        [
            r["name"], f"{r['milliseconds']:.2f}", f"{r['fastest']:.2f}", f"{r['over_sgd']:.2f}",
            measure.fixed(r["published"], 2),
        ]
        for r in found["rows"]
    ]  # fmt: skip
    head = ["step", "ms, median", "ms, fastest", "over SGD, foreach", "published, its faster way, over this"]
    error = found["norm"]
    text = f"{found['repeats']} turns. The norm of {found['numbers'] >> 20}M float32 numbers is wrong by"
    return f"{measure.table(head, rows)}\n\n{text} {error['ours']:.0e} (torch's own: {error['torch']:.0e})."


main = measure.command("optim", __doc__, run, summary, {"--repeats": 100})


if __name__ == "__main__":
    main()
