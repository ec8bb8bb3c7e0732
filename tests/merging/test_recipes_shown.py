"""The methods that the pages show are the methods that there are."""

from pathlib import Path

from weightspace.merging import methods
from weightspace.merging.methods import METHODS

PAGE = Path(__file__).parents[2] / "docs" / "merging.md"


def rows(text):
    return [line for line in text.splitlines() if line.startswith("| `")]


def test_every_method_has_its_row_with_its_options():
    table = {line.split("`")[1]: line for line in rows(str(methods.__doc__))}
    assert [*table] == [*METHODS]
    for name, found in METHODS.items():
        *_, base, options, _ = (cell.strip() for cell in table[name].split("|"))
        assert base == found.base and options.split(", ") == ([*found.options] or [""])


def test_the_page_has_the_same_table():
    assert set(rows(str(methods.__doc__))) <= set(rows(PAGE.read_text()))
