"""The page of `weightspace nearest`."""

from __future__ import annotations

from weightspace.commands.nearest import Nearest
from weightspace.pages.atlas import ranking_page
from weightspace.pages.page import Page

__all__ = ["nearest_page"]

_LEADS = {
    "steps": "All networks were fine-tuned for a few steps; the better half went on to twice as many.",
    "logme": "The worth of the features below the last layer for these labels, whatever labels the network knows.",
    "task2vec": "How far what each network has learnt is from these data: by embeddings of the two tasks.",
    "codes": "How far what each network has learnt is from these data: what they add to the code of the two, in nats.",
    "weights": "How far the weights of each are, up to symmetry, from one that has learnt a little of these data.",
}
_SEEN = "All networks saw the same examples; the worse half was left out each time, and the others saw more."


def nearest_page(done: Nearest, name: str = "Nearest", command: str = "") -> Page:
    """The page of a ranking of starts: the order with its errors, and what it cost."""
    lead = _LEADS["steps"] if done.answer.steps else _LEADS.get(done.answer.by, _SEEN)
    return ranking_page(done, f"Start from {done.answer.best} for {done.asked_with}", lead, name, command)
