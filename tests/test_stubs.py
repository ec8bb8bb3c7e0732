"""The type stubs say what the packages hand on."""

import importlib.util
from pathlib import Path

import weightspace as ws

_SPEC = importlib.util.spec_from_file_location("stubs", Path(__file__).with_name("stubs.py"))
made = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(made)


def test_the_stubs_are_those_of_the_tables():
    found = made.stubs()
    there = {path for path in made.PACKAGE.rglob("*.pyi")}
    assert there == {*found}, "run make stubs"
    for path, text in found.items():
        assert path.read_text() == text, f"run make stubs: {path.parent.name} has changed"


def test_no_package_hands_on_a_name_twice():
    for package in sorted(made.PACKAGE.glob("*/__init__.py")):
        names = [name for names in made.table(package.parent).values() for name in names]
        assert sorted(names) == sorted({*names}), package


def test_every_name_of_a_stub_is_the_object_at_that_address():
    count = 0
    for path, text in made.stubs().items():
        package = ws if path.parent == made.PACKAGE else importlib.import_module(f"weightspace.{path.parent.name}")
        for line in text.splitlines():
            if line.startswith("from weightspace."):
                _, home, _, name, *_ = line.split()
                assert getattr(package, name) is getattr(importlib.import_module(home), name), line
                count += 1
    assert count > 300
