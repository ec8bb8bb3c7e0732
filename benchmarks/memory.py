"""Memory of `weightspace align` on two files of size S: its peak above that of the same command on tiny files.

The networks are MLPs; b is a permuted copy of a with half as much noise as weight. No data is given.

    python -m benchmarks.memory [--width 1024] [--layers 1] [--ends 12000]
"""

from __future__ import annotations

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
    ends: int
    size: float
    tiny: float
    peak: float
    seconds: float

    @property
    def share(self) -> float:
        """(peak - tiny) / S."""
        return (self.peak - self.tiny) / self.size


def deep_mlp(width: int, layers: int, ends: int) -> nn.Module:
    """`ends` inputs and as many outputs, with `layers` square layers between."""
    hidden = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(ends, width), nn.ReLU(), *hidden, nn.Linear(width, ends))


def write(folder: Path, width: int, layers: int, ends: int) -> tuple[Path, Path]:
    """Two checkpoints, as files."""
    torch.manual_seed(0)
    net = ws.Net.of(deep_mlp(width, layers, ends))
    group = ws.Symmetry.of(net, torch.zeros(2, ends), verify=False, scales=False)
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


def peak(width: int, layers: int, ends: int) -> tuple[float, float, float]:
    """Size of one file in MB, peak resident memory of the command in MB, seconds. Linux."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        a, b = write(folder, width, layers, ends)
        arch = f"benchmarks.memory:deep_mlp(width={width},layers={layers},ends={ends})"
        options = ["--to", str(a), "-o", str(folder / "out.safetensors"), "--arch", arch, "--example", f"2x{ends}"]
        command = [sys.executable, "-c", _PROGRAM, str(folder / "peak"), "align", str(b), *options]
        began = time.perf_counter()
        ended = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        if ended.returncode:
            raise RuntimeError(f"weightspace align ended with {ended.returncode}: {ended.stderr[-500:]}")
        return a.stat().st_size / MEGA, int((folder / "peak").read_text()) * 1024 / MEGA, seconds


def run(width: int = 1024, layers: int = 1, ends: int = 12000, results: Path = measure.RESULTS) -> Row:
    """The command on tiny files, then on these."""
    _, tiny, _ = peak(TINY, layers, TINY)
    size, most, seconds = peak(width, layers, ends)
    row = Row(width, layers, ends, size, tiny, most, seconds)
    same = {"width": width, "layers": layers, "ends": ends}
    older = [r for r in measure.kept("memory", results) or [] if any(r[key] != same[key] for key in same)]
    measure.keep("memory", [*older, asdict(row) | {"share": row.share}], results)
    return row


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each shape."""
    body = [
        [
            f"{r['ends']} inputs and outputs, width {r['width']}, {r['layers']} square layers",
            *(f"{r[key]:.0f}" for key in ("size", "tiny", "peak")), f"{r['share']:.2f}", f"{r['seconds']:.0f}",
        ]
        for r in rows
    ]  # fmt: skip
    return measure.table("network | S, MB | tiny files, MB | peak, MB | above, in S | seconds", body)


_OPTIONS = {"--width": 1024, "--layers": 1, "--ends": 12000}
main = measure.command("memory", __doc__, run, summary, _OPTIONS)


if __name__ == "__main__":
    main()
