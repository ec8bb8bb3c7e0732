"""The sources of the site: pages of the repository copied to one folder, their links led to where pages are there."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

from docs._site.navigation import FOLDED, FRONT, ROOT, TITLES, contents, pages_of, site_name

__all__ = ["relinked", "stage"]

_LINK = re.compile(r"(\]\()(?!\w+:)([^)\s#]+)(#[^)\s]*)?([^)]*\))")  # [text](target#anchor "title"), no address
_CODE = re.compile(
    r"(^ *(?P<fence>```+|~~~+).*?^ *(?P=fence)[ \t]*$|`[^`\n]+`|\$\$.+?\$\$|\$[^$\n]+\$)", re.MULTILINE | re.DOTALL
)


def stage(folder: Path, made: Mapping[str, str], root: Path = ROOT) -> list[str]:
    """Write all sources of the site to `folder`; `made`: name and ending of pages that are made -> their text.

    Files that are the same are left as they are, so that Sphinx reads again only what has changed; files of earlier
    builds are removed. Returns the names of the pages.
    """
    pages = pages_of(root)
    tops = [name.rpartition(".")[0] for name in made if "/" not in name or name.endswith("/index.rst")]
    table = contents(pages, tops)  # a folder of pages that are made has an index with a table of contents of its own
    wanted: dict[str, bytes] = {name: text.encode() for name, text in made.items()}
    for page in pages:
        text, files = _page(page, pages, root)
        if page == FRONT:
            text += _toctrees(table)
        if site_name(page) in {f"{folder}/index" for folder in FOLDED}:
            text += _below(text, site_name(page), table)
        ending = page.rpartition(".")[2]
        wanted[f"{'index' if page == FRONT else site_name(page)}.{ending}"] = text.encode()
        for file in files:
            if not (root / file).is_file():
                raise ValueError(f"{page} has a link to {file}, and no such file is in the repository")
            wanted[f"files/{file}"] = (root / file).read_bytes()
    for name, content in wanted.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        if path.relative_to(folder).as_posix() not in wanted:
            path.unlink()
    return sorted(wanted)


def _page(page: str, pages: list[str], root: Path) -> tuple[str, list[str]]:
    """The text of a page of the repository with its links led anew, and the files that they lead to."""
    text = (root / page).read_text(encoding="utf-8")
    if not page.endswith(".ipynb"):
        return relinked(text, page, pages)
    book, files = json.loads(text), []
    for cell in book["cells"]:
        if cell["cell_type"] == "markdown":
            source, more = relinked("".join(cell["source"]), page, pages)
            cell["source"], files = source, [*files, *more]
    return json.dumps(book), files


def relinked(text: str, page: str, pages: list[str]) -> tuple[str, list[str]]:
    """The Markdown of a page as it stands on the site, and the files of the repository that it shows or links.

    A link to a page leads to that page, one to another file to a copy under `files/`. Code is left alone.

    >>> relinked("[all](docs/all-of-it.md#start) ![](a.png)", "README.md", ["README.md", "docs/all-of-it.md"])
    ('[all](all-of-it.md#start) ![](files/a.png)', ['a.png'])
    """
    here = posixpath.dirname(page)
    at = posixpath.dirname("index" if page == FRONT else site_name(page))
    files: list[str] = []

    def led(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, found[2]))
        if target in pages:
            name = ("index" if target == FRONT else site_name(target)) + "." + target.rpartition(".")[2]
        else:
            name = f"files/{target}"
            files.append(target)
        return f"{found[1]}{posixpath.relpath(name, at or '.')}{found[3] or ''}{found[4]}"

    parts = _CODE.split(text)  # text, code or LaTeX, its fence, text, ..
    return "".join(_LINK.sub(led, part) if i % 3 == 0 else part for i, part in enumerate(parts) if i % 3 < 2), files


def _toctrees(table: Mapping[str, list[str]]) -> str:
    """The navigation, hidden on the front page itself: the side bar shows it."""
    blocks = []
    for caption, names in table.items():
        shown = [name for name in names if name.partition("/")[0] not in FOLDED or name.endswith("/index")]
        rows = [f"{TITLES[name]} <{name}>" if name in TITLES else name for name in shown]
        blocks.append(_toctree([f":caption: {caption}", "", *rows]))
    return "".join(blocks)


def _toctree(rows: list[str]) -> str:
    return "\n".join(["", "```{toctree}", ":hidden:", *rows, "```", ""])


def _below(text: str, index: str, table: Mapping[str, list[str]]) -> str:
    """The navigation of a folder, at the end of its index: its pages in the order in which that names them."""
    folder = posixpath.dirname(index)
    pages = [name for names in table.values() for name in names if name.startswith(f"{folder}/") and name != index]
    stems = [name.removeprefix(f"{folder}/") for name in pages]
    return _toctree(["", *sorted(stems, key=lambda stem: (text.find(f"({stem}.") % len(text), stem))])
