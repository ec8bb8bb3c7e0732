"""The commands `watch` and `paths`: a run recorded, drawn, and refused where it cannot be."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from weightspace.cli import main
from weightspace.curvature.fisher import fisher_trace
from weightspace.inside.path_overlap import cross_path, off_diagonal, self_path
from weightspace.inside.units import gates
from weightspace.task.datasets import digits
from weightspace.training.recorder import Recorder
from weightspace.training.recording import Recording

RUN = ("watch", "-o", "run.rec", "--epochs", "4", "--probe", "20", "--limit", "300")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a recorded run."""
    place = tmp_path_factory.mktemp("watch")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main([*RUN, "--report", "watch.html"]) == 0
    return place


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def run(capsys, *words):
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_watch_records_and_draws(here, capsys):
    assert "Cross-path similarity, all pairs" in (here / "watch.html").read_text()
    seen = Recording("run.rec")
    assert [record.step for record in seen] == [0, 4, 8, 12, 16]
    assert {"gates", "held", "accuracy", "loss", "from_start", "activations"} <= set(seen[-1].values)
    assert "distances_of_inputs" in seen[0].values and "distances_of_inputs" not in seen[1].values
    code, out, err = run(capsys, *RUN)
    assert code == 2 and "run.rec exists" in err
    code, out, err = run(capsys, *RUN, "--force", "--json")
    found = json.loads(out)
    assert code == 0 and found["records"] == 5 and found["out"] == "run.rec" and 0 <= found["accuracy"] <= 1, err


def test_paths_tells_what_the_functions_say(here, capsys):
    code, out, err = run(capsys, "paths", "run.rec", "--json", "--stages", "8,12")
    assert code == 0, err
    found, seen = json.loads(out), [record.values["gates"] for record in Recording("run.rec")]
    pairs = list(zip(seen, seen[1:], strict=False))
    assert found["own"]["all"] == pytest.approx([float(self_path(p, q).mean()) for p, q in pairs])
    cross = [off_diagonal(cross_path(p, q)) for p, q in pairs]
    assert found["cross"]["all"] == pytest.approx(cross)
    assert found["ratio"] == pytest.approx(np.mean(cross[:2]) / cross[2])
    assert found["steps"] == [4, 8, 12, 16] and len(found["matrix"]) == 5 and len(found["scatter"][0]) == 190
    assert list(found["layers"]) == ["2", "4", "6", "8"] and found["layer"] == "4"
    code, out, err = run(capsys, "paths", "run.rec", "--gates", "held", "--layer", "8", "--report", "paths.html")
    assert code == 0 and "self-path" in out and "Path turnover per unit" in out, err
    for words in ("Self-path similarity", "Cross-path similarity by layer", "Paths of every two records",
                  "The nearest example changes", "Overlap and distance", "Path turnover"):  # fmt: skip
        assert words in (here / "paths.html").read_text()


def test_paths_of_a_recorder_of_ones_own(here, capsys):
    """Bare gates: no distances, no activations, no loss; a smooth function says so."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.GELU(), nn.Linear(9, 10))
    with Recorder(model, file="own.rec", tell=None, distances=False, p=gates(digits("test").take(8)),
                  fisher=fisher_trace(digits("test").take(8))) as watch:  # fmt: skip
        for _ in range(3):
            with torch.no_grad():
                model[1].weight.mul_(1.1).add_(0.02)
            watch.step()
    code, out, err = run(capsys, "paths", "own.rec", "--report", "own.html")
    assert code == 0 and "2: smooth activation" in out.replace("\n", " ") and "Path turnover per unit" not in out, err
    page = (here / "own.html").read_text()
    assert "Overlap and distance" not in page and "Fisher trace" in page


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("paths", "none.rec"), "none.rec: cannot be read (No such file or directory)"),
        (("paths", "bad.rec"), "is not a recording of this version"),
        (("paths", "bare.rec"), "no gates; record gates=gates(probe)"),
        (("paths", "once.rec"), "gates at one step only"),
        (("paths", "run.rec", "--gates", "x"), "no gates named 'x'"),
        (("paths", "run.rec", "--layer", "x"), "no layer 'x'; there are 2, 4, 6, 8"),
        (("paths", "run.rec", "--stages", "5"), "give two steps"),
        (("paths", "run.rec", "--stages", "12,12"), "give two steps"),
        (("paths", "run.rec", "--stages", "1,900"), "stages end at 0"),
        (("paths", "run.rec", "--report", "x.txt"), "x.txt"),
        (("watch", "-o", "x.txt"), "x.txt"),
        (("watch", "-o", "x.rec", "--data", "nowhere.npz"), "no such file"),
        (("watch", "-o", "x.rec", "--rate", "nan"), "--rate positive"),
        (("watch", "-o", "x.rec", "--arch", "torch.nn:Tanh"), "Tanh has no gates"),
        (("watch", "-o", "x.rec", "--arch", "torch.nn:Linear(in_features=5,out_features=2)"), "does not take inputs"),
        (("watch", "-o", "missing/x.rec"), "missing"),
    ],
)
def test_refusals_in_one_line(here, capsys, words, told):
    (here / "bad.rec").write_bytes(b"something else entirely")
    for name, options in (("bare", {}), ("once", {"gates": gates(digits("test").take(4))})):
        if not (here / f"{name}.rec").exists():
            model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU())
            Recorder(model, file=f"{name}.rec", tell=None, **options).close()
    code, out, err = run(capsys, *words)
    assert code == 2 and told in err and err.count("\n") <= 2, err
    assert not (here / "x.rec").exists() and not list(here.glob(".*.tmp"))


def test_a_run_that_fails_leaves_nothing(here, capsys):
    np.savez("odd.npz", x=np.ones((30, 5), np.float32))
    code, _, err = run(capsys, "watch", "-o", "y.rec", "--data", "odd.npz")
    assert code == 2 and not (here / "y.rec").exists(), err
