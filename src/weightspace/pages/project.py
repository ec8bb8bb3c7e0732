"""The page of `weightspace project`."""

from __future__ import annotations

from weightspace.commands.project import Brought
from weightspace.pages.page import Card, Page, Table

__all__ = ["project_page"]


def project_page(done: Brought, name: str = "Projection", command: str = "") -> Page:
    """The page of a network that was brought to a form: its weights, and what became of its outputs."""
    entries, free = sum(line[2] for line in done.weights), sum(line[3] for line in done.weights)
    headline = (
        f"{len(done.weights)} weights of {done.name} have their form: {free:,} parameters for {entries:,} entries"
    )
    how = f"after {done.steps} steps that keep the outputs" if done.steps else "at once"
    lead = f"Each weight was replaced by the nearest one of its form, {how}. The network is {done.out}."
    cards = []
    if done.drift is not None:
        cards.append(
            Card("Drift of the outputs", f"{done.drift[0]:.3g}", f"{done.drift[1]:.3g}", "at once, and written")
        )
    for label, value in (("Loss", "loss"), ("Accuracy", "accuracy")):
        told = [getattr(score, value) for score in done.scores]
        if told and None not in told:
            shown = [f"{v:.1%}" if value == "accuracy" else f"{v:.4f}" for v in told]
            cards.append(Card(f"{label} on held-out examples", shown[0], shown[2], f"{shown[1]} at once"))
    rows = [
        [weight, kind, f"{whole:,}", f"{loose:,}", f"{first:.1%}", f"{last:.1%}"]
        for weight, kind, whole, loose, first, last in done.weights
    ]
    columns = ["weight", "form", "entries", "free", "distance, file", "distance, end of the flow"]
    return Page(name, headline, lead, "plain", command, cards, [Table("Weights", columns, rows)])
