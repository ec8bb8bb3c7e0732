"""The page of `weightspace paths`."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import plotly.graph_objects as go

from weightspace.commands.paths import ANCHOR, Passages
from weightspace.pages.page import Card, Figure, Page
from weightspace.pages.style import AFTER, BEFORE, COLOURS, INK, band, plot_of

__all__ = ["paths_page"]

_TOLD = {
    "loss": ("Loss", "Of the batch at the record."),
    "accuracy": ("Accuracy", "On examples that are not learnt from."),
    "from_start": ("Way from the start", "Relative trust of the first network and this one."),
    "fisher": ("Fisher trace", "How much the predictions feel the weights: high while much is learnt."),
}
_LAYERS, _SERIES = 8, 8


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
