"""Pages of what takes time: a walk, a recorded run; and the figure of a critical period."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

import plotly.graph_objects as go

from weightspace.net import WeightspaceError
from weightspace.page import Card, Figure, Page, Table
from weightspace.periods import CriticalPeriod
from weightspace.report import AFTER, BEFORE, COLOURS, INK, band, finite, plot_of
from weightspace.walk import Picture, Room, Walked
from weightspace.watching import ANCHOR, Passages, Watched, passages

__all__ = ["paths_page", "period_figure", "room_page", "walk_page", "watch_page"]

_RUNS = {"within the budget": AFTER, "plain descent": BEFORE}
_DASHES = {"kept": "solid", "new": "dot"}
_LEAST = 1e-10
_KINDS = ("solid", "dot", "dash")
_TOLD = {
    "loss": ("Loss", "Of the batch at the record."),
    "accuracy": ("Accuracy", "On examples that are not learnt from."),
    "from_start": ("Way from the start", "Relative trust of the first network and this one."),
    "fisher": ("Fisher trace", "How much the predictions feel the weights: high while much is learnt."),
}
_LAYERS, _SERIES = 8, 8


def walk_page(done: Walked, name: str = "Walk", command: str = "") -> Page:
    """What happened to a network that was moved."""
    headline = f"Moved by {done.moved:.1%} of its weights' norm, toward {done.goal}"
    bound = "" if done.budget is None else f" of an allowed {done.budget:.2g}"
    lead = (
        f"{done.name} was moved in {done.steps} steps. The outputs that were to be kept drifted by {done.used:.2g}"
        f"{bound} on the examples that the walk watched, and by {done.heldout:.2g} on others."
    )
    allowed = "" if done.budget is None else f"of an allowed {done.budget:.2g}; "
    beside = f"{allowed}{done.heldout:.2g} on examples that no step saw"
    cards = [Card("Drift of the kept outputs", "", f"{done.used:.2g}", beside)]
    for task, before, after in done.scores:
        if before.accuracy is not None and after.accuracy is not None:
            cards.append(
                Card(f"Accuracy, {task}", f"{before.accuracy:.1%}", f"{after.accuracy:.1%}", "held-out examples")
            )
    parts: list[Figure | Table] = list(_figures(done.picture, done.budget)) if done.picture else []
    return Page(name, headline, lead, "good", command, cards, parts, done.remarks())


def room_page(found: Room, name: str = "Capacity", command: str = "") -> Page:
    """How much room there is to learn, before anything is moved."""
    headline = f"{found.free:.1%} of what the new data ask for leaves the kept outputs alone"
    lead = (
        f"The outputs of {found.name} on {found.examples} examples are to be kept: {found.rows:,} numbers, for "
        f"{found.weights:,} weights. So much of the new task's gradient moves none of them, to first order."
    )
    cards = [Card("Free, to first order", "", f"{found.free:.1%}", "of the gradient's length")]
    if found.layers is not None:
        beside = "what every layer is given stays"
        cards.append(Card("Free, for steps of any length", "", f"{found.layers:.1%}", beside))
    figures = [_tradeoff(found.tradeoff), replace(_spectrum({"now": found.spectrum}), wide=False)]
    return Page(name, headline, lead, "plain", command, cards, figures)


def _figures(seen: Picture, budget: float | None) -> list[Figure]:
    figures = [_plane(seen)]
    if any(seen.scores.values()):
        figures.append(_scores(seen))
    figures.append(_drift(seen, budget))
    if seen.tradeoff:
        figures.append(_tradeoff(seen.tradeoff))
    figures.append(_spectrum(dict(zip(("before", "after"), seen.spectrum, strict=True))))
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
    plot.update_xaxes(title_text="first direction of largest variance, in units of the weights")
    plot.update_yaxes(title_text="second direction", scaleanchor="x")
    beside = (
        " Plain descent, with steps of the same length, goes where the goal alone sends it." if len(traces) > 1 else ""
    )
    caption = f"The networks on the way, seen in the plane that shows most of them ({seen.shown:.0%} of the variance)."
    return Figure("Where it went", caption + beside, plot)


def _scores(seen: Picture) -> Figure:
    traces = []
    for run, tasks in seen.scores.items():
        for task, values in tasks.items():
            x = [k / max(1, len(values) - 1) for k in range(len(values))]
            traces.append(_line(run, x, finite(values), f"{task} data, {run}", _DASHES[task]))
    plot = plot_of(traces)
    plot.update_xaxes(title_text="share of the way", tickformat=".0%")
    plot.update_yaxes(title_text="accuracy" if seen.classes else "loss", tickformat=".0%" if seen.classes else None)
    caption = "What was to be kept (solid) and what was to be learnt (dotted), on examples that no step saw."
    if not any("new" in tasks for tasks in seen.scores.values()):
        caption = "What was to be kept, on examples that no step saw."
    return Figure("What it kept on the way", caption, plot)


def _drift(seen: Picture, budget: float | None) -> Figure:
    watched, others = zip(*seen.drift, strict=True) if seen.drift else ((), ())
    steps = [float(k + 1) for k in range(len(watched))]
    traces = []
    for values, name, colour in ((watched, "where it was watched", AFTER), (others, "on other examples", BEFORE)):
        line = {"color": colour, "width": 3}
        traces.append(go.Scatter(x=steps, y=finite(values), name=name, line=line, connectgaps=True))
    if budget is not None and steps:
        line = {"color": INK, "dash": "dash"}
        traces.append(go.Scatter(x=[steps[0], steps[-1]], y=[budget] * 2, name="budget", mode="lines", line=line))
    plot = plot_of(traces)
    plot.update_xaxes(title_text="step")
    plot.update_yaxes(title_text="drift of the outputs", rangemode="tozero")
    caption = "How far the kept outputs are from where they were, in root mean square. The budget binds the first."
    return Figure("Drift, step by step", caption, plot, wide=False)


def _tradeoff(pairs: Sequence[tuple[float, float]]) -> Figure:
    drift, progress = zip(*pairs, strict=True)
    whole = progress[-1] or 1.0
    curve = go.Scatter(
        x=list(drift), y=[p / whole for p in progress], mode="lines+markers", line={"color": AFTER, "width": 3}
    )
    plot = plot_of([curve], legend=False)
    plot.update_xaxes(title_text="drift of one step", rangemode="tozero")
    plot.update_yaxes(title_text="progress, of that of the gradient", tickformat=".0%", rangemode="tozero")
    caption = (
        "Before the first step: how much of the goal a step of one length could reach, for the drift that it costs. "
        "The curve begins at what is free, and ends at plain descent."
    )
    return Figure("What progress costs", caption, plot, wide=False)


def _spectrum(spectra: Mapping[str, Sequence[float]]) -> Figure:
    traces = []
    for label, values in spectra.items():
        colour = BEFORE if label == "before" else AFTER
        kept = [v for v in values if v > _LEAST * values[0]]
        x = list(range(1, len(kept) + 1))
        traces.append(go.Scatter(x=x, y=kept, name=label, mode="lines", line={"color": colour, "width": 3}))
    plot = plot_of(traces, legend=len(traces) > 1)
    plot.update_xaxes(title_text="direction, from the stiffest")
    plot.update_yaxes(title_text="eigenvalue", type="log", exponentformat="power", dtick="D2")
    caption = (
        "The metric's eigenvalues: what a step in a direction does to the kept outputs, squared. All directions that "
        "are not shown are softer, and most of weight space is flat."
    )
    return Figure("Stiff and soft directions", caption, plot)


# ------------------------------------------------------------------ critical periods


def period_figure(found: CriticalPeriod, fisher: CriticalPeriod | None = None) -> go.Figure:
    """What deficit and control cost, by onset (or by length, where all began at once); under it the Fisher trace.

    The trace comes from `fisher` if it was measured apart. Raises `WeightspaceError` where nothing was measured.
    """
    if not found.rows:
        raise WeightspaceError("no rows to draw")
    onsets = sorted({onset for onset, _ in found.windows})
    lengths = sorted({length for _, length in found.windows})
    by_onset = len(onsets) > 1
    runs = [(name, colour) for name, colour in ((found.deficit, BEFORE), (found.control, AFTER)) if name]
    traces = []
    for name, colour in runs:
        for k, other in enumerate(lengths if by_onset else onsets):
            at = [(o, n) for o, n in found.windows if (n if by_onset else o) == other]
            seen = [found.cost(name, *window) for window in at]
            label = f"{name}, {other} epochs" if by_onset else name
            traces.append(
                go.Scatter(
                    x=[o if by_onset else n for o, n in at], y=[100 * mean for mean, _ in seen], name=label,
                    error_y={"array": finite([100 * error for _, error in seen]), "thickness": 1, "width": 3},
                    mode="lines+markers", line={"color": colour, "width": 3, "dash": _KINDS[k % len(_KINDS)]},
                    hovertemplate="%{x}: %{y:.2f} points<extra>" + label + "</extra>",
                )
            )  # fmt: skip
    told = fisher or found
    under = [(name, colour, told.fisher(name)) for name, colour in [("none", INK), *runs]]
    traces += [
        go.Scatter(
            x=[*range(len(values))], y=finite(values), name=f"Fisher trace, {'no deficit' if name == 'none' else name}",
            mode="lines", line={"color": colour, "width": 2}, xaxis="x2", yaxis="y2",
        )
        for name, colour, values in under if values
    ]  # fmt: skip
    both = any(values for *_, values in under)
    plot = plot_of(traces, height=520 if both else 340)
    plot.update_xaxes(title_text="first epoch of the deficit" if by_onset else "epoch of its removal")
    plot.update_yaxes(title_text="points of accuracy lost", zeroline=True)
    if both:
        top = max(max(window) for window in found.windows)
        span = {"range": [-0.02 * top, 1.02 * top]}
        plot.update_layout(
            xaxis=span, yaxis={"domain": [0.56, 1]},
            xaxis2={**span, "anchor": "y2", "title_text": "epoch"},
            yaxis2={"domain": [0, 0.4], "title_text": "tr F", "rangemode": "tozero"},
        ).update_xaxes(title_font_size=13).update_yaxes(title_font_size=13)  # fmt: skip
    return plot


# ------------------------------------------------------------------ a recorded run


def watch_page(done: Watched) -> Page:
    """Where examples go through the network of a run that was recorded just now."""
    return paths_page(passages(Path(done.out)))


def paths_page(found: Passages, name: str = "Paths", command: str = "") -> Page:
    """Where examples go through the network, over the run."""
    first, last = found.own["all"][0], found.own["all"][-1]
    least = min(found.own["all"])
    headline = f"From record to record an example keeps {least:.0%} of its path at the least, {last:.1%} at the end"
    lead = (
        f"Which of {sum(found.layers.values()):,} units are on was recorded for {found.examples} examples at "
        f"{len(found.steps) + 1} steps of {found.name}. While paths change, examples are learnt through other units."
    )
    cards = [
        Card("Path kept by an example", f"{first:.3f}", f"{last:.3f}", "self-path similarity with the record before"),
        Card(
            "Kept where two examples meet",
            f"{found.cross['all'][0]:.3f}",
            f"{found.cross['all'][-1]:.3f}",
            "cross-path",
        ),
        Card("Units that are never on", "", f"{mean(found.dead.values()):.1%}", "at the end, mean over layers"),
    ]
    if found.ratio is not None:
        cards.append(Card("Early to mid ratio", "", f"{found.ratio:.3f}", "of cross-path similarity; see the remarks"))
    layers = list(found.layers)
    shown = layers if len(layers) <= _LAYERS else layers[:: -(-len(layers) // _LAYERS)]
    parts = [
        _by_layer(found.steps, {layer: found.own[layer] for layer in shown}, "Self-path similarity",
               "How much of its path every example has kept since the record before, mean over examples, by layer."),
        _crossed(found),
        _by_layer(found.steps, {layer: found.cross[layer] for layer in shown}, "Cross-path similarity by layer",
               "Of the units that two examples share, how many they still share at the next record.", wide=False),
    ]  # fmt: skip
    if found.activations:
        told = {k: found.activations[k]["cross"] for k in shown if k in found.activations}
        caption = "Products of activations in place of gates."
        parts.append(_by_layer(found.steps, told, "The same of activations", caption, wide=False))
    parts += [_records(found), _given_up(found)]
    if found.ranks:
        parts.append(_ranks(found))
    if found.scatter is not None:
        parts.append(_pairs(found))
    known = [key for key in ("loss", "accuracy") if key in found.numbers]
    others = [key for key in found.numbers if key not in (*known, "norm", "from_last")]
    parts += [_series(key, found.numbers[key]) for key in [*known, *others][:_SERIES]]
    return Page(name, headline, lead, "plain", command, cards, parts, found.remarks())


def _by_layer(x: Sequence[int], series: dict[str, list[float]], title: str, caption: str, wide: bool = True) -> Figure:
    traces = [
        go.Scatter(x=list(x), y=y, name=key, mode="lines+markers", line={"color": COLOURS[k % len(COLOURS)]})
        for k, (key, y) in enumerate(series.items())
    ]
    plot = plot_of(traces, height=380 if wide else 340)
    plot.update_xaxes(title_text="step")
    plot.update_yaxes(title_text="similarity with the record before")
    return Figure(title, caption, plot, wide)


def _crossed(found: Passages) -> Figure:
    x = found.steps
    low, middle, high = (list(v) for v in zip(*found.bands, strict=True))
    line = go.Scatter(
        x=x, y=middle, name="median of all pairs", mode="lines+markers", line={"color": AFTER, "width": 3}
    )
    plot = plot_of([band(x, low, high), line], height=380)
    plot.update_xaxes(title_text="step")
    plot.update_yaxes(title_text="cross-path similarity")
    caption = "All pairs of examples, all layers: median, and from the 10th to the 90th percentile."
    return Figure("Where two examples meet", caption, plot)


def _records(found: Passages) -> Figure:
    heat = go.Heatmap(z=found.matrix, colorscale="Viridis", colorbar={"title": "kept"})
    plot = plot_of([heat], height=420, legend=False)
    plot.update_xaxes(title_text="record")
    plot.update_yaxes(title_text="record", autorange="reversed")
    return Figure("Paths of every two records", "Mean self-path similarity; a bright block is a stage in which "
                  "paths stand still.", plot, wide=False)  # fmt: skip


def _given_up(found: Passages) -> Figure:
    own = go.Scatter(x=found.steps, y=[1 - s for s in found.own["all"]], name="path given up",
                     mode="lines+markers", line={"color": BEFORE})  # fmt: skip
    traces = [own]
    if any(found.turnover):
        traces.append(go.Scatter(x=found.steps, y=found.turnover, name="for each unit of log relative trust",
                                 mode="lines+markers", line={"color": AFTER}))  # fmt: skip
    plot = plot_of(traces)
    plot.update_xaxes(title_text="step")
    plot.update_yaxes(title_text="share of the path", type="log", exponentformat="power")
    caption = (
        "What is given up from record to record, and the same over how far the weights went: small steps alone keep "
        "paths."
    )
    return Figure("Path turnover", caption, plot, wide=False)


def _ranks(found: Passages) -> Figure:
    traces = [
        go.Scatter(x=[0, *found.steps], y=ranks, name=f"example {c}", mode="lines", line={"color": COLOURS[k % 8]})
        for k, (c, ranks) in enumerate(found.ranks.items())
    ]
    plot = plot_of(traces, legend=False)
    plot.update_xaxes(title_text="step")
    plot.update_yaxes(title_text="rank by overlap", range=[20, -1])
    caption = (
        f"Rank, by shared units of {found.layer}, of all examples that were ever among the six nearest to example "
        f"{ANCHOR}."
    )
    return Figure("The nearest example changes", caption, plot, wide=False)


def _pairs(found: Passages) -> Figure:
    assert found.scatter is not None and found.spearman is not None
    plot = plot_of([go.Scatter(x=found.scatter[0], y=found.scatter[1], mode="markers",
                               marker={"color": AFTER, "size": 5, "opacity": 0.5})], legend=False)  # fmt: skip
    plot.update_xaxes(title_text="distance of the inputs")
    plot.update_yaxes(title_text=f"units shared in {found.layer}")
    told = ", ".join(f"{kind} {value:.2f}" for kind, value in found.spearman.items())
    return Figure(
        "Overlap and distance", f"Some pairs at the end. Rank correlation over all pairs: {told}.", plot, wide=False
    )


def _series(key: str, values: Sequence[Sequence[float]]) -> Figure:
    plot = plot_of([go.Scatter(x=values[0], y=values[1], mode="lines+markers", line={"color": INK})], legend=False)
    plot.update_xaxes(title_text="step")
    plot.update_yaxes(title_text=key)
    title, told = _TOLD.get(key, (key, "As it was recorded."))
    return Figure(title, told, plot, wide=False)
