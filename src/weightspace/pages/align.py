"""The page of `weightspace align`."""

from __future__ import annotations

from weightspace.commands.align import Aligned
from weightspace.pages.compare import line_cards
from weightspace.pages.page import Card, Page

__all__ = ["align_page"]


def align_page(done: Aligned, name: str = "Align", command: str = "") -> Page:
    """The page of a network that was aligned: distance and line, before and after."""
    headline = f"{done.moved:.0%} of the units renumbered, the function unchanged"
    lead = (
        f"{done.names[0]} was aligned to {done.names[1]} and written to {done.out}. It computes the same function: "
        f"its outputs changed by {done.function:.1g} of their size, which is rounding."
    )
    cards = [Card("Distance to the target", f"{done.before:.3g}", f"{done.after:.3g}", "norm of the difference")]
    cards += line_cards(done.line)
    return Page(name, headline, lead, "good", command, cards, remarks=[*done.remarks(), *done.notes])
