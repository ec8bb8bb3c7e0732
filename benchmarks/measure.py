"""What the benchmarks share: contestants timed in turns, results kept as JSON, one command line."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import weightspace as ws
from experiments.record import table as table

FOLDER = "WEIGHTSPACE_BENCHMARK_RESULTS"  # the variable that names another folder of results
RESULTS = Path(os.environ.get(FOLDER) or Path(__file__).parent / "results")


@dataclass
class Runs:
    """Repeated runs of one contestant: its last value, seconds of every run, or what it raised.

    Processor seconds are what is compared: one thread, whatever else the machine does; wall seconds are kept beside.
    """

    value: Any = None
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def seconds(self) -> float:
        """Median processor time."""
        return statistics.median(self.processor) if self.processor else float("nan")

    def once(self, contestant: Callable[[], Any]) -> None:
        wall, processor = time.perf_counter(), time.process_time()
        try:
            self.value = contestant()
        except Exception as error:  # a peer may raise anything: that is its result
            lines = str(error).strip().splitlines() or [""]
            self.error = f"{type(error).__name__}: {lines[0][:100]}"
            return
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)


def in_turns(contestants: Mapping[str, Callable[[], Any]], repeats: int = 3) -> dict[str, Runs]:
    """Every contestant once, then all again: whatever else the machine does falls on all of them."""
    runs = {name: Runs() for name in contestants}
    for _ in range(repeats):
        for name, contestant in contestants.items():
            if not runs[name].error:
                runs[name].once(contestant)
    return runs


def ratio(slow: Runs, fast: Runs, clock: str = "processor") -> float:
    """Median over the turns of (seconds of the one) / (those of the other), by the "processor" or the "wall" clock."""
    pairs = [s / f for s, f in zip(getattr(slow, clock), getattr(fast, clock), strict=False)]
    return statistics.median(pairs) if pairs else float("nan")


def median(values: Iterable[float | None]) -> float | None:
    """The median of those that are there; None for none."""
    known = [v for v in values if v is not None and v == v]
    return statistics.median(known) if known else None


def barrier(a: ws.Net, b: ws.Net, test: ws.Task, train: ws.Task, points: int = 11) -> float:
    """Test-loss barrier of the line; BatchNorm statistics re-estimated on the training data at every point."""
    return ws.line(a, b).map(lambda net: ws.reset_statistics(net, train)).barrier(test, n=points)


def outputs(net: ws.Net, task: ws.Task) -> torch.Tensor:
    with torch.no_grad():
        return task.outputs(net)


def fixed(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def keep(name: str, data: Any, folder: Path = RESULTS) -> Path:
    """Write results/NAME.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(data, indent=1, default=_plain) + "\n")
    temporary.replace(path)
    return path


def kept(name: str, folder: Path = RESULTS) -> Any:
    """Results of an earlier run, or None."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def command(
    name: str, about: str, run: Callable[..., Any], summary: Callable[[Any], str], options: Mapping[str, Any]
) -> Callable[[Sequence[str] | None], None]:
    """The `main` of a benchmark: `run` with what was given on one thread, then print the table of all that is kept.

    An option is its default, or settings of argparse; `run` takes each by its name.
    """

    def main(arguments: Sequence[str] | None = None) -> None:
        form = argparse.RawDescriptionHelpFormatter
        parser = argparse.ArgumentParser(prog=f"benchmarks.{name}", description=about, formatter_class=form)
        for option, how in options.items():
            parser.add_argument(option, **(how if isinstance(how, dict) else {"type": type(how), "default": how}))
        given = parser.parse_args(arguments)
        torch.set_num_threads(1)
        run(**vars(given))
        print("\n" + summary(kept(name)))

    return main


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)
