"""`weightspace project`: the file that is written, the figures, and mistakes in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.cli import main

ARCH = "formednets:mlp"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with an architecture, a checkpoint and data; commands run in it."""
    layers = "nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)"
    code = f"from torch import nn\n\ndef mlp():\n    return nn.Sequential({layers})\n"
    (tmp_path / "formednets.py").write_text(code)
    x = np.random.RandomState(0).randn(80, 6).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=(x[:, :3] + 0.5 * x[:, 3:]).argmax(1))
    ws.checkpoint.save(net().tensors, tmp_path / "a.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def net() -> ws.Net:
    layers = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    return ws.fresh(nn.Sequential(*layers), 0)


def run(capsys, *words):
    code = main(["project", "a.safetensors", "--arch", ARCH, *map(str, words)])
    return code, *capsys.readouterr()


def test_the_nearest_network_is_written_in_the_names_of_the_file(here, capsys):
    code, text, err = run(capsys, "--to", "2.weight=circulant", "--to", "0.*=low-rank:2", "-o", "n.safetensors")
    assert code == 2 and "0.bias has shape (8,)" in err and not (here / "n.safetensors").exists()
    code, text, err = run(capsys, "--to", "2.weight=circulant", "--to", "0.w*=low-rank:2", "-o", "n.safetensors")
    assert code == 0 and "circulant" in text and "low-rank:2" in text, err
    written = net().load(ws.checkpoint.read("n.safetensors"))
    wanted = ws.project(net(), {"2.weight": "circulant", "0.weight": "low-rank:2"})
    assert float((written - wanted).norm()) == 0


def test_with_data_it_says_what_the_form_costs_and_a_flow_costs_less(here, capsys):
    given = ("--to", "2.weight=low-rank:3", "--data", "data.npz", "--json", "--memory", 10)
    code, text, err = run(capsys, *given, "-o", "n.safetensors")
    at_once = json.loads(text)
    assert code == 0 and at_once["steps"] == 0 and at_once["drift"][0] == at_once["drift"][1] > 0, err
    assert len(at_once["scores"]) == 3 and at_once["weights"][0][:4] == ["2.weight", "low-rank:3", 64, 48]
    page = here / "page.html"
    code, text, err = run(capsys, *given, "-o", "m.safetensors", "--steps", 6, "--budget", 0.05, "--report", page)
    along = json.loads(text)
    assert code == 0 and along["drift"][0] == pytest.approx(at_once["drift"][0]), err
    assert along["drift"][1] < along["drift"][0] and along["weights"][0][5] < along["weights"][0][4]
    assert "parameters for 64 entries" in page.read_text()
    written = net().load(ws.checkpoint.read("m.safetensors")).weights["2.weight"]
    assert int(torch.linalg.matrix_rank(written, rtol=1e-5)) == 3
    code, text, err = run(capsys, *given[:-3], "-o", "k.safetensors", "--steps", 3)
    assert code == 0 and "Drift of the outputs" in text and "Accuracy" in text, err


def test_a_network_of_the_form_stays_as_it_is_along_a_flow(here, capsys):
    zero = net()
    ws.checkpoint.save(
        {**zero.tensors, "4.bias": torch.zeros(3), "2.weight": torch.zeros(8, 8)}, "a.safetensors", force=True
    )
    given = ("--to", "2.weight=circulant", "--data", "data.npz", "--memory", 10, "--steps", 3)
    code, text, err = run(capsys, *given, "-o", "n.safetensors")
    assert code == 0 and "Drift of the outputs: 0" in text, err
    assert torch.equal(ws.checkpoint.read("n.safetensors")["0.weight"], zero.weights["0.weight"])


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--to", "2.weight"), "--to takes NAME=KIND"),
        (("--to", "2.weight=round"), "unknown kind of constraint"),
        (("--to", "fc=circulant"), "no weight is called"),
        (("--to", "0.weight=circulant"), "0.weight is 8 x 6, and a circulant matrix is square"),
        (("--to", "2.weight=low-rank:9"), "at most 8, not 9"),
        (("--to", "2.weight=circulant", "--to", "2.weight=toeplitz"), "names 2.weight twice"),
        (("--to", "2.weight=circulant", "--steps", 3), "need --data"),
        ((), "--to"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(here, capsys, words, match):
    code, _, err = run(capsys, *words, "-o", "n.safetensors")
    said = [line for line in err.splitlines() if line != "projecting ..."]
    assert code == 2 and len(said) == 1 and match in said[0]
    assert not (here / "n.safetensors").exists()
