"""The pages that are made from the code have every public name and every option."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re

import pytest

import weightspace as ws
from docs._site import api, commands, made
from docs._site.docstrings import Entry, blocks, documented, entries, signature, wings


def test_every_public_name_has_a_place():
    pages = made.made()
    for wing in wings():
        page = pages[f"api/{wing}.rst"]
        described = set(re.findall(r"^\.\. py:\w+:: (\w+)", page, re.MULTILINE)) - {"weightspace"}
        elsewhere = {entry.name for entry in entries(wing) if api.home(entry, wing) != wing}
        assert described | elsewhere == {entry.name for entry in entries(wing)}, wing
    handed_on = {name for names in ws._CONTENTS.values() for name in names}
    assert handed_on <= {entry.name for wing in wings() for entry in entries(wing)}


def test_every_command_and_option_is_on_the_page():
    page = commands.page()
    for _, name, command in commands.commands():
        _, _, rest = page.partition(f".. program:: {name}\n")
        own = rest.partition(".. program::")[0]
        shown = [line for line in own.splitlines() if line.startswith(".. option:: ")]
        wanted = [given for given in command.params if given.name != "help" and not getattr(given, "hidden", False)]
        assert len(shown) == len(wanted) > 0, name
        for given in wanted:
            assert any(option in line for line in shown for option in given.opts), (name, given.name)
    assert len(commands.commands()) > 25 and "weightspace atlas list" in page


@pytest.mark.parametrize(
    "address", ["metric.Pullback", "trust.perturb", "flows.ewc", "linear.trace", "codes.Quadratic"]
)
def test_a_docstring_is_cut_without_loss(address):
    words = re.findall(r"\w+", documented()[address])
    kept = [
        word for block in blocks(documented()[address]) for word in re.findall(r"\w+", f"{block.kind} {block.text}")
    ]
    kinds = {"text", "list", "code", "example", "Raises", "Source", "Cost", "Memory"}
    drop = kinds | {"Sources"}
    assert [w for w in kept if w not in drop] == [w for w in words if w not in drop]


def test_signatures_are_those_of_the_source():
    table = {f"{wing}.{entry.name}": entry for wing in wings() for entry in entries(wing)}
    assert signature(table["flows.prune"]).startswith("(sparsity: float")
    assert " at 0x" not in "".join(signature(entry) for entry in table.values())
    for entry in table.values():
        if entry.kind == "function":
            names = list(inspect.signature(entry.thing).parameters)
            assert all(name in signature(entry) for name in names)


def test_names_in_docstrings_lead_to_what_they_mean():
    assert api.resolved("WeightspaceError", "flows") == "net.WeightspaceError"
    assert api.resolved("step", "metric", "Pullback") == "metric.Pullback.step"
    assert api.resolved("Pullback.step", "flows") == "metric.Pullback.step"
    assert api.resolved("perturb", "trust") == "trust.perturb"
    assert api.resolved("width", "symmetry") == "" and api.resolved("nothing", "net") == ""


def test_text_is_escaped():
    made = api._entry(Entry("f", "data", 3, "A *star*, a `code_` and x_1 <= |v|."), "net")
    assert r"\*star\*" in made and ":formula:`x_1 <= |v|`" in made and ":code:`code_`" in made


@pytest.mark.parametrize(
    "name", ["symbols", "formulas", "prose", "rst", "latex", "navigation", "staging", "docstrings"]
)
def test_the_examples_of_the_sources_of_the_site_run(name):
    module = importlib.import_module(f"docs._site.{name}")
    done = doctest.testmod(module)
    assert not done.failed and (done.attempted or name == "docstrings")
