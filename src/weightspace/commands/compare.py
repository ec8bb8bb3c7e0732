"""`weightspace compare`: how two checkpoints relate, in distances, losses and a verdict.

Let g be the element of the group that brings b nearest to a, and w' the weights w with balanced scales (running
variances folded into the gains of their norm layers). Then

    r = |a' - g b'| / sqrt((|a'|^2 + |b'|^2) / 2)

is 0 for two copies of one network, sqrt(2) for unrelated weights, and does not depend on the order or the scale of the
units of either network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weightspace.commands.workspace import Workspace, file_names
from weightspace.jobs.progress import Progress, silent
from weightspace.metric.distance import euclidean, functional, layerwise
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.path.divergence import is_labelled
from weightspace.path.path import line
from weightspace.symmetry.align.match import Match, Method
from weightspace.symmetry.align.repair import has_statistics, reset_statistics
from weightspace.symmetry.axis import MATRICES, Axis
from weightspace.symmetry.balance import unit_variances
from weightspace.symmetry.fold import fold, fold_in_place
from weightspace.symmetry.quotient import lower_bound, sliced
from weightspace.symmetry.symmetry import Symmetry
from weightspace.symmetry.verdict import OUTPUTS, Verdict, beside_matrices, judge, precision, relative_distance
from weightspace.task.classification import accuracy, classifies
from weightspace.task.task import Task

__all__ = [
    "Comparison",
    "Layer",
    "Line",
    "Units",
    "along",
    "compare",
    "compare_files",
]


_VARIED = 0.1  # of how the outputs vary from example to example
_SHOWN = 48


@public
@dataclass(frozen=True)
class Layer:
    """One tensor: |a|, |b| as stored; |a - b| / |a| as stored and after alignment; the cosine after alignment."""

    name: str
    shape: tuple[int, ...]
    norm_a: float
    norm_b: float
    before: float
    after: float
    cosine: float


@public
@dataclass(frozen=True)
class Line:
    """Loss and accuracy on the straight line from a to b, as stored ("before") and aligned ("after"), held out.

    Without labels `loss` and `accuracy` are empty, `divergence` holds that of the outputs from the mixture of the
    outputs of the ends, and `barrier` its maximum. `measured`: "loss" or "divergence".
    """

    t: list[float]
    loss: dict[str, list[float]]
    accuracy: dict[str, list[float]]
    barrier: dict[str, float]
    examples: int
    statistics_reset: bool
    divergence: dict[str, list[float]] = field(default_factory=dict)
    measured: str = "loss"

    def rows(self) -> list[tuple[str, str, str]]:
        """Rows of the table: label, as stored, aligned."""
        before, after = (f"{self.barrier[k]:.4f}" for k in ("before", "after"))
        label = "loss barrier on the line" if self.measured == "loss" else "divergence on the line (no labels)"
        rows = [(label, before, after)]
        if self.accuracy:
            half = len(self.t) // 2
            before, after = (f"{self.accuracy[k][half]:.1%}" for k in ("before", "after"))
            rows.append(("accuracy half way", before, after))
        return rows

    def remarks(self) -> list[str]:
        """Which examples the numbers were measured on."""
        said = f"Measured on {self.examples:,} examples that were not used for alignment."
        if self.measured == "divergence":
            said += (
                " They have no labels: what is measured is not a loss, but how far the outputs on the line are from the"
                " mixture of those of its ends."
            )
        if self.statistics_reset:
            said += " BatchNorm statistics were re-estimated at every point of the line."
        return [said]


@public
@dataclass(frozen=True)
class Units:
    """Cosines between the units of one axis of a (rows) and of b (columns): as stored, and matched."""

    axis: str
    size: int
    before: list[list[float]]
    after: list[list[float]]


@public
@dataclass(frozen=True)
class Comparison:
    """How two networks of one architecture relate.

    In the notation of the module: `naive` |a - b|; `aligned` |a - g b| in the scales of a; `balanced` |a' - b'|;
    `interval` bounds min over g of |a' - g b'|; `relative` r; `in_place` the share of units that g leaves in place.
    """

    names: tuple[str, str]
    architecture: str
    numbers: int
    group: str
    axes: int
    notes: list[str]
    verdict: Verdict
    naive: float
    aligned: float
    interval: tuple[float, float]
    balanced: float
    relative_naive: float
    relative: float
    in_place: float
    method: str
    why: str
    layers: list[Layer]
    line: Line | None = None
    outputs: dict[str, float] = field(default_factory=dict)
    units: Units | None = None
    slice: str = "scales balanced"

    def rows(self) -> list[tuple[str, str, str]]:
        """Rows of the table: label, as stored, aligned."""
        rows = [
            ("distance |a - b|", f"{self.naive:.4g}", f"{self.aligned:.4g}"),
            (
                "relative distance, scales balanced (unrelated: 1.41)",
                f"{self.relative_naive:.3g}",
                f"{self.relative:.3g}",
            ),
        ]
        return rows + (self.line.rows() if self.line else [])

    def remarks(self) -> list[str]:
        """The sentences below the table."""
        low, high = self.interval
        said = [
            f"Distance up to symmetry, {self.slice}: between {low:.4g} and {high:.4g}, which is proven.",
            f"{self.in_place:.0%} of the units keep their number. Matched by {self.method}: {self.why}.",
            f"Symmetry of {self.architecture} ({self.numbers:,} weights): {self.group}.",
        ]
        if self.outputs:
            classes = self.outputs.get("disagreement")
            also = "" if classes is None else f", {classes:.1%} of the predictions"
            said.insert(0, f"The outputs differ by {self.outputs['relative']:.2g} of their size{also}.")
        return said + (self.line.remarks() if self.line else [])

    def data(self) -> dict[str, Any]:
        """As plain data, without the matrices of `units`."""
        return {key: value for key, value in asdict(self).items() if key != "units"}


@public
def compare(
    a: Net,
    b: Net,
    group: Symmetry,
    *,
    align_on: Task | None = None,
    measure_on: Task | None = None,
    names: tuple[str, str] = ("a", "b"),
    points: int = 11,
    method: Method = "auto",
    seed: int = 0,
    progress: Progress = silent,
) -> Comparison:
    """Align b to a, measure how far apart they are, and give a verdict. The two tasks must not share examples.

    Distances are to the nearest g b found; the line goes to the g b with the lowest barrier, where there is data.
    """
    a.check(b)
    group = group.foldable(a, b)
    progress(f"matching the units of {names[1]} to {names[0]}", 0, 0)
    near, low = _matches(a, b, group, align_on, method, seed)
    progress("measuring distances", 0, 0)
    axis = _shown_axis(group)
    stored, matched, aligned, layers = _gaps(a, b, group, near, axis)
    outputs = _outputs(a, b, measure_on) if measure_on else {}
    lowest = fold(group, low.element(b), like=a) if measure_on else None
    return Comparison(
        names=names,
        architecture=type(a.architecture).__name__,
        numbers=a.weights.numel,
        group=str(group),
        axes=len(group),
        notes=list(group.notes),
        verdict=judge(max(matched.relative, matched.beside), precision(a, b), _telling(outputs)),
        naive=euclidean(a, b),
        aligned=aligned,
        interval=matched.interval,
        balanced=stored.distance,
        relative_naive=stored.relative,
        relative=matched.relative,
        in_place=1 - near.element.difference(group.identity()),
        method=low.method,
        why=low.why,
        layers=layers,
        line=along(a, b, lowest, measure_on, align_on, points, progress) if measure_on and lowest else None,
        outputs=outputs,
        units=Units(axis.name, axis.size, stored.cosines, matched.cosines) if axis else None,
        slice="scales balanced" + ", running variances counted in the gains" * (unit_variances(group, a) is not a),
    )


def _gaps(a: Net, b: Net, group: Symmetry, near: Match, axis: Axis | None) -> tuple[_Gap, _Gap, float, list[Layer]]:
    """What is between a and b as stored and matched; the distance and the layers in the scales of a."""
    flat = sliced(group, a)
    stored = _gap(group, flat, sliced(group, b), axis)  # one slice at a time: each is as large as a network
    moved = fold(group, near.element(b), like=a)
    aligned, layers = euclidean(a, moved), _layers(a, b, moved)
    fold_in_place(group, moved.tensors)
    return stored, _gap(group, flat, sliced(group, moved), axis, bounded=True), aligned, layers


class _Gap(NamedTuple):
    """What is between two networks in the slice of a group; `cosines` of the units of the axis that is shown."""

    distance: float
    interval: tuple[float, float]
    relative: float
    beside: float
    cosines: list[list[float]]


def _gap(group: Symmetry, a: Net, b: Net, axis: Axis | None, bounded: bool = False) -> _Gap:
    upper, relative = euclidean(a, b), relative_distance(a, b)
    lower = min(lower_bound(group, a, b), upper) if bounded else 0.0
    cosines = _cosines(group, axis, a, b) if axis else []
    return _Gap(upper, (lower, upper), relative, beside_matrices(a, b, relative), cosines)


def _matches(a: Net, b: Net, group: Symmetry, data: Task | None, method: Method, seed: int) -> tuple[Match, Match]:
    """The match that comes nearest to a, and the one of the lowest barrier."""
    if data is None:
        only = group.match(b, to=a, method=method, seed=seed)
        return only, only
    weights = group.match(b, to=a, method="weights", seed=seed)
    low = group.match(b, to=a, data=data, method=method, seed=seed)
    # units that never fire on the data are told apart by their weights alone
    return max(weights, low, key=lambda m: _product(sliced(group, a), sliced(group, m.element(b)))), low


def _product(a: Net, b: Net) -> float:
    return float(a.weights.dot(b.weights))


def _layers(a: Net, b: Net, moved: Net) -> list[Layer]:
    rows = zip(layerwise(a, b), layerwise(a, moved), strict=True)
    return [
        Layer(x.name, x.shape, x.norm_a, x.norm_b, before=x.relative, after=y.relative, cosine=y.cosine)
        for x, y in rows
    ]


def _outputs(a: Net, b: Net, task: Task) -> dict[str, float]:
    """How different the functions are: |f_a - f_b| over |f_a|, and over the standard deviation of f_a on the data.

    For classes, also the share of predictions that differ.
    """
    outputs = task.outputs(a)
    f = outputs.double().flatten(1)
    size, spread = (math.sqrt(float(x.square().sum(1).mean())) for x in (f, f - f.mean(0)))
    apart = functional(a, b, task)
    found = {"relative": apart / size if size else apart, "of_spread": apart / spread if spread else math.inf}
    if outputs.dim() > 1 and outputs.shape[-1] > 1 and (task.metric is None or classifies(task)):
        found["disagreement"] = functional(a, b, task, "disagreement")
    return found


def _telling(outputs: dict[str, float]) -> float | None:
    """The difference of the outputs; None where it says nothing, because the outputs barely vary over the data."""
    relative = outputs.get("relative")
    return None if relative is None or (relative <= OUTPUTS and outputs["of_spread"] > _VARIED) else relative


@public
def along(
    a: Net,
    b: Net,
    moved: Net,
    task: Task,
    statistics: Task | None = None,
    points: int = 11,
    progress: Progress = silent,
) -> Line:
    """Loss and accuracy on the lines from a to b and from a to `moved`; the divergence where there are no labels.

    Running statistics of BatchNorm are re-estimated at every point, on the examples of `statistics`.
    """
    seen: dict[str, dict[str, list[float]]] = {"loss": {}, "accuracy": {}, "divergence": {}}
    what = "loss" if is_labelled(task) else "divergence"
    observables: dict[str, Callable[[Net], Any]] = {"loss": task}
    if classifies(task):
        observables["accuracy"] = accuracy(task)
    barrier, reset = {}, has_statistics(a)
    for number, (which, end) in enumerate((("before", b), ("after", moved))):
        path = line(a, end)
        if reset:
            path = path.map(lambda net: reset_statistics(net, statistics or task))
        steps = count(number * points)

        def told(net: Net, steps: Iterator[int] = steps) -> Net:
            progress(f"measuring the {what} along the line", min(next(steps), 2 * points - 1), 2 * points)
            return net

        path = path.map(told)
        with torch.no_grad():
            values = path.along(observables, points) if what == "loss" else {what: path.divergence(task, points)}
        for name in values:
            seen[name][which] = [float(x) for x in values[name]]
        barrier[which] = _barrier(seen[what][which])
    t = [k / (points - 1) for k in range(points)]
    return Line(t, seen["loss"], seen["accuracy"], barrier, len(task), reset, seen["divergence"], what)


def _barrier(loss: list[float]) -> float:
    """max_t L(t) - ((1 - t) L(0) + t L(1)), as `Path.barrier`."""
    n = len(loss) - 1
    return max(x - ((1 - k / n) * loss[0] + k / n * loss[-1]) for k, x in enumerate(loss))


def _shown_axis(group: Symmetry) -> Axis | None:
    """The largest axis that depends on no other and that no matrix moves."""
    turning = {g.axis for g in group.generators if g.kind in MATRICES}
    axes = [axis for axis in group.permutable() if not axis.over and axis.name not in turning]
    return max(axes, key=lambda x: x.size, default=None)


def _cosines(group: Symmetry, axis: Axis, a: Net, b: Net) -> list[list[float]]:
    """Cosines between the units of an axis of a (rows) and of b (columns); of at most 48 units."""
    some = torch.linspace(0, axis.size - 1, min(axis.size, _SHOWN)).round().long()
    first, second = (_rows(group, axis, net)[some] for net in (a, b))
    return [[round(x, 3) for x in row] for row in (first @ second.T).tolist()]


def _rows(group: Symmetry, axis: Axis, net: Net) -> Tensor:
    """Every unit as a unit vector: all of its weights, in every tensor."""
    parts = []
    for place in group.places[axis.name]:
        block = group.blocks[place.block]
        if block.tensor in net.weights:
            value = group.view(block, net.weights[block.tensor].detach().float().contiguous())
            parts.append(value.movedim(place.leaf, 0).reshape(axis.size, -1))
    return torch.nn.functional.normalize(torch.cat(parts, 1), dim=1)


def compare_files(space: Workspace, a: Path, b: Path) -> Comparison:
    """`compare` for two checkpoints of a workspace."""
    first, second = file_names(a, b)
    return compare(
        space.load(a),
        space.load(b),
        space.group,
        align_on=space.align_on,
        measure_on=space.measure_on,
        names=(first, second),
        method=space.method,
        seed=space.settings.seed,
        progress=space.settings.progress,
    )
