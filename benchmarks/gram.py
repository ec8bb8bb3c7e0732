"""Distances of all pairs of networks: one pass over the files, beside a loop over pairs with safetensors and numpy.

N files of one size hold float32 networks in families: a root, and others 1e-4 of the norm from it. Seconds and GB/s of
what is stored, on one thread and from the page cache; the largest relative error of a distance against float64; and the
error of a plain float32 Gram matrix, for comparison. Both read the files anew. The loop over pairs stops at a hundred
pairs, and its time is that of a pair times their number.

    python -m benchmarks.gram [--megabytes 12] [--repeats 3]     # ten minutes on one core, 1.2 GB of disk
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import weightspace as ws
from benchmarks import measure
from weightspace.atlas.gram import Distances, pairwise

COUNTS, FAMILY, NEAR, MOST = (10, 30, 100), 5, 1e-4, 100
LAYERS = 12


def written(folder: Path, n: int, megabytes: float) -> list[Path]:
    """Files of n networks, five in a family."""
    side = max(8, int((megabytes * 1e6 / 4 / LAYERS) ** 0.5))
    paths = []
    for k in range(n):
        root, own = (torch.Generator().manual_seed(seed) for seed in (k // FAMILY, 1000 + k))
        tensors = {}
        for layer in range(LAYERS):
            w, noise = (torch.randn(side, side, generator=g) for g in (root, own))
            tensors[f"{layer}.weight"] = w + (NEAR * noise if k % FAMILY else 0)
        paths.append(folder / f"{k}.safetensors")
        save_file(tensors, paths[-1])
    return paths


def one_pass(paths: Sequence[Path]) -> Distances:
    return pairwise([ws.checkpoint.read(path) for path in paths])


def by_pairs(paths: Sequence[Path], pairs: Sequence[tuple[int, int]]) -> list[float]:
    """The distance of each pair, both files read for it."""
    found = []
    for i, j in pairs:
        with safe_open(paths[i], "numpy") as a, safe_open(paths[j], "numpy") as b:
            total = 0.0
            for name in a.keys():
                apart = (a.get_tensor(name) - b.get_tensor(name)).ravel()
                total += float(np.dot(apart, apart))
        found.append(total**0.5)
    return found


def errors(paths: Sequence[Path], found: Distances) -> tuple[float, float]:
    """The largest relative errors of ours and of a plain float32 Gram matrix, over twelve networks, in float64."""
    some = [torch.cat([t.flatten() for t in ws.checkpoint.read(p).values()]) for p in paths[:12]]
    flat = torch.stack(some)
    gram = (flat @ flat.T).double()
    plain = (gram.diagonal()[:, None] + gram.diagonal() - 2 * gram).clamp(min=0).sqrt()
    worst = [0.0, 0.0]
    for i, j in combinations(range(len(some)), 2):
        exact = float((some[i].double() - some[j].double()).norm())
        for k, seen in enumerate((found.distances, plain)):
            worst[k] = max(worst[k], abs(float(seen[i, j]) / exact - 1))
    return worst[0], worst[1]


def run(
    megabytes: float = 12.0, repeats: int = 3, counts: Sequence[int] = COUNTS, results: Path = measure.RESULTS
) -> list[dict[str, Any]]:
    rows = []
    for n in counts:
        with tempfile.TemporaryDirectory() as folder:
            paths = written(Path(folder), n, megabytes)
            pairs = list(combinations(range(n), 2))
            some = pairs[:: max(1, len(pairs) // MOST)]
            size = sum(path.stat().st_size for path in paths)
            ways = {"ours": lambda p=paths: one_pass(p), "pairs": lambda p=paths, s=some: by_pairs(p, s)}
            runs = measure.in_turns(ways, repeats)
            ours, plain = errors(paths, runs["ours"].value)
        seconds, each = runs["ours"].seconds, runs["pairs"].seconds * len(pairs) / len(some)
        best = min(runs["ours"].processor)
        rows.append(
            {
                **{"n": n, "gigabytes": size / 1e9, "repeats": repeats, "seconds": seconds, "pairs": each},
                **{"rate": size / 1e9 / seconds, "best": size / 1e9 / best, "ratio": each / seconds},
                **{"error": ours, "plain": plain},
            }
        )
        print(rows[-1], flush=True)
    measure.keep("gram", rows, results)
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """A row for every number of networks."""
    body = []
    for r in rows:
        times = [
            f"{r['seconds']:.2f}",
            f"{r['rate']:.2f}",
            f"{r['best']:.2f}",
            f"{r['pairs']:.1f}",
            f"{r['ratio']:.1f}",
        ]
        body.append([f"{r['n']}", f"{r['gigabytes']:.2f}", *times, f"{r['error']:.0e}", f"{r['plain']:.0e}"])
    head = "networks | GB | one pass, s | GB/s | best run | pairs with numpy, s | ratio | error | of float32 products"
    return measure.table(head, body)


main = measure.command("gram", __doc__, run, summary, {"--megabytes": 12.0, "--repeats": 3})


if __name__ == "__main__":
    main()
