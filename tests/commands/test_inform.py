"""The commands that ask what weights know, how far tasks are apart, and what can be promised."""

from __future__ import annotations

import json
import math
import textwrap

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import weightspace as ws
from weightspace.checkpoint import writer
from weightspace.checkpoint.architecture import ArchitectureError
from weightspace.cli import main
from weightspace.commands import inform, tasks

ARCH = ["--arch", "smallnets:mlp"]


def mlp():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    """A network before and after it was trained, its data, and other data."""
    folder = tmp_path_factory.mktemp("asked")
    (folder / "smallnets.py").write_text(
        textwrap.dedent("""
        from torch import nn

        def mlp():
            return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
        """)
    )
    torch.manual_seed(0)
    x = torch.randn(120, 5)
    y = (x[:, :3] + 0.1 * x[:, 2:]).argmax(1)
    start = ws.Net.of(mlp())
    net = ws.flow(start, ws.learn(ws.Task(x, y), 60, 0), ws.Adam(), steps=400, size=0.02, save=10**6)[-1]
    for name, one in (("start", start), ("net", net)):
        writer.save(one.tensors, folder / f"{name}.safetensors")
    np.savez(folder / "data.npz", x=x.numpy(), y=y.numpy())
    other = torch.randn(200, 5)
    np.savez(folder / "new.npz", x=other.numpy(), y=(other[:, :3] + 0.1 * other[:, 2:]).argmax(1).numpy())
    np.savez(folder / "bare.npz", x=x.numpy())
    np.savez(folder / "wide.npz", x=torch.randn(60, 7).numpy(), y=y[:60].numpy())
    return folder


@pytest.fixture(autouse=True)
def here(play, monkeypatch):
    monkeypatch.chdir(play)
    monkeypatch.syspath_prepend(str(play))
    return play


def asked(capsys, *words):
    code = main([str(word) for word in words])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_inform_tells_nats_bounds_and_layers(here, capsys):
    words = ["inform", "net.safetensors", *ARCH, "--data", "data.npz"]
    code, out, err = asked(capsys, *words, "--report", "inform.html")
    assert code == 0 and "local" in out and "Report: inform.html" in out
    assert "passes forward and back over the examples" in err, "the cost is told before"
    assert "the labels alone take" in (here / "inform.html").read_text()
    code, out, _ = asked(capsys, *words, "--json")
    found = json.loads(out)
    (local,) = found["found"]
    assert code == 0 and found["examples"] == 120 and found["weights"] == 57 and found["right"] > 0.95
    assert 0 < local["value"] < 200 and 0 < local["dimension"] < 57
    assert local["bracket"]["lower"] <= local["bracket"]["value"] <= local["bracket"]["diagonal"]
    y = torch.tensor(np.load("data.npz")["y"]).bincount().double()
    assert found["labels"] == pytest.approx(float(-(y * (y / 120).log()).sum()))
    again = ws.information(ws.Net.of(mlp()).load(load_file("net.safetensors")), ws.Task(*_data()))
    assert local["value"] == pytest.approx(again.value, rel=1e-4)


def _data(name="data.npz"):
    held = np.load(name)
    return torch.tensor(held["x"]), torch.tensor(held["y"])


def test_an_anchor_is_nearer_than_zero(capsys):
    found = {}
    for name, more in (("zero", []), ("start", ["--anchor", "start.safetensors"])):
        _, out, _ = asked(capsys, "inform", "net.safetensors", *ARCH, "--data", "data.npz", "--json", *more)
        found[name] = json.loads(out)["found"][0]
    assert found["start"]["value"] != found["zero"]["value"]


def test_tasks_are_told_apart_and_a_run_goes_on(here, capsys):
    words = ["tasks", "data.npz", "new.npz", "data.npz:random", "--seeds", "1", "--steps", "60", "-o", "codes.json"]
    code, out, err = asked(capsys, *words, "--report", "tasks.html")
    assert code == 0 and "6 codes of 60 steps" in err and "nearest is" in out
    assert "A map of the tasks" in (here / "tasks.html").read_text()
    kept = json.loads((here / "codes.json").read_text())
    code, out, _ = asked(capsys, *words, "--json")
    found = json.loads(out)
    assert json.loads((here / "codes.json").read_text()) == kept
    assert code == 0 and found["names"] == ["data.npz", "new.npz", "data.npz:random"]
    values = np.array(found["values"])
    assert values.shape == (3, 3) and not values.diagonal().any()
    lengths = found["lengths"]
    assert values[0, 1] - values[1, 0] == pytest.approx(lengths[1] - lengths[0])


def test_words_after_colons_change_a_task():
    y = tasks.named_task("digits:0-2", 1 << 40, 0).labels()
    assert y.unique().tolist() == [0, 1, 2]
    y = tasks.named_task("digits:3,8", 50, 0).labels()
    assert len(y) == 50 and y.unique().tolist() == [3, 8]
    stands, turned = (tasks.named_task(f"digits:0-4{word}", 30, 1) for word in ("", ":rotated"))
    assert torch.equal(turned.example(30), stands.example(30).rot90(1, (-2, -1)))
    plain, drawn = (tasks.named_task(f"digits:0-4{word}", 300, 1) for word in ("", ":random"))
    assert torch.equal(plain.example(300), drawn.example(300))
    a, b = (task.labels() for task in (plain, drawn))
    assert b.unique().tolist() == [0, 1, 2, 3, 4] and 0.05 < float((a == b).double().mean()) < 0.4


def test_certify_promises_what_counting_promises(here, capsys):
    words = ["certify", "net.safetensors", *ARCH, "--data", "new.npz", "--unseen", "--steps", "40", "--draws", "20000"]
    code, out, err = asked(capsys, *words, "--report", "certify.html", "-o", "mean.safetensors")
    assert code == 0 and "40 steps of 200 examples" in err and "hold-out" in out
    assert "Bounds on the error" in (here / "certify.html").read_text()
    assert {n: t.shape for n, t in load_file("mean.safetensors").items()} == {
        n: t.shape for n, t in load_file("net.safetensors").items()
    }
    code, out, _ = asked(capsys, *words, "--json")
    found = json.loads(out)
    assert code == 0 and found["unseen"] and found["kind"] == "data"
    assert found["own_error"] <= found["hold_out"] <= 0.2 and found["error"] < found["bound"] < 0.4


def test_certify_from_the_start_of_training(capsys):
    words = ["certify", "net.safetensors", *ARCH, "--data", "data.npz", "--prior", "start.safetensors"]
    code, out, _ = asked(capsys, *words, "--steps", "200", "--draws", "20000", "--json")
    found = json.loads(out)
    assert code == 0 and found["kind"] == "random" and found["nats"] > 1 and found["bound"] <= 1
    assert found["error"] < found["bound"]


WRONG = [
    (["inform", "net.safetensors", "--data", "data.npz", "--method", "guess"], "--method guess: choose local"),
    (["inform", "net.safetensors", "--data", "bare.npz"], "no labels, and this command measures a loss"),
    (["inform", "net.safetensors", "--data", "data.npz", "--beta", "0"], "beta must be"),
    (["inform", "absent.safetensors", "--data", "data.npz"], "no such file"),
    (["inform", "net.safetensors", "--data", "wide.npz"], "does not take inputs of shape"),
    (["inform", "net.safetensors", "--data", "data.npz", "--report", "page.txt"], "must end in .html"),
    (["tasks", "data.npz"], "two or more data sets, each once"),
    (["tasks", "data.npz", "data.npz"], "two or more data sets, each once"),
    (["tasks", "data.npz", "data.npz:7-9"], "no example has a label among 7-9"),
    (["tasks", "data.npz", "data.npz:upside"], "'upside' is not known"),
    (["tasks", "data.npz", "data.npz:rotated"], "only square images can be rotated"),
    (["tasks", "data.npz", "wide.npz"], "bring them to one shape"),
    (["tasks", "data.npz", "bare.npz"], "bare.npz: no labels"),
    (["certify", "net.safetensors", "--data", "data.npz", "--delta", "1.5"], "delta is 1.5"),
    (
        ["certify", "net.safetensors", "--data", "data.npz", "--unseen", "--prior", "start.safetensors"],
        "leave out --prior",
    ),
    (
        ["certify", "net.safetensors", "--data", "data.npz", "--prior", "start.safetensors", "--seen", "data.npz"],
        "120 of the prior's examples are among the certified examples",
    ),
    (["certify", "net.safetensors", "--data", "bare.npz"], "bare.npz: no labels"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=range(len(WRONG)))
def test_a_mistake_is_one_line(here, capsys, words, message):
    before = {path.name for path in here.iterdir()}
    code, out, err = asked(capsys, *words, *(ARCH if words[0] != "tasks" else []))
    *_, last = err.strip().splitlines()
    assert code == 2 and not out and message in last, last
    assert {path.name for path in here.iterdir()} == before


def test_named_tasks_of_no_data_set():
    with pytest.raises(ArchitectureError, match="no such file, and no data set"):
        tasks.named_task("nowhere", 10, 0)


def test_nats_of_labels():
    task = ws.Task(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]))
    assert inform._entropy(task) == pytest.approx(4 * math.log(2))
    assert inform._entropy(ws.Task(torch.zeros(4, 2), torch.zeros(4, 1))) is None
