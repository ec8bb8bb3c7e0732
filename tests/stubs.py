"""The type stubs of the package and its wings, made from their tables of contents: `make stubs`.

Names are found when they are first asked for, which type checkers and editors cannot follow; the stubs tell them.
"""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "weightspace"


def table(package: Path) -> dict[str, list[str]]:
    """The table in a wing's `__init__.py`: file -> names."""
    tree = ast.parse((package / "__init__.py").read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "handed_on"]
    found = [ast.literal_eval(call.args[1]) for call in calls if isinstance(call.args[1], ast.Dict)]
    return dict(found[0]) if found else {}


def homes(package: Path) -> dict[str, str]:
    """The full address of the file of every name that a wing hands on."""
    dotted = f"weightspace.{package.name}"
    return {
        name: file if file.startswith("weightspace.") else f"{dotted}.{file}"
        for file, names in table(package).items()
        for name in names
    }


def wing_stub(package: Path) -> str:
    """The stub of a wing."""
    lines = [f"from {home} import {name} as {name}" for name, home in homes(package).items()]
    return _stub(package, lines)


def top_stub() -> str:
    """The stub of the package: its wings, and the names that they hand on to the top."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    contents = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_CONTENTS"
    )
    lines = [f"from weightspace import {wing} as {wing}" for wing in (*contents, "demo")]
    lines.append("from weightspace.metric import optim as optim")
    for wing, names in contents.items():
        known = homes(PACKAGE / wing)
        lines += [f"from {known[name]} import {name} as {name}" for name in names]
    return _stub(PACKAGE, lines) + "\n__version__: str\n"


def _stub(package: Path, lines: list[str]) -> str:
    about = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    return "\n".join([f'"""{about.splitlines()[0]}"""', "", *sorted(lines)]) + "\n"


def stubs() -> dict[Path, str]:
    """Every stub: its path and its text."""
    wings = [path.parent for path in sorted(PACKAGE.glob("*/__init__.py")) if table(path.parent)]
    return {PACKAGE / "__init__.pyi": top_stub(), **{wing / "__init__.pyi": wing_stub(wing) for wing in wings}}


if __name__ == "__main__":
    for path, text in stubs().items():
        path.write_text(text)
