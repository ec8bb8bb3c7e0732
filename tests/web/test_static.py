"""Files that the pages load: those of others are as the lock file says, ours ask nobody else and run no inline code."""

import hashlib
import json
import re

import pytest

from weightspace.web.app import PAGES, STATIC

VENDOR = STATIC / "vendor"
IMPORT = re.compile(
    r"""(?:^import\b(?:[^"'`;]*\bfrom)?|^export\s*(?:\*|\{[^}]*\})\s*from|\bimport\s*\()\s*["']([^"']+)["']""",
    re.MULTILINE,
)
INLINE = "a|b|button|code|em|i|input|kbd|select|small|span|strong"
OURS = sorted(p for p in STATIC.rglob("*") if p.suffix in (".js", ".css", ".html") and VENDOR not in p.parents)


def test_vendored_files_are_those_of_the_lock_file():
    lock = json.loads((VENDOR / "LOCK.json").read_text())
    there = {p.name for p in VENDOR.iterdir()} - {"LOCK.json", "LICENCES.txt"}
    assert there == set(lock)
    for name, entry in lock.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == entry["sha256"], name
        assert entry["packages"] and entry["licence"]
        for package in entry["packages"]:
            assert package == "esbuild" or package.split("/")[0] in (VENDOR / "LICENCES.txt").read_text()


@pytest.mark.parametrize("path", OURS, ids=lambda p: p.name)
def test_our_files_name_no_other_host_and_build_no_markup_from_text(path):
    text = path.read_text()
    assert not [url for url in re.findall(r"(?:https?:|wss?:)?//[\w.-]+\.\w+", text) if "www.w3.org" not in url]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    if path.suffix == ".html":
        assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|javascript:", text)
    for source in IMPORT.findall(text) if path.suffix == ".js" else ():
        target = STATIC / source.removeprefix("/static/") if source.startswith("/static/") else path.parent / source
        assert source.startswith(("./", "../", "/static/")) and target.is_file(), source


def test_every_page_has_its_file():
    assert all((STATIC / file).is_file() for file in PAGES.values())


def templates(source):
    """The templates html`...` of a script, inner ones too, with § for each ${...}."""
    found = []

    def template(at):
        text = ""
        while source[at] != "`":
            if source.startswith("${", at):
                at, text = code(at + 2), text + "§"
            else:
                step = 2 if source[at] == "\\" else 1
                at, text = at + step, text + source[at : at + step]
        return text, at + 1

    def code(at):
        depth = 0
        while at < len(source):
            skipped = re.compile(r"//.*|/\*[\s\S]*?\*/|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'").match(source, at)
            pattern = re.compile(r"(?:(?<=[=(,])|(?<=return))\s*/(?:\\.|\[(?:\\.|[^\]\\])*\]|[^/\\\n\[*])+/").match(
                source, at
            )
            if skipped or pattern:
                at = (skipped or pattern).end()
            elif source[at] == "`":
                ours = source.endswith("html", 0, at)
                text, at = template(at + 1)
                found.extend([text] * ours)
            else:
                depth += {"{": 1, "}": -1}.get(source[at], 0)
                at += 1
                if depth < 0:
                    return at
        return at

    code(0)
    return found


def lost(source):
    """Where htm drops a line break between a word and ${...}, or a word and an element inside a line."""
    places = []
    for text in templates(source):
        flat = re.sub(r"<(/?[\w§]*)(?:\"[^\"]*\"|[^\">])*>", r"<\1>", text)
        word = r"[^\s§<>]{1,20}"
        places += re.findall(rf"{word} *\n\s*(?:§|<(?:{INLINE})>)|(?:§|</(?:{INLINE})>) *\n\s*{word}", flat)
    return places


@pytest.mark.parametrize("path", [p for p in OURS if p.suffix == ".js"], ids=lambda p: f"{p.parent.name}/{p.name}")
def test_no_text_of_a_template_loses_the_space_at_a_line_break(path):
    source = path.read_text()
    assert len(templates(source)) == source.count("html`")  # none was passed over
    assert lost(source) == []


@pytest.mark.parametrize(
    ("body", "caught"),
    [
        ("<p>17 after;\n  ${share} of all</p>", True),
        ("<p>a step of\n  <select value=${x}>${all}</select></p>", True),
        ("<p>${count}\n  networks</p>", True),
        ("<p>${well && html`<b>${one}, and\n ${other}</b>`}</p>", True),
        ("<p>17 after;${' '}\n  ${share} of all</p>", False),
        ("<p>17 after; ${share}\n</p>", False),
        ("<p\n  class=${a > b}\n  title=${c}>text that\n goes on</p>\n<p>${x}</p>", False),
    ],
)
def test_a_lost_space_is_found(body, caught):
    assert bool(lost(f"const pattern = /[`'\"]/; return html`{body}`;")) == caught
