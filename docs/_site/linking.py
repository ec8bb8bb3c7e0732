"""A Sphinx extension: types in signatures lead to their pages; those of other libraries stay plain text."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

from docs._site.api import resolved

__all__ = ["setup"]


def setup(app: Sphinx) -> dict[str, Any]:
    """Names that Sphinx does not find are looked up among the public ones."""
    app.connect("missing-reference", _found)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def _found(app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.Element) -> nodes.Element | None:
    """A reference to the public name that a type in a signature means; its text alone for any other type."""
    if node.get("refdomain") != "py" or node.get("reftype") not in ("class", "exc", "data"):
        return None
    wing = str(node.get("py:module") or "weightspace.").partition(".")[2]
    address = f"weightspace.{resolved(node['reftarget'].rpartition('.')[2], wing)}"
    target = env.get_domain("py").objects.get(address)  # type: ignore[attr-defined]
    if target is None or app.builder is None:
        return shown
    return make_refnode(app.builder, node["refdoc"], target.docname, target.node_id, shown, address)
