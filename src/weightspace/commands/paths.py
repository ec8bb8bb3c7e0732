"""`weightspace paths`: which units are on for each example of a recorded run, and when that stops changing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightspace.inside import path_overlap
from weightspace.inside.units import Gates
from weightspace.jobs.progress import Progress, silent
from weightspace.training.adapters import scalars
from weightspace.training.recording import Recording, RecordingError

__all__ = ["ANCHOR", "PathHistory", "paths"]

ANCHOR = 5  # the example whose nearest others are followed
_PAIRS, _CANDIDATES = 400, 128


@dataclass(frozen=True)
class PathHistory:
    """How the paths of one set of examples change from record to record; lists run over the records after the first.

    `own`, `cross`: self-path and mean cross-path similarity with the previous record, by layer and for "all". `bands`:
    the 10th, 50th and 90th percentile of the cross-path similarity of all layers. `activations`: the same of the
    activations. `flips`: share of units that changed; `turnover`: share of the path that changed for each unit of log
    relative trust. `matrix`: self-path similarity of every two records. `ranks`: of the examples that were ever among
    the six nearest to `ANCHOR`. `scatter`: input distance and path overlap of some pairs at the end; `spearman`: their
    rank correlation over all pairs. `ratio`: early to mid cross-path similarity, if the stages were given.
    """

    name: str
    gates: str
    examples: int
    layers: dict[str, int]
    steps: list[int]
    own: dict[str, list[float]]
    cross: dict[str, list[float]]
    bands: list[list[float]]
    activations: dict[str, dict[str, list[float]]]
    flips: list[float]
    turnover: list[float | None]
    dead: dict[str, float]
    matrix: list[list[float]]
    ranks: dict[int, list[int]]
    kept: list[float]
    layer: str
    scatter: tuple[list[float], list[float]] | None
    spearman: dict[str, float] | None
    ratio: float | None
    numbers: dict[str, list[list[float]]]
    inexact: tuple[str, ...]

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(replace(self, numbers={}))

    def remarks(self) -> list[str]:
        """The sentences below the figures."""
        said = [
            f"self-path: share of its path that an example keeps; cross-path: the same of what two examples share. "
            f"{self.examples} examples, {sum(self.layers.values()):,} units in {len(self.layers)} layers.",
            "Part of the rise is due to the falling learning rate; turnover divides by how far the weights moved.",
        ]
        if self.ratio is not None:
            said.append(
                "Early to mid ratio: mean cross-path similarity before the first decay of the learning rate, over that "
                "between the first and the second."
            )
        if self.inexact:
            said.append(
                f"{', '.join(self.inexact)}: smooth activation; a unit counts as on where its input is positive."
            )
        return said


def paths(
    file: Path,
    *,
    name: str | None = None,
    layer: str | None = None,
    stages: tuple[int, int] | None = None,
    progress: Progress = silent,
) -> PathHistory:
    """Compare the paths of a recording, record by record.

    `name`: which gates, where several were recorded; `layer`: for ranks and distances, by default the second; `stages`:
    the steps of the two decays of the learning rate. Raises `RecordingError` for a recording without gates.
    """
    seen = list(Recording(file))
    name, layer, some = _chosen(file, seen, name, layer)
    history: list[Gates] = [record.values[name] for record in some]
    layers, steps = history[0].layers, [record.step for record in some[1:]]
    own, cross, bands = _compared(history, progress)
    trust = [record.values.get("from_last") for record in some[1:]]
    scatter, spearman = _distances(seen, history[-1], layer)
    ranks, kept = _near(history, layer)
    return PathHistory(
        Path(file).name, name, len(history[0]), layers, steps, own, cross, bands, _activations(some),
        [_flips(p, q) for p, q in zip(history, history[1:], strict=False)],
        [(1 - s) / math.log1p(t) if t else None for s, t in zip(own["all"], trust, strict=True)],
        path_overlap.dead(history[-1]), _kept(history),
        ranks, kept, layer, scatter, spearman, _ratio(steps, cross["all"], stages), _numbers(seen), history[0].inexact,
    )  # fmt: skip


def _chosen(file: Path, seen: Sequence[Any], name: str | None, layer: str | None) -> tuple[str, str, list[Any]]:
    """The names of the gates and of the layer, and the records that have these gates."""
    there = [key for key in (seen[0].values if seen else {}) if any(isinstance(r.values.get(key), Gates) for r in seen)]
    if not there or name not in (None, *there):
        raise RecordingError(f"{file}: no gates{f' named {name!r}' if name else ''}; record gates=gates(probe)")
    name = name or there[0]
    some = [record for record in seen if isinstance(record.values.get(name), Gates)]
    if len(some) < 2:
        raise RecordingError(f"{file}: gates at one step only; record two or more, to compare paths over time")
    layers = some[0].values[name].layers
    if layer is not None and layer not in layers:
        raise RecordingError(f"{file}: no layer {layer!r}; there are {', '.join(layers)}")
    return name, layer or list(layers)[min(1, len(layers) - 1)], some


def _compared(
    history: Sequence[Gates], progress: Progress
) -> tuple[dict[str, list[float]], dict[str, list[float]], list[list[float]]]:
    """Self-path and cross-path similarity of each record with the previous one, by layer and for "all"; percentiles."""
    layers, pairs = history[0].layers, list(zip(history, history[1:], strict=False))
    own: dict[str, list[float]] = {key: [] for key in (*layers, "all")}
    cross: dict[str, list[float]] = {key: [] for key in (*layers, "all")}
    bands = []
    for k, (p, q) in enumerate(pairs):
        progress("comparing paths", k, len(pairs))
        for key in layers:
            own[key].append(float(path_overlap.self_path(p, q, key).mean()))
            cross[key].append(path_overlap.off_diagonal(path_overlap.cross_path(p, q, key)))
        whole = path_overlap.cross_path(p, q)
        own["all"].append(float(path_overlap.self_path(p, q).mean()))
        cross["all"].append(path_overlap.off_diagonal(whole))
        bands.append(torch.quantile(_some(whole), torch.tensor([0.1, 0.5, 0.9])).tolist())
    return own, cross, bands


def _kept(history: Sequence[Gates]) -> list[list[float]]:
    """Mean self-path similarity of every two records; it is symmetric."""
    half = {
        (i, j): float(path_overlap.self_path(p, q).mean())
        for i, p in enumerate(history)
        for j, q in enumerate(history[: i + 1])
    }
    return [[half[max(i, j), min(i, j)] for j in range(len(history))] for i in range(len(history))]


def _some(square: Tensor, most: int = 100_000) -> Tensor:
    flat = square[~torch.eye(len(square), dtype=torch.bool)]
    return flat[:: max(1, len(flat) // most)]


def _flips(p: Gates, q: Gates) -> float:
    return float((p.everything() != q.everything()).double().mean())


def _activations(some: Sequence[Any]) -> dict[str, dict[str, list[float]]]:
    """Layer -> "self" and "cross" of the activations, where they were recorded at every step after the first."""
    found: dict[str, dict[str, list[float]]] = {}
    for record in some[1:]:
        for layer, told in (record.values.get("activations") or {}).items():
            for key in ("self", "cross"):
                found.setdefault(layer, {}).setdefault(key, []).append(told[key])
    return {layer: told for layer, told in found.items() if all(len(v) == len(some) - 1 for v in told.values())}


def _distances(
    seen: Sequence[Any], p: Gates, layer: str
) -> tuple[tuple[list[float], list[float]] | None, dict[str, float] | None]:
    far = next((r.values["distances_of_inputs"] for r in seen if "distances_of_inputs" in r.values), None)
    if far is None or len(far) != len(p):
        return None, None
    i, j = torch.tril_indices(len(far), len(far), -1)
    some = torch.randperm(len(i), generator=torch.Generator().manual_seed(0))[:_PAIRS]
    count = path_overlap.overlap(p, layer=layer)[i, j]
    return (far[i, j][some].tolist(), count[some].tolist()), path_overlap.ranked(p, far, layer)


def _near(history: Sequence[Gates], layer: str) -> tuple[dict[int, list[int]], list[float]]:
    few = min(len(history[0]), _CANDIDATES)
    if few < 12:
        return {}, []
    near = path_overlap.neighbours(history, (ANCHOR,), few, layer=layer)
    return {c: near.ranks[:, 0, c].tolist() for c in near.top[0]}, near.jaccard[:, 0].tolist()


def _ratio(steps: Sequence[int], cross: Sequence[float], stages: tuple[int, int] | None) -> float | None:
    if stages is None:
        return None
    first, second = (sum(step <= end for step in steps) for end in stages)
    return path_overlap.early_to_mid(cross, first, second)


def _numbers(seen: Sequence[Any]) -> dict[str, list[list[float]]]:
    """Every number that was recorded more than once, by dotted name: steps and values."""
    found: dict[str, list[list[float]]] = {}
    for record in seen:
        for key, value in scalars(record).items():
            series = found.setdefault(key, [[], []])
            series[0].append(record.step)
            series[1].append(value)
    return {key: series for key, series in found.items() if len(series[0]) > 1 and not key.startswith("activations.")}
