"""`weightspace atlas ...` end to end: what it prints, its exit codes, its one line for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from weightspace.cli import main
from weightspace.net.net import Net
from weightspace.path.trail import Trail

ARCH = ("--arch", "clinets:mlp", "--example", "2x6")


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WEIGHTSPACE_ATLAS", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "clinets", raising=False)
    (tmp_path / "clinets.py").write_text(
        "from torch import nn\ndef mlp():\n    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))\n"
    )
    (tmp_path / "nets").mkdir()
    for seed, name in enumerate(("a", "b")):
        save_file(mlp(seed).state_dict(), tmp_path / "nets" / f"{name}.safetensors")
    save_file(mlp(0).state_dict(), tmp_path / "nets" / "[bold]copy.safetensors")
    (tmp_path / "nets" / "bad.safetensors").write_bytes(b"\x10")
    return tmp_path


def run(capsys, *words):
    code = main(["atlas", *map(str, words)])
    return code, *capsys.readouterr()


def ok(capsys, *words):
    code, out, err = run(capsys, *words)
    assert code == 0, err
    return out


def ok_json(capsys, *words):
    return json.loads(ok(capsys, *words, "--json"))


def refused(capsys, *words):
    code, out, err = run(capsys, *words)
    said = [line for line in err.splitlines() if line.startswith("weightspace: ")]
    assert code == 2 and out == "" and len(said) == 1 and "Traceback" not in err, (out, err)
    return said[0]


def test_networks_are_added_listed_and_shown(here, capsys):
    out = ok(capsys, "add", "nets", *ARCH, "--tag", "sweep")
    for words in ("3 added, 1 left out", "clinets:mlp", "sweep", "bad.safetensors: truncated", "[bold]copy"):
        assert words in out
    out = ok(capsys, "list")
    assert "3 networks in atlas" in out and "Exact copies: [bold]copy, a." in out
    assert "exact copies: [bold]copy" in ok(capsys, "show", "a")
    out = ok(capsys, "add", "nets")
    assert "0 added, 3 that were there already, 1 left out" in out


def test_json_is_all_there_is_on_stdout(here, capsys):
    done = ok_json(capsys, "add", "nets", *ARCH)
    assert [m["name"] for m in done["new"]] == ["[bold]copy", "a", "b"] and len(done["left"]) == 1
    found = ok_json(capsys, "list", "--symmetry")
    assert found["copies"] == found["orbits"] == [["[bold]copy", "a"]] and found["left"] == {}
    assert found["members"][1]["made"] == "clinets:mlp" and found["members"][1]["dtype"] == "float32"
    assert ok_json(capsys, "show", "b")["tags"] == [] and ok_json(capsys, "check")["wrong"] == {}


def test_one_network_gets_a_name_parents_and_tags(here, capsys):
    ok(capsys, "add", "nets/a.safetensors", "--name", "base", "--copy")
    ok(capsys, "add", "nets/b.safetensors", "--name", "tuned", "--parent", "base", "--tag", "x", "--tag", "y")
    member = ok_json(capsys, "show", "tuned")
    assert member["parents"] == ["base"] and member["tags"] == ["x", "y"] and member["kind"] == "file"
    assert ok_json(capsys, "show", "base")["children"] == ["tuned"]
    assert "tuned: y, z" in ok(capsys, "tag", "tuned", "--remove", "x", "--add", "z")
    assert [m["name"] for m in ok_json(capsys, "list", "--tag", "z")["members"]] == ["tuned"]
    assert "Removed: tuned" in ok(capsys, "remove", "tuned") and (here / "nets" / "b.safetensors").exists()
    assert len(ok_json(capsys, "list")["members"]) == 1


def test_a_path_is_added_as_a_lineage(here, capsys):
    trail = Trail(here / "run", Net.of(mlp(0)))
    trail.append(Net.of(mlp(1)), 10)
    done = ok_json(capsys, "add", "run", *ARCH)
    assert [(m["name"], m["parents"]) for m in done["new"]] == [("run/0", []), ("run/10", ["run/0"])]


def test_check_gives_the_exit_code(here, capsys):
    ok(capsys, "add", "nets")
    (here / "nets" / "b.safetensors").unlink()
    code, out, _ = run(capsys, "check")
    assert code == 1 and "3 networks read, 1 gone or changed" in out and "b: " in out
    save_file(mlp(5).state_dict(), here / "nets" / "a.safetensors")
    assert "a.safetensors: has changed since it was added" in ok(capsys, "add", "nets")
    assert "1 added" not in ok(capsys, "add", "nets", "--force")
    assert [*ok_json_of(run(capsys, "check", "--json"))["wrong"]] == ["b"]


def ok_json_of(done):
    return json.loads(done[1])


def test_the_atlas_is_found_by_the_environment(here, capsys, monkeypatch):
    monkeypatch.setenv("WEIGHTSPACE_ATLAS", str(here / "other"))
    ok(capsys, "add", "nets")
    assert (here / "other" / "atlas.db").exists() and not (here / "atlas").exists()
    assert "3 networks" in ok(capsys, "list", "--atlas", here / "other")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["list"], "there is no atlas in atlas"),
        (["show", "a"], "there is no atlas in atlas"),
        (["add", "nowhere"], "nowhere: no such file or folder"),
        (["add", "empty"], "holds no network that can be added"),
        (["add", "nets/bad.safetensors"], "truncated"),
        (["add", "nets/a.safetensors", "nets/b.safetensors", "--name", "x"], "--name is for one network"),
        (["add", "nets/a.safetensors", "--arch", "clinets:nothing"], "has no 'nothing'"),
        (["add", "nets/a.safetensors", "--parent", "nobody"], "no parent called 'nobody'"),
        (["add", "nets/a.safetensors", "--atlas", "mysql://x"], "no such kind of database"),
        (["add"], "Missing argument"),
        (["bake"], "No such command"),
        (["list", "--atlas", "nets/a.safetensors"], "no atlas in"),
    ],
)
def test_a_mistake_gets_one_line(here, capsys, words, said):
    (here / "empty").mkdir()
    assert said in refused(capsys, *words)
    assert not (here / "atlas" / "objects").exists()


@pytest.mark.parametrize("words", [["show", "x"], ["remove", "a", "x"], ["tag", "x", "--add", "t"], ["tag", "a"]])
def test_a_mistake_with_names_changes_nothing(here, capsys, words):
    ok(capsys, "add", "nets")
    before = ok(capsys, "list", "--json")
    assert "'x'" in refused(capsys, *words) or words == ["tag", "a"]
    assert ok(capsys, "list", "--json") == before


def test_names_do_not_move_the_terminal(here, capsys):
    os.rename("nets/b.safetensors", "nets/\x1b[31mb\x07.safetensors")
    out = ok(capsys, "add", "nets")
    assert "\x1b" not in out and "\x07" not in out and "?[31mb?" in out
    assert any(m["name"] == "\x1b[31mb\x07" for m in ok_json(capsys, "list")["members"])


@pytest.mark.parametrize("words", [[], ["add"], ["list"], ["show"], ["tag"], ["remove"], ["check"]])
def test_help_is_fast_and_every_command_has_json(words):
    call = (
        "import sys; from weightspace.cli import main; code = main(['atlas', *sys.argv[1:], '--help']); "
        "assert not {'torch', 'numpy', 'sqlalchemy', 'alembic', 'fsspec'} & set(sys.modules); sys.exit(code)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", call, *words], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout and (not words or all(o in done.stdout for o in ("--json", "--atlas", "--debug")))
