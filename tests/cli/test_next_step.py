"""The command that is named at the end of an answer exists, and takes what it is given."""

import re
import shlex

import pytest
import typer

from weightspace.checkpoint import save
from weightspace.cli import app
from weightspace.cli.next_step import GIVEN, NEXT, next_step
from weightspace.demo import digits_cnn
from weightspace.net.net import Net

COMMANDS = typer.main.get_command(app).commands
WORDS = {
    name: f"{name} of mine" for name in "a b to out base keep learn arch data example checkpoint checkpoints".split()
}


def of(command, given):
    token = GIVEN.set((command, given))
    try:
        return next_step()
    finally:
        GIVEN.reset(token)


@pytest.mark.parametrize("command", NEXT)
def test_every_next_command_can_be_typed(command):
    program, name, *rest = shlex.split(of(command, WORDS | {"checkpoints": ["one of mine", "another"]}))
    assert program == "weightspace" and command.split(".")[1] in COMMANDS
    found = COMMANDS[name].make_context(name, list(rest))
    assert "of mine" in " ".join(rest) or command == "read.read"
    assert found.params


@pytest.mark.parametrize("command", NEXT)
def test_what_both_commands_take_is_handed_on(command):
    """An answer about 100 examples goes on with these, not with all; weights are chosen where the file is the same."""
    template, options = NEXT[command]
    both = taken(command.split(".")[1]) & taken(template.split()[0]) & {"arch", "weights", "data", "example", "limit"}
    if not re.search("{(checkpoint|checkpoints|a)}", template) or "{out}" in template:
        both -= {"weights"}
    assert both <= {*options.split(), *re.findall("{(.*?)}", template)}


def taken(command):
    return {parameter.name for parameter in COMMANDS[command].params}


def test_nothing_is_named_where_a_word_is_missing():
    assert of("stability.stability", {"checkpoint": "a", "arch": None}) == (
        "weightspace perturb a --kind quantise --bits 8 -o rounded.safetensors"
    )
    assert of("perturb.perturb", {"out": "a", "data": None}) is None
    assert of("atlas.merge", WORDS) is None
    assert of("compare.compare", WORDS | {"more": ["c"]}) is None


def test_what_a_merge_was_made_of_is_compared_only_where_it_can_be(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for given, named in (([tmp_path], True), (["recipe.yml"], False), (["adapter"], False), (["a.safetensors"], False)):
        assert (of("merge.merge", {"checkpoints": given, "out": "o", "arch": None}) is not None) == named
    assert "--arch x:y" in of("merge.merge", {"checkpoints": ["a.safetensors"], "out": "o", "arch": "x:y"})


@pytest.mark.parametrize("words", [[], ["--limit", "100"]])
def test_a_limit_is_handed_on_only_where_it_was_given(words, tmp_path):
    """That of `certify` is 60000, and that of `stability` 512."""
    file, token = tmp_path / "a.safetensors", GIVEN.set(None)
    save(Net.of(digits_cnn()).tensors, file)
    options = ["--kind", "quantise", "--data", "digits", "--arch", "weightspace.demo:digits_cnn"]
    try:
        COMMANDS["perturb"].main(
            [str(file), *options, "-o", str(tmp_path / "b.safetensors"), *words], standalone_mode=False
        )
        assert next_step().endswith(" ".join(["weightspace.demo:digits_cnn", *words]))
    finally:
        GIVEN.reset(token)
