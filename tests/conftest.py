"""Every test runs on one thread, and against the shapes that the signatures state.

Modules import jaxtyping under `if TYPE_CHECKING:` only, so that a user pays nothing for it. Here TYPE_CHECKING is true
while they are imported, and jaxtyping's import hook has beartype check every call of a function, a method or a
dataclass. WEIGHTSPACE_UNCHECKED=1 turns this off, to see what a user would see.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib
import os
import pkgutil
import re
import typing
import warnings
from collections.abc import Iterator
from pathlib import Path

import beartype
import beartype.roar
import jaxtyping
import pytest
import torch
from jaxtyping._import_hook import JaxtypingTransformer, Typechecker

torch.set_num_threads(1)

PACKAGE = "weightspace"
OWN = hashlib.md5(Path(__file__).read_bytes()).hexdigest()  # bytecode of another version of this file is not taken up
CHECKER = f"beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=bool('{OWN}')))"
OTHERS = (
    *("numpy", "torch.export", "scipy.optimize", "scipy.sparse.csgraph", "sklearn.datasets", "safetensors.torch"),
    *("typer", "rich.progress", "rich.table", "plotly.graph_objects"),
    *("fastapi", "starlette.staticfiles", "starlette.testclient", "uvicorn.protocols.http.h11_impl"),
    *("sqlalchemy", "alembic.op", "alembic.config", "alembic.script", "alembic.runtime.environment", "fsspec"),
)
VISIT = JaxtypingTransformer.visit_FunctionDef
UNCHECKED = bool(os.environ.get("WEIGHTSPACE_UNCHECKED"))


def words(node: ast.FunctionDef) -> set[str]:
    """The names in the annotations of a signature."""
    arguments = [a.annotation for a in ast.walk(node.args) if isinstance(a, ast.arg)]
    return {w for a in (*arguments, node.returns) if a is not None for w in re.findall(r"\w+", ast.unparse(a))}


def states_shapes(node: ast.FunctionDef) -> bool:
    """Whether a signature names an array type of jaxtyping: most others are checked by beartype alone."""
    return any(getattr(getattr(jaxtyping, word, None), "__module__", "") == "jaxtyping" for word in words(node))


def names_its_class(node: ast.FunctionDef, parents: list[ast.AST]) -> bool:
    """Whether a method's signature names the class that is being made: beartype alone would put a stand-in there."""
    return any(isinstance(parent, ast.ClassDef) and parent.name in words(node) for parent in parents)


def visit(self: JaxtypingTransformer, node: ast.FunctionDef) -> ast.FunctionDef:
    """Decorate a function as jaxtyping does, but for three kinds of cost that check nothing.

    Functions inside of functions are left alone: they would be decorated anew at every call, 30 times the cost.
    Signatures without shapes go to beartype itself: jaxtyping binds the arguments of every call by hand, 20 times the
    cost of the check, and has no more to say of them. Nor are their bodies read for functions to be left alone.
    """
    if any(isinstance(parent, ast.FunctionDef) for parent in self._parents):
        return node
    if states_shapes(node) or names_its_class(node, self._parents):
        return VISIT(self, node)
    checker = ast.parse("jaxtyping._import_hook.Typechecker.lookup['plain']", mode="eval").body
    node.decorator_list.append(ast.copy_location(checker, node))
    return node


def import_checked() -> None:
    """Import the package and all its modules, every call checked; what it imports itself comes first, unchecked."""
    for name in OTHERS:
        importlib.import_module(name)
    typing.TYPE_CHECKING = True
    JaxtypingTransformer.visit_FunctionDef = visit
    plain = beartype.BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError)
    Typechecker.lookup["plain"] = beartype.beartype(conf=plain)
    try:
        with jaxtyping.install_import_hook(PACKAGE, CHECKER), warnings.catch_warnings():
            warnings.simplefilter("ignore", beartype.roar.BeartypeWarning)
            package = importlib.import_module(PACKAGE)
            for module in pkgutil.walk_packages(package.__path__, f"{PACKAGE}."):
                importlib.import_module(module.name)
    finally:
        typing.TYPE_CHECKING = False


def pytest_configure(config: pytest.Config) -> None:
    """Import the package, but for the process that only hands tests to workers."""
    # Beartype looks at random items of a list; hypothesis warns of that inside of its strategies.
    config.addinivalue_line("filterwarnings", "ignore:Do not use the .random. module inside strategies")
    hands_out = config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")
    if not UNCHECKED and not hands_out:
        import_checked()


def pytest_collection_finish() -> None:
    """What is loaded by now stays: commands that collect garbage need not look through it again, a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def state_of_the_process() -> Iterator[None]:
    """A test that leaves another default dtype behind fails itself, and not one that comes after it."""
    yield
    left = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    assert left is torch.float32
