"""Every test runs on one thread, and against the shapes that the signatures state.

Modules import jaxtyping under `if TYPE_CHECKING:` only, so that a user pays nothing for it. Here TYPE_CHECKING is true
while they are imported, and jaxtyping's import hook has beartype check every call. WEIGHTSPACE_UNCHECKED=1 turns this
off, to see what a user would see.
"""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import typing
import warnings

import beartype.roar
import jaxtyping
import numpy  # noqa: F401  what the package imports comes first, unchecked
import plotly.graph_objects  # noqa: F401
import rich.console  # noqa: F401
import rich.table  # noqa: F401
import safetensors.torch  # noqa: F401
import scipy.optimize  # noqa: F401
import scipy.sparse.csgraph  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch
import torch.export
import typer  # noqa: F401
from jaxtyping._import_hook import JaxtypingTransformer

torch.set_num_threads(1)

CHECKER = "beartype.beartype(conf = beartype.BeartypeConf(is_pep484_tower=True))"
UNCHECKED = bool(os.environ.get("WEIGHTSPACE_UNCHECKED"))


def import_checked(package: str = "weightspace") -> None:
    """Import the package and all its modules with every call checked."""
    typing.TYPE_CHECKING = True
    try:
        with jaxtyping.install_import_hook(package, CHECKER), warnings.catch_warnings():
            warnings.simplefilter("ignore", beartype.roar.BeartypeWarning)
            found = importlib.import_module(package)
            for module in pkgutil.walk_packages(found.__path__, f"{package}."):
                if module.name.endswith("cli"): continue
                importlib.import_module(module.name)
    finally:
        typing.TYPE_CHECKING = False

full = JaxtypingTransformer.visit_FunctionDef
def visit(self, node):
    if any(isinstance(p, ast.FunctionDef) for p in self._parents):
        return node
    return full(self, node)
JaxtypingTransformer.visit_FunctionDef = visit

if not UNCHECKED:
    import_checked()
