"""The page of `weightspace compare`."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from weightspace.commands.compare import Comparison, Line
from weightspace.pages.page import Card, Figure, Page, Table, as_text
from weightspace.pages.style import AFTER, BEFORE, GRID, finite, plot_of

__all__ = ["compare_page"]

_NAMED_BARS = 40


def compare_page(found: Comparison, name: str = "Compare", command: str = "") -> Page:
    """The page of a comparison: the verdict, the line between the networks, their units and layers."""
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


def _cards(found: Comparison) -> list[Card]:
    relative = Card(
        "Distance between the weights",
        f"{found.relative_naive:.2f}" if found.relative_naive >= 0.01 else f"{found.relative_naive:.1g}",
        f"{found.relative:.2f}" if found.relative >= 0.01 else f"{found.relative:.1g}",
        "relative to their norm; unrelated weights give 1.41",
    )
    return [relative, *line_cards(found.line)]


def line_cards(line: Line | None) -> list[Card]:
    if line is None:
        return []
    before, after = (f"{line.barrier[k]:.2f}" for k in ("before", "after"))
    cards = [Card("Loss barrier", before, after, "highest loss on the line, above its ends")]
    if line.measured == "divergence":
        cards = [
            Card("Divergence, no labels", before, after, "of the outputs on the line from the mixture of its ends'")
        ]
    if line.accuracy:
        before, after = (f"{line.accuracy[k][len(line.t) // 2]:.1%}" for k in ("before", "after"))
        cards.append(Card("Accuracy half way", before, after, "of the average of the two networks"))
    return cards


def _line_figures(line: Line) -> list[Figure | Table]:
    if line.measured == "divergence":
        caption = (
            "How far the outputs on the straight line are from the mixture of the outputs of its ends. The data have "
            "no labels, so that this is not a loss. Where it stays low, the average of the networks does what both do."
        )
        return [Figure("Divergence on the line, without labels", caption, _along(line, line.divergence, "divergence"))]
    caption = (
        "Loss on the straight line from one network to the other. If it stays low, the two found the same solution; if "
        "it rises, their average does not work."
    )
    figures: list[Figure | Table] = [
        Figure("Loss on the line", caption, _along(line, line.loss, "loss"), not line.accuracy)
    ]
    if line.accuracy:
        caption = "The same line, as accuracy. The middle is the average of the two networks."
        plot = _along(line, line.accuracy, "accuracy")
        plot.update_yaxes(tickformat=".0%", range=[0, 1.03])
        figures.append(Figure("Accuracy on the line", caption, plot, wide=False))
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
                hovertemplate="unit %{y} of the first, %{x} of the second<br>cosine %{z:.2f}"
                f"<extra>{label}</extra>",
            )
        )
    plot = plot_of(maps, height=420, legend=False)
    common = {
        "showgrid": False,
        "ticks": "",
        "showticklabels": False,
        "mirror": True,
        "linecolor": GRID,
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
        f"{units.axis}. The numbering of hidden units is arbitrary, so as stored nothing lines up; after matching, "
        "what the networks share is on the diagonal."
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
        name="up to symmetry: proven interval",
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
        f"The exact minimum over {found.group} is infeasible to compute, so it is bounded: no renumbering comes below "
        f"{low:.3g}, and one that reaches {high:.3g} was found."
    )
    return Figure("Distance up to symmetry", caption, plot)


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
    caption = "The difference of each tensor, relative to the norm of the tensor in the first network."
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


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:18]}…{name[-20:]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
