"""The page of `weightspace stability`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import plotly.graph_objects as go

from weightspace.commands.stability import NoiseTest
from weightspace.pages.page import Card, Figure, Page
from weightspace.pages.style import AFTER, BEFORE, INK, band, decades, plot_of
from weightspace.trust.perturbation import Stability, Step

__all__ = ["stability_page"]


_MODEL = "#8a5cc2"


def stability_page(done: NoiseTest, name: str = "Stability", command: str = "") -> Page:
    """The page of a noise test: change of the outputs, accuracy under noise, and the most fragile tensors."""
    found = done.found
    cost = f"{done.tolerance:g} {done.measure}"
    if found.accuracy is not None:
        cost = "a point of accuracy" if done.tolerance == 0.01 else f"{100 * done.tolerance:g} points of accuracy"
    headline = f"{done.name} tolerates noise of {done.width:.0%} of the norm of every layer"
    lead = (
        f"Every tensor was moved by a share of its norm in a random direction, {done.draws} times for each share, "
        f"and tested on {done.examples} examples. Noise of {done.width:.1%} costs {cost}."
    )
    shares = found.displacement.shares
    worst = max(shares, key=lambda n: shares[n]) if shares else ""
    cards = [Card("Width of the minimum", "", f"{done.width:.1%}", f"noise that costs {cost}")]
    at = min(found.steps, key=lambda step: abs(step.relative - 0.2))
    if at.accuracy and found.accuracy is not None:
        after = f"{median(at.accuracy):.1%}"
        cards.append(Card(f"Accuracy under {at.relative:.0%} noise", f"{found.accuracy:.1%}", after, "median"))
    if done.attacked and found.accuracy is not None:
        radius, right = done.attacked[-1]
        cards.append(
            Card(f"Accuracy under attack of {radius:g}", f"{found.accuracy:.1%}", f"{right:.1%}", "largest change")
        )
    if worst:
        cards.append(Card("Most fragile tensor", "", worst, f"{shares[worst]:.0%} of the effect of small noise"))
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
    drawn = [value for trace in traces[1:] for value in trace.y]
    plot.update_yaxes(title_text="change of the outputs, relative to their size", **decades(drawn))
    caption = (
        "Expected: one backward pass, accurate for small noise. Model: deep relative trust, from the sizes of the "
        "changes alone. Proven: upper bounds that hold without exception, for the first draw of each size; they are "
        "far larger."
    )
    return Figure("Change of the outputs under noise", caption, plot)


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
    plot.update_xaxes(title_text="share of the expected change of the outputs", tickformat=".0%")
    caption = "With noise of the same relative size on every tensor, the share of the effect that comes through each."
    return Figure("Most fragile tensors", caption, plot, wide=False)
