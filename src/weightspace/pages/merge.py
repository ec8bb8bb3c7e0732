"""The page of `weightspace merge`."""

from __future__ import annotations

import plotly.graph_objects as go

from weightspace.commands.merge import Merged
from weightspace.pages.page import Card, Figure, Page, as_text
from weightspace.pages.style import AFTER, BEFORE, plot_of

__all__ = ["merge_page"]


def merge_page(done: Merged, name: str = "Merge", command: str = "") -> Page:
    """The page of a merged network: its scores next to the single networks, their plain average and their ensemble."""
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
        f"the ensemble, which runs all of them. On {done.examples:,} examples that were not used for alignment."
    )
    return Page(
        name, headline, lead, "good", command, cards, [Figure("Scores of the averages", caption, plot)], done.notes
    )
