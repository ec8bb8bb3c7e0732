"""The built site: no warning, every link and anchor inside of it leads somewhere, nothing is fetched from elsewhere.

Skipped where Sphinx, furo or myst-nb is missing (`make docs` installs them), so that `make test` needs none of them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from docs._site.navigation import FRONT, ROOT, pages_of, site_name

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """The anchors of a page, its links, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in ("link", "script", "img", "source", "iframe"):
            self.loaded += [given[name] for name in ("src", "href") if name in given]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for needed in ("sphinx", "furo", "myst_nb"):
        pytest.importorskip(needed, reason="the site is built by the extra `docs`: make docs installs it")
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "docs._site", str(folder)]
    made = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "src"}, check=False
    )
    assert made.returncode == 0, made.stderr[-3000:]
    return folder


def wrong(folder: Path) -> list[str]:
    """Links of the pages in a folder that lead nowhere, and what they load that is not beside them."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}
    said = []
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"(https?|mailto):", link):
                continue
            name, _, anchor = unquote(link).partition("#")
            target = (path.parent / name.partition("?")[0]).resolve() if name else path
            if not target.exists():
                said.append(f"{path.name}: {link} leads nowhere")
            elif anchor and target in pages and anchor not in pages[target].anchors:
                said.append(f"{path.name}: {link} has no such anchor")
        for source in page.loaded:
            if re.match(r"(https?:)?//", source):
                said.append(f"{path.name}: {source} is loaded from elsewhere")
                continue
            file = path.parent / unquote(source).partition("?")[0]
            if not source.startswith(("data:", "#")) and not file.exists():
                said.append(f"{path.name}: {source} is not there")
    for style in folder.rglob("*.css"):
        said += [f"{style.name}: {url}" for url in re.findall(r"url\([\"']?(https?://[^)]+)\)", style.read_text())]
    return said


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(site):
    assert wrong(site) == []


def test_every_page_is_there_with_formulas_and_a_search(site):
    for page in pages_of():
        assert (site / f"{'index' if page == FRONT else site_name(page)}.html").exists(), page
    text = (site / "api" / "metric.html").read_text()
    assert text.count("<math") > 50 and "<msqrt>" in text and "weightspace.metric.Pullback.step" in text
    assert "pullback" in (site / "searchindex.js").read_text() and "MathJax" not in text


def test_wrong_links_are_seen(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="x"></p><a href="#x"></a><a href="#y"></a><a href="b.html"></a><a href="https://example.org"></a>'
        '<script src="https://example.org/x.js"></script><img src="none.png">'
    )
    assert len(wrong(tmp_path)) == 4
