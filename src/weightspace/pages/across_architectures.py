"""The page of `weightspace compare --arch-b`."""

from __future__ import annotations

import plotly.graph_objects as go

from weightspace.commands.across_architectures import Across
from weightspace.pages.page import Card, Figure, Page, Table, as_text
from weightspace.pages.style import AFTER, plot_of

__all__ = ["across_page"]


def across_page(done: Across, name: str = "Compare", command: str = "") -> Page:
    """The page of two networks of two architectures: outputs, and which layers are alike."""
    found = done.found
    headline = f"{done.names[0]} and {done.names[1]}: layers alike to {found.alike:.2f}"
    lead = (
        f"A {done.architectures[0]} and a {done.architectures[1]} on the same {found.examples:,} examples: what comes "
        "out, and which layers see the examples alike. Weights of two architectures have no distance."
    )
    cards = [Card("CKA of matched layers", "", f"{found.alike:.3f}", "1 for the same up to rotation and scale"),
             Card("Procrustes distance", "", f"{found.apart:.3f}", "0 for the same, sqrt(2) at most")]  # fmt: skip
    if "disagreement" in found.outputs:
        cards.insert(0, Card("Predictions that differ", "", f"{found.outputs['disagreement']:.1%}"))
    columns = ["layer of the first", "of the second", "units", "CKA", "Procrustes"]
    rows = [[p.first, p.second, f"{p.widths[0]:,}, {p.widths[1]:,}", f"{p.cka:.3f}", f"{p.procrustes:.3f}"]
            for p in found.pairs]  # fmt: skip
    table = Table("Layers, matched in order of depth", columns, rows)
    return Page(name, headline, lead, "plain", command, cards, [_heat(done), table], found.notes)


def _heat(done: Across) -> Figure:
    found = done.found
    heat = go.Heatmap(
        z=found.cka.tolist(), x=[as_text(n) for n in found.second], y=[as_text(n) for n in found.first], zmin=0, zmax=1,
        colorscale=[[0, "#ffffff"], [1, AFTER]], colorbar={"title": "CKA"},
        hovertemplate="%{y} of the first, %{x} of the second: %{z:.3f}<extra></extra>",
    )  # fmt: skip
    plot = plot_of([heat], height=max(320, 120 + 24 * len(found.first)), legend=False)
    plot.update_yaxes(autorange="reversed", title_text="layers of the first", type="category")
    plot.update_xaxes(title_text="layers of the second", type="category")
    return Figure("Which layers are alike", "Unbiased CKA of every layer with every other.", plot, wide=False)
