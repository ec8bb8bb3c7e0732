"""The results of the commands as pages: Plotly figures built once, with captions in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from weightspace.compare import Comparison, Line
from weightspace.page import FONT, Card, Figure, Page, Table, as_text
from weightspace.workbench import Aligned, Merged

__all__ = [
    "AFTER", "BEFORE", "COLOURS", "INK", "align_page", "band", "comparison_page", "finite", "merge_page", "plot_of",
]  # fmt: skip

BEFORE, AFTER, INK, _GRID, _PALE = "#d9663f", "#0f7f78", "#1f2933", "#e6e8eb", "rgba(15,118,110,0.18)"
COLOURS = ("#0f766e", "#b4532a", "#3366aa", "#8a5cc2", "#8a7a1f", "#c2417a", "#4b5563", "#0891b2")
_NAMED_BARS = 40


def comparison_page(found: Comparison, name: str = "Compare", command: str = "") -> Page:
    """How two networks relate."""
    a, b = found.names
    lead = f"{a} and {b}: {found.verdict.why}."
    parts: list[Figure | Table] = []
    if found.line:
        parts += _line_figures(found.line)
    if found.units:
        parts.append(_units_figure(found))
    parts += [_distance_figure(found), _layers_figure(found), _layers_table(found)]
    remarks = [*found.remarks(), *(f"Note: {note}" for note in found.notes)]
    tone = "good" if found.verdict.kind == "same" else "plain"
    return Page(name, _capital(found.verdict.words), lead, tone, command, _cards(found), parts, remarks)


def align_page(done: Aligned, name: str = "Align", command: str = "") -> Page:
    """What happened to a network that was aligned."""
    headline = f"{done.moved:.0%} of the units renumbered, the function unchanged"
    lead = (
        f"{done.names[0]} was brought near {done.names[1]} and written to {done.out}. It still computes the same: "
        f"its outputs moved by {done.function:.1g} of their size, which is rounding."
    )
    cards = [Card("Distance to the target", f"{done.before:.3g}", f"{done.after:.3g}", "norm of the difference")]
    cards += _line_cards(done.line)
    return Page(name, headline, lead, "good", command, cards, remarks=[*done.remarks(), *done.notes])


def merge_page(done: Merged, name: str = "Merge", command: str = "") -> Page:
    """What the average is worth, beside the single networks and the average of predictions."""
    headline = f"{len(done.names)} networks averaged into one"
    lead = f"{', '.join(done.names)} were aligned and averaged; the mean is {done.out}."
    scores = done.scores()
    if not scores or not (done.naive and done.aligned):
        return Page(name, headline, lead, "plain", command, remarks=done.notes)
    cards = []
    classes = done.aligned.accuracy is not None and done.naive.accuracy is not None
    if classes:
        cards.append(Card("Accuracy of the mean", f"{done.naive.accuracy:.1%}", f"{done.aligned.accuracy:.1%}"))
    cards.append(Card("Loss of the mean", f"{done.naive.loss:.3f}", f"{done.aligned.loss:.3f}"))
    values = [s.accuracy if classes else s.loss for s in scores]
    colours = [BEFORE if s is done.naive else AFTER if s is done.aligned else "#b8c0c8" for s in scores]
    bars = go.Bar(
        x=values,
        y=[as_text(s.name) for s in scores],
        orientation="h",
        marker_color=colours,
        text=[f"{v:.1%}" if classes else f"{v:.3f}" for v in values],
        textposition="outside",
        cliponaxis=False,
    )
    plot = plot_of([bars], height=90 + 38 * len(scores), legend=False)
    plot.update_yaxes(autorange="reversed", showgrid=False)
    plot.update_xaxes(title_text="accuracy" if classes else "loss", range=[0, 1.08] if classes else None)
    if classes:
        plot.update_xaxes(tickformat=".0%")
    caption = (
        "The single networks, their plain average, their average after alignment (one network, as fast as each), and "
        f"the ensemble, which has to run all of them. On {done.examples:,} examples that alignment did not see."
    )
    return Page(
        name, headline, lead, "good", command, cards, [Figure("Which one would you use?", caption, plot)], done.notes
    )


def _cards(found: Comparison) -> list[Card]:
    relative = Card(
        "Distance between the weights",
        f"{found.relative_naive:.2f}" if found.relative_naive >= 0.01 else f"{found.relative_naive:.1g}",
        f"{found.relative:.2f}" if found.relative >= 0.01 else f"{found.relative:.1g}",
        "relative to their norm; unrelated weights give 1.41",
    )
    return [relative, *_line_cards(found.line)]


def _line_cards(line: Line | None) -> list[Card]:
    if line is None:
        return []
    before, after = (f"{line.barrier[k]:.2f}" for k in ("before", "after"))
    cards = [Card("Loss barrier", before, after, "height of the hill between them")]
    if line.accuracy:
        before, after = (f"{line.accuracy[k][len(line.t) // 2]:.1%}" for k in ("before", "after"))
        cards.append(Card("Accuracy half way", before, after, "of the average of the two networks"))
    return cards


# ------------------------------------------------------------------ figures


def band(x: Sequence[float], low: Sequence[float | None], high: Sequence[float | None]) -> go.Scatter:
    """The area between two curves."""
    return go.Scatter(
        x=[*x, *reversed(x)], y=[*high, *reversed(low)], mode="lines", fill="toself", fillcolor=_PALE,
        line={"width": 0}, showlegend=False, hoverinfo="skip",
    )  # fmt: skip


def plot_of(traces: Sequence[Any], height: int = 340, legend: bool = True) -> go.Figure:
    """A Plotly figure in the manner of the pages."""
    plot = go.Figure(list(traces))
    plot.update_layout(
        template="none",
        height=height,
        margin={"l": 64, "r": 24, "t": 34 if legend else 12, "b": 52},
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=legend,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        hovermode="closest",
    )
    for axes in (plot.update_xaxes, plot.update_yaxes):
        axes(gridcolor=_GRID, zeroline=False, automargin=True, title_font_size=13)
    return plot


def _line_figures(line: Line) -> list[Figure | Table]:
    caption = (
        "Walk in a straight line from one network to the other. If the loss stays low all the way, the two found the "
        "same solution; a hill means that the point between them, their average, does not work."
    )
    figures: list[Figure | Table] = [
        Figure("Loss on the way from one to the other", caption, _along(line, line.loss, "loss"), not line.accuracy)
    ]
    if line.accuracy:
        caption = "The same walk, as the share of right answers. The middle is the average of the two networks."
        plot = _along(line, line.accuracy, "accuracy")
        plot.update_yaxes(tickformat=".0%", range=[0, 1.03])
        figures.append(Figure("Accuracy on the way", caption, plot, wide=False))
    return figures


def _along(line: Line, values: Mapping[str, list[float]], what: str) -> go.Figure:
    traces = [
        go.Scatter(
            x=line.t,
            y=finite(values[which]),
            name=label,
            mode="lines+markers",
            line={"color": colour, "width": 3},
            marker={"size": 7},
            hovertemplate=f"t = %{{x:.1f}}<br>{what} %{{y:.4g}}<extra>{label}</extra>",
        )
        for which, label, colour in (("before", "as stored", BEFORE), ("after", "after alignment", AFTER))
    ]
    plot = plot_of(traces)
    plot.update_xaxes(title_text="position on the line", tickvals=[0, 0.5, 1], ticktext=["first", "half way", "second"])
    plot.update_yaxes(title_text=what, rangemode="tozero")
    return plot


def _units_figure(found: Comparison) -> Figure:
    units = found.units
    assert units is not None
    shown = min(units.size, len(units.before))
    sizes = sorted(abs(x) for row in units.after for x in row)
    most = min(1.0, max(0.3, sizes[int(0.98 * (len(sizes) - 1))]))
    maps = []
    for k, (label, matrix) in enumerate((("as stored", units.before), ("after alignment", units.after))):
        maps.append(
            go.Heatmap(
                z=matrix,
                zmin=-most,
                zmax=most,
                colorscale=[[0, BEFORE], [0.5, "#ffffff"], [1, AFTER]],
                xaxis=f"x{k + 1}",
                yaxis=f"y{k + 1}",
                showscale=k == 1,
                colorbar={"title": {"text": "cosine"}, "thickness": 12, "outlinewidth": 0},
                hovertemplate=f"unit %{{y}} of the first, %{{x}} of the second<br>cosine %{{z:.2f}}<extra>{label}</extra>",
            )
        )
    plot = plot_of(maps, height=420, legend=False)
    common = {
        "showgrid": False,
        "ticks": "",
        "showticklabels": False,
        "mirror": True,
        "linecolor": _GRID,
        "title_font_size": 13,
    }
    plot.update_layout(
        xaxis={"domain": [0, 0.46], "title_text": "units of the second, as stored", **common},
        xaxis2={"domain": [0.54, 1], "title_text": "units of the second, matched", **common},
        yaxis={"autorange": "reversed", "title_text": "units of the first", **common},
        yaxis2={"autorange": "reversed", "anchor": "x2", **common},
    )
    caption = (
        f"How alike are unit i of the first network and unit j of the second? {shown} of the {units.size} units of "
        f"{units.axis}. The numbering of hidden units is arbitrary, so as stored nothing lines up; after matching, what "
        "the networks share stands on the diagonal."
    )
    return Figure("The same units, in another order", caption, plot)


def _distance_figure(found: Comparison) -> Figure:
    low, high = found.interval
    band = go.Bar(
        x=[max(high - low, 0.004 * max(found.balanced, high))],
        base=[low],
        y=[""],
        orientation="h",
        width=0.34,
        marker_color=AFTER,
        name="modulo the symmetry: certainly within",
        hovertemplate=f"between {low:.4g} and {high:.4g}<extra></extra>",
    )
    naive = go.Scatter(
        x=[found.balanced],
        y=[""],
        mode="markers",
        marker={"size": 16, "color": BEFORE, "symbol": "diamond"},
        name="as stored",
        hovertemplate="%{x:.4g}<extra>as stored</extra>",
    )
    plot = plot_of([band, naive], height=170)
    plot.update_xaxes(title_text="distance between the weights, scales balanced", rangemode="tozero")
    plot.update_yaxes(showgrid=False)
    caption = (
        f"Finding the best of {found.group} exactly is infeasible, so the true distance is bracketed: no renumbering "
        f"comes below {low:.3g}, and one that reaches {high:.3g} was found."
    )
    return Figure("How far apart, whatever the numbering", caption, plot)


def _layers_figure(found: Comparison) -> Figure:
    named = len(found.layers) <= _NAMED_BARS
    names = [as_text(_short(x.name)) for x in found.layers]
    where = list(range(len(names)))
    traces = []
    for label, colour, values in (
        ("as stored", BEFORE, [x.before for x in found.layers]),
        ("after alignment", AFTER, [x.after for x in found.layers]),
    ):
        spot = f"%{{customdata}}<br>%{{y:.3g}}<extra>{label}</extra>"
        traces.append(
            go.Bar(x=where, y=finite(values), name=label, marker_color=colour, customdata=names, hovertemplate=spot)
        )
    plot = plot_of(traces, height=360)
    plot.update_layout(barmode="group", bargap=0.25)
    ticks = {"tickvals": where, "ticktext": names, "tickangle": -40} if named else {"showticklabels": False}
    plot.update_xaxes(showgrid=False, title_text=None if named else "tensors, first to last", **ticks)
    plot.update_yaxes(title_text="|a - b| / |a|", rangemode="tozero")
    caption = "Where the difference sits, tensor by tensor, relative to the size of the tensor in the first network."
    return Figure("Layer by layer", caption, plot)


def _layers_table(found: Comparison) -> Table:
    columns = ["tensor", "shape", "|a|", "|b|", "|a-b|/|a| as stored", "aligned", "cosine"]
    rows = [
        [
            x.name,
            "×".join(map(str, x.shape)) or "-",
            *(f"{n:.3g}" for n in (x.norm_a, x.norm_b, x.before, x.after, x.cosine)),
        ]
        for x in found.layers
    ]
    return Table("All tensors", columns, rows, folded=True)


def finite(values: Sequence[float]) -> list[float | None]:
    """NaN and infinity as gaps."""
    return [v if math.isfinite(v) else None for v in values]


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:18]}…{name[-20:]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
