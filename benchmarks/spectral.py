"""The operator norm of a 2048 x 2048 matrix, Gaussian and trained: from below, from above, and by all singular values.

Trained: the middle matrix of an MLP 64-2048-2048-10 after 300 steps of Adam on digits. One thread, in turns.

    python -m benchmarks.spectral [--repeats 5]
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weightspace as ws
from benchmarks import measure
from weightspace.linear.norms import spectral_bound, spectral_norm

SIZE = 2048


def matrices(size: int = SIZE, steps: int = 300) -> dict[str, Tensor]:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(64, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 10)
    )
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
    data = ws.digits(batch=64)
    for _ in range(-(-steps // 22)):
        for x, y in data.batches():
            optimiser.zero_grad()
            F.cross_entropy(module(x), y).backward()
            optimiser.step()
    trained = module[3].weight.detach().clone()
    return {"Gaussian": torch.randn(size, size) / size**0.5, "trained": trained}


def run(repeats: int = 5, size: int = SIZE, steps: int = 300, results: Path = measure.RESULTS) -> list[dict[str, Any]]:
    rows = []
    for name, w in matrices(size, steps).items():
        ways = {
            "svd": lambda w=w: torch.linalg.svdvals(w),
            "norm": lambda w=w: spectral_norm(w),
            "bound": lambda w=w: spectral_bound(w),
        }
        times = {way: taken.processor for way, taken in measure.in_turns(ways, repeats).items()}
        true = float(torch.linalg.svdvals(w.double())[0])
        row: dict[str, Any] = {"matrix": name, "repeats": repeats, "svd": median(times["svd"])}
        for way, value in (("norm", spectral_norm(w)), ("bound", spectral_bound(w))):
            row[way] = median(times[way])
            row[f"{way}_ratio"] = median(a / b for a, b in zip(times["svd"], times[way], strict=True))
            row[f"{way}_error"] = value / true - 1
        rows.append(row)
    measure.keep("spectral", rows, results)
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    body = [
        [r["matrix"], f"{r['svd']:.2f}", f"{r['norm']:.3f}", f"{r['norm_ratio']:.1f}", f"{r['norm_error']:.0e}",
         f"{r['bound']:.2f}", f"{r['bound_ratio']:.1f}", f"{r['bound_error']:.0e}"]
        for r in rows
    ]  # fmt: skip
    head = ["matrix", "all singular values, s", "norm, s", "ratio", "error", "bound, s", "ratio", "error"]
    return measure.table(head, body)


main = measure.command("spectral", __doc__, run, summary, {"--repeats": 5})


if __name__ == "__main__":
    main()
