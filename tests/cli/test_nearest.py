"""`weightspace nearest`, and queries of an atlas by what its members have learnt, end to end."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.cli import main

ARCH = ("--arch", "startnets:mlp")


def mlp():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.fixture(scope="module")
def data():
    """Examples that three directions label, and others that turned directions do."""
    x = torch.randn(300, 12, generator=torch.Generator().manual_seed(0))
    w = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    return {"old": (x[:200], (x @ w).argmax(1)[:200]), "new": (x[200:], (x @ w).argmax(1)[200:]),
            "other": (x[:200], (x @ w.flip(0)).argmax(1)[:200])}  # fmt: skip


@pytest.fixture(scope="module")
def nets(data):
    """A network that has learnt the old examples, and one that has learnt the others."""
    found = {}
    for seed, name in enumerate(("old", "other")):
        goal = ws.learn(ws.Task(*data[name]), 50)
        found[name] = ws.flow(ws.fresh(mlp, seed), goal, ws.Adam(), steps=80, size=0.02)[-1]
    return found


@pytest.fixture
def here(tmp_path, monkeypatch, data, nets):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WEIGHTSPACE_ATLAS", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "startnets", raising=False)
    made = "nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))"
    (tmp_path / "startnets.py").write_text(f"from torch import nn\n\n\ndef mlp():\n    return {made}\n")
    for name, (x, y) in data.items():
        np.savez(f"{name}.npz", x=x.numpy(), y=y.numpy())
    for name, net in nets.items():
        ws.checkpoint.save(net.tensors, f"{name}.safetensors")
    np.savez("bare.npz", x=data["new"][0].numpy())
    np.savez("wide.npz", x=np.zeros((20, 5), dtype="float32"), y=np.arange(20) % 3)
    return tmp_path


FILES = ("old.safetensors", "other.safetensors")


def asked(capsys, *words):
    code = main([*words])
    return code, *capsys.readouterr()


def test_checkpoints_are_ranked_and_the_cost_is_told_before(here, capsys):
    learnt = ("--learnt", "old.npz", "--learnt", "other.npz")
    for by in ("loss", "steps", "task2vec"):
        more = learnt if by == "task2vec" else ()
        code, out, err = asked(capsys, "nearest", *FILES, *ARCH, "--data", "new.npz", "--by", by, *more, "--json")
        found = json.loads(out)
        assert code == 0 and found["best"] == "old.safetensors", by
        assert found["passes"] <= found["expected"]["examples"] and f"{by}: " in err
    code, out, err = asked(capsys, "nearest", *FILES, *ARCH, "--data", "new.npz", "--new-head", "--report", "a.html")
    assert code == 0 and "old.safetensors" in out and "Known before: 40 steps of 50 examples" in out
    page = (here / "a.html").read_text()
    assert "Start from old.safetensors for new.npz" in page and "the better half went on" in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*FILES, "--data", "bare.npz"], "bare.npz: no labels"),
        ([*FILES, "--data", "wide.npz"], "no member can answer"),
        ([*FILES], "give --data"),
        ([*FILES, "--data", "new.npz", "--by", "codes"], "distance from which tasks"),
        ([*FILES, "--data", "new.npz", "--by", "codes", "--learnt", "old.npz"], "1 times --learnt for 2 checkpoints"),
        ([*FILES, "--data", "new.npz", "--by", "luck"], "luck"),
        ([FILES[0], FILES[0], "--data", "new.npz"], "given twice"),
        (["gone.safetensors", "--data", "new.npz"], "no such file"),
        ([*FILES, "--data", "new.npz", "--steps", "0"], "give positive numbers"),
    ],
)
def test_what_cannot_be_ranked_is_said_in_a_line(here, capsys, words, said):
    code, out, err = asked(capsys, "nearest", *words, *ARCH)
    assert code == 2 and said in err and not out and "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("weightspace: ")]) == 1


def test_an_atlas_knows_what_its_members_have_learnt(here, capsys):
    for name in ("old", "other"):
        words = ("atlas", "add", f"{name}.safetensors", *ARCH, "--example", "2x12", "--learnt", f"{name}.npz")
        assert asked(capsys, *words)[0] == 0
    code, out, _ = asked(capsys, "atlas", "show", "old")
    assert code == 0 and "learnt: old.npz" in out
    code, out, _ = asked(capsys, "atlas", "query", "--data", "new.npz", "--by", "task2vec", "--json")
    assert code == 0 and json.loads(out)["best"] == "old"
    with ws.Atlas("atlas") as atlas:
        assert {row.observable for row in atlas.measures.of()} == {"distance by task2vec"}
    code, _, err = asked(capsys, "atlas", "query", "--data", "new.npz", "--by", "weights", "--try", "3")
    assert code == 2 and "--try fine-tunes" in err


def test_members_of_unknown_learning_are_left_out(here, capsys):
    asked(capsys, "atlas", "add", "old.safetensors", *ARCH, "--example", "2x12")
    code, _, err = asked(capsys, "atlas", "query", "--data", "new.npz", "--by", "task2vec")
    assert code == 2 and "distance from which tasks" in err
    asked(capsys, "atlas", "add", ".", *ARCH, "--example", "2x12", "--learnt", "old.npz")  # told of all below
    code, out, _ = asked(capsys, "atlas", "query", "--data", "new.npz", "--by", "task2vec", "--json")
    found = json.loads(out)
    assert code == 0 and len(found["ranking"]) == 2 and found["tied"] == [row["name"] for row in found["ranking"]]


def test_networks_of_two_architectures_are_compared_by_what_examples_do_in_them(here, capsys):
    deep = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))
    ws.checkpoint.save(ws.fresh(deep, 3).tensors, "deep.safetensors")
    layers = "nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))"
    (here / "startdeep.py").write_text(f"from torch import nn\n\n\ndef deep():\n    return {layers}\n")
    words = ("compare", "old.safetensors", "deep.safetensors", *ARCH, "--arch-b", "startdeep:deep")
    code, out, _ = asked(capsys, *words, "--data", "bare.npz", "--json", "--report", "b.html")
    found = json.loads(out)
    assert code == 0 and [len(found["first"]), len(found["second"]), len(found["pairs"])] == [1, 2, 1]
    assert found["examples"] == 100 and any("blind to rotations" in note for note in found["notes"])
    assert "Which layers are alike" in (here / "b.html").read_text()
    code, out, _ = asked(capsys, *words, "--data", "new.npz")
    assert code == 0 and "predictions that differ" in out and "none of these sees weights".capitalize() in out
    for more, said in ((("--data", "wide.npz"), "5"), ((), "give --data"), (("--expect", "same"), "no verdict")):
        code, out, err = asked(capsys, *words, *more)
        assert code == 2 and said in err and not out and "Traceback" not in err
