"""A training run watched, and what its recording tells of the paths that examples take through the network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace import architecture, crossing
from weightspace.activation import Gates, gates
from weightspace.adapters import scalars
from weightspace.architecture import ArchitectureError
from weightspace.compare import Progress
from weightspace.dynamics import Recorder
from weightspace.fisher import fisher_trace
from weightspace.net import Net
from weightspace.recording import Recording, RecordingError
from weightspace.task import Task, accuracy, classifies
from weightspace.workbench import splits

__all__ = ["ANCHOR", "Passages", "Watched", "passages", "watched"]

ANCHOR = 5
_PAIRS, _CANDIDATES = 400, 128


@dataclass(frozen=True)
class Watched:
    """A run that was recorded: where, how long, what recording cost, and how well the network does at the end."""

    out: str
    steps: int
    records: int
    overhead: float
    accuracy: float | None

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def watched(
    out: Path,
    data: str = "digits",
    *,
    arch: str | None = None,
    epochs: int = 16,
    rate: float = 0.05,
    batch: int = 64,
    every: int | None = None,
    probe: int = 128,
    limit: int = 10_000,
    trust_code: bool = False,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Watched:
    """Train from scratch by SGD with momentum .9, the rate a tenth at half and at three quarters of the epochs; record.

    `every`: steps between records, by default an epoch. The gates recorded are those of `probe` examples that are
    learnt from and of as many that are not. Without `arch`, four hidden layers of 128 units. Raises `WeightspaceError`
    for settings that cannot be.
    """
    if min(epochs, batch, probe) < 2 or not 0 < rate < math.inf or (every is not None and every < 1):
        raise ArchitectureError("epochs, batch and probe are 2 or more, the rate positive, every 1 or more")
    train, test = splits(data, limit, seed)
    if not classifies(train):
        raise ArchitectureError(f"--data {data}: no class labels to learn; give x and y")
    seen, held = train.take(probe, seed), test.take(probe, seed)
    x, y = train.example(len(train)), train.labels()
    module = _module(arch, x, y, trust_code, seed)
    start = Net.of(module)
    gates(seen.take(2))(start)
    seen(start)  # what does not fit raises here, before anything is trained
    steps = epochs * max(1, len(y) // batch)
    options: dict[str, Any] = {"gates": gates(seen), "held": gates(held), "activations": crossing.features_since(seen)}
    with Recorder(
        module, every or max(1, len(y) // batch), file=out, tell=None, accuracy=accuracy(held),
        fisher=fisher_trace(seen), distances_of_inputs=_once(lambda: _apart(seen)), **options,
    ) as watch:  # fmt: skip
        _train(module, x, y, epochs, rate, batch, seed, watch, lambda k: progress("training", k, steps))
        return Watched(str(out), watch.steps, len(watch.recording()), watch.overhead, accuracy(test)(Net.of(module)))


def _module(arch: str | None, x: Any, y: Tensor, trust_code: bool, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if arch is not None:
            return architecture.find(arch, [], trust_code)
        if not isinstance(x, Tensor) or y.dim() != 1:
            raise ArchitectureError("inputs that are no images or numbers need --arch")
        sizes = [x[0].numel(), 128, 128, 128, 128]
        parts = [p for i, o in zip(sizes, sizes[1:], strict=False) for p in (nn.Linear(i, o), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *parts, nn.Linear(sizes[-1], int(y.max()) + 1))


def _train(
    module: nn.Module, x: Any, y: Tensor, epochs: int, rate: float, batch: int, seed: int, watch: Recorder,
    tell: Callable[[int], None],
) -> None:  # fmt: skip
    if not isinstance(x, Tensor):
        raise ArchitectureError(
            "inputs of several tensors cannot be trained on here; put a Recorder into your own loop"
        )
    optimiser = torch.optim.SGD(module.parameters(), rate, momentum=0.9, weight_decay=5e-4)
    falls = torch.optim.lr_scheduler.MultiStepLR(optimiser, [epochs // 2, 3 * epochs // 4], 0.1)
    generator, whole = torch.Generator().manual_seed(seed), max(1, len(y) // batch)
    for _ in range(epochs):
        module.train()
        for rows in torch.randperm(len(y), generator=generator)[: whole * batch].split(batch):
            optimiser.zero_grad()
            loss = F.cross_entropy(module(x[rows]), y[rows])
            loss.backward()
            optimiser.step()
            watch.step(loss=loss)
            tell(watch.steps)
        falls.step()


def _once(look: Callable[[], Tensor]) -> Callable[[Net], Tensor | None]:
    """An observable that is there at the first record alone."""
    done: list[bool] = []

    def first(net: Net) -> Tensor | None:
        done.append(True)
        return look() if len(done) == 1 else None

    return first


def _apart(task: Task) -> Tensor:
    x = task.example(len(task))
    return torch.cdist(x.flatten(1).float(), x.flatten(1).float()) if isinstance(x, Tensor) else torch.zeros(0)


# ------------------------------------------------------------------ what a recording tells


@dataclass(frozen=True)
class Passages:
    """What became of the paths of one set of examples, from record to record; lists run over the steps after the first.

    `own`, `cross`: self-path and mean cross-path similarity with the record before, by layer and for "all". `bands`:
    the 10th, 50th and 90th percentile of the cross-path similarity of all layers. `activations`: the same of the
    activations. `flips`: share of units that changed; `turnover`: of paths given up for each unit of log relative
    trust. `matrix`: self-path similarity of every two records. `ranks`: of the candidates that were ever among the six
    nearest to an anchor. `scatter`: distance and overlap of some pairs at the end; `spearman`, of all pairs. `ratio`:
    early to mid cross-path similarity, if the stages were told.
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
            f"self-path: share of its path that an example keeps; cross-path: of what two examples share. "
            f"{self.examples} examples, {sum(self.layers.values()):,} units in {len(self.layers)} layers.",
            "A rise towards one is in part the falling rate: turnover divides by how far the weights went.",
        ]
        if self.ratio is not None:
            said.append(
                "Early to mid ratio: mean cross-path similarity before the first decay, over that up to the second."
            )
        if self.inexact:
            said.append(
                f"{', '.join(self.inexact)}: no kink; a unit counts as on where its pre-activation is positive."
            )
        return said


def passages(
    file: Path,
    *,
    name: str | None = None,
    layer: str | None = None,
    stages: tuple[int, int] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Passages:
    """Read a recording. `name`: which gates, where there are several; `layer` for ranks and distances, by default the
    second; `stages`: steps of the two decays of the rate. Raises `RecordingError` for a recording without gates.
    """
    seen = list(Recording(file))
    there = [key for key in (seen[0].values if seen else {}) if any(isinstance(r.values.get(key), Gates) for r in seen)]
    if not there or name not in (None, *there):
        raise RecordingError(f"{file}: no gates{f' named {name!r}' if name else ''}; record gates=gates(probe)")
    name = name or there[0]
    some = [record for record in seen if isinstance(record.values.get(name), Gates)]
    history: list[Gates] = [record.values[name] for record in some]
    if len(history) < 2:
        raise RecordingError(f"{file}: gates at one step only; paths are compared over time")
    layers = history[0].layers
    if layer is not None and layer not in layers:
        raise RecordingError(f"{file}: no layer {layer!r}; there are {', '.join(layers)}")
    layer = layer or list(layers)[min(1, len(layers) - 1)]
    steps, pairs = [record.step for record in some[1:]], list(zip(history, history[1:], strict=False))
    own: dict[str, list[float]] = {key: [] for key in (*layers, "all")}
    cross: dict[str, list[float]] = {key: [] for key in (*layers, "all")}
    bands = []
    for k, (p, q) in enumerate(pairs):
        progress("comparing paths", k, len(pairs))
        for key in layers:
            own[key].append(float(crossing.self_path(p, q, key).mean()))
            cross[key].append(crossing.off_diagonal(crossing.cross_path(p, q, key)))
        whole = crossing.cross_path(p, q)
        own["all"].append(float(crossing.self_path(p, q).mean()))
        cross["all"].append(crossing.off_diagonal(whole))
        bands.append(torch.quantile(_some(whole), torch.tensor([0.1, 0.5, 0.9])).tolist())
    trust = [record.values.get("from_last") for record in some[1:]]
    scatter, spearman = _distances(seen, history[-1], layer)
    ranks, kept = _near(history, layer)
    return Passages(
        Path(file).name, name, len(history[0]), layers, steps, own, cross, bands, _activations(some),
        [_flips(p, q) for p, q in pairs],
        [(1 - s) / math.log1p(t) if t else None for s, t in zip(own["all"], trust, strict=True)],
        crossing.dead(history[-1]), _kept(history),
        ranks, kept, layer, scatter, spearman, _ratio(steps, cross["all"], stages), _numbers(seen), history[0].inexact,
    )  # fmt: skip


def _kept(history: Sequence[Gates]) -> list[list[float]]:
    """Mean self-path similarity of every two records; it is symmetric."""
    half = {
        (i, j): float(crossing.self_path(p, q).mean())
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
    count = crossing.overlap(p, layer=layer)[i, j]
    return (far[i, j][some].tolist(), count[some].tolist()), crossing.ranked(p, far, layer)


def _near(history: Sequence[Gates], layer: str) -> tuple[dict[int, list[int]], list[float]]:
    few = min(len(history[0]), _CANDIDATES)
    if few < 12:
        return {}, []
    near = crossing.neighbours(history, (ANCHOR,), few, layer=layer)
    return {c: near.ranks[:, 0, c].tolist() for c in near.top[0]}, near.jaccard[:, 0].tolist()


def _ratio(steps: Sequence[int], cross: Sequence[float], stages: tuple[int, int] | None) -> float | None:
    if stages is None:
        return None
    first, second = (sum(step <= end for step in steps) for end in stages)
    return crossing.early_to_mid(cross, first, second)


def _numbers(seen: Sequence[Any]) -> dict[str, list[list[float]]]:
    """Every number that was recorded more than once, by dotted name: steps and values."""
    found: dict[str, list[list[float]]] = {}
    for record in seen:
        for key, value in scalars(record).items():
            series = found.setdefault(key, [[], []])
            series[0].append(record.step)
            series[1].append(value)
    return {key: series for key, series in found.items() if len(series[0]) > 1 and not key.startswith("activations.")}
