"""Every old name that still works warns with its replacement and the release that it goes in, and goes then."""

import ast
import importlib
import warnings
from pathlib import Path

import pytest

import weightspace as ws
from weightspace import contents

HOUSE = Path(ws.__file__).parent
FILES = {path.relative_to(HOUSE).as_posix(): path.read_text() for path in sorted(HOUSE.rglob("*.py"))}
GOES = f"; the old form goes in weightspace {contents.GOING}"


def by_hand(name, source):
    """Warnings about old names that are not given by `contents.deprecated`, and calls of it without a replacement."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        words = ast.unparse(node)
        if words.startswith("warnings.warn(") and "DeprecationWarning" in words and name != "contents.py":
            yield f"{name}: {words}"
        if words.startswith("deprecated(") and " now" not in ast.unparse(node.args[0]):
            yield f"{name}: {words}"


def version(text):
    return tuple(int(part) for part in text.split("."))


def test_all_warnings_are_given_in_one_way():
    assert not [said for name, source in FILES.items() for said in by_hand(name, source)]
    assert sum(source.count("deprecated(") for source in FILES.values()) >= 8
    planted = 'warnings.warn("x is y now", DeprecationWarning)\ndeprecated("x is gone")'
    assert len([*by_hand("net/net.py", planted)]) == 2


def test_old_names_are_gone_in_the_release_that_was_named():
    assert version(ws.__version__) < version(contents.GOING), "take the old names out, or name a later release"


@pytest.mark.parametrize("old", ws._MOVED)
def test_a_module_of_an_old_name_says_where_it_is_and_when_it_goes(old):
    with pytest.warns(DeprecationWarning, match="is now in weightspace") as seen:
        getattr(ws, old)
    assert str(seen[0].message).endswith(GOES)


def renamed():
    """Every old name of every wing: wing, old name, the address of now."""
    for name, source in FILES.items():
        if name.endswith("/__init__.py"):
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "handed_on" and len(node.args) > 2:
                    for now, names in ast.literal_eval(node.args[2]).items():
                        yield from ((name.partition("/")[0], old, now) for old in names)


@pytest.mark.parametrize(("wing", "old", "now"), [*renamed()])
def test_a_renamed_thing_says_its_new_name_and_when_the_old_one_goes(wing, old, now):
    with pytest.warns(DeprecationWarning) as seen:
        getattr(importlib.import_module(f"weightspace.{wing}"), old)
    said = [str(one.message) for one in seen]
    assert any(now in text and text.endswith(GOES) for text in said)


def test_arguments_and_methods_of_old_names_say_so_too():
    net, task = ws.demo.example()
    group = ws.Symmetry.of(net, task.example(2))
    for call in (
        lambda: ws.curvature.hessian(net, task.take(8)).trace(samples=4),
        lambda: ws.flows.fisher(task.take(8), net),
        lambda: net.widen(1),
        group.certificate,
    ):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            call()
        told = [one for one in seen if one.category is DeprecationWarning]
        assert told and all(str(one.message).endswith(GOES) for one in told)
        assert {one.filename for one in told} == {__file__}


def test_the_changelog_names_the_release():
    text = (HOUSE.parents[1] / "CHANGELOG.md").read_text()
    assert f"go in {contents.GOING}" in text or f"gone in {contents.GOING}" in text
