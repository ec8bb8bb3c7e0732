"""Formulas in plain text as tokens, and the tables of symbols that their names stand for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["DIFFERENTIALS", "FUNCTIONS", "NAMES", "OPERATORS", "RELATIONS", "Token", "tokens", "variable"]

NAMES = {
    **dict(zip("alpha beta gamma delta epsilon zeta eta theta iota kappa".split(), "αβγδεζηθικ", strict=True)),
    **dict(zip("lambda mu nu xi pi rho sigma tau phi chi psi omega".split(), "λμνξπρστφχψω", strict=True)),
    **dict(zip("Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega".split(), "ΓΔΘΛΞΠΣΦΨΩ", strict=True)),
    **{"lam": "λ", "eps": "ε", "grad": "∇", "lap": "Δ", "inf": "∞", "sum": "∑", "prod": "∏", "int": "∫"},
}
OPERATORS = {
    **{"<=": "≤", ">=": "≥", "->": "→", "<-": "←", "!=": "≠", "+-": "±", "||": "∥", "..": "…", "...": "…"},
    **{"-": "−", "*": "∗", "~": "∼", "in": "∈", "'": "′", " . ": "⋅"},
}
RELATIONS = {"=", "<=", ">=", "<", ">", "->", "<-", "!=", "~", "in"}
FUNCTIONS = set(
    """sqrt log ln exp sin cos tan atan max min argmax argmin sum prod mean int tr det logdet diag cov var KL kl CE
    softmax grad lap sign ReLU""".split()
)
DIFFERENTIALS = {"df", "dx", "dw", "dt", "dW", "dL", "dK"}
_SHORT = {"lr", "KL", "kl", "CE", *DIFFERENTIALS}  # of two letters, and no word of prose

_INDEXED = "|".join(
    sorted({*NAMES, *FUNCTIONS, "d[a-zA-Z]"})
)  # these words take an index, all others are names of code
_OPAQUE = rf"""https?://\S+ | \d+x\d+\w* | [A-Za-z]\w*(?:\.[A-Za-z]\w*)+ | [A-Za-z]{{2,}}(?:-[A-Za-z]+)+
    | [A-Za-z]-[A-Za-z]{{2,}} | \d+-[a-z]+ | (?<!\w)(?!(?:{_INDEXED})_)[A-Za-z]{{2,}}\d*_\w\w+ | \w+'[a-z]\b"""
_TOKEN = re.compile(
    rf"""(?P<code>`[^`]+`) | (?P<quote>"[^"\n]*") | (?P<opaque>{_OPAQUE})
    | (?P<name>[A-Za-z]+\d* | (?<=_)\d[a-z]\b)
    | (?P<number>\d+(?:[.,]\d+)*(?:e-?\d+)? | \.\d+)
    | (?P<mark>\.\.\.? | <= | >= | -> | <- | != | \+- | (?<=\ )\|\|(?=\ ) | \S)""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Token:
    """A piece of text: its kind, where it begins and ends, and whether white space is before and after it."""

    kind: str
    text: str
    start: int
    end: int
    before: bool
    after: bool

    def is_mark(self, *texts: str) -> bool:
        """Whether it is one of these marks."""
        return self.kind in ("mark", "name") and self.text in texts and (self.kind == "mark" or self.text == "in")


@lru_cache(maxsize=4096)
def tokens(text: str) -> tuple[Token, ...]:
    """The tokens of a text: names, numbers, marks, and pieces that no formula looks into (`code`, "quotes", a.b).

    >>> [token.text for token in tokens("|v|_G <= lam, `x` a.b")]
    ['|', 'v', '|', '_', 'G', '<=', 'lam', ',', '`x`', 'a.b']
    """
    found = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        before = match.start() == 0 or text[match.start() - 1].isspace()
        after = match.end() == len(text) or text[match.end()].isspace()
        found.append(Token(kind, match[0], match.start(), match.end(), before, after))
    return tuple(found)


def variable(name: str) -> bool:
    """Whether a name is that of a variable: a letter, a letter with a number, or a Greek one."""
    return bool(re.fullmatch(r"[A-Za-z]\d*", name)) or (name in NAMES and name not in FUNCTIONS) or name in _SHORT
