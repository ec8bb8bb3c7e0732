"""A checkpoint on trial: perturbed and written, or shaken harder and harder to see how long it holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import plotly.graph_objects as go

from weightspace import checkpoint
from weightspace.architecture import Stored
from weightspace.compare import Progress
from weightspace.displacement import displacement
from weightspace.distance import relative_trust
from weightspace.net import WeightspaceError
from weightspace.page import Card, Figure, Page
from weightspace.perturbation import Stability, Step, movable, perturb, stability, width
from weightspace.report import AFTER, BEFORE, INK, band, plot_of
from weightspace.walk import opened, picked
from weightspace.workbench import Score, scored, splits

__all__ = ["Perturbed", "Trial", "perturbed", "trial", "trial_page"]

_MODEL = "#8a5cc2"
_SIZES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_WIDTH_DRAWS = 10


@dataclass(frozen=True)
class Perturbed:
    """A network that was changed: `model` is its relative trust; with data, the outputs' relative displacement too.

    `expected`: for a change of these sizes in no particular direction. `scores`: before and after.
    """

    name: str
    out: str
    kind: str
    tensors: int
    largest: float
    model: float
    measured: float | None
    expected: float | None
    scores: tuple[Score, Score] | None

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def perturbed(
    path: Path,
    out: Path,
    *,
    data: str | None = None,
    arch: str | None = None,
    relative: float | None = None,
    kind: str = "noise",
    bits: int | None = None,
    share: float | None = None,
    limit: int = 2048,
    force: bool = False,
    trust_code: bool = False,
    seed: int = 0,
) -> Perturbed:
    """`perturb` a checkpoint and write it in the names and dtypes of its file. Raises `WeightspaceError`."""
    template, net, source, metadata = opened(path, arch, trust_code)
    task = splits(data, limit, seed)[1] if data is not None else None
    other = perturb(net, relative, seed=seed, kind=kind, bits=bits, share=share)
    names = movable(net)
    measured = expected = scores = None
    if task is not None:
        before, after = (task.outputs(n).double() for n in (net, other))
        measured = float((after - before).norm() / before.norm())
        expected = displacement(net, task, other - net, seed=seed, names=names).relative
        before_and_after = scored(task, net, other)
        scores = (before_and_after[0], before_and_after[1]) if before_and_after else None
    stored = Stored(source, template, partial(picked, other.tensors))
    checkpoint.save(stored, out, force=force, metadata={**metadata, "weightspace": f"perturbed by {kind}"})
    change = (other - net).norms()
    sizes = net.weights.norms()
    largest = max((change[n] / sizes[n] for n in names), default=0.0)
    model = relative_trust(net, other)
    return Perturbed(path.name, str(out), kind, len(names), largest, model, measured, expected, scores)


@dataclass(frozen=True)
class Trial:
    """What `stability` found for a checkpoint, and the width of its minimum for a `tolerance`."""

    name: str
    examples: int
    draws: int
    width: float
    tolerance: float
    found: Stability

    @property
    def measure(self) -> str:
        """What the tolerance is a tolerance of."""
        if self.found.accuracy is not None:
            return "of accuracy"
        return "of loss, in bits" if self.found.loss is not None else "of the outputs' size"

    def remarks(self) -> list[str]:
        """The sentences below the table."""
        share = max(self.found.displacement.shares.items(), key=lambda item: item[1], default=("", 0.0))
        said = [
            f"Noise of {self.width:.1%} of every layer's norm costs {self.tolerance:g} {self.measure}.",
            f"Most fragile: {share[0]}, {share[1]:.0%} of what small noise does to the outputs.",
            "measured: median of the draws. expected: first derivative. model: relative trust, no bound. "
            "proven: certificates, with the activations on these examples and without.",
        ]
        if self.found.refused:
            said.append(f"No certificate: {self.found.refused}.")
        return said

    def data(self) -> dict[str, Any]:
        """As plain data; what overflowed is null."""
        told = asdict(self)
        for step in told["found"]["steps"]:
            step.update({k: None for k, v in step.items() if isinstance(v, float) and not math.isfinite(v)})
        return told


def trial(
    path: Path,
    data: str,
    *,
    arch: str | None = None,
    sizes: Sequence[float] = _SIZES,
    draws: int = 10,
    tolerance: float = 0.01,
    proven: bool = True,
    limit: int = 512,
    trust_code: bool = False,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Trial:
    """How much noise a checkpoint takes, on held-out examples of `data`. Raises `WeightspaceError`."""
    if not 0 < tolerance < math.inf:
        raise WeightspaceError(f"tolerance must be positive, got {tolerance}")
    _, net, _, _ = opened(path, arch, trust_code)
    task = splits(data, limit, seed)[1]

    def tell(done: int, total: int) -> None:
        progress("shaking the weights", done, total)

    found = stability(net, task, sizes, draws, seed=seed, proven=proven, progress=tell)
    progress("measuring the width of the minimum", 0, 0)
    wide = width(net, task, tolerance, draws=_WIDTH_DRAWS, seed=seed)
    return Trial(path.name, len(task), draws, wide, tolerance, found)


# ------------------------------------------------------------------ a page


def trial_page(done: Trial, name: str = "Stability", command: str = "") -> Page:
    """Four answers to one question, on one axis; what became of the accuracy; and where it breaks first."""
    found = done.found
    cost = f"{done.tolerance:g} {done.measure}"
    if found.accuracy is not None:
        cost = "a point of accuracy" if done.tolerance == 0.01 else f"{100 * done.tolerance:g} points of accuracy"
    headline = f"{done.name} bears noise of {done.width:.0%} of every layer"
    lead = (
        f"Every tensor was moved by a share of its own norm in a random direction, {done.draws} times for each share, "
        f"and looked at on {done.examples} examples. At {done.width:.1%} the noise costs {cost}."
    )
    shares = found.displacement.shares
    worst = max(shares, key=lambda n: shares[n]) if shares else ""
    cards = [Card("Width of the minimum", "", f"{done.width:.1%}", f"noise that costs {cost}")]
    at = min(found.steps, key=lambda step: abs(step.relative - 0.2))
    if at.accuracy and found.accuracy is not None:
        after = f"{median(at.accuracy):.1%}"
        cards.append(Card(f"Accuracy under {at.relative:.0%} noise", f"{found.accuracy:.1%}", after, "median"))
    if worst:
        cards.append(Card("Most fragile tensor", "", worst, f"{shares[worst]:.0%} of what small noise does"))
    parts = [_axis(found.steps)]
    if found.accuracy is not None:
        parts.append(_accuracies(found, done.width))
    if shares:
        parts.append(_shares(found))
    return Page(name, headline, lead, "good", command, cards, parts, done.remarks())


def _axis(steps: Sequence[Step]) -> Figure:
    x = [step.relative for step in steps]
    curves: list[tuple[str, list[float | None], str, str]] = [
        ("measured (median and range)", [median(step.moved) for step in steps], AFTER, "solid"),
        ("expected, from the first derivative", [step.expected for step in steps], INK, "dot"),
        ("model: relative trust", [step.model for step in steps], _MODEL, "dash"),
        ("proven, with activations", [step.with_data for step in steps], BEFORE, "solid"),
        ("proven, without", [step.certificate for step in steps], BEFORE, "dash"),
    ]
    low, high = ([f(step.moved) for step in steps] for f in (min, max))
    traces: list[Any] = [band(x, low, high)]
    for label, y, colour, dash in curves:
        if any(value is not None and math.isfinite(value) for value in y):
            shown = [value if value is not None and math.isfinite(value) else None for value in y]
            line = {"color": colour, "width": 3, "dash": dash}
            traces.append(
                go.Scatter(x=x, y=shown, name=label, mode="lines+markers", line=line, hovertemplate="%{y:.3g}")
            )
    plot = plot_of(traces, height=420)
    plot.update_xaxes(title_text="noise, share of each tensor's norm", type="log", tickvals=x, ticktext=_percents(x))
    plot.update_yaxes(title_text="displacement of the outputs, in their size", type="log", exponentformat="power")
    caption = (
        "How far the outputs move. The expected value needs one backward pass and is right for small noise; the model "
        "guesses from the sizes of the changes alone; what is proven holds without exception, for the first draw of "
        "each size, and pays for that."
    )
    return Figure("Four answers to one question", caption, plot)


def _percents(values: Sequence[float]) -> list[str]:
    return [f"{100 * value:g}%" for value in values]


def _accuracies(found: Stability, wide: float) -> Figure:
    x = [step.relative for step in found.steps]
    low, high = ([f(step.accuracy) for step in found.steps] for f in (min, max))
    middle = [median(step.accuracy) for step in found.steps]
    line = go.Scatter(x=x, y=middle, name="under noise", mode="lines+markers", line={"color": AFTER, "width": 3})
    own = go.Scatter(
        x=[x[0], x[-1]], y=[found.accuracy] * 2, name="without noise", mode="lines", line={"color": INK, "dash": "dot"}
    )
    plot = plot_of([band(x, low, high), line, own])
    if x[0] <= wide <= x[-1]:
        plot.add_vline(x=wide, line={"color": BEFORE, "dash": "dash"})
    plot.update_xaxes(title_text="noise", type="log", tickvals=x, ticktext=_percents(x))
    plot.update_yaxes(title_text="accuracy", tickformat=".0%")
    caption = "Median and range of the draws. The dashed line is the width of the minimum."
    return Figure("Accuracy under noise", caption, plot, wide=False)


def _shares(found: Stability, most: int = 12) -> Figure:
    shares = sorted(found.displacement.shares.items(), key=lambda item: -item[1])[:most][::-1]
    names, values = zip(*shares, strict=True)
    bars = go.Bar(x=values, y=names, orientation="h", marker={"color": AFTER}, hovertemplate="%{x:.1%}<extra></extra>")
    plot = plot_of([bars], height=max(220, 60 + 24 * len(names)), legend=False)
    plot.update_xaxes(title_text="share of the outputs' expected displacement", tickformat=".0%")
    caption = "Noise of the same relative size on every tensor: what part of the damage comes from which."
    return Figure("Where it breaks first", caption, plot, wide=False)
