"""Recovery of a known move: b = g (a + noise); the share of units that matching sends back where they came from.

g is a random permutation, with random positive scales on ReLU networks and random signs on those of tanh. The noise
is Gaussian, half the standard deviation of each tensor. No data is used.

    python -m benchmarks.planted [--nets ..] [--seeds 3] [--noise 0.5]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import nn

import weightspace as ws
from benchmarks import measure, zoo


def tanh_mlp(width: int = 512) -> nn.Module:
    hidden = [nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 10))


zoo.NETS.setdefault("tanh_mlp", tanh_mlp)
NETS = ("mlp", "tanh_mlp", "cnn", "cnn_bn", "resnet_gn", "resnet_bn", "vit")


@dataclass(frozen=True)
class Row:
    """`recovered`: fraction of units back in place; `signs`: fraction of planted signs undone, where there are any."""

    net: str
    seed: int
    kinds: str
    units: int
    recovered: float
    signs: float | None
    method: str
    seconds: float


def noisy(net: ws.Net, share: float, seed: int) -> ws.Net:
    """Every tensor w becomes w + share std(w) N(0, 1)."""
    noise = net.weights.randn(seed)
    moved = {n: w + share * noise[n] * (w.std() if w.numel() > 1 else 0.0) for n, w in net.weights.items()}
    return net.at(net.weights.replace(moved))


def plant(name: str, net: ws.Net, example: Any, seed: int, share: float) -> Row:
    group = ws.Symmetry.of(net, example)
    planted = group.sample(seed)
    moved = planted(noisy(net, share, seed))
    began = process_time()
    match = group.match(moved, net)
    seconds = process_time() - began
    left = match.element @ planted
    kinds = sorted({kind for axis in group for kind in axis.kinds})
    units = sum(table.numel() for table in left.permutations.values())
    recovered = 1 - left.difference(group.identity())
    return Row(name, seed, " x ".join(kinds), units, recovered, _signs(group, left), match.method, seconds)


def _signs(group: ws.Symmetry, left: Any) -> float | None:
    flips = [f for k, f in left.factors.items() if group.generators[k].kind == "sign"]
    if not flips:
        return None
    return float(torch.cat([(f > 0).flatten() for f in flips]).double().mean())


def run(
    nets: Sequence[str] = NETS,
    seeds: int = 3,
    share: float = 0.5,
    cache: Path = zoo.CACHE,
    epochs: int = zoo.EPOCHS,
    results: Path = measure.RESULTS,
) -> list[Row]:
    rows: list[Row] = []
    example = ws.digits("train").example(2)
    for name in nets:
        for seed in range(seeds):
            rows.append(plant(name, ws.Net.of(zoo.load(name, seed, cache, epochs)), example, seed, share))
            print(rows[-1], flush=True)
        older = [r for r in measure.kept("planted", results) or [] if r["net"] not in {row.net for row in rows}]
        measure.keep("planted", older + [asdict(row) for row in rows], results)
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """The worst of the seeds."""
    lines = []
    for net in dict.fromkeys(row["net"] for row in rows):
        of = [row for row in rows if row["net"] == net]
        signs = [row["signs"] for row in of if row["signs"] is not None]
        lines.append([
            f"`{net}` ({len(of)} seeds)",
            of[0]["kinds"],
            str(of[0]["units"]),
            f"{100 * min(row['recovered'] for row in of):.2f} %",
            f"{100 * min(signs):.2f} %" if signs else "-",
            measure.fixed(measure.median(row["seconds"] for row in of), 1),
        ])  # fmt: skip
    return measure.table(["net", "planted", "units", "recovered, worst", "signs, worst", "seconds"], lines)


_OPTIONS = {
    "--nets": {"nargs": "*", "default": list(NETS), "choices": list(zoo.NETS)},
    "--seeds": 3,
    "--noise": {"type": float, "default": 0.5, "dest": "share", "metavar": "NOISE"},
}
main = measure.command("planted", __doc__, run, summary, _OPTIONS)


if __name__ == "__main__":
    main()
