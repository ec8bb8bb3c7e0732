"""Every test asserts something: by itself, or by a function or fixture of the tests that it calls."""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
ASKING = {"raises", "warns", "fail"}  # of pytest


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def name_of(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def asserts(function: ast.FunctionDef) -> bool:
    """Whether a function can fail by itself: `assert`, `pytest.raises` and the like, `torch.testing.assert_close`."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = name_of(node.func)
            of_pytest = isinstance(node.func, ast.Attribute) and name_of(node.func.value) == "pytest"
            if name.startswith("assert") or (of_pytest and name in ASKING):
                return True
    return False


def leads_to(function: ast.FunctionDef) -> set[str]:
    """The names of what a function calls, and of the fixtures that it takes."""
    called = {name_of(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
    return called | {argument.arg for argument in function.args.args}


def asserting_nothing(sources: dict[str, str]) -> list[str]:
    """The tests among some files that assert nothing; a name leads to functions of its file, else of any other."""
    own = {where: {f.name: f for f in functions(ast.parse(text))} for where, text in sources.items()}
    every: dict[str, list[tuple[str, ast.FunctionDef]]] = {}
    for where, found in own.items():
        for name, function in found.items():
            every.setdefault(name, []).append((where, function))

    def asks(where: str, function: ast.FunctionDef, seen: set[int]) -> bool:
        if id(function) in seen:
            return False
        seen.add(id(function))
        if asserts(function):
            return True
        for name in leads_to(function):
            near = [(where, own[where][name])] if name in own[where] else every.get(name, [])
            if any(asks(*each, seen) for each in near):
                return True
        return False

    tests = [(w, f) for w, found in own.items() for f in found.values() if f.name.startswith("test_")]
    return [f"{where}::{f.name}" for where, f in tests if "test_" in where and not asks(where, f, set())]


def test_every_test_asserts_something():
    sources = {str(path.relative_to(TESTS)): path.read_text(encoding="utf-8") for path in TESTS.rglob("*.py")}
    assert len(sources) > 50 and asserting_nothing(sources) == []


def test_a_test_that_asserts_nothing_is_found():
    sources = {
        "test_a.py": "def check(x): assert x\n"
        "def test_by_itself(): assert 1\n"
        "def test_by_a_function(): check(1)\n"
        "def test_by_an_error():\n    with pytest.raises(ValueError): f()\n"
        "def test_by_a_fixture(group): group\n"
        "def test_by_another_file(): far(1)\n"
        "def test_nothing(): print(1)\n"
        "def test_a_raise_of_another(): ours.raises(1)\n",
        "conftest.py": "def group(): check(1)\ndef check(x): assert x\n",
        "dense.py": "def far(x): torch.testing.assert_close(x, x)\n",
    }
    assert asserting_nothing(sources) == ["test_a.py::test_nothing", "test_a.py::test_a_raise_of_another"]
