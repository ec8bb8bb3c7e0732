"""A self-contained HTML page: sections of key numbers, Plotly figures and tables; nothing is fetched.

A `Page` is a section: a headline, cards, figures, tables. `save` writes any number of them to one file. Names that come
from files are escaped, here and by `as_text` in figures, because Plotly reads markup. A content security policy allows
the page to run its own two scripts, identified by their hashes, and to fetch nothing. Figures can be saved as PNG, SVG,
CSV and JSON, tables as CSV.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from weightspace.checkpoint import files
from weightspace.net.errors import WeightspaceError

__all__ = ["Card", "FONT", "Figure", "MARK", "Page", "Table", "as_text", "render", "save"]


MARK = '<meta name="generator" content="weightspace">'  # by which pages of weightspace are known
FONT = "system-ui, 'Segoe UI', 'Liberation Sans', sans-serif"


@dataclass(frozen=True)
class Card:
    """A key number: its label, the value before (may be empty) and after, and what it means."""

    label: str
    before: str
    after: str
    meaning: str = ""


@dataclass(frozen=True)
class Figure:
    """A Plotly figure with its title and caption."""

    title: str
    caption: str
    plot: go.Figure
    wide: bool = True


@dataclass(frozen=True)
class Table:
    """A table with its title; `folded` shows the title only until it is clicked."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False


@dataclass(frozen=True)
class Page:
    """A section of a report. `tone` colours the headline: "good" or "plain"."""

    name: str
    headline: str
    lead: str
    tone: str = "plain"
    command: str = ""
    cards: Sequence[Card] = ()
    parts: Sequence[Figure | Table] = ()
    remarks: Sequence[str] = field(default=())


def as_text(text: str) -> str:
    """Text escaped for HTML and for labels of Plotly."""
    return html.escape("".join(c if c.isprintable() else "?" for c in text))


def save(pages: Sequence[Page], path: Path, *, title: str = "weightspace") -> None:
    """Write the pages as one file; on failure an old file stays as it was. Raises `WeightspaceError`."""
    try:
        files.write(path, render(pages, title=title))
    except OSError as error:
        raise WeightspaceError(f"{path} cannot be written ({error.strerror}); choose another place") from error


def render(pages: Sequence[Page], *, title: str = "weightspace") -> str:
    """The HTML of the pages."""
    library = get_plotlyjs()
    plots = [part.plot for page in pages for part in page.parts if isinstance(part, Figure)]
    numbers = iter(range(len(plots)))
    links = "".join(f'<a href="#page-{k}">{as_text(page.name)}</a>' for k, page in enumerate(pages))
    data = "[" + ",".join(plot.to_json() for plot in plots) + "]"
    script = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
    return Template(_HTML).substitute(
        title=as_text(title),
        mark=MARK,
        headline=as_text(pages[0].headline if pages else ""),
        policy=_POLICY.format(library=_hash(library), script=_hash(script)),
        style=Path(__file__).with_suffix(".css").read_text(encoding="utf-8"),
        nav=f"<nav>{links}</nav>" if len(pages) > 1 else "",
        pages="\n".join(_section(k, page, numbers) for k, page in enumerate(pages)),
        data=data.replace("<", "\\u003c"),
        library=library,
        script=script,
    )


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _section(number: int, page: Page, numbers: Iterator[int]) -> str:
    lines = "\n".join(as_text(line) for line in page.command.splitlines())
    command = f'<pre class="command">{lines}</pre>' if lines else ""
    cards = "".join(_card(card) for card in page.cards)
    parts = "".join(_part(part, numbers) for part in page.parts)
    remarks = "".join(f"<li>{as_text(text)}</li>" for text in page.remarks)
    return (
        f'<section id="page-{number}" class="{page.tone}"><p class="name">{as_text(page.name)}</p>'
        f'<h1>{as_text(page.headline)}</h1><p class="lead">{as_text(page.lead)}</p>{command}'
        + (f'<div class="cards">{cards}</div>' if cards else "")
        + f'<div class="grid">{parts}</div>'
        + (f'<ul class="remarks">{remarks}</ul>' if remarks else "")
        + "</section>"
    )


def _card(card: Card) -> str:
    before = f'<span class="before">{as_text(card.before)}</span><span class="arrow">→</span>' if card.before else ""
    return (
        f'<div class="card"><p>{as_text(card.label)}</p><div class="value">{before}'
        f'<span class="after">{as_text(card.after)}</span></div><small>{as_text(card.meaning)}</small></div>'
    )


def _part(part: Figure | Table, numbers: Iterator[int]) -> str:
    if isinstance(part, Figure):
        width = "wide" if part.wide else "half"
        return (
            f'<figure class="{width}"><h2>{as_text(part.title)}</h2><figcaption>{as_text(part.caption)}</figcaption>'
            f'<div class="plot" data-plot="{next(numbers)}"></div></figure>'
        )
    words = [any(_is_words(row[k]) for row in part.rows) for k in range(len(part.columns))]
    style = [' class="words"' if k and said else "" for k, said in enumerate(words)]
    head = "".join(f"<th{how}>{as_text(column)}</th>" for column, how in zip(part.columns, style, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{how}>{as_text(cell)}</td>" for cell, how in zip(row, style, strict=True)) + "</tr>"
        for row in part.rows
    )
    fold = "" if part.folded else " open"
    return (
        f'<details class="wide"{fold}><summary>{as_text(part.title)}</summary><div class="scroll"><table><thead><tr>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def _is_words(cell: str) -> bool:
    """Whether a cell is text rather than a number, so that its column is read from the left."""
    return len(cell) > 3 and cell[0].isalpha() and " " in cell


_POLICY = "default-src 'none'; script-src {library} {script}; style-src 'unsafe-inline'; img-src data: blob:"

_HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
$mark
<meta name="description" content="$headline">
<title>$title</title>
<style>$style</style>
</head>
<body>
$nav
<main>
$pages
<footer>Made by weightspace. This page is one file: nothing is fetched from anywhere.</footer>
</main>
<script type="application/json" id="plots">$data</script>
<script>$library</script>
<script>$script</script>
</body>
</html>
"""
