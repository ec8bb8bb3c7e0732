"""The page of `weightspace watch`."""

from __future__ import annotations

from pathlib import Path

from weightspace.commands.paths import passages
from weightspace.commands.watch import Watched
from weightspace.pages.page import Page
from weightspace.pages.paths import paths_page

__all__ = ["watch_page"]


# ------------------------------------------------------------------ a recorded run


def watch_page(done: Watched) -> Page:
    """Where examples go through the network of a run that was recorded just now."""
    return paths_page(passages(Path(done.out)))
