"""The JSON that commands print has a schema with a version; real answers meet it, and it does not change unseen."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.cli import answers, main, show
from weightspace.cli.schema import schema

from .conftest import schemas, wrong

ON = ("--arch", "answernets:mlp")
SHAPED = (*ON, "--example", "2x6")
DATA = (*ON, "--data", "data.npz")
NETS = ("a.safetensors", "b.safetensors")
OUT = ("-o", "out.safetensors")
CASES = {
    "read": ("read", *SHAPED),
    "doctor": ("doctor",),
    "compare": ("compare", *NETS, *DATA),
    "compare.across": ("compare", *NETS, *DATA, "--arch-b", "answernets:mlp"),
    "compare.set": ("compare", *NETS, "c.safetensors", "--base", "base.safetensors", *DATA),
    "align": ("align", NETS[1], "--to", NETS[0], *DATA, *OUT),
    "merge": ("merge", *NETS, *DATA, *OUT),
    "merge.recipe": ("merge", *NETS, "--method", "ties", "--base", "base.safetensors", *DATA, *OUT),
    "extract": ("extract", NETS[0], "--base", "base.safetensors", "--rank", "2", "-o", "adapter"),
    "walk": ("walk", NETS[0], "--keep", "data.npz", "--toward", "prune:0.2", "--steps", "2", *ON, *OUT),
    "perturb": ("perturb", NETS[0], *DATA, *OUT),
    "widen": ("widen", NETS[0], "--to", "2", *SHAPED, *OUT),
    "deepen": ("deepen", NETS[0], "--to", "answernets:deeper", *SHAPED, *OUT),
    "grow": ("grow", NETS[0], "--outputs", "1", *SHAPED, *OUT),
    "project": ("project", NETS[0], "--to", "0.weight=low-rank:2", *ON, *OUT),
    "capacity": ("capacity", NETS[0], "--keep", "data.npz", "--learn", "data.npz", *ON, "--memory", "10"),
    "stability": ("stability", NETS[0], *DATA, "--sizes", "0.01,0.1", "--draws", "2", "--attack", "0.1"),
    "inform": ("inform", NETS[0], *DATA, "--limit", "60"),
    "certify": ("certify", NETS[0], *DATA, "--steps", "20", "--draws", "500"),
    "tasks": ("tasks", "data.npz", "other.npz", *ON, "--steps", "20", "--limit", "40", "--seeds", "1"),
    "nearest": ("nearest", *NETS, *DATA, "--by", "loss"),
    "watch": ("watch", "-o", "out.rec", "--data", "data.npz", *ON, "--epochs", "2"),
    "paths": ("paths", "run.rec"),
    "atlas.list": ("atlas", "list", "--symmetry"),
    "atlas.show": ("atlas", "show", "a"),
    "atlas.tag": ("atlas", "tag", "a", "--add", "good"),
    "atlas.remove": ("atlas", "remove", "c"),
    "atlas.check": ("atlas", "check"),
    "atlas.map": ("atlas", "map", "--data", "data.npz", "--barriers", "1"),
    "atlas.query": ("atlas", "query", "--data", "data.npz"),
    "atlas.nearest": ("atlas", "nearest", NETS[0]),
    "atlas.between": ("atlas", "between", "a", "b", "--data", "data.npz"),
    "atlas.merge": ("atlas", "merge", "a", "b", "--data", "data.npz", *OUT),
    "atlas.add": ("atlas", "add", ".", *SHAPED, "--atlas", "second"),
    "schema": ("schema",),
}


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    """A folder with an architecture, examples, a base with three children, a recording and an atlas."""
    folder = tmp_path_factory.mktemp("answers")
    (folder / "answernets.py").write_text(
        "from torch import nn\n\n\ndef mlp(more=()):\n"
        "    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), *more, nn.Linear(8, 3))\n\n\n"
        "def deeper():\n    return mlp((nn.Linear(8, 8), nn.ReLU()))\n"
    )
    x = np.random.RandomState(0).randn(120, 6).astype(np.float32)
    y = (x[:, :3] + 0.5 * x[:, 3:]).argmax(1)
    np.savez(folder / "data.npz", x=x, y=y)
    np.savez(folder / "other.npz", x=x, y=y[::-1].copy())
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    base = ws.Net.of(module)
    nets = {"base": base, **{name: ws.perturb(base, 0.05, seed=seed) for seed, name in enumerate("abc")}}
    for name, net in nets.items():
        ws.checkpoint.save(net.tensors, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def here(play, tmp_path, monkeypatch):
    """A copy of the folder for one test."""
    for path in play.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WEIGHTSPACE_ATLAS", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "answernets", raising=False)
    return tmp_path


def printed(capsys, *words):
    capsys.readouterr()
    code = main([*map(str, words), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize("answer", CASES)
def test_an_answer_meets_its_schema(here, capsys, answer):
    if answer.startswith("atlas.") and answer != "atlas.add":
        printed(capsys, "atlas", "add", ".", *SHAPED)
    if answer == "paths":
        printed(capsys, "watch", "-o", "run.rec", "--data", "data.npz", *ON, "--epochs", "2")
    found = printed(capsys, *CASES[answer])
    assert found["schema"] == answers.schema_name(answer) and not wrong(found)


def test_every_answer_is_run_and_described():
    assert {*CASES, "demo"} == {*answers.VERSIONS} == {*schemas.SHAPES}
    assert {path.stem for path in answers.schema_file("read").parent.iterdir()} == {*answers.VERSIONS}


@pytest.mark.parametrize("answer", answers.VERSIONS)
def test_the_schemas_in_the_package_are_those_of_what_commands_return(answer):
    now, before = schemas.made(answer), schemas.stored(answer)
    assert schemas.objections(before, now) is None, schemas.objections(before, now)
    assert schemas.text_of(now) == answers.schema_file(answer).read_text(), "keys were added: run make schemas"


def test_a_key_that_goes_or_changes_needs_a_new_version(monkeypatch):
    before = schemas.stored("compare")
    for spoil in (
        lambda keys: keys.pop("relative"),
        lambda keys: keys.update(axes=str),
        lambda keys: keys.update(naive=schemas.Optional_(float)),
    ):
        keys = dict(schemas.SHAPES["compare"]())
        spoil(keys)
        monkeypatch.setitem(schemas.SHAPES, "compare", lambda keys=keys: keys)
        assert "bump the version of 'compare'" in schemas.objections(before, schemas.made("compare"))
        with monkeypatch.context() as patched:
            patched.setitem(answers.VERSIONS, "compare", 2)
            assert schemas.objections(before, schemas.made("compare")) is None
        monkeypatch.undo()
    monkeypatch.setitem(schemas.SHAPES, "compare", lambda: {**keys_of_compare(), "more": int})
    assert schemas.objections(before, schemas.made("compare")) is None, "a key may be added"


def keys_of_compare():
    return schemas.keys_of("commands.compare.Comparison", without=("units",))


def test_planted_mistakes_in_an_answer_are_found(here, capsys):
    good = printed(capsys, *CASES["compare"])
    assert not wrong(good)
    layer = good["layers"][0]
    for bad, where in (
        ({**good, "extra": 1}, "extra"),
        ({k: v for k, v in good.items() if k != "verdict"}, "verdict"),
        ({**good, "axes": "2"}, "axes"),
        ({**good, "layers": [{**layer, "more": 1}]}, "more"),
        ({**good, "layers": [{k: v for k, v in layer.items() if k != "name"}]}, "name"),
        ({**good, "interval": [1.0]}, "interval"),
        ({**good, "schema": "weightspace.compare/1", "numbers": 1.5}, "numbers"),
    ):
        assert any(where in said for said in wrong(bad)), where


def test_a_planted_key_fails_the_command_in_these_tests(here, capsys, monkeypatch):
    told = show.stamped
    monkeypatch.setattr(show, "stamped", lambda name, data: {**told(name, data), "planted": 1})
    assert main(["perturb", NETS[0], *DATA, *OUT, "--json"]) == 2 and "planted" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("compare", "gone.safetensors", "b.safetensors", *SHAPED), ("atlas", "list"),
                                   ("schema", "nothing"), ("compare", "--nothing")])  # fmt: skip
def test_an_error_is_one_line_on_stderr_and_code_2(here, capsys, words):
    capsys.readouterr()
    assert main([*words, "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("weightspace: ")


def test_the_command_prints_the_schema_of_a_command(capsys):
    for words in (("compare",), ("atlas", "map"), ("compare.set",)):
        assert main(["schema", *words]) == 0
        assert json.loads(capsys.readouterr().out) == schemas.stored(".".join(words))
    assert main(["schema"]) == 0 and "weightspace.atlas.map/1" in capsys.readouterr().out
    assert main(["schema", "atlas"]) == 2 and "atlas.map" in capsys.readouterr().err
    assert schema.__doc__


def test_what_read_prints_is_still_a_saved_group(here, capsys):
    group = printed(capsys, *CASES["read"])
    Path("group.json").write_text(json.dumps(group))
    assert str(ws.Symmetry.load("group.json")) == group["group"]


def test_the_page_has_the_keys_of_every_answer():
    text = schemas.PAGE.read_text()
    assert schemas.page(text) == text and "<!-- keys -->" in text, "run make schemas"
    assert all(f"`{answers.schema_name(answer)}`" in text for answer in answers.VERSIONS)
