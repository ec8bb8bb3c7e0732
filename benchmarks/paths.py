"""Activation paths of examples: similarity of all pairs, the cost of recording, more of them than fit into memory.

python -m benchmarks.paths [pairs record stream] [--repeats 7]
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weightspace as ws
from benchmarks import measure
from weightspace.demo import digits_cnn
from weightspace.inside import counts

EXAMPLES, UNITS, ON = 2000, 4096, 0.3
PROBES, EVERY, STEPS = 512, 50, 1000
SHARE = 20  # of the rows, where they are taken one by one
STREAM = (50_000, 1024, 32)  # images, channels of the layer, side: 1,048,576 units


def gemm(p: Tensor, q: Tensor) -> Tensor:
    """The formula in float32 matrix products."""
    x, y = p.float(), q.float()
    both = x * y
    return (both @ both.T) / ((x @ x.T) * (y @ y.T)).sqrt()


def by_rows(p: Tensor, q: Tensor, many: int) -> Tensor:
    """One example against all, row after row: the first `many` rows."""
    x, y = p.float(), q.float()
    found = torch.empty(many, len(x))
    for i in range(many):
        one, two = x[i] * x, y[i] * y
        found[i] = (one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1))
    return found


def without_integers(p: Tensor, q: Tensor) -> Tensor:
    """Ours where torch has no integer kernels."""
    kept, counts.integer_product = counts.integer_product, lambda: None  # type: ignore[assignment]
    try:
        return ws.cross_path(p, q)
    finally:
        counts.integer_product = kept


def pairs(repeats: int = 7, examples: int = EXAMPLES, units: int = UNITS) -> list[dict[str, Any]]:
    """Cross-path similarity of all pairs; row by row on a twentieth of the rows, its time times 20."""
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.rand(examples, units, generator=generator) < ON for _ in range(2))
    ways: dict[str, Callable[[], Any]] = {
        "ours": lambda: ws.cross_path(p, q), "ours, public operations": lambda: without_integers(p, q),
        "float32 products": lambda: gemm(p, q), "row by row": lambda: by_rows(p, q, examples // SHARE),
    }  # fmt: skip
    runs = measure.in_turns(ways, repeats)
    runs["row by row"].processor = [SHARE * t for t in runs["row by row"].processor]
    true = gemm(p.double(), q.double()) if examples < 500 else gemm(p, q)
    rows = []
    for name, taken in runs.items():
        ratio = median(g / t for g, t in zip(runs["float32 products"].processor, taken.processor, strict=True))
        by_row = median(r / t for r, t in zip(runs["row by row"].processor, taken.processor, strict=True))
        wrong = float((ways[name]() - true).abs().max()) if name != "row by row" else 0.0
        rows.append({"name": name, "seconds": median(taken.processor), "gemm": ratio, "rows": by_row, "wrong": wrong})
    return rows


def record(repeats: int = 7, steps: int = STEPS, every: int = EVERY) -> dict[str, Any]:
    """A CNN learns digits, with gates of 512 images recorded into a file every 50 steps, and without."""
    train, probe = ws.digits("train"), ws.digits("train").take(PROBES, seed=0)
    x, y = train.example(len(train)), train.labels()

    def learnt(watched: bool) -> float:
        torch.manual_seed(0)
        module = digits_cnn()
        optimiser = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
        with tempfile.TemporaryDirectory() as folder:
            watch = None
            if watched:
                watch = ws.Recorder(
                    module, every, file=f"{folder}/run.rec", tell=None, distances=False, gates=ws.gates(probe)
                )
            for _ in range(steps):
                some = torch.randint(len(x), (64,))
                optimiser.zero_grad()
                loss = F.cross_entropy(module(x[some]), y[some])
                loss.backward()
                optimiser.step()
                if watch is not None:
                    watch.step(loss=loss)
            if watch is None:
                return 0.0
            watch.close()
            bits = Path(f"{folder}/run.rec").stat().st_size * 8 / (len(watch.recording()) * PROBES)
            return bits / watch.recording()[0].values["gates"].units

    bits = learnt(True)
    runs = measure.in_turns({"with": lambda: learnt(True), "without": lambda: learnt(False)}, repeats)
    share = median(a / b - 1 for a, b in zip(runs["with"].processor, runs["without"].processor, strict=True))
    return {"seconds": median(runs["without"].processor), "share": share, "steps": steps, "every": every, "bits": bits}


def stream(images: int = STREAM[0], channels: int = STREAM[1], side: int = STREAM[2]) -> dict[str, Any]:
    """The gates of many images and units into a file, image by image made up; peak resident memory of the process."""

    class Made(torch.utils.data.Dataset[tuple[Tensor, int]]):
        def __len__(self) -> int:
            return images

        def __getitem__(self, k: int) -> tuple[Tensor, int]:
            return torch.randn(3, side, side, generator=torch.Generator().manual_seed(k)), 0

    torch.manual_seed(0)
    net = ws.Net.of(nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        found = ws.gates(ws.Task(Made(), batch=16), f"{folder}/gates.npy")(net)
        seconds = time.perf_counter() - began
        size = Path(f"{folder}/gates.npy").stat().st_size / 1e9
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        units = found.units
        del found
    return {"images": images, "units": units, "gigabytes": size, "before": before, "peak": peak, "seconds": seconds}


PARTS: dict[str, Callable[..., Any]] = {"pairs": pairs, "record": record, "stream": stream}


def summary(found: dict[str, Any]) -> str:
    """The tables of what was measured."""
    body = [
        [row["name"], f"{row['seconds']:.2f}", f"{row['gemm']:.2f}", f"{row['rows']:.0f}", f"{row['wrong']:.0e}"]
        for row in found.get("pairs", [])
    ]
    said = [
        measure.table(["all pairs", "seconds", "products' time over this", "rows' time over this", "wrong by"], body)
    ]
    if "record" in found:
        row = found["record"]
        said.append(
            f"Recording the gates of {PROBES} digits every {row['every']} of {row['steps']} steps of a CNN takes "
            f"{100 * row['share']:.1f} % of the run's {row['seconds']:.1f} s and {row['bits']:.3f} bits a unit on disk."
        )
    if "stream" in found:
        row = found["stream"]
        said.append(
            f"{row['images']:,} images x {row['units']:,} units: {row['gigabytes']:.2f} GB in a file, peak memory "
            f"{row['peak']:.2f} GB ({row['before']:.2f} GB before), {row['seconds']:.0f} s."
        )
    return "\n\n".join(said)


def run(parts: Sequence[str] = (), repeats: int = 7) -> None:
    found = measure.kept("paths") or {}
    for part in parts or PARTS:
        found[part] = PARTS[part](repeats) if part != "stream" else stream()
        measure.keep("paths", found)


_PARTS = {"nargs": "*", "metavar": "PART", "help": ", ".join(PARTS)}
main = measure.command("paths", __doc__, run, summary, {"parts": _PARTS, "--repeats": 7})


if __name__ == "__main__":
    main()
