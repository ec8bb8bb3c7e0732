"""Text as reStructuredText: what has a meaning there is escaped, formulas and names become roles."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from docs._site.prose import pieces

__all__ = ["escaped", "heading", "indented", "inline", "literal"]


def escaped(text: str) -> str:
    """A text in which no character has a meaning for reStructuredText; `->` is an arrow.

    >>> escaped("a_b *c* -> d")
    'a\\\\_b \\\\*c\\\\* → d'
    """
    return re.sub(r"([\\*`|_])", r"\\\1", text.replace(" -> ", " → ")).replace("://", r"\://")


def literal(text: str) -> str:
    """A text as code."""
    return f":code:`{text.replace(chr(92), chr(92) * 2).replace('`', chr(92) + '`')}`"


def inline(text: str, name: Callable[[str], str] = literal, symbols: Iterable[str] = ()) -> str:
    """A paragraph of a docstring on one line; `name` says what stands for code in backticks."""
    made = []
    for piece in pieces(" ".join(text.split()), symbols):
        if piece.kind == "text":
            made.append(escaped(piece.text))
        elif piece.kind == "code":
            made.append(rf"\ {name(piece.text)}\ ")
        else:
            formula = re.sub(r"([\\`])", r"\\\1", piece.text)
            made.append(rf"\ :formula:`{formula}`\ ")
    line = "".join(made)
    return line if line[:1].isalpha() and line[1:2] not in ".)" else "\\ " + line.removeprefix("\\ ")


def indented(text: str, by: int = 3) -> str:
    """A text with every line further to the right, but empty ones."""
    return "\n".join(" " * by + line if line.strip() else "" for line in text.splitlines())


def heading(text: str, mark: str = "=") -> str:
    """A heading with its underline."""
    return f"{text}\n{mark * max(len(text), 3)}\n"
