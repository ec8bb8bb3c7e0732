"""The page of `weightspace certify`."""

from __future__ import annotations

import plotly.graph_objects as go

from weightspace.commands.certify import Certified
from weightspace.pages.page import Card, Figure, Page, Table, as_text
from weightspace.pages.style import AFTER, BEFORE, INK, plot_of

__all__ = ["certify_page"]


def certify_page(done: Certified, name: str = "Certify", command: str = "") -> Page:
    """The page of a certificate: the bound, the errors behind it, and the bounds of other inequalities."""
    found = done.found
    void = found.bound >= 1 - 1 / found.classes
    headline = (
        "The bound is vacuous: nothing is known about new examples"
        if void
        else f"Error on new examples: at most {found.bound:.1%}, with probability {1 - found.delta:.0%}"
    )
    verdict = f"{found.verdict[0].upper()}{found.verdict[1:]}."
    lead = f"{done.name}, on {found.examples:,} examples of {done.data_name}. {verdict}"
    cards = [
        Card("Certificate", "", f"{found.bound:.2%}", f"error at most, with probability {1 - found.delta:g}"),
        Card("Error on the examples", "", f"{found.error:.2%}", f"mean of {found.draws:,} drawn networks"),
        Card("KL(Q | P)", "", f"{found.nats:,.3g} nats", "how far training moved Q from the prior"),
    ]
    if found.test_error is not None:
        cards.append(Card("Error on test examples", "", f"{found.test_error:.2%}", "of the same networks"))
    rows = [[f.name, f"{f.bound:.2%}", "certificate" if f.certificate else "estimate", f.note] for f in found.families]
    table = Table("Bounds by other inequalities", ["inequality", "bound", "", "note"], rows)
    return Page(
        name, headline, lead, "plain" if void else "good", command, cards, [_families(done), table], done.remarks()
    )


def _families(done: Certified) -> Figure:
    found = done.found
    rows = [*found.families]
    bars = go.Bar(
        x=[f.bound for f in rows], y=[as_text(f.name) for f in rows], orientation="h",
        marker_color=[AFTER if f.name == found.family else "#8fb8b4" if f.certificate else "#d9dde1" for f in rows],
        text=[f"{f.bound:.2%}" for f in rows], textposition="outside", cliponaxis=False,
    )  # fmt: skip
    plot = plot_of([bars], height=90 + 32 * len(rows), legend=False)
    top = max(f.bound for f in rows)
    plot.update_yaxes(autorange="reversed", showgrid=False)
    plot.update_xaxes(title_text="bound on the error on new examples", tickformat=".1%", range=[0, 1.18 * top])
    lines = [(found.error, BEFORE), *([(found.test_error, INK)] if found.test_error is not None else [])]
    for x, colour in lines:
        plot.add_vline(x=x, line={"color": colour, "dash": "dash"})
    caption = "Dashed: the error on these examples (orange) and on test examples (dark). Grey bars are not proven."
    return Figure("Bounds on the error", caption, plot)
