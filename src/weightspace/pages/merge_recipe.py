"""The page of `weightspace merge --method`."""

from __future__ import annotations

import plotly.graph_objects as go

from weightspace.commands.merge_on_data import Curves
from weightspace.commands.merge_recipe import MergedFiles
from weightspace.pages.page import Card, Figure, Page, as_text
from weightspace.pages.style import AFTER, BEFORE, plot_of

__all__ = ["recipe_page"]


def recipe_page(done: MergedFiles, name: str = "Merge", command: str = "") -> Page:
    """The page of a merge by a recipe: what became of the tensors, losses before and after, loss along coefficients."""
    headline = f"{len(done.names)} networks merged by {done.method}"
    lead = f"{', '.join(done.names)} were merged{f' on {done.base}' if done.base else ''}; the result is {done.out}."
    remarks = [*done.lines, *done.notes]
    cards, figures = [], []
    if done.scores:
        *before, after = done.scores
        cards.append(Card("Loss of the merged network", "", f"{after.loss:.3f}"))
        if after.accuracy is not None:
            cards.append(Card("Accuracy of the merged network", "", f"{after.accuracy:.1%}"))
        figures.append(_bars(done))
    if done.curves is not None:
        figures += [_along(done, done.curves), *([_plane(done, done.curves)] if done.curves.plane else [])]
    return Page(name, headline, lead, "plain", command, cards, figures, remarks)


def _bars(done: MergedFiles) -> Figure:
    losses = [score.loss for score in done.scores]
    bars = go.Bar(
        x=losses,
        y=[as_text(score.name) for score in done.scores],
        orientation="h",
        marker_color=[*["#b8c0c8"] * (len(losses) - 1), AFTER],
        text=[
            f"{score.loss:.3f}" + ("" if score.accuracy is None else f", {score.accuracy:.1%}") for score in done.scores
        ],
        textposition="outside",
        cliponaxis=False,
    )
    plot = plot_of([bars], height=110 + 38 * len(losses), legend=False)
    plot.update_yaxes(autorange="reversed", showgrid=False)
    plot.update_xaxes(title_text="loss", range=[0, 1.35 * max(losses)])
    return Figure("Before and after", f"Loss and accuracy on {done.examples:,} held-out examples.", plot)


def _along(done: MergedFiles, curves: Curves) -> Figure:
    dots = go.Scatter(
        x=[at for at, _ in curves.line],
        y=[loss for _, loss in curves.line],
        mode="lines+markers",
        line={"color": BEFORE},
    )
    here = go.Scatter(x=[curves.here], y=[done.scores[-1].loss], mode="markers", marker={"color": AFTER, "size": 12})
    plot = plot_of([dots, here], height=320, legend=False)
    plot.update_xaxes(title_text=as_text(curves.along))
    plot.update_yaxes(title_text="loss")
    caption = "The loss on the held-out examples at other values; the large dot is the network that was written."
    return Figure(f"Loss against {curves.along}", caption, plot)


def _plane(done: MergedFiles, curves: Curves) -> Figure:
    cells = go.Heatmap(
        x=curves.axis,
        y=curves.axis,
        z=curves.plane,
        colorscale="Viridis",
        reversescale=True,
        colorbar={"title": "loss"},
    )
    at, over = curves.weights
    here = go.Scatter(x=[at], y=[over], mode="markers", marker={"color": AFTER, "size": 12})
    plot = plot_of([cells, here], height=420, legend=False)
    plot.update_xaxes(title_text=f"weight of {as_text(done.names[0])}")
    plot.update_yaxes(title_text=f"weight of {as_text(done.names[1])}")
    caption = "The loss on the held-out examples at other weights of the two networks; the dot is what was written."
    return Figure("Loss against both weights", caption, plot)
