"""LaTeX formulas in the form that the converter of docutils reads."""

from __future__ import annotations

import re

__all__ = ["plain"]


def plain(formula: str) -> str:
    r"""A formula in which operators with names of their own are written as text, which the converter knows.

    >>> plain(r"\operatorname*{arg\,min}_w \operatorname{tr} G")
    '\\mathrm{arg\\,min}_w \\mathrm{tr} G'
    """
    return re.sub(r"\\operatorname\*?(?=\{)", lambda match: r"\mathrm", formula)
