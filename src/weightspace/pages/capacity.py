"""The page of `weightspace capacity`."""

from __future__ import annotations

from dataclasses import replace

from weightspace.commands.capacity import Capacity
from weightspace.pages.page import Card, Page
from weightspace.pages.walk import spectrum_figure, tradeoff_figure

__all__ = ["capacity_page"]


def capacity_page(found: Capacity, name: str = "Capacity", command: str = "") -> Page:
    """The page of the capacity: how much of the new gradient is free, and progress against drift."""
    headline = f"{found.free:.1%} of the new gradient leaves the outputs to keep alone"
    lead = (
        f"The outputs of {found.name} on {found.examples} examples are to stay: {found.rows:,} numbers, with "
        f"{found.weights:,} weights. This share of the gradient of the new task changes none of them, to first order."
    )
    cards = [Card("Free, to first order", "", f"{found.free:.1%}", "of the gradient's length")]
    if found.layers is not None:
        beside = "no layer's input changes"
        cards.append(Card("Free, for steps of any length", "", f"{found.layers:.1%}", beside))
    figures = [tradeoff_figure(found.tradeoff), replace(spectrum_figure({"now": found.spectrum}), wide=False)]
    return Page(name, headline, lead, "plain", command, cards, figures)
