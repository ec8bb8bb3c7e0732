"""The page of `weightspace watch`."""

from __future__ import annotations

from pathlib import Path

from weightspace.commands.paths import paths
from weightspace.commands.watch import Watched
from weightspace.pages.page import Page
from weightspace.pages.paths import paths_page

__all__ = ["watch_page"]


def watch_page(done: Watched) -> Page:
    """The page of the paths of examples in the run that was recorded."""
    return paths_page(paths(Path(done.out)))
