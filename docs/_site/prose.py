"""Formulas in prose: which parts of a docstring's sentences are formulas, found without taking words for them.

A formula is the longest run that reads as one (operands beside another or with operators between them, whole brackets)
and that has a mark of one: a relation, a script, bars, an operation on a variable, a function of one. What is in doubt
stays text. Code in backticks and quoted words are never looked into.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from docs._site.symbols import FUNCTIONS, RELATIONS, Token, tokens, variable

__all__ = ["Piece", "formulas", "pieces"]

_CLOSING = {"(": ")]", "[": "])", "{": "}"}
_WORDS = {"mean", "sum", "min", "max", "sign", "int", "var", "cos", "sin"}  # also words of prose
_ARTICLES = {"a", "A", "I"}
_STOP = set(
    "the an of to on is are as by at for its that with where from it be all each one no not and or which".split()
)
_OPERATIONS = {"+", "-", "*", "/", "+-"}


@dataclass(frozen=True)
class Piece:
    """A part of a paragraph: `text`, `code` (without its backticks) or `formula`."""

    kind: str
    text: str


def pieces(paragraph: str, symbols: Iterable[str] = ()) -> list[Piece]:
    """A paragraph as text, code and formulas, in order; `symbols`: letters that are set as formulas where they stand.

    >>> [(p.kind, p.text) for p in pieces("The norm |v| = sqrt(<v, v>) of a vector `v`.")]
    [('text', 'The norm '), ('formula', '|v| = sqrt(<v, v>)'), ('text', ' of a vector '), ('code', 'v'), ('text', '.')]
    """
    found, alone = tokens(paragraph), set(symbols) - {"a", "x"}
    made: list[Piece] = []
    start = i = 0

    def add(first: Token, last: Token, kind: str) -> None:
        nonlocal start
        if paragraph[start : first.start]:
            made.append(Piece("text", paragraph[start : first.start]))
        text = " ".join(paragraph[first.start : last.end].split())
        made.append(Piece(kind, text.strip("`") if kind == "code" else text))
        start = last.end

    while i < len(found):
        reader = _Reader(found)
        if found[i].kind == "code":
            add(found[i], found[i], "code")
            i += 1
        elif span := reader.formula(i):
            add(found[span[0]], found[span[1] - 1], "formula")
            i = span[1]
        elif found[i].text in alone and found[i].kind == "name" and _stands_alone(found, i, paragraph):
            add(found[i], found[i], "formula")
            i += 1
        else:
            i += 1
    if paragraph[start:]:
        made.append(Piece("text", paragraph[start:]))
    return made


def formulas(text: str) -> Iterator[str]:
    """The formulas of a text."""
    yield from (piece.text for piece in pieces(text) if piece.kind == "formula")


def _stands_alone(found: tuple[Token, ...], i: int, text: str) -> bool:
    token = found[i]
    if token.text in _ARTICLES and text[token.end : token.end + 1] not in set(",.;:)"):
        if not (i and re.fullmatch("[B-HJ-Z]", found[i - 1].text)):
            return False  # an article, or the one who speaks
    around = text[token.start - 1 : token.start], text[token.end : token.end + 1]
    return around[0] in ("", " ", "\n", "(") and around[1] in ("", " ", "\n", ")", ",", ".", ":", ";")


class _Reader:
    """How far a formula reaches in the tokens of a paragraph."""

    def __init__(self, found: tuple[Token, ...]) -> None:
        self.found = found

    def at(self, i: int) -> Token | None:
        return self.found[i] if 0 <= i < len(self.found) else None

    def formula(self, i: int) -> tuple[int, int] | None:
        """The first and one past the last token of the formula that begins at token i, or None."""
        first, second = self.found[i], self.at(i + 1)
        if first.kind in ("quote", "opaque"):
            return None
        if first.kind == "name" and first.text not in FUNCTIONS and not variable(first.text):
            if second is None or second.kind != "mark":
                return None
        if i and not first.before and self.found[i - 1].text not in ("(", "/", "["):
            return None
        begin = i + 1 if first.is_mark(*RELATIONS) and first.before and first.after and not first.is_mark("in") else i
        if first.text == "mean" and self._beside(i + 1):
            return None  # the mean ..
        end = self.row(begin, glued=begin > i or self._held(i + 1))
        if end is None:
            return None
        if self.found[end - 1].text == "x" and end - 1 > i and self._beside(end - 1) and self._counted(end):
            end -= 1  # so many times what follows
        if first.text in ("a", "A") and end > i + 1 and self._beside(i + 1):
            return None  # an article
        while end > begin and self.found[end - 1].text == "a" and self._beside(end - 1):
            end -= 1
        return (i, end) if self.strong(i, end) else None

    def _beside(self, i: int) -> bool:
        """Whether token i stands beside the operand before it, as another operand."""
        token = self.at(i)
        if token is None or self.found[i - 1].is_mark(*_OPERATIONS, *RELATIONS, "."):
            return False
        return token.before and (token.kind in ("name", "number") or token.text in "([|<{")

    def _counted(self, i: int) -> bool:
        token = self.at(i)
        return token is not None and (token.kind in ("code", "number") or token.kind == "name" and len(token.text) > 1)

    def _held(self, i: int) -> bool:
        """Whether the word before token i begins a formula: an operator stands there."""
        token = self.at(i)
        if token is None or token.text == "in" or not token.before == token.after:
            return False
        return token.before and token.is_mark(*RELATIONS, "/", "*", "+")

    def row(self, i: int, glued: bool = False, closing: str = "", free: bool = False) -> int | None:
        """One past the last token of operands and operators from i on; None where there is none. `free`: words too."""
        end, operand = None, False
        while (token := self.at(i)) is not None:
            if operand and token.text in closing and token.kind == "mark":
                return end
            if not operand and token.is_mark("-", "+", "+-", "~") and not token.after:
                i, glued = i + 1, True
            elif operand and (after := self.operator(i, closing)):
                i, operand, glued = after, False, True
            else:
                after = self.operand(i, glued or free, bool(closing), operand)
                if after is None:
                    return end
                i = end = after
                operand, glued = True, False
        return end

    def operator(self, i: int, closing: str) -> int | None:
        """One past the operator at token i."""
        token, after = self.found[i], self.at(i + 1)
        if after is None:
            return None
        even = token.before == token.after
        if token.text == "." and token.kind == "mark":
            return i + 1 if token.before and token.after and after.kind != "quote" else None
        if token.is_mark("in"):
            return i + 1 if after.text in "[{" else None
        if token.is_mark("=") and not token.before and closing != "}":
            return i + 1 if self.letter(i - 1) and (self.letter(i + 1) or after.kind == "number") else None
        if token.text == "|" and self.found[i - 1].text == "|" and not token.before:
            return None
        if token.is_mark("|", "||"):
            return i + 1 if closing and closing != "|" and even else None
        if token.kind == "name" and token.text in ("and", "or"):
            return i + 1 if closing == "|" else None
        if token.is_mark("<", ">") and not token.before:
            return None
        if token.text == "-" and token.before and not closing and after.kind == "name":
            if not variable(after.text) and after.text not in FUNCTIONS:
                return None  # a dash between words
        return i + 1 if token.is_mark(*RELATIONS, *_OPERATIONS) and even else None

    def letter(self, i: int) -> bool:
        token = self.at(i)
        return token is not None and token.kind == "name" and variable(token.text)

    def operand(self, i: int, glued: bool, inside: bool, beside: bool) -> int | None:
        """One past the operand at token i with its scripts; a word is one only where an operator holds it."""
        token = self.found[i]
        after = None
        if token.kind == "number":
            percent = self.at(i + 1)
            after = None if percent is not None and percent.text == "%" else i + 1
        elif token.kind == "code":
            after = i + 1 if glued else None
        elif token.kind == "name":
            after = self.named(i, glued, inside, beside)
        elif token.text in _CLOSING:
            after = self.bracket(i, words=glued)
        elif token.text == "|" and not token.after:
            after = self.bars(i, "|")
        elif token.text == "<" and not token.after:
            after = self.bars(i, ">")
        elif inside and token.is_mark("..", "...", "."):
            after = i + 1
        end = self.scripts(after) if after is not None else None
        if end is None or end == after or token.kind != "name":
            return end
        applied = self.at(end)  # a function with an index or a power, such as f_a(x)^2
        if applied is None or applied.text != "(" or applied.before:
            return end
        whole = self.bracket(end, words=True)
        return self.scripts(whole) if whole is not None else end

    def named(self, i: int, glued: bool, inside: bool, beside: bool) -> int | None:
        """One past a name with the bracket that is applied to it."""
        token, after = self.found[i], self.at(i + 1)
        applied = after is not None and after.text == "(" and not token.after
        script = after is not None and after.text in "_^" and not token.after
        if token.text in FUNCTIONS and not (variable(token.text) and not applied):
            if applied:
                return self.bracket(i + 1, words=True)
            follows = self.operand(i + 1, False, inside, True) if after is not None and token.after else None
            return (
                i + 1
                if script or follows is not None or (glued and token.text in _WORDS and self._ends(i + 1))
                else None
            )
        if variable(token.text):
            if token.text == "a" and after is not None and after.kind != "mark" and not self.letter(i + 1):
                return None  # an article before a word
            if token.text == "a" and beside and not (script or self._ends(i + 1)):
                return None
            return self.bracket(i + 1, words=True) if applied else i + 1
        if not glued and not script and not (inside and not beside and self._operated(i + 1)):
            return None
        if token.text in _STOP and not inside:
            return None
        return self.bracket(i + 1, words=True) if applied else i + 1

    def _ends(self, i: int) -> bool:
        token = self.at(i)
        return self._operated(i) or token is not None and token.text in ")]|}>,"

    def _operated(self, i: int) -> bool:
        token = self.at(i)
        return token is not None and token.is_mark(*_OPERATIONS, *RELATIONS) and token.text != "in"

    def bracket(self, i: int, words: bool) -> int | None:
        """One past a whole bracket at token i: rows with commas between them; with `words`, words that stand alone."""
        closing = _CLOSING[self.found[i].text]
        i += 1
        while self.at(i) is not None:
            end = self.row(i, closing=closing, free=words)
            if end is None or (after := self.at(end)) is None:
                return None
            if after.text in closing:
                return end + 1
            if after.text not in (",", ";"):
                return None
            i = end + 1
        return None

    def bars(self, i: int, closing: str) -> int | None:
        """One past |..| or <.., ..> at token i."""
        i += 1
        while True:
            end = self.row(i, closing=closing, free=closing == ">" or self._alone(i))
            if end is None or (after := self.at(end)) is None:
                return None
            if after.text == closing and not after.before:
                return end + 1
            if after.text != "," or closing == "|":
                return None
            i = end + 1

    def _alone(self, i: int) -> bool:
        """Whether one name stands between bars."""
        name, bar = self.at(i), self.at(i + 1)
        return name is not None and bar is not None and name.kind == "name" and bar.text == "|" and not bar.before

    def scripts(self, i: int) -> int | None:
        """One past the scripts at token i; None where one is broken."""
        while (mark := self.at(i)) is not None and not mark.before and mark.is_mark("_", "^", "'"):
            after = self.at(i + 1)
            if mark.text == "'":
                i += 1
                continue
            if after is None or mark.after:
                return None
            if after.text in _CLOSING:
                end = self.bracket(i + 1, words=True)
                while end is not None and mark.text == "_" and (more := self.at(end)) is not None:
                    if more.text != "(" or more.before or after.text != "(":
                        break
                    end = self.bracket(end, words=True)
                if end is None:
                    return None
                i = end
                continue
            i = i + 2 if after.kind in ("name", "number", "code") else self._signed(i + 1)
            if i is None:
                return None
            i = self._joined(i, "," if mark.text == "_" else "/")
        return i

    def _signed(self, i: int) -> int | None:
        token, after = self.found[i], self.at(i + 1)
        if token.is_mark("-") and after is not None and after.kind in ("name", "number"):
            return i + 2
        return i + 1 if token.is_mark("+", "*") else None

    def _joined(self, i: int, by: str) -> int:
        mark, after = self.at(i), self.at(i + 1)
        if mark is None or after is None or mark.text != by or mark.before or mark.after:
            return i
        return i + 2 if after.kind in (("name", "number") if by == "," else ("number",)) else i

    def strong(self, i: int, end: int) -> bool:
        """Whether a run has a mark of a formula."""
        run = self.found[i:end]
        lettered = any(t.kind == "name" and (variable(t.text) or t.text in FUNCTIONS) for t in run)
        for k, token in enumerate(run):
            after = run[k + 1] if k + 1 < len(run) else None
            if token.is_mark("_", "^", "|", "<=", ">="):
                return True
            if token.is_mark(*RELATIONS):
                if lettered or any(t.kind == "number" for t in run) and len(run) > 2:
                    return True
            if token.is_mark(*_OPERATIONS) and lettered and len(run) > 2:
                return True
            if token.kind == "name" and after is not None:
                applied = after.text == "(" and not token.after
                if applied and (variable(token.text) or token.text in FUNCTIONS):
                    return True
                if token.text in FUNCTIONS - _WORDS:
                    return True
        return False
