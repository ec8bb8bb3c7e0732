"""Alignment of two networks of different seeds: barrier and time of naive, `rebasin`, `sinkhorn-rebasin` and ours.

For every pair of seeds (0, 1), (2, 3), ..: the test-loss barrier over 11 points, whether the moved network still
computes what it did, and seconds. Alignment sees the training images only. Networks with BatchNorm have their
statistics re-estimated on the training images at every point of every line, whoever aligned them.

    python -m benchmarks.align [--nets mlp cnn ..] [--pairs 3] [--repeats 3] [--no-peers] [--no-matchers]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

from torch import nn

import weightspace as ws
from benchmarks import measure, peers, zoo

NETS = ("mlp", "cnn", "cnn_bn", "resnet_gn", "resnet_bn", "vit")
MATCHERS = ("weights", "activations", "activations+weights", "frank-wolfe")
TARGETS = {"mlp": 0.001, "cnn": 0.03, "cnn_bn": 0.01, "resnet_gn": 0.05, "resnet_bn": 0.03}
PRESERVED = 1e-3


@dataclass(frozen=True)
class Row:
    """One method on one pair of networks.

    `seconds`: of processor time, on one thread; `read`, `align`: ours in two parts; `ratio`: rebasin's over ours.
    `change`: max |f_b - f_moved| over test outputs; `accuracy`: what the move did to b's test accuracy.
    """

    net: str
    pair: tuple[int, int]
    method: str
    barrier: float | None
    seconds: float | None = None
    wall: float | None = None
    ratio: float | None = None
    read: float | None = None
    align: float | None = None
    change: float | None = None
    accuracy: float | None = None
    note: str = ""

    @property
    def preserved(self) -> bool:
        return self.change is not None and self.change <= PRESERVED


class Pair:
    """Two networks and everything measured on them."""

    def __init__(self, name: str, seeds: tuple[int, int], modules: tuple[nn.Module, nn.Module]) -> None:
        self.name, self.seeds = name, seeds
        self.modules = modules
        self.a, self.b = map(ws.Net.of, modules)
        self.train, self.test = ws.digits("train"), ws.digits("test")
        self.example = self.train.example(2)
        self.reading: list[float] = []
        self.aligning: list[float] = []
        self.note = ""

    def ours(self, data: ws.Task | None, method: str = "auto") -> ws.Net:
        """Reading the group is part of it."""
        began = process_time()
        group = ws.Symmetry.of(self.b, self.example)
        middle = process_time()
        match = group.match(self.b, self.a, data, method)
        moved = match.element(self.b)
        self.reading.append(middle - began)
        self.aligning.append(process_time() - middle)
        self.note = match.method
        return moved

    def peer(self, aligner: Callable[..., nn.Module]) -> ws.Net:
        return ws.Net.of(aligner(*self.modules, self.example))

    def row(self, method: str, runs: measure.Runs, **more: Any) -> Row:
        if runs.error:
            return Row(self.name, self.seeds, method, None, note=runs.error)
        moved, accuracy = runs.value, ws.accuracy(self.test)
        return Row(
            self.name,
            self.seeds,
            method,
            measure.barrier(self.a, moved, self.test, self.train),
            seconds=runs.seconds,
            wall=median(runs.wall),
            change=float((measure.outputs(self.b, self.test) - measure.outputs(moved, self.test)).abs().max()),
            accuracy=accuracy(moved) - accuracy(self.b),
            **more,
        )

    def naive(self) -> Row:
        barrier = measure.barrier(self.a, self.b, self.test, self.train)
        return Row(self.name, self.seeds, "naive", barrier, change=0.0, accuracy=0.0)

    def contest(self, repeats: int, with_peers: bool) -> list[Row]:
        """Naive, peers and ours; ours and rebasin take turns."""
        contestants: dict[str, Callable[[], ws.Net]] = {"ours": partial(self.ours, self.train)}
        if with_peers and peers.available("rebasin"):
            contestants["rebasin"] = partial(self.peer, peers.rebasin)
        runs = measure.in_turns(contestants, repeats)
        more: dict[str, Any] = {"note": self.note}
        if self.reading:
            more |= {"read": median(self.reading), "align": median(self.aligning)}
        if "rebasin" in runs:
            more["ratio"] = measure.ratio(runs["rebasin"], runs["ours"])
        rows = [self.naive(), self.row("ours", runs["ours"], **more)]
        if "rebasin" in runs:
            rows.append(self.row("rebasin", runs["rebasin"]))
        if with_peers and peers.available("sinkhorn"):
            slow = measure.in_turns({"sinkhorn": partial(self.peer, peers.sinkhorn)}, 1)
            rows.append(self.row("sinkhorn", slow["sinkhorn"]))
        return rows

    def matchers(self) -> list[Row]:
        """Each of our matchers alone, unrefined, and what is chosen without data and without labels."""
        rows = []
        for method in MATCHERS:
            runs = measure.in_turns({method: partial(self.ours, self.train, method)}, 1)
            rows.append(self.row(f"ours: {method}", runs[method]))
        runs = measure.in_turns({"no data": partial(self.ours, None)}, 1)
        rows.append(self.row("ours: no data", runs["no data"], note=self.note))
        bare = ws.Task(self.train.example(len(self.train)))
        runs = measure.in_turns({"no labels": partial(self.ours, bare)}, 1)
        rows.append(self.row("ours: no labels", runs["no labels"], note=self.note))
        return rows


def run(
    nets: Sequence[str] = NETS,
    pairs: int = 3,
    repeats: int = 3,
    with_peers: bool = True,
    each_matcher: bool = True,
    cache: Path = zoo.CACHE,
    epochs: int = zoo.EPOCHS,
    results: Path = measure.RESULTS,
) -> list[Row]:
    """Every net, every pair; kept after each pair, beside what an earlier run has measured on others."""
    rows: list[Row] = []
    warm_up(with_peers)
    for name in nets:
        for first in range(0, 2 * pairs, 2):
            seeds = (first, first + 1)
            pair = Pair(name, seeds, tuple(zoo.load(name, seed, cache, epochs) for seed in seeds))  # type: ignore[arg-type]
            found = pair.contest(repeats, with_peers) + (pair.matchers() if each_matcher else [])
            rows += found
            _keep(rows, results)
            for row in found:
                print(_line(row), flush=True)
    return rows


def _keep(rows: Sequence[Row], results: Path) -> None:
    new = [asdict(row) for row in rows]
    done = {(r["net"], *r["pair"], r["method"]) for r in new}
    older = [r for r in measure.kept("align", results) or [] if (r["net"], *r["pair"], r["method"]) not in done]
    order = {name: k for k, name in enumerate(zoo.NETS)}
    measure.keep("align", sorted(older + new, key=lambda r: (order[r["net"]], tuple(r["pair"]))), results)


def warm_up(with_peers: bool) -> None:
    """What only the first call pays, imports above all, is paid here."""
    tiny = [nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)).eval() for _ in range(2)]
    pair = Pair("tiny", (0, 0), (tiny[0], tiny[1]))
    pair.ours(pair.train)
    if with_peers and peers.available("rebasin"):
        pair.peer(peers.rebasin)


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Medians over the pairs, beside the targets."""
    lines = []
    for net in dict.fromkeys(row["net"] for row in rows):
        by = {m: [r for r in rows if r["net"] == net and r["method"] == m] for m in _methods(rows)}
        ours = by["ours"]
        lines.append([
            f"`{net}` ({len(ours)} pairs)",
            *(_cell(by.get(method, [])) for method in ("naive", "rebasin", "sinkhorn", "ours")),
            f"<= {TARGETS[net]}" if net in TARGETS else "-",
            f"{_median(ours, 'read', 2)} + {_median(ours, 'align', 2)}",
            _median(ours, "ratio", 1),
        ])  # fmt: skip
    head = ["net", "naive", "rebasin 0.0.47", "sinkhorn-rebasin 0.0.2", "ours", "to reach"]
    return measure.table([*head, "ours: read + align, s", "rebasin's time / ours"], lines)


def by_matcher(rows: Sequence[dict[str, Any]]) -> str:
    """Barrier of each of our matchers."""
    methods = [m for m in _methods(rows) if m.startswith("ours")]
    lines = [
        [f"`{net}`", *(_cell([r for r in rows if r["net"] == net and r["method"] == m]) for m in methods)]
        for net in dict.fromkeys(row["net"] for row in rows)
    ]
    return measure.table(["net", *(m.removeprefix("ours: ") for m in methods)], lines)


def _methods(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def _median(rows: Sequence[dict[str, Any]], key: str, digits: int = 3) -> str:
    return measure.fixed(measure.median(row[key] for row in rows), digits)


def _cell(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return "-"
    if all(row["barrier"] is None for row in rows):
        return rows[0]["note"].split(":")[0]
    text = _median(rows, "barrier")
    if rows[0]["seconds"] is not None:
        text += f" ({_median(rows, 'seconds', 2)} s)"
    change = measure.median(row["change"] for row in rows) or 0.0
    if change > PRESERVED:
        lost = 100 * (measure.median(row["accuracy"] for row in rows) or 0.0)
        text += f" **f changed** by {change:.1f}, accuracy {lost:+.1f} points"
    return text


def _line(row: Row) -> str:
    kept = "" if row.preserved or row.barrier is None else f" f changed {row.change:.2g} ({100 * row.accuracy:+.1f})"
    figures = f"{measure.fixed(row.barrier, 4)} {measure.fixed(row.seconds, 2)} s"
    return f"{row.net} {row.pair} {row.method}: {figures}{kept} {row.note}"


def both(rows: Sequence[dict[str, Any]]) -> str:
    """The table of the methods, and that of our matchers."""
    return f"{summary(rows)}\n\n{by_matcher(rows)}"


_OPTIONS = {
    "--nets": {"nargs": "*", "default": list(NETS), "choices": list(zoo.NETS)},
    "--pairs": 3,
    "--repeats": 3,
    "--no-peers": {"action": "store_false", "dest": "with_peers"},
    "--no-matchers": {"action": "store_false", "dest": "each_matcher", "help": "leave out each of our matchers alone"},
}
main = measure.command("align", __doc__, run, both, _OPTIONS)


if __name__ == "__main__":
    main()
