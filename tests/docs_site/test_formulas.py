"""Formulas in docstrings: all are found and become MathML in which no symbol is lost; prose stays prose."""

from __future__ import annotations

import re
import xml.etree.ElementTree as tree

import pytest

from docs._site.docstrings import blocks, documented
from docs._site.formulas import FormulaError, mathml
from docs._site.latex import even, plain
from docs._site.prose import pieces
from docs._site.symbols import NAMES

DOCSTRINGS = documented()
SIGNS = {
    **{"<=": "≤", ">=": "≥", "->": "→", "<-": "←", "+-": "±", "||": "∥", "...": "…", "..": "…", "!=": "≠"},
    **{"-": "−", "*": "∗", "~": "∼", "'": "′", ".": "⋅", "<": "⟨", ">": "⟩"},
}
# left as text: the docstring, and the words around what looks like a formula there
LEFT = {
    "net.Net.frozen": "requires_grad=False",
    "flows.flow": "requires_grad=False",
    "path.Rate": "its logarithm `log` = `prefactor` + `exponent`",
    "path.Grid": "= observables[name](plane.net(u[i], v[j]))",
    "symmetry.Exchange": "S4{hs}",
    "inside.svcca": "with `keep` = 1 under",
    "metric.Pullback": "1500 rows = examples x outputs",
    "codes.StructureFunction.loss": "= max over beta of",
    "path.Path.divergence": "= mean over x of",
    "atlas.Independence": "= correlation / chance",
}


def found(doc: str) -> list[str]:
    return [
        piece.text
        for block in blocks(doc)
        if block.kind not in ("example", "code")
        for line in block.text.split("\n")
        for piece in pieces(line)
        if piece.kind == "formula"
    ]


FORMULAS = sorted({formula for doc in DOCSTRINGS.values() for formula in found(doc)})


def symbols(formula: str) -> list[str]:
    """The symbols of a formula in order, by a table; brackets of scripts and roots are not symbols, nor are `^ _`."""
    text = re.sub(r"\bsqrt\b", "", formula.replace("`", ""))
    parts = re.findall(r"<=|>=|->|<-|\+-|!=|(?<= )\|\|(?= )|\.\.\.?|\d+(?:[.,]\d+)*(?:e-\d+)?|\.\d+|[A-Za-z]+|\S", text)
    parts = [part if parts[k - 1 : k] == ["_"] else {"in": "∈"}.get(part, part) for k, part in enumerate(parts)]
    found = [NAMES.get(part, SIGNS.get(part, part)) for part in parts if part not in "^_(){}"]
    spaced = re.findall(r"(?<= )[<>](?= )", formula)  # relations, not brackets
    for sign in spaced:
        found[found.index(SIGNS[sign])] = sign
    return list("".join(found))


def lost(formula: str, made: str) -> bool:
    """Whether the text of MathML is not that of its formula; the order of symbols counts, their brackets do not."""
    shown = re.sub(r"[\s(){}_\u00a0]", "", "".join(tree.fromstring(made).itertext()))
    return list(shown) != symbols(formula)


def test_there_are_formulas_in_many_docstrings():
    assert len(FORMULAS) > 400 and "|v|_G = |A v|" in FORMULAS


def test_every_formula_becomes_mathml_and_no_symbol_is_lost():
    wrong = [formula for formula in FORMULAS if lost(formula, mathml(formula))]
    assert not wrong


def test_brackets_are_closed_and_none_is_lost_but_those_of_scripts_and_roots():
    for formula in FORMULAS:
        shown = "".join(tree.fromstring(mathml(formula)).itertext())
        scripts = len(re.findall(r"(?:\^|sqrt)[({]|_\{", formula))
        for opening, closing in ("()", "{}", "[]"):
            kept = shown.count(opening) + shown.count(closing)
            written = formula.count(opening) + formula.count(closing)
            assert kept <= written and (kept == written or scripts), formula
        half_open = len(re.findall(r"\[[^\]()]*\)", formula))
        assert shown.count("(") == shown.count(")") or half_open, formula


def left(doc: str) -> str:
    """The text of a docstring that stays text and has a mark of a formula: scripts, bars, relations between spaces."""
    mark = re.compile(r"\^|\||\b[A-Za-z]_\w\b|<=|>=|(?<= )=(?= )|\{\w+\}|\w=\w")
    texts = [
        piece.text
        for block in blocks(doc)
        if block.kind not in ("example", "code")
        for piece in pieces(block.text)
        if piece.kind == "text" and mark.search(re.sub(r'"[^"]*"', "", piece.text))
    ]
    return " .. ".join(texts)


def test_what_looks_like_a_formula_is_one():
    seen = {address: text for address, doc in DOCSTRINGS.items() if (text := left(doc))}
    assert set(seen) == set(LEFT), {address: text for address, text in seen.items() if address not in LEFT}
    assert all(LEFT[address] in " ".join(DOCSTRINGS[address].split()) for address in LEFT)


@pytest.mark.parametrize("doc", ["The |v of a step.", "A sum (a, the b)^2 of.", "of S4{k} each", "so many ^ 2"])
def test_a_formula_that_is_not_found_is_seen(doc):
    assert left(doc)
    assert not left('The norm |v|_G = |A v| of a step, `x_1 = 2`, "a = b".')


@pytest.mark.parametrize(
    ("text", "formulas"),
    [
        ("The norm |v|_G = |A v| of a step.", ["|v|_G = |A v|"]),
        ("A flow v(lam) = -lam (G + lam)^-1 g, and d(a, b) = min_g |g a - b|.", [
            "v(lam) = -lam (G + lam)^-1 g", "d(a, b) = min_g |g a - b|",
        ]),
        ("The rows (see `rank`) of a matrix and a - well - word in one-way mode, 3 of 4.", []),
        ("Call f with requires_grad=False or `x = y^2`, \"a = b\", and/or 0 to 1.", []),
        ("A network f(w, .) and a step v.", ["f(w, .)"]),
        ("the mean |x|, the max over t of 2 L_t. I add a W.", ["|x|", "2 L_t"]),
        ("each s = `scale` x_i is cut", ["s = `scale` x_i"]),
        ("It is kl^-1(mean, ln(2 / delta) / draws).", ["kl^-1(mean, ln(2 / delta) / draws)"]),
        ("name -> tensor, x -> f(x)", ["x -> f(x)"]),
        ("an unclosed |v and (a + b are left", ["a + b"]),
    ],
)  # fmt: skip
def test_prose_is_not_taken_for_formulas(text, formulas):
    assert [piece.text for piece in pieces(text) if piece.kind == "formula"] == formulas
    rebuilt = "".join(f"`{piece.text}`" if piece.kind == "code" else piece.text for piece in pieces(text))
    assert rebuilt == text


@pytest.mark.parametrize("formula", ["|v", "(a + b", "a^", "x_", "a)", "<v, w", "sqrt(x", "a ]", "^2", "{x)"])
def test_what_is_broken_is_refused(formula):
    with pytest.raises(FormulaError):
        mathml(formula)


@pytest.mark.parametrize(
    ("formula", "wrong"),
    [
        ("|v|_G = |A v|", ("<mi>A</mi>", "")),
        ("x^-1", ("−", "")),
        ("a <= b", ("≤", "&lt;")),
        ("lam G", ("λ", "l")),
        ("sum_i v_i w_i", ("<mi>w</mi>", "<mi>v</mi>")),
    ],
)
def test_a_lost_symbol_is_seen(formula, wrong):
    made = mathml(formula)
    assert not lost(formula, made) and lost(formula, made.replace(*wrong))


def test_letters_of_formulas_are_formulas_where_they_stand_alone():
    text = "A map B A of the rows of A, and B of a step; A B is x."
    found = [piece.text for piece in pieces(text, {"A", "B", "a", "x"}) if piece.kind == "formula"]
    assert found == ["B", "A", "A", "B", "B"]


def test_the_shape_of_formulas():
    inside = {
        "v_i^2": "<msubsup><mi>v</mi><mi>i</mi><mrow><mn>2</mn></mrow></msubsup>",
        "W_ij": "<msub><mi>W</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub>",
        "w_init": "<msub><mi>w</mi><mi>init</mi></msub>",
        "e^(-k)": '<msup><mi>e</mi><mrow><mo form="prefix">−</mo><mi>k</mi></mrow></msup>',
        "w0": "<msub><mi>w</mi><mn>0</mn></msub>",
        "sqrt(n)": "<msqrt><mrow><mi>n</mi></mrow></msqrt>",
    }
    for formula, made in inside.items():
        assert mathml(formula) == f'<math xmlns="http://www.w3.org/1998/Math/MathML">{made}</math>'


def test_latex_is_written_as_the_converter_knows_it():
    assert plain(r"\operatorname{tr} G w'") == r"\mathrm{tr} G w^{\prime}"
    bars = '<mo class="mathopen">‖</mo><mi>v</mi><msub><mo>‖</mo><mi>G</mi></msub>'
    assert even(bars) == '<mo stretchy="false">‖</mo><mi>v</mi><msub><mo stretchy="false">‖</mo><mi>G</mi></msub>'
    tall = "<mrow><mo>‖</mo></mrow>"
    assert even(tall, r"\left\lVert x") == tall and even(tall) == '<mrow><mo stretchy="false">‖</mo></mrow>'
