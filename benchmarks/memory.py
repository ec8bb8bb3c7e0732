"""Memory of `weightspace align` on two files of size S: its peak above that of the same command on tiny files.

The networks are MLPs; b is a permuted copy of a with half as much noise as weight. No data is given.

    python -m benchmarks.memory [--width 2048] [--layers 8]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import weightspace as ws
from benchmarks import measure
from benchmarks.planted import noisy

MEGA = 1e6
TINY = 16


@dataclass(frozen=True)
class Row:
    """Megabytes: of one file, of the process on tiny files, and of the process on these."""

    width: int
    layers: int
    size: float
    tiny: float
    peak: float
    seconds: float

    @property
    def share(self) -> float:
        """(peak - tiny) / S."""
        return (self.peak - self.tiny) / self.size


def deep_mlp(width: int, layers: int) -> nn.Module:
    """Of 64 inputs and 10 outputs, with `layers` square layers between."""
    hidden = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), *hidden, nn.Linear(width, 10))


def write(folder: Path, width: int, layers: int) -> tuple[Path, Path]:
    """Two checkpoints, as files."""
    torch.manual_seed(0)
    net = ws.Net.of(deep_mlp(width, layers))
    group = ws.Symmetry.of(net, torch.zeros(2, 64), verify=False, scales=False)
    paths = folder / "a.safetensors", folder / "b.safetensors"
    for path, each in zip(paths, (net, group.sample(0)(noisy(net, 0.5, 0))), strict=True):
        ws.checkpoint.save(each.tensors, path)
    return paths


# the kernel's own account of the process, read by the process itself when the command has ended
_PROGRAM = """
import sys
from weightspace.cli import main
code = main(sys.argv[2:])
status = open("/proc/self/status").read()
open(sys.argv[1], "w").write(status.split("VmHWM:")[1].split()[0])
sys.exit(code)
"""


def peak(width: int, layers: int) -> tuple[float, float, float]:
    """Size of one file in MB, peak resident memory of the command in MB, seconds. Linux."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        a, b = write(folder, width, layers)
        arch = f"benchmarks.memory:deep_mlp(width={width},layers={layers})"
        options = ["--to", str(a), "-o", str(folder / "out.safetensors"), "--arch", arch, "--example", "2x64"]
        command = [sys.executable, "-c", _PROGRAM, str(folder / "peak"), "align", str(b), *options]
        began = time.perf_counter()
        ended = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        if ended.returncode:
            raise RuntimeError(f"weightspace align ended with {ended.returncode}: {ended.stderr[-500:]}")
        return a.stat().st_size / MEGA, int((folder / "peak").read_text()) * 1024 / MEGA, seconds


def run(width: int = 2048, layers: int = 8, results: Path = measure.RESULTS) -> Row:
    """The command on tiny files, then on these."""
    _, tiny, _ = peak(TINY, layers)
    size, most, seconds = peak(width, layers)
    row = Row(width, layers, size, tiny, most, seconds)
    older = [r for r in measure.kept("memory", results) or [] if (r["width"], r["layers"]) != (width, layers)]
    measure.keep("memory", [*older, asdict(row) | {"share": row.share}], results)
    return row


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each shape."""
    head = ["network", "S, MB", "tiny files, MB", "peak, MB", "above, in S", "seconds"]
    return measure.table(
        head,
        [
            [
                f"width {r['width']}, {r['layers']} square layers",
                f"{r['size']:.0f}",
                f"{r['tiny']:.0f}",
                f"{r['peak']:.0f}",
                f"{r['share']:.2f}",
                f"{r['seconds']:.0f}",
            ]
            for r in rows
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    run(given.width, given.layers)
    print("\n" + summary(measure.kept("memory")))


if __name__ == "__main__":
    main()
