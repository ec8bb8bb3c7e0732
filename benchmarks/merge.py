"""Averages of five networks: naive, by `rebasin.MergeMany`, by ours; beside the single networks and their ensemble.

Groups of five MLPs of other seeds, disjoint. Test accuracy and seconds, in one run; alignment sees training images.

    python -m benchmarks.merge [--groups 5] [--no-peers]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

import weightspace as ws
from benchmarks import measure, peers, zoo
from weightspace.net.average import average

SIZE = 5
COLUMNS = {
    "single": "mean single",
    "naive": "naive mean",
    "rebasin": "rebasin.MergeMany",
    "ours": "ours",
    "unrepaired": "ours, average not repaired",
    "ours_no_data": "ours, no data",
    "unaligned": "not aligned, repaired",
    "ensemble": "ensemble of predictions",
}


@dataclass(frozen=True)
class Row:
    """One group of networks: accuracies on the test images, and processor seconds of both merges."""

    net: str
    seeds: tuple[int, ...]
    single: float
    naive: float
    ours: float
    ours_no_data: float
    unrepaired: float
    unaligned: float
    ensemble: float
    seconds: float
    wall: float
    rebasin: float | None = None
    rebasin_seconds: float | None = None
    rebasin_wall: float | None = None
    note: str = ""


def merged(nets: Sequence[ws.Net], train: ws.Task, data: ws.Task | None) -> ws.Net:
    """Reading the group is part of it."""
    return ws.mean(nets, ws.Symmetry.of(nets[0], train.example(2)), data)


def star(nets: Sequence[ws.Net], train: ws.Task) -> list[ws.Net]:
    """All aligned to the first."""
    group = ws.Symmetry.of(nets[0], train.example(2))
    return [nets[0], *(group.align(net, to=nets[0], data=train) for net in nets[1:])]


def one(name: str, seeds: tuple[int, ...], modules: Sequence[nn.Module], with_peers: bool) -> Row:
    nets = [ws.Net.of(module) for module in modules]
    train, test = ws.digits("train"), ws.digits("test")
    accuracy = ws.accuracy(test)
    contestants: dict[str, Callable[[], Any]] = {
        "ours": lambda: merged(nets, train, train),
        "no data": lambda: merged(nets, train, None),
    }
    if with_peers and peers.available("rebasin"):
        contestants["rebasin"] = lambda: ws.Net.of(peers.merge_many(modules, train.example(2)))
    runs = measure.in_turns(contestants, 1)
    peer = runs.get("rebasin")
    row = Row(
        name,
        seeds,
        single=fmean(accuracy(net) for net in nets),
        naive=accuracy(average(nets)),
        ours=accuracy(runs["ours"].value),
        ours_no_data=accuracy(runs["no data"].value),
        unrepaired=accuracy(average(star(nets, train))),
        unaligned=accuracy(ws.repair(average(nets), nets, train)),
        ensemble=ensemble(nets, test),
        seconds=runs["ours"].seconds,
        wall=runs["ours"].wall[0],
    )
    if peer is None:
        return row
    if peer.error:
        return Row(**{**asdict(row), "note": peer.error})
    found = {"rebasin": accuracy(peer.value), "rebasin_seconds": peer.seconds, "rebasin_wall": peer.wall[0]}
    return Row(**{**asdict(row), **found})


def ensemble(nets: Sequence[ws.Net], test: ws.Task) -> float:
    """Accuracy of the mean of the softmax predictions."""
    shares = torch.stack([measure.outputs(net, test).softmax(1) for net in nets]).mean(0)
    labels = test.labels()
    return float((shares.argmax(1) == labels).double().mean())


def run(
    name: str = "mlp",
    groups: int = 5,
    with_peers: bool = True,
    cache: Path = zoo.CACHE,
    epochs: int = zoo.EPOCHS,
    results: Path = measure.RESULTS,
    size: int = SIZE,
) -> list[Row]:
    rows: list[Row] = []
    warm = [nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)).eval() for _ in range(3)]
    one("tiny", (0, 1, 2), warm, with_peers)
    for group in range(groups):
        seeds = tuple(range(size * group, size * (group + 1)))
        rows.append(one(name, seeds, [zoo.load(name, seed, cache, epochs) for seed in seeds], with_peers))
        measure.keep("merge", [asdict(row) for row in rows], results)
        print(rows[-1], flush=True)
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Medians over the groups."""
    lines = []
    for key, label in COLUMNS.items():
        seconds = {"ours": "seconds", "rebasin": "rebasin_seconds"}.get(key)
        accuracy = measure.median(row[key] for row in rows)
        wall = measure.median(row[seconds] for row in rows) if seconds else None
        lines.append([label, "-" if accuracy is None else f"{100 * accuracy:.1f} %", measure.fixed(wall, 1)])
    text = measure.table([f"{len(rows)} groups of {SIZE}", "accuracy, median", "seconds, median"], lines)
    shares = {kind: _share(rows, ours, peer) for kind, (ours, peer) in _CLOCKS.items()}
    return text + "\n\nOurs takes " + ", ".join(f"{s} of rebasin's {kind} time" for kind, s in shares.items()) + "."


_CLOCKS = {"processor": ("seconds", "rebasin_seconds"), "wall": ("wall", "rebasin_wall")}


def _share(rows: Sequence[dict[str, Any]], ours: str, peer: str) -> str:
    share = measure.median(row[ours] / row[peer] for row in rows if row[peer])
    return "-" if share is None else f"{100 * share:.0f} %"


_OPTIONS = {
    "--net": {"default": "mlp", "choices": list(zoo.NETS), "dest": "name"},
    "--groups": 5,
    "--no-peers": {"action": "store_false", "dest": "with_peers"},
}
main = measure.command("merge", __doc__, run, summary, _OPTIONS)


if __name__ == "__main__":
    main()
