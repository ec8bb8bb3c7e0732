"""Linear CKA of two representations, ours beside `pytorch-cka` 1.1.3 (`cka_from_features`).

2000 examples of 4096 features, and 6000 of 512: ReLU of random features of 64 shared factors. The peer's CKA is
unbiased whatever one asks for, so ours is too; the biased one is timed beside it. One thread, in turns. Errors are
against the same statistic in float64; the peer's also where it is given features that are centred already.

    python -m benchmarks.representation [--repeats 9]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure, peers
from weightspace.inside.representation import cka

SIZES = ((2000, 4096), (6000, 512))


def features(n: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 64, generator=g)
    x, y = (
        (shared @ torch.randn(64, width, generator=g) / 8 + torch.randn(n, width, generator=g)).relu() for _ in "xy"
    )
    return x, y


def exact(x: Tensor, y: Tensor) -> float:
    """Unbiased CKA of centred features in float64: the statistic of Song et al. as it is printed."""
    n = len(x)
    k, m = ((z @ z.T).fill_diagonal_(0) for z in (x.double() - x.double().mean(0), y.double() - y.double().mean(0)))

    def statistic(k: Tensor, m: Tensor) -> float:
        middle = k.sum() * m.sum() / ((n - 1) * (n - 2))
        return float((k * m).sum() + middle - 2 / (n - 2) * k.sum(0) @ m.sum(0))

    return statistic(k, m) / (statistic(k, k) * statistic(m, m)) ** 0.5


def run(
    repeats: int = 9, sizes: Sequence[tuple[int, int]] = SIZES, results: Path = measure.RESULTS
) -> list[dict[str, Any]]:
    rows = []
    for n, width in sizes:
        x, y = features(n, width)
        ways = {"ours": lambda x=x, y=y: cka(x, y, unbiased=True), "biased": lambda x=x, y=y: cka(x, y)}
        if peers.available("cka"):
            ways["peer"] = lambda x=x, y=y: peers.linear_cka(x, y)
        runs, true = measure.in_turns(ways, repeats), exact(x, y)
        row: dict[str, Any] = {"n": n, "width": width, "repeats": repeats, "cka": true}
        for way, taken in runs.items():
            row[way] = taken.seconds
        row["error"] = abs(runs["ours"].value / true - 1)
        row |= dict.fromkeys(("ratio", "wall_ratio", "peer_error", "centred_error"))
        if peer := runs.get("peer"):
            row["ratio"] = measure.ratio(peer, runs["ours"])
            row["wall_ratio"] = measure.ratio(peer, runs["ours"], "wall")
            row["peer_error"] = abs(peer.value / true - 1)
            row["centred_error"] = abs(peers.linear_cka(x - x.mean(0), y - y.mean(0)) / true - 1)
        rows.append(row)
    measure.keep("representation", rows, results)
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    body = []
    for r in rows:
        errors = ["-" if r[key] is None else f"{r[key]:.0e}" for key in ("error", "peer_error", "centred_error")]
        ratios = [measure.fixed(r[key], 2) for key in ("ratio", "wall_ratio")]
        times = [measure.fixed(r.get("peer")), f"{r['ours']:.3f}", *ratios, f"{r['biased']:.3f}"]
        body.append([f"{r['n']} x {r['width']}", *times, *errors])
    times = ["pytorch-cka, s", "ours, s", "ratio", "ratio, wall", "ours biased, s"]
    return measure.table(["examples x features", *times, "error", "peer's", "peer's, centred"], body)


main = measure.command("representation", __doc__, run, summary, {"--repeats": 9})


if __name__ == "__main__":
    main()
