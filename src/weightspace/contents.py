"""The table of contents of a package: names found in its files when they are first asked for."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["GOING", "OldNames", "deprecated", "handed_on", "moved"]

GOING = "0.3.0"  # the release without the old names
_PACKAGE = "weightspace"


def handed_on(
    package: str, contents: Mapping[str, Sequence[str]], renamed: Mapping[str, Sequence[str]] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package that hands on names of its files.

    `contents`: a file, by its name in the package or by its whole address, -> the names that it gives.
    `renamed`: the address of a name -> names that it had in the last release, which warn.
    """
    home = {name: file for file, names in contents.items() for name in names}

    now = {old: address for address, names in (renamed or {}).items() for old in names}

    def get(name: str) -> Any:
        if name in now:
            deprecated(f"{package}.{name} is now {now[name]}; take that", 3)
            module, _, kept = now[name].rpartition(".")
            return getattr(import_module(module), kept)
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        file = home[name]
        value = getattr(import_module(file if file.startswith("weightspace.") else f"{package}.{file}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(home), sorted(home)


def deprecated(text: str, level: int | None = None) -> None:
    """A `DeprecationWarning` that names the replacement and the release without the old name.

    `level`: which caller it is shown at, as `warnings.warn` takes it; else the nearest one outside of this library.
    """
    if level is None:
        level, frame = 2, sys._getframe(1)
        while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).split(".")[0] == _PACKAGE:
            level, frame = level + 1, frame.f_back
    warnings.warn(f"{text}; the old form goes in {_PACKAGE} {GOING}", DeprecationWarning, level)


def moved(old: str, files: str) -> ModuleType:
    """The module of an earlier release under its old name, with a warning that says where its names are now."""
    first = files.split()[0].partition(".")[0]
    deprecated(f"weightspace.{old} is now in weightspace.{first}; take its names from there", 4)
    return _old(old, files)


def _old(old: str, files: str) -> ModuleType:
    module = ModuleType(f"weightspace.{old}", f"Moved: see weightspace.{files.split()[0]}.")

    def get(name: str) -> Any:
        wings = [file.partition(".")[0] for file in files.split()]  # they know what was renamed
        for place in (*files.split(), *wings) if not name.startswith("_") else ():
            if (found := getattr(import_module(f"weightspace.{place}"), name, None)) is not None:
                return found
        raise AttributeError(f"module 'weightspace.{old}' has no attribute {name!r}")

    module.__getattr__ = get  # type: ignore[method-assign]
    module.__path__ = []  # so that `import weightspace.old.file` is asked for too
    return module


class OldNames(MetaPathFinder, Loader):
    """`import weightspace.old` for modules of an earlier release, asked only for what is not there."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self.table = table

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Where a module of an old name is: here."""
        package, _, old = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == "weightspace" and old in self.table else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The names of the old module, wherever they stand now."""
        old = spec.name.partition(".")[2]
        return moved(old, self.table[old])

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to run."""
