"""The page of `weightspace paths`."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import plotly.graph_objects as go

from weightspace.commands.paths import ANCHOR, PathHistory
from weightspace.pages.page import Card, Figure, Page
from weightspace.pages.style import AFTER, BEFORE, COLOURS, INK, band, decades, plot_of

__all__ = ["paths_page"]

_TOLD = {
    "loss": ("Loss", "Of the batch at each record."),
    "accuracy": ("Accuracy", "On test examples."),
    "from_start": ("Distance from the start", "Deep relative trust between the first network and this one."),
    "fisher": ("Fisher trace", "How sensitive the predictions are to the weights; high while much is learnt."),
}
_LAYERS, _SERIES = 8, 8


def paths_page(found: PathHistory, name: str = "Paths", command: str = "") -> Page:
    """The page of a recorded run: how the paths of examples change from record to record."""
    first, last = found.own["all"][0], found.own["all"][-1]
    least = min(found.own["all"])
    headline = f"From record to record an example keeps at least {least:.0%} of its path, {last:.1%} at the end"
    lead = (
        f"The path of an example is the set of units that are on for it. It was recorded for {found.examples} examples "
        f"and {sum(found.layers.values()):,} units at {len(found.steps) + 1} steps of {found.name}."
    )
    cards = [
        Card(
            "Self-path similarity",
            f"{first:.3f}",
            f"{last:.3f}",
            "share of its path that an example keeps since the previous record; first and last",
        ),
        Card(
            "Cross-path similarity",
            f"{found.cross['all'][0]:.3f}",
            f"{found.cross['all'][-1]:.3f}",
            "the same of the units that two examples share",
        ),
        Card("Dead units", "", f"{mean(found.dead.values()):.1%}", "never on, at the end; mean over layers"),
    ]
    if found.ratio is not None:
        cards.append(Card("Early to mid ratio", "", f"{found.ratio:.3f}", "of cross-path similarity; see the remarks"))
    layers = list(found.layers)
    shown = layers if len(layers) <= _LAYERS else layers[:: -(-len(layers) // _LAYERS)]
    parts = [
        _by_layer(found.steps, {layer: found.own[layer] for layer in shown}, "Self-path similarity",
               "Share of its path that an example keeps since the previous record; mean over examples, by layer."),
        _crossed(found),
        _by_layer(found.steps, {layer: found.cross[layer] for layer in shown}, "Cross-path similarity by layer",
               "Share of the units common to two examples that is still common at the next record.", wide=False),
    ]  # fmt: skip
    if found.activations:
        told = {k: found.activations[k]["cross"] for k in shown if k in found.activations}
        caption = "Computed from activations in place of gates."
        parts.append(_by_layer(found.steps, told, "Cross-path similarity of activations", caption, wide=False))
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
    plot.update_yaxes(title_text="similarity with the previous record")
    return Figure(title, caption, plot, wide)


def _crossed(found: PathHistory) -> Figure:
    x = found.steps
    low, middle, high = (list(v) for v in zip(*found.bands, strict=True))
    line = go.Scatter(
        x=x, y=middle, name="median of all pairs", mode="lines+markers", line={"color": AFTER, "width": 3}
    )
    plot = plot_of([band(x, low, high), line], height=380)
    plot.update_xaxes(title_text="step")
    plot.update_yaxes(title_text="cross-path similarity")
    caption = "All pairs of examples, all layers: median, and the range from the 10th to the 90th percentile."
    return Figure("Cross-path similarity, all pairs", caption, plot)


def _records(found: PathHistory) -> Figure:
    heat = go.Heatmap(z=found.matrix, colorscale="Viridis", colorbar={"title": "kept"})
    plot = plot_of([heat], height=420, legend=False)
    plot.update_xaxes(title_text="record")
    plot.update_yaxes(title_text="record", autorange="reversed")
    return Figure("Paths of every two records", "Mean self-path similarity; a bright block is a stage in which "
                  "paths do not change.", plot, wide=False)  # fmt: skip


def _given_up(found: PathHistory) -> Figure:
    own = go.Scatter(x=found.steps, y=[1 - s for s in found.own["all"]], name="share of the path that changed",
                     mode="lines+markers", line={"color": BEFORE})  # fmt: skip
    traces = [own]
    if any(found.turnover):
        traces.append(go.Scatter(x=found.steps, y=found.turnover, name="per unit of log relative trust",
                                 mode="lines+markers", line={"color": AFTER}))  # fmt: skip
    plot = plot_of(traces)
    plot.update_xaxes(title_text="step")
    plot.update_yaxes(title_text="share of the path", **decades(y for trace in traces for y in trace.y))
    caption = (
        "Share of the path that changes from record to record, and the same divided by how far the weights moved: with "
        "small steps paths change little."
    )
    return Figure("Path turnover", caption, plot, wide=False)


def _ranks(found: PathHistory) -> Figure:
    traces = [
        go.Scatter(x=[0, *found.steps], y=ranks, name=f"example {c}", mode="lines", line={"color": COLOURS[k % 8]})
        for k, (c, ranks) in enumerate(found.ranks.items())
    ]
    plot = plot_of(traces, legend=False)
    plot.update_xaxes(title_text="step")
    plot.update_yaxes(title_text="rank by overlap", range=[20, -1])
    caption = (
        f"Rank, by the number of shared units in {found.layer}, of all examples that were ever among the six nearest "
        f"to example {ANCHOR}."
    )
    return Figure("The nearest example changes", caption, plot, wide=False)


def _pairs(found: PathHistory) -> Figure:
    assert found.scatter is not None and found.spearman is not None
    plot = plot_of([go.Scatter(x=found.scatter[0], y=found.scatter[1], mode="markers",
                               marker={"color": AFTER, "size": 5, "opacity": 0.5})], legend=False)  # fmt: skip
    plot.update_xaxes(title_text="distance of the inputs")
    plot.update_yaxes(title_text=f"units shared in {found.layer}")
    told = ", ".join(f"{kind} {value:.2f}" for kind, value in found.spearman.items())
    return Figure(
        "Overlap and distance",
        f"A sample of pairs, at the end. Rank correlation over all pairs: {told}.",
        plot,
        wide=False,
    )


def _series(key: str, values: Sequence[Sequence[float]]) -> Figure:
    plot = plot_of([go.Scatter(x=values[0], y=values[1], mode="lines+markers", line={"color": INK})], legend=False)
    plot.update_xaxes(title_text="step")
    title, told = _TOLD.get(key, (key, "As recorded."))
    plot.update_yaxes(title_text=title.lower() if key in _TOLD else key)
    return Figure(title, told, plot, wide=False)
