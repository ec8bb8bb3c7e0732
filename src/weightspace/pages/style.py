"""Colours and plots that all pages share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go

from weightspace.pages.page import FONT

__all__ = ["AFTER", "BEFORE", "COLOURS", "INK", "band", "decades", "finite", "plot_of"]


BEFORE, AFTER, INK, GRID, _PALE = "#d9663f", "#0f7f78", "#1f2933", "#e6e8eb", "rgba(15,118,110,0.18)"
COLOURS = ("#0f766e", "#b4532a", "#3366aa", "#8a5cc2", "#8a7a1f", "#c2417a", "#4b5563", "#0891b2")


def band(x: Sequence[float], low: Sequence[float | None], high: Sequence[float | None]) -> go.Scatter:
    """The filled area between two curves."""
    return go.Scatter(
        x=[*x, *reversed(x)], y=[*high, *reversed(low)], mode="lines", fill="toself", fillcolor=_PALE,
        line={"width": 0}, showlegend=False, hoverinfo="skip",
    )  # fmt: skip


def plot_of(traces: Sequence[Any], height: int = 340, legend: bool = True) -> go.Figure:
    """A Plotly figure in the style of the pages."""
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
        axes(gridcolor=GRID, zeroline=False, automargin=True, title_font_size=13)
    return plot.update_yaxes(title_standoff=12)


def decades(values: Iterable[float | None]) -> dict[str, Any]:
    """A logarithmic axis for these values, with ticks at powers of ten alone where they span two of them or more."""
    seen = [value for value in values if value is not None and 0 < value < math.inf]
    wide = bool(seen) and max(seen) >= 100 * min(seen)
    return {"type": "log", "exponentformat": "power"} | ({"dtick": 1} if wide else {})


def finite(values: Sequence[float]) -> list[float | None]:
    """Values with NaN and infinity as gaps."""
    return [v if math.isfinite(v) else None for v in values]
