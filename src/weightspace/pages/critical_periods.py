"""The figure of a critical period."""

from __future__ import annotations

import plotly.graph_objects as go

from weightspace.net.errors import WeightspaceError
from weightspace.pages.style import AFTER, BEFORE, INK, finite, plot_of
from weightspace.training.critical_periods import CriticalPeriod

__all__ = ["period_figure"]

_KINDS = ("solid", "dot", "dash")


def period_figure(found: CriticalPeriod, fisher: CriticalPeriod | None = None) -> go.Figure:
    """Accuracy lost to deficit and control, by onset (by length, if there is one onset); Fisher trace below.

    The trace is that of `fisher` if another run measured it. Raises `WeightspaceError` where nothing was measured.
    """
    if not found.rows:
        raise WeightspaceError("the critical period has no rows to draw; measure at least one onset and length")
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
