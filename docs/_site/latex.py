"""LaTeX formulas in the form that the converter of docutils reads."""

from __future__ import annotations

import re

__all__ = ["even", "plain"]


def plain(formula: str) -> str:
    r"""A formula with what the converter knows: names of operators as text, primes as superscripts.

    >>> plain(r"\operatorname*{arg\,min}_w \operatorname{tr} G w'")
    '\\mathrm{arg\\,min}_w \\mathrm{tr} G w^{\\prime}'
    """
    return re.sub(r"(?<=[\w}])'(?![\^'])", r"^{\\prime}", re.sub(r"\\operatorname\*?(?=\{)", r"\\mathrm", formula))


def even(made: str, formula: str = "") -> str:
    r"""MathML of a formula in which the bars of a norm and the braces of a set are as high as text but for `\left`."""
    if not re.search(r"\\left\s*\\(?:lVert|Vert|\|)", formula):
        made = made.replace("<mo>‖</mo>", '<mo stretchy="false">‖</mo>')
    if r"\{" in formula and r"\left" not in formula:
        made = made.replace("<mo>{</mo>", '<mo stretchy="false">{</mo>')
    made = re.sub(r'<mo class="math(?:open|close)">', '<mo stretchy="false">', made)
    return re.sub(r"(<msu(?:b|p|bsup)>\s*<mo)(>[‖|⟩)\]}]</mo>)", r'\1 stretchy="false"\2', made)
