"""The page of `weightspace walk`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from weightspace.commands.walk import Picture, Walked
from weightspace.pages.page import Card, Figure, Page, Table
from weightspace.pages.style import AFTER, BEFORE, INK, finite, plot_of

__all__ = ["walk_page"]


_RUNS = {"within the budget": AFTER, "plain descent": BEFORE}
_DASHES = {"kept": "solid", "new": "dot"}
_LEAST = 1e-10


def walk_page(done: Walked, name: str = "Walk", command: str = "") -> Page:
    """The page of a walk: drift, scores before and after, and the path where it was measured."""
    headline = f"Moved by {done.moved:.1%} of its weights' norm, toward {done.goal}"
    bound = "" if done.budget is None else f" of an allowed {done.budget:.2g}"
    lead = (
        f"{done.name} was moved in {done.steps} steps. The outputs to keep drifted by {done.used:.2g}"
        f"{bound} on the examples with the budget, and by {done.heldout:.2g} on held-out ones."
    )
    allowed = "" if done.budget is None else f"of an allowed {done.budget:.2g}; "
    beside = f"{allowed}{done.heldout:.2g} on held-out examples"
    cards = [Card("Drift of the outputs to keep", "", f"{done.used:.2g}", beside)]
    for task, before, after in done.scores:
        if before.accuracy is not None and after.accuracy is not None:
            cards.append(
                Card(f"Accuracy, {task}", f"{before.accuracy:.1%}", f"{after.accuracy:.1%}", "held-out examples")
            )
    parts: list[Figure | Table] = list(_figures(done.picture, done.budget)) if done.picture else []
    return Page(name, headline, lead, "good", command, cards, parts, done.remarks())


def _figures(seen: Picture, budget: float | None) -> list[Figure]:
    figures = [_plane(seen)]
    if any(seen.scores.values()):
        figures.append(_scores(seen))
    figures.append(_drift(seen, budget))
    if seen.tradeoff:
        figures.append(tradeoff_figure(seen.tradeoff))
    figures.append(spectrum_figure(dict(zip(("before", "after"), seen.spectrum, strict=True))))
    return figures


def _line(run: str, x: list[float], y: list[float | None], name: str, dash: str = "solid") -> go.Scatter:
    return go.Scatter(
        x=x, y=y, name=name, mode="lines+markers", line={"color": _RUNS[run], "width": 3, "dash": dash},
        marker={"size": 6}, hovertemplate="%{y:.4g}<extra>" + name + "</extra>",
    )  # fmt: skip


def _plane(seen: Picture) -> Figure:
    traces = []
    for run, points in seen.plane.items():
        x, y = zip(*points, strict=True)
        traces.append(_line(run, list(x), list(y), run))
    start = go.Scatter(x=[0], y=[0], name="start", mode="markers", marker={"size": 14, "color": INK})
    plot = plot_of([*traces, start], height=380)
    plot.update_xaxes(title_text="first principal direction, in units of the weights")
    plot.update_yaxes(title_text="second principal direction", scaleanchor="x")
    beside = (
        " Plain descent takes steps of the same length along the gradient of the goal alone." if len(traces) > 1 else ""
    )
    caption = f"The networks on the path, in the plane of largest variance ({seen.shown:.0%} of it)."
    return Figure("The path in weight space", caption + beside, plot)


def _scores(seen: Picture) -> Figure:
    traces = []
    for run, tasks in seen.scores.items():
        for task, values in tasks.items():
            x = [k / max(1, len(values) - 1) for k in range(len(values))]
            traces.append(_line(run, x, finite(values), f"{task} data, {run}", _DASHES[task]))
    plot = plot_of(traces)
    plot.update_xaxes(title_text="position on the path", tickformat=".0%")
    plot.update_yaxes(title_text="accuracy" if seen.classes else "loss", tickformat=".0%" if seen.classes else None)
    caption = "The data to keep (solid) and the data to learn (dotted), on held-out examples."
    if not any("new" in tasks for tasks in seen.scores.values()):
        caption = "The data to keep, on held-out examples."
    return Figure("Accuracy along the path" if seen.classes else "Loss along the path", caption, plot)


def _drift(seen: Picture, budget: float | None) -> Figure:
    watched, others = zip(*seen.drift, strict=True) if seen.drift else ((), ())
    steps = [float(k + 1) for k in range(len(watched))]
    traces = []
    for values, name, colour in (
        (watched, "on the examples with the budget", AFTER),
        (others, "on held-out examples", BEFORE),
    ):
        line = {"color": colour, "width": 3}
        traces.append(go.Scatter(x=steps, y=finite(values), name=name, line=line, connectgaps=True))
    if budget is not None and steps:
        line = {"color": INK, "dash": "dash"}
        traces.append(go.Scatter(x=[steps[0], steps[-1]], y=[budget] * 2, name="budget", mode="lines", line=line))
    plot = plot_of(traces)
    plot.update_xaxes(title_text="step")
    plot.update_yaxes(title_text="drift of the outputs", rangemode="tozero")
    caption = "Root mean square change of the outputs to keep. The budget applies to the first curve."
    return Figure("Drift, step by step", caption, plot, wide=False)


def tradeoff_figure(pairs: Sequence[tuple[float, float]]) -> Figure:
    drift, progress = zip(*pairs, strict=True)
    whole = progress[-1] or 1.0
    curve = go.Scatter(
        x=list(drift), y=[p / whole for p in progress], mode="lines+markers", line={"color": AFTER, "width": 3}
    )
    plot = plot_of([curve], legend=False)
    plot.update_xaxes(title_text="drift of one step", rangemode="tozero")
    plot.update_yaxes(title_text="progress, as a share of the gradient step's", tickformat=".0%", rangemode="tozero")
    caption = (
        "Before the first step: the progress of a step of fixed length, against the drift that it causes. The curve "
        "begins at the largest progress without drift, and ends at plain gradient descent."
    )
    return Figure("Progress against drift", caption, plot, wide=False)


def spectrum_figure(spectra: Mapping[str, Sequence[float]]) -> Figure:
    traces = []
    for label, values in spectra.items():
        colour = BEFORE if label == "before" else AFTER
        kept = [v for v in values if v > _LEAST * values[0]]
        x = list(range(1, len(kept) + 1))
        traces.append(go.Scatter(x=x, y=kept, name=label, mode="lines", line={"color": colour, "width": 3}))
    plot = plot_of(traces, legend=len(traces) > 1)
    plot.update_xaxes(title_text="direction, by decreasing eigenvalue")
    plot.update_yaxes(title_text="eigenvalue", type="log", exponentformat="power", dtick="D2")
    caption = (
        "Eigenvalues of the metric: the squared change of the outputs to keep for a unit step in each direction. All "
        "directions that are not shown have smaller eigenvalues; most directions of weight space barely matter."
    )
    return Figure("Spectrum of the metric", caption, plot)
