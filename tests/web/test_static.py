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
