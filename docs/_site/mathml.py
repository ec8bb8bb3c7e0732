"""A Sphinx extension: formulas become MathML when the site is built, so that no page needs a script for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from docutils import nodes
from docutils.utils import unescape
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

from docs._site.formulas import mathml
from docs._site.latex import even, plain

__all__ = ["setup"]

_LONG = 40  # symbols: a formula in a line of text that may be wider than a small screen
_LOG = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict[str, Any]:
    """The role `formula` for the notation of docstrings, and the renderer of LaTeX formulas."""
    app.add_role("formula", _formula)
    app.add_html_math_renderer("mathml", (_visitor(False), None), (_visitor(True), None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def _formula(
    role: str, rawtext: str, text: str, lineno: int, inliner: Any, options: Any = None, content: Any = None
) -> tuple[list[nodes.Node], list[nodes.Node]]:
    """A formula in plain notation as a node that carries its MathML."""
    shown = unescape(text)
    return [nodes.math(rawtext, shown, mathml=mathml(shown))], []


def _visitor(block: bool) -> Callable[[Any, Any], None]:
    def visit(writer: Any, node: Any) -> None:
        if "mathml" in node:
            made = node["mathml"]
        else:
            try:
                made = even(tex2mathml(plain(node.astext()), as_block=block), node.astext())
            except (MathError, SyntaxError, ValueError) as error:
                _LOG.warning("no formula that can be read: %s (%s)", node.astext(), error, location=node)
                made = f"<code>{writer.encode(node.astext())}</code>"
        long = " long" if len(node.astext()) > _LONG else ""
        writer.body.append(
            f'<div class="formula">{made}</div>' if block else f'<span class="formula{long}">{made}</span>'
        )
        raise nodes.SkipNode

    return visit
