"""Every test runs on one thread, and against the shapes that the signatures state.

Modules import jaxtyping under `if TYPE_CHECKING:` only, so that a user pays nothing for it. Here TYPE_CHECKING is true
while they are imported, and jaxtyping's import hook has beartype check every call of a function, a method or a
dataclass. WEIGHTSPACE_UNCHECKED=1 turns this off, to see what a user would see.
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
import pytest
import torch
from jaxtyping._import_hook import JaxtypingTransformer

torch.set_num_threads(1)

PACKAGE = "weightspace"
CHECKER = "beartype.beartype(conf = beartype.BeartypeConf(is_pep484_tower=True))"
OTHERS = (
    *("numpy", "torch.export", "scipy.optimize", "scipy.sparse.csgraph", "sklearn.datasets", "safetensors.torch"),
    *("typer", "rich.progress", "rich.table", "plotly.graph_objects"),
)
UNCHECKED = bool(os.environ.get("WEIGHTSPACE_UNCHECKED"))


def pytest_configure(config: pytest.Config) -> None:
    """Beartype looks at random items of a list; hypothesis warns of that inside of its strategies."""
    config.addinivalue_line("filterwarnings", "ignore:Do not use the .random. module inside strategies")


def outermost(visit: typing.Any) -> typing.Any:
    """Leave functions inside of functions alone: they would be decorated anew at every call, 30 times the cost."""

    def outermost_only(self: JaxtypingTransformer, node: ast.FunctionDef) -> ast.FunctionDef:
        inside = any(isinstance(parent, ast.FunctionDef) for parent in self._parents)
        return node if inside else visit(self, node)

    return outermost_only


def import_checked() -> None:
    """Import the package and all its modules, every call checked; what it imports itself comes first, unchecked."""
    for name in OTHERS:
        importlib.import_module(name)
    typing.TYPE_CHECKING = True
    JaxtypingTransformer.visit_FunctionDef = outermost(JaxtypingTransformer.visit_FunctionDef)
    try:
        with jaxtyping.install_import_hook(PACKAGE, CHECKER), warnings.catch_warnings():
            warnings.simplefilter("ignore", beartype.roar.BeartypeWarning)
            package = importlib.import_module(PACKAGE)
            for module in pkgutil.walk_packages(package.__path__, f"{PACKAGE}."):
                importlib.import_module(module.name)
    finally:
        typing.TYPE_CHECKING = False


if not UNCHECKED:
    import_checked()
