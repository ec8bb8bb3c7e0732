"""The page of `weightspace capacity`."""

from __future__ import annotations

from dataclasses import replace

from weightspace.commands.capacity import Room
from weightspace.pages.page import Card, Page
from weightspace.pages.walk import spectrum_figure, tradeoff_figure

__all__ = ["room_page"]


def room_page(found: Room, name: str = "Capacity", command: str = "") -> Page:
    """How much room there is to learn, before anything is moved."""
    headline = f"{found.free:.1%} of what the new data ask for leaves the kept outputs alone"
    lead = (
        f"The outputs of {found.name} on {found.examples} examples are to be kept: {found.rows:,} numbers, for "
        f"{found.weights:,} weights. So much of the new task's gradient moves none of them, to first order."
    )
    cards = [Card("Free, to first order", "", f"{found.free:.1%}", "of the gradient's length")]
    if found.layers is not None:
        beside = "what every layer is given stays"
        cards.append(Card("Free, for steps of any length", "", f"{found.layers:.1%}", beside))
    figures = [tradeoff_figure(found.tradeoff), replace(spectrum_figure({"now": found.spectrum}), wide=False)]
    return Page(name, headline, lead, "plain", command, cards, figures)
