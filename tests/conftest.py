"""Every test runs on one thread, and against the shapes that the signatures state.

Modules import jaxtyping under `if TYPE_CHECKING:` only, so that a user pays nothing for it. Here TYPE_CHECKING is true
while they are imported, and jaxtyping's import hook has beartype check every call of a function, a method or a
dataclass. WEIGHTSPACE_UNCHECKED=1 turns this off, to see what a user would see.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import gc
import hashlib
import importlib
import os
import pkgutil
import re
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import beartype
import beartype.roar
import jaxtyping
import pytest
import torch
from jaxtyping._import_hook import JaxtypingTransformer, Typechecker

torch.set_num_threads(1)
if not torch.accelerator.is_available():  # or each kind of it keeps the call stack as text: milliseconds at every call
    torch.manual_seed = torch.random.manual_seed = lambda seed: torch.default_generator.manual_seed(int(seed))
if hasattr(typing, "_get_protocol_attrs"):  # of Python 3.11, which finds them twice at every isinstance
    typing._get_protocol_attrs = functools.cache(typing._get_protocol_attrs)

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
IMPORTED: dict[str, dict[str, type]] = {}  # module -> its classes, as they were when it was imported
PLAIN = beartype.BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError)
UNCHECKED = bool(os.environ.get("WEIGHTSPACE_UNCHECKED"))


def names_shapes(annotations: Iterable[str]) -> bool:
    """Whether annotations name an array type of jaxtyping: most others are checked by beartype alone."""
    words = {word for annotation in annotations for word in re.findall(r"\w+", annotation)}
    return any(getattr(getattr(jaxtyping, word, None), "__module__", "") == "jaxtyping" for word in words)


def annotations(node: ast.FunctionDef) -> list[str]:
    """The annotations of a signature, as text."""
    arguments = [a.annotation for a in ast.walk(node.args) if isinstance(a, ast.arg)]
    return [ast.unparse(a) for a in (*arguments, node.returns) if a is not None]


@contextmanager
def as_imported(names: dict[str, Any]) -> Iterator[None]:
    """A context in which the classes of a module are those of its import: a test may have replaced one."""
    then = IMPORTED.get(names["__name__"], {})
    replaced = {name: names[name] for name, kind in then.items() if names.get(name, kind) is not kind}
    names.update({name: then[name] for name in replaced})
    try:
        yield
    finally:
        names.update(replaced)


def checked_late(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with every call checked by beartype, which reads the signature at the first call.

    By then all names in it are known: beartype would ask a stand-in for a later name anew, at great cost, at every
    call. And functions that no test calls cost nothing.
    """
    checked: Callable[..., Any] | None = None
    check, meant = beartype.beartype(conf=PLAIN), functools.partial(as_imported, function.__globals__)

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if checked is None:
            with meant():
                checked = check(function)
        return checked(*args, **kwargs)

    # of the module of the function, so that a warning is still given at the line outside of the library
    home = types.FunctionType(call.__code__, function.__globals__, closure=call.__closure__)
    return functools.update_wrapper(home, function)


def made_checked(kind: type) -> type:
    """A class; the arguments of a dataclass are checked where it is made, by jaxtyping if its fields have shapes."""
    if "__dataclass_params__" in vars(kind) and "__init__" in vars(kind):
        fields = dataclasses.fields(kind)
        if names_shapes(str(getattr(field.type, "__name__", field.type)) for field in fields):
            return jaxtyping.jaxtyped(kind, typechecker=Typechecker.lookup["shapes"])
        kind.__init__ = checked_late(kind.__init__)
    return kind


def looked_up(name: str, node: ast.AST) -> ast.expr:
    """A decorator, as it is written in a module that is rewritten."""
    return ast.copy_location(ast.parse(f"jaxtyping._import_hook.Typechecker.lookup[{name!r}]", mode="eval").body, node)


def visit_function(self: JaxtypingTransformer, node: ast.FunctionDef) -> ast.FunctionDef:
    """Decorate a function as jaxtyping does, but for two kinds of cost that check nothing.

    Functions inside of functions are left alone: they would be decorated anew at every call, 30 times the cost.
    Signatures without shapes go to beartype itself: jaxtyping binds the arguments of every call by hand, 20 times the
    cost of the check, and has no more to say of them. Nor are their bodies read for functions to be left alone.
    """
    if any(isinstance(parent, ast.FunctionDef) for parent in self._parents):
        return node
    if names_shapes(annotations(node)):
        return VISIT(self, node)
    if annotations(node):
        node.decorator_list.append(looked_up("plain", node))
    return node


def visit_class(self: JaxtypingTransformer, node: ast.ClassDef) -> ast.ClassDef:
    """Decorate a class, in case that it is a dataclass, and its methods."""
    node.decorator_list.insert(0, looked_up("class", node))
    self._parents.append(node)
    self.generic_visit(node)
    self._parents.pop()
    return node


def import_checked() -> None:
    """Import the package and all its modules, every call checked; what it imports itself comes first, unchecked."""
    for name in OTHERS:
        importlib.import_module(name)
    typing.TYPE_CHECKING = True
    JaxtypingTransformer.visit_FunctionDef, JaxtypingTransformer.visit_ClassDef = visit_function, visit_class
    shapes = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
    Typechecker.lookup |= {"plain": checked_late, "class": made_checked, "shapes": shapes}
    try:
        with jaxtyping.install_import_hook(PACKAGE, CHECKER), warnings.catch_warnings():
            warnings.simplefilter("ignore", beartype.roar.BeartypeWarning)
            package = importlib.import_module(PACKAGE)
            for module in pkgutil.walk_packages(package.__path__, f"{PACKAGE}."):
                importlib.import_module(module.name)
        for name, module in [*sys.modules.items()]:
            if name.split(".")[0] == PACKAGE:
                IMPORTED[name] = {key: kind for key, kind in vars(module).items() if isinstance(kind, type)}
    finally:
        typing.TYPE_CHECKING = False


def pytest_configure(config: pytest.Config) -> None:
    """Import the package, but for the process that only hands tests to workers."""
    # Beartype looks at random items of a list; hypothesis warns of that inside of its strategies.
    config.addinivalue_line("filterwarnings", "ignore::beartype.roar.BeartypeWarning")
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
