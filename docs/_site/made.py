"""The pages of the site that are made from the code: the reference of Python names and of commands."""

from __future__ import annotations

from docs._site import api, commands

__all__ = ["made"]


def made() -> dict[str, str]:
    """The name of each page with its ending -> its text."""
    return {"commands.rst": commands.page(), **api.pages()}
