"""The table of contents of the site has every page once, and links of staged pages lead to staged pages."""

from __future__ import annotations

import json
import re

import pytest

from docs._site.navigation import FRONT, ROOT, SECTIONS, Section, contents, pages_of, site_name
from docs._site.staging import relinked, stage

MADE = {"commands.rst": "commands\n========\n", "api/index.rst": "api\n===\n", "api/net.rst": "net\n===\n"}


def test_every_page_has_a_section():
    pages = pages_of()
    table = contents(pages, ["commands", "api/index"])
    placed = [name for names in table.values() for name in names]
    assert sorted(placed) == sorted([*(site_name(page) for page in pages if page != FRONT), "commands", "api/index"])
    assert FRONT in pages and "README.md" in pages and not any("_site" in page for page in pages)


def test_a_page_without_a_section_is_an_error():
    with pytest.raises(ValueError, match="docs/strange.md"):
        contents([*pages_of(), "docs/strange.md"], [])


def test_a_page_in_two_sections_is_an_error(monkeypatch):
    monkeypatch.setattr("docs._site.navigation.SECTIONS", (*SECTIONS, Section("Twice", ("docs/jobs.md",))))
    with pytest.raises(ValueError, match="two sections"):
        contents(pages_of(), [])


def test_every_pattern_that_is_a_name_is_there():
    later = {"docs/theory.md", "docs/claims.md", "docs/gallery.md", "docs/how-to/index.md"}
    names = {pattern for section in SECTIONS for pattern in section.patterns if "*" not in pattern}
    assert names - set(pages_of()) <= later | {"commands", "api/index"}


def test_links_of_staged_pages_lead_to_what_is_staged(tmp_path):
    stage(tmp_path, MADE)
    for path in tmp_path.rglob("*.md"):
        text = re.sub(r"^ *```.*?^ *```|`[^`\n]+`", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\((?!\w+:)([^)\s#]+)", text):
            assert (path.parent / link).exists(), (path, link)
    assert "{toctree}" in (tmp_path / "index.md").read_text() and (tmp_path / "api" / "net.rst").exists()


def test_staging_again_writes_nothing_and_removes_what_is_old(tmp_path):
    stage(tmp_path, MADE)
    (tmp_path / "old.md").write_text("gone")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    stage(tmp_path, MADE)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert after == {path: time for path, time in before.items() if path.name != "old.md"}


def test_links_are_led_anew_and_code_is_left_alone():
    pages = ["README.md", "docs/index.md", "docs/how-to/a.md", "experiments/README.md"]
    text = "[a](../index.md) [b](../../README.md#x) ![c](../../experiments/results/p.png 'p') `[d](../index.md)`"
    led, files = relinked(text, "docs/how-to/a.md", pages)
    assert led == "[a](../index.md) [b](../readme.md#x) ![c](../files/experiments/results/p.png 'p') `[d](../index.md)`"
    assert files == ["experiments/results/p.png"]
    block = "```\n[e](x.md)\n```\n[f](https://example.org) [g](#here)"
    assert relinked(block, "README.md", pages) == (block, [])


def test_pages_of_a_folded_folder_stand_below_its_index_in_its_order(tmp_path):
    folder = tmp_path / "docs" / "how-to"
    folder.mkdir(parents=True)
    (tmp_path / "docs" / "index.md").write_text("# Start\n")
    (folder / "index.md").write_text("# How to\n\n[second](b.md), [first](a.md)\n")
    for name in "abc":
        (folder / f"{name}.md").write_text(f"# {name}\n")
    stage(tmp_path / "build", {}, tmp_path)
    assert (tmp_path / "build" / "how-to" / "index.md").read_text().endswith("```{toctree}\n:hidden:\n\nb\na\nc\n```\n")
    assert (tmp_path / "build" / "index.md").read_text().endswith(":caption: How to\n\nhow-to/index\n```\n")


def test_notebooks_are_led_too(tmp_path):
    (tmp_path / "docs" / "tutorials").mkdir(parents=True)
    (tmp_path / "docs" / "index.md").write_text("# Start\n")
    cell = {"cell_type": "markdown", "metadata": {}, "source": ["[start](../index.md)"]}
    (tmp_path / "docs" / "tutorials" / "one.ipynb").write_text(json.dumps({"cells": [cell]}))
    stage(tmp_path / "build", {}, tmp_path)
    book = json.loads((tmp_path / "build" / "tutorials" / "one.ipynb").read_text())
    assert book["cells"][0]["source"] == "[start](../index.md)"
    assert ROOT.joinpath("docs/index.md").exists()
