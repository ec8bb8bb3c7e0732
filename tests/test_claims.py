"""The page of claims is true to the experiments: every figure it quotes stands in the section that it names.

A figure is looked up, with the others of its clause, in one paragraph or table of the section, so that a figure that
changes there makes the page fail. What a row is shown by exists.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest

import weightspace as ws
from tests.test_docs import wrong_commands

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "claims.md").read_text()
FIGURE = re.compile(r"(?<![A-Za-z\d.,-])[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?")
LINK = re.compile(r"\[[^\]]*\]\(\.\./experiments/README\.md#([\w-]+)\)")
VERDICTS = ("yes", "partly", "no ", "no:", "no,", "not measured", "not testable")


def figures(text: str) -> Counter[str]:
    """The numbers of a text, without commas and leading zeros, so that .5, 0.5 and 1,000, 1000 are the same."""
    found = (number.rstrip(",.").replace(",", "") for number in FIGURE.findall(text))
    return Counter(re.sub(r"^([-+]?)0\.", r"\1.", number) for number in found)


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def sections(text: str) -> dict[str, list[Counter[str]]]:
    """Anchor of every section -> the figures of each of its paragraphs and tables."""
    parts = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    found = {}
    for part in parts:
        heading, _, body = part.partition("\n")
        found[slug(heading)] = [figures(block) for block in body.split("\n\n")]
    return found


README = sections((ROOT / "experiments" / "README.md").read_text())


def rows(text: str) -> list[list[str]]:
    """The rows of claims: claimed, measured, holds, shown by."""
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in cells if len(row) == 4 and row[0] != "claimed" and not row[0].startswith("---")]


def not_found(row: list[str], readme: dict[str, list[Counter[str]]]) -> list[str]:
    """The clauses of a row's measurement whose figures do not stand together in a section that it links."""
    missing = []
    for sentence in re.split(r"(?<=\)\))[.;] ", row[1]):
        anchors = LINK.findall(sentence)
        blocks = [block for anchor in anchors for block in readme.get(anchor, [])]
        for clause in LINK.sub("", sentence).split(";"):
            wanted = set(figures(clause))
            if wanted and not any(wanted <= set(block) for block in blocks):
                missing.append(f"{clause.strip()}: {sorted(wanted)} in {anchors or 'no section'}")
    return missing


def wrong_names(shown: str) -> list[str]:
    """Names of the library (`ws.x.y`) in a cell that do not exist."""
    missing = []
    for name in re.findall(r"`ws\.([\w.]+)`", shown):
        found = ws
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is None:
            missing.append(name)
    return missing


@pytest.mark.parametrize("row", rows(PAGE), ids=lambda row: row[0][:60])
def test_a_claim_is_measured_where_the_page_says_so(row):
    claimed, measured, holds, shown = row
    assert re.search(r"\([^)]+\)$|\.\.|\?$", claimed), "a claim says where it stands"
    assert LINK.search(measured) or measured.startswith(("by definition", "proved", "not measured", "not testable"))
    assert not not_found(row, README)
    assert set(LINK.findall(measured)) <= set(README)
    assert holds.startswith(VERDICTS) or holds == "no"
    assert holds.startswith("not ") == measured.startswith("not ")
    linked = [block for anchor in LINK.findall(measured) for block in README[anchor]]
    assert not linked or set(figures(holds)) <= set().union(*linked)
    assert "`" in shown and not wrong_names(shown) and not list(wrong_commands(shown))


PARTS = sorted({(name, part) for name, words in re.findall(r"`python -m experiments\.(\w+)([^`]*)`", PAGE)
                for part in words.split(" --")[0].split()})  # fmt: skip


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_a_part_of_an_experiment_exists(name, part, capsys):
    """Those that it can be asked for are in its help."""
    with pytest.raises(SystemExit):
        importlib.import_module(f"experiments.{name}").main(["--help"])
    assert re.search(rf"\b{part}\b", capsys.readouterr().out)


def test_the_counts_of_the_page_are_those_of_its_rows():
    """Claims, hold, partly, do not, not measured: a line a document."""
    summary = re.findall(r"^\| \[(.+?)\]\(#([\w-]+)\) \| " + r" \| ".join([r"(\d+)"] * 5) + r" \|$", PAGE, re.MULTILINE)
    parts = {part.partition("\n")[0]: rows(part) for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}
    assert len(summary) == len(parts) == 5
    for title, anchor, *counts in summary:
        verdicts = [row[2] for row in parts[title]]
        kinds = [sum(v.startswith(kind) for v in verdicts) for kind in ("yes", "partly", "no", "not ")]
        kinds[2] -= kinds[3]
        assert anchor == slug(title) and [int(n) for n in counts] == [len(verdicts), *kinds], title


def test_a_figure_that_changes_is_seen():
    """Planted: another figure in the README, another in the page, a name and a command that do not exist."""
    readme = sections("## 1. Sorting\n\nThe norm has 43 %, matched .998.\n\n| a | b |\n| 1,000 | 0.26 |\n")
    link = "([section 1](../experiments/README.md#1-sorting))"
    row = ["a (1)", f"the norm 43 %, matched .998; of 1000 .26 {link}", "yes", ""]
    assert not not_found(row, readme)
    assert len(not_found(row, sections("## 1. Sorting\n\nThe norm has 44 %, matched .998.\n\n| 1000 | 0.26 |\n"))) == 1
    assert len(not_found([*row[:1], row[1].replace(".998", ".997"), *row[2:]], readme)) == 1
    assert len(not_found([*row[:1], row[1].replace("; of", ", of"), *row[2:]], readme)) == 1  # not in one place
    assert len(not_found([*row[:1], row[1].replace("#1-sorting", "#2-other"), *row[2:]], readme)) == 2
    assert wrong_names("`ws.flow`, `ws.flowing`, `ws.risk.maurer`") == ["flowing"]
    assert len(list(wrong_commands("`python -m experiments.nothing`, `python -m experiments.flat`"))) == 1
    told = next(row for row in rows(PAGE) if "32.05" in row[1])
    assert not not_found(told, README)
    changed = sections((ROOT / "experiments" / "README.md").read_text().replace("32.05", "31.95"))
    assert len(not_found(told, changed)) == 1
