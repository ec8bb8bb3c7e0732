"""Formulas in the plain notation of docstrings, `|v|_G = |A v|`, as MathML."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape

from docs._site.symbols import DIFFERENTIALS, NAMES, OPERATORS, RELATIONS, Token, tokens

__all__ = ["FormulaError", "mathml"]

_OPEN, _CLOSED = {"(": ")", "[": "])", "{": "}"}, ")]}"
_INFIX = {"+", "-", "*", "/", "+-", "||", ".", "|"} | RELATIONS
_SPACE = '<mspace width=".17em"></mspace>'
_TIGHT = ' lspace=".1em" rspace=".1em"'


class FormulaError(ValueError):
    """A text that is no formula in the plain notation: a bracket without its other half, a script without a base."""


def mathml(formula: str) -> str:
    """MathML of a formula in plain notation; nothing of its symbols is lost.

    `_` and `^` begin scripts (one name or number, or a bracket), `|v|` and `<v, w>` are brackets, `sqrt(x)` is a root,
    names of Greek letters and of operators are those signs. Raises `FormulaError` for what it cannot read.

    >>> mathml("x^2")
    '<math xmlns="http://www.w3.org/1998/Math/MathML"><msup><mi>x</mi><mn>2</mn></msup></math>'
    """
    parser = _Parser(tokens(formula))
    row = parser.row(lambda token: False)
    if parser.at < len(parser.tokens):
        raise FormulaError(f"{formula!r} cannot be read from {parser.tokens[parser.at].text!r} on")
    return f'<math xmlns="http://www.w3.org/1998/Math/MathML">{row}</math>'


def _name(text: str) -> str:
    """A variable in italics, with the number that follows it as its index; a word upright; an operator."""
    if text in ("sum", "prod", "int"):
        return f'<mo movablelimits="false" stretchy="false">{NAMES[text]}</mo>'
    if found := re.fullmatch(r"([A-Za-z])(\d+)", text):
        return f"<msub><mi>{found[1]}</mi><mn>{found[2]}</mn></msub>"
    if text in DIFFERENTIALS:
        return f"<mrow><mi>d</mi><mi>{text[1]}</mi></mrow>"
    return f"<mi>{escape(NAMES.get(text, text))}</mi>"


def _script(text: str) -> str:
    """A name as an index: two letters are two indices, `in` and longer ones words."""
    if re.fullmatch(r"[A-Za-z0-9]{2}", text) and text not in ("in", "to", *NAMES):
        return "".join(f"<mn>{letter}</mn>" if letter.isdigit() else f"<mi>{letter}</mi>" for letter in text)
    return _name(text)


def _long(token: Token) -> bool:
    """Whether a token is a word, which needs space beside its neighbours."""
    word = token.kind == "name" and len(token.text) > 1 and token.text not in {*NAMES, *DIFFERENTIALS}
    return word or token.kind in ("code", "quote")


class _Parser:
    """A parser of rows: operands with scripts, one beside another or with operators between them."""

    def __init__(self, found: tuple[Token, ...]) -> None:
        self.tokens, self.at = found, 0

    @property
    def token(self) -> Token | None:
        """The next token."""
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self) -> Token:
        """The next token, which is passed."""
        if (token := self.token) is None:
            raise FormulaError("the formula ends too early")
        self.at += 1
        return token

    def row(self, ends: Callable[[Token], bool]) -> str:
        """All until a token that ends the row, which is not passed."""
        parts: list[str] = []
        operand = False  # whether the last part is one
        while (token := self.token) is not None and not (operand and ends(token)) and token.text not in _CLOSED:
            if ends(token) and token.text != "|":
                break
            before = self.tokens[self.at - 1] if self.at else None
            if self._operator(token, operand):
                parts.append(self._sign(self.take(), operand))
                operand = False
            else:
                if operand and before and token.before and (_long(before) or _long(token) or self._after_ratio()):
                    parts.append(_SPACE)
                parts.append(self.operand())
                operand = True
        return "".join(parts)

    def _after_ratio(self) -> bool:
        """Whether the operand before the next one is the lower part of a ratio without spaces, as in `1/2 x`."""
        slash = self.tokens[self.at - 2] if self.at > 1 else None
        return slash is not None and slash.is_mark("/") and not slash.before

    def _operator(self, token: Token, operand: bool) -> bool:
        if token.is_mark(","):
            return True
        if token.kind == "name" and token.text in ("and", "or"):
            return True
        if token.is_mark("|"):  # the condition in p(y | x); at the beginning of an operand it is a bracket
            return operand and not self._bar_opens(token)
        if token.is_mark("<") and not token.after and not (operand and not token.before):
            return False
        if token.is_mark("."):
            return operand and token.before and token.after
        return token.is_mark(*_INFIX, ";", ":")

    def _bar_opens(self, token: Token) -> bool:
        before = self.tokens[self.at - 1]
        return not token.after and (token.before or before.text == "|")

    def _sign(self, token: Token, operand: bool) -> str:
        text = token.text
        if text in ("and", "or"):
            return f"<mtext>&#160;{text}&#160;</mtext>"
        if text == ".":
            return "<mo>⋅</mo>"
        sign = escape(OPERATORS.get(text, text))
        if text in ("-", "+", "+-", "~", "*") and not operand:
            return f'<mo form="prefix">{sign}</mo>'
        if text == "/":
            return f"<mo{_TIGHT}>/</mo>"
        if text in ("|", "||"):
            return f'<mo form="infix" stretchy="false" lspace=".2em" rspace=".2em">{sign}</mo>'
        if text in (",", ";"):
            return f'<mo separator="true">{sign}</mo>'
        return f"<mo>{sign}</mo>"

    def operand(self) -> str:
        """A name, a number or a bracket, and its scripts in the order in which they stand."""
        token = self.take()
        scripts: list[tuple[str, str]] = []
        if token.kind == "name" and token.text == "sqrt" and self.token is not None and self.token.is_mark("("):
            base = f"<msqrt><mrow>{self._inside(self.take())[1]}</mrow></msqrt>"
        else:
            base = self._base(token)
        while (mark := self.token) is not None and not mark.before and mark.is_mark("_", "^", "'"):
            self.take()
            scripts.append(("^", "<mo>′</mo>") if mark.text == "'" else (mark.text, self._argument(mark.text)))
        return _scripted(base, scripts)

    def _base(self, token: Token) -> str:
        if token.kind == "number":
            return f"<mn>{token.text}</mn>"
        if token.kind == "name":
            return _name(token.text)
        if token.kind in ("code", "quote"):
            return f"<mtext>{escape(token.text.strip('`'))}</mtext>"
        if token.is_mark("..", "...", "."):
            return f"<mo>{'…' if token.text != '.' else '⋅'}</mo>"
        if token.text in _OPEN:
            opening, inside, closing = self._inside(token)
            return _fenced(opening, inside, closing)
        if token.is_mark("|"):
            inside = self.row(lambda t: t.is_mark("|") and not t.before)
            self._closed("|")
            return _fenced("|", inside, "|")
        if token.is_mark("<"):
            inside = self.row(lambda t: t.is_mark(">") and not t.before)
            self._closed(">")
            return _fenced("⟨", inside, "⟩")
        raise FormulaError(f"no operand begins with {token.text!r}")

    def _inside(self, token: Token) -> tuple[str, str, str]:
        inside = self.row(lambda t: False)
        return token.text, inside, self._closed(_OPEN[token.text])

    def _closed(self, by: str) -> str:
        token = self.take()
        if token.text not in by:
            raise FormulaError(f"{token.text!r} stands where {by[0]!r} is needed")
        return token.text

    def _argument(self, mark: str) -> str:
        """What follows `_` or `^`: a bracket, without it; or a name, a number, a sign with one of them, a/b."""
        token = self.take()
        if token.text in ("{", "(") and mark == "^" or token.text == "{":
            return f"<mrow>{self._inside(token)[1]}</mrow>"
        if token.text == "(":  # an index of several parts: W_(ij)(kl)
            parts = [_fenced("(", self._indices(), ")")]
            while (after := self.token) is not None and after.text == "(" and not after.before:
                self.take()
                parts.append(_fenced("(", self._indices(), ")"))
            return f"<mrow>{''.join(parts)}</mrow>"
        signed = ""
        if token.is_mark("*") or (token.is_mark("+", "-") and mark == "^"):
            if token.text in "+*" or self.token is None:
                return f"<mo>{OPERATORS.get(token.text, token.text)}</mo>"
            signed, token = '<mo form="prefix">−</mo>', self.take()
        if token.kind not in ("name", "number", "code"):
            raise FormulaError(f"no script is {token.text!r}")
        parts = [signed, _script(token.text) if token.kind == "name" and mark == "_" else self._base(token)]
        while (after := self.token) is not None and not after.before and not after.after and after.is_mark(",", "/"):
            follower = self.tokens[self.at + 1] if self.at + 1 < len(self.tokens) else None
            if follower is None or (after.text == "/") != (mark == "^" and follower.kind == token.kind == "number"):
                break
            parts.append(self._sign(self.take(), True))
            parts.append(_script(follower.text) if follower.kind == "name" else self._base(follower))
            self.take()
        text = "".join(parts)
        return text if len(re.findall(r"<m[ion]", text)) == 1 else f"<mrow>{text}</mrow>"

    def _indices(self) -> str:
        token = self.take()
        self._closed(")")
        return _script(token.text)


def _fenced(opening: str, inside: str, closing: str) -> str:
    left = f'<mo form="prefix" stretchy="false">{opening}</mo>'
    return f'<mrow>{left}{inside}<mo form="postfix" stretchy="false">{closing}</mo></mrow>'


def _scripted(base: str, scripts: list[tuple[str, str]]) -> str:
    """A base with scripts; a subscript and the superscript after it stand above one another."""
    while scripts:
        (mark, script), *scripts = scripts
        if mark == "_" and scripts and scripts[0][0] == "^":
            above = [scripts.pop(0)[1]]
            while above[0] == "<mo>′</mo>" and scripts and scripts[0][0] == "^":
                above.append(scripts.pop(0)[1])
            base = f"<msubsup>{base}{script}<mrow>{''.join(above)}</mrow></msubsup>"
        else:
            base = f"<{'msub' if mark == '_' else 'msup'}>{base}{script}</{'msub' if mark == '_' else 'msup'}>"
    return base
