"""`weightspace project`: bring weights of a network to a form, at once or along a flow, and write the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightspace.commands.data import splits
from weightspace.commands.scores import Score, scored
from weightspace.commands.settings import Settings
from weightspace.constraints.constraining import fitting, project
from weightspace.constraints.form import Kind
from weightspace.flows.forms import conform
from weightspace.flows.stepper import flow
from weightspace.metric.pullback import Pullback
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.task.task import Task

__all__ = ["Brought", "Way", "kinds_from", "project_to"]


@dataclass(frozen=True)
class Way:
    """How a network is brought to a form: `steps` of a flow first (0: at once), and the largest drift on the way.

    `size`: the length of a step, by default a tenth of the distance to the form; `memory`: the number of examples on
    which outputs are kept.
    """

    steps: int = 0
    budget: float | None = None
    size: float | None = None
    memory: int = 200


@dataclass(frozen=True)
class Brought:
    """A network of a form: what became of every weight, and of the outputs.

    `weights`: name, kind, entries, free parameters, and the distance to the nearest weight of its form as a share of
    the norm, of the file's weight and of the weight at the end of the flow. `drift`: of the outputs that are kept, for
    the nearest network at once, and for what was written; None without data. `scores`: of the file, of the nearest
    network at once, and of what was written, on held-out examples.
    """

    name: str
    out: str
    weights: tuple[tuple[str, str, int, int, float, float], ...]
    steps: int
    drift: tuple[float, float] | None
    scores: tuple[Score, ...]

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def kinds_from(texts: Sequence[str]) -> dict[str, str]:
    """Names or patterns -> kinds, from texts such as "fc.weight=low-rank:8". Raises `WeightspaceError`."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, form = text.partition("=")
        if not equals or not name or not form:
            raise WeightspaceError(f"--to takes NAME=KIND such as fc.weight=low-rank:8, got {text!r}")
        if name in found:
            raise WeightspaceError(f"--to names {name} twice; give one kind for it")
        found[name] = form
    return found


def project_to(
    path: Path, out: Path, to: Sequence[str], way: Way = Way(), *, data: str | None = None, limit: int = 2048,
    settings: Settings,
) -> Brought:  # fmt: skip
    """Bring the weights of a checkpoint to a form and write it, in its names and dtypes. Raises `WeightspaceError`."""
    if way.steps and data is None:
        raise WeightspaceError("steps of a flow need --data, whose outputs they keep")
    kinds = kinds_from(to)
    file = settings.open(path)
    forms = fitting(file.net.live(), kinds)
    keep, held = splits(data, limit, settings.seed) if data is not None else (None, None)
    near, end, drift = project(file.net, forms), file.net, None
    if keep is not None:
        metric = Pullback(keep.take(way.memory, seed=settings.seed))
        end = _along(file.net, forms, metric, way, settings) if way.steps else end
        outputs = metric.outputs(file.net)
        drift = (metric.drift(near, outputs), metric.drift(project(end, forms), outputs))
    written = project(end, forms)
    file.save(written, out, f"brought to {', '.join(f'{n}={k}' for n, k in forms.items())}")
    told = _scores(held, file.net, near, written)
    return Brought(path.name, str(out), _weights(file.net, end, forms), way.steps, drift, told)


def _along(net: Net, forms: dict[str, Kind], metric: Pullback, way: Way, settings: Settings) -> Net:
    size = way.size if way.size is not None else 0.1 * float((project(net, forms) - net).norm())
    if way.size is None and not size:  # the weights have their form, to the last bit
        return net
    settings.progress("flowing toward the form", 0, way.steps)
    path = flow(
        net, conform(forms), metric, steps=way.steps, size=size, budget=way.budget, save=way.steps,
        progress=lambda record: settings.progress("flowing toward the form", record.step + 1, way.steps),
    )  # fmt: skip
    return path[-1]


def _weights(net: Net, end: Net, forms: dict[str, Kind]) -> tuple[tuple[str, str, int, int, float, float], ...]:
    lines = []
    for name, form in forms.items():
        away = []
        for point in (net, end):
            w = point.weights[name].double()
            away.append(float((form.nearest(w, name) - w).norm() / w.norm().clamp_min(1e-300)))
        shape = tuple(net.weights[name].shape)
        lines.append((name, str(form), net.weights[name].numel(), form.size(shape), away[0], away[1]))
    return tuple(lines)


def _scores(held: Task | None, *nets: Net) -> tuple[Score, ...]:
    return () if held is None else tuple(scored(held, *nets))
