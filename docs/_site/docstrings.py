"""The public names of each wing with their signatures, and docstrings cut into what a reader looks for."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

import weightspace

__all__ = ["Block", "Entry", "blocks", "documented", "entries", "numbers", "signature", "wings"]

_MARKED = re.compile(r"(?<=[.!?)`]) (?=Raises |Sources?: |Cost: |Memory: )")
_MARKS = {"Raises": "Raises", "Source": "Source", "Sources": "Source", "Cost": "Cost", "Memory": "Memory"}


@dataclass(frozen=True)
class Block:
    """A part of a docstring: `text`, `list`, `code`, `example`, or with a caption (`Raises`, `Source`, `Cost`)."""

    kind: str
    text: str


@dataclass(frozen=True)
class Entry:
    """A public name: its place in the wing, `class`, `function`, `data` or a kind of member, and what it says."""

    name: str
    kind: str
    thing: Any
    doc: str
    members: tuple[Entry, ...] = field(default=())


def wings() -> list[str]:
    """The wings that hand on names, in the order of the table of contents of `weightspace`."""
    return list(weightspace._CONTENTS)


@cache
def entries(wing: str) -> list[Entry]:
    """The public names of a wing in alphabetical order, functions and classes alike; each with its members."""
    package = importlib.import_module(f"weightspace.{wing}")
    return [_entry(name, getattr(package, name)) for name in sorted(package.__all__, key=str.lower)]


def _entry(name: str, thing: Any) -> Entry:
    if inspect.isclass(thing):
        members = tuple(_members(thing))
        return Entry(name, "exception" if issubclass(thing, Exception) else "class", thing, _doc(thing), members)
    if inspect.isfunction(thing):
        return Entry(name, "function", thing, _doc(thing))
    return Entry(name, "data", thing, "")


def _members(thing: type) -> Iterator[Entry]:
    """Methods and properties that a class itself documents, in the order of its source."""
    for name, value in vars(thing).items():
        plain = (
            getattr(value, "__func__", None) or getattr(value, "fget", None) or getattr(value, "func", None) or value
        )
        if name.startswith("_") or not inspect.isfunction(plain) or not plain.__doc__:
            continue
        kind = "method" if inspect.isfunction(value) else type(value).__name__
        yield Entry(name, "property" if "property" in kind else kind, plain, _doc(plain))


def _doc(thing: Any) -> str:
    return inspect.cleandoc(thing.__doc__) if isinstance(thing.__doc__, str) else ""


@cache
def documented() -> dict[str, str]:
    """The docstrings of all public names and their members, by address; and of the wings themselves."""
    found: dict[str, str] = {}
    for wing in wings():
        package: ModuleType = importlib.import_module(f"weightspace.{wing}")
        found[wing] = _doc(package)
        for entry in entries(wing):
            found[f"{wing}.{entry.name}"] = entry.doc
            found |= {f"{wing}.{entry.name}.{member.name}": member.doc for member in entry.members}
    return {address: doc for address, doc in found.items() if doc}


def signature(entry: Entry) -> str:
    """The signature as it stands in the source: `(net: Net, n: int = 3) -> float`; empty where there is none."""
    if entry.kind in ("property", "data", "exception"):
        return ""
    try:
        read = inspect.signature(entry.thing)
    except ValueError:
        return ""
    parameters = list(read.parameters.values())
    if entry.kind in ("method", "classmethod"):
        parameters = parameters[1:]
    shown = [
        p.replace(annotation=_plain(p.annotation), default=_shown(p.default))
        for p in parameters
        if not p.name.startswith("_")
    ]
    result = inspect.Signature.empty if entry.kind == "class" else _plain(read.return_annotation)
    if result is None:
        result = _Verbatim("None")
    return str(read.replace(parameters=shown, return_annotation=result))


class _Verbatim:
    """A text that prints as itself in a signature."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _plain(annotation: Any) -> Any:
    """An annotation that prints without quotes, addresses and white space at the edge of shapes."""
    if annotation is inspect.Parameter.empty or annotation is None:
        return annotation
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", repr(annotation))
    return _Verbatim(re.sub(r"""(["'])\s*([^"']*?)\s*\1""", r'"\2"', text))


def _shown(default: Any) -> Any:
    """A default that prints without addresses in memory: a function by its name."""
    if isinstance(default, tuple) and (short := numbers(default)):
        return _Verbatim(short)
    if default is inspect.Parameter.empty or isinstance(
        default, (bool, int, float, str, tuple, list, dict, type(None))
    ):
        return default
    if "factory" in repr(default) or "lambda" in repr(default):
        return _Verbatim("...")
    name = getattr(default, "__name__", "")
    return _Verbatim(name or re.sub(r"<([\w.]*\.)?(\w+).*>", r"\2", repr(default)))


def numbers(many: tuple[Any, ...]) -> str:
    """More than seven numbers as the first two and the last; empty for anything else."""
    if len(many) < 8 or not all(isinstance(number, (int, float)) for number in many):
        return ""
    return f"({many[0]:.4g}, {many[1]:.4g}, ..., {many[-1]:.4g})"


def blocks(doc: str) -> list[Block]:
    """A docstring as parts: paragraphs, lists, code, examples; `Raises ..`, `Source: ..`, `Cost: ..` by themselves.

    >>> [block.kind for block in blocks("The sum. Raises `Error` for none.\\n\\n- a\\n- b\\n\\n>>> 1 + 1\\n2")]
    ['text', 'Raises', 'list', 'example']
    """
    found: list[Block] = []
    for part in re.split(r"\n[ \t]*\n(?=\S)", doc.strip("\n")):
        if part.startswith(">>>"):
            found.append(Block("example", part))
        elif part.startswith("    "):
            found.append(Block("code", inspect.cleandoc(part)))
        elif "\n\n    " in part or re.search(r":\n    ", part):
            text, _, code = part.partition("\n\n    " if "\n\n    " in part else ":\n    ")
            found += [*_marked(text), Block("code", inspect.cleandoc("    " + code))]
        else:
            text, arrow, example = part.partition("\n>>>")
            found += list(_listed(text))
            found += [Block("example", ">>>" + example)] if arrow else []
    return found


def _listed(text: str) -> Iterator[Block]:
    """A paragraph, in which lines that begin with a dash are a list."""
    for is_list, lines in _grouped(text.splitlines()):
        if is_list:
            yield Block("list", "\n".join(lines))
        else:
            yield from _marked(" ".join(lines))


def _grouped(lines: list[str]) -> Iterator[tuple[bool, list[str]]]:
    group: list[str] = []
    listed = False
    for line in lines:
        starts = line.startswith("- ")
        if starts and not listed or listed and not starts and not line.startswith("  "):
            if group:
                yield listed, group
            group, listed = [], starts
        if listed and not starts:
            group[-1] += " " + line.strip()
        else:
            group.append(line.removeprefix("- ").strip())
    if group:
        yield listed, group


def _marked(text: str) -> Iterator[Block]:
    """Sentences that say what is raised, what it costs and where it is from, each by itself."""
    for part in _MARKED.split(" ".join(text.split())):
        word = re.match(r"(\w+)", part)
        kind = _MARKS.get(word[1], "text") if word else "text"
        if kind == "text" or not re.match(r"Raises `|\w+: ", part):
            yield Block("text", part)
            continue
        said, rest = _sentence(part)
        yield Block(kind, re.sub(r"^(Raises|Sources?:|Cost:|Memory:) ", "", said))
        if rest:
            yield from _marked(rest)


def _sentence(text: str) -> tuple[str, str]:
    """What is raised or cited to its end, and the sentences after that; a source goes on to the end."""
    if text.startswith("Source"):
        return text, ""
    end = re.search(r"(?<=[.)`])\. (?=[A-Z])|(?<=[a-z0-9\])])\. (?=[A-Z`])", text)
    return (text[: end.start() + 1], text[end.end() :]) if end else (text, "")
