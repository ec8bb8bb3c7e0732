"""The command line: processor time of whole commands, beside what it takes to import torch alone.

Every command is a process of its own on a CNN with 1,418 weights, so that nothing is measured but what a command takes
whatever the networks: starting, importing, reading the group, answering, ending. In the same run and in turns, `import
torch`, and `import torch._dynamo, torch.export`, which reading a graph cannot do without. Ratios are of the processor
time of the children, in medians; compiled files are those of a first run, as after an installation. Linux, macOS.

    python -m benchmarks.commands                # 2 minutes on one core
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import weightspace as ws
from benchmarks import measure
from weightspace.checkpoint import writer

TORCH, EXPORT = "import torch", "import torch._dynamo, torch.export"
_NET = ["--arch", "benchmarks.commands:cnn"]
_EXAMPLE = ["--example", "2x1x8x8"]
COMMANDS: dict[str, list[str]] = {
    TORCH: ["-c", TORCH],
    EXPORT: ["-c", EXPORT],
    "import weightspace": ["-c", "import weightspace"],
    "--help": ["--help"],
    "read --example": ["read", *_NET, *_EXAMPLE],
    "compare --example": ["compare", "a.safetensors", "b.safetensors", *_NET, *_EXAMPLE],
    "compare --data": ["compare", "a.safetensors", "b.safetensors", *_NET, "--data", "digits"],
    "align": ["align", "b.safetensors", "--to", "a.safetensors", *_NET, *_EXAMPLE, "-o", "c.safetensors", "--force"],
    "merge": ["merge", "a.safetensors", "b.safetensors", *_NET, *_EXAMPLE, "-o", "c.safetensors", "--force"],
}
TARGETS = {"read --example": 1.93, "compare --example": 1.93, "compare --data": 1.93}  # over EXPORT: 5.5 s over 2.85 s


def cnn() -> nn.Module:
    """The network of the commands: two convolutions and a linear layer, for images of 8 x 8."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def spent(name: str, folder: Path) -> float:
    """Processor seconds of one command, in a process of its own. Raises `RuntimeError` where it fails."""
    given = COMMANDS[name]
    program = given if given[0] == "-c" else ["-m", "weightspace", *given]
    root = str(Path(__file__).parent.parent)
    setting = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    setting |= {
        "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([root, *sys.path]),
        "PYTHONPYCACHEPREFIX": str(folder / "compiled"),
    }  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run([sys.executable, *program], cwd=folder, env=setting, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode:
        raise RuntimeError(f"{name} ended with {ended.returncode}: {ended.stderr[-300:]}")
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def run(names: Iterable[str] = (), repeats: int = 5, results: Path = measure.RESULTS) -> list[dict[str, Any]]:
    """A row for every command: seconds, and their ratio to those of each of the two imports, turn by turn."""
    chosen = [
        TORCH,
        EXPORT,
        *(name for name in COMMANDS if name not in (TORCH, EXPORT) and name in (names or COMMANDS)),
    ]
    seen: dict[str, list[float]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as folder:
        for seed, name in enumerate("ab"):
            torch.manual_seed(seed)
            writer.save(ws.Net.of(cnn()).tensors, Path(folder) / f"{name}.safetensors")
        for turn in range(repeats + 1):
            for name in chosen:
                seconds = spent(name, Path(folder))
                if turn:  # the first one compiles
                    seen[name].append(seconds)
    rows = [
        {
            "command": name,
            "seconds": statistics.median(seconds),
            **{key: statistics.median(s / t for s, t in zip(seconds, seen[base], strict=True)) for key, base in
               (("over_torch", TORCH), ("over_export", EXPORT))},
        }
        for name, seconds in seen.items()
    ]  # fmt: skip
    kept = {row["command"]: row for row in measure.kept("commands", results) or []} | {r["command"]: r for r in rows}
    measure.keep("commands", [kept[name] for name in COMMANDS if name in kept], results)
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Processor seconds of every command, and their ratios to the two imports."""
    body = [
        [f"`{r['command']}`", f"{r['seconds']:.2f}", f"{r['over_torch']:.2f}", f"{r['over_export']:.2f}"] for r in rows
    ]
    return measure.table("process | processor seconds | over `import torch` | over `import torch.export`", body)


main = measure.command(
    "commands", __doc__, run, summary, {"names": {"nargs": "*", "metavar": "COMMAND"}, "--repeats": 5}
)


if __name__ == "__main__":
    main()
